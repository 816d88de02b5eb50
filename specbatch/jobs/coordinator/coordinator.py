"""The coordinator's state: pure. Events go in, commands come out; the runner executes them.

It decides which worker gets which shard, when a worker is started again or given up, which row kills workers, and when
the job ends. There is no clock and no randomness inside: the same events give the same commands. Truth is in the store:
a receipt counts whoever it comes from.

Blame: a death is charged to a shard only where it ran alone. Where several ran together none is charged, and each of
them has a worker to itself from then on. Machines that were taken away or lost are charged to nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from specbatch.jobs.coordinator.assignment import Assignment
from specbatch.jobs.coordinator.events import (
    AttemptFailed,
    Beat,
    Begin,
    Cancelled,
    CapacityChanged,
    Command,
    DrainWorker,
    EndInterrupted,
    Event,
    FailJob,
    FinishJob,
    Interrupted,
    PartDone,
    PreemptionNotice,
    ProbePassed,
    Say,
    StopReason,
    Tick,
    WorkerDied,
    WorkerDrained,
    WorkerJoined,
    WorkerPlaced,
)
from specbatch.jobs.coordinator.losses import Losses
from specbatch.jobs.coordinator.outcomes import Outcomes
from specbatch.jobs.coordinator.policy import (
    CAPACITY_TIMEOUT_SECONDS,
    START_TIMEOUT_SECONDS,
    Durations,
    ErrorBudget,
    LeaseDepth,
    WakingClock,
)
from specbatch.jobs.coordinator.shards import ShardBoard
from specbatch.jobs.coordinator.staffing import Staffing
from specbatch.jobs.coordinator.workers import Fleet, Phase, WorkerView
from specbatch.schemas.plan import Shard


class Coordinator:
    """Decides who does what, and when the job ends.

    Args:
        shards: those without a part, in the order in which they shall be handed out (ascending).
        num_workers: processes wanted; None takes all that the cluster has room for (``CapacityChanged`` tells).
        leases_per_worker: shards that one worker holds at a time, more where they take a moment only; above 1 its
            slots refill across borders.
        max_error_rate: largest share of error rows, judged once 1,000 rows are done.
        rows_done: result rows (one per sample) in parts that exist already.
        errors_done: error rows among them.
        deadline_seconds: time of the tick at which the run drains and ends with ``JOB_DEADLINE``; None for none.
        capacity_timeout_seconds: most time to wait for a cluster that has no place for any worker.
        start_timeout_seconds: most time that a worker may take to load its models.
        has_twins: whether a late shard may be given out twice; only where the store lets one part win.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        num_workers: int | None,
        leases_per_worker: int = 2,
        max_error_rate: float = 1.0,
        rows_done: int = 0,
        errors_done: int = 0,
        deadline_seconds: float | None = None,
        capacity_timeout_seconds: float = CAPACITY_TIMEOUT_SECONDS,
        start_timeout_seconds: float = START_TIMEOUT_SECONDS,
        has_twins: bool = True,
    ) -> None:
        self._clock = WakingClock()
        self._durations = Durations()
        self._board = ShardBoard(shards)
        self._fleet = Fleet(leases_per_worker, start_timeout_seconds)
        self._depth = LeaseDepth(leases_per_worker)
        self._staffing = Staffing(num_workers, capacity_timeout_seconds)
        self._assignment = Assignment(self._board, self._fleet, self._durations, has_twins=has_twins)
        self._losses = Losses(self._board, self._fleet, self._staffing, self._durations, self._clock)
        self._errors = ErrorBudget(max_error_rate, rows_done, errors_done)
        self._outcomes = Outcomes(
            self._board,
            self._fleet,
            self._staffing,
            self._losses,
            self._errors,
            self._durations,
            self._depth,
            self._clock,
        )
        self._deadline_seconds = deadline_seconds
        self._stop_reason: StopReason | None = None
        self._has_begun = False
        self._has_ended = False

    # ---- what others may read --------------------------------------------------------------------------------------

    @property
    def num_done(self) -> int:
        """Shards whose part came into being during this run."""
        return self._board.num_done

    @property
    def num_attempts(self) -> int:
        """Leases of whole shards."""
        return self._board.num_attempts

    @property
    def num_probes(self) -> int:
        """Leases of some rows, to find the one that kills."""
        return self._board.num_probes

    @property
    def num_restarts(self) -> int:
        """Workers started in place of one that crashed."""
        return self._staffing.num_restarts

    @property
    def num_crashes(self) -> int:
        """Workers that crashed or hung, replaced or not."""
        return self._staffing.num_crashes

    @property
    def num_preemptions(self) -> int:
        """Workers that were taken away."""
        return self._losses.num_preemptions

    @property
    def quarantined_places(self) -> tuple[str, ...]:
        """Host and device of those that get no work any more."""
        return self._losses.strikes.quarantined

    @property
    def is_stopping(self) -> bool:
        """Whether it hands out nothing more and waits for what is in flight."""
        return self._stop_reason is not None

    def in_flight(self) -> tuple[int, ...]:
        """Shards that some worker holds, sorted."""
        return tuple(sorted({shard for _, worker in self._fleet for shard in worker.shards}))

    def held_by(self, worker: int) -> tuple[int, ...]:
        """Shards that a worker holds; none if it is gone."""
        found = self._fleet.get(worker)
        return tuple(found.shards) if found is not None else ()

    def worker_views(self) -> tuple[WorkerView, ...]:
        """What every worker is doing, by number."""
        return self._fleet.views()

    # ---- events ----------------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Command]:
        """Take one event in and say what is to be done. After the command that ends the run there is none more."""
        if self._has_ended or (isinstance(event, Beat) and not self._hear(event)):
            return []
        commands = self._apply(event)
        if self._has_begun and not _has_end(commands):
            commands = commands + self._go_on(is_tick=isinstance(event, Tick))
        self._has_ended = _has_end(commands)
        return commands

    def _hear(self, beat: Beat) -> bool:
        """Most beats change nothing, and cost next to nothing: every worker sends one every second."""
        awake = self._clock.awake_seconds
        return self._fleet.hear(beat.worker, awake - beat.beat_age_seconds, beat.median_step_seconds, awake)

    def _apply(self, event: Event) -> list[Command]:
        match event:
            case PartDone(worker, receipt):
                return self._outcomes.take_receipt(worker, receipt)
            case Beat():
                return []  # whom it clears of suspicion may get something to do
            case Tick(now_seconds):
                return self._tick(now_seconds)
            case Begin():
                self._has_begun = True
                return self._errors.judge()
            case CapacityChanged(num_slots):
                self._staffing.set_slots(num_slots)
                return []
            case WorkerPlaced(worker):
                self._fleet.place(worker)
                return []
            case WorkerJoined(worker, place):
                return self._welcome(worker, place)
            case ProbePassed(worker, probe):
                return self._outcomes.take_probe(worker, probe)
            case AttemptFailed(worker, failure):
                return self._outcomes.take_failure(worker, failure)
            case WorkerDrained(worker):
                return self._take_drained(worker)
            case PreemptionNotice(worker, grace_seconds):
                return self._losses.take_notice(worker, grace_seconds)
            case WorkerDied():
                return self._losses.bury(event, is_stopping=self._stop_reason is not None)
            case Interrupted():
                return self._drain("signal")
            case Cancelled():
                return self._drain("cancelled")

    def _go_on(self, *, is_tick: bool) -> list[Command]:
        """Whatever the event was: end the run, or see that everybody has something to do."""
        if not self._board.num_left:
            return [FinishJob()]
        if self._stop_reason is not None:
            return [] if any(worker.shards for _, worker in self._fleet) else [EndInterrupted(self._stop_reason)]
        awake = self._clock.awake_seconds
        commands = self._staffing.start(self._fleet, self._board.num_left, awake)
        if _has_end(commands):
            return commands
        commands += self._assignment.assign(awake)
        return commands + (self._assignment.assign_twins(awake) if is_tick else [])

    # ---- workers ---------------------------------------------------------------------------------------------------

    def _tick(self, now_seconds: float) -> list[Command]:
        self._clock.tick(now_seconds)
        self._fleet.set_depth(self._depth.count(self._clock.awake_seconds, self._fleet.count(Phase.READY)))
        commands = self._fleet.watch(self._clock.awake_seconds)
        if self._deadline_seconds is not None and self._clock.now_seconds >= self._deadline_seconds:
            commands += self._drain("deadline")
        return commands

    def _welcome(self, number: int, place: str) -> list[Command]:
        worker = self._fleet.get(number)
        if worker is None or worker.phase is not Phase.STARTING:
            return []
        self._staffing.note_joined()
        awake = self._clock.awake_seconds
        if self._losses.strikes.is_quarantined(place):
            self._fleet.join(number, place, Phase.PARKED, awake)
            return [
                Say(f"worker {number} came up at {place}, which is in quarantine: no work for it"),
                DrainWorker(number),
            ]
        self._fleet.join(number, place, Phase.DRAINING if self._stop_reason is not None else Phase.READY, awake)
        return []

    def _take_drained(self, number: int) -> list[Command]:
        worker = self._fleet.get(number)
        if worker is None or worker.phase is not Phase.DRAINING:
            return []
        self._outcomes.release(number, *worker.shards)
        return [self._losses.end(number)] if worker.is_leaving else []

    def _drain(self, reason: StopReason) -> list[Command]:
        if self._stop_reason is not None:
            return []
        self._stop_reason = reason
        commands: list[Command] = []
        if reason != "signal":
            cause = "cancelled" if reason == "cancelled" else "the deadline has come"
            commands.append(Say(f"{cause}: finishing the shards in flight"))
        for number, worker in self._fleet:
            if worker.phase is Phase.READY:
                self._fleet.set_phase(number, Phase.DRAINING)
                commands.append(DrainWorker(number))
        return commands


def _has_end(commands: list[Command]) -> bool:
    return any(isinstance(command, FailJob | FinishJob | EndInterrupted) for command in commands)
