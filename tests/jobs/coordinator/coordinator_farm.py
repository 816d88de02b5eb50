"""Workers made of nothing, for tests of the coordinator: they do what they are told and die of given rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection

from specbatch.jobs.coordinator.coordinator import Coordinator
from specbatch.jobs.coordinator.events import (
    Assign,
    Beat,
    Begin,
    Command,
    DrainWorker,
    DropShard,
    EndInterrupted,
    Event,
    FailJob,
    FinishJob,
    KillWorker,
    PartDone,
    ProbePassed,
    StartWorker,
    Tick,
    WorkerDied,
    WorkerDrained,
    WorkerJoined,
)
from specbatch.schemas.messages import Lease, PartReceipt, ProbeDone
from specbatch.schemas.plan import Segment, Shard
from specbatch.schemas.stats import PartStats


def make_shards(count: int, rows: int = 10) -> tuple[Shard, ...]:
    return tuple(
        Shard(index, (Segment("a", 1, "f", index * rows, (index + 1) * rows, index * rows),)) for index in range(count)
    )


def row_ids(lease: Lease) -> list[int]:
    """The rows that a worker with this lease decodes."""
    rows = [s.first_row_id + offset for s in lease.shard.segments for offset in range(s.num_rows)]
    start, stop = lease.probe or (lease.shard.row_start, lease.shard.row_stop)
    return [row for row in rows if start <= row < stop and row not in lease.poison]


def done(worker: int, shard: int, rows: int = 10, errors: int = 0) -> PartDone:
    stats = PartStats(num_rows=rows, num_results=rows, num_ok=rows - errors)
    return PartDone(worker, PartReceipt(shard, f"part-{shard}", rows, 100, "0" * 64, "token", True, stats))


def receipt_of(worker: int, lease: Lease) -> PartDone:
    return done(worker, lease.shard.index, lease.shard.num_rows, len(lease.poison))


def passed(worker: int, lease: Lease) -> ProbePassed:
    assert lease.probe is not None
    return ProbePassed(worker, ProbeDone(lease.shard.index, *lease.probe))


class Farm:
    """Obeys a coordinator, and checks what must hold whatever happens.

    Args:
        kills: row ids that kill any worker that decodes them.
    """

    def __init__(self, coordinator: Coordinator, kills: Collection[int] = ()) -> None:
        self.coordinator = coordinator
        self.kills = frozenset(kills)
        self.now = 0.0
        self.starting: list[int] = []
        self.held: dict[int, list[Lease]] = {}
        self.draining: set[int] = set()
        self.doomed: list[int] = []
        self.finished: set[int] = set()
        self.leases: list[Lease] = []
        self.ghosts: list[Event] = []
        self.end: FinishJob | EndInterrupted | FailJob | None = None
        self.rows_counted = 0

    def feed(self, event: Event) -> list[Command]:
        """Tell the coordinator and obey it."""
        commands = self.coordinator.handle(event)
        for command in commands:
            assert self.end is None, f"{command} after {self.end}"
            self._obey(command)
        return commands

    def _obey(self, command: Command) -> None:
        match command:
            case StartWorker(worker):
                assert worker not in self.held, "a number used twice"
                assert worker not in self.starting, "a number used twice"
                self.starting.append(worker)
            case Assign(worker, lease):
                self._take(worker, lease)
            case DropShard(worker, shard):
                assert shard in self.finished, "dropped, and nobody else has done it"
                self.held[worker] = [lease for lease in self.held[worker] if lease.shard.index != shard]
            case DrainWorker(worker):
                assert worker in self.held
                self.draining.add(worker)
            case KillWorker(worker):
                assert worker in self.held or worker in self.starting, "killed, though it is gone"
                assert worker not in self.doomed, "killed twice"
                self.doomed.append(worker)
            case FinishJob() | EndInterrupted() | FailJob():
                self.end = command

    def _take(self, worker: int, lease: Lease) -> None:
        shard = lease.shard.index
        assert worker in self.held, "given to a worker that is not there"
        assert worker not in self.draining, "given to a worker that shall take nothing more"
        assert worker not in self.doomed, "given to a worker that shall die"
        assert shard not in self.finished, "given out though its part is there"
        holders = [number for number, leases in self.held.items() if shard in [held.shard.index for held in leases]]
        assert worker not in holders, "given twice to the same worker"
        assert len(holders) <= 1, "a third holder"
        if lease.probe is not None:
            assert not self.held[worker], "a probe beside something"
            assert not holders, "a probe of a shard that somebody decodes"
        assert all(held.probe is None for held in self.held[worker]), "something beside a probe"
        self.held[worker].append(lease)
        self.leases.append(lease)

    # ---- what workers can do ---------------------------------------------------------------------------------------

    def join(self, worker: int, place: str = "") -> list[Command]:
        self.starting.remove(worker)
        self.held[worker] = []
        return self.feed(WorkerJoined(worker, place))

    def work(self, worker: int, position: int = 0) -> list[Command]:
        """Decode one lease; all that the worker has dies with it if the lease has a row that kills."""
        lease = self.held[worker][position]
        if self.kills.intersection(row_ids(lease)):
            return self.die(worker)
        self.held[worker].remove(lease)
        if lease.probe is not None:
            return self.feed(passed(worker, lease))
        self.finish(lease)
        return self.feed(receipt_of(worker, lease))

    def finish(self, lease: Lease) -> None:
        """A part comes into being, if it is the first."""
        if lease.shard.index not in self.finished:
            self.finished.add(lease.shard.index)
            self.rows_counted += lease.shard.num_rows

    def die(self, worker: int, **how: object) -> list[Command]:
        self._bury(worker)
        return self.feed(WorkerDied(worker, "killed", **how))  # type: ignore[arg-type]

    def _bury(self, worker: int) -> None:
        if worker in self.starting:
            self.starting.remove(worker)
        for lease in self.held.pop(worker, []):
            # It may have written its part and not lived to tell, or write it later: a zombie.
            if lease.probe is None and not self.kills.intersection(row_ids(lease)):
                self.ghosts.append(receipt_of(worker, lease))
            if lease.probe is not None:
                self.ghosts.append(passed(worker, lease))
        self.draining.discard(worker)
        if worker in self.doomed:
            self.doomed.remove(worker)

    def drained(self, worker: int) -> list[Command]:
        self.held[worker] = []
        return self.feed(WorkerDrained(worker))

    def tick(self, seconds: float = 1.0, silent: Collection[int] = ()) -> list[Command]:
        """Time passes, and all workers that are not silent show that they live."""
        commands: list[Command] = []
        for _ in range(round(seconds)):
            self.now += 1.0
            commands += self.feed(Tick(self.now))
            for worker in sorted(self.held):
                if worker not in silent and worker in self.held:
                    commands += self.feed(Beat(worker, 0.0, 0.1))
        return commands

    def run(self, choose: Callable[[int], int] = lambda count: 0, most_events: int = 100_000) -> None:
        """Work on, without further faults, to the end. ``choose`` picks among so many things that could be next."""
        for _ in range(most_events):
            if self.end is not None:
                return
            moves = self.moves()
            if moves:
                moves[choose(len(moves))]()
            else:
                self.tick()
        raise AssertionError("the job does not come to an end")

    def moves(self) -> list[Callable[[], object]]:
        """All that may happen next where nothing goes wrong but rows that kill."""
        moves: list[Callable[[], object]] = []
        moves += [lambda worker=worker: self.die(worker, cause="hung") for worker in self.doomed]
        moves += [lambda worker=worker: self.join(worker) for worker in self.starting if worker not in self.doomed]
        for worker, leases in self.held.items():
            if worker in self.doomed:
                continue
            moves += [lambda w=worker, p=position: self.work(w, p) for position in range(len(leases))]
            if worker in self.draining and leases:
                moves.append(lambda worker=worker: self.drained(worker))
        return moves


def run_begun(coordinator: Coordinator, kills: Collection[int] = (), seed: int | None = None) -> Farm:
    """A farm that has run to the end; with a seed, in a random order."""
    farm = Farm(coordinator, kills)
    farm.feed(Begin())
    farm.run(random.Random(seed).randrange if seed is not None else lambda count: 0)
    return farm
