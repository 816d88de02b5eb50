"""The coordinator's state: pure. Events go in, commands come out; the runner executes them.

A shard is *pending* (waits for a worker), *leased* (a worker has it) or *done* (its part exists). A worker is
*starting*, *ready* or *draining*; every process gets a number of its own, so nothing that a dead worker still says
can be taken for its successor's. Truth is in the store: a receipt counts whoever it comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.messages import Lease, PartReceipt, ShardFailed
from specbatch.schemas.plan import Shard

MAX_ATTEMPTS = 3
MAX_LOAD_FAILURES = 2
MIN_ROWS_TO_JUDGE = 1000


@dataclass(frozen=True, slots=True)
class Begin:
    """The run begins."""


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker has loaded its models."""

    worker: int


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """A worker process is gone. ``code`` is set where it named its error itself: such an error would come again."""

    worker: int
    reason: str
    code: ErrorCode | None = None


@dataclass(frozen=True, slots=True)
class WorkerDrained:
    """A draining worker has nothing in flight any more; what it had not begun is free again."""

    worker: int


@dataclass(frozen=True, slots=True)
class PartDone:
    """A shard's part exists."""

    worker: int
    receipt: PartReceipt


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """A worker gave one shard up and goes on."""

    worker: int
    failure: ShardFailed


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Take no new shard, finish those in flight."""


Event = Begin | WorkerJoined | WorkerDied | WorkerDrained | PartDone | AttemptFailed | Interrupted


@dataclass(frozen=True, slots=True)
class StartWorker:
    worker: int


@dataclass(frozen=True, slots=True)
class Assign:
    worker: int
    lease: Lease


@dataclass(frozen=True, slots=True)
class DrainWorker:
    worker: int


@dataclass(frozen=True, slots=True)
class FinishJob:
    """Every shard has its part."""


@dataclass(frozen=True, slots=True)
class EndInterrupted:
    """Nothing is in flight any more; the rest waits for the next run."""


@dataclass(frozen=True, slots=True)
class FailJob:
    code: ErrorCode
    message: str


Command = StartWorker | Assign | DrainWorker | FinishJob | EndInterrupted | FailJob


class _Phase(Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(slots=True)
class _Worker:
    phase: _Phase = _Phase.STARTING
    shards: list[int] = field(default_factory=list)


class Coordinator:
    """Decides which worker gets which shard, when a worker is started again, and when the job ends.

    Args:
        shards: those without a part, in the order in which they shall be handed out.
        num_workers: processes to keep running.
        leases_per_worker: most shards that one worker holds at a time; above 1 its slots refill across borders.
        max_error_rate: largest share of error rows, judged once 1,000 rows are done.
        rows_done: result rows (one per sample) in parts that exist already.
        errors_done: error rows among them.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        num_workers: int,
        leases_per_worker: int = 2,
        max_error_rate: float = 1.0,
        rows_done: int = 0,
        errors_done: int = 0,
    ) -> None:
        self._shards = {shard.index: shard for shard in shards}
        self._pending = [shard.index for shard in shards]
        self._attempts = dict.fromkeys(self._pending, 0)
        self._failures = dict.fromkeys(self._pending, 0)
        self._done: set[int] = set()
        self._workers: dict[int, _Worker] = {}
        self._num_workers = min(num_workers, len(self._pending))
        self._leases_per_worker = leases_per_worker
        self._max_error_rate = max_error_rate
        self._rows_done = rows_done
        self._errors_done = errors_done
        self._next_worker = 0
        self._num_load_failures = 0
        self._restarts_left = MAX_ATTEMPTS + 2 * num_workers
        self._interrupted = False
        self._ended = False
        self.num_attempts = 0
        self.num_restarts = 0

    @property
    def num_done(self) -> int:
        """Shards whose part came into being during this run."""
        return len(self._done)

    def in_flight(self) -> tuple[int, ...]:
        """Shards that some worker holds, sorted."""
        return tuple(sorted({shard for worker in self._workers.values() for shard in worker.shards}))

    def held_by(self, worker: int) -> tuple[int, ...]:
        """Shards that a worker holds."""
        return tuple(self._workers[worker].shards)

    def num_rows(self, shard: int) -> int:
        """Rows of a shard of this run."""
        return self._shards[shard].num_rows

    def handle(self, event: Event) -> list[Command]:
        """Take one event in and say what is to be done. After the command that ends the run there is none more."""
        if self._ended:
            return []
        commands = self._apply(event)
        if not self._ended:
            commands += self._next_commands()
        return commands

    def _apply(self, event: Event) -> list[Command]:
        match event:
            case Begin():
                return self._judge_errors()
            case WorkerJoined(worker):
                self._num_load_failures = 0
                self._workers[worker].phase = _Phase.DRAINING if self._interrupted else _Phase.READY
                return []
            case PartDone(worker, receipt):
                return self._take_receipt(worker, receipt)
            case AttemptFailed(worker, failure):
                self._release(worker, failure.shard)
                return self._charge([failure.shard], _error_code(failure.code), failure.message)
            case WorkerDrained(worker):
                shards, self._workers[worker].shards = self._workers[worker].shards, []
                self._return(shards)
                return []
            case WorkerDied():
                return self._bury(event)
            case Interrupted():
                return self._drain()

    def _take_receipt(self, worker: int, receipt: PartReceipt) -> list[Command]:
        self._release(worker, receipt.shard)
        if receipt.shard in self._done or receipt.shard not in self._shards:
            return []
        self._done.add(receipt.shard)
        if receipt.shard in self._pending:
            self._pending.remove(receipt.shard)
        self._rows_done += receipt.stats.num_results
        self._errors_done += receipt.stats.num_errors
        return self._judge_errors()

    def _judge_errors(self) -> list[Command]:
        rows, errors = self._rows_done, self._errors_done
        if rows < MIN_ROWS_TO_JUDGE or errors <= self._max_error_rate * rows:
            return []
        return self._fail(
            ErrorCode.JOB_ERROR_RATE,
            f"{errors} of {rows} finished rows are errors, above --max-error-rate {self._max_error_rate:g}; "
            "the parts are kept: run again with a larger budget, or read the error_code column in data/",
        )

    def _charge(self, shards: Iterable[int], code: ErrorCode | None, reason: str) -> list[Command]:
        """Count an attempt against shards and put them back; an error that named itself ends the job at once."""
        for shard in sorted(shards):
            if shard in self._done:
                continue
            self._failures[shard] += 1
            if code is not None:
                return self._fail(code, f"shard {shard}: {reason}")
            if self._failures[shard] >= MAX_ATTEMPTS:
                return self._fail(
                    ErrorCode.SHARD_FAILED, f"shard {shard} failed {MAX_ATTEMPTS} times, the last time with: {reason}"
                )
            self._return([shard])
        return []

    def _bury(self, death: WorkerDied) -> list[Command]:
        worker = self._workers.pop(death.worker)
        if death.code is not None:
            return self._fail(death.code, death.reason)
        if self._interrupted:
            self._return(worker.shards)
            return []
        if worker.phase is _Phase.STARTING:
            self._num_load_failures += 1
            if self._num_load_failures >= MAX_LOAD_FAILURES:
                return self._fail(ErrorCode.JOB_MODEL_LOAD, f"no worker could load the models: {death.reason}")
        failed = self._charge(worker.shards, None, death.reason)
        if failed or not self._pending:
            return failed
        if self._restarts_left == 0:
            if self._workers:
                return []
            return self._fail(ErrorCode.JOB_CLUSTER_LOST, f"workers keep dying, the last one with: {death.reason}")
        self._restarts_left -= 1
        self.num_restarts += 1
        return [self._start()]

    def _drain(self) -> list[Command]:
        self._interrupted = True
        commands: list[Command] = []
        for number, worker in sorted(self._workers.items()):
            if worker.phase is _Phase.READY:
                worker.phase = _Phase.DRAINING
                commands.append(DrainWorker(number))
        return commands

    def _next_commands(self) -> list[Command]:
        if len(self._done) == len(self._shards):
            self._ended = True
            return [FinishJob()]
        if self._interrupted:
            self._ended = not any(worker.shards for worker in self._workers.values())
            return [EndInterrupted()] if self._ended else []
        commands: list[Command] = []
        while self._next_worker < self._num_workers:
            commands.append(self._start())
        return commands + self._assign()

    def _assign(self) -> list[Command]:
        """Hand out pending shards, always to the worker that holds fewest.

        Near the end a worker gets no more than its even share of what is left: a shard that waits here can go to
        whoever is free first, one that waits in a busy worker cannot.
        """
        commands: list[Command] = []
        ready = {number: w for number, w in self._workers.items() if w.phase is _Phase.READY}
        while self._pending and ready:
            num_left = len(self._shards) - len(self._done)
            share = max(num_left // len(self._workers), 1)
            number = min(ready, key=lambda n: (len(ready[n].shards), n))
            if len(ready[number].shards) >= min(share, self._leases_per_worker):
                break
            shard = self._pending.pop(0)
            self._attempts[shard] += 1
            self.num_attempts += 1
            ready[number].shards.append(shard)
            commands.append(Assign(number, Lease(self._shards[shard], self._attempts[shard])))
        return commands

    def _start(self) -> StartWorker:
        number = self._next_worker
        self._next_worker += 1
        self._workers[number] = _Worker()
        return StartWorker(number)

    def _release(self, worker: int, shard: int) -> None:
        held = self._workers.get(worker)
        if held is not None and shard in held.shards:
            held.shards.remove(shard)

    def _return(self, shards: Iterable[int]) -> None:
        """Back to pending, in the plan's order, but for those whose part came from elsewhere meanwhile."""
        self._pending = sorted({*self._pending, *shards} - self._done)

    def _fail(self, code: ErrorCode, message: str) -> list[Command]:
        self._ended = True
        return [FailJob(code, message)]


def _error_code(code: str) -> ErrorCode | None:
    """The code that ends a job at once; None for a failure that is worth another attempt."""
    return None if code == ErrorCode.SHARD_FAILED or code not in set(ErrorCode) else ErrorCode(code)
