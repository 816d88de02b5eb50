"""``specbatch status``: where a job stands, told from its files alone, without asking any process."""

from __future__ import annotations

import os
import shlex
import socket
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.display.progress import RowCount
from specbatch.jobs.output.jobdocument import JOB_KEY, decode_job
from specbatch.jobs.output.submissions import describe_waiting
from specbatch.jobs.watching.status_text import STATUS_FORMAT as STATUS_FORMAT
from specbatch.jobs.watching.status_text import render_status as render_status
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import JobDocument
from specbatch.schemas.plan import part_name
from specbatch.schemas.run import ProgressDocument, RunRecord

if TYPE_CHECKING:
    from specbatch.storage.store import Store

FRESH_SECONDS = 30.0
"""A run overwrites its progress every few seconds; older than this, it is taken for gone."""
ENDED = ("interrupted", "cancelled", "deadline", "failed")
"""States that a run leaves in its progress when it ends before the job does."""

_PROGRESS_KEY = "_specbatch/progress.json"

State = Literal["complete", "running", "submitted", "interrupted", "not a job"]


@dataclass(frozen=True, slots=True)
class StatusReport:
    """Where a job stands.

    Attributes:
        num_rows, num_parts: as planned; None where neither a progress file nor a plan could be read.
        rows_done: rows of the whole job, those in flight included while it runs.
        tokens_per_second, acceptance_rate, mean_emitted: of the last run, or of the whole job when complete.
        detail: what the state rests on, in words.
        next_step: what the user can do now.
        k_shares, errors_by_code, workers, notes: as the progress document has them; ``workers`` while a run is alive.
        silence_seconds: since the run last reported, where that is too long ago; else None.
    """

    output: str
    state: State
    detail: str
    next_step: str
    job_id: str | None = None
    num_rows: int | None = None
    rows_done: int = 0
    num_parts: int | None = None
    parts_done: int = 0
    num_errors: int = 0
    tokens_per_second: float | None = None
    acceptance_rate: float | None = None
    mean_emitted: float | None = None
    eta_seconds: float | None = None
    num_workers: int | None = None
    tokens_per_second_overall: float | None = None
    mean_accepted: float | None = None
    k_shares: dict[str, float] = field(default_factory=dict)
    errors_by_code: dict[str, int] = field(default_factory=dict)
    remaining_tokens: int | None = None
    elapsed_seconds: float | None = None
    epoch: int | None = None
    run_state: str | None = None
    silence_seconds: float | None = None
    workers: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, str]] = field(default_factory=list)

    def describe_progress(self) -> str:
        """``128 of 256 rows (8 of 16 parts)``"""
        rows = "?" if self.num_rows is None else fmt.count(self.num_rows)
        parts = "?" if self.num_parts is None else fmt.count(self.num_parts)
        return f"{fmt.count(self.rows_done)} of {rows} rows ({fmt.count(self.parts_done)} of {parts} parts)"


def read_status(output: str, now: datetime | None = None) -> StatusReport:
    """Reads the state of an output.

    Args:
        now: the time to judge the age of the progress by; the present if None.

    Raises:
        SpecbatchError: ``JOB_OUTPUT_MISSING``, there is nothing there at all; ``JOB_FORMAT``, written by another
            version; ``JOB_URI_INVALID``.
    """
    from specbatch.storage.store import NotFound, open_store

    store = open_store(output)
    try:
        job = decode_job(store.read(JOB_KEY), output)
    except NotFound:
        if not store.list(""):
            raise SpecbatchError(
                ErrorCode.JOB_OUTPUT_MISSING,
                f"{output} does not exist or is empty; give the folder that `specbatch submit` named",
            ) from None
        return StatusReport(
            output=output,
            state="not a job",
            detail="there are files here, but no _specbatch/job.json",
            next_step="give the folder that `specbatch submit` named",
        )
    try:
        manifest = store.read("manifest.json")
    except NotFound:
        return _unfinished(output, job, store, now or datetime.now(UTC))
    return _complete(output, job, store, manifest)


def _complete(output: str, job: JobDocument, store: Store, data: bytes) -> StatusReport:
    from specbatch.jobs.output.amended import amended_counts, read_amendments
    from specbatch.jobs.output.manifest import decode_manifest

    manifest = decode_manifest(data)
    amendments = read_amendments(store)
    counts, acceptance = amended_counts(manifest, amendments), manifest.commit.acceptance
    with_them = f", with {fmt.plural(len(amendments), 'amendment')}" if amendments else ""
    detail = f"the manifest is written{with_them}"
    if not _exists(store, "_SUCCESS"):
        detail = f"{detail}, _SUCCESS is not; to add it: {_command('resume', output)}"
    return StatusReport(
        output=output,
        state="complete",
        detail=detail,
        next_step=_command("report", output),
        job_id=job.job_id,
        num_rows=counts.rows,
        rows_done=counts.rows,
        num_parts=len(manifest.commit.parts),
        parts_done=len(manifest.commit.parts),
        num_errors=counts.errors,
        tokens_per_second=manifest.observed.throughput.output_tokens_per_second,
        acceptance_rate=acceptance.rate,
        mean_emitted=acceptance.mean_emitted,
    )


