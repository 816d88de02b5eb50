"""The ledger: what a job writes about itself to its output, and what it finds there.

The order of writing is what makes a kill at any moment harmless: plan, then ``job.json``, then parts, then
``manifest.json``, then ``_SUCCESS``. Whatever exists is adopted, never written again.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from specbatch.jobs.output.identity import other_job_error
from specbatch.jobs.output.jobdocument import JOB_KEY, decode_job, with_absolute_paths
from specbatch.jobs.output.manifest import (
    MANIFEST_NAME,
    SUCCESS_NAME,
    Part,
    build_commit,
    build_observed,
    decode_manifest,
    encode_manifest,
    success_digest,
)
from specbatch.jobs.output.stored_parts import find_parts
from specbatch.schemas.canonical import sha256_hex
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.failpoints import failpoint
from specbatch.schemas.manifest import (
    JOB_FORMAT,
    MANIFEST_FORMAT,
    Identity,
    JobDocument,
    Manifest,
    Models,
    PartRecord,
)
from specbatch.schemas.messages import PartReceipt
from specbatch.schemas.plan import Shard, plan_digest
from specbatch.schemas.run import ProgressDocument, RunRecord
from specbatch.storage.store import NotFound, Store

RUNS_FOLDER = "_specbatch/runs"
PROGRESS_KEY = "_specbatch/progress.json"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job as its output knows it."""

    document: JobDocument
    shards: tuple[Shard, ...]

    @property
    def plan(self) -> str:
        """P."""
        return self.document.identity.P


def plan_key(plan: str) -> str:
    return f"_specbatch/plan-{plan}.parquet"


def run_key(epoch: int) -> str:
    return f"{RUNS_FOLDER}/{epoch}.json"


