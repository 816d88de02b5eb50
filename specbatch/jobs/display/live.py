"""The live view on a terminal: the thin shell around ``live_layout``, which decides what is shown.

A thread of its own draws it, at most four times a second and only where something has changed, so that time goes on
while the run waits for its store. Lines that are said meanwhile through standard error scroll above it.

A terminal may take no character for hours (Ctrl-S). So nothing is written under the lock that ``show`` and ``say``
take, and nobody who holds that lock waits for another one.
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
CLOSE_SECONDS = 5.0
"""So long the end of a run waits for its terminal: it has a lease to renew, and a manifest to write."""

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
        self._lock = threading.RLock()  # guards what there is to draw; held for moments
        self._drawing = threading.RLock()  # held by whoever draws, also while the terminal takes nothing
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
            is_first = not self._has_begun and not self._ends.is_set()
            self._has_begun = self._has_begun or is_first
        if is_first:
            self._start()

    def say(self, line: str) -> None:
        """Put a line above the view."""
        with self._lock:
            self._said.append(line)

    def close(self) -> None:
        """Draw the last state once more and leave it there; nothing is drawn afterwards.

        A terminal that takes nothing for ``CLOSE_SECONDS`` is left to itself.
        """
        if not self._has_begun or self._is_closed:
            self._ends.set()
            return
        self._is_closed = True
        atexit.unregister(self.close)
        if self._above is not None:
            self._above.finish()
        self._ends.set()
        has_drawn = self._thread.is_alive()  # Ctrl-C may have come before it was started
        if has_drawn:
            self._thread.join(CLOSE_SECONDS)
        is_stuck = self._thread.is_alive()
        if self._above is not None and sys.stderr is self._above:
            sys.stderr = self._stream
            self._above.finish()
        if not is_stuck and (self._said or not has_drawn):
            self.draw()

    def draw(self) -> None:
        """Bring the terminal up to date."""
        with self._drawing:
            with self._lock:
                snapshot, shown_at = self._snapshot, self._shown_at
                if snapshot is None:
                    return
                said, self._said = self._said, []
            self._draw(snapshot, shown_at, said)

    def _start(self) -> None:
        atexit.register(self.close)
        if self._stream is sys.stderr:
            self._above = _Above(self._stream, self.say)
            sys.stderr = self._above
        self.draw()
        self._thread.start()

    def _redraw(self) -> None:
        while not self._ends.wait(REFRESH_SECONDS):
            self.draw()
        self.draw()

    def _draw(self, snapshot: Snapshot, shown_at: float, said: list[str]) -> None:
        if snapshot.elapsed_seconds is not None and snapshot.state in LIVE_STATES:
            since_seconds = self._clock() - shown_at
            snapshot = replace(snapshot, elapsed_seconds=snapshot.elapsed_seconds + since_seconds)
        size = self._size()
        columns, rows = size
        # The last column stays free, where terminals differ about the next character; the cursor waits in the last row.
        lines = tuple(layout(snapshot, columns - 1, rows - 1))
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
