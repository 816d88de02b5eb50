"""Objects of a simulated service, and the way to them, on which everything can go wrong."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NoReturn, Protocol, TypeVar

from .scheduler import Scheduler

Answer = TypeVar("Answer")

TIMEOUT_SECONDS = 10.0
STALL_SECONDS = (20.0, 250.0)
LATE_SECONDS = (0.5, 250.0)
LATENCY_SECONDS = (0.01, 0.1, 0.5, 2.0)


class Fault(Enum):
    """What can happen at one storage operation (numbers: rows of the fault matrix)."""

    DIE_BEFORE = "dies before the effect"  # 2, 22
    DIE_AFTER = "dies after the effect"  # 3, 22, 23
    STALL_BEFORE = "stops, and wakes before the effect"  # 4, 15, 43
    STALL_AFTER = "stops, and wakes after the effect"  # 4, 43
    LOSE_REQUEST = "request lost"  # 27
    LOSE_REPLY = "reply lost"  # 28
    LATE = "applied late"  # 29
    REPEAT = "applied again later"
    RETRY = "reply lost and request repeated below the client"  # 28
    REFUSE = "503"  # 33
    ERROR = "500 without effect"  # 34
    ERROR_AFTER = "500 after the effect"
    CONFLICT = "409 without effect"  # 30
    CONFLICT_AFTER = "409 after the effect"
    CUT = "body cut short"  # 39
    OTHER_DIES = "another process dies"  # 1, 13, 22
    OTHER_STALLS = "another process stops for long"  # 4, 5
    OTHER_SUSPECTED = "a living worker is taken for dead"  # 15, 18, 44
    OTHER_PREEMPTED = "a worker is to be preempted"  # 20
    INTERRUPT = "a coordinator is interrupted"  # 47


PROCESS_FAULTS = frozenset(
    {
        Fault.DIE_BEFORE, Fault.DIE_AFTER, Fault.STALL_BEFORE, Fault.STALL_AFTER, Fault.OTHER_DIES,
        Fault.OTHER_STALLS, Fault.OTHER_SUSPECTED, Fault.OTHER_PREEMPTED, Fault.INTERRUPT,
    }
)  # fmt: skip
STORE_FAULTS = PROCESS_FAULTS | {Fault.LOSE_REQUEST, Fault.LOSE_REPLY, Fault.LATE}
"""Where the store is simulated as a whole: it may fail without an answer, but what it answers is so."""
S3_FAULTS = frozenset(Fault)
_OF_WRITES = frozenset(
    {Fault.LOSE_REPLY, Fault.LATE, Fault.REPEAT, Fault.RETRY, Fault.ERROR_AFTER, Fault.CONFLICT, Fault.CONFLICT_AFTER}
)
_OF_READS = frozenset({Fault.CUT})


class NoAnswer(Exception):  # noqa: N818 - what a client sees of a lost message
    """The client waited in vain."""


class ErrorAnswer(Exception):  # noqa: N818
    """The service answered with an error."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Stored:
    """One object; ``version`` is the number of the change that made it."""

    data: bytes
    version: int
    metadata: Mapping[str, str] = field(default_factory=dict)


