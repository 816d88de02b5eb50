"""The processes of a job as actors: what the shells of coordinator and worker do around the product's real code.

The order of steps is that of the product's own shells (``jobs/running/job.py``, ``jobs/running/runner.py``,
``workers/worker.py``), which start processes and threads and so cannot run here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from specbatch.jobs.coordinator.coordinator import Coordinator
from specbatch.jobs.coordinator.events import (
    Assign,
    AttemptFailed,
    Beat,
    Begin,
    Command,
    DrainWorker,
    DropShard,
    EndInterrupted,
    Event,
    FailJob,
    FinishJob,
    Interrupted,
    KillWorker,
    PartDone,
    PreemptionNotice,
    ProbePassed,
    Say,
    StartWorker,
    Tick,
    WorkerDied,
    WorkerDrained,
    WorkerJoined,
)
from specbatch.jobs.output.lease import RENEW_SECONDS, HeldLease, acquire
from specbatch.jobs.output.ledger import Ledger, StoredJob, check_same_job
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import RUN_FORMAT
from specbatch.schemas.messages import Lease, PartReceipt, ProbeDone, ShardFailed
from specbatch.schemas.run import RunRecord
from specbatch.storage.store import NotFound
from specbatch.workers.part_writer import PartWriter

from .jobs import MODELS, SimulatedJob, decode
from .scheduler import Actor

if TYPE_CHECKING:
    from .world import World

TICK_SECONDS = 2.0
RECORD_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class News:
    """From a worker to its coordinator."""

    worker: int
    what: Literal["joined", "part", "probe", "failed", "drained", "died", "notice"]
    value: Any = None


INTERRUPT = "interrupt"


class WorkerProcess:
    """One worker: takes leases in order, decodes, writes parts with the real ``PartWriter``, tells."""

    def __init__(self, world: World, number: int, plan: str, job: SimulatedJob, coordinator: Actor) -> None:
        self._world = world
        self._number = number
        self._plan = plan
        self._job = job
        self._coordinator = coordinator

    def run(self) -> None:
        """Until told to stop."""
        world = self._world
        world.scheduler.sleep(world.uniform(0.5, 4.0))
        writer = PartWriter(world.open_store(), self._plan)
        self._tell("joined")
        leases: deque[Lease] = deque()
        is_draining = False
        while True:
            for message in world.scheduler.receive(0.0 if leases else None):
                match message:
                    case Lease():
                        if not is_draining:
                            leases.append(message)
                    case ("drop", shard):
                        leases = deque(lease for lease in leases if lease.shard.index != shard)
                    case "drain":
                        is_draining = True
                        leases.clear()
                        self._tell("drained")
                    case "stop":
                        return
            if leases:
                self._work(writer, leases.popleft())

    def _work(self, writer: PartWriter, lease: Lease) -> None:
        world = self._world
        rows = range(*(lease.probe or (lease.shard.row_start, lease.shard.row_stop)))
        world.scheduler.sleep(world.uniform(0.3, 4.0))
        if any(row in world.scenario.poison and row not in lease.poison for row in rows):
            world.scheduler.note(f"shard {lease.shard.index}: decodes a row that kills")
            world.die_of_a_row()
        if lease.probe is not None:
            self._tell("probe", ProbeDone(lease.shard.index, *lease.probe))
            return
        try:
            receipt = writer.write(decode(self._job, lease, world.generator.randrange(2)))
        except SpecbatchError as error:
            failure = ShardFailed(lease.shard.index, lease.attempt, error.code.value, error.message)
            self._tell("failed", failure)
            return
        except NotFound:
            if not world.scenario.reuse:
                raise
            world.scheduler.die()  # as the real worker does: the part that it lost against was removed with the prefix
        self._tell("part", receipt)

    def _tell(self, what: Any, value: Any = None) -> None:
        world = self._world
        world.scheduler.post(self._coordinator, News(self._number, what, value), world.uniform(0.0, 1.5))


class CoordinatorProcess:
    """One run of a job: finds or begins it, takes the lease, has decoded what is missing, commits."""

    def __init__(self, world: World, job: SimulatedJob) -> None:
        self._world = world
        self._job = job
        self._workers: dict[int, Actor] = {}
        self._receipts: dict[int, PartReceipt] = {}
        self._ended: FinishJob | EndInterrupted | FailJob | None = None
        self._plan = ""

    @property
    def workers(self) -> tuple[Actor, ...]:
        """Those that it has started and does not take for dead."""
        return tuple(self._workers.values())

    def number_of(self, worker: Actor) -> int | None:
        """The number by which it knows a worker."""
        return next((number for number, actor in self._workers.items() if actor is worker), None)

    def run(self) -> bool:
        """Whether the job is complete now.

        Raises:
            SpecbatchError: why it is not.
        """
        world = self._world
        ledger = Ledger(world.open_store())
        stored = ledger.find_job()
        if stored is None:
            stored = ledger.begin_job(self._job.identity, MODELS, self._job.spec, self._job.shards)
        else:
            check_same_job(stored, self._job.identity, ledger.store.uri)
        if ledger.find_manifest() is not None:
            ledger.seal()
            return True
        if not world.scenario.uses_lease:
            return self._run(ledger, stored, None)
        lease = acquire(ledger.store, sleep=world.scheduler.sleep)
        try:
            return self._run(ledger, stored, lease)
        finally:
            lease.release()

    def _run(self, ledger: Ledger, stored: StoredJob, lease: HeldLease | None) -> bool:
        found = ledger.find_parts(stored)
        record = ledger.begin_run(self._record(0, 0.0))
        if lease is not None:
            lease.renew(record.epoch)
        missing = tuple(shard for shard in stored.shards if shard.index not in found)
        if missing:
            self._decode(ledger, stored, lease, missing, record.epoch)
            if isinstance(self._ended, FailJob):
                raise SpecbatchError(self._ended.code, self._ended.message)
            if isinstance(self._ended, EndInterrupted):
                return False
        receipts = {**found, **self._receipts}
        hashed = [
            receipt if receipt.created and receipt.sha256 else replace(receipt, sha256=ledger.hash_part(receipt.path))
            for receipt in receipts.values()
        ]
        ledger.commit(stored, MODELS, hashed)
        return True

    def _decode(
        self, ledger: Ledger, stored: StoredJob, lease: HeldLease | None, missing: tuple[Any, ...], epoch: int
    ) -> None:
        world = self._world
        self._plan = stored.plan
        coordinator = Coordinator(missing, num_workers=world.scenario.num_workers, leases_per_worker=2)
        started = world.scheduler.now_seconds
        lease_due, record_due = started + RENEW_SECONDS, started + RECORD_SECONDS
        self._feed(coordinator, Begin())
        while self._ended is None:
            mail = world.scheduler.receive(TICK_SECONDS)
            now = world.scheduler.now_seconds
            self._feed(coordinator, Tick(now - started))
            for number, actor in self._workers.items():
                if actor.is_alive and actor.frozen_until <= now:
                    self._feed(coordinator, Beat(number, 0.0, 1.0))
            for message in mail:
                if message == INTERRUPT:
                    self._feed(coordinator, Interrupted())
                else:
                    for event in self._events(ledger, stored, coordinator, message):
                        self._feed(coordinator, event)
            if now >= lease_due and lease is not None:
                lease_due = now + RENEW_SECONDS
                if not lease.renew(epoch):
                    raise SpecbatchError(ErrorCode.JOB_HELD, "another run has taken over")
            if now >= record_due:
                record_due = now + RECORD_SECONDS
                ledger.write_run(self._record(epoch, now - started))
        for actor in self.workers:
            world.scheduler.post(actor, "stop", world.uniform(0.0, 1.0))

    def _events(self, ledger: Ledger, stored: StoredJob, coordinator: Coordinator, news: News) -> list[Event]:
        number = news.worker
        match news.what:
            case "part":  # counts whoever it comes from, also a worker that was taken for dead
                return [self._take(number, news.value)]
            case "joined" if number in self._workers:
                return [WorkerJoined(number, self._workers[number].host)]
            case "probe" if number in self._workers:
                return [ProbePassed(number, news.value)]
            case "failed" if number in self._workers:
                return [AttemptFailed(number, news.value)]
            case "drained" if number in self._workers:
                return [WorkerDrained(number)]
            case "notice" if number in self._workers:
                return [PreemptionNotice(number, news.value)]
            case "died" if number in self._workers:
                actor = self._workers.pop(number)
                if self._world.generator.random() < 0.5:  # else it lives on, out of reach
                    self._world.scheduler.kill(actor)
                # Parts that it wrote but did not live to tell of: the store is asked, not the dead.
                parts = ledger.find_parts(stored, coordinator.held_by(number)).values()
                told = [self._take(number, receipt) for receipt in parts]
                return [*told, WorkerDied(number, "it is gone", cause=news.value)]
        return []

    def _take(self, worker: int, receipt: PartReceipt) -> PartDone:
        self._world.checker.on_receipt(receipt)
        self._receipts.setdefault(receipt.shard, receipt)
        return PartDone(worker, receipt)

    def _feed(self, coordinator: Coordinator, event: Event) -> None:
        if self._ended is None:
            for command in coordinator.handle(event):
                self._execute(command)

    def _execute(self, command: Command) -> None:
        world = self._world
        if not isinstance(command, Say):
            world.scheduler.note(f"orders {_shown(command)}")
        match command:
            case StartWorker(number):
                self._workers[number] = world.start_worker(self, number, self._plan, self._job)
            case Assign(number, lease):
                self._send(number, lease)
            case DropShard(number, shard):
                self._send(number, ("drop", shard))
            case DrainWorker(number):
                self._send(number, "drain")
            case KillWorker(number, _):
                world.report_death(self, number, world.chance_death("hung"))
            case FinishJob() | EndInterrupted() | FailJob():
                self._ended = command

    def _send(self, number: int, message: Any) -> None:
        actor = self._workers.get(number)
        if actor is not None:  # else its death is known here before it is told
            self._world.scheduler.post(actor, message, self._world.uniform(0.0, 1.0))

    def _record(self, epoch: int, seconds: float) -> RunRecord:
        actor = self._world.scheduler.current
        assert actor is not None
        return RunRecord(
            format=RUN_FORMAT, epoch=epoch, started_at="now", host=actor.host, pid=actor.pid, outcome="running",
            wall_seconds=seconds, total_seconds=seconds, attempts=0, restarts=0, parts_found=0, execution={},
            hardware={}, workers=[],
        )  # fmt: skip


def _shown(command: Command) -> str:
    match command:
        case Assign(worker, lease):
            extra = f", probe {lease.probe}" if lease.probe else ""
            return f"Assign(worker={worker}, shard={lease.shard.index}, attempt={lease.attempt}{extra})"
        case _:
            return str(command)
