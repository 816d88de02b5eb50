"""A play of the coordinator: events in, its commands kept, for tests of its rules."""

from __future__ import annotations

from coordinator_farm import make_shards

from specbatch.jobs.coordinator.coordinator import Coordinator
from specbatch.jobs.coordinator.events import (
    Assign,
    AttemptFailed,
    Beat,
    Begin,
    Command,
    Event,
    Say,
    Tick,
    WorkerDied,
    WorkerJoined,
)
from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.messages import Lease, ShardFailed


def failed(worker: int, shard: int, message: str = "no luck", code: str = "SHARD_FAILED") -> AttemptFailed:
    return AttemptFailed(worker, ShardFailed(shard, 1, code, message))


class Play:
    """A coordinator with short names for what it says; lines for the user are kept apart."""

    def __init__(self, num_shards: int, num_workers: int | None = 1, rows: int = 10, **options: object) -> None:
        self.shards = make_shards(num_shards, rows)
        self.coordinator = Coordinator(self.shards, num_workers=num_workers, **options)  # type: ignore[arg-type]
        self.said: list[str] = []
        self.now = 0.0

    def __call__(self, event: Event) -> list[Command]:
        commands = self.coordinator.handle(event)
        self.said += [command.line for command in commands if isinstance(command, Say)]
        return [command for command in commands if not isinstance(command, Say)]

    def begin(self, num_ready: int = 1, place: str = "") -> list[Command]:
        """Begin, and let the first workers join; what came of the last one."""
        commands = self(Begin())
        for worker in range(num_ready):
            commands = self(WorkerJoined(worker, place))
        return commands

    def assign(self, worker: int, shard: int, attempt: int = 1, **lease: object) -> Assign:
        return Assign(worker, Lease(self.shards[shard], attempt, **lease))  # type: ignore[arg-type]

    def pass_time(self, seconds: int, *heard: int) -> list[Command]:
        """Ticks of one second; these workers are heard after each."""
        commands: list[Command] = []
        for _ in range(seconds):
            self.now += 1.0
            commands += self(Tick(self.now))
            for worker in heard:
                commands += self(Beat(worker, 0.0, 0.1))
        return commands


def workers_of(play: Play) -> dict[int, str]:
    return {view.worker: view.state for view in play.coordinator.worker_views()}


def device_death(worker: int) -> WorkerDied:
    return WorkerDied(worker, "CUDA error", ErrorCode.JOB_DEVICE)
