"""From a lease to its rows in memory: read, rendered, tokenized, and those left out that must not be decoded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.failpoints import failpoint
from specbatch.schemas.messages import Lease, WorkerConfig
from specbatch.schemas.plan import Segment
from specbatch.schemas.rows import RowResult, duplicate_column
from specbatch.storage.duplicates import read_duplicates
from specbatch.storage.inputs import read_segment
from specbatch.workers.prompts import PreparedRow, error_row, prepare_rows, row_sampling
from specbatch.workers.rendering import Renderer, make_renderer
from specbatch.workers.shards import LoadedShard

_MOST_COVERED_ROWS = 8192
"""Rows that are read at one go for the sake of those among them that are planned."""
_POISON_MESSAGE = (
    "every worker process that decoded this row died of it, and it alone; it was left out so that the others finish"
)


class ShardReader:
    """Reads the shards of one worker, in one thread.

    Args:
        encode: text to token ids.
        context_length: most tokens of prompt and completion together.
    """

    def __init__(self, config: WorkerConfig, encode: Callable[[str], list[int]], context_length: int) -> None:
        self._config = config
        self._encode = encode
        self._context_length = context_length
        self._renderer: Renderer | None = None

    def load(self, lease: Lease) -> LoadedShard:
        """Read and tokenize a shard's rows, or those of its probe. Poison rows are not even rendered.

        Raises:
            SpecbatchError: the input cannot be read or is not the one that was planned.
            MemoryError: there is no room for the rows.
        """
        started = time.perf_counter()
        failpoint("shard_read:before")
        segments = lease.shard.segments if lease.probe is None else _probed(lease.shard.segments, *lease.probe)
        tables = [table for run in _runs(segments) for table in _read_run(run)]
        if self._renderer is None:
            self._renderer = make_renderer(self._config.prompt, Path(self._config.target_path), tables[0].schema.names)
        rows = [
            row
            for segment, table in zip(segments, tables, strict=True)
            for row in self._segment_rows(self._renderer, segment, table, lease.poison)
        ]
        passed = self._passed(tables)
        if self._config.duplicates is not None:
            rows_of = [(segment.first_row_id, segment.first_row_id + segment.num_rows) for segment in segments]
            marks = read_duplicates(self._config.duplicates, rows_of)
            passed = passed.append_column(duplicate_column(self._config.form.prefix), marks)
        failpoint("shard_read:after")
        return LoadedShard(passed, rows, time.perf_counter() - started)

    def _passed(self, tables: Sequence[pa.Table]) -> pa.Table:
        """The columns that pass through, under their new names."""
        columns = self._config.pass_through
        if columns is not None:
            tables = [table.select(list(columns.old)).rename_columns(list(columns.new)) for table in tables]
        # Files of one dataset may differ in column order and metadata: the first one's schema is the shard's.
        schema = tables[0].schema
        return pa.concat_tables([table.select(schema.names).cast(schema) for table in tables])

    def _segment_rows(
        self, renderer: Renderer, segment: Segment, table: pa.Table, poison: Sequence[int]
    ) -> list[PreparedRow | RowResult]:
        """The planned samples of a segment's rows, around the poisonous ones."""
        prompt, generation = self._config.prompt, self._config.generation
        samples = range(generation.num_samples) if segment.samples is None else segment.samples
        first, stop = segment.first_row_id, segment.first_row_id + segment.num_rows
        rows: list[PreparedRow | RowResult] = []
        at = first
        for bound in [*sorted({row_id for row_id in poison if first <= row_id < stop}), stop]:
            rows += prepare_rows(
                table.slice(at - first, bound - at),
                at,
                prompt=prompt,
                generation=generation,
                renderer=renderer,
                encode=self._encode,
                context_length=self._context_length,
                num_samples=max(samples, default=0) + 1,
            )
            if bound < stop:
                (sampling,) = row_sampling(table.slice(bound - first, 1), bound, prompt, generation)
                rows += [
                    error_row(bound, sampling.seed(s), ErrorCode.ROW_POISON, _POISON_MESSAGE, sample_index=s)
                    for s in samples
                ]
            at = bound + 1
        return rows if segment.samples is None else [row for row in rows if row.sample_index in segment.samples]


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
