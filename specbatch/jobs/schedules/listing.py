"""The schedules of a store for people and programs: the next time, and what became of the last nights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import islice

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.display.cells import left, right, text_width
from specbatch.jobs.schedules.book import Book
from specbatch.jobs.schedules.nights import Night, NightState
from specbatch.jobs.schedules.schedule import Missed, Overlap, Schedule
from specbatch.jobs.schedules.times import next_time

SCHEDULES_FORMAT = "specbatch/schedules/1"


@dataclass(frozen=True, slots=True)
class NightLine:
    """One night.

    Attributes:
        planned: the logical date, local time of the schedule with its offset.
        reason: why it was skipped, waits or failed; empty where the state says all.
        exit_code: of its last run; null before the first has ended.
        runs: how often it was started.
        log: of its last run, below the store; null before the first.
    """

    planned: str
    state: NightState
    reason: str
    output: str
    exit_code: int | None
    runs: int
    started_at: str | None
    ended_at: str | None
    retry_at: str | None
    log: str | None


@dataclass(frozen=True, slots=True)
class ScheduleLine:
    """One schedule.

    Attributes:
        next: the next planned time; null where there is none within 50 years.
        nights: the last ones, the latest first.
    """

    name: str
    cron: str
    timezone: str
    overlap: Overlap
    missed: Missed
    next: str | None
    nights: tuple[NightLine, ...]


@dataclass(frozen=True, slots=True)
class ScheduleList:
    """The schedules of a store."""

    store: str
    schedules: tuple[ScheduleLine, ...]


def list_schedules(book: Book, names: Sequence[str], *, num_nights: int, now: datetime) -> ScheduleList:
    """The schedules in use, with their last nights.

    Args:
        names: only these; all if empty.

    Raises:
        SpecbatchError: JOB_CONFIG, there is none of a name.
    """
    schedules = [book.get(name) for name in names] if names else book.schedules()
    return ScheduleList(book.store.uri, tuple(_schedule_line(book, each, num_nights, now) for each in schedules))


def last_outputs(book: Book, name: str, num_nights: int) -> list[str]:
    """Outputs of the last complete nights of a schedule, the oldest first."""
    schedule = book.get(name)
    nights = book.nights_back(schedule.name, book.night_times(schedule.name))
    complete = (night.output for night in nights if night.state == "complete")
    return list(dict.fromkeys(islice(complete, num_nights)))[::-1]


def render_schedules(found: ScheduleList, format: str) -> str:
    """The list as text (``human``) or as one JSON object (``json``)."""
    if format == "json":
        return json.dumps({"format": SCHEDULES_FORMAT, **asdict(found)}, indent=2) + "\n"
    if not found.schedules:
        return f"no schedules in {fmt.clean(found.store)}\n"
    return "\n".join(_schedule_text(line) for line in found.schedules)


def _schedule_line(book: Book, schedule: Schedule, num_nights: int, now: datetime) -> ScheduleLine:
    nights = islice(book.nights_back(schedule.name, book.night_times(schedule.name)), num_nights)
    planned = next_time(schedule.cron, schedule.zone, max(now, schedule.since_time))
    return ScheduleLine(
        name=schedule.name,
        cron=schedule.cron,
        timezone=schedule.timezone,
        overlap=schedule.overlap,
        missed=schedule.missed,
        next=None if planned is None else planned.isoformat(),
        nights=tuple(map(_night_line, nights)),
    )


def _night_line(night: Night) -> NightLine:
    attempts = night.attempts
    return NightLine(
        planned=night.planned,
        state=night.state,
        reason=night.reason,
        output=night.output,
        exit_code=night.exit_code,
        runs=len(attempts),
        started_at=attempts[0].started_at if attempts else None,
        ended_at=attempts[-1].ended_at if attempts else None,
        retry_at=night.retry_at,
        log=attempts[-1].log if attempts else None,
    )


def _schedule_text(line: ScheduleLine) -> str:
    head = f"{line.name}  {line.cron}  {line.timezone}  overlap {line.overlap}, missed {line.missed}"
    text = f"{fmt.clean(head)}\n  next: {line.next or 'never'}\n"
    if not line.nights:
        return f"{text}  no night yet\n"
    names = ("night", "state", "exit", "runs", "took", "output")
    rows = [names, *map(_cells, line.nights)]
    widths = [max(text_width(row[column]) for row in rows) for column in range(len(names))]
    fills = (left, left, right, right, right, left)
    return text + "".join(
        "  "
        + "  ".join(fill(cell, width) for fill, cell, width in zip(fills, row, widths, strict=True)).rstrip()
        + "\n"
        for row in rows
    )


def _cells(night: NightLine) -> tuple[str, ...]:
    took = "-"
    if night.started_at and night.ended_at:
        took = fmt.clock(
            (datetime.fromisoformat(night.ended_at) - datetime.fromisoformat(night.started_at)).total_seconds()
        )
    state = f"{night.state}: {fmt.clean(night.reason)}" if night.reason else night.state
    exit_code = "-" if night.exit_code is None else str(night.exit_code)
    return (night.planned, state, exit_code, str(night.runs), took, fmt.clean(night.output))
