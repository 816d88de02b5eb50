"""One run of a job, from a prepared spec to its outcome: find or begin it, hold it, decode what is missing, commit."""

from __future__ import annotations

import math
import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from specbatch.jobs.cluster import local_cluster
from specbatch.jobs.coordinator import Coordinator, EndInterrupted
from specbatch.jobs.interrupt import Interrupts, StopNow
from specbatch.jobs.lease import RENEW_SECONDS, HeldLease, acquire
from specbatch.jobs.ledger import Ledger, StoredJob, check_same_job, now_text
from specbatch.jobs.machine import count_cores, count_cuda_devices, describe_hardware
from specbatch.jobs.prepare import PreparedJob, follow_inputs
from specbatch.jobs.progress import ProgressView
from specbatch.jobs.runner import Runner, save_worker_log
from specbatch.jobs.tally import RunTally, sum_stats
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError
from specbatch.schemas.manifest import RUN_FORMAT, Manifest
from specbatch.schemas.messages import PartReceipt, WorkerConfig
from specbatch.schemas.plan import Shard
from specbatch.schemas.run import ProgressDocument, RunRecord
from specbatch.schemas.stats import PartStats
from specbatch.specdec.memory import AUTO_MAX_ROWS
from specbatch.storage.store import open_store

PROGRESS_FORMAT = "specbatch/progress/1"
VIEW_SECONDS = 0.5
PROGRESS_SECONDS = 5.0
RECORD_SECONDS = 10.0

