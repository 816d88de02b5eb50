"""``--dedupe mark``: which rows have the prompt and the parameters of an earlier one. Nothing is skipped for it.

Rows are compared by digests of 128 bits, which lie in a temporary file. They are sorted a range of digests at a time:
what is in memory for every row is its mark, 8 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from specbatch.jobs.output.ledger import Ledger, StoredJob
from specbatch.jobs.planning.normalise import duplicates_key, home_of
from specbatch.jobs.planning.prepare import PreparedJob, follow_inputs
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import Segment
from specbatch.schemas.prompt import PromptSpec
from specbatch.storage.store import NotFound, Store, open_store

_CHUNK_ROWS = 4096
_SORTED_ROWS = 1 << 21
"""About so many rows are sorted at once."""

_NONE = bytes(16)
"""Digest of a row that has no prompt: it is no duplicate of any."""


def ensure_duplicates(prepared: PreparedJob, stored: StoredJob) -> str:
    """The path or URI of the file that marks the duplicates of a job; it is made where it is not there yet.

    Raises:
        SpecbatchError: what reading the dataset or writing to the output raises.
    """
    home = home_of(prepared.output)
    store = open_store(home, single_writer=prepared.spec.execution.single_writer)
    if home != prepared.output.rstrip("/"):  # the plan of an amendment has some of the rows only
        parent = Ledger(store).find_job()
        assert parent is not None, "an amendment lies in the output that it amends"
        stored = parent
    shards = follow_inputs(stored.shards, prepared.inputs)
    key = duplicates_key(stored.plan)
    if not _exists(store, key):
        from specbatch.storage.duplicates import write_duplicates

        spool, marks = store.spool_path(), store.spool_path()
        try:
            digests = row_digests(prepared, [segment for shard in shards for segment in shard.segments])
            num_rows = sum(shard.num_rows for shard in shards)
            write_duplicates(find_first_rows(digests, num_rows, spool), marks)
            store.create(key, marks)
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise SpecbatchError(
                ErrorCode.SHARD_DISK_FULL,
                f"no room to look for duplicates in {spool.parent}: {reason}; free some space",
            ) from error
        finally:
            spool.unlink(missing_ok=True)
            marks.unlink(missing_ok=True)
    return f"{store.uri.rstrip('/')}/{key}"


def row_digests(prepared: PreparedJob, segments: Sequence[Segment]) -> Iterator[bytes]:
    """16 bytes for every row of the segments: equal where the rendered prompts and the parameters are.

    Raises:
        SpecbatchError: the dataset cannot be read, or its prompts cannot be made.
    """
    from specbatch.storage.inputs import read_segment
    from specbatch.workers.prompts import prompt_values, row_sampling
    from specbatch.workers.rendering import RowError, make_renderer

    prompt, generation = PromptSpec.of(prepared.spec), prepared.spec.generation
    # Seeds that are made from ids tell rows apart that are to be told equal.
    prompt = replace(prompt, seed_by="row")
    renderer = None
    for segment in segments:
        for start in range(segment.row_start, segment.row_stop, _CHUNK_ROWS):
            table = read_segment(replace(segment, row_start=start, row_stop=min(start + _CHUNK_ROWS, segment.row_stop)))
            if renderer is None:
                renderer = make_renderer(prompt, prepared.target.path, table.schema.names)
            samplings = row_sampling(table, 0, prompt, generation)
            for values, sampling in zip(prompt_values(table, renderer), samplings, strict=True):
                try:
                    if sampling.error is not None:
                        raise sampling.error
                    text = renderer.render(values)
                except RowError:
                    yield _NONE
                    continue
                digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16)
                apart = (getattr(text, "literals", ()), sampling.params.overrides, sampling.params.seed)
                digest.update(b"\0" + repr(apart).encode())
                yield digest.digest()


def find_first_rows(digests: Iterator[bytes], num_rows: int, spool: Path) -> npt.NDArray[np.int64]:
    """For each row the first one with its digest, -1 where it is the first itself or has no prompt.

    Args:
        digests: of rows 0, 1, ...; as many as ``num_rows``.
        spool: a file for the digests, which the caller removes.

    Raises:
        OSError: there is no room.
    """
    with spool.open("wb") as file:
        block = bytearray()
        for digest in digests:
            block += digest
            if len(block) >= 1 << 20:
                file.write(block)
                block.clear()
        file.write(block)
    marks = np.full(num_rows, -1, dtype=np.int64)
    if not num_rows:
        return marks
    stored = np.memmap(spool, dtype=">u8", mode="r", shape=(num_rows, 2))
    num_ranges = -(-num_rows // _SORTED_ROWS)
    bounds = [(index << 64) // num_ranges for index in range(num_ranges + 1)]
    for low, high in pairwise(bounds):
        rows, keys = _rows_between(stored, low, high)
        _mark(rows, keys, marks)
    return marks


def _rows_between(
    stored: npt.NDArray[np.uint64], low: int, high: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Rows, ascending, whose digests begin with a number in [low, high), and these digests; those of ``_NONE`` not."""
    rows, keys = [], []
    for start in range(0, len(stored), 1 << 20):
        block = np.asarray(stored[start : start + (1 << 20)], dtype=np.uint64)
        picked = (block[:, 0] >= np.uint64(low)) & block.any(axis=1)
        if high < 1 << 64:
            picked &= block[:, 0] < np.uint64(high)
        rows.append(np.flatnonzero(picked) + start)
        keys.append(block[picked])
    return np.concatenate(rows), np.concatenate(keys)


def _mark(rows: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64], marks: npt.NDArray[np.int64]) -> None:
    """Mark the duplicates among these rows."""
    if not len(rows):
        return
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: rows of one digest stay ascending
    ordered = keys[order]
    is_first = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    firsts = rows[order][is_first][np.cumsum(is_first) - 1]
    repeats = ~is_first
    marks[rows[order][repeats]] = firsts[repeats]


def _exists(store: Store, key: str) -> bool:
    try:
        store.size(key)
    except NotFound:
        return False
    return True
