"""One epoch of a job that is held: decode the missing shards on a Ray, keep the documents, commit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from specbatch.jobs.coordinator.events import Cancelled, Command, EndInterrupted, Event
from specbatch.jobs.display.progress import ProgressView
from specbatch.jobs.output.cancel import cancel_requested
from specbatch.jobs.output.lease import RENEW_SECONDS, HeldLease
from specbatch.jobs.output.ledger import Ledger, StoredJob
from specbatch.jobs.planning.machine import count_cuda_devices
from specbatch.jobs.planning.prepare import PreparedJob, follow_inputs
from specbatch.jobs.running.deaths import save_worker_log
from specbatch.jobs.running.endings import commit_parts, crash_error, deadline_error
from specbatch.jobs.running.interrupt import Interrupts, StopNow
from specbatch.jobs.running.job_setup import expect, make_coordinator, make_worker_config
from specbatch.jobs.running.metrics import MetricsExporter
from specbatch.jobs.running.need import WorkerNeed
from specbatch.jobs.running.node_gate import admit_nodes
from specbatch.jobs.running.run_documents import RunDocuments
from specbatch.jobs.running.run_log import Fact, fact_of, said
from specbatch.jobs.running.runner import Runner
from specbatch.jobs.running.tally import RunTally, sum_stats
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError
from specbatch.schemas.manifest import Manifest
from specbatch.schemas.plan import Shard

if TYPE_CHECKING:
    from specbatch.jobs.running.cluster import Cluster

VIEW_SECONDS = 0.5
PROGRESS_SECONDS = 5.0
RECORD_SECONDS = 10.0
LOG_SECONDS = 5.0
CANCEL_SECONDS = 5.0

_SIGNAL_EXITS = {"SIGINT": ExitCode.INTERRUPTED, "SIGTERM": ExitCode.TERMINATED}


class JobRun:
    """One run; ``run`` is called once.

    Args:
        lease: held by this process.
        started: ``time.monotonic()`` at the start of the command; now if None.
        is_cancelled: asked every few seconds besides the file that cancels this run.
    """

    def __init__(
        self,
        prepared: PreparedJob,
        ledger: Ledger,
        stored: StoredJob,
        lease: HeldLease,
        interrupts: Interrupts,
        view: ProgressView,
        say: Callable[[str], None],
        *,
        started: float | None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._prepared, self._ledger, self._stored = prepared, ledger, stored
        self._lease, self._interrupts, self._is_cancelled = lease, interrupts, is_cancelled
        self._view, self._user = view, say
        self._started = time.monotonic() if started is None else started
        self._tally = RunTally()
        self._documents = RunDocuments(prepared, ledger, stored, self._tally, self._now)
        self._metrics = MetricsExporter(self._documents)
        self._ended: EndInterrupted | None = None
        self._due = {"view": 0.0, "lease": RENEW_SECONDS, "progress": 0.0, "record": RECORD_SECONDS}
        self._due |= {"cancel": 0.0, "log": 0.0}

    @property
    def parts_done(self) -> int:
        """Parts that exist."""
        return self._documents.parts_done

    @property
    def stop_exit(self) -> ExitCode:
        """The exit code of a run that was stopped before the job was complete."""
        if self._interrupts.received is not None:
            return _SIGNAL_EXITS[self._interrupts.received.name]
        return ExitCode.TERMINATED

    def run(self) -> Manifest | None:
        """Decode what is missing and commit; None where the run was interrupted or cancelled.

        Raises:
            SpecbatchError: why the job failed, or that its deadline has come.
        """
        missing = self._begin()
        outcome = "failed"
        try:
            self._keep()
            if missing:
                self._decode(missing)
            outcome = "complete" if self._ended is None else _OUTCOMES[self._ended.reason]
        except StopNow:
            self._ended, outcome = EndInterrupted(), "interrupted"
        except SpecbatchError as error:
            self._documents.log.add(
                Fact("error", "job_failed", f"{error.code.value}: {error.message}", code=error.code.value)
            )
            raise
        except Exception as error:
            raise crash_error(self._ledger, self._documents, self._prepared.output, error) from error
        finally:
            self._close(outcome)
        if self._ended is None:
            return self._commit()
        if self._ended.code is not None:
            raise deadline_error(self._ended.code, self._prepared, self.parts_done, len(self._stored.shards))
        return None

    def _begin(self) -> tuple[Shard, ...]:
        """Find what is there, take an epoch; the shards without a part."""
        documents = self._documents
        documents.found = self._ledger.find_parts(self._stored, on_part=self._keep)
        documents.found_stats = sum_stats({shard: receipt.stats for shard, receipt in documents.found.items()})
        shards = follow_inputs(self._stored.shards, self._prepared.inputs)
        missing = tuple(shard for shard in shards if shard.index not in documents.found)
        documents.forecast = None if documents.found else expect(self._prepared)
        documents.begin(len(missing))
        self._due["lease"] = 0.0  # the renewal that tells the epoch
        if documents.found:
            self._tell(f"resuming {self._prepared.output}: {len(documents.found)} of {len(shards)} parts are there")
        return missing

    def _decode(self, missing: tuple[Shard, ...]) -> None:
        """Decode the missing shards; ``_ended`` says why the run stopped before the last of them."""
        from specbatch.jobs.running.cluster import open_cluster

        execution, spec = self._prepared.execution, self._prepared.spec.execution
        coordinator = make_coordinator(self._prepared, missing, self._documents.found_stats)
        self._documents.coordinator = coordinator
        if execution.memory is not None and execution.memory.note is not None:
            self._tell(execution.memory.note)
        self._view.update(self._documents.progress("starting"))
        num_gpus = count_cuda_devices() if execution.device == "cuda" else 0
        need = WorkerNeed.of(spec, execution.device, execution.num_ranks)
        with (
            open_cluster(spec.address, num_gpus, self._note) as cluster,
            admit_nodes(self._prepared, cluster.view, need, self._note) as gate,
        ):
            self._interrupts.arm()
            self._keep()
            gate.open(self._sleep)
            if line := gate.changes_since(self._ledger.read_runs() if self._documents.found else ()):
                self._note(line)
            runner = Runner(
                coordinator,
                make_worker_config(
                    self._prepared,
                    self._stored,
                    self._documents.epoch,
                    num_workers=min(execution.num_workers, len(missing)),
                ),
                self._tally,
                self._interrupts,
                clock=self._now,
                check_cluster=cluster.check,
                on_tick=self._tick,
                find_parts=lambda shards: list(self._ledger.find_parts(self._stored, shards).values()),
                on_death=lambda worker, pid, reason: self._note_death(cluster, worker, pid, reason),
                on_interrupt=lambda: self._user(
                    "finishing the shards in flight; the same signal again stops at once (nothing finished is lost)"
                ),
                on_say=self._note,
                on_item=self._log_item,
                view=gate.look,
                need=need,
                outside=self._outside,
                num_wanted=0 if spec.workers == "auto" else execution.num_workers,
            )
            self._documents.receipts = runner.receipts
            try:
                ended = runner.run()
            finally:
                self._metrics.send()  # while Ray is still there
        self._ended = ended if isinstance(ended, EndInterrupted) else None

    # ---- the lease ---------------------------------------------------------------------------------------------------

    def _renew_if_due(self) -> bool:
        """False: another run holds the output."""
        return not self._is_due("lease", RENEW_SECONDS) or self._lease.renew(self._documents.epoch or None)

    def _keep(self) -> None:
        """Renew the lease where that is due: also a run that is still starting lives.

        Raises:
            SpecbatchError: JOB_HELD, another run holds the output.
        """
        if not self._renew_if_due():
            raise SpecbatchError(
                ErrorCode.JOB_HELD,
                f"another run has taken over {self._prepared.output} while this one was starting; let it go on",
            )

    def _sleep(self, seconds: float) -> None:
        self._interrupts.sleep(seconds)
        self._keep()

    # ---- while it runs -----------------------------------------------------------------------------------------------

    def _tick(self) -> bool:
        """Do what is due. False: another run holds the output."""
        self._metrics.tick()
        if self._is_due("view", VIEW_SECONDS):
            self._view.update(self._documents.progress(self._documents.state))
        if not self._renew_if_due():
            return False
        if self._is_due("progress", PROGRESS_SECONDS):
            self._documents.write_progress(self._documents.state)
        if self._is_due("record", RECORD_SECONDS):
            self._documents.write_record("running")
        if self._is_due("log", LOG_SECONDS):
            self._documents.write_log()
        return True

    def _outside(self) -> Iterable[Event]:
        """What others want of this run."""
        if not self._is_due("cancel", CANCEL_SECONDS):
            return ()
        try:
            asked = cancel_requested(self._ledger.store, self._documents.epoch, self._lease.token)
            is_cancelled = asked or self._is_cancelled()
        except SpecbatchError as error:
            if error.code is not ErrorCode.JOB_STORE_LOST:
                raise
            return ()  # asked again soon; the writes that matter tell of a store that is gone
        if is_cancelled:
            self._due["cancel"] = math.inf
        return (Cancelled(),) if is_cancelled else ()

    def _is_due(self, what: str, every_seconds: float) -> bool:
        now = self._now()
        if now < self._due[what]:
            return False
        self._due[what] = now + every_seconds
        return True

    def _tell(self, line: str) -> None:
        """One line for the user that is no news: the log has it among the plain ones."""
        self._documents.log.add(Fact("info", "note", line))
        self._user(line)

    def _note(self, line: str) -> None:
        """One line for the user, kept in the record and the log of the run too."""
        self._documents.note(line)
        self._documents.log.add(said(line))
        self._user(line)

    def _note_death(self, cluster: Cluster, worker: int, pid: int | None, reason: str) -> None:
        line = f"worker {worker} died: {reason}"
        self._documents.note(line)  # the log has it from the coordinator's event
        self._user(line)
        if text := save_worker_log(cluster.logs, pid):
            self._documents.keep_log(f"worker-{worker}.txt", text)

    def _log_item(self, item: Event | Command) -> None:
        if fact := fact_of(item):
            self._documents.log.add(fact)

    def _now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    # ---- the end -----------------------------------------------------------------------------------------------------

    def _close(self, outcome: str) -> None:
        """Leave the documents of this run as it ended."""
        documents = self._documents
        documents.log.add(Fact("info", "run_ended", f"run {documents.epoch} ended: {outcome}"))
        try:
            documents.write_record(outcome)
            documents.write_log()
            if self._lease.renew(documents.epoch):
                documents.write_progress(outcome)
        finally:
            self._view.update(documents.progress(outcome))
            self._view.close()

    def _commit(self) -> Manifest:
        return commit_parts(
            self._ledger,
            self._stored,
            self._prepared,
            {**self._documents.found, **self._documents.receipts}.values(),
            before_hash=self._interrupts.check,
            after_hash=self._renew_if_due,
        )


_OUTCOMES = {"signal": "interrupted", "cancelled": "cancelled", "deadline": "deadline"}
