"""``specbatch schedule run``: sees nights, runs them as processes, and keeps what became of them in the store.

Nothing is kept in memory that the store does not hold: killed at any moment, the next daemon goes on. A night of
another daemon that is gone is resumed, and what that one left running is waited for.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from specbatch.jobs.schedules.book import Book
from specbatch.jobs.schedules.child import CommandOf, submit_command
from specbatch.jobs.schedules.deciding import MAX_SEEN, Begin, Hold, Step, next_step, see
from specbatch.jobs.schedules.holders import RENEW_SECONDS, Watcher
from specbatch.jobs.schedules.night_run import NightRun, begin_night
from specbatch.jobs.schedules.nights import Night, stamp
from specbatch.jobs.schedules.schedule import Schedule, output_of
from specbatch.jobs.schedules.times import next_time, times_between
from specbatch.schemas.errors import ExitCode, SpecbatchError

LOOK_SECONDS = 15.0
POLL_SECONDS = 0.2
AWAY_SECONDS = 1.0


class Daemon:
    """Runs the nights of schedules.

    Args:
        names: of the schedules; all in use if empty, also such as are added later.
        now: the time, with an offset; simulated where nights are replayed.
        command_of: the command line of a night.
        environment: of the nights.
        say: takes single lines for the user.
        stop_signal: the last signal that this process has had, and how many; None for none.
    """

    def __init__(
        self,
        book: Book,
        *,
        names: Sequence[str] = (),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        command_of: CommandOf = submit_command,
        environment: Mapping[str, str],
        say: Callable[[str], None],
        stop_signal: Callable[[], tuple[signal.Signals, int] | None] = lambda: None,
        watcher: Watcher | None = None,
        look_seconds: float = LOOK_SECONDS,
        renew_seconds: float = RENEW_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._book = book
        self._names = tuple(names)
        self._now = now
        self._command_of = command_of
        self._environment = environment
        self._say = say
        self._stop_signal = stop_signal
        self._watcher = Watcher() if watcher is None else watcher
        self._look_seconds = look_seconds
        self._renew_seconds = renew_seconds
        self._poll_seconds = poll_seconds
        self._known: list[Schedule] = []
        self._running: dict[str, NightRun] = {}
        self._away_until = 0.0
        self._num_passed = 0
        self._has_failed = False
        self._is_interrupted = False
        self._said: dict[str, str] = {}

    def run(self, *, once: bool = False) -> ExitCode:
        """Run until a signal comes; with ``once`` until nothing more can be done at this moment.

        Returns:
            COMPLETE; under ``once`` FAILED where a night failed, and INTERRUPTED or TERMINATED where one was left
            for the next time because a signal came.

        Raises:
            SpecbatchError: the store cannot be used. Under ``once`` only; else it is tried again.
        """
        for name in self._names:
            self._book.get(name)
        look_at = 0.0
        while True:
            stop = self._stop_signal()
            if stop is not None:
                self._pass_on(*stop)
            if self._tend():
                look_at = 0.0
            if stop is not None:
                if not self._running:
                    return self._exit_code(once, stop[0])
            elif time.monotonic() >= look_at:
                steps = self._look(once)
                look_at = time.monotonic() + self._wait_seconds(steps)
                if once and not self._running and not any(_goes_on(step) for step in steps):
                    return self._exit_code(once, None)
            time.sleep(self._poll_seconds)

    def _exit_code(self, once: bool, number: signal.Signals | None) -> ExitCode:
        if once and number is not None and self._is_interrupted:
            return ExitCode(128 + number)
        return ExitCode.FAILED if once and self._has_failed else ExitCode.COMPLETE

    # ---- what is due ---------------------------------------------------------------------------------------------

    def _look(self, once: bool) -> list[Step]:
        """See what is due, and begin what can be; the step of every schedule."""
        steps: list[Step] = []
        try:
            self._known = [each for each in self._book.schedules() if not self._names or each.name in self._names]
        except SpecbatchError as error:
            if once and not self._running:
                raise
            self._say_once("", f"{error}; trying again")
            return steps
        if not self._known:
            self._say_once("", f"no schedule is in use in {self._book.store.uri}")
        for schedule in self._known:
            try:
                steps.append(self._step(schedule))
            except SpecbatchError as error:
                if once and not self._running:  # those that run are seen to their ends
                    raise
                self._say_once(schedule.name, f"{schedule.name}: {error}; trying again")
        return steps

    def _step(self, schedule: Schedule) -> Step:
        now = self._now()
        times = self._book.night_times(schedule.name)
        # None lie ahead but those that a clock saw which was ahead itself; no night may hide behind them.
        come, ahead = [each for each in times if each <= now], [each for each in times if each > now]
        nights = self._book.recent_nights(schedule.name, come) + self._book.recent_nights(schedule.name, ahead)
        nights += self._see(schedule, nights, come, now)
        own = self._running.get(schedule.name)
        if own is not None:
            return Hold(own.night)
        step = next_step(nights, now, self._watcher.holding)
        if isinstance(step, Begin):
            self._begin(schedule, step.night)
        elif isinstance(step, Hold):
            self._say_once(schedule.name, _held_line(step))
        return step

    def _see(self, schedule: Schedule, nights: list[Night], times: list[datetime], now: datetime) -> list[Night]:
        """Store the nights whose time has come since the last look; those that this daemon was the first to see."""
        after = max([schedule.since_time, *times[-1:]])
        due = list(times_between(schedule.cron, schedule.zone, after, now))
        if len(due) > MAX_SEEN:
            self._say(f"{schedule.name}: {len(due) - MAX_SEEN} nights before {due[-MAX_SEEN]} are passed over")
        found = []
        for seen in see(schedule, nights, due, now):
            night = Night(
                schedule=schedule.name,
                planned=seen.planned.isoformat(),
                state=seen.state,
                reason=seen.reason,
                seen_at=stamp(now),
                output=output_of(schedule, seen.planned),
            )
            if self._book.create_night(night):
                found.append(night)
                if seen.reason:
                    self._say(f"{schedule.name} {night.planned}: {night.state}, {_REASONS[seen.reason]}")
        return found

    # ---- a night -------------------------------------------------------------------------------------------------

    def _begin(self, schedule: Schedule, night: Night) -> None:
        run = begin_night(self._book, schedule, night, self._now(), self._command_of, self._environment, self._tell_end)
        if run is not None:
            self._running[schedule.name] = run
            again = f", run {len(run.night.attempts)}" if len(run.night.attempts) > 1 else ""
            self._say(f"{run.name}: begins{again}, process {run.child.pid}, to {run.night.output}")
            # At once: if this daemon is killed, the next one waits only for a process that the store knows.
            self._renew(run)

    def _tend(self) -> bool:
        """Take note of nights that have ended, and keep the others held; whether one has ended."""
        has_ended = False
        for name, run in list(self._running.items()):
            exit_code = run.child.poll()
            if time.monotonic() < (self._away_until if exit_code is not None else run.renew_at):
                continue
            if exit_code is None:
                self._renew(run)
                continue
            try:
                is_stopped = self._stop_signal() is not None
                night = run.end(exit_code, self._now(), is_stopped=is_stopped)
            except SpecbatchError as error:
                self._wait_for_store(name, error)
                continue
            if night is not None:
                self._is_interrupted |= is_stopped and night.state == "resumable"
                self._tell_end(night)
            del self._running[name]
            has_ended = True
        return has_ended

    def _renew(self, run: NightRun) -> None:
        try:
            if not run.renew(self._renew_seconds):
                self._say(f"{run.name}: another daemon has taken it; stopping this run")
        except SpecbatchError as error:
            self._wait_for_store(run.schedule.name, error)

    def _wait_for_store(self, name: str, error: SpecbatchError) -> None:
        """The store is away for a while; the night goes on, and its end is stored when it is back."""
        self._say_once(name, f"{name}: {error}; trying again")
        self._away_until = time.monotonic() + AWAY_SECONDS

    def _tell_end(self, night: Night) -> None:
        self._has_failed |= night.state == "failed"
        after = f", {night.reason}" if night.reason else ""
        again = f"; again at {night.retry_at}" if night.retry_at else ""
        self._say(f"{night.schedule} {night.planned}: {night.state}{after}{again}, {night.output}")

    # ---- waiting -------------------------------------------------------------------------------------------------

    def _pass_on(self, number: signal.Signals, count: int) -> None:
        """Pass one signal on of those that have come; a night has each of them once.

        Two in a row would be one to a process that has not looked in between.
        """
        if self._num_passed < count:
            self._num_passed += 1
            for run in self._running.values():
                self._say(f"{run.name}: passing {number.name} on")
                run.child.stop(number)

    def _wait_seconds(self, steps: Sequence[Step]) -> float:
        """Until the next look: less where a night comes sooner."""
        if any(isinstance(step, Begin) for step in steps):
            return 0.0
        now = self._now()
        moments = [step.until for step in steps if isinstance(step, Hold) and step.until is not None]
        coming = (next_time(schedule.cron, schedule.zone, now) for schedule in self._known)
        moments += [planned for planned in coming if planned is not None]
        soonest = min(((moment - now) / timedelta(seconds=1) for moment in moments), default=self._look_seconds)
        return max(min(soonest, self._look_seconds), self._poll_seconds)

    def _say_once(self, name: str, line: str) -> None:
        if self._said.get(name) != line:
            self._said[name] = line
            self._say(line)


_REASONS = {
    "overlap": "its time came while another night ran",
    "missed": "nobody saw its time",
}


def _held_line(step: Hold) -> str:
    night = step.night
    if step.until is not None:
        return f"{night.schedule} {night.planned}: will be tried again at {stamp(step.until)}"
    where = "is watched for a sign of life" if step.is_watching else "runs it"
    holder = night.holder
    who = f"process {holder.child_pid or holder.pid} on {holder.host}" if holder is not None else "another daemon"
    return f"{night.schedule} {night.planned}: {who} {where}"


def _goes_on(step: Step) -> bool:
    """Whether a look that ended so is worth another one at once."""
    return isinstance(step, Begin) or (isinstance(step, Hold) and step.is_watching)
