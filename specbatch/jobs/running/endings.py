"""How a run ends: its parts committed, its deadline come, or an error of specbatch itself."""

from __future__ import annotations

import shlex
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace

from specbatch.jobs.output.ledger import Ledger, StoredJob
from specbatch.jobs.planning.prepare import PreparedJob
from specbatch.jobs.running.run_documents import RunDocuments
from specbatch.jobs.running.run_log import Fact
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import Manifest
from specbatch.schemas.messages import PartReceipt


def commit_parts(
    ledger: Ledger,
    stored: StoredJob,
    prepared: PreparedJob,
    receipts: Iterable[PartReceipt],
    *,
    before_hash: Callable[[], None],
    after_hash: Callable[[], object],
) -> Manifest:
    """Commit a job whose every shard has its part.

    Args:
        receipts: one for each shard.
        before_hash, after_hash: called around every part that has to be read again.

    Raises:
        SpecbatchError: what ``Ledger.commit`` raises.
    """

    def hash_part(path: str) -> str:
        before_hash()
        digest = ledger.hash_part(path)
        after_hash()
        return digest

    is_once = not prepared.spec.execution.single_writer
    hashed = [
        # A digest is taken over only from the process that made the file, where nobody can make it again.
        receipt if is_once and receipt.created and receipt.sha256 else replace(receipt, sha256=hash_part(receipt.path))
        for receipt in receipts
    ]
    return ledger.commit(stored, prepared.models, hashed)


def deadline_error(code: ErrorCode, prepared: PreparedJob, num_done: int, num_parts: int) -> SpecbatchError:
    """The line for a run whose time was over before the job was complete."""
    return SpecbatchError(
        code,
        f"the deadline of {prepared.spec.execution.deadline} has come with {num_done} of {num_parts} parts done; "
        f"go on with: specbatch resume {shlex.quote(prepared.output)} --deadline …",
    )


def crash_error(ledger: Ledger, documents: RunDocuments, output: str, error: Exception) -> SpecbatchError:
    """Keep the traceback of an error that nobody expected among the logs of the run; the line for it."""
    key = ledger.write_log(documents.epoch, "crash.txt", traceback.format_exc())
    # The words of the error stay in crash.txt: they may quote what it was about.
    documents.log.add(Fact("error", "crash", f"an error of specbatch itself: {type(error).__name__}"))
    first = (str(error).strip().splitlines() or [""])[0]
    return SpecbatchError(
        ErrorCode.JOB_INTERNAL,
        f"{type(error).__name__}: {first} (details in {output}/{key}); "
        "finished parts are kept, run the same command to go on",
    )
