"""A cron line as calendar events of systemd. Pure."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from specbatch.schemas.errors import ErrorCode, SpecbatchError

_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
_LAST_DAY = "~01"


def calendar_lines(cron: str) -> tuple[str, ...]:
    """Events, without a zone, that together come when the cron line does.

    Days of the month and of the week are either both to match or one of them, as Debian's cron has it; systemd knows
    only the former, so that the latter becomes two events.

    Raises:
        SpecbatchError: JOB_CONFIG, a day that systemd has no words for: the nth or last weekday of a month.
    """
    from cronsim import CronSim

    parsed = CronSim(cron, datetime(2026, 1, 1))
    if any(isinstance(day, tuple) for day in parsed.weekdays) or CronSim.LAST_WEEKDAY in parsed.days:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"--cron {cron!r}: systemd has no words for such a day of the month; use another line, or another target",
        )
    # Days 0 and 7 are both Sunday.
    weekdays = {day % 7 for day in parsed.weekdays if isinstance(day, int)}
    week = "" if len(weekdays) == 7 else ",".join(_WEEKDAYS[day] for day in sorted(weekdays)) + " "
    days = {day for day in parsed.days if day != CronSim.LAST}
    months = _values(parsed.months, 12)
    clock = f"{_values(parsed.hours, 24)}:{_values(parsed.minutes, 60)}:00"
    dates = [f"*-{months}-{_values(days, 31)}"] if days else []
    if CronSim.LAST in parsed.days:
        dates.append(f"*-{months}{_LAST_DAY}")
    every_date = f"*-{months}-*"
    if parsed.day_and or not week:
        return tuple(f"{week}{date} {clock}" for date in dates)
    return (*(f"{date} {clock}" for date in dates), f"{week}{every_date} {clock}")


def _values(numbers: Collection[int], size: int) -> str:
    """``*`` where all there are are meant, else each with two digits."""
    return "*" if len(numbers) == size else ",".join(f"{number:02}" for number in sorted(numbers))
