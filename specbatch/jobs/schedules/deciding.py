"""What a daemon does next, from what is stored and the time alone: nights are seen, skipped, begun, resumed. Pure.

The rules, in this order:

- A night whose time falls into the runs of another one is an overlap: ``skip`` skips it, ``wait`` lets it wait.
- One that is first seen ``LATE_SECONDS`` or more after its time is missed: ``skip`` skips it, ``run`` lets it wait.
- Any other waits. Of a schedule one night runs at a time, the oldest first, each for its own date.

A clock that was ahead and is set right leaves nights behind whose time has not come. They wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from specbatch.jobs.schedules.nights import ACTIVE, MAX_RETRY_SECONDS, Night
from specbatch.jobs.schedules.schedule import Schedule

LATE_SECONDS = 900.0
MAX_SEEN = 100
"""Most nights that are seen at once, the latest: after a long absence older ones are passed over."""

Holding = Literal["nobody", "live", "watched"]
"""Who holds a running night: nobody who lives; somebody who does; somebody elsewhere who is watched for a sign."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What becomes of a night whose time has come."""

    planned: datetime
    state: Literal["waiting", "skipped"]
    reason: str


@dataclass(frozen=True, slots=True)
class Begin:
    """Run this night: begin it, or go on with it."""

    night: Night


@dataclass(frozen=True, slots=True)
class Hold:
    """Nothing can be begun now.

    Attributes:
        until: when to look again at the latest; None where that is unknown.
        is_watching: whether a holder elsewhere is watched for a sign of life.
    """

    night: Night
    until: datetime | None = None
    is_watching: bool = False


@dataclass(frozen=True, slots=True)
class Idle:
    """No night is waiting."""


Step = Begin | Hold | Idle


def see(
    schedule: Schedule, nights: Iterable[Night], planned_times: Sequence[datetime], now: datetime
) -> tuple[Seen, ...]:
    """What becomes of the nights whose time has come and that are not stored yet.

    Args:
        nights: those that are stored; at least all that have not ended, and the last that ran.
        planned_times: without a stored night, ascending, not later than ``now``.
    """
    known = tuple(nights)
    seen = []
    for planned in planned_times[-MAX_SEEN:]:
        is_overlap = any(night.covers(planned) for night in known)
        is_late = (now - planned).total_seconds() >= LATE_SECONDS
        if is_overlap:
            seen.append(Seen(planned, "skipped" if schedule.overlap == "skip" else "waiting", "overlap"))
        elif is_late:
            seen.append(Seen(planned, "skipped" if schedule.missed == "skip" else "waiting", "missed"))
        else:
            seen.append(Seen(planned, "waiting", ""))
    return tuple(seen)


def next_step(nights: Iterable[Night], now: datetime, holding: Callable[[Night], Holding]) -> Step:
    """What to do next with the nights of one schedule.

    Args:
        nights: that are stored and have not ended, at least.
        holding: who holds a running night.
    """
    ordered = sorted(nights, key=lambda night: night.planned_time)
    active = next((night for night in ordered if night.state in ACTIVE), None)
    if active is None:
        due = (night for night in ordered if night.state == "waiting" and night.planned_time <= now)
        waiting = next(due, None)
        return Idle() if waiting is None else Begin(waiting)
    if active.state == "running":
        held = holding(active)
        return Begin(active) if held == "nobody" else Hold(active, is_watching=held == "watched")
    retry_at = None if active.retry_at is None else datetime.fromisoformat(active.retry_at)
    # One that is further away than any pause was set by a clock that was ahead.
    if retry_at is not None and now < retry_at <= now + timedelta(seconds=MAX_RETRY_SECONDS):
        return Hold(active, until=retry_at)
    return Begin(active)
