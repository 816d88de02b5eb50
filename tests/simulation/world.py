"""One run: a scenario, the processes of its job, everything that goes wrong, and the verdict."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from specbatch.jobs.coordinator.events import DeathCause
from specbatch.jobs.upkeep import resume
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage import parts
from specbatch.storage.store import Store
from specbatch.workers import part_writer

from .bystanders import read_output, remove_garbage
from .checker import Checker, Violation
from .environment import read_part_meta_again, simulated
from .jobs import SimulatedJob, make_job
from .network import Fault, FaultSource, Network, RandomFaults
from .processes import INTERRUPT, CoordinatorProcess, News, WorkerProcess
from .scenario import JOB, OLDER_JOB, Layer, Outcome, Scenario, scenario_of
from .scheduler import Actor, Scheduler
from .stores import SimulatedStore

Patch = tuple[object, str, object]

MAX_CHANCE_DEATHS = 2
"""Deaths by chance that are blamed on a shard: with a third one, a row that does no harm could seem to kill."""

_MAY_FAIL_WITH = frozenset(
    {
        ErrorCode.JOB_STORE_LOST, ErrorCode.JOB_HELD, ErrorCode.SHARD_FAILED, ErrorCode.JOB_CLUSTER_LOST,
        ErrorCode.JOB_MODEL_LOAD, ErrorCode.JOB_NO_CAPACITY,
    }
)  # fmt: skip


class World:
    """Everything that one run consists of.

    Args:
        faults: what goes wrong; by default what the scenario says.
        wrap: put around each process's store.
        patches: attributes of the product to replace, for the tests that take a safeguard out.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        faults: FaultSource | None = None,
        wrap: Callable[[Store], Store] = lambda store: store,
        patches: tuple[Patch, ...] = (),
    ) -> None:
        self.scenario = scenario
        self.generator = random.Random(f"run {scenario.seed}")
        self.scheduler = Scheduler()
        self.checker = Checker(self.scheduler, scenario.jobs, JOB, scenario.poison)
        own = RandomFaults(self.generator, scenario.fault_kinds, scenario.fault_rate, scenario.num_faults)
        self.network = Network(self.scheduler, self.generator, faults or own, self._disturb)
        self._wrap = wrap
        self._patches = patches
        self._coordinators: dict[Actor, CoordinatorProcess] = {}
        self._workers: dict[Actor, CoordinatorProcess] = {}
        self._causes: dict[Actor, DeathCause] = {}
        self._num_chance_deaths = 0
        self._num_runs = 0
        self._job_number = OLDER_JOB if scenario.reuse else JOB
        self._spool = Path()

    def uniform(self, low: float, high: float) -> float:
        """A number by the seed."""
        return self.generator.uniform(low, high)

    def run(self) -> Outcome:
        """The whole history."""
        violation: BaseException | None = None
        self._spool = Path(tempfile.mkdtemp(prefix="specbatch-simulation-"))
        try:
            with self._surroundings():
                self._open_slots()
                if self.scenario.reuse:
                    self.scheduler.call_later(self.uniform(3.0, 25.0), self._reuse_prefix)
                else:
                    self._let_in_bystanders()
                self.scheduler.run()
                self.checker.final(self.scenario.num_slots)
        except (Exception, Violation) as error:
            violation = error
        finally:
            shutil.rmtree(self._spool)
        objects = {key: stored.data for key, stored in self.checker.objects.all.items()}
        return Outcome(self.scenario, tuple(self.scheduler.trace), self.network.faults_met, objects, violation)

    def open_store(self) -> Store:
        """The running process's store."""
        if self.scenario.layer == "s3":
            from .s3_service import open_s3_store

            return self._wrap(open_s3_store(self.checker, is_watched=not (self._patches or self.scenario.reuse)))
        return self._wrap(SimulatedStore(self.checker.objects, self.network, self._spool))

    def _open_by_uri(self, uri: str, *, single_writer: bool = False) -> Store:
        store = self.open_store()
        if uri != store.uri:
            raise SpecbatchError(ErrorCode.JOB_OUTPUT_MISSING, uri)
        return store

    def _surroundings(self) -> AbstractContextManager[None]:
        patches: list[Patch] = [(resume, "open_store", self._open_by_uri)]
        if self.scenario.layer == "s3":
            from .s3_service import s3_patches

            patches += s3_patches(self.scheduler, self.checker.objects, self.network, self._spool)
        else:
            patches.append((parts, "read_part_meta", read_part_meta_again))
            patches.append((part_writer, "read_part_meta", read_part_meta_again))
        return simulated(self.scheduler, self.generator, *patches, *self._patches)

    # ---- coordinators ----------------------------------------------------------------------------------------------

    def _open_slots(self) -> None:
        for slot in range(self.scenario.num_slots):
            self._start_coordinator(slot, self._job_number, self.uniform(0.0, 20.0) if slot else 0.0)

    def _start_coordinator(self, slot: int, job_number: int, delay_seconds: float) -> None:
        cuts = self.scenario.cuts
        job = make_job(job_number, self.scenario.num_rows, cuts[self._num_runs % len(cuts)])
        self._num_runs += 1
        process = CoordinatorProcess(self, job)
        is_complete = False

        def body() -> None:
            nonlocal is_complete
            try:
                is_complete = process.run()
            except SpecbatchError as error:
                self._judge_failure(error)

        def on_end(came_to_its_end: bool) -> None:
            self._orphan(process)
            if job_number != self._job_number:
                return  # of a job that was given up
            if came_to_its_end and is_complete:
                self.scheduler.note("reports success")
                self.checker.on_success()
            else:
                self._start_coordinator(slot, job_number, self.uniform(1.0, 40.0))

        actor = self.scheduler.spawn(
            f"coordinator-{self._num_runs}",
            body,
            host=self.generator.choice(("host-a", "host-b")),
            delay_seconds=delay_seconds,
            on_end=on_end,
        )
        self._coordinators[actor] = process

    def _judge_failure(self, error: SpecbatchError) -> None:
        self.scheduler.note(f"ends with {error}")
        if self.scenario.reuse and error.code is ErrorCode.JOB_PREFIX_TAKEN:
            self.checker.remove_foreign_parts()  # a zombie put them there: refused, and the user removes them
        elif error.code not in _MAY_FAIL_WITH:
            self.checker.violate("failed", str(error))

    def _orphan(self, process: CoordinatorProcess) -> None:
        """The owner of some workers is gone: they end soon, or late, or go on with what they have."""
        for worker in process.workers:
            if self.generator.random() < 0.6:
                self.scheduler.call_later(self.uniform(0.0, 30.0), partial(self.scheduler.kill, worker))

    def _reuse_prefix(self) -> None:
        self._job_number = JOB
        for actor in self._coordinators:
            self.scheduler.kill(actor)
        self.scheduler.note("the user empties the prefix and begins another job in it")
        self.checker.wipe()
        self.checker.num_successes = 0
        self._open_slots()
        self._let_in_bystanders()

    def _let_in_bystanders(self) -> None:
        if self.scenario.reader:
            self.scheduler.spawn("reader", lambda: read_output(self), host="host-r")
        if self.scenario.gc:
            self.scheduler.spawn("gc", lambda: remove_garbage(self), host="host-g")

    # ---- workers ---------------------------------------------------------------------------------------------------

    def start_worker(self, coordinator: CoordinatorProcess, number: int, plan: str, job: SimulatedJob) -> Actor:
        """A worker process of the running coordinator."""
        owner = self.scheduler.current
        assert owner is not None
        process = WorkerProcess(self, number, plan, job, owner)

        def on_end(came_to_its_end: bool) -> None:
            if not came_to_its_end:
                self.report_death(coordinator, number, self._causes.get(actor) or self.chance_death("crash"))

        actor = self.scheduler.spawn(
            f"{owner.name.replace('coordinator', 'worker')}.{number}", process.run, host=owner.host, on_end=on_end
        )
        self._workers[actor] = coordinator
        return actor

    def report_death(self, coordinator: CoordinatorProcess, number: int, cause: DeathCause) -> None:
        """A coordinator is told, after a while, that a worker is dead; it need not be so."""
        owner = next(actor for actor, process in self._coordinators.items() if process is coordinator)
        self.scheduler.post(owner, News(number, "died", cause), self.uniform(0.2, 8.0))

    def die_of_a_row(self) -> None:
        """The running worker is killed by what it decodes."""
        actor = self.scheduler.current
        assert actor is not None
        self._causes[actor] = "crash"
        self.scheduler.die()

    def chance_death(self, cause: DeathCause) -> DeathCause:
        """The cause that is told of a death by chance: not too often one that is blamed on what was decoded."""
        self._num_chance_deaths += 1
        return cause if self._num_chance_deaths <= MAX_CHANCE_DEATHS and not self.scenario.poison else "lost"

    def _disturb(self, fault: Fault) -> None:
        coordinators = [actor for actor in self._coordinators if actor.is_alive and actor is not self.scheduler.current]
        workers = [actor for actor in self._workers if actor.is_alive and actor is not self.scheduler.current]
        match fault:
            case Fault.OTHER_DIES if coordinators or workers:
                self.scheduler.kill(self.generator.choice(coordinators + workers))
            case Fault.OTHER_STALLS if coordinators or workers:
                self.scheduler.freeze(self.generator.choice(coordinators + workers), self.uniform(20.0, 250.0))
            case Fault.OTHER_SUSPECTED if workers:
                worker = self.generator.choice(workers)
                self._tell_owner(worker, "died", "lost")
            case Fault.OTHER_PREEMPTED if workers:
                worker, grace = self.generator.choice(workers), self.uniform(1.0, 30.0)
                self._causes[worker] = "preempted"
                self._tell_owner(worker, "notice", grace)
                self.scheduler.call_later(grace, lambda: self.scheduler.kill(worker))
            case Fault.INTERRUPT if coordinators:
                self.scheduler.post(self.generator.choice(coordinators), INTERRUPT, 0.0)
            case _:
                pass

    def _tell_owner(self, worker: Actor, what: Any, value: Any) -> None:
        coordinator = self._workers[worker]
        number = coordinator.number_of(worker)
        owner = next(actor for actor, process in self._coordinators.items() if process is coordinator)
        if number is not None and owner.is_alive:
            self.scheduler.post(owner, News(number, what, value), self.uniform(0.2, 8.0))


def run_seed(seed: int, layer: Layer = "store", **options: Any) -> Outcome:
    """The run that a seed stands for."""
    return World(scenario_of(seed, layer), **options).run()
