"""Workers that die or are about to: what it costs whom. Pure.

A death is charged to a shard only where it ran alone. Where several ran together none is charged, and each of them has
a worker to itself from then on. Machines that were taken away or lost are charged to nobody.
"""

from __future__ import annotations

from specbatch.jobs.coordinator.events import Command, DrainWorker, FailJob, KillWorker, Say, WorkerDied
from specbatch.jobs.coordinator.policy import MAX_STRIKES, WORTH_RETRYING, DeviceStrikes, Durations, WakingClock
from specbatch.jobs.coordinator.shards import ShardBoard
from specbatch.jobs.coordinator.staffing import Staffing
from specbatch.jobs.coordinator.workers import Fleet, Phase, Worker
from specbatch.schemas.errors import ErrorCode


class Losses:
    """Takes notices and deaths in: gives shards back, charges who is to blame."""

    def __init__(
        self, board: ShardBoard, fleet: Fleet, staffing: Staffing, durations: Durations, clock: WakingClock
    ) -> None:
        self._board = board
        self._fleet = fleet
        self._staffing = staffing
        self._durations = durations
        self._clock = clock
        self.strikes = DeviceStrikes()
        self.num_preemptions = 0

    def take_notice(self, number: int, grace_seconds: float) -> list[Command]:
        """A worker whose machine will be taken away finishes what it has if that fits; else it goes back at once."""
        worker = self._fleet.get(number)
        if worker is None or worker.is_leaving or worker.phase is Phase.ENDING:
            return []
        worker.leaves_at_seconds = self._clock.awake_seconds + grace_seconds
        notice = f"the machine of worker {number} goes in {grace_seconds:.0f} s"
        if worker.phase in (Phase.READY, Phase.DRAINING) and self._seconds_to_finish(worker) <= grace_seconds:
            drains: list[Command] = [DrainWorker(number)] if worker.phase is Phase.READY else []
            self._fleet.set_phase(number, Phase.DRAINING)
            return [Say(f"{notice}: it finishes what it has"), *drains]
        for shard in tuple(worker.shards):
            self._fleet.release(number, shard)
            self._board.release(shard, number)
        return [Say(f"{notice}: what it has goes to others"), self.end(number)]

    def end(self, number: int) -> KillWorker:
        """A leaving worker that has nothing any more makes room."""
        self._fleet.set_phase(number, Phase.ENDING)
        return KillWorker(number, "its machine is being taken away")

    def bury(self, death: WorkerDied, *, is_stopping: bool) -> list[Command]:
        """A process is gone; ends the job where the error that it named would come again."""
        worker = self._fleet.remove(death.worker)
        if worker is None:
            return []
        self.num_preemptions += worker.is_leaving or death.cause == "preempted"
        commands: list[Command] = []
        if not worker.is_leaving and death.cause not in ("preempted", "lost"):
            if death.code is not None and death.code not in WORTH_RETRYING:
                commands = [FailJob(death.code, death.reason)]
            elif not is_stopping:
                commands = self._blame(worker, death)
        for shard in worker.shards:
            self._board.release(shard, death.worker)
        return commands

    def strike(self, place: str, shards: tuple[int, ...]) -> list[Command]:
        """The device of a place failed under these shards."""
        if not place or not self.strikes.strike(place, frozenset(shards)):
            return []
        return [Say(f"{place} has failed {MAX_STRIKES} times; no worker there gets work any more")]

    def absolve(self, shard: int) -> None:
        """Take a shard's deaths back from the devices where one of its rows turned out to be to blame."""
        if self._board.has_poison(shard):
            self.strikes.absolve(shard)

    def _blame(self, worker: Worker, death: WorkerDied) -> list[Command]:
        """A process crashed or hung: count it against its place and its shard, and as one more to be replaced."""
        self._staffing.note_crash(death, was_loading=not worker.has_joined, was_probing=worker.is_probing)
        commands: list[Command] = []
        shards = tuple(worker.shards)
        if death.code is ErrorCode.JOB_DEVICE:
            commands = self.strike(worker.place, shards)
        if len(shards) == 1:
            commands += self._board.charge_death(shards[0], death.code, death.reason)
            self.absolve(shards[0])
        for shard in shards:
            self._board.isolate(shard)
        return commands

    def _seconds_to_finish(self, worker: Worker) -> float:
        """Until the last of its shards is done, as far as can be told."""
        longest = 0.0
        for shard, held in worker.shards.items():
            usual = self._durations.expect(self._board.num_rows(shard))
            if usual is None:
                return float("inf")
            longest = max(longest, usual - (self._clock.awake_seconds - held.since_seconds))
        return longest