_SIGNAL_EXITS = {"SIGINT": ExitCode.INTERRUPTED, "SIGTERM": ExitCode.TERMINATED}


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How a run ended.

    Attributes:
        output: the folder of the job.
        manifest: None where the job was interrupted.
        was_complete: the job had been finished by an earlier run; this one did nothing.
        parts_done: parts that exist now.
        num_parts: parts of the plan.
    """

    output: str
    exit_code: ExitCode
    manifest: Manifest | None
    was_complete: bool
    parts_done: int
    num_parts: int


def run_job(
    prepared: PreparedJob, view: ProgressView, say: Callable[[str], None], *, started: float | None = None
) -> JobOutcome:
    """Run a job to its end, or to the next interruption; what it finds finished is never done again.

    Args:
        view: sees the progress.
        say: takes single lines for the user.
        started: ``time.monotonic()`` at the start of the command; now if None.

    Raises:
        SpecbatchError: why the job failed. Parts that exist are kept.
    """
    ledger = Ledger(open_store(prepared.output))
    stored = _find_or_begin(ledger, prepared)
    finished = ledger.find_manifest()
    if finished is not None:
        ledger.seal()
        return _complete_outcome(prepared, finished, was_complete=True)
    with Interrupts() as interrupts:
        lease = acquire(
            ledger.store,
            sleep=interrupts.sleep,
            on_wait=lambda found: say(
                f"{prepared.output} is held by process {found.pid} on {found.host}; waiting for a sign of life "
                f"(at most {found.ttl_seconds:.0f} s)"
            ),
        )
        try:
            run = _Run(prepared, ledger, stored, lease, interrupts, view, say)
            if started is not None:
                run.started = started
            return run.run()
        finally:
            lease.release()


def _find_or_begin(ledger: Ledger, prepared: PreparedJob) -> StoredJob:
    stored = ledger.find_job()
    if stored is not None:
        check_same_job(stored, prepared.identity, prepared.output)
        return stored
    spec = prepared.spec.model_dump(mode="json")
    try:
        return ledger.begin_job(prepared.identity, prepared.models, spec, prepared.shards)
    except SpecbatchError as error:
        if error.code is ErrorCode.JOB_OUTPUT_UNWRITABLE and prepared.output_is_default:
            raise SpecbatchError(error.code, f"{error.message}; name another folder with --output") from error
        raise


def _complete_outcome(prepared: PreparedJob, manifest: Manifest, *, was_complete: bool) -> JobOutcome:
    has_errors = manifest.commit.counts.errors > 0 and not prepared.spec.execution.row_errors_ok
    num_parts = len(manifest.commit.parts)
    exit_code = ExitCode.ROW_ERRORS if has_errors else ExitCode.COMPLETE
    return JobOutcome(prepared.output, exit_code, manifest, was_complete, num_parts, num_parts)


@dataclass(slots=True)
class _Run:
    """One epoch: its tally, its documents, and what is due when."""

    prepared: PreparedJob
    ledger: Ledger
    stored: StoredJob
    lease: HeldLease
    interrupts: Interrupts
    view: ProgressView
    say: Callable[[str], None]
    tally: RunTally = field(default_factory=RunTally)
    found: dict[int, PartReceipt] = field(default_factory=dict)
    found_stats: PartStats = field(default_factory=PartStats)
    coordinator: Coordinator | None = None
    runner: Runner | None = None
    record: RunRecord | None = None
    started: float = field(default_factory=time.monotonic)
    view_due: float = 0.0
    lease_due: float = RENEW_SECONDS
    progress_due: float = 0.0
    record_due: float = RECORD_SECONDS

    @property
    def epoch(self) -> int:
        return self.record.epoch if self.record is not None else 0

    def run(self) -> JobOutcome:
        self.found = self.ledger.find_parts(self.stored)
        self.found_stats = sum_stats({shard: receipt.stats for shard, receipt in self.found.items()})
        shards = follow_inputs(self.stored.shards, self.prepared.inputs)
        missing = tuple(shard for shard in shards if shard.index not in self.found)
        self.record = self.ledger.begin_run(self._build_record("running", len(missing)))
        self.lease.renew(self.epoch)
        if self.found:
            self.say(f"resuming {self.prepared.output}: {len(self.found)} of {len(shards)} parts are there")
        outcome = "failed"
        try:
            interrupted = bool(missing) and self._decode(missing)
            outcome = "interrupted" if interrupted else "complete"
        except StopNow:
            interrupted, outcome = True, "interrupted"
        except SpecbatchError:
            raise
        except Exception as error:
            key = self.ledger.write_log(self.epoch, "crash.txt", traceback.format_exc())
            where = Path(self.prepared.output) / key
            raise SpecbatchError(
                ErrorCode.JOB_INTERNAL,
                f"{type(error).__name__}: {_first_line(error)} (details in {where}); "
                "finished parts are kept, run the same command to go on",
            ) from error
        finally:
            self._close(outcome)
        if interrupted:
            return self._interrupted_outcome()
        return self._commit()

    def _decode(self, missing: tuple[Shard, ...]) -> bool:
        """Decode the missing shards on a Ray of our own; True where the run was interrupted."""
        execution = self.prepared.execution
        num_workers = min(execution.num_workers, len(missing))
        batch_size = AUTO_MAX_ROWS[execution.device] if execution.batch_size == "auto" else execution.batch_size
        most_results = max(shard.num_rows for shard in missing) * self.prepared.spec.generation.num_samples
        self.coordinator = Coordinator(
            missing,
            num_workers=num_workers,
            # Enough shards to fill a batch, and one more to refill it from.
            leases_per_worker=max(math.ceil(batch_size / most_results) + 1, 2),
            max_error_rate=self.prepared.spec.execution.max_error_rate,
            rows_done=self.found_stats.num_results,
            errors_done=self.found_stats.num_errors,
        )
        config = self._worker_config(num_workers)
        if execution.memory is not None and execution.memory.note is not None:
            self.say(execution.memory.note)
        self._show("starting")
        with local_cluster(count_cuda_devices() if execution.device == "cuda" else 0) as cluster:
            self.interrupts.arm()

            def on_death(worker: int, pid: int | None, reason: str) -> None:
                self.say(f"worker {worker} died: {reason}")
                if text := save_worker_log(cluster.logs, pid):
                    self.ledger.write_log(self.epoch, f"worker-{worker}.txt", text)

            self.runner = Runner(
                self.coordinator,
                config,
                self.tally,
                self.interrupts,
                clock=self._now,
                check_cluster=cluster.check,
                on_tick=self._tick,
                find_parts=lambda shards: list(self.ledger.find_parts(self.stored, shards).values()),
                on_death=on_death,
                on_interrupt=lambda: self.say(
                    "finishing the shards in flight; the same signal again stops at once (nothing finished is lost)"
                ),
            )
            return isinstance(self.runner.run(), EndInterrupted)

    def _worker_config(self, num_workers: int) -> WorkerConfig:
        prepared, execution = self.prepared, self.prepared.execution
        return WorkerConfig(
            worker=0,
            output=prepared.output,
            plan=self.stored.plan,
            target_path=str(prepared.target.path),
            draft_path=str(execution.draft.path) if execution.draft is not None else None,
            dtype=execution.dtype,
            device=execution.device,
            speculation=execution.speculation,
            batch_size=execution.batch_size,
            num_threads=max(count_cores() // num_workers, 1),
            prompt_column=prepared.spec.input.prompt_column,
            generation=prepared.spec.generation,
            columns=prepared.columns,
            memory_fraction=execution.memory_fraction / (num_workers if execution.device == "cpu" else 1),
        )

    def _commit(self) -> JobOutcome:
        receipts = {**self.found, **(self.runner.receipts if self.runner is not None else {})}
        hashed = [
            # A digest is taken over only from the process that made the file; any other part is read.
            receipt if receipt.created and receipt.sha256 else replace(receipt, sha256=self._hash(receipt))
            for receipt in receipts.values()
        ]
        manifest = self.ledger.commit(self.stored, self.prepared.models, hashed)
        return _complete_outcome(self.prepared, manifest, was_complete=False)

    def _hash(self, receipt: PartReceipt) -> str:
        self.interrupts.check()
        digest = self.ledger.hash_part(receipt.path)
        if self._now() >= self.lease_due:
            self.lease_due = self._now() + RENEW_SECONDS
            self.lease.renew(self.epoch)
        return digest

    def _interrupted_outcome(self) -> JobOutcome:
        assert self.interrupts.received is not None
        exit_code = _SIGNAL_EXITS[self.interrupts.received.name]
        num_parts = len(self.stored.shards)
        return JobOutcome(self.prepared.output, exit_code, None, False, self._parts_done(), num_parts)

    def _tick(self) -> bool:
        """Do what is due. False: another run holds the output."""
        now = self._now()
        if now >= self.view_due:
            self.view_due = now + VIEW_SECONDS
            self._show("running")
        if now >= self.lease_due:
            self.lease_due = now + RENEW_SECONDS
            if not self.lease.renew(self.epoch):
                return False
        if now >= self.progress_due:
            self.progress_due = now + PROGRESS_SECONDS
            self.ledger.write_progress(self._build_progress("running"))
        if now >= self.record_due:
            self.record_due = now + RECORD_SECONDS
            self._write_record("running")
        return True

    def _show(self, state: str) -> None:
        self.view.update(self._build_progress(state))

    def _close(self, outcome: str) -> None:
        """Leave the documents of this run as it ended."""
        self._write_record(outcome)
        if self.lease.renew(self.epoch):
            self.ledger.write_progress(self._build_progress(outcome))
        self._show(outcome)
        self.view.close()

    def _write_record(self, outcome: str) -> None:
        assert self.record is not None
        self.record = self._build_record(outcome, len(self.stored.shards) - len(self.found))
        self.ledger.write_run(self.record)

    def _build_record(self, outcome: str, num_missing: int) -> RunRecord:
        execution = self.prepared.execution_document()
        if num_missing:
            execution["workers"] = min(execution["workers"], num_missing)
            execution["num_threads"] = max(count_cores() // execution["workers"], 1)
        return RunRecord(
            format=RUN_FORMAT,
            epoch=self.epoch,
            started_at=self.record.started_at if self.record is not None else now_text(),
            host=socket.gethostname(),
            pid=os.getpid(),
            outcome=outcome,
            wall_seconds=self.tally.wall_seconds,
            total_seconds=self._now(),
            attempts=self.coordinator.num_attempts if self.coordinator is not None else 0,
            restarts=self.coordinator.num_restarts if self.coordinator is not None else 0,
            parts_found=len(self.found),
            execution=execution,
            hardware=describe_hardware(),
            workers=self.tally.worker_records(),
        )

    def _build_progress(self, state: str) -> ProgressDocument:
        num_rows = sum(shard.num_rows for shard in self.stored.shards)
        done = self.runner.receipts.values() if self.runner is not None else ()
        return ProgressDocument(
            format=PROGRESS_FORMAT,
            epoch=self.epoch,
            host=socket.gethostname(),
            pid=os.getpid(),
            updated_at=now_text(),
            state=state,
            num_rows=num_rows,
            num_parts=len(self.stored.shards),
            parts_done=self._parts_done(),
            rows_in_parts=self.found_stats.num_rows + sum(receipt.num_rows for receipt in done),
            **self.tally.progress_fields(num_rows, self.found_stats),
        )

    def _parts_done(self) -> int:
        return len(self.found) + (len(self.runner.receipts) if self.runner is not None else 0)

    def _now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.started


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
