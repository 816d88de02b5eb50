"""From a lease to its rows in memory: read, tokenized, and those left out that must not be decoded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pyarrow as pa

from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.failpoints import failpoint
from specbatch.schemas.messages import Lease, WorkerConfig
from specbatch.schemas.plan import Segment
from specbatch.schemas.rows import RowResult
from specbatch.schemas.seeds import row_seed
from specbatch.storage.inputs import read_segment
from specbatch.workers.prompts import PreparedRow, error_row, prepare_rows
from specbatch.workers.shards import LoadedShard

_MOST_COVERED_ROWS = 8192
"""Rows that are read at one go for the sake of those among them that are planned."""
_POISON_MESSAGE = (
    "every worker process that decoded this row died of it, and it alone; it was left out so that the others finish"
)


def load_shard(
    lease: Lease, config: WorkerConfig, encode: Callable[[str], list[int]], context_length: int
) -> LoadedShard:
    """Read and tokenize a shard's rows, or those of its probe. Poison rows are not even tokenized.

    Raises:
        SpecbatchError: the input cannot be read or is not the one that was planned.
        MemoryError: there is no room for the rows.
    """
    started = time.perf_counter()
    failpoint("shard_read:before")
    segments = lease.shard.segments if lease.probe is None else _probed(lease.shard.segments, *lease.probe)
    tables = [table for run in _runs(segments) for table in _read_run(run)]
    if config.columns:
        tables = [table.select(list(config.columns)) for table in tables]
    # Files of one dataset may differ in column order and metadata: the first one's schema is the shard's.
    schema = tables[0].schema
    tables = [table.select(schema.names).cast(schema) for table in tables]
    rows = [
        row
        for segment, table in zip(segments, tables, strict=True)
        for row in _segment_rows(segment, table, lease.poison, config, encode, context_length)
    ]
    failpoint("shard_read:after")
    return LoadedShard(pa.concat_tables(tables), rows, time.perf_counter() - started)


def _probed(segments: Sequence[Segment], start: int, stop: int) -> list[Segment]:
    """What the segments have of the rows [start, stop); an empty piece where they have none."""
    pieces = []
    for segment in segments:
        low = max(start - segment.first_row_id, 0)
        high = min(stop - segment.first_row_id, segment.num_rows)
        if low < high:
            pieces.append(
                replace(
                    segment,
                    row_start=segment.row_start + low,
                    row_stop=segment.row_start + high,
                    first_row_id=segment.first_row_id + low,
                )
            )
    return pieces or [replace(segments[0], row_stop=segments[0].row_start)]


def _runs(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Segments that are read at one go: of one file, and close together."""
    runs: list[list[Segment]] = []
    for segment in segments:
        first = runs[-1][0] if runs else None
        if (
            first is not None
            and (first.path, first.footer_sha256) == (segment.path, segment.footer_sha256)
            and first.row_start <= runs[-1][-1].row_stop <= segment.row_start
            and segment.row_stop - first.row_start <= _MOST_COVERED_ROWS
        ):
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return runs


def _read_run(run: Sequence[Segment]) -> list[pa.Table]:
    """The rows of each segment of a run."""
    start = run[0].row_start
    table = read_segment(replace(run[0], row_stop=run[-1].row_stop))
    return [table.slice(segment.row_start - start, segment.num_rows) for segment in run]


def _segment_rows(
    segment: Segment,
    table: pa.Table,
    poison: Sequence[int],
    config: WorkerConfig,
    encode: Callable[[str], list[int]],
    context_length: int,
) -> list[PreparedRow | RowResult]:
    """The planned samples of a segment's rows, around the poisonous ones."""
    seed = config.generation.seed
    samples = range(config.generation.num_samples) if segment.samples is None else segment.samples
    first, stop = segment.first_row_id, segment.first_row_id + segment.num_rows
    rows: list[PreparedRow | RowResult] = []
    at = first
    for bound in [*sorted({row_id for row_id in poison if first <= row_id < stop}), stop]:
        rows += prepare_rows(
            table.slice(at - first, bound - at),
            at,
            prompt_column=config.prompt_column,
            job_seed=seed,
            encode=encode,
            context_length=context_length,
            num_samples=max(samples, default=0) + 1,
        )
        if bound < stop:
            rows += [
                error_row(bound, row_seed(seed, bound, s), ErrorCode.ROW_POISON, _POISON_MESSAGE, sample_index=s)
                for s in samples
            ]
        at = bound + 1
    return rows if segment.samples is None else [row for row in rows if row.sample_index in segment.samples]
