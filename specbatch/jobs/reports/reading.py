"""What a report is made from: the manifest of a finished job, or what lies in the output of one that has none.

Of an unfinished job a manifest is put together as if it were written now, from the footers of the parts that exist and
the records of the runs: so every section of the report says what is there so far. Nothing is written.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from specbatch.jobs.output.ledger import Ledger, StoredJob
from specbatch.jobs.output.manifest import MANIFEST_NAME, Part, build_commit, build_observed, decode_manifest
from specbatch.jobs.output.observations import end_time
from specbatch.jobs.output.results import read_outcomes, result_prefix
from specbatch.jobs.reports.unfinished import (
    MAX_LOG_ROWS,
    LogLine,
    Standing,
    Unfinished,
    merged_errors,
    remaining,
)
from specbatch.jobs.reports.verdict import forecast_seconds
from specbatch.jobs.watching.logs import RunLogReader
from specbatch.jobs.watching.status import ENDED, is_gone, judge, read_progress
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import MANIFEST_FORMAT, Manifest, PartRecord
from specbatch.schemas.messages import PartReceipt
from specbatch.schemas.run import ProgressDocument, RunRecord
from specbatch.storage.store import NotFound, Store, open_store

MAX_PARTS_SEARCHED = 20
"""Parts with error rows that are read for the numbers of those rows."""
MAX_ROWS_NAMED = 5
START_UP_SECONDS = 120.0
"""A run that has said nothing yet is taken to be starting for so long."""


def load_night(output: str, now: datetime | None = None) -> tuple[Manifest, Unfinished | None]:
    """The manifest of a job; of one without a manifest what it would say now, with what is known of its end.

    Args:
        now: the time to judge by whether a run is alive; the present if None.

    Raises:
        SpecbatchError: ``JOB_OUTPUT_MISSING``, nothing there or no job; ``JOB_FORMAT``, ``JOB_INTEGRITY``, something
            there cannot be read; ``JOB_URI_INVALID``.
    """
    store = open_store(output)
    manifest = _read_manifest(store)
    if manifest is not None:
        return manifest, None
    stored = _find_job(store, output)
    ledger = Ledger(store)
    receipts = sorted(ledger.find_parts(stored).values(), key=lambda receipt: receipt.shard)
    runs = ledger.read_runs()
    progress = read_progress(store)
    manifest = _read_manifest(store)  # written while we looked
    if manifest is not None:
        return manifest, None
    partial = _put_together(stored, receipts, runs)
    return partial, _describe(output, store, stored, receipts, runs, progress, partial, now or datetime.now(UTC))


def _find_job(store: Store, output: str) -> StoredJob:
    """The job of an output.

    Raises:
        SpecbatchError: ``JOB_OUTPUT_MISSING``, ``JOB_FORMAT``, ``JOB_INTEGRITY``.
    """
    try:
        stored = Ledger(store).find_job()
    except SpecbatchError as error:
        if error.code is not ErrorCode.JOB_PREFIX_TAKEN:
            raise
        stored = None
    if stored is None:
        is_empty = not store.list("")
        what = "does not exist or is empty" if is_empty else "is no output of specbatch: it has no _specbatch/job.json"
        look = "" if is_empty else f", or look below it with: specbatch list {shlex.quote(output)}"
        raise SpecbatchError(
            ErrorCode.JOB_OUTPUT_MISSING, f"{output} {what}; give the folder that `specbatch submit` named{look}"
        )
    return stored


def _read_manifest(store: Store) -> Manifest | None:
    try:
        return decode_manifest(store.read(MANIFEST_NAME))
    except NotFound:
        return None


def _put_together(stored: StoredJob, receipts: Sequence[PartReceipt], runs: Sequence[RunRecord]) -> Manifest:
    """The manifest that the parts and runs so far would give; its parts have no digest."""
    commit = build_commit(
        [Part(PartRecord(path=r.path, rows=r.num_rows, bytes=r.num_bytes, sha256=r.sha256), r.stats) for r in receipts]
    )
    document = stored.document
    return Manifest(
        format=MANIFEST_FORMAT,
        job_id=document.job_id,
        identity=document.identity,
        models=document.models,
        commit=commit,
        observed=build_observed(runs, commit),
        spec=document.spec,
    )


def _describe(
    output: str,
    store: Store,
    stored: StoredJob,
    receipts: Sequence[PartReceipt],
    runs: Sequence[RunRecord],
    progress: ProgressDocument | None,
    partial: Manifest,
    now: datetime,
) -> Unfinished:
    last = runs[-1] if runs else None
    of_last = progress if progress is not None and last is not None and progress.epoch == last.epoch else None
    spec = stored.document.spec
    samples = int(spec.get("generation", {}).get("num_samples", 1))
    num_rows = sum(shard.num_rows for shard in stored.shards)
    counts = partial.commit.counts
    finished = of_last.job_rows_done if of_last is not None and of_last.job_rows_done is not None else counts.rows
    errors = merged_errors(counts.errors_by_code, of_last.errors_by_code if of_last is not None else {})
    standing = _standing(last, of_last, len(receipts), len(stored.shards), now)
    log = _read_log(store, last.epoch) if last is not None else []
    code, message = _failure(log) if standing in ("failed", "stopped", "lost") else (None, "")
    forecast = partial.observed.forecast
    whole = forecast_seconds(forecast, "wall_seconds")
    share_left = (num_rows - counts.rows) / num_rows if num_rows else 0.0
    seconds, basis = (
        (of_last.eta_seconds, "as the run tells it")
        if standing == "running" and of_last
        else remaining(
            (num_rows - counts.rows) * samples,
            partial.observed.throughput.rows_per_second if any(run.workers for run in runs) else 0.0,
            _start_seconds(runs),
            None if whole is None else (whole, share_left),
        )
    )
    return Unfinished(
        output=output,
        standing="failed" if standing == "lost" and message else standing,
        epoch=last.epoch if last is not None else 0,
        outcome=last.outcome if last is not None else "",
        code=code,
        message=message,
        seen_at=_seen_at(last, of_last),
        place="" if last is None else f"process {last.pid} on {last.host}",
        deadline=spec.get("execution", {}).get("deadline") if len(runs) == 1 else None,  # a later run may have another
        num_rows=num_rows,
        rows_done=counts.rows,
        num_parts=len(stored.shards),
        parts_done=len(receipts),
        rows_in_flight=max(finished - counts.rows, 0),
        remaining_seconds=seconds,
        remaining_from=basis,
        errors_by_code=errors,
        num_judged=max(finished * samples, counts.results),
        error_rows=_error_rows(store, receipts, result_prefix(partial.identity.fields)),
        log=tuple(
            LogLine(line["time"], line["level"], line["message"])
            for line in log
            if line["level"] in ("warning", "error")
        )[-MAX_LOG_ROWS:],
    )


def _standing(
    last: RunRecord | None, progress: ProgressDocument | None, num_parts: int, num_planned: int, now: datetime
) -> Standing:
    if last is None:
        return "not committed" if num_parts == num_planned else "never begun"
    if _is_alive(last, progress, now):
        return "running"
    if num_parts == num_planned:
        return "not committed"
    outcome = last.outcome
    if outcome not in ENDED and progress is not None and progress.state in ENDED:
        outcome = progress.state
    if outcome == "failed":
        return "failed"
    return "stopped" if outcome in ENDED else "lost"


def _is_alive(last: RunRecord, progress: ProgressDocument | None, now: datetime) -> bool:
    if last.outcome in ENDED:
        return False
    if progress is not None:
        return judge(progress, now)[0]
    try:
        age_seconds = (now - datetime.fromisoformat(last.started_at)).total_seconds()
    except (ValueError, TypeError):
        return False
    return age_seconds < START_UP_SECONDS and not is_gone(last)


def _seen_at(last: RunRecord | None, progress: ProgressDocument | None) -> str:
    if last is None:
        return ""
    return progress.updated_at if progress is not None else end_time(last.started_at, last.total_seconds)


def _start_seconds(runs: Sequence[RunRecord]) -> float:
    """From the command to the first ready worker, as long as it took the last time; 0 where none came to be ready."""
    for run in reversed(runs):
        if run.workers:
            worked = max(worker.active_seconds + worker.idle_seconds for worker in run.workers)
            return max(run.total_seconds - max(worked, run.wall_seconds), 0.0)
    return 0.0


def _read_log(store: Store, epoch: int) -> list[dict[str, Any]]:
    """Lines of the log of a run, without what workers and tracebacks said."""
    lines = RunLogReader(store, epoch).read()
    return [line for line in lines if line["event"] not in ("stderr", "traceback")]


def _failure(log: Iterable[dict[str, Any]]) -> tuple[ErrorCode | None, str]:
    """Code and words of the error that ended a run; (None, "") where its log has none."""
    found: tuple[ErrorCode | None, str] = (None, "")
    for line in log:
        if line["event"] == "job_failed":
            code, _, words = line["message"].partition(": ")
            found = (ErrorCode(code), words) if code in ErrorCode.__members__ else (None, line["message"])
        elif line["event"] == "crash":
            found = (ErrorCode.JOB_INTERNAL, line["message"])
    return found


def _error_rows(store: Store, receipts: Sequence[PartReceipt], prefix: str) -> dict[str, tuple[int, ...]]:
    """For each code the first rows of the parts that have it, as far as few parts tell."""
    found: dict[str, list[int]] = {}
    for receipt in [receipt for receipt in receipts if receipt.stats.num_errors][:MAX_PARTS_SEARCHED]:
        if not any(len(found.get(code, ())) < MAX_ROWS_NAMED for code, _ in receipt.stats.errors_by_code):
            continue
        for (row, _), code in read_outcomes(store, [receipt.path], prefix):
            if code is not None:
                rows = found.setdefault(code, [])
                if len(rows) < MAX_ROWS_NAMED and row not in rows:
                    rows.append(row)
    return {code: tuple(rows) for code, rows in found.items()}
