"""The thin shell around the coordinator: starts Ray actors, carries their news to it, executes its commands."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specbatch.jobs.coordinator import (
    Assign,
    AttemptFailed,
    Begin,
    Command,
    Coordinator,
    DrainWorker,
    EndInterrupted,
    Event,
    FailJob,
    FinishJob,
    Interrupted,
    PartDone,
    StartWorker,
    WorkerDied,
    WorkerDrained,
    WorkerJoined,
)
from specbatch.jobs.interrupt import Interrupts
from specbatch.jobs.tally import RunTally
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.messages import PartReceipt, WorkerConfig, WorkerPoll, WorkerReady

POLL_SECONDS = 1.0
WAIT_SECONDS = 0.5
_STOP_SECONDS = 5.0
_EXIT_DETAIL = "Worker exit detail:"
_ADVICE = "Some common causes include"


@dataclass(slots=True)
class _Process:
    """A worker process and the one call to it that is under way (``ready`` first, then ``poll`` after ``poll``).

    Attributes:
        idle_seconds: of the last poll.
        num_settled_rows: rows of the shards whose receipt or failure has come.
    """

    actor: Any
    call: Any
    pid: int | None = None
    drain_call: Any = None
    idle_seconds: float = 0.0
    num_settled_rows: int = 0


class Runner:
    """Runs the shards of a coordinator on a Ray that has been started.

    Args:
        config: what every worker is told; its number is filled in here.
        check_cluster: called every second or so; raises where Ray itself is gone.
        on_tick: called as often; False means that the output is no longer ours.
        find_parts: which of some shards have their part in the store.
        on_death: called with the number and process id of a worker that died, and the reason.
        on_interrupt: called once, when the first signal has come.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        config: WorkerConfig,
        tally: RunTally,
        interrupts: Interrupts,
        *,
        clock: Callable[[], float],
        check_cluster: Callable[[], None],
        on_tick: Callable[[], bool],
        find_parts: Callable[[Sequence[int]], Sequence[PartReceipt]],
        on_death: Callable[[int, int | None, str], None],
        on_interrupt: Callable[[], None],
    ) -> None:
        self._coordinator = coordinator
        self._config = config
        self._tally = tally
        self._interrupts = interrupts
        self._clock = clock
        self._check_cluster = check_cluster
        self._on_tick = on_tick
        self._find_parts = find_parts
        self._on_death = on_death
        self._on_interrupt = on_interrupt
        self._processes: dict[int, _Process] = {}
        self._ended: FinishJob | EndInterrupted | FailJob | None = None
        self._told_to_stop = False
        self.receipts: dict[int, PartReceipt] = {}

    def run(self) -> FinishJob | EndInterrupted:
        """Until every shard has its part, or the run was interrupted and has drained.

        Raises:
            SpecbatchError: the job failed, or the output was taken over (JOB_HELD).
        """
        self._feed(Begin())
        while self._ended is None:
            self._interrupts.check()
            self._check_cluster()
            for event in self._news():
                self._feed(event)
            if self._interrupts.received is not None and not self._told_to_stop:
                self._told_to_stop = True
                self._on_interrupt()
                self._feed(Interrupted())
            if not self._on_tick():
                raise SpecbatchError(
                    ErrorCode.JOB_HELD,
                    f"another run has taken over {self._config.output}; what this one finished is kept",
                )
        if isinstance(self._ended, FailJob):
            raise SpecbatchError(self._ended.code, self._ended.message)
        self._last_news()
        return self._ended

    def _feed(self, event: Event) -> None:
        self._execute(self._coordinator.handle(event))

    def _execute(self, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case StartWorker(worker):
                    self._start(worker)
                case Assign(worker, lease):
                    self._processes[worker].actor.assign.remote(lease)
                case DrainWorker(worker):
                    process = self._processes[worker]
                    process.drain_call = process.actor.drain.remote()
                case FinishJob() | EndInterrupted() | FailJob():
                    self._ended = command

    def _start(self, worker: int) -> None:
        from specbatch.workers.actor import actor_class

        # No CPU is reserved: how many threads a worker takes is decided here, not by Ray.
        num_gpus = 1 if self._config.device == "cuda" else 0
        remote = actor_class().options(num_cpus=0, num_gpus=num_gpus)
        actor = remote.remote(replace(self._config, worker=worker))
        self._processes[worker] = _Process(actor, actor.ready.remote())

    def _news(self) -> list[Event]:
        """Wait a moment for answers of workers and turn them into events."""
        import ray

        if not self._processes:
            time.sleep(WAIT_SECONDS)
            return []
        calls = {process.call: worker for worker, process in self._processes.items()}
        finished, _ = ray.wait(list(calls), num_returns=1, timeout=WAIT_SECONDS)
        events: list[Event] = []
        for call in finished:
            events += self._answer(calls[call], call)
        return events

    def _answer(self, worker: int, call: Any) -> list[Event]:
        import ray

        process = self._processes[worker]
        try:
            answer = ray.get(call)
        except Exception as error:
            self._check_cluster()  # a worker that went with its cluster is not to blame
            del self._processes[worker]
            ray.kill(process.actor)
            death = describe_death(worker, error)
            self._on_death(worker, process.pid, death.reason)
            # Parts that it wrote but did not live to tell of: the store is asked, not the dead.
            receipts = self._find_parts(self._coordinator.held_by(worker))
            return [*self._take_receipts(worker, receipts), death]
        if isinstance(answer, WorkerReady):
            process.pid = answer.pid
            self._tally.add_ready(answer, self._clock())
            process.call = process.actor.poll.remote(POLL_SECONDS)
            return [WorkerJoined(worker)]
        assert isinstance(answer, WorkerPoll)
        process.call = process.actor.poll.remote(POLL_SECONDS)
        return self._take_poll(worker, answer)

    def _take_poll(self, worker: int, poll: WorkerPoll) -> list[Event]:
        process = self._processes[worker]
        self._tally.add_poll(worker, poll, self._clock())
        process.num_settled_rows += sum(receipt.num_rows for receipt in poll.receipts)
        process.num_settled_rows += sum(self._coordinator.num_rows(failure.shard) for failure in poll.failures)
        events = self._take_receipts(worker, poll.receipts)
        events += [AttemptFailed(worker, failure) for failure in poll.failures]
        if process.drain_call is not None and _has_drained(process, poll):
            events.append(WorkerDrained(worker))
        process.idle_seconds = poll.progress.idle_seconds
        return events

    def _take_receipts(self, worker: int, receipts: Iterable[PartReceipt]) -> list[Event]:
        events: list[Event] = []
        for receipt in receipts:
            self.receipts.setdefault(receipt.shard, receipt)
            events.append(PartDone(worker, receipt))
        return events

    def _last_news(self) -> None:
        """Take the totals of the end from every worker, then let them go."""
        import ray

        last = {process.actor.poll.remote(0.0): worker for worker, process in self._processes.items() if process.pid}
        finished, _ = ray.wait(list(last), num_returns=len(last), timeout=_STOP_SECONDS) if last else ([], [])
        for call in finished:
            with contextlib.suppress(ray.exceptions.RayError):  # dead after its work: only its last numbers are lost
                self._take_poll(last[call], ray.get(call))
        stops = [process.actor.stop.remote() for process in self._processes.values() if process.pid]
        if stops:
            ray.wait(stops, num_returns=len(stops), timeout=_STOP_SECONDS)


def _has_drained(process: _Process, poll: WorkerPoll) -> bool:
    """Whether a draining worker waits for rows that will not come, and every row it finished is in a part."""
    import ray

    if not ray.wait([process.drain_call], timeout=0)[0]:
        return False
    waits = poll.progress.num_rows_active == 0 and poll.progress.idle_seconds > process.idle_seconds
    return waits and poll.progress.num_rows_done <= process.num_settled_rows


def describe_death(worker: int, error: Exception) -> WorkerDied:
    """Why a call to a worker failed: an error of ours keeps its code, anything else becomes one line."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, SpecbatchError):
        return WorkerDied(worker, cause.message, cause.code)
    if isinstance(cause, MemoryError):
        return WorkerDied(worker, "out of memory")
    text = str(cause)
    if "connection error code 2" in text:
        return WorkerDied(worker, "the process was killed or crashed (a signal, or out of memory)")
    if _EXIT_DETAIL in text:
        return WorkerDied(worker, text.partition(_EXIT_DETAIL)[2].partition(_ADVICE)[0].strip())
    first = (text.strip().splitlines() or [""])[0]
    return WorkerDied(worker, f"{type(cause).__name__}: {first}" if first else type(cause).__name__)


def save_worker_log(logs: Path, pid: int | None, num_bytes: int = 20_000) -> str:
    """The end of what a dead worker wrote to its standard error; empty where there is nothing."""
    if pid is None:
        return ""
    texts = [path.read_bytes()[-num_bytes:].decode("utf-8", "replace") for path in logs.glob(f"worker-*-{pid}.err")]
    return "".join(texts)
