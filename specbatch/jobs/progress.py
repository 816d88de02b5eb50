"""What a user sees while a job runs: a live bar on a terminal, timed plain lines without one, or nothing.

A view is driven by ``update``; it never reads the job itself. Numbers are the only thing from the job that
reaches the terminal, except the name of the state, which is cleaned of control characters.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Literal, Protocol

from specbatch.jobs import formatting as fmt
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.run import ProgressDocument

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

ProgressMode = Literal["auto", "bar", "lines", "quiet"]

FIRST_LINE_SECONDS = 2.0
LINE_SECONDS = 10.0
_REFRESH_PER_SECOND = 4
_MIN_BAR_WIDTH = 8
_MAX_BAR_WIDTH = 40


class ProgressView(Protocol):
    """Where the coordinator sends its progress."""

    def update(self, doc: ProgressDocument) -> None:
        """Show this; may be called as often as one likes."""

    def close(self) -> None:
        """Show the last state and leave the terminal as it was found."""


def make_view(mode: ProgressMode = "auto", stream: IO[str] | None = None) -> ProgressView:
    """The view for a mode.

    Args:
        mode: ``bar``, ``lines`` or ``quiet``; ``auto`` is the bar where the stream is a terminal that can move
            its cursor, else lines.
        stream: where to write; standard error if None.

    Raises:
        SpecbatchError: ``JOB_CONFIG``, no such mode.
    """
    target = sys.stderr if stream is None else stream
    if mode == "auto":
        mode = "bar" if target.isatty() and os.environ.get("TERM", "") not in ("", "dumb") else "lines"
    if mode == "quiet":
        return QuietView()
    if mode == "lines":
        return LinesView(target)
    if mode == "bar":
        return BarView(target)
    raise SpecbatchError(ErrorCode.JOB_CONFIG, f"progress mode is {mode!r}; it must be auto, bar, lines or quiet")


class QuietView:
    """Shows nothing."""

    def update(self, doc: ProgressDocument) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class RowCount:
    """Rows of the job that are done, seen over one run.

    A document counts the rows of this run and the rows in parts of all runs; what earlier runs left in parts is
    known from the first document, when this run has written none yet.
    """

    def __init__(self) -> None:
        self._rows_found: int | None = None

    def __call__(self, doc: ProgressDocument) -> int:
        if self._rows_found is None:
            self._rows_found = max(0, doc.rows_in_parts - doc.rows_done)
        return min(doc.num_rows, max(doc.rows_in_parts, self._rows_found + doc.rows_done))


class LinesView:
    """One line after about two seconds, then one every ten, and the last state at the end.

    ``clock`` gives monotonic seconds, ``wall`` the time of day for the front of the line.
    """

    def __init__(
        self,
        stream: IO[str],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], time.struct_time] = time.localtime,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._wall = wall
        self._rows = RowCount()
        self._next_at: float | None = None
        self._unshown: str | None = None

    def update(self, doc: ProgressDocument) -> None:
        """Writes a line when one is due; otherwise keeps it for ``close``."""
        now = self._clock()
        if self._next_at is None:
            self._next_at = now + FIRST_LINE_SECONDS
        self._unshown = "  ".join(progress_fields(doc, self._rows(doc)))
        if now >= self._next_at:
            self._next_at = now + LINE_SECONDS
            self._show()

    def close(self) -> None:
        """Writes the last state if no line has shown it."""
        self._show()

    def _show(self) -> None:
        if self._unshown is not None:
            self._stream.write(f"{time.strftime('%H:%M:%S', self._wall())}  {self._unshown}\n")
            self._stream.flush()
            self._unshown = None


class BarView:
    """One live line that always fits the width that the terminal has now."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._line = _BarLine()
        self._console = Console(file=stream, force_terminal=True, highlight=False, soft_wrap=False)
        self._live = Live(
            self._line,
            console=self._console,
            refresh_per_second=_REFRESH_PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=stream is sys.stderr,
            vertical_overflow="crop",
        )
        self._started = False

    def update(self, doc: ProgressDocument) -> None:
        """Shows the document at the next refresh."""
        self._line.show(doc)
        if not self._started:
            self._started = True
            self._live.start(refresh=True)

    def close(self) -> None:
        """Draws the last state once more and gives the cursor back."""
        if self._started:
            self._started = False
            self._live.stop()


class _BarLine:
    """A renderable: the facts in order of importance, as many as fit, and a bar in what is left."""

    def __init__(self) -> None:
        self._doc: ProgressDocument | None = None
        self._rows = RowCount()
        self._rows_done = 0

    def show(self, doc: ProgressDocument) -> None:
        self._rows_done = self._rows(doc)
        self._doc = doc

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        doc = self._doc
        if doc is None:
            return
        # A terminal wraps when its last column is written, so that column stays free.
        width = max(1, options.max_width - 1)
        fields = progress_fields(doc, self._rows_done, with_workers=True)
        kept = fields[:1]
        for field in fields[1:]:
            if len("  ".join([*kept, field])) <= width:
                kept.append(field)
        bar_width = min(_MAX_BAR_WIDTH, width - len("  ".join(kept)) - 2)
        while bar_width < _MIN_BAR_WIDTH and len(kept) > 3:
            kept.pop()
            bar_width = min(_MAX_BAR_WIDTH, width - len("  ".join(kept)) - 2)
        if bar_width < _MIN_BAR_WIDTH:
            yield Text("  ".join(kept)[:width], no_wrap=True, end="")
            return
        grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        grid.add_row(
            Text(kept[0], no_wrap=True),
            ProgressBar(total=max(1, doc.num_rows), completed=self._rows_done, width=bar_width),
            Text("  ".join(kept[1:]), no_wrap=True),
        )
        yield grid


def progress_fields(doc: ProgressDocument, rows_done: int, *, with_workers: bool = False) -> list[str]:
    """The facts of a document as short texts, the most important first.

    Args:
        rows_done: rows of the whole job that are done.
        with_workers: add tokens per round, errors and workers, for which a log line has no room.
    """
    fields = [f"rows {rows_done:,}/{doc.num_rows:,}"]
    if doc.state != "running":
        fields.append(fmt.clean(doc.state, 24))
    if doc.completion_tokens:
        fields.append(f"{fmt.rate(doc.tokens_per_second)} tok/s")
    if doc.acceptance_rate is not None:
        fields.append(f"acceptance {doc.acceptance_rate:.2f}")
    if doc.eta_seconds is not None and rows_done < doc.num_rows:
        fields.append(f"eta {fmt.clock(doc.eta_seconds)}")
    if doc.num_errors:
        fields.append(fmt.plural(doc.num_errors, "error"))
    if with_workers:
        if doc.mean_emitted is not None:
            fields.append(f"{doc.mean_emitted:.2f} tok/round")
        fields.append(fmt.plural(len(doc.workers), "worker"))
    return fields
