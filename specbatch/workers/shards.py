"""A shard on its way through a worker: read, handed out row by row, collected."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from specbatch.schemas.messages import Lease, WorkerConfig
from specbatch.schemas.rows import RowResult
from specbatch.schemas.stats import PhaseSeconds
from specbatch.specdec.output import SequenceOutput
from specbatch.storage.inputs import read_segment
from specbatch.workers.prompts import PreparedRow, error_row, prepare_rows


@dataclass(frozen=True, slots=True)
class LoadedShard:
    """A shard in memory: its input rows and what becomes of each.

    Attributes:
        rows: ``num_samples`` entries for each input row, in order.
        load_seconds: of reading and tokenizing.
    """

    lease: Lease
    table: pa.Table
    rows: Sequence[PreparedRow | RowResult]
    load_seconds: float
    num_samples: int = 1


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """All results of a shard. ``seconds`` is the share of the worker's time that its part accounts for."""

    lease: Lease
    table: pa.Table
    results: tuple[RowResult, ...]
    seconds: PhaseSeconds


def load_shard(
    lease: Lease, config: WorkerConfig, encode: Callable[[str], list[int]], context_length: int
) -> LoadedShard:
    """Read and tokenize a shard's rows.

    Raises:
        SpecbatchError: the input cannot be read or is not the one that was planned.
    """
    started = time.perf_counter()
    tables = [read_segment(segment) for segment in lease.shard.segments]
    if config.columns:
        tables = [table.select(list(config.columns)) for table in tables]
    # Files of one dataset may differ in column order and metadata: the first one's schema is the shard's.
    schema = tables[0].schema
    table = pa.concat_tables([part.select(schema.names).cast(schema) for part in tables])
    rows = prepare_rows(
        table,
        lease.shard.row_start,
        prompt_column=config.prompt_column,
        job_seed=config.generation.seed,
        encode=encode,
        context_length=context_length,
        num_samples=config.generation.num_samples,
    )
    return LoadedShard(lease, table, rows, time.perf_counter() - started, config.generation.num_samples)


class ShardInFlight:
    """The collector of one shard: gives its samples out in order and takes their results in any order.

    Positions count samples: sample s of the i-th row is at ``i * num_samples + s``, so that the samples of a row are
    given out one after another and share the prefill of their prompt.

    Owned by the decode thread; ``num_waiting`` may be read under the worker's lock.
    """

    def __init__(self, loaded: LoadedShard) -> None:
        self.loaded = loaded
        self._results: list[RowResult | None] = [None] * len(loaded.rows)
        self._num_given = 0
        self._num_missing = len(loaded.rows)
        self._num_missing_of_row = [loaded.num_samples] * (len(loaded.rows) // loaded.num_samples)

    @property
    def index(self) -> int:
        """The shard's number in the plan."""
        return self.loaded.lease.shard.index

    @property
    def has_begun(self) -> bool:
        """Whether a sample was given out."""
        return self._num_given > 0

    @property
    def num_waiting(self) -> int:
        """Samples not yet given out."""
        return len(self.loaded.rows) - self._num_given

    @property
    def is_complete(self) -> bool:
        """Whether every sample has its result."""
        return self._num_missing == 0

    def next_row(self) -> tuple[int, PreparedRow | RowResult]:
        """The next sample and its position in the shard."""
        position = self._num_given
        self._num_given += 1
        return position, self.loaded.rows[position]

    def put(self, position: int, result: RowResult) -> bool:
        """Take the result of one sample; a second one for the same sample is a fault of ours.

        Returns:
            whether its row has all its samples now.
        """
        assert self._results[position] is None, f"row {result.row_id} sample {result.sample_index} finished twice"
        self._results[position] = result
        self._num_missing -= 1
        row = position // self.loaded.num_samples
        self._num_missing_of_row[row] -= 1
        return self._num_missing_of_row[row] == 0

    def finish(self, seconds: PhaseSeconds) -> FinishedShard:
        """The shard with all its results.

        Args:
            seconds: the engine's time since the part before this one was complete.
        """
        assert self.is_complete, f"shard {self.index} lacks {self._num_missing} results"
        results = tuple(result for result in self._results if result is not None)
        load = PhaseSeconds(load=self.loaded.load_seconds)
        return FinishedShard(self.loaded.lease, self.loaded.table, results, seconds + load)


def row_result(row: PreparedRow, output: SequenceOutput) -> RowResult:
    """What the engine said about a sample, as its result."""
    if output.error_code is not None:
        message = output.error_message or "the engine gave no reason"
        return error_row(row.row_id, row.seed, output.error_code, message, sample_index=row.sample_index)
    return RowResult(
        row_id=row.row_id,
        sample_index=row.sample_index,
        row_seed=row.seed,
        finish_reason=output.finish_reason,
        num_prompt_tokens=output.num_prompt_tokens,
        completion=output.text,
        completion_token_ids=output.token_ids,
        min_margin=output.min_margin,
        logprobs=output.logprobs,
        num_near_ties=output.num_near_ties,
        counters=output.stats,
    )
