"""``specbatch status --watch``: follow a run from any machine, by the documents that it leaves in its output.

Clocks of two machines may differ. So the first look judges a run by its own time, and from then on by whether its
document changes while we look.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import IO, Protocol

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.display.live import LiveView, can_be_live
from specbatch.jobs.display.live_layout import snapshot_of, span
from specbatch.jobs.display.progress import LinesView, RowCount
from specbatch.jobs.output.lease import may_be_held, read_lease
from specbatch.jobs.output.manifest import MANIFEST_NAME
from specbatch.jobs.output.submissions import find_waiting
from specbatch.jobs.watching.status import (
    ENDED,
    FRESH_SECONDS,
    StatusReport,
    age_seconds,
    is_gone,
    read_progress,
    read_status,
)
from specbatch.jobs.watching.status_text import render_status
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.run import ProgressDocument
from specbatch.storage.store import NotFound, Store, open_store

WATCH_SECONDS = 2.0
GIVE_UP_SECONDS = 3600.0
"""A run that is silent for so long is not waited for any more."""


class WatchView(Protocol):
    """Where a watch shows what it sees."""

    def update(self, doc: ProgressDocument, silence_seconds: float | None) -> None:
        """Show this; ``silence_seconds`` is None while the run gives signs of life."""

    def close(self) -> None:
        """Show the last state and end."""


class Pulse:
    """For how long a run has given no sign of life."""

    def __init__(self) -> None:
        self._updated_at: str | None = None
        self._since = 0.0

    def silence_seconds(self, doc: ProgressDocument, now: datetime, clock_seconds: float) -> float:
        """Since the last change of its document that was seen; at the first look, by the time that stands in it."""
        if self._updated_at is None:
            self._since = clock_seconds - max(age_seconds(doc, now) or 0.0, 0.0)
        elif doc.updated_at != self._updated_at:
            self._since = clock_seconds
        self._updated_at = doc.updated_at
        return clock_seconds - self._since


def watch(
    output: str,
    view: WatchView,
    *,
    every_seconds: float = WATCH_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> StatusReport:
    """Show a run until it ends; where nothing runs, that is at once. One that waits in Ray Jobs is waited for.

    A store that does not answer for a while is waited for: it looks like a run that is silent.

    Returns:
        The state at the end.

    Raises:
        SpecbatchError: as ``read_status`` says.
    """
    report = read_status(output)
    store = open_store(output)
    pulse = Pulse()
    doc: ProgressDocument | None = None
    try:
        while report.state not in ("complete", "not a job"):
            try:
                if find_waiting(store) is not None:
                    sleep(every_seconds)
                    continue
                doc = read_progress(store) or doc
                if _has_ended(store, doc):
                    break
            except SpecbatchError as error:
                if error.code is not ErrorCode.JOB_STORE_LOST:
                    raise
            if doc is not None:
                silence_seconds = pulse.silence_seconds(doc, datetime.now(UTC), clock())
                if silence_seconds > GIVE_UP_SECONDS:
                    break
                view.update(doc, silence_seconds if silence_seconds > FRESH_SECONDS else None)
            sleep(every_seconds)
    finally:
        view.close()
    return read_status(output)


def _has_ended(store: Store, doc: ProgressDocument | None) -> bool:
    if doc is None:
        return not may_be_held(read_lease(store))
    if doc.state in ENDED or is_gone(doc):
        return True
    return doc.state == "complete" and _is_committed(store)


def _is_committed(store: Store) -> bool:
    try:
        store.size(MANIFEST_NAME)
    except NotFound:
        return False
    return True


def make_watch_view(output: str, stream: IO[str], format: str, every_seconds: float) -> WatchView:
    """The view of a watch: live on a terminal, timed lines elsewhere, JSON objects where they are asked for."""
    if format == "jsonl":
        return _JsonWatch(output, stream)
    return _LiveWatch(LiveView(stream)) if can_be_live(stream) else _LinesWatch(stream, every_seconds)


class _LiveWatch:
    """The layout of the run's own terminal."""

    def __init__(self, live: LiveView) -> None:
        self._live = live
        self._rows = RowCount()

    def update(self, doc: ProgressDocument, silence_seconds: float | None) -> None:
        age = max(age_seconds(doc, datetime.now(UTC)) or 0.0, 0.0)
        elapsed = None if doc.elapsed_seconds is None else doc.elapsed_seconds + age
        self._live.show(
            snapshot_of(doc, rows_done=self._rows(doc), elapsed_seconds=elapsed, silence_seconds=silence_seconds)
        )

    def close(self) -> None:
        self._live.close()


class _LinesWatch:
    """A line every so often, and one for each change of state."""

    def __init__(self, stream: IO[str], every_seconds: float) -> None:
        self._stream = stream
        self._lines = LinesView(stream, every_seconds=every_seconds)
        self._silent_until = FRESH_SECONDS

    def update(self, doc: ProgressDocument, silence_seconds: float | None) -> None:
        self._lines.update(doc)
        if silence_seconds is None:
            self._silent_until = FRESH_SECONDS
        elif silence_seconds > self._silent_until:
            self._silent_until = 2 * silence_seconds
            when = datetime.now(UTC).isoformat(timespec="seconds")
            self._stream.write(f"{when}  {fmt.clean(doc.state, 24)}  no sign of life for {span(silence_seconds)}\n")
            self._stream.flush()

    def close(self) -> None:
        self._lines.close()


class _JsonWatch:
    """One object with the status for each look."""

    def __init__(self, output: str, stream: IO[str]) -> None:
        self._output = output
        self._stream = stream

    def update(self, doc: ProgressDocument, silence_seconds: float | None) -> None:
        self._stream.write(render_status(read_status(self._output), "jsonl"))
        self._stream.flush()

    def close(self) -> None:
        """The last state follows from the command itself."""
