"""What a user sees while a job runs: a live view on a terminal, timed plain lines without one, or nothing.

A view is driven by ``update``; it never reads the job itself. Texts from the job that reach the terminal are cleaned of
control characters.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import IO, Literal, Protocol

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.display.live import LiveView, can_be_live
from specbatch.jobs.display.live_layout import snapshot_of
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.run import ProgressDocument

ProgressMode = Literal["auto", "bar", "lines", "quiet"]

FIRST_LINE_SECONDS = 2.0
LINE_SECONDS = 30.0


class ProgressView(Protocol):
    """Where the coordinator sends its progress."""

    def update(self, doc: ProgressDocument) -> None:
        """Show this; may be called as often as one likes."""

    def close(self) -> None:
        """Show the last state and leave the terminal as it was found."""


def make_view(mode: ProgressMode = "auto", stream: IO[str] | None = None) -> ProgressView:
    """The view for a mode.

    Args:
        mode: ``bar`` (the live view), ``lines`` or ``quiet``; ``auto`` is the live view where the stream is a terminal
            that can show it, else lines: without a terminal, on a dumb one, under ``NO_COLOR``, and in a locale that is
            not UTF-8.
        stream: where to write; standard error if None.

    Raises:
        SpecbatchError: ``JOB_CONFIG``, no such mode.
    """
    target = sys.stderr if stream is None else stream
    if mode == "auto":
        mode = "bar" if can_be_live(target) else "lines"
    if mode == "quiet":
        return QuietView()
    if mode == "lines":
        return LinesView(target)
    if mode == "bar":
        return BarView(LiveView(target))
    raise SpecbatchError(ErrorCode.JOB_CONFIG, f"progress mode is {mode!r}; it must be auto, bar, lines or quiet")


class QuietView:
    """Shows nothing."""

    def update(self, doc: ProgressDocument) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class RowCount:
    """Rows of the job that are done, seen over one run.

    Documents of older versions only count the rows of their run and the rows in parts of all runs; what earlier runs
    left in parts is known from the first document, when this run has written none yet.
    """

    def __init__(self) -> None:
        self._rows_found: int | None = None

    def __call__(self, doc: ProgressDocument) -> int:
        if doc.job_rows_done is not None:
            return min(doc.num_rows, max(doc.job_rows_done, doc.rows_in_parts))
        if self._rows_found is None:
            self._rows_found = max(0, doc.rows_in_parts - doc.rows_done)
        return min(doc.num_rows, max(doc.rows_in_parts, self._rows_found + doc.rows_done))


class BarView:
    """The live view, fed with documents."""

    def __init__(self, live: LiveView) -> None:
        self._live = live
        self._rows = RowCount()

    def update(self, doc: ProgressDocument) -> None:
        """Shows the document at the next refresh."""
        self._live.show(snapshot_of(doc, rows_done=self._rows(doc)))

    def close(self) -> None:
        """Draws the last state once more."""
        self._live.close()


class LinesView:
    """One line after about two seconds, then one every thirty, one when the state changes, and the last at the end.

    Args:
        clock: monotonic seconds.
        wall: the time for the front of the line.
    """

    def __init__(
        self,
        stream: IO[str],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        every_seconds: float = LINE_SECONDS,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._wall = wall
        self._every_seconds = every_seconds
        self._rows = RowCount()
        self._next_at: float | None = None
        self._state: str | None = None
        self._unshown: str | None = None

    def update(self, doc: ProgressDocument) -> None:
        """Writes a line when one is due; otherwise keeps it for ``close``."""
        now = self._clock()
        has_changed = self._state is not None and doc.state != self._state
        if self._next_at is None:
            self._next_at = now + FIRST_LINE_SECONDS
        self._state = doc.state
        self._unshown = "  ".join(progress_fields(doc, self._rows(doc)))
        if now >= self._next_at or has_changed:
            self._next_at = now + self._every_seconds
            self._show()

    def close(self) -> None:
        """Writes the last state if no line has shown it."""
        self._show()

    def _show(self) -> None:
        if self._unshown is not None:
            self._stream.write(f"{self._wall().isoformat(timespec='seconds')}  {self._unshown}\n")
            self._stream.flush()
            self._unshown = None


def progress_fields(doc: ProgressDocument, rows_done: int) -> list[str]:
    """The facts of a document as short texts, for one line of a log.

    Args:
        rows_done: rows of the whole job that are done.
    """
    fields = [fmt.clean(doc.state, 24), f"rows {rows_done:,}/{doc.num_rows:,}"]
    if doc.completion_tokens or doc.tokens_per_second:
        fields.append(f"{fmt.rate(doc.tokens_per_second)} tok/s")
    if doc.acceptance_rate is not None:
        fields.append(f"acceptance {doc.acceptance_rate:.2f}")
    if doc.state == "running" and rows_done < doc.num_rows:
        fields.append(f"eta {'unknown' if doc.eta_seconds is None else fmt.clock(doc.eta_seconds)}")
    workers = sum(line.get("state", "ready") in ("ready", "draining", "suspect") for line in doc.workers)
    if doc.workers:
        fields.append(fmt.plural(workers, "worker"))
    if doc.num_errors:
        codes = ", ".join(f"{fmt.clean(code, 40)} {count:,}" for code, count in doc.errors_by_code.items())
        fields.append(fmt.plural(doc.num_errors, "error") + (f" ({codes})" if codes else ""))
    return fields
