"""Running sums over the rows that a worker has finished: what its progress says."""

from __future__ import annotations

from collections import Counter

from specbatch.schemas.messages import Progress
from specbatch.schemas.rows import RowResult
from specbatch.schemas.stats import PhaseSeconds, SpecCounters


class RunningTotals:
    """Owned by the decode thread; ``progress`` gives a frozen value to the others."""

    def __init__(self) -> None:
        self._num_rows = 0
        self._num_tokens = 0
        self._errors: Counter[str] = Counter()
        self._counters = SpecCounters()
        self._uncounted: list[RowResult] = []

    def add(self, result: RowResult, *, ends_row: bool) -> None:
        """Count one result, and its row if this was the last of the row's samples."""
        self._num_rows += ends_row
        self._uncounted.append(result)  # summed once for each time that somebody looks

    def progress(self, num_rows_active: int, seconds: PhaseSeconds, idle_seconds: float) -> Progress:
        """The sums so far.

        Args:
            num_rows_active: sequences in flight now.
            seconds: the worker's time by phase.
        """
        if self._uncounted:
            self._num_tokens += sum([result.num_completion_tokens for result in self._uncounted])
            self._errors.update([result.error_code for result in self._uncounted if result.error_code is not None])
            self._counters = SpecCounters.total([self._counters, *(result.counters for result in self._uncounted)])
            self._uncounted.clear()
        return Progress(
            num_rows_done=self._num_rows,
            num_completion_tokens=self._num_tokens,
            num_rows_active=num_rows_active,
            counters=self._counters,
            seconds=seconds,
            idle_seconds=idle_seconds,
            num_errors=self._errors.total(),
            errors_by_code=tuple(sorted(self._errors.items())),
        )
