"""``calibrate``: what this pair does on this machine with this data, measured, and what a whole job will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from specbatch.jobs.planning.execution_checks import refuse_ranks
from specbatch.jobs.planning.machine import device_name
from specbatch.jobs.planning.scan import sample_rows, scan
from specbatch.jobs.planning.scan_values import Scan
from specbatch.jobs.profiles.forecast import Forecast, batch_seconds, forecast
from specbatch.jobs.profiles.store import (
    PROFILE_FORMAT,
    Circumstances,
    Profile,
    TrialRecord,
    cache_path,
    circumstances_of,
    generation_of,
    inputs_sha256,
    save_profile,
)
from specbatch.jobs.profiles.table import best_batch, cells, speed_at, speeds_of
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.specdec.models.memory import AUTO_MAX_ROWS

if TYPE_CHECKING:
    from specbatch.jobs.calibration.measure import Trial
    from specbatch.jobs.planning.prepare import PreparedJob
    from specbatch.schemas.spec import Speculation
    from specbatch.specdec.loading import Pair
    from specbatch.workers.prompts import PreparedRow

DEFAULT_CALIBRATE_ROWS = 64
DEFAULT_CALIBRATE_SECONDS = 60.0
_BATCH_SIZES = (1, 4, 8, 16, 32, 64, 128, 256)
_DRAFT_LENGTHS = (0, 1, 2, 3, 4, 6, 8)
_TABLE_SHARE = 0.6
"""Of the time for the table of steps; the trial has the rest."""
_TRIAL_PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured and what follows from it.

    Attributes:
        num_rows: rows of the sample that could be decoded.
        saved: where the profile lies now.
    """

    profile: Profile
    num_rows: int
    prompts: Scan
    expected: Forecast
    saved: tuple[Path, ...]


def calibrate(
    prepared: PreparedJob,
    *,
    num_rows: int = DEFAULT_CALIBRATE_ROWS,
    seconds: float = DEFAULT_CALIBRATE_SECONDS,
    save: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """Measure the pair of a job with rows of its dataset, and keep the profile in the user's cache folder.

    Args:
        num_rows: rows to draw.
        seconds: of measuring, without loading; a slow pair takes longer for the least that is needed.
        save: a file that gets the profile too.
        say: takes single lines for the user.

    Raises:
        SpecbatchError: the target is for several devices; no row can be decoded; the models cannot be loaded; too
            little could be measured; the profile cannot be written.
    """
    refuse_ranks(prepared.spec, "calibrate")
    rows = sample_rows(prepared, num_rows)
    if not rows:
        raise SpecbatchError(
            ErrorCode.JOB_INPUT_EMPTY,
            "no row of the sample can be decoded; specbatch plan shows what is wrong with them",
        )
    prompts = scan(prepared)
    profile = _measure(prepared, rows, seconds, say)
    saved = []
    for path in (cache_path(profile.key), save):
        if path is not None:
            save_profile(profile, path)
            saved.append(path)
    execution = replace(prepared.execution, batch_size=profile.trial.batch_size)
    return Calibration(profile, len(rows), prompts, forecast(profile, prompts, execution), tuple(saved))


def circumstances(prepared: PreparedJob) -> Circumstances:
    """What the profile of a job holds for."""
    execution = prepared.execution
    return circumstances_of(
        prepared.target,
        execution.draft,
        dtype=execution.dtype,
        device=execution.device,
        device_name=device_name(execution.device),
        num_threads=execution.num_threads,
    )


def _measure(prepared: PreparedJob, rows: list[PreparedRow], seconds: float, say: Callable[[str], None]) -> Profile:
    execution, generation = prepared.execution, prepared.spec.generation
    say(f"loading {prepared.target.name}" + ("" if execution.draft is None else f" and {execution.draft.name}"))
    started = time.perf_counter()
    from specbatch.jobs.calibration.measure import measure_steps, measure_trial

    pair = _load(prepared)
    load_seconds = time.perf_counter() - started
    started = time.perf_counter()
    sizes = batch_sizes(prepared, pair.max_batch_size)
    lengths = draft_lengths(execution.speculation, has_draft=pair.draft is not None)
    steps, acceptance = measure_steps(
        pair,
        rows,
        generation,
        batch_sizes=sizes,
        draft_lengths=lengths,
        seconds=_TABLE_SHARE * seconds,
        say=say,
    )
    if not any(step.draft_length == 0 for step in steps):
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"in {seconds:g} s too few rounds could be measured; give more with --seconds, or rows with longer "
            "completions",
        )
    table = cells(steps, acceptance)
    batch_size = prepared.spec.execution.batch_size
    if batch_size == "auto":
        batch_size = best_batch(table, execution.speculation, _usual_batch(prepared, pair), max(sizes))
    speeds = speeds_of(table, execution.speculation)
    left = max(seconds - (time.perf_counter() - started), (1 - _TABLE_SHARE) * seconds)
    affordable = int(left * speed_at(speeds, batch_size) / generation.max_new_tokens)
    tried = rows[: max(affordable, min(batch_size, len(rows)))]
    say(f"decoding {len(tried)} rows as a job would, batch {batch_size}")
    trial = measure_trial(
        pair,
        tried,
        generation,
        batch_size=batch_size,
        speculation=execution.speculation,
        seconds=_TRIAL_PATIENCE * left,
    )
    if not trial.lengths or not trial.num_completion_tokens:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG, "none of the rows could be decoded; specbatch preview shows what happens to them"
        )
    return Profile(
        format=PROFILE_FORMAT,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        circumstances=circumstances(prepared),
        target=prepared.target.name,
        draft=None if execution.draft is None else execution.draft.name,
        draft_bytes=trial.draft_bytes,
        inputs_sha256=inputs_sha256(prepared.inputs),
        generation=generation_of(prepared.spec),
        acceptance=acceptance,
        steps=steps,
        trial=_trial_record(trial, execution.speculation, batch_size, speeds, load_seconds),
    )


