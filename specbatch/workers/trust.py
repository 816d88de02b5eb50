"""The device is asked before parts are committed whether it still computes what it computed at start.

Weights that were damaged, or a device that has begun to lie, need not give numbers that are not finite; fluent garbage
would be committed for ever. The question costs a short forward, so it is put as often as a fixed share of the time
allows: with parts of a minute that is before every one of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from specbatch.workers.decoding import DecodingEngine

_MOST_SHARE = 0.01
"""Share of the time that asking may take."""


class DeviceTrust:
    """Owned by the decode thread.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked_at = -math.inf
        self._cost_seconds = 0.0

    def check(self, engine: DecodingEngine) -> None:
        """Ask, unless the last answer is fresh.

        Raises:
            SpecbatchError: JOB_DEVICE; nothing that this process still holds may be committed.
        """
        now = self._clock()
        if now - self._asked_at < self._cost_seconds / _MOST_SHARE:
            return
        engine.check_device()
        self._asked_at = self._clock()
        self._cost_seconds = self._asked_at - now
