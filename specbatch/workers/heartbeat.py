"""The heartbeat of the decode loop: a loop that hangs in native code still lets polls be answered, and shows here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

_NUM_STEPS = 64


class Heartbeat:
    """Written by the decode thread, read by any: every value is replaced whole, so that no lock is needed.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat_at: float | None = None
        self._steps: list[float] = []
        self._num_steps = 0

    def beat(self) -> None:
        """The loop has come round."""
        now, before = self._clock(), self._beat_at
        if before is not None:
            if len(self._steps) < _NUM_STEPS:
                self._steps.append(now - before)
            else:
                self._steps[self._num_steps % _NUM_STEPS] = now - before
            self._num_steps += 1
        self._beat_at = now

    def rest(self) -> None:
        """The loop waits for something that is not its own work: that is neither a step nor a sign of trouble."""
        self._beat_at = None

    @property
    def age_seconds(self) -> float:
        """Since the loop last came round; 0 while it rests."""
        beat_at = self._beat_at
        return 0.0 if beat_at is None else max(self._clock() - beat_at, 0.0)

    @property
    def median_step_seconds(self) -> float:
        """Of the last few times round; 0 before there are any."""
        steps = self._steps.copy()
        return statistics.median(steps) if steps else 0.0