def _load(prepared: PreparedJob) -> Pair:
    from specbatch.specdec.loading import load_pair

    execution = prepared.execution
    sizes = batch_sizes(prepared, AUTO_MAX_ROWS[execution.device])
    return load_pair(
        str(prepared.target.path),
        None if execution.draft is None else str(execution.draft.path),
        max_batch_size="auto" if execution.batch_size == "auto" else max(sizes),
        speculation=execution.speculation,
        device=execution.device,
        dtype=execution.dtype,
        memory_fraction=execution.memory_fraction / (execution.num_workers if execution.device == "cpu" else 1),
        model_path="auto",
        num_threads=execution.num_threads,
        max_sequence_tokens=None,
        quantization=prepared.spec.models.quantization,
    )


def batch_sizes(prepared: PreparedJob, most: int) -> tuple[int, ...]:
    """The batch sizes to measure, ascending: those that fit in the memory, up to the one that was asked for if one was.

    Args:
        most: that a worker would take by itself.
    """
    asked, execution = prepared.spec.execution.batch_size, prepared.execution
    if asked == "auto":
        capacity = most if execution.memory is None else max(execution.memory.ledger.row_capacity, 1)
        most = min(AUTO_MAX_ROWS[execution.device], capacity)
    else:
        most = asked
    return tuple(sorted({size for size in _BATCH_SIZES if size <= most} | ({most} if asked != "auto" else set())))


def draft_lengths(speculation: Speculation, *, has_draft: bool) -> tuple[int, ...]:
    """The K to measure, ascending: 0 alone where there is no draft, and the one that was asked for."""
    if not has_draft:
        return (0,)
    return tuple(sorted({*_DRAFT_LENGTHS, *((speculation,) if isinstance(speculation, int) else ())}))


def _usual_batch(prepared: PreparedJob, pair: Pair) -> int:
    """The batch size of a job without a profile."""
    batch_size = prepared.execution.batch_size
    return pair.max_batch_size if batch_size == "auto" else batch_size


def _trial_record(
    trial: Trial, speculation: Speculation, batch_size: int, speeds: list[tuple[int, float]], load_seconds: float
) -> TrialRecord:
    lengths = [length for length, _ in trial.lengths]
    if trial.is_cut:
        by_table = trial.num_completion_tokens / speed_at(speeds, min(batch_size, trial.num_rows))
    else:
        by_table = batch_seconds(lengths, len(lengths), batch_size, speeds)
    return TrialRecord(
        batch_size=batch_size,
        speculation=speculation,
        seconds=trial.seconds,
        load_seconds=load_seconds,
        prefill_seconds=trial.prefill_seconds,
        num_prompt_tokens=trial.num_prompt_tokens,
        num_completion_tokens=trial.num_completion_tokens,
        overhead=max(trial.seconds - trial.prefill_seconds, 1e-9) / by_table,
        speed_error=trial.speed_error,
        lengths=trial.lengths,
    )
