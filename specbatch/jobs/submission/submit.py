"""Hand a prepared job over to Ray Jobs: begun in its output, recorded there, and started on the cluster once."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from specbatch._version import __version__
from specbatch.jobs.output.jobdocument import with_absolute_paths
from specbatch.jobs.output.ledger import StoredJob, now_text
from specbatch.jobs.output.submissions import create_submission, last_epoch, last_submission, read_end
from specbatch.jobs.planning.prepare import PreparedJob
from specbatch.jobs.running.job import JobOutcome, begin_job
from specbatch.jobs.spec.address import check_address
from specbatch.jobs.submission.client import JobRequest, JobsClient
from specbatch.jobs.submission.package import staged_package
from specbatch.schemas.submission import SUBMISSION_FORMAT, SubmissionDocument
from specbatch.schemas.units import parse_size
from specbatch.storage.store import Store

CARRIED_VARIABLES = ("SPECBATCH_LOG_FORMAT", "SPECBATCH_LOG_LEVEL", "SPECBATCH_STORE_PATIENCE_SECONDS")
"""All that goes along of the environment. Settings stand in the record; credentials and endpoints are the nodes'."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that Ray Jobs have.

    Attributes:
        was_there: an earlier submit had handed it over, and it has not ended.
    """

    output: str
    record: SubmissionDocument
    was_there: bool

    def next_commands(self) -> list[tuple[str, str]]:
        """What the user can do from any machine that sees the output: command, and what it does."""
        output = shlex.quote(self.output)
        return [
            (f"specbatch status {output}", "how far it is; --watch shows it live"),
            (f"specbatch logs -f {output}", "what happens, as it happens"),
            (f"specbatch cancel {output}", "ask it to stop; what is done is kept"),
        ]


def submit_job(
    prepared: PreparedJob,
    say: Callable[[str], None],
    *,
    client: JobsClient | None = None,
    environ: Mapping[str, str] = os.environ,
) -> tuple[Submitted, JobsClient] | JobOutcome:
    """Hand a job over, or find that it has been, and has not ended; how it ended where it is complete.

    Args:
        client: made from the address of the job if None.

    Raises:
        SpecbatchError: what ``begin_job`` and ``JobsClient`` raise.
    """
    address = prepared.spec.execution.address
    assert address is not None, "the caller looks at the address"
    client = client or JobsClient(check_address(address))  # before anything is written
    begun = begin_job(prepared, say)
    if isinstance(begun, JobOutcome):
        return begun
    for line in client.warnings():
        say(line)
    submitted = _settle(begun.prepared, begun.stored, begun.ledger.store, client)
    if not submitted.was_there:
        _start(client, submitted, begun.stored, environ)
    return submitted, client


def _settle(prepared: PreparedJob, stored: StoredJob, store: Store, client: JobsClient) -> Submitted:
    """The record that this submit is about: one that is under way, or a new one."""
    while True:
        last = last_submission(store)
        wanted = _record(prepared, stored, store, client.address, number=1 if last is None else last.number + 1)
        if last is not None and last.address == client.address and read_end(store, last.number) is None:
            state = client.find(last.submission_id)
            if state is not None and not state.has_ended:
                return Submitted(prepared.output, last, was_there=True)
            if state is None and last.spec == wanted.spec and last.version == wanted.version:
                return Submitted(prepared.output, last, was_there=False)  # recorded, but it never got there
        if create_submission(store, wanted):
            return Submitted(prepared.output, wanted, was_there=False)


def _record(prepared: PreparedJob, stored: StoredJob, store: Store, address: str, *, number: int) -> SubmissionDocument:
    # The identity tells jobs apart, the id of the job the outputs that hold the same one.
    name = f"specbatch-{stored.document.identity.S[:12]}-{stored.document.job_id.partition('-')[0]}-{number}"
    return SubmissionDocument(
        format=SUBMISSION_FORMAT,
        number=number,
        submission_id=name,
        address=address,
        submitted_at=now_text(),
        host=socket.gethostname(),
        version=__version__,
        epoch_before=last_epoch(store),
        spec=with_absolute_paths(prepared.spec.model_dump(mode="json")),
    )


def _start(client: JobsClient, submitted: Submitted, stored: StoredJob, environ: Mapping[str, str]) -> None:
    record, execution = submitted.record, submitted.record.spec["execution"]
    memory = execution["entrypoint_memory"]
    with staged_package() as package:
        client.submit(
            JobRequest(
                submission_id=record.submission_id,
                entrypoint=entrypoint(submitted.output, record.number),
                package=package,
                environment={name: environ[name] for name in CARRIED_VARIABLES if environ.get(name)},
                metadata=_metadata(submitted.output, stored),
                num_cpus=execution["entrypoint_num_cpus"],
                memory_bytes=None if memory is None else parse_size(memory),
            )
        )


def entrypoint(output: str, number: int) -> str:
    """The command of the driver, for a shell of a node.

    Its folder is kept off the import path (``-P``): whatever lies where Ray was started must not shadow a library.
    """
    return shlex.join(["python", "-P", "-m", "specbatch.jobs.submission.driver", output, str(number)])


def _metadata(output: str, stored: StoredJob) -> dict[str, Any]:
    """What Ray's dashboard shows beside the id."""
    return {
        "job_name": f"specbatch {PurePosixPath(output).name}",
        "specbatch_output": output,
        "specbatch_identity": stored.document.identity.S[:12],
        "specbatch_version": __version__,
    }
