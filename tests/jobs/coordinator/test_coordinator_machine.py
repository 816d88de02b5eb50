"""Whatever happens in whatever order: nothing is lost, nothing done twice, nobody who is gone gets work, all ends."""

from __future__ import annotations

from coordinator_farm import Farm, make_shards
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from specbatch.jobs.coordinator.coordinator import Coordinator
from specbatch.jobs.coordinator.events import (
    AttemptFailed,
    Beat,
    Begin,
    Cancelled,
    CapacityChanged,
    Command,
    EndInterrupted,
    Event,
    FailJob,
    FinishJob,
    Interrupted,
    PartDone,
    PreemptionNotice,
    ProbePassed,
    Tick,
    WorkerDied,
    WorkerDrained,
)
from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.messages import ShardFailed

PLACES = ("a/cuda:0", "a/cuda:1")
CODES = (None, None, ErrorCode.JOB_DEVICE, ErrorCode.SHARD_OOM)


class RecordingFarm(Farm):
    """A farm that remembers what was said."""

    def __init__(self, coordinator: Coordinator, kills: set[int]) -> None:
        super().__init__(coordinator, kills)
        self.history: list[tuple[Event, list[Command]]] = []

    def feed(self, event: Event) -> list[Command]:
        commands = super().feed(event)
        self.history.append((event, commands))
        return commands


