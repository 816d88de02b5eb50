"""When the nights of a schedule are: a cron line read in a time zone. Pure.

``cronsim`` computes them as Debian's cron does, which says what happens when clocks change. A line with a fixed minute
and hour runs once a day, always: where its time does not exist (spring), at the first minute that does; where it comes
twice (autumn), at the first of the two. A line whose minute or hour begins with ``*`` follows the elapsed hours: what
does not exist is left out, and an hour that comes twice has its nights twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from specbatch.schemas.errors import ErrorCode, SpecbatchError

_NUM_FIELDS = 5
_MAX_CHARACTERS = 200
_FOLD = timedelta(hours=2)
"""More than any clock is set back by."""


def check_cron(cron: str, where: str = "--cron") -> str:
    """A cron line with single spaces between its five fields.

    Raises:
        SpecbatchError: JOB_CONFIG, it is none, or its time never comes.
    """
    from cronsim import CronSim, CronSimError

    fields = cron.split()
    reason = "a cron line has five fields: minute, hour, day of the month, month, day of the week"
    if len(fields) == _NUM_FIELDS and len(cron) <= _MAX_CHARACTERS:
        line = " ".join(fields)
        try:
            next(CronSim(line, datetime(2026, 1, 1)))
            return line
        except CronSimError as error:
            reason = str(error).lower()
        except StopIteration:
            reason = "its time never comes"
    shown = cron[:_MAX_CHARACTERS]
    raise SpecbatchError(ErrorCode.JOB_CONFIG, f"{where} {shown!r}: {reason}; such as '15 1 * * *', each night at 1:15")


def times_after(cron: str, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """The planned times later than a moment, ascending, each with the zone's offset at that time.

    Args:
        cron: as ``check_cron`` gives it.
        after: a time with an offset.
    """
    from cronsim import CronSim

    # Two times of one zone compare by their clock faces, which lie in autumn; those of fixed offsets do not.
    moment = after.astimezone(UTC)
    # cronsim begins behind what it is given; of an hour that comes twice it may give what lies before it.
    for planned in CronSim(cron, (moment - _FOLD).astimezone(zone)):
        if planned.astimezone(UTC) > moment:
            yield planned.replace(tzinfo=timezone(planned.utcoffset() or timedelta()), fold=0)


def times_between(cron: str, zone: ZoneInfo, after: datetime, until: datetime) -> Iterator[datetime]:
    """The planned times later than ``after`` and not later than ``until``, ascending."""
    for planned in times_after(cron, zone, after):
        if planned > until:
            return
        yield planned


def next_time(cron: str, zone: ZoneInfo, after: datetime) -> datetime | None:
    """The first planned time later than a moment; None where there is none within 50 years."""
    return next(times_after(cron, zone, after), None)


def last_time(cron: str, zone: ZoneInfo, until: datetime) -> datetime | None:
    """The last planned time that is not later than a moment; None where there was none within 50 years."""
    from cronsim import CronSim

    # Both directions agree but for an hour that comes twice, so that the way back only finds where to begin.
    moment = until.astimezone(UTC)
    for found in CronSim(cron, (moment + _FOLD).astimezone(zone), reverse=True):
        earlier = found.astimezone(UTC)
        if earlier <= moment - _FOLD:
            return max(times_between(cron, zone, earlier - _FOLD, moment), default=None)
    return None
