"""The coordinator's workers: their phases, what each holds, their signs of life. Pure.

A worker is *starting*, *ready*, *draining* (finishes what it has), *parked* (sits at a quarantined place, so that the
next one goes elsewhere) or *ending* (was told to die).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from specbatch.jobs.coordinator.events import Command, KillWorker, Say
from specbatch.jobs.coordinator.policy import hung_after_seconds, suspect_after_seconds


class Phase(Enum):
    """What a worker is doing."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    PARKED = "quarantined"
    ENDING = "ending"


WORKING = (Phase.STARTING, Phase.READY)
LISTENING = (Phase.READY, Phase.DRAINING)


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that a worker has. ``since_seconds``: awake time when it got it; ``probe``: as in the lease."""

    since_seconds: float
    probe: tuple[int, int] | None = None


@dataclass(slots=True)
class Worker:
    """One process.

    Attributes:
        is_placed: its process runs; until then it waits for a place.
        has_joined: it has loaded its models.
        place: host and device, once it has joined.
        shards: what it holds, in the order of the leases.
        is_exclusive: it holds a shard that nothing may be beside.
        is_suspect: no sign of life for a while.
        leaves_at_seconds: awake time at which its machine will be taken away; None if nothing is known of that.
        alive_seconds: awake time of its start, then of the last turn of its decode loop; no news takes it back.
    """

    alive_seconds: float
    phase: Phase = Phase.STARTING
    is_placed: bool = False
    has_joined: bool = False
    place: str = ""
    shards: dict[int, Held] = field(default_factory=dict)
    is_exclusive: bool = False
    is_suspect: bool = False
    leaves_at_seconds: float | None = None
    median_step_seconds: float = 0.0

    @property
    def is_leaving(self) -> bool:
        """Whether its machine will be taken away."""
        return self.leaves_at_seconds is not None

    @property
    def is_probing(self) -> bool:
        """Whether it has a probe, and so nothing else."""
        return any(held.probe is not None for held in self.shards.values())


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as the progress view shows it; ``state`` is its phase, or ``suspect``."""

    worker: int
    state: str
    place: str
    shards: tuple[int, ...]


