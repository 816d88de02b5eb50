"""Schedules and nights in a store: created once, changed by compare-and-swap.

```
schedules/<name>.json             one schedule
nights/<name>/<planned>.json      one night; the planned time in UTC
logs/<name>/<planned>-<run>.log   what a run of a night printed
```

Of two daemons that see a night one creates it; of two that want to run it one swaps itself in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from specbatch.jobs.schedules.nights import ENDED, Night, decode_night, id_time, night_id
from specbatch.jobs.schedules.schedule import Schedule, decode_schedule
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.suggest import did_you_mean
from specbatch.storage.store import NotFound, Store, open_store

NUM_RAN = 3
"""So many nights that ran to their end are read back to: nights run one after the other, so all before have ended."""


@dataclass(frozen=True, slots=True)
class Found:
    """Something stored, with the version that a swap needs."""

    night: Night
    version: str


@dataclass(slots=True)
class Book:
    """The schedules of one store.

    Attributes:
        store: where they lie.
    """

    store: Store
    _ended: dict[str, Night] = field(default_factory=dict)

    def add(self, schedule: Schedule, *, is_replaced: bool = False) -> bool:
        """Store a schedule; False where the same one is there already.

        Raises:
            SpecbatchError: JOB_CONFIG, another one of this name is in use and is not to be replaced.
        """
        key = _schedule_key(schedule.name)
        try:
            data, version = self.store.read_versioned(key)
        except NotFound:
            if self.store.swap(key, _encoded(schedule), None) is None:
                raise _changed_meanwhile(schedule.name) from None
            return True
        former = decode_schedule(data, key)
        if former.removed_at is None and not is_replaced:
            ignored = {"since": "", "revision": 0}
            if former.model_copy(update=ignored) == schedule.model_copy(update=ignored):
                return False
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG,
                f"there is another schedule {schedule.name!r} in {self.store.uri}; change it with --replace, or give "
                "this one another --name",
            )
        self._swap_schedule(schedule.model_copy(update={"revision": former.revision + 1}), version)
        return True

    def remove(self, name: str, at: str) -> None:
        """Take a schedule out of use; its nights stay.

        Raises:
            SpecbatchError: JOB_CONFIG, there is none of this name.
        """
        schedule = self.get(name)
        _, version = self.store.read_versioned(_schedule_key(name))
        self._swap_schedule(schedule.model_copy(update={"removed_at": at, "revision": schedule.revision + 1}), version)

    def schedules(self) -> list[Schedule]:
        """All schedules in use, by name."""
        names = [key.removeprefix("schedules/").removesuffix(".json") for key in self.store.list("schedules")]
        found = [self._find(name) for name in names]
        return [schedule for schedule in found if schedule is not None]

    def get(self, name: str) -> Schedule:
        """The schedule of a name.

        Raises:
            SpecbatchError: JOB_CONFIG, there is none.
        """
        schedule = self._find(name)
        if schedule is None:
            known = [each.name for each in self.schedules()]
            hint = did_you_mean(name, known, f"there is {', '.join(known)}" if known else "there is none")
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"no schedule {name[:80]!r} in {self.store.uri}; {hint}")
        return schedule

    def night_times(self, name: str) -> list[datetime]:
        """The planned times of all stored nights of a schedule, ascending."""
        prefix = f"nights/{name}/"
        names = (key.removeprefix(prefix).removesuffix(".json") for key in self.store.list(prefix))
        return sorted(time for each in names if (time := id_time(each)) is not None)

    def nights_back(self, name: str, times: list[datetime]) -> Iterator[Night]:
        """The nights of these times, the latest first, read as they are asked for."""
        for planned in reversed(times):
            found = self.find_night(name, planned)
            if found is not None:
                yield found.night

    def recent_nights(self, name: str, times: list[datetime]) -> list[Night]:
        """All nights that have not ended, and the last that ran; ascending.

        Args:
            times: what ``night_times`` gave.
        """
        nights, num_ran = [], 0
        for planned in reversed(times):
            key = _night_key(name, planned)
            night = self._ended.get(key)
            if night is None:
                found = self.find_night(name, planned)
                if found is None:
                    continue
                night = found.night
                if night.state in ENDED:
                    self._ended[key] = night
            nights.append(night)
            num_ran += night.state in ENDED and bool(night.attempts)
            if num_ran == NUM_RAN:
                break
        return nights[::-1]

    def find_night(self, name: str, planned: datetime) -> Found | None:
        """A stored night with its version; None where there is none."""
        key = _night_key(name, planned)
        try:
            data, version = self.store.read_versioned(key)
        except NotFound:
            return None
        return Found(decode_night(data, f"{key} in {self.store.uri}"), version)

    def create_night(self, night: Night) -> bool:
        """Store a night that was seen; False where another daemon has."""
        return self.store.create(_night_key(night.schedule, night.planned_time), _encoded(night))

    def swap_night(self, night: Night, version: str) -> str | None:
        """Store a changed night; the new version, or None where another daemon has changed it meanwhile."""
        return self.store.swap(_night_key(night.schedule, night.planned_time), _encoded(night), version)

    def write_log(self, key: str, data: bytes) -> None:
        """Store what a run has printed so far."""
        self.store.replace(key, data)

    def _find(self, name: str) -> Schedule | None:
        try:
            schedule = decode_schedule(
                self.store.read(_schedule_key(name)), f"{_schedule_key(name)} in {self.store.uri}"
            )
        except NotFound:
            return None
        return schedule if schedule.removed_at is None else None

    def _swap_schedule(self, schedule: Schedule, version: str) -> None:
        if self.store.swap(_schedule_key(schedule.name), _encoded(schedule), version) is None:
            raise _changed_meanwhile(schedule.name)


def open_book(uri: str, *, is_written: bool = False) -> Book:
    """The schedules of a store: a local folder or ``s3://bucket/prefix``.

    Args:
        is_written: refuse a store that does not create and swap as it says: nights would be run twice.

    Raises:
        SpecbatchError: JOB_URI_INVALID; STORE_NOT_ATOMIC and what else the probe of a store raises.
    """
    store = open_store(uri)
    if is_written and not store.is_local:
        from specbatch.storage.probe import ensure_fit

        ensure_fit(store)
    return Book(store)


def log_key(name: str, planned: datetime, number: int) -> str:
    """Where the log of a run lies."""
    return f"logs/{name}/{night_id(planned)}-{number}.log"


def _schedule_key(name: str) -> str:
    return f"schedules/{name}.json"


def _night_key(name: str, planned: datetime) -> str:
    return f"nights/{name}/{night_id(planned)}.json"


def _encoded(document: Schedule | Night) -> bytes:
    return document.model_dump_json(indent=2).encode() + b"\n"


def _changed_meanwhile(name: str) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_CONFIG, f"schedule {name!r} was changed by somebody else meanwhile; look, and try again"
    )
