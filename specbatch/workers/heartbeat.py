"""Signs of life: a decode loop that hangs in native code still lets polls be answered, and shows here.

So does a writer that never comes back from its store.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from specbatch.storage.store import is_s3

WRITE_LIMIT_SECONDS = 600.0
"""A part that is under way for so long, beyond the patience with its store, is never going to be written."""
WRITER_SILENCE_SECONDS = 120.0
"""Before that limit the worker falls silent: who watches it waits for about so long before it acts."""

_NUM_STEPS = 64
_LOCAL_PATIENCE_SECONDS = 120.0


class Heartbeat:
    """Written by the decode thread, read by any, without a lock.

    A number is replaced whole. The last steps are changed in place, one at a time, and readers take a copy: whichever
    of them it holds, it holds steps.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat_at: float | None = None
        self._steps: list[float] = []
        self._num_steps = 0
        self._is_over = False

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

    def end(self) -> None:
        """The worker has died of something known, which it tells once its writer has ended: it does not hang."""
        self._is_over = True

    @property
    def age_seconds(self) -> float:
        """Since the loop last came round; 0 while it rests, and once it is over."""
        beat_at = self._beat_at
        return 0.0 if beat_at is None or self._is_over else max(self._clock() - beat_at, 0.0)

    @property
    def median_step_seconds(self) -> float:
        """Of the last few times round; 0 before there are any."""
        steps = self._steps.copy()
        return statistics.median(steps) if steps else 0.0


class Writing:
    """Which part the writer has in hand, and since when. Written by the writer thread, read by any.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: tuple[int, float] | None = None

    def begin(self, shard: int) -> None:
        """The writer has taken up a shard."""
        self._begun = shard, self._clock()

    def end(self) -> None:
        """Its part is written, or given up."""
        self._begun = None

    def now(self) -> tuple[int | None, float]:
        """The shard that is being written and for how many seconds so far; None and 0 where none is."""
        begun = self._begun
        return (None, 0.0) if begun is None else (begun[0], max(self._clock() - begun[1], 0.0))


def writer_silence_seconds(writing_seconds: float, limit_seconds: float) -> float:
    """How long a writer that has had one part in hand for so long has given no sign of life; 0 while that is usual.

    It grows from 0, as the age of a decode loop does: the watcher believes no silence longer than what it has seen.
    """
    return max(writing_seconds - (limit_seconds - WRITER_SILENCE_SECONDS), 0.0)


def write_limit_seconds(output: str) -> float:
    """How long a part may be under way before its writer counts as hung: the store's patience and ten minutes."""
    if not is_s3(output):
        return _LOCAL_PATIENCE_SECONDS + WRITE_LIMIT_SECONDS
    from specbatch.storage.s3_session import patience_seconds

    return patience_seconds() + WRITE_LIMIT_SECONDS
