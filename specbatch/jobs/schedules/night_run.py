"""One run of a night by this daemon: taken in the store, its process started, held while it lives, its end stored."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from specbatch.jobs.schedules.book import Book, Found, log_key
from specbatch.jobs.schedules.child import Child, CommandOf, who_holds
from specbatch.jobs.schedules.holders import this_holder
from specbatch.jobs.schedules.nights import Holder, Night, begun, ended, given_up, renewed
from specbatch.jobs.schedules.schedule import Schedule, job_of
from specbatch.schemas.errors import SpecbatchError


@dataclass(slots=True)
class NightRun:
    """A night that this daemon runs.

    Attributes:
        version: of the night in the store.
        renew_at: when to say next that this daemon lives, by ``time.monotonic``.
        is_lost: another daemon has taken the night; its end is not for us to store.
    """

    book: Book
    schedule: Schedule
    night: Night
    version: str
    holder: Holder
    child: Child
    renew_at: float
    is_lost: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.schedule.name} {self.night.planned}"

    def renew(self, every_seconds: float) -> bool:
        """Say in the store that this daemon lives, and what the night has printed.

        Returns:
            False where another daemon has just taken the night: this run of it was asked to end.

        Raises:
            SpecbatchError: the store is away.
        """
        self.renew_at = time.monotonic() + every_seconds
        if self.is_lost:
            return True
        holder = self.holder.model_copy(
            update={
                "renewals": self.holder.renewals + 1,
                "child_pid": self.child.pid,
                "child_started": self.child.started,
            }
        )
        if not self._swap(renewed(self.night, holder)):
            self.is_lost = True
            self.child.stop(signal.SIGTERM)
            return False
        self.holder = holder
        self.book.write_log(self.night.attempts[-1].log, self.child.log())
        return True

    def end(self, exit_code: int, now: datetime, *, is_stopped: bool) -> Night | None:
        """Store how the run ended; the night as it is then, or None where it is another daemon's.

        Args:
            exit_code: of the process, negative for a signal.
            is_stopped: this daemon was asked to end.

        Raises:
            SpecbatchError: the store is away; call it again.
        """
        log = self.child.log()
        night = ended(
            self.night,
            exit_code,
            now,
            is_stopped=is_stopped,
            tries=self.schedule.tries,
            retry_seconds=self.schedule.retry_seconds,
            held_by=who_holds(log),
        )
        is_ours = not self.is_lost
        if is_ours:
            self.book.write_log(night.attempts[-1].log, log)
            is_ours = self._swap(night)
        self.child.close()
        return night if is_ours else None

    def _swap(self, night: Night) -> bool:
        version = self.book.swap_night(night, self.version)
        if version is None:
            # A write of ours whose outcome was never learnt leaves our night there under a version we do not know.
            found = self.book.find_night(night.schedule, night.planned_time)
            if found is None or found.night.holder is None or found.night.holder.token != self.holder.token:
                return False
            version = self.book.swap_night(night, found.version)
        if version is None:
            return False
        self.night, self.version = night, version
        return True


def begin_night(
    book: Book,
    schedule: Schedule,
    night: Night,
    now: datetime,
    command_of: CommandOf,
    environment: Mapping[str, str],
    on_given_up: Callable[[Night], None],
) -> NightRun | None:
    """Take a night and start its process; None where another daemon was quicker, or it cannot be run.

    Args:
        night: as it was judged; one that has changed since is left alone.
        on_given_up: called with a night that has failed here and now.

    Raises:
        SpecbatchError: the store is away.
    """

    def give_up(last: Night, version: str, reason: str) -> None:
        failed = given_up(last, reason)
        if book.swap_night(failed, version) is not None:
            on_given_up(failed)

    found: Found | None = book.find_night(schedule.name, night.planned_time)
    if found is None or found.night.revision != night.revision:
        return None
    if night.state == "running" and night.num_tries >= schedule.tries:
        give_up(night, found.version, f"gave up after {night.num_tries} runs whose daemon ended before them")
        return None
    try:
        job = job_of(schedule, night.planned_time)
    except SpecbatchError as error:
        give_up(night, found.version, str(error))
        return None
    holder = this_holder()
    log = log_key(schedule.name, night.planned_time, len(night.attempts) + 1)
    taken = begun(night, holder, now, job, log)
    version = book.swap_night(taken, found.version)
    if version is None:
        return None
    try:
        child = Child(schedule, taken, command_of, environment)
    except OSError as error:
        give_up(taken, version, f"its process could not be started: {error}")
        return None
    return NightRun(book, schedule, taken, version, holder, child, renew_at=time.monotonic())