class CoordinatorMachine(RuleBasedStateMachine):
    """Faults 1, 4 to 6, 9, 10, 12 to 15, 17, 19, 20, 43, 44, 47 in any order and number."""

    @initialize(
        num_shards=st.integers(1, 12),
        rows=st.integers(1, 20),
        num_workers=st.one_of(st.none(), st.integers(1, 3)),
        leases_per_worker=st.integers(1, 3),
        num_slots=st.integers(0, 4),
        deadline_seconds=st.one_of(st.none(), st.just(400.0)),
        data=st.data(),
    )
    def begin(
        self,
        num_shards: int,
        rows: int,
        num_workers: int | None,
        leases_per_worker: int,
        num_slots: int,
        deadline_seconds: float | None,
        data: st.DataObject,
    ) -> None:
        self.num_shards = num_shards
        self.make = lambda: Coordinator(
            make_shards(num_shards, rows),
            num_workers=num_workers,
            leases_per_worker=leases_per_worker,
            deadline_seconds=deadline_seconds,
        )
        kills = data.draw(st.sets(st.integers(0, num_shards * rows - 1), max_size=4))
        self.farm = RecordingFarm(self.make(), kills)
        self.may_be_interrupted = deadline_seconds is not None
        self.num_slots = num_slots
        self.farm.feed(CapacityChanged(num_slots))
        self.farm.feed(Begin())

    def holding(self) -> list[tuple[int, int]]:
        """(worker, position) of every lease that its worker may still work on."""
        held = self.farm.held.items()
        return [(worker, p) for worker, leases in held if worker not in self.farm.doomed for p in range(len(leases))]

    def bad_device_users(self) -> list[int]:
        """Workers at the place that is none too good."""
        views = self.farm.coordinator.worker_views() if self.farm.end is None else ()
        return [view.worker for view in views if view.place == PLACES[0]]

    # ---- what goes well --------------------------------------------------------------------------------------------

    @precondition(lambda self: set(self.farm.starting) - set(self.farm.doomed))
    @rule(data=st.data(), place=st.sampled_from(PLACES))
    def a_worker_joins(self, data: st.DataObject, place: str) -> None:
        self.farm.join(data.draw(st.sampled_from(sorted(set(self.farm.starting) - set(self.farm.doomed)))), place)

    @precondition(lambda self: self.holding())
    @rule(data=st.data())
    def a_lease_is_worked_on(self, data: st.DataObject) -> None:
        self.farm.work(*data.draw(st.sampled_from(self.holding())))

    @precondition(lambda self: len(set(self.farm.starting) - set(self.farm.doomed)) > 1)
    @rule(data=st.data(), place=st.sampled_from(PLACES))
    def another_worker_joins(self, data: st.DataObject, place: str) -> None:
        self.a_worker_joins(data, place)

    @precondition(lambda self: self.holding())
    @rule(data=st.data())
    def another_lease_is_worked_on(self, data: st.DataObject) -> None:
        self.farm.work(*data.draw(st.sampled_from(self.holding())))

    @rule(seconds=st.integers(1, 40), data=st.data())
    def time_passes(self, seconds: int, data: st.DataObject) -> None:
        silent = data.draw(st.sets(st.sampled_from(sorted(self.farm.held)))) if self.farm.held else ()
        self.farm.tick(seconds, silent)

    # ---- what goes wrong -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.farm.held)
    @rule(data=st.data(), code=st.sampled_from(CODES))
    def a_worker_crashes(self, data: st.DataObject, code: ErrorCode | None) -> None:
        self.farm.die(data.draw(st.sampled_from(sorted(self.farm.held))), code=code)

    @precondition(lambda self: self.bad_device_users())
    @rule(data=st.data())
    def the_bad_device_fails(self, data: st.DataObject) -> None:
        self.farm.die(data.draw(st.sampled_from(self.bad_device_users())), code=ErrorCode.JOB_DEVICE)

    @precondition(lambda self: self.farm.starting)
    @rule(data=st.data(), rare=st.integers(0, 4))
    def a_worker_cannot_load(self, data: st.DataObject, rare: int) -> None:
        if rare == 0:
            self.farm.die(data.draw(st.sampled_from(self.farm.starting)))

    @precondition(lambda self: self.farm.held or self.farm.starting)
    @rule(data=st.data(), cause=st.sampled_from(["preempted", "lost"]))
    def a_machine_is_taken_or_lost(self, data: st.DataObject, cause: str) -> None:
        self.farm.die(data.draw(st.sampled_from(sorted(self.farm.held) + self.farm.starting)), cause=cause)

    @precondition(lambda self: self.farm.doomed)
    @rule()
    def a_killed_worker_is_dead(self) -> None:
        self.farm.die(self.farm.doomed[0], cause="hung")

    @precondition(lambda self: self.farm.held or self.farm.starting)
    @rule(data=st.data(), grace_seconds=st.sampled_from([0.0, 15.0, 120.0]))
    def a_machine_will_be_taken(self, data: st.DataObject, grace_seconds: float) -> None:
        worker = data.draw(st.sampled_from(sorted(self.farm.held) + self.farm.starting))
        held = {lease.shard.index for lease in self.farm.held.get(worker, [])}
        self.farm.feed(PreemptionNotice(worker, grace_seconds))
        if not set(self.farm.coordinator.held_by(worker)) >= held:
            self.farm.held[worker] = []  # given back; the process is killed

    @precondition(lambda self: self.holding())
    @rule(data=st.data(), code=st.sampled_from(["SHARD_FAILED", "SHARD_DISK_FULL", "JOB_DEVICE", "NEW"]))
    def a_worker_gives_a_shard_up(self, data: st.DataObject, code: str) -> None:
        worker, position = data.draw(st.sampled_from(self.holding()))
        lease = self.farm.held[worker].pop(position)
        self.farm.feed(AttemptFailed(worker, ShardFailed(lease.shard.index, lease.attempt, code, "no luck")))

    @precondition(lambda self: any(self.farm.held.get(worker) for worker in self.farm.draining))
    @rule(data=st.data())
    def a_worker_drains(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(w for w in self.farm.draining if self.farm.held.get(w))))
        if worker not in self.farm.doomed:
            self.farm.drained(worker)

    @rule(num_slots=st.integers(0, 4))
    def the_cluster_changes(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.farm.feed(CapacityChanged(num_slots))

    @precondition(lambda self: self.farm.ghosts)
    @rule(data=st.data())
    def a_zombie_speaks(self, data: st.DataObject) -> None:
        ghost = data.draw(st.sampled_from(self.farm.ghosts))
        if isinstance(ghost, PartDone):
            self.farm.finished.add(ghost.receipt.shard)
            for leases in self.farm.held.values():
                leases[:] = [lease for lease in leases if lease.shard.index != ghost.receipt.shard]
        self.farm.feed(ghost)

    @precondition(lambda self: self.farm.history)
    @rule(data=st.data())
    def old_news_come_again(self, data: st.DataObject) -> None:
        event, _ = data.draw(st.sampled_from(self.farm.history))
        match event:
            case Begin() | Tick() | CapacityChanged() | Interrupted() | Cancelled():
                return  # these come from the shell itself
            case AttemptFailed(worker) | WorkerDrained(worker) | ProbePassed(worker) | PreemptionNotice(worker):
                if worker in self.farm.held or worker in self.farm.starting:
                    return  # of the living it would be news
            case Beat() | WorkerDied() | PartDone():
                pass
        self.farm.feed(event)

    @precondition(lambda self: self.farm.finished)
    @rule(event=st.sampled_from([Interrupted(), Cancelled()]), rare=st.integers(0, 4))
    def somebody_stops_the_job(self, event: Event, rare: int) -> None:
        if rare == 0:
            self.may_be_interrupted = True
            self.farm.feed(event)

    # ---- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def what_is_held_is_known(self) -> None:
        farm = self.farm
        if farm.end is None:
            for worker, leases in farm.held.items():
                assert sorted(farm.coordinator.held_by(worker)) == sorted(lease.shard.index for lease in leases)
            assert set(farm.coordinator.in_flight()) == {lease.shard.index for x in farm.held.values() for lease in x}

    @invariant()
    def every_shard_is_done_held_or_waits(self) -> None:
        farm, board = self.farm, self.farm.coordinator._board
        assert farm.coordinator.num_done == len(farm.finished) or farm.end is not None
        if farm.end is None:
            assert board.num_waiting == self.num_shards - len(farm.finished) - len(farm.coordinator.in_flight())

    @invariant()
    def somebody_is_there_or_there_is_no_room(self) -> None:
        farm = self.farm
        if farm.end is None:
            views = farm.coordinator.worker_views()
            assert {view.worker for view in views} == {*farm.held, *farm.starting}
            assert views or self.num_slots == 0

    @invariant()
    def idle_workers_have_nothing_to_do(self) -> None:
        farm, board = self.farm, self.farm.coordinator._board
        states = {view.worker: view.state for view in farm.coordinator.worker_views()}
        ready = [worker for worker, state in states.items() if state == "ready"]
        if farm.end is None and len(ready) == 1 and "starting" not in states.values():
            assert farm.held[ready[0]] or not board.num_waiting, "work is left and the one worker has none"

    def teardown(self) -> None:
        if not hasattr(self, "farm"):
            return
        farm = self.farm
        farm.feed(CapacityChanged(max(self.num_slots, 2)))
        farm.run()
        match farm.end:
            case FinishJob():
                assert farm.finished == set(range(self.num_shards))
            case EndInterrupted():
                assert self.may_be_interrupted
                assert not any(farm.held.values())
            case FailJob(code, message):
                assert code in ErrorCode
                assert message
        again = self.make()
        assert [again.handle(event) for event, _ in farm.history] == [said for _, said in farm.history], "not the same"
        assert farm.feed(Tick(farm.now + 1.0)) == []


CoordinatorMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestCoordinatorMachine = CoordinatorMachine.TestCase
