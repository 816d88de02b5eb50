"""The thin shell around the coordinator: starts Ray actors, carries their news to it, executes its commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from specbatch.jobs.coordinator.coordinator import Coordinator
from specbatch.jobs.coordinator.events import (
    Assign,
    AttemptFailed,
    Beat,
    Begin,
    Command,
    DeathCause,
    DrainWorker,
    DropShard,
    EndInterrupted,
    Event,
    FailJob,
    FinishJob,
    Interrupted,
    KillWorker,
    PartDone,
    ProbePassed,
    Say,
    StartWorker,
    Tick,
    WorkerDied,
    WorkerDrained,
    WorkerJoined,
    WorkerPlaced,
)
from specbatch.jobs.running.answers import last_polls, stop_workers, wait_for_answers
from specbatch.jobs.running.cluster_view import ClusterView
from specbatch.jobs.running.deaths import describe_death, find_cause
from specbatch.jobs.running.interrupt import Interrupts
from specbatch.jobs.running.killing import Killing
from specbatch.jobs.running.need import WorkerNeed
from specbatch.jobs.running.placing import Placing
from specbatch.jobs.running.processes import WorkerProcess
from specbatch.jobs.running.tally import RunTally
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.messages import PartReceipt, WorkerConfig, WorkerPoll, WorkerReady

WAIT_SECONDS = 0.5
_DEATH_SECONDS = 30.0
"""A worker that was killed is given up after so long, whatever Ray says of it."""


class Runner:
    """Runs the shards of a coordinator on a Ray that has been started.

    Args:
        config: what every worker is told; its number is filled in here.
        check_cluster: called every second or so; raises where Ray itself is gone.
        on_tick: called as often; False means that the output is no longer ours.
        find_parts: which of some shards have their part in the store.
        on_death: called with the number of a worker that died, its process id where it ran on this host, and the
            reason.
        on_interrupt: called once, when the first signal has come.
        on_say: takes single lines for the user.
        on_item: sees every event of the coordinator and every command.
        view: the cluster as last seen; None where it is this machine alone, which always has room.
        outside: events that come from elsewhere (``Cancelled``), asked for as often as ``on_tick`` is called.
        num_wanted: workers that the user asked for; 0 for as many as there is room.
        need: what each worker asks of its node; of its device alone if None.
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
        on_say: Callable[[str], None] = lambda line: None,
        on_item: Callable[[Event | Command], None] = lambda item: None,
        view: Callable[[], ClusterView | None] = lambda: None,
        outside: Callable[[], Iterable[Event]] = tuple,
        num_wanted: int = 0,
        need: WorkerNeed | None = None,
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
        self._on_say = on_say
        self._on_item = on_item
        self._outside = outside
        self._placing = Placing(config, view, num_wanted, need or WorkerNeed(config.device))
        self._killing = Killing(clock)
        self._processes: dict[int, WorkerProcess] = {}
        self._queued: list[Event] = []
        self._ended: FinishJob | EndInterrupted | FailJob | None = None
        self._told_to_stop = False
        self.receipts: dict[int, PartReceipt] = {}

    def run(self) -> FinishJob | EndInterrupted:
        """Until every shard has its part, or the run was interrupted and has drained.

        Raises:
            SpecbatchError: the job failed, or the output was taken over (JOB_HELD).
        """
        with self._killing.of_all(self._processes):
            return self._run()

    def _run(self) -> FinishJob | EndInterrupted:
        self._feed(self._cluster_news())
        self._feed([Begin()])
        ticked_at = -WAIT_SECONDS
        while self._ended is None:
            self._interrupts.check()
            self._check_cluster()
            if self._clock() - ticked_at >= WAIT_SECONDS:
                ticked_at = self._clock()
                self._feed(self._tick())
            self._feed(self._news())
            if self._interrupts.received is not None and not self._told_to_stop:
                self._told_to_stop = True
                self._on_interrupt()
                self._feed([Interrupted()])
            if not self._on_tick():
                raise SpecbatchError(
                    ErrorCode.JOB_HELD,
                    f"another run has taken over {self._config.output}; what this one finished is kept",
                )
        if isinstance(self._ended, FailJob):
            raise SpecbatchError(self._ended.code, self._ended.message)
        self._last_news()
        return self._ended

    # ---- commands ----------------------------------------------------------------------------------------------------

    def _feed(self, events: Iterable[Event]) -> None:
        for event in events:
            self._on_item(event)
            for command in self._coordinator.handle(event):
                self._on_item(command)
                self._execute(command)

    def _execute(self, command: Command) -> None:
        match command:
            case StartWorker(worker):
                self._placing.add(worker)
                self._start_workers()
            case Assign(worker, lease):
                self._tell(worker, "assign", lease)
            case DropShard(worker, shard):
                self._tell(worker, "drop", shard)
            case DrainWorker(worker):
                self._tell(worker, "drain")
            case KillWorker(worker, reason):
                self._kill(worker, reason)
            case Say(line):
                self._on_say(line)
            case FinishJob() | EndInterrupted() | FailJob():
                self._ended = command

    def _tell(self, worker: int, method: Any, *arguments: Any) -> None:
        process = self._processes.get(worker)
        if process is not None:  # else its death is on the way to the coordinator
            process.tell(method, *arguments)

    def _start_workers(self) -> None:
        for process in self._placing.start(self._processes.values()):
            self._processes[process.number] = process

    def _kill(self, worker: int, reason: str) -> None:
        import ray

        if self._placing.remove(worker):
            self._queued.append(WorkerDied(worker, reason, cause="lost"))
        process = self._processes.get(worker)
        if process is not None and process.kill_reason is None:
            reason = f"{reason}: {process.slow_write}" if process.slow_write is not None else reason
            process.kill_reason, process.killed_at = reason, self._clock()
            self._killing.add(process.whereabouts)  # before Ray is asked, which may have gone
            ray.kill(process.actor)
            process.release()

    # ---- events ------------------------------------------------------------------------------------------------------

    def _tick(self) -> list[Event]:
        """What is due once in a while."""
        events: list[Event] = [Tick(self._clock()), *self._cluster_news(), *self._outside()]
        self._start_workers()
        self._killing.advance()
        for process in list(self._processes.values()):
            if process.kill_reason is not None and self._clock() - process.killed_at > _DEATH_SECONDS:
                events += self._bury(process, TimeoutError(process.kill_reason))
        return events

    def _cluster_news(self) -> list[Event]:
        return self._placing.news(self._processes.values())

    def _news(self) -> list[Event]:
        """Wait a moment for answers of workers and turn them into events."""
        now = self._clock()
        calls = {call: process for process in self._processes.values() for call in process.ask(now)}
        events, self._queued = self._queued, []
        for call in wait_for_answers(calls, WAIT_SECONDS):
            if calls[call].number in self._processes:
                events += self._answer(calls[call], call)
        return events

    def _answer(self, process: WorkerProcess, call: Any) -> list[Event]:
        said = process.take(call, self._clock())
        if said.error is not None:
            return self._bury(process, said.error)
        if isinstance(said.value, WorkerReady):
            self._tally.add_ready(said.value, self._clock())
            if said.value.note is not None:
                self._on_say(f"worker {process.number}: {said.value.note}")
            return [WorkerJoined(process.number, said.value.place)]
        if isinstance(said.value, WorkerPoll):
            return self._take_poll(process, said.value)
        return [WorkerPlaced(process.number)] if said.is_placed else []

    def _bury(self, process: WorkerProcess, error: Exception) -> list[Event]:
        import ray

        self._check_cluster()  # a worker that went with its cluster is not to blame
        worker = process.number
        del self._processes[worker]
        cause = self._find_cause(process, error)
        death = describe_death(worker, error, cause)
        if process.kill_reason is not None:
            death = WorkerDied(worker, process.kill_reason, cause=cause)
        if cause == "lost":
            self._placing.avoid(process.node_id)
        else:
            self._killing.add(process.whereabouts)
            ray.kill(process.actor)  # its process may live on where only a thread of it died
        process.release()
        self._tally.add_death(worker)
        self._on_death(worker, process.local_pid, death.reason)
        # Parts that it wrote but did not live to tell of: the store is asked, not the dead.
        receipts = self._find_parts(self._coordinator.held_by(worker))
        self._tally.add_found(worker, receipts)
        return [*self._take_receipts(worker, receipts), death]

    def _find_cause(self, process: WorkerProcess, error: Exception) -> DeathCause:
        cause = "hung" if process.kill_reason is not None else find_cause(error)
        return cause if cause == "preempted" else self._placing.judge(process) or cause

    def _take_poll(self, process: WorkerProcess, poll: WorkerPoll) -> list[Event]:
        worker, progress = process.number, poll.progress
        failed_rows = sum(failure.num_rows_done for failure in poll.failures)
        self._tally.add_poll(worker, poll, self._clock(), failed_rows)
        process.num_settled_rows += sum(receipt.num_rows for receipt in poll.receipts) + failed_rows
        if line := process.watch_writing(progress):
            self._on_say(line)
        events: list[Event] = [Beat(worker, progress.beat_age_seconds, progress.median_step_seconds)]
        events += self._take_receipts(worker, poll.receipts)
        events += [AttemptFailed(worker, failure) for failure in poll.failures]
        events += [ProbePassed(worker, probe) for probe in poll.probes]
        if process.has_drained(poll, self._clock()):
            events.append(WorkerDrained(worker))
        return events

    def _take_receipts(self, worker: int, receipts: Iterable[PartReceipt]) -> list[Event]:
        events: list[Event] = []
        for receipt in receipts:
            self.receipts.setdefault(receipt.shard, receipt)
            events.append(PartDone(worker, receipt))
        return events

    def _last_news(self) -> None:
        """Take the totals of the end from every worker, then let them go."""
        ready = [process for process in self._processes.values() if process.is_ready and process.kill_reason is None]
        for process, poll in last_polls(ready):
            self._take_poll(process, poll)
        for process in stop_workers(ready):
            process.release()
            del self._processes[process.number]
