"""``specbatch list``: the jobs below a folder or prefix, told from their files.

Folders are walked level by level, one listing each; an output is a folder that has ``_specbatch`` in it, and is not
walked into. Of each job three small objects are read, many jobs at a time. A job that cannot be read is a line too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.display.cells import left, right, text_width
from specbatch.jobs.display.progress import RowCount
from specbatch.jobs.output.jobdocument import JOB_KEY, decode_job
from specbatch.jobs.output.manifest import MANIFEST_NAME, decode_manifest
from specbatch.jobs.watching.status import judge, read_progress
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.folders import Listing, child, list_folder
from specbatch.storage.store import NotFound, open_store

if TYPE_CHECKING:
    from specbatch.schemas.manifest import JobDocument
    from specbatch.schemas.run import ProgressDocument
    from specbatch.storage.store import Store

LIST_FORMAT = "specbatch/list/1"
MAX_DEPTH = 4
MAX_FOLDERS = 10_000
_NUM_READERS = 16
_JOB_FOLDER = "_specbatch"

JobState = Literal["running", "complete", "interrupted", "failed", "incomplete", "unreadable"]


@dataclass(frozen=True, slots=True)
class JobLine:
    """A job of a list. None where its files do not say.

    Attributes:
        state: ``incomplete``, no run has reported anything of it; ``failed`` and ``interrupted``, its last run ended
            so or is gone; ``unreadable``, ``detail`` says why.
        started_at: when the job was first begun; ``finished_at``: when its last row was decoded.
        duration_seconds: of all runs where the job is complete, else of the last one.
        tokens_per_second: output tokens, as for the duration; of a running job as it is now.
    """

    output: str
    state: JobState
    detail: str = ""
    job_id: str | None = None
    num_rows: int | None = None
    rows_done: int | None = None
    num_errors: int | None = None
    started_at: str | None = None
    finished_at: str | None = None
    duration_seconds: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class JobList:
    """The jobs below a prefix, newest first; ``is_whole`` is False where there were more folders than are walked."""

    prefix: str
    jobs: tuple[JobLine, ...]
    is_whole: bool


def list_jobs(
    prefix: str, *, max_depth: int = MAX_DEPTH, max_folders: int = MAX_FOLDERS, now: datetime | None = None
) -> JobList:
    """Find all jobs below a prefix, itself included.

    Args:
        max_depth: folders below the prefix that an output may lie deep.
        max_folders: most folders that are listed.

    Raises:
        SpecbatchError: ``JOB_OUTPUT_MISSING``, there is nothing at all; ``JOB_URI_INVALID``; the prefix itself cannot
            be listed.
    """
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        outputs, is_whole = _find_outputs(prefix, max_depth, max_folders, pool)
        moment = now or datetime.now(UTC)
        lines = list(pool.map(lambda output: _read_line(output, moment), outputs))
    lines.sort(key=lambda line: line.output)
    lines.sort(key=lambda line: line.started_at or "", reverse=True)
    return JobList(prefix, tuple(lines), is_whole)


def _find_outputs(
    prefix: str, max_depth: int, max_folders: int, pool: ThreadPoolExecutor
) -> tuple[list[str | JobLine], bool]:
    root = list_folder(prefix)
    if not root.folders and not root.files:
        raise SpecbatchError(
            ErrorCode.JOB_OUTPUT_MISSING, f"{prefix} does not exist or is empty; give a folder or prefix with outputs"
        )
    if _JOB_FOLDER in root.folders:
        return [prefix], True
    found: list[str | JobLine] = []
    is_whole, num_listed = root.is_whole, 1
    level = _walkable(prefix, root.folders)
    for _ in range(max_depth):
        is_whole &= num_listed + len(level) <= max_folders
        level = level[: max_folders - num_listed]
        num_listed += len(level)
        below: list[str] = []
        for uri, listing in zip(level, pool.map(_try_list, level), strict=True):
            if isinstance(listing, JobLine):
                found.append(listing)
            elif _JOB_FOLDER in listing.folders:
                found.append(uri)
            else:
                is_whole &= listing.is_whole
                below += _walkable(uri, listing.folders)
        level = below
    return found, is_whole


def _walkable(uri: str, folders: Sequence[str]) -> list[str]:
    return [child(uri, name) for name in folders if not name.startswith((".", "_"))]


def _try_list(uri: str) -> Listing | JobLine:
    try:
        return list_folder(uri)
    except SpecbatchError as error:
        return JobLine(uri, "unreadable", error.message)


def _read_line(output: str | JobLine, now: datetime) -> JobLine:
    if isinstance(output, JobLine):
        return output
    try:
        return _read_job(output, open_store(output), now)
    except SpecbatchError as error:
        return JobLine(output, "unreadable", error.message)


def _read_job(output: str, store: Store, now: datetime) -> JobLine:
    try:
        job = decode_job(store.read(JOB_KEY), output)
    except NotFound:
        return JobLine(output, "incomplete", "it was never begun: there is no job.json")
    progress = read_progress(store)
    try:
        manifest = decode_manifest(store.read(MANIFEST_NAME))
    except NotFound:
        return _unfinished(output, job, progress, now)
    throughput = manifest.observed.throughput
    is_of_the_end = progress is not None and progress.state == "complete"
    return JobLine(
        output,
        "complete",
        job_id=job.job_id,
        num_rows=manifest.commit.counts.rows,
        rows_done=manifest.commit.counts.rows,
        num_errors=manifest.commit.counts.errors,
        started_at=job.created_at,
        finished_at=progress.updated_at if progress is not None and is_of_the_end else None,
        duration_seconds=throughput.total_seconds,
        tokens_per_second=throughput.output_tokens_per_second,
    )


def _unfinished(output: str, job: JobDocument, progress: ProgressDocument | None, now: datetime) -> JobLine:
    if progress is None:
        detail = "no run has reported yet"
        return JobLine(output, "incomplete", detail, job_id=job.job_id, started_at=job.created_at)
    is_running, detail = judge(progress, now)
    state: JobState = "running" if is_running else "failed" if progress.state == "failed" else "interrupted"
    return JobLine(
        output,
        state,
        detail,
        job_id=job.job_id,
        num_rows=progress.num_rows,
        rows_done=RowCount()(progress) if is_running else progress.rows_in_parts,
        num_errors=progress.num_errors,
        started_at=job.created_at,
        duration_seconds=progress.elapsed_seconds,
        tokens_per_second=progress.tokens_per_second if is_running else progress.tokens_per_second_overall,
    )


# ---- as text ---------------------------------------------------------------------------------------------------------


def render_list(jobs: JobList, format: str) -> str:
    """The list as a table (``human``), as one JSON object (``json``) or one object a line (``jsonl``).

    Raises:
        SpecbatchError: ``JOB_CONFIG``, no such format.
    """
    if format == "json":
        return json.dumps({"format": LIST_FORMAT, **asdict(jobs)}, indent=2) + "\n"
    if format == "jsonl":
        return "".join(json.dumps({"format": LIST_FORMAT, **asdict(line)}) + "\n" for line in jobs.jobs)
    if format != "human":
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"format is {format!r}; it must be one of human, json, jsonl")
    if not jobs.jobs:
        return f"no jobs below {fmt.clean(jobs.prefix)}\n"
    names = ("state", "rows", "errors", "started", "finished", "duration", "tok/s", "output")
    rows = [names, *(_cells(line) for line in jobs.jobs)]
    widths = [max(text_width(row[column]) for row in rows) for column in range(len(names))]
    fills = (left, right, right, left, left, right, right, left)
    return "".join(
        "  ".join(fill(cell, width) for fill, cell, width in zip(fills, row, widths, strict=True)).rstrip() + "\n"
        for row in rows
    )


def _cells(line: JobLine) -> tuple[str, ...]:
    done = "-" if line.rows_done is None else fmt.count(line.rows_done)
    total = "-" if line.num_rows is None else fmt.count(line.num_rows)
    output = fmt.clean(line.output)
    if line.state == "unreadable":
        output += f" ({fmt.clean(line.detail)})"
    return (
        line.state,
        f"{done}/{total}",
        "-" if line.num_errors is None else fmt.count(line.num_errors),
        _minute(line.started_at),
        _minute(line.finished_at),
        "-" if line.duration_seconds is None else fmt.clock(line.duration_seconds),
        fmt.rate(line.tokens_per_second) if line.tokens_per_second else "-",
        output,
    )


def _minute(at: str | None) -> str:
    """``2026-11-23 22:00Z``"""
    if at is None:
        return "-"
    try:
        return datetime.fromisoformat(at).astimezone(UTC).strftime("%Y-%m-%d %H:%MZ")
    except (ValueError, OverflowError):
        return "-"
