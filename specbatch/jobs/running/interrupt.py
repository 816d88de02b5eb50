"""Signals of a run: the first asks it to drain, the second stops it now."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any


class StopNow(BaseException):
    """The run shall stop at once; not an ``Exception``, so that nothing on the way holds it up."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """Takes SIGINT and SIGTERM while it is entered, in the main thread; elsewhere it changes nothing.

    A signal only sets ``received``; the run looks at it, and calls ``check``, wherever it can stop. ``arm`` is
    called again after a library (Ray) may have put handlers of its own in place.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._must_stop = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            self.arm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def arm(self) -> None:
        """Put our handlers in place."""
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Only flags: an exception out of a handler would burst in the middle of Ray's native calls.
        self._must_stop = self.received is not None
        self.received = self.received or signal.Signals(number)

    def check(self) -> None:
        """Raises ``StopNow`` where a second signal has come."""
        if self._must_stop and self.received is not None:
            raise StopNow(self.received)

    def sleep(self, seconds: float) -> None:
        """Sleep while there is nothing to drain: the first signal stops at once.

        Raises:
            StopNow: a signal has come.
        """
        time.sleep(seconds)
        if self.received is not None:
            raise StopNow(self.received)
