"""What the coordinator is told and what it orders: plain values.

Events come from the shell, one at a time; commands go back to it. Time is in ``Tick`` alone. A worker's number is never
used twice, so nothing that a dead worker still says can be taken for its successor's; events about workers that are
gone are allowed and do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.messages import Lease, PartReceipt, ProbeDone, ShardFailed

DeathCause = Literal["crash", "preempted", "lost", "hung"]
StopReason = Literal["signal", "cancelled", "deadline"]

# ---- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """The run begins; nothing is ordered before. Tell the capacity first where it is known."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time now, in seconds since the run began; once a second or so, before the news of that moment.

    A gap of more than a few seconds between two ticks is the coordinator's own sleep (a stopped process, a store that
    did not answer): it is not held against the workers, though the deadline goes on.
    """

    now_seconds: float


@dataclass(frozen=True, slots=True)
class CapacityChanged:
    """The cluster has room for so many workers in all, those that run included."""

    num_slots: int


@dataclass(frozen=True, slots=True)
class WorkerPlaced:
    """A worker's process runs; until then it only waits for a place in the cluster, which is no fault of its own."""

    worker: int


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker has loaded its models. ``place`` is that of its ``WorkerReady``: host and device."""

    worker: int
    place: str = ""


@dataclass(frozen=True, slots=True)
class Beat:
    """A worker answered a poll. ``beat_age_seconds``: time since its decode loop last came round, when it answered."""

    worker: int
    beat_age_seconds: float
    median_step_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """A worker process is gone; parts that it left behind have been told before.

    Attributes:
        code: set where it named its error itself. ``JOB_DEVICE`` counts against its place, ``SHARD_*`` against its
            shard; any other would come again and ends the job.
        cause: ``preempted`` (the machine was taken away) and ``lost`` (its node is gone) are charged to nobody;
            ``hung`` follows ``KillWorker`` and is charged like ``crash``.
    """

    worker: int
    reason: str
    code: ErrorCode | None = None
    cause: DeathCause = "crash"


@dataclass(frozen=True, slots=True)
class WorkerDrained:
    """A draining worker has nothing in flight any more; what it had not begun is free again."""

    worker: int


@dataclass(frozen=True, slots=True)
class PreemptionNotice:
    """The machine of a worker will be taken away in so many seconds."""

    worker: int
    grace_seconds: float


@dataclass(frozen=True, slots=True)
class PartDone:
    """A shard's part exists, whoever wrote it: also a worker that is dead, or another run."""

    worker: int
    receipt: PartReceipt


@dataclass(frozen=True, slots=True)
class ProbePassed:
    """A worker decoded the rows of a probe and lives."""

    worker: int
    probe: ProbeDone


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """A worker gave one shard up and goes on."""

    worker: int
    failure: ShardFailed


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Take no new shard, finish those in flight."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """As ``Interrupted``, by somebody else's wish."""


Event = (
    Begin
    | Tick
    | CapacityChanged
    | WorkerPlaced
    | WorkerJoined
    | Beat
    | WorkerDied
    | WorkerDrained
    | PreemptionNotice
    | PartDone
    | ProbePassed
    | AttemptFailed
    | Interrupted
    | Cancelled
)

# ---- commands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Start a process; ``WorkerPlaced`` and ``WorkerJoined`` follow, or ``WorkerDied``."""

    worker: int


@dataclass(frozen=True, slots=True)
class Assign:
    """Hand a lease to a worker."""

    worker: int
    lease: Lease


@dataclass(frozen=True, slots=True)
class DropShard:
    """A part of this shard exists already: the worker shall forget it, or the probe of it; nothing need follow."""

    worker: int
    shard: int


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """The worker shall begin nothing more; ``WorkerDrained`` follows when nothing is in flight."""

    worker: int


@dataclass(frozen=True, slots=True)
class KillWorker:
    """Kill the process hard; ``WorkerDied`` follows (cause ``hung`` unless a better one is known)."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class Say:
    """One line for the user."""

    line: str


@dataclass(frozen=True, slots=True)
class FinishJob:
    """Every shard has its part. No command comes after this one."""


@dataclass(frozen=True, slots=True)
class EndInterrupted:
    """Nothing is in flight any more; the rest waits for the next run. No command comes after this one."""

    reason: StopReason = "signal"

    @property
    def code(self) -> ErrorCode | None:
        """The error that the run ends with; None where a signal or ``cancel`` decides the exit status."""
        return ErrorCode.JOB_DEADLINE if self.reason == "deadline" else None


@dataclass(frozen=True, slots=True)
class FailJob:
    """The job ends with this error; finished parts are kept. No command comes after this one."""

    code: ErrorCode
    message: str


Command = StartWorker | Assign | DropShard | DrainWorker | KillWorker | Say | FinishJob | EndInterrupted | FailJob
