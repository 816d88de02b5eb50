"""``specbatch status``: where a job stands, told from its files alone, without asking any process."""

from __future__ import annotations

import json
import os
import shlex
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from specbatch.jobs import formatting as fmt
from specbatch.jobs.jobdocument import JOB_KEY, decode_job
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import JobDocument
from specbatch.schemas.plan import part_name
from specbatch.schemas.run import ProgressDocument

if TYPE_CHECKING:
    from specbatch.storage.store import Store

STATUS_FORMAT = "specbatch/status/1"
FRESH_SECONDS = 30.0
"""A run overwrites its progress every few seconds; older than this, it is taken for gone."""

_PROGRESS_KEY = "_specbatch/progress.json"

State = Literal["complete", "running", "interrupted", "not a job"]


@dataclass(frozen=True, slots=True)
class StatusReport:
    """Where a job stands.

    Attributes:
        num_rows, num_parts: as planned; None where neither a progress file nor a plan could be read.
        rows_done: rows of the whole job, those in flight included while it runs.
        tokens_per_second, acceptance_rate, mean_emitted: of the last run, or of the whole job when complete.
        detail: what the state rests on, in words.
        next_step: what the user can do now.
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


def render_status(report: StatusReport, format: str) -> str:
    """The status as text for people (``human``) or as one JSON object (``json``); ends with a line break.

    Raises:
        SpecbatchError: ``JOB_CONFIG``, no such format.
    """
    if format == "json":
        return json.dumps({"format": STATUS_FORMAT, **asdict(report)}, indent=2) + "\n"
    if format != "human":
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"format is {format!r}; it must be one of human, json")
    lines = [f"{fmt.clean(report.output)}: {report.state}", f"  {fmt.clean(report.detail)}"]
    if report.job_id is not None:
        errors = f", {fmt.plural(report.num_errors, 'error')}" if report.num_errors else ""
        lines.append(f"  {report.describe_progress()}{errors}")
        speed = []
        if report.tokens_per_second:
            speed.append(f"{fmt.rate(report.tokens_per_second)} tokens/s")
        if report.acceptance_rate is not None:
            speed.append(f"acceptance {report.acceptance_rate:.2f}")
        if report.mean_emitted is not None:
            speed.append(f"{report.mean_emitted:.2f} tokens per row and round")
        if report.num_workers is not None:
            speed.append(fmt.plural(report.num_workers, "worker"))
        if report.eta_seconds is not None:
            speed.append(f"eta {fmt.clock(report.eta_seconds)}")
        if speed:
            lines.append(f"  {', '.join(speed)}")
    lines.append(f"  next: {fmt.clean(report.next_step)}")
    return "\n".join(lines) + "\n"


def _complete(output: str, job: JobDocument, store: Store, data: bytes) -> StatusReport:
    from specbatch.jobs.amended import amended_counts, read_amendments
    from specbatch.jobs.manifest import decode_manifest

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
    progress = _read_progress(store)
    shard_rows = _planned_rows(store, job.identity.P)
    present = set(store.list("data"))
    done = [rows for shard, rows in shard_rows.items() if part_name(shard, job.identity.P) in present]
    running, detail = _judge(progress, now)
    rows_done = sum(done)
    if running and progress is not None:
        rows_done = max(rows_done, min(progress.num_rows, progress.rows_done))
    return StatusReport(
        output=output,
        state="running" if running else "interrupted",
        detail=detail,
        next_step=_next_step(output, store, progress, running=running),
        job_id=job.job_id,
        num_rows=sum(shard_rows.values()) if shard_rows else (progress.num_rows if progress else None),
        rows_done=rows_done,
        num_parts=len(shard_rows) if shard_rows else (progress.num_parts if progress else None),
        parts_done=len(done),
        num_errors=progress.num_errors if progress else 0,
        tokens_per_second=progress.tokens_per_second if progress else None,
        acceptance_rate=progress.acceptance_rate if progress else None,
        mean_emitted=progress.mean_emitted if progress else None,
        eta_seconds=progress.eta_seconds if progress and running else None,
        num_workers=len(progress.workers) if progress and running else None,
    )


def _next_step(output: str, store: Store, progress: ProgressDocument | None, *, running: bool) -> str:
    from specbatch.jobs.cancel import cancel_requested

    if not running or progress is None:
        return f"{_command('resume', output)} decodes what is missing"
    if cancel_requested(store, progress.epoch):
        return "wait: it was asked to stop, and finishes the shards in flight"
    return f"wait, or stop it with {_command('cancel', output)}: finished parts are kept"


def _command(name: str, output: str) -> str:
    return f"specbatch {name} {shlex.quote(output)}"


def _judge(progress: ProgressDocument | None, now: datetime) -> tuple[bool, str]:
    """Whether a run is alive, and what that judgement rests on."""
    if progress is None:
        return False, "no run has reported yet, or its report cannot be read"
    who = f"run {progress.epoch} (process {progress.pid} on {progress.host})"
    if progress.state in ("interrupted", "cancelled", "deadline", "failed"):
        return False, f"{who} ended: {progress.state}"
    if progress.state == "complete":
        who += " decoded the last row; it"
    try:
        updated = datetime.fromisoformat(progress.updated_at)
    except ValueError:
        return False, f"{who} reported at a time that cannot be read"
    age_seconds = (now - (updated if updated.tzinfo else updated.replace(tzinfo=UTC))).total_seconds()
    if progress.host == socket.gethostname() and not _process_exists(progress.pid):
        return False, f"{who} is gone, last reported {fmt.clock(age_seconds)} ago"
    if age_seconds > FRESH_SECONDS:
        return False, f"{who} last reported {fmt.clock(age_seconds)} ago and is taken for gone"
    return True, f"{who} reported {fmt.clock(age_seconds)} ago"


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


def _read_progress(store: Store) -> ProgressDocument | None:
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