def _unfinished(output: str, job: JobDocument, store: Store, now: datetime) -> StatusReport:
    progress = read_progress(store)
    running, detail = judge(progress, now)
    waiting = None if running else describe_waiting(store)
    num_rows, rows_done, num_parts, parts_done = _how_far(store, job, progress, running=running)
    report = StatusReport(
        output=output,
        state="running" if running else "submitted" if waiting else "interrupted",
        detail=waiting or detail,
        next_step=_next_step(output, store, progress, running=running, waits=waiting is not None),
        job_id=job.job_id,
        num_rows=num_rows,
        rows_done=rows_done,
        num_parts=num_parts,
        parts_done=parts_done,
    )
    if progress is None:
        return report
    silence_seconds = age_seconds(progress, now)
    is_silent = silence_seconds is not None and silence_seconds > FRESH_SECONDS and progress.state not in ENDED
    return replace(
        report,
        num_errors=progress.num_errors,
        tokens_per_second=progress.tokens_per_second,
        acceptance_rate=progress.acceptance_rate,
        mean_emitted=progress.mean_emitted,
        eta_seconds=progress.eta_seconds if running else None,
        num_workers=len(progress.workers) if running else None,
        tokens_per_second_overall=progress.tokens_per_second_overall,
        mean_accepted=progress.mean_accepted,
        k_shares=dict(progress.k_shares),
        errors_by_code=dict(progress.errors_by_code),
        remaining_tokens=progress.remaining_tokens if running else None,
        elapsed_seconds=progress.elapsed_seconds,
        epoch=progress.epoch,
        run_state=progress.state,
        silence_seconds=silence_seconds if is_silent else None,
        workers=list(progress.workers) if running else [],
        notes=[note.model_dump() for note in progress.notes],
    )


def _how_far(
    store: Store, job: JobDocument, progress: ProgressDocument | None, *, running: bool
) -> tuple[int | None, int, int | None, int]:
    """Rows of the job and those done, parts and those done: as a living run says, else by the parts that are there."""
    if running and progress is not None:
        return progress.num_rows, RowCount()(progress), progress.num_parts, progress.parts_done
    shard_rows = _planned_rows(store, job.identity.P)
    present = set(store.list("data"))
    done = [rows for shard, rows in shard_rows.items() if part_name(shard, job.identity.P) in present]
    if shard_rows:
        return sum(shard_rows.values()), sum(done), len(shard_rows), len(done)
    if progress is not None:
        return progress.num_rows, 0, progress.num_parts, 0
    return None, 0, None, 0


def _next_step(output: str, store: Store, progress: ProgressDocument | None, *, running: bool, waits: bool) -> str:
    from specbatch.jobs.output.cancel import cancel_requested

    if not waits and (not running or progress is None):
        why = f"; {_command('report', output)} says why it ended" if progress is not None else ""
        return f"{_command('resume', output)} decodes what is missing{why}"
    if running and progress is not None and cancel_requested(store, progress.epoch):
        return "wait: it was asked to stop, and finishes the shards in flight"
    return f"wait, or stop it with {_command('cancel', output)}: finished parts are kept"


def _command(name: str, output: str) -> str:
    return f"specbatch {name} {shlex.quote(output)}"


def judge(progress: ProgressDocument | None, now: datetime) -> tuple[bool, str]:
    """Whether a run is alive, and what that judgement rests on."""
    if progress is None:
        return False, "no run has reported yet, or its report cannot be read"
    who = f"run {progress.epoch} (process {progress.pid} on {progress.host})"
    if progress.state in ENDED:
        return False, f"{who} ended: {progress.state}"
    if progress.state == "complete":
        who += " decoded the last row; it"
    age = age_seconds(progress, now)
    if age is None:
        return False, f"{who} reported at a time that cannot be read"
    if is_gone(progress):
        return False, f"{who} is gone, last reported {fmt.clock(age)} ago"
    if age > FRESH_SECONDS:
        return False, f"{who} last reported {fmt.clock(age)} ago and is taken for gone"
    return True, f"{who} reported {fmt.clock(age)} ago"


def age_seconds(progress: ProgressDocument, now: datetime) -> float | None:
    """Time since a run reported, by two clocks that may differ; None where it reported at no time that can be read."""
    try:
        updated = datetime.fromisoformat(progress.updated_at)
    except ValueError:
        return None
    return (now - (updated if updated.tzinfo else updated.replace(tzinfo=UTC))).total_seconds()


def is_gone(progress: ProgressDocument | RunRecord) -> bool:
    """Whether the process of a run is known to be gone; of another host nothing is known."""
    return progress.host == socket.gethostname() and not _process_exists(progress.pid)


def _process_exists(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    try:
        # A killed process whose parent has not noticed yet still answers to signals; it is the Z behind the name.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def read_progress(store: Store) -> ProgressDocument | None:
    """The progress file; None where there is none or it is damaged, which must not hide the parts that exist."""
    from specbatch.storage.store import NotFound

    try:
        return ProgressDocument.model_validate_json(store.read(_PROGRESS_KEY))
    except (NotFound, ValidationError):
        return None


def _planned_rows(store: Store, plan: str) -> dict[int, int]:
    """Rows by shard; empty where the plan is not there or damaged, which ``verify`` reports."""
    from specbatch.storage.planfile import decode_plan
    from specbatch.storage.store import NotFound

    try:
        return {shard.index: shard.num_rows for shard in decode_plan(store.read(f"_specbatch/plan-{plan}.parquet"))}
    except (NotFound, SpecbatchError, AssertionError):
        return {}


def _exists(store: Store, key: str) -> bool:
    from specbatch.storage.store import NotFound

    try:
        store.size(key)
    except NotFound:
        return False
    return True
