"""The coordinator's numbers and small judgements: budgets, patience with the silent, bad devices, usual durations."""

from __future__ import annotations

import math
import statistics
from collections import deque

from specbatch.jobs.coordinator.events import Command, FailJob
from specbatch.schemas.errors import ErrorCode

MAX_ATTEMPTS = 3
"""Failures, and deaths, that a shard may be charged with before it fails, or is searched for the row that kills."""
MAX_LOAD_FAILURES = 2
MIN_ROWS_TO_JUDGE = 1000
MAX_STRIKES = 3

SUSPECT_SECONDS = 30.0
SUSPECT_STEPS = 3.0
HUNG_SECONDS = 120.0
HUNG_STEPS = 10.0
START_TIMEOUT_SECONDS = 1800.0
CAPACITY_TIMEOUT_SECONDS = 600.0
PATIENCE_SECONDS = 30.0
"""Wait for a place in the cluster of which nothing is said yet."""
MAX_TICK_GAP_SECONDS = 5.0

TWIN_RATIO = 2.0
MIN_DURATIONS = 3
NUM_DURATIONS = 101

AHEAD_SECONDS = 0.5
MAX_DEPTH = 8

WORTH_RETRYING = frozenset(
    {
        ErrorCode.SHARD_FAILED,
        ErrorCode.SHARD_DISK_FULL,
        ErrorCode.SHARD_OOM,
        ErrorCode.JOB_STORE_LOST,  # a worker may be cut off from a store that others reach
        ErrorCode.JOB_DEVICE,
    }
)


def error_code(code: str) -> ErrorCode:
    """The code of a worker's failure; one that this version does not know is ``SHARD_FAILED``."""
    return ErrorCode(code) if code in ErrorCode.__members__ else ErrorCode.SHARD_FAILED


def suspect_after_seconds(median_step_seconds: float) -> float:
    """Silence after which a worker gets no new shard; one step of a slow engine may take longer than most."""
    return max(SUSPECT_SECONDS, SUSPECT_STEPS * median_step_seconds)


def hung_after_seconds(median_step_seconds: float) -> float:
    """Silence after which a worker is killed."""
    return max(HUNG_SECONDS, HUNG_STEPS * median_step_seconds)


class ErrorBudget:
    """Result rows and error rows so far, in parts of all runs, against the largest share that is allowed."""

    def __init__(self, max_error_rate: float, num_rows: int, num_errors: int) -> None:
        self._max_error_rate = max_error_rate
        self._num_rows = num_rows
        self._num_errors = num_errors

    def add(self, num_rows: int, num_errors: int) -> None:
        """Take in a part."""
        self._num_rows += num_rows
        self._num_errors += num_errors

    def judge(self) -> list[Command]:
        """End the job if there are too many, once there are enough rows to tell."""
        if self._num_rows < MIN_ROWS_TO_JUDGE or self._num_errors <= self._max_error_rate * self._num_rows:
            return []
        return [
            FailJob(
                ErrorCode.JOB_ERROR_RATE,
                f"{self._num_errors} of {self._num_rows} finished rows are errors, above --max-error-rate "
                f"{self._max_error_rate:g}; the parts are kept: run again with a larger budget, or read the error_code "
                "column in data/",
            )
        ]


class WakingClock:
    """Time by ticks. ``awake_seconds`` leaves out what the coordinator itself slept, when it could hear nobody."""

    def __init__(self) -> None:
        self.now_seconds = 0.0
        self.awake_seconds = 0.0

    def tick(self, now_seconds: float) -> None:
        """Take in the time; it never runs backwards."""
        gap = max(now_seconds - self.now_seconds, 0.0)
        self.now_seconds += gap
        self.awake_seconds += min(gap, MAX_TICK_GAP_SECONDS)


class Durations:
    """Seconds per row from lease to part, of the last shards. The wait behind an earlier shard is inside."""

    def __init__(self) -> None:
        self._seconds_per_row: deque[float] = deque(maxlen=NUM_DURATIONS)

    def add(self, seconds: float, num_rows: int) -> None:
        """Take in a finished shard."""
        self._seconds_per_row.append(seconds / max(num_rows, 1))

    def expect(self, num_rows: int) -> float | None:
        """Seconds that a shard usually takes; None while too few are known."""
        if len(self._seconds_per_row) < MIN_DURATIONS:
            return None
        return statistics.median(self._seconds_per_row) * max(num_rows, 1)


class LeaseDepth:
    """How many shards a worker holds at a time: enough that it never waits for the next while a receipt is on its way.

    Shards of minutes need no more than the least; of shards that take a moment, many.

    Args:
        least: leases that a worker needs to fill its batch and refill it.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._num_receipts = 0
        self._counted_from = 0.0

    def add(self) -> None:
        """A shard is finished."""
        self._num_receipts += 1

    def count(self, now_seconds: float, num_workers: int) -> int:
        """The depth from now on, by what each of the workers finished since it was asked for the last time."""
        seconds = now_seconds - self._counted_from
        ahead = AHEAD_SECONDS * self._num_receipts / max(num_workers, 1) / seconds if seconds > 0 else 0.0
        self._num_receipts, self._counted_from = 0, now_seconds
        return max(min(math.ceil(ahead), MAX_DEPTH), self._least)


class DeviceStrikes:
    """Deaths by device errors, by place. Three put a place into quarantine.

    A row can upset a sound device. So a shard that strikes a place alone again adds nothing, and a shard that turns out
    to hold such a row takes back every strike it had a part in.
    """

    def __init__(self) -> None:
        self._strikes: dict[str, list[frozenset[int]]] = {}
        self._quarantined: set[str] = set()

    @property
    def quarantined(self) -> tuple[str, ...]:
        """Places that get no work any more, sorted."""
        return tuple(sorted(self._quarantined))

    def is_quarantined(self, place: str) -> bool:
        """Whether a worker there gets no work."""
        return place in self._quarantined

    def strike(self, place: str, shards: frozenset[int]) -> bool:
        """A worker there died of its device while it held these shards; True if that puts the place into quarantine."""
        strikes = self._strikes.setdefault(place, [])
        if len(shards) == 1 and shards in strikes:
            return False
        strikes.append(shards)
        if len(strikes) < MAX_STRIKES or place in self._quarantined:
            return False
        self._quarantined.add(place)
        return True

    def absolve(self, shard: int) -> None:
        """A row of this shard was to blame."""
        for place, strikes in self._strikes.items():
            self._strikes[place] = [shards for shards in strikes if shard not in shards]
