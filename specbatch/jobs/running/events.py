"""``--format jsonl`` of the commands that run a job: one JSON object a line on standard output, whose form is stable.

Each has ``event``: ``progress`` (a progress document), ``note`` (a line for the user) or ``end`` (how the run ended);
and ``time`` (UTC, ISO 8601). Fields may be added; none is renamed or removed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from specbatch.jobs.display.formatting import clean
from specbatch.jobs.display.live_layout import LIVE_STATES
from specbatch.schemas.log_lines import now_text
from specbatch.schemas.run import ProgressDocument

PROGRESS_SECONDS = 2.0


class EventWriter:
    """Writes events; also a ``ProgressView``.

    Args:
        write: takes one line without its line break.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._due = 0.0
        self._seen: tuple[str, bool] | None = None

    def update(self, doc: ProgressDocument) -> None:
        """A ``progress`` event, at most one every two seconds, and one for the first row and every change of state."""
        now = self._clock()
        seen = (doc.state, doc.rows_done > 0)
        if self._seen == seen and (now < self._due or doc.state not in LIVE_STATES):
            return
        self._due, self._seen = now + PROGRESS_SECONDS, seen
        self._put("progress", doc.model_dump(mode="json"))

    def close(self) -> None:
        """Nothing is left open."""

    def note(self, line: str) -> None:
        """A ``note`` event with a line for the user."""
        self._put("note", {"message": clean(line)})

    def end(self, outcome: Mapping[str, Any]) -> None:
        """The ``end`` event."""
        self._put("end", outcome)

    def _put(self, event: str, values: Mapping[str, Any]) -> None:
        self._write(json.dumps({"event": event, "time": now_text(), **values}))
