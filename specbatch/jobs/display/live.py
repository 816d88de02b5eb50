"""The live view on a terminal: the thin shell around ``live_layout``, which decides what is shown.

A thread of its own draws it, at most four times a second and only where something has changed, so that time goes on
while the run waits for its store. Lines that are said meanwhile through standard error scroll above it.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import IO, Any

from specbatch.jobs.display.live_layout import LIVE_STATES, Snapshot, layout
from specbatch.jobs.display.live_screen import Drawn, update

REFRESH_SECONDS = 0.25
_NUM_HISTORY = 100


def can_be_live(stream: IO[str]) -> bool:
    """Whether a stream is a terminal on which lines can change in place, and show what they are made of."""
    is_utf8 = (getattr(stream, "encoding", None) or "").lower().replace("-", "") == "utf8"
    has_colour = not os.environ.get("NO_COLOR")
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb") and is_utf8 and has_colour


class LiveView:
    """Draws snapshots at the end of a terminal, from the first ``show`` to ``close``.

    Args:
        stream: the terminal.
        size: columns and rows, asked before each drawing.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        stream: IO[str],
        *,
        size: Callable[[], tuple[int, int]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._size = size or (lambda: _terminal_size(stream))
        self._clock = clock
        self._has_colour = not os.environ.get("NO_COLOR")
        self._lock = threading.RLock()
        self._ends = threading.Event()
        self._has_begun = self._is_closed = False
        self._thread = threading.Thread(target=self._redraw, name="specbatch-view", daemon=True)
        self._snapshot: Snapshot | None = None
        self._shown_at = 0.0
        self._drawn: Drawn | None = None
        self._said: list[str] = []
        self._history: deque[str] = deque(maxlen=_NUM_HISTORY)
        self._above: _Above | None = None

    def show(self, snapshot: Snapshot) -> None:
        """Show this from the next drawing on; the first one is drawn at once."""
        with self._lock:
            self._snapshot, self._shown_at = snapshot, self._clock()
            if not self._has_begun and not self._ends.is_set():
                self._has_begun = True
                self._start()

    def say(self, line: str) -> None:
        """Put a line above the view."""
        with self._lock:
            self._said.append(line)

    def close(self) -> None:
        """Draw the last state once more and leave it there; nothing is drawn afterwards."""
        self._ends.set()
        if not self._has_begun or self._is_closed:
            return
        self._is_closed = True
        if self._thread.is_alive():  # Ctrl-C may have come before it was started
            self._thread.join(5 * REFRESH_SECONDS)
        atexit.unregister(self.close)
        with self._lock:
            if self._above is not None:
                self._above.finish()
                if sys.stderr is self._above:
                    sys.stderr = self._stream
            self._draw()

    def draw(self) -> None:
        """Bring the terminal up to date."""
        with self._lock:
            self._draw()

    def _start(self) -> None:
        atexit.register(self.close)
        if self._stream is sys.stderr:
            self._above = _Above(self._stream, self.say)
            sys.stderr = self._above
        self._draw()
        self._thread.start()

    def _redraw(self) -> None:
        while not self._ends.wait(REFRESH_SECONDS):
            self.draw()

    def _draw(self) -> None:
        snapshot = self._snapshot
        if snapshot is None:
            return
        if snapshot.elapsed_seconds is not None and snapshot.state in LIVE_STATES:
            since_seconds = self._clock() - self._shown_at
            snapshot = replace(snapshot, elapsed_seconds=snapshot.elapsed_seconds + since_seconds)
        size = self._size()
        columns, rows = size
        # The last column stays free, where terminals differ about the next character; the cursor waits in the last row.
        lines = tuple(layout(snapshot, columns - 1, rows - 1))
        said, self._said = self._said, []
        text = update(self._drawn, lines, size, said, history=tuple(self._history), has_colour=self._has_colour)
        self._history.extend(said)
        self._drawn = Drawn(lines, size)
        if text:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):  # the terminal is gone; the job goes on
                self._ends.set()


class _Above:
    """Takes the place of standard error while a view is live: whole lines go above the view."""

    def __init__(self, stream: IO[str], say: Callable[[str], None]) -> None:
        self._stream = stream
        self._say = say
        self._begun = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """Take text; what has no line break yet waits for it."""
        with self._lock:
            *lines, self._begun = (self._begun + text).replace("\r\n", "\n").split("\n")
            for line in lines:
                self._say(line.replace("\r", "").replace("\t", "    "))
        return len(text)

    def flush(self) -> None:
        """Lines are drawn within a moment."""

    def finish(self) -> None:
        """Say what has no line break either."""
        if self._begun:
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _terminal_size(stream: IO[str]) -> tuple[int, int]:
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return 80, 24
    return (size.columns or 80, size.lines or 24)
