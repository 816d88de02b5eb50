"""From a finished shard to its part in the store, and to the receipt that says so."""

from __future__ import annotations

import hashlib
import secrets
import time
from pathlib import Path

import pyarrow as pa

from specbatch.schemas.canonical import sha256_file
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.failpoints import failpoint
from specbatch.schemas.manifest import PART_FORMAT
from specbatch.schemas.messages import PartReceipt
from specbatch.schemas.plan import Shard, part_name
from specbatch.schemas.rows import ResultForm
from specbatch.schemas.stats import PhaseSeconds
from specbatch.storage.local import write_errors
from specbatch.storage.parts import PartMeta, part_stats, read_part_meta, write_part
from specbatch.storage.store import NotFound, Store
from specbatch.workers.shards import FinishedShard, planned_samples

_CHUNK_BYTES = 1 << 20
_PLAIN_FORM = ResultForm()


class PartWriter:
    """Writes the parts of one worker, one after the other.

    A part's footer can only tell the writing time up to the footer itself; what comes after it (digest, fsync, link)
    is told by the next part.
    """

    def __init__(self, store: Store, plan: str, *, num_samples: int = 1, form: ResultForm = _PLAIN_FORM) -> None:
        self.seconds = 0.0
        self._num_samples = num_samples
        self._form = form
        self._store = store
        self._plan = plan
        self._untold_seconds = 0.0

    def write(self, finished: FinishedShard) -> PartReceipt:
        """Make the shard's part, or find that another attempt has made it.

        Raises:
            SpecbatchError: ``JOB_OUTPUT_UNWRITABLE``; ``JOB_INTEGRITY`` when something else lies under the part's name.
            MemoryError: there is no room to encode it.
        """
        started = time.perf_counter()
        told_seconds = 0.0
        shard = finished.assignment.lease.shard
        spool = self._store.spool_path()
        try:
            with write_errors(spool):
                failpoint("part_spool:before")
                meta = write_part(
                    spool,
                    finished.table,
                    finished.results,
                    self._meta(finished),
                    planned=planned_samples(shard, self._num_samples),
                    form=self._form,
                    clock=time.perf_counter,
                )
                failpoint("part_spool:after")
            told_seconds = meta.stats.seconds.write
            return self._commit(spool, shard, meta)
        finally:
            spool.unlink(missing_ok=True)
            elapsed = time.perf_counter() - started
            self.seconds += elapsed
            self._untold_seconds += elapsed - told_seconds

    def _meta(self, finished: FinishedShard) -> PartMeta:
        shard = finished.assignment.lease.shard
        seconds = finished.seconds + PhaseSeconds(write=self._untold_seconds)
        return PartMeta(
            format=PART_FORMAT,
            plan=self._plan,
            shard=shard.index,
            row_start=shard.row_start,
            row_stop=shard.row_stop,
            token=secrets.token_hex(16),
            stats=part_stats(finished.results, seconds),
            prefix=self._form.prefix,
        )

    def _commit(self, spool: Path, shard: Shard, meta: PartMeta) -> PartReceipt:
        key = part_name(shard.index, self._plan)
        sha256, num_bytes = sha256_file(spool), spool.stat().st_size
        failpoint("part_create:before")
        created = self._store.create(key, spool)
        failpoint("part_create:after")
        if not created:
            return existing_receipt(self._store, self._plan, shard, meta.stats.num_results)
        return _receipt(key, meta, num_bytes, sha256, created=True)


def warm_up() -> None:
    """Pay for Arrow's first list conversion now: it imports pandas where that is installed, up to a second."""
    pa.array([0])


def existing_receipt(store: Store, plan: str, shard: Shard, num_results: int) -> PartReceipt:
    """The receipt of a part that was there already.

    Args:
        num_results: planned for the shard.

    Raises:
        SpecbatchError: ``JOB_INTEGRITY`` when the file is no sound part of this plan and shard.
    """
    key = part_name(shard.index, plan)
    try:
        opened = store.open(key)
    except NotFound:
        raise SpecbatchError(
            ErrorCode.JOB_INTEGRITY, f"{store.uri}/{key} was there and is gone: something removes parts of this job"
        ) from None
    with opened as file:
        try:
            meta = read_part_meta(file)
        except SpecbatchError as error:
            if error.code is not ErrorCode.JOB_INTEGRITY:
                raise
            raise _foreign(store, key, error.message) from error
        if (meta.plan, meta.shard, meta.row_start, meta.row_stop) != (
            plan,
            shard.index,
            shard.row_start,
            shard.row_stop,
        ):
            raise _foreign(store, key, f"it says that it is shard {meta.shard} of plan {meta.plan}")
        if (meta.stats.num_rows, meta.stats.num_results) != (shard.num_rows, num_results):
            raise _foreign(store, key, f"it holds {meta.stats.num_results} results of {meta.stats.num_rows} rows")
        digest = hashlib.sha256()
        file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return _receipt(key, meta, store.size(key), digest.hexdigest(), created=False)


def _receipt(key: str, meta: PartMeta, num_bytes: int, sha256: str, *, created: bool) -> PartReceipt:
    return PartReceipt(
        shard=meta.shard,
        path=key,
        num_rows=meta.stats.num_rows,
        num_bytes=num_bytes,
        sha256=sha256,
        token=meta.token,
        created=created,
        stats=meta.stats,
    )


def _foreign(store: Store, key: str, reason: str) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_INTEGRITY,
        f"{store.uri}/{key} is in the way: {reason}; move it away and run the same command again",
    )
