"""A shard on its way through a worker: handed out row by row, collected, finished."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from specbatch.schemas.messages import Lease
from specbatch.schemas.plan import Shard
from specbatch.schemas.rows import RowResult
from specbatch.schemas.stats import PhaseSeconds
from specbatch.specdec.output import SequenceOutput
from specbatch.workers.prompts import PreparedRow, error_row

Key = tuple[int, int]
"""Under which a sample goes through the engine: number of the assignment, position among its samples."""


@dataclass(slots=True)
class Assignment:
    """A lease that this worker took. The number tells apart two leases of one shard, the first of which was dropped.

    Attributes:
        is_dropped: nobody wants it any more: nothing may be written or told of it.
        num_rows_done, errors_by_code: what the worker's totals count of it.
    """

    number: int
    lease: Lease
    is_dropped: bool = False
    num_rows_done: int = 0
    errors_by_code: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class LoadedShard:
    """A shard in memory: its input rows and what becomes of each.

    Attributes:
        rows: one entry for each planned sample, ascending by row and sample.
        load_seconds: of reading and tokenizing.
    """

    table: pa.Table
    rows: Sequence[PreparedRow | RowResult]
    load_seconds: float


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """All results of a shard. ``seconds`` is the share of the worker's time that its part accounts for."""

    assignment: Assignment
    table: pa.Table
    results: tuple[RowResult, ...]
    seconds: PhaseSeconds


class ShardInFlight:
    """The collector of one shard: gives its samples out in order and takes their results in any order.

    The samples of a row stand side by side: they are given out one after another and share the prefill of their prompt.

    Owned by the decode thread; ``num_waiting`` may be read under the worker's lock.

    Attributes:
        number: of its assignment.
        is_counted: whether its rows are results of the job; those of a probe are decoded again.
    """

    def __init__(self, assignment: Assignment, loaded: LoadedShard) -> None:
        self.assignment = assignment
        self.number = assignment.number
        self.is_counted = assignment.lease.probe is None
        self.loaded = loaded
        self._results: list[RowResult | None] = [None] * len(loaded.rows)
        self._num_given = 0
        self._num_missing = len(loaded.rows)
        self._num_missing_of_row = Counter(row.row_id for row in loaded.rows)

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

    def next_rows(self, most: int) -> list[tuple[int, PreparedRow | RowResult]]:
        """The next samples, each with its position in the shard."""
        first = self._num_given
        rows = self.loaded.rows[first : first + most]
        self._num_given += len(rows)
        return list(enumerate(rows, first))

    def put(self, position: int, result: RowResult) -> bool:
        """Take the result of one sample; a second one for the same sample is a fault of ours.

        Returns:
            whether its row has all its samples now.
        """
        assert self._results[position] is None, f"row {result.row_id} sample {result.sample_index} finished twice"
        self._results[position] = result
        self._num_missing -= 1
        self._num_missing_of_row[result.row_id] -= 1
        return self._num_missing_of_row[result.row_id] == 0

    def keys_in_flight(self) -> list[Key]:
        """Keys of the samples that were given out and have no result yet."""
        return [(self.number, position) for position in range(self._num_given) if self._results[position] is None]

    def finish(self, seconds: PhaseSeconds) -> FinishedShard:
        """The shard with all its results.

        Args:
            seconds: the engine's time since the part before this one was complete.
        """
        assert self.is_complete, f"shard {self.assignment.lease.shard.index} lacks {self._num_missing} results"
        results = tuple(result for result in self._results if result is not None)
        load = PhaseSeconds(load=self.loaded.load_seconds)
        return FinishedShard(self.assignment, self.loaded.table, results, seconds + load)


def planned_samples(shard: Shard, num_samples: int) -> list[tuple[int, int]]:
    """(row id, sample index) of every result that the part of a shard holds, in its order.

    Args:
        num_samples: of a row whose segment names none.
    """
    return [
        (row_id, sample)
        for segment in shard.segments
        for row_id in range(segment.first_row_id, segment.first_row_id + segment.num_rows)
        for sample in (range(num_samples) if segment.samples is None else segment.samples)
    ]


def row_result(row: PreparedRow, output: SequenceOutput) -> RowResult:
    """What the engine said about a sample, as its result."""
    if output.error_code is not None:
        message = output.error_message or "the engine gave no reason"
        return error_row(row.row_id, row.seed, output.error_code, message, sample_index=row.sample_index)
    return RowResult(  # by position: by keyword the call costs more than twice as much, for every row of a job
        row.row_id,
        row.sample_index,
        row.seed,
        output.finish_reason,
        output.num_prompt_tokens,
        output.text,
        output.token_ids,
        None,
        None,
        output.min_margin,
        output.logprobs,
        output.num_near_ties,
        output.stats,
    )