class Ledger:
    """Reads and writes one output."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def find_job(self) -> StoredJob | None:
        """The job of this output; None where the output is empty or only the plan of a killed beginning is there.

        Raises:
            SpecbatchError: JOB_PREFIX_TAKEN, JOB_FORMAT, JOB_INTEGRITY.
        """
        data = self._read_job()
        if data is None:
            foreign = [key for key in self.store.list("") if not key.startswith("_specbatch/")]
            if not foreign:
                return None
            data = self._read_job()  # another run may have begun, and written parts, between the two looks
            if data is None:
                raise SpecbatchError(
                    ErrorCode.JOB_PREFIX_TAKEN,
                    f"{self.store.uri} is not empty and holds no specbatch job (it has {foreign[0]}); "
                    "choose another folder with --output",
                )
        document = decode_job(data, self.store.uri)
        return StoredJob(document, self._read_plan(document))

    def _read_job(self) -> bytes | None:
        try:
            return self.store.read(JOB_KEY)
        except NotFound:
            return None

    def _read_plan(self, document: JobDocument) -> tuple[Shard, ...]:
        from specbatch.storage.planfile import decode_plan

        identity = document.identity
        try:
            shards = tuple(decode_plan(self.store.read(plan_key(identity.P))))
        except NotFound:
            raise SpecbatchError(
                ErrorCode.JOB_INTEGRITY,
                f"{plan_key(identity.P)} is missing from {self.store.uri}, which holds its job",
            ) from None
        if plan_digest(identity.S, shards) != identity.P:
            raise SpecbatchError(
                ErrorCode.JOB_INTEGRITY, f"{plan_key(identity.P)} in {self.store.uri} is not the plan that was written"
            )
        return shards

    def begin_job(self, identity: Identity, models: Models, spec: dict[str, Any], shards: Sequence[Shard]) -> StoredJob:
        """Write plan and ``job.json``, or adopt those of the same S that are there.

        Raises:
            SpecbatchError: JOB_SPEC_CHANGED where the output belongs to a job of another S.

        Local paths are stored absolute, so that the job can be gone on with from any folder.
        """
        from specbatch.storage.planfile import encode_plan

        failpoint("plan_create:before")
        self.store.create(plan_key(identity.P), encode_plan(shards))
        failpoint("plan_create:after")
        document = JobDocument(
            format=JOB_FORMAT,
            job_id=str(uuid.uuid4()),
            created_at=now_text(),
            identity=identity,
            models=models,
            spec=with_absolute_paths(spec),
        )
        failpoint("job_create:before")
        self.store.create(JOB_KEY, document.model_dump_json(indent=2).encode() + b"\n")
        failpoint("job_create:after")
        stored = self.find_job()
        assert stored is not None
        check_same_job(stored, identity, self.store.uri)
        return stored

    def find_manifest(self) -> Manifest | None:
        try:
            return decode_manifest(self.store.read(MANIFEST_NAME))
        except NotFound:
            return None

    def find_parts(
        self,
        stored: StoredJob,
        among: Collection[int] | None = None,
        on_part: Callable[[], None] = lambda: None,
    ) -> dict[int, PartReceipt]:
        """Parts of the plan that exist, by shard, each with a valid footer; ``sha256`` is left empty (``hash_part``).

        Args:
            among: look for these shards only; for all of the plan if None.
            on_part: called behind every part that was looked at; what it raises ends the search.

        Raises:
            SpecbatchError: JOB_INTEGRITY for a file under a part's name that is not that part.
        """
        return find_parts(self.store, stored.plan, stored.shards, among, on_part)

    def hash_part(self, path: str) -> str:
        """Hex SHA-256 of a part as it lies in the store."""
        digest = hashlib.sha256()
        with self.store.open(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def begin_run(self, record: RunRecord) -> RunRecord:
        """Write the record of a new run under the next free epoch, and return it with that epoch."""
        epoch = max(self.epochs(), default=0) + 1
        while not self.store.create(run_key(epoch), _encode(numbered := record.model_copy(update={"epoch": epoch}))):
            epoch += 1
        return numbered

    def write_run(self, record: RunRecord) -> None:
        self.store.replace(run_key(record.epoch), _encode(record))

    def read_runs(self) -> tuple[RunRecord, ...]:
        """Records of all runs by epoch; one that cannot be read is left out, records are not authoritative."""
        records: list[RunRecord] = []
        for epoch in self.epochs():
            try:
                records.append(RunRecord.model_validate_json(self.store.read(run_key(epoch))))
            except ValidationError:
                continue
        return tuple(records)

    def epochs(self) -> list[int]:
        """Epochs of the runs that have a record, ascending."""
        stems = (PurePosixPath(key).stem for key in self.store.list(RUNS_FOLDER))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def write_progress(self, document: ProgressDocument) -> None:
        self.store.replace(PROGRESS_KEY, _encode(document))

    def write_log(self, epoch: int, name: str, text: str) -> str:
        """Keep a text among the logs of a run; returns its key."""
        key = f"_specbatch/logs/{epoch}/{name}"
        self.store.replace(key, text.encode("utf-8", "backslashreplace"))
        return key

    def commit(self, stored: StoredJob, models: Models, receipts: Sequence[PartReceipt]) -> Manifest:
        """Write ``manifest.json`` and ``_SUCCESS`` once every shard has its part.

        Raises:
            SpecbatchError: JOB_INTEGRITY where another run committed something else.
        """
        assert sorted(receipt.shard for receipt in receipts) == [shard.index for shard in stored.shards]
        commit = build_commit(
            [
                Part(PartRecord(path=r.path, rows=r.num_rows, bytes=r.num_bytes, sha256=r.sha256), r.stats)
                for r in receipts
            ]
        )
        manifest = Manifest(
            format=MANIFEST_FORMAT,
            job_id=stored.document.job_id,
            identity=stored.document.identity,
            models=models,
            stored={key: sha256_hex(self.store.read(key)) for key in (JOB_KEY, plan_key(stored.document.identity.P))},
            commit=commit,
            observed=build_observed(self.read_runs(), commit),
            spec=stored.document.spec,
        )
        failpoint("manifest_create:before")
        self.store.create(MANIFEST_NAME, encode_manifest(manifest))
        failpoint("manifest_create:after")
        written = self.find_manifest()
        assert written is not None
        if written.commit != commit:
            raise SpecbatchError(
                ErrorCode.JOB_INTEGRITY,
                f"manifest.json in {self.store.uri} commits other parts than those in data/; see specbatch verify",
            )
        self.seal()
        return written

    def seal(self) -> None:
        """Write ``_SUCCESS`` for the manifest that is there."""
        failpoint("success_create:before")
        self.store.create(SUCCESS_NAME, success_digest(self.store.read(MANIFEST_NAME)))
        failpoint("success_create:after")


def check_same_job(stored: StoredJob, identity: Identity, uri: str) -> None:
    """Assert that a command asks for the job that an output holds.

    Raises:
        SpecbatchError: JOB_SPEC_CHANGED with the fields that differ; JOB_FORMAT where the two identities are written
            by different versions, which cannot be compared field by field.
    """
    if stored.document.identity.S != identity.S:
        raise other_job_error(stored.document.identity.fields, identity.fields, uri)


def now_text() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _encode(document: RunRecord | ProgressDocument) -> bytes:
    return document.model_dump_json(indent=2).encode() + b"\n"
