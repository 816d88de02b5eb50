"""How many workers there shall be: starts, restarts and their budget, waiting for room, giving up. Pure."""

from __future__ import annotations

from specbatch.jobs.coordinator.events import Command, FailJob, Say, StartWorker, WorkerDied
from specbatch.jobs.coordinator.policy import MAX_ATTEMPTS, MAX_LOAD_FAILURES, PATIENCE_SECONDS
from specbatch.jobs.coordinator.workers import WORKING, Fleet, Phase
from specbatch.schemas.errors import ErrorCode


class Staffing:
    """Keeps as many workers as are wanted, as there is room for and as there are shards left.

    A worker that crashed is replaced while the budget lasts; the budget is full again whenever something was achieved.
    Workers whose machine was taken away or lost, and those of a search for a row that kills, are replaced for free.

    Args:
        num_wanted: None takes all the room there is.
        capacity_timeout_seconds: most time to wait while no worker runs and there is no room for one.
    """

    def __init__(self, num_wanted: int | None, capacity_timeout_seconds: float) -> None:
        self._num_wanted = num_wanted
        self._num_slots: int | None = None
        self._capacity_timeout_seconds = capacity_timeout_seconds
        self._no_room_since: float | None = None
        self._has_said_so = False
        self._num_load_failures = 0
        self._num_dead = 0  # crashed and not replaced yet
        self._num_in_vain = 0  # crashed since the last progress
        self._last_death: WorkerDied | None = None
        self.num_restarts = 0
        self.num_crashes = 0

    def set_slots(self, num_slots: int) -> None:
        """The cluster has room for so many workers in all."""
        if self._num_slots is None or num_slots > self._num_slots:
            self._num_load_failures = 0  # there may be a better place now
        self._num_slots = num_slots

    def note_joined(self) -> None:
        """A worker has loaded its models: the models are not to blame."""
        self._num_load_failures = 0

    def note_progress(self) -> None:
        """Something was achieved that no crash can take back."""
        self._num_in_vain = 0

    def note_crash(self, death: WorkerDied, *, was_loading: bool, was_probing: bool) -> None:
        """A worker crashed or hung."""
        self.num_crashes += 1
        self._num_dead += 1
        self._num_in_vain += not was_probing  # a search is bounded by itself
        self._num_load_failures += was_loading
        self._last_death = death

    def start(self, fleet: Fleet, num_left: int, awake_seconds: float) -> list[Command]:
        """Start who is missing; end the job where nobody can be started any more and nobody works."""
        if failed := self._judge_loading(fleet):
            return failed
        commands: list[Command] = []
        wanted = min(self._num_room, num_left) if self._num_wanted is None else min(self._num_wanted, num_left)
        while fleet.count(*WORKING) < wanted and len(fleet) < self._num_room and self._may_start(fleet, wanted):
            if self._num_dead:
                self._num_dead -= 1
                self.num_restarts += 1
            commands.append(StartWorker(fleet.start(awake_seconds)))
        return commands or self._judge_emptiness(fleet, awake_seconds)

    @property
    def _num_room(self) -> int:
        return self._num_slots if self._num_slots is not None else self._num_wanted or 0

    def _may_start(self, fleet: Fleet, wanted: int) -> bool:
        if self._num_load_failures >= MAX_LOAD_FAILURES and fleet.count(Phase.READY, Phase.DRAINING):
            return False  # others have loaded; where these fail, one more would fail too
        # Rows that kill, in a shard of every worker, may cost each worker one death with several shards and then
        # MAX_ATTEMPTS with one, before the searches for them begin and bring progress.
        return not self._num_dead or self._num_in_vain <= MAX_ATTEMPTS + (MAX_ATTEMPTS + 1) * wanted

    def _judge_loading(self, fleet: Fleet) -> list[Command]:
        if self._num_load_failures < MAX_LOAD_FAILURES or fleet.count(Phase.READY, Phase.DRAINING):
            return []
        return [self._give_up(ErrorCode.JOB_MODEL_LOAD, "no worker could load the models")]

    def _judge_emptiness(self, fleet: Fleet, awake_seconds: float) -> list[Command]:
        """Nobody was started. That is well while somebody works; else it is a matter of time, or the end."""
        num_unplaced = 0
        is_well = fleet.count(Phase.READY, Phase.DRAINING) > 0
        if not is_well and self._num_room:  # without room nobody comes up
            num_unplaced = fleet.num_unplaced()
            is_well = fleet.count(Phase.STARTING, Phase.ENDING) > num_unplaced
        if is_well:
            self._no_room_since = None
            return []
        if self._num_room and not num_unplaced:
            if len(fleet) < self._num_room:
                return [self._give_up(ErrorCode.JOB_CLUSTER_LOST, "workers keep dying, the last one with")]
            places = ", ".join(sorted({worker.place for _, worker in fleet}))
            return [FailJob(ErrorCode.JOB_DEVICE, f"every device there is has failed again and again: {places}")]
        return self._wait_for_room(awake_seconds)

    def _wait_for_room(self, awake_seconds: float) -> list[Command]:
        """Say so after a while, give up after a long one."""
        if self._no_room_since is None:
            self._no_room_since, self._has_said_so = awake_seconds, False
        waited, limit = awake_seconds - self._no_room_since, self._capacity_timeout_seconds
        if waited >= limit:
            text = f"the cluster has had no room for a worker for {limit:.0f} s; run the same command again when it has"
            return [FailJob(ErrorCode.JOB_NO_CAPACITY, text)]
        if self._has_said_so or waited < PATIENCE_SECONDS:
            return []
        self._has_said_so = True
        return [Say(f"the cluster has no room for a worker yet; waiting for up to {limit:.0f} s")]

    def _give_up(self, code: ErrorCode, what: str) -> FailJob:
        """With the code of the last death where that is one of whole jobs: device or store."""
        death = self._last_death
        assert death is not None
        own = death.code if death.code is not None and death.code.startswith("JOB_") else None
        return FailJob(own or code, f"{what}: {death.reason}")