class Objects:
    """The service's truth. Every method is one atomic effect.

    Args:
        on_change: told key, old and new object after every change.
    """

    def __init__(self, on_change: Callable[[str, Stored | None, Stored | None], None]) -> None:
        self.all: dict[str, Stored] = {}
        self._on_change = on_change
        self._num_changes = 0

    def put(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> Stored:
        """Whatever was there before."""
        self._num_changes += 1
        old, new = self.all.get(key), Stored(data, self._num_changes, metadata or {})
        self.all[key] = new
        self._on_change(key, old, new)
        return new

    def create(self, key: str, data: bytes) -> Stored | None:
        """None where there is an object already."""
        return None if key in self.all else self.put(key, data)

    def swap(self, key: str, data: bytes, expected: int) -> Stored | None:
        """None where the object is not of that version."""
        current = self.all.get(key)
        return self.put(key, data) if current is not None and current.version == expected else None

    def delete(self, key: str) -> None:
        old = self.all.pop(key, None)
        if old is not None:
            self._on_change(key, old, None)


class FaultSource(Protocol):
    """Says what goes wrong at the next operation."""

    def draw(self, mutates: bool) -> Fault | None: ...


class RandomFaults:
    """So many faults at random operations; when they are used up, nothing goes wrong any more."""

    def __init__(self, generator: random.Random, kinds: Collection[Fault], rate: float, budget: int) -> None:
        self._generator = generator
        self._of_writes = sorted((kind for kind in kinds if kind not in _OF_READS), key=lambda kind: kind.name)
        self._of_reads = sorted((kind for kind in kinds if kind not in _OF_WRITES), key=lambda kind: kind.name)
        self._rate = rate
        self._budget = budget

    def draw(self, mutates: bool) -> Fault | None:
        # Writes are where harm is done: reads are disturbed less often.
        rate = self._rate if mutates else self._rate / 3
        if self._budget == 0 or self._generator.random() >= rate:
            return None
        self._budget -= 1
        return self._generator.choice(self._of_writes if mutates else self._of_reads)


class PlannedCrashes:
    """Crashes at given writes: (n, side) is the n-th write since the crash before it, counted from 1.

    Attributes:
        num_writes: since the last crash.
    """

    def __init__(self, crashes: Sequence[tuple[int, Fault]]) -> None:
        self._crashes = list(crashes)
        self.num_writes = 0

    @property
    def num_crashes_left(self) -> int:
        """Planned ones whose write never came."""
        return len(self._crashes)

    def draw(self, mutates: bool) -> Fault | None:
        if not mutates:
            return None
        self.num_writes += 1
        if self._crashes and self._crashes[0][0] == self.num_writes:
            self.num_writes = 0
            return self._crashes.pop(0)[1]
        return None


class Network:
    """Carries operations of actors to the service: a scheduling point each, and each may go wrong.

    Args:
        disturb: does what a fault does to other actors.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        generator: random.Random,
        faults: FaultSource,
        disturb: Callable[[Fault], None],
    ) -> None:
        self._scheduler = scheduler
        self._generator = generator
        self._faults = faults
        self._disturb = disturb
        self.faults_met: Counter[Fault] = Counter()

    def perform(self, label: str, effect: Callable[[], Answer], *, mutates: bool) -> Answer:
        """Have an effect on the service and return its answer.

        Raises:
            NoAnswer: it may have happened, or may happen later.
            ErrorAnswer: an error of the service, not an answer of ``effect``.
        """
        scheduler, generator = self._scheduler, self._generator
        scheduler.sleep(generator.choice(LATENCY_SECONDS) * generator.random())
        fault = self._faults.draw(mutates)
        scheduler.note(label if fault is None else f"{label} - {fault.value}")
        if fault is None:
            return effect()
        self.faults_met[fault] += 1
        match fault:
            case Fault.DIE_BEFORE:
                scheduler.die()
            case Fault.DIE_AFTER:
                effect()
                scheduler.die()
            case Fault.STALL_BEFORE:
                self._stop()
                scheduler.note(f"{label} - after the stop")
                return effect()
            case Fault.STALL_AFTER:
                answer = effect()
                self._stop()
                return answer
            case Fault.LOSE_REQUEST:
                self._wait_in_vain()
            case Fault.LOSE_REPLY:
                effect()
                self._wait_in_vain()
            case Fault.LATE:
                self._apply_later(label, effect)
                self._wait_in_vain()
            case Fault.REPEAT:
                self._apply_later(label, effect)
                return effect()
            case Fault.RETRY:
                effect()
                scheduler.sleep(generator.random())
                return effect()
            case Fault.REFUSE:
                raise ErrorAnswer(503, "SlowDown")
            case Fault.ERROR:
                raise ErrorAnswer(500, "InternalError")
            case Fault.ERROR_AFTER:
                effect()
                raise ErrorAnswer(500, "InternalError")
            case Fault.CONFLICT:
                raise ErrorAnswer(409, "ConditionalRequestConflict")
            case Fault.CONFLICT_AFTER:
                effect()
                raise ErrorAnswer(409, "ConditionalRequestConflict")
            case Fault.CUT:
                raise ErrorAnswer(200, "cut")
            case _:
                self._disturb(fault)
                return effect()

    def _stop(self) -> None:
        actor = self._scheduler.current
        assert actor is not None
        self._scheduler.freeze(actor, self._generator.uniform(*STALL_SECONDS))
        self._scheduler.sleep(0.0)

    def _wait_in_vain(self) -> NoReturn:
        self._scheduler.sleep(TIMEOUT_SECONDS)
        raise NoAnswer

    def _apply_later(self, label: str, effect: Callable[[], object]) -> None:
        def apply() -> None:
            self._scheduler.note(f"{label} - now applied")
            effect()

        self._scheduler.call_later(self._generator.uniform(*LATE_SECONDS), apply)
