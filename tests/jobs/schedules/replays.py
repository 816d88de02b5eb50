"""Schedules replayed without a job: real stores, real processes, nights that are a line of shell."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from specbatch.jobs.schedules.book import Book, open_book
from specbatch.jobs.schedules.daemon import Daemon
from specbatch.jobs.schedules.nights import Night
from specbatch.jobs.schedules.schedule import Schedule, make_schedule
from specbatch.jobs.schedules.signals import simulated_now

BERLIN = "Europe/Berlin"


def at(text: str) -> datetime:
    """A moment with its offset."""
    moment = datetime.fromisoformat(text)
    assert moment.tzinfo is not None
    return moment


def make(folder: Path, **changes: Any) -> Schedule:
    """A schedule of 1:15 each night in Berlin, from 2026-11-23 at noon."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nightly.yaml"
    path.write_text(changes.pop("spec", "input: {datasets: [in.parquet]}\noutput: out/{date}\n"))
    values: dict[str, Any] = {
        "name": None,
        "cron": "15 1 * * *",
        "timezone": BERLIN,
        "overlap": "skip",
        "missed": "run",
        "now": at("2026-11-23T12:00+01:00"),
    }
    return make_schedule(path, **{**values, **changes})


class Shell:
    """Makes every night a line of shell; keeps in a file which nights were run.

    Args:
        lines: by the date of the night; ``exit 0`` for others.
    """

    def __init__(self, folder: Path, lines: dict[str, str] | None = None) -> None:
        self.journal = folder / "journal"
        self._lines = {} if lines is None else lines

    def __call__(self, schedule: Schedule, night: Night, job_file: Path) -> list[str]:
        date = night.planned[:10]
        line = self._lines.get(date, "exit 0")
        script = f"echo {night.planned} >> {self.journal}; echo words of {date}; . ./line"
        (job_file.parent / "line").write_text(line + "\n")
        return ["/bin/sh", "-c", script]

    def dates(self) -> list[str]:
        """Dates of the nights that were run, in their order, each as often as it was."""
        return [line[:10] for line in self.journal.read_text().split()] if self.journal.exists() else []


def replay(book: Book, moment: str, shell: Shell, **settings: Any) -> tuple[int, list[str]]:
    """``schedule run --once --now``: the exit code and what was said."""
    said: list[str] = []
    daemon = Daemon(
        open_book(book.store.uri),
        now=simulated_now(at(moment)),
        command_of=shell,
        environment={"PATH": "/usr/bin:/bin"},
        say=said.append,
        poll_seconds=0.01,
        **settings,
    )
    return int(daemon.run(once=True)), said


def states(book: Book, name: str = "nightly") -> dict[str, str]:
    """State, reason and exit code of every night by its date."""
    found = {}
    for planned in book.night_times(name):
        stored = book.find_night(name, planned)
        assert stored is not None
        night = stored.night
        parts = [night.state, night.reason, "" if night.exit_code is None else str(night.exit_code)]
        found[night.planned[:10]] = " ".join(part for part in parts if part)
    return found


Replay = Callable[..., tuple[int, list[str]]]
