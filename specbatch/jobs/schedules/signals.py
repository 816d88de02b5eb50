"""Signals and the clock of a daemon."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import FrameType, TracebackType
from typing import Any


class Signals:
    """Takes SIGINT and SIGTERM while it is entered, in the main thread, and only counts them."""

    def __init__(self) -> None:
        self._first: signal.Signals | None = None
        self._count = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def received(self) -> tuple[signal.Signals, int] | None:
        """The first signal that came, and how many; None before."""
        return None if self._first is None else (self._first, self._count)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._first = self._first or signal.Signals(number)
        self._count += 1


def simulated_now(start: datetime | None) -> Callable[[], datetime]:
    """The clock of a daemon: the real one, or one that begins at a moment and goes on from there."""
    if start is None:
        return lambda: datetime.now(UTC)
    begun, began = start.astimezone(UTC), time.monotonic()
    return lambda: begun + timedelta(seconds=time.monotonic() - began)
