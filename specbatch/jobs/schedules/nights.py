"""One night of a schedule as it is stored, and what changes it. Pure.

A night is known by its planned time in UTC, to the minute. It is ``waiting`` (seen, not begun), ``running``,
``resumable`` (its last run ended so that another may go on), or at its end: ``complete``, ``failed``, ``skipped``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError

MAX_RETRY_SECONDS = 1800.0

NightState = Literal["waiting", "running", "resumable", "complete", "failed", "skipped"]
ACTIVE: frozenset[NightState] = frozenset({"running", "resumable"})
ENDED: frozenset[NightState] = frozenset({"complete", "failed", "skipped"})

RESUMABLE_EXITS = frozenset(
    {
        ExitCode.NO_CAPACITY,
        ExitCode.HELD,  # often by an earlier run of this night, whose daemon is gone
        ExitCode.INFRASTRUCTURE,
        ExitCode.INTERRUPTED,
        ExitCode.TERMINATED,
    }
)
_ID = "%Y%m%dT%H%MZ"


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Attempt(_Stored):
    """One run of a night.

    Attributes:
        ended_at, exit_code: None while it runs, and where its daemon did not live to see the end.
        is_stopped: the daemon itself was asked to end; such a run is not counted as a try.
        log: key in the store of what the run printed.
    """

    number: int
    started_at: str
    ended_at: str | None = None
    exit_code: int | None = None
    is_stopped: bool = False
    log: str


class Holder(_Stored):
    """The daemon that runs a night, and its child; with their start times the numbers name processes for good.

    Attributes:
        renewals: goes up while the daemon lives.
    """

    host: str
    boot_id: str
    pid: int
    process_started: str
    token: str
    renewals: int = 0
    child_pid: int | None = None
    child_started: str | None = None


class Night(_Stored):
    """What is stored of a night.

    Attributes:
        planned: local time of the schedule, with its offset: the logical date.
        reason: why it was skipped, waits or failed; empty where the state says all.
        job: the job file as it was when the night was begun, with every placeholder filled in; None before.
        retry_at: when a resumable night goes on; None for at once.
        revision: goes up with every change.
    """

    format: Literal["specbatch/night/1"] = "specbatch/night/1"
    schedule: str
    planned: str
    state: NightState
    reason: str = ""
    seen_at: str
    output: str
    job: dict[str, Any] | None = None
    attempts: tuple[Attempt, ...] = ()
    holder: Holder | None = None
    retry_at: str | None = None
    revision: int = 0

    @property
    def planned_time(self) -> datetime:
        return datetime.fromisoformat(self.planned)

    @property
    def id(self) -> str:
        return night_id(self.planned_time)

    @property
    def exit_code(self) -> int | None:
        return self.attempts[-1].exit_code if self.attempts else None

    @property
    def num_tries(self) -> int:
        """Runs that count: not those that ended because their daemon was asked to."""
        return sum(not attempt.is_stopped for attempt in self.attempts)

    def covers(self, moment: datetime) -> bool:
        """Whether it ran at a moment, or was in the midst of its runs then."""
        if not self.attempts or datetime.fromisoformat(self.attempts[0].started_at) > moment:
            return False
        if self.state in ACTIVE:
            return True
        ended = self.attempts[-1].ended_at
        return ended is not None and moment < datetime.fromisoformat(ended)


def night_id(planned: datetime) -> str:
    """The name of a night in keys: sorts by time."""
    return planned.astimezone(UTC).strftime(_ID)


def id_time(name: str) -> datetime | None:
    """The planned time of a night by its name; None where it is no such name."""
    try:
        return datetime.strptime(name, _ID).replace(tzinfo=UTC)
    except ValueError:
        return None


def begun(night: Night, holder: Holder, now: datetime, job: Mapping[str, Any], log: str) -> Night:
    """A night with one more run, of this holder.

    Args:
        job: for its first run; later ones keep what it was.
    """
    attempt = Attempt(number=len(night.attempts) + 1, started_at=stamp(now), log=log)
    return _changed(
        night,
        state="running",
        reason="",
        retry_at=None,
        holder=holder,
        job=night.job if night.job is not None else dict(job),
        attempts=(*night.attempts, attempt),
    )


def renewed(night: Night, holder: Holder) -> Night:
    """A night whose holder says that it lives."""
    return _changed(night, holder=holder)


def ended(
    night: Night,
    exit_code: int,
    now: datetime,
    *,
    is_stopped: bool,
    tries: int,
    retry_seconds: float,
    held_by: str = "",
) -> Night:
    """A night after a run of it.

    Args:
        exit_code: of the process; negative for the signal that killed it.
        is_stopped: the daemon was asked to end and passed that on.
        held_by: what the run said of another one that holds its output; empty for none.
    """
    code = 128 - exit_code if exit_code < 0 else exit_code
    is_killed = exit_code < 0
    cause = f"exit code {code}: {held_by}" if code == ExitCode.HELD and held_by else f"exit code {code}"
    attempt = night.attempts[-1].model_copy(
        update={"ended_at": stamp(now), "exit_code": code, "is_stopped": is_stopped and code not in (0, 3)}
    )
    over = {"holder": None, "retry_at": None, "attempts": (*night.attempts[:-1], attempt)}
    if code in (ExitCode.COMPLETE, ExitCode.ROW_ERRORS):
        return _changed(night, state="complete", reason="", **over)
    if code not in RESUMABLE_EXITS and not is_killed:
        return _changed(night, state="failed", reason=cause, **over)
    counted = _changed(night, state="resumable", **over)
    if attempt.is_stopped:
        return counted.model_copy(update={"reason": "its daemon was asked to end"})
    if counted.num_tries >= tries:
        reason = f"gave up after {counted.num_tries} tries; the last one ended with {cause}"
        return counted.model_copy(update={"state": "failed", "reason": reason})
    wait_seconds = min(retry_seconds * 2 ** (counted.num_tries - 1), MAX_RETRY_SECONDS)
    retry_at = stamp(now + timedelta(seconds=wait_seconds))
    return counted.model_copy(update={"reason": cause, "retry_at": retry_at})


def given_up(night: Night, reason: str) -> Night:
    """A night that cannot be run."""
    return _changed(night, state="failed", reason=reason, holder=None, retry_at=None)


def stamp(moment: datetime) -> str:
    """A moment as it is stored: UTC, ISO 8601."""
    return moment.astimezone(UTC).isoformat()


def decode_night(data: bytes, where: str) -> Night:
    """A stored night.

    Raises:
        SpecbatchError: JOB_FORMAT, no night of a version that this program reads.
    """
    try:
        return Night.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        what = ".".join(str(key) for key in first["loc"]) or "it"
        raise SpecbatchError(
            ErrorCode.JOB_FORMAT,
            f"{where} cannot be read as a night by this version ({what}: {first['msg']}); "
            "use the version of specbatch that wrote it",
        ) from None


def _changed(night: Night, **values: Any) -> Night:
    return night.model_copy(update={**values, "revision": night.revision + 1})