class Fleet:
    """All workers that have been started and are not known to be gone.

    Args:
        leases_per_worker: most shards that one worker holds at a time.
        start_timeout_seconds: most time that loading may take.
    """

    def __init__(self, leases_per_worker: int, start_timeout_seconds: float) -> None:
        self._leases_per_worker = leases_per_worker
        self._start_timeout_seconds = start_timeout_seconds
        self._workers: dict[int, Worker] = {}
        self._phases: Counter[Phase] = Counter()
        self._num_started = 0
        self.num_exclusive = 0
        self.open: set[int] = set()

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[tuple[int, Worker]]:
        return iter(sorted(self._workers.items()))

    def get(self, number: int) -> Worker | None:
        """The worker of this number, unless it is gone."""
        return self._workers.get(number)

    def load(self, number: int) -> int:
        """How many shards a worker holds."""
        return len(self._workers[number].shards)

    def has_alternative(self, number: int) -> bool:
        """Whether some other worker takes shards, now or when it has room again."""
        return any(
            worker.phase is Phase.READY and not worker.is_suspect and other != number
            for other, worker in self._workers.items()
        )

    def held(self, number: int, shard: int) -> Held | None:
        """A worker's lease of a shard; None if it has none, or is gone."""
        worker = self._workers.get(number)
        return worker.shards.get(shard) if worker is not None else None

    def count(self, *phases: Phase) -> int:
        """Workers in these phases."""
        return sum(self._phases[phase] for phase in phases)

    def num_unplaced(self) -> int:
        """Starting workers whose process does not run yet."""
        return sum(worker.phase is Phase.STARTING and not worker.is_placed for worker in self._workers.values())

    def views(self) -> tuple[WorkerView, ...]:
        """All workers, by number."""
        return tuple(
            WorkerView(
                number, "suspect" if worker.is_suspect else worker.phase.value, worker.place, tuple(worker.shards)
            )
            for number, worker in self
        )

    def start(self, awake_seconds: float) -> int:
        """A new worker; returns its number, which no other ever gets."""
        number = self._num_started
        self._num_started += 1
        self._workers[number] = Worker(awake_seconds)
        self._phases[Phase.STARTING] += 1
        return number

    def remove(self, number: int) -> Worker | None:
        """A process is gone. Returns what was known of it, or None if that is no news."""
        worker = self._workers.pop(number, None)
        if worker is not None:
            self._phases[worker.phase] -= 1
            self.num_exclusive -= worker.is_exclusive
            self.open.discard(number)
        return worker

    def place(self, number: int) -> None:
        """A worker's process runs."""
        worker = self._workers.get(number)
        if worker is not None:
            worker.is_placed = True

    def join(self, number: int, place: str, phase: Phase, awake_seconds: float) -> None:
        """A worker has loaded its models."""
        worker = self._workers[number]
        worker.is_placed = worker.has_joined = True
        worker.place = place
        worker.alive_seconds = awake_seconds
        self.set_phase(number, phase)

    def set_phase(self, number: int, phase: Phase) -> None:
        """A worker goes over to another phase; suspicion ends with the one in which it arose."""
        worker = self._workers[number]
        self._phases[worker.phase] -= 1
        self._phases[phase] += 1
        worker.phase = phase
        worker.is_suspect = False
        self._judge_room(number, worker)

    def set_depth(self, leases_per_worker: int) -> None:
        """From now on a worker holds at most so many shards; who holds more keeps them."""
        if leases_per_worker == self._leases_per_worker:
            return
        self._leases_per_worker = leases_per_worker
        for number, worker in self._workers.items():
            self._judge_room(number, worker)

    def hold(self, number: int, shard: int, held: Held, *, exclusive: bool) -> None:
        """A worker gets a shard."""
        worker = self._workers[number]
        worker.shards[shard] = held
        if exclusive:
            worker.is_exclusive = True
            self.num_exclusive += 1
        self._judge_room(number, worker)

    def release(self, number: int, shard: int) -> None:
        """A worker has a shard no more."""
        worker = self._workers[number]
        del worker.shards[shard]
        if worker.is_exclusive:
            worker.is_exclusive = False
            self.num_exclusive -= 1
        self._judge_room(number, worker)

    def hear(self, number: int, alive_seconds: float, median_step_seconds: float, awake_seconds: float) -> bool:
        """A worker's decode loop came round at ``alive_seconds``. True if that clears it of suspicion."""
        worker = self._workers.get(number)
        if worker is None:
            return False
        # After a sleep of everybody at once (a paused container) the step that was under way is old by the whole sleep.
        worker.alive_seconds = max(worker.alive_seconds, alive_seconds)
        worker.median_step_seconds = median_step_seconds
        silence = awake_seconds - worker.alive_seconds
        if not worker.is_suspect or silence > suspect_after_seconds(median_step_seconds):
            return False
        worker.is_suspect = False
        self._judge_room(number, worker)
        return True

    def watch(self, awake_seconds: float) -> list[Command]:
        """Suspect who has been silent for long, kill who has been for too long."""
        commands: list[Command] = []
        for number, worker in self:
            silence = awake_seconds - worker.alive_seconds
            if worker.phase is Phase.STARTING and silence > self._start_timeout_seconds:
                self.set_phase(number, Phase.ENDING)
                commands.append(KillWorker(number, f"has not loaded its models within {silence:.0f} s"))
            if worker.phase not in LISTENING:
                continue
            if worker.leaves_at_seconds is not None and awake_seconds > worker.leaves_at_seconds:
                self.set_phase(number, Phase.ENDING)
                commands.append(KillWorker(number, "the time it had left has run out"))
            elif silence > hung_after_seconds(worker.median_step_seconds):
                self.set_phase(number, Phase.ENDING)
                commands.append(KillWorker(number, f"no sign of life for {silence:.0f} s"))
            elif not worker.is_suspect and silence > suspect_after_seconds(worker.median_step_seconds):
                worker.is_suspect = True
                self._judge_room(number, worker)
                commands.append(
                    Say(f"worker {number} has given no sign of life for {silence:.0f} s; it gets no new shards")
                )
        return commands

    def _judge_room(self, number: int, worker: Worker) -> None:
        has_room = len(worker.shards) < self._leases_per_worker and not worker.is_exclusive
        if has_room and worker.phase is Phase.READY and not worker.is_suspect:
            self.open.add(number)
        else:
            self.open.discard(number)
