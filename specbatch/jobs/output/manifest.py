"""Builds ``manifest.json``: the commit of a job, and what was observed while it ran.

All builders are pure. ``build_commit`` sees nothing but the parts, so two coordinators that finish the same job
write the same commit; ``build_observed`` sees the run records, which differ from run to run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import NamedTuple

from pydantic import ValidationError

from specbatch.jobs.output.observations import (
    find_draft_given_up,
    first_events,
    measure_cost,
    summarize_runs,
)
from specbatch.jobs.output.speedup import measure_speedup
from specbatch.jobs.output.timeline import build_timeline
from specbatch.schemas.canonical import sha256_hex, sum_histograms
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import (
    MANIFEST_FORMAT,
    Acceptance,
    Commit,
    Counts,
    Lengths,
    Manifest,
    Observed,
    PartRecord,
    Seconds,
    Throughput,
    Tokens,
)
from specbatch.schemas.run import BlockRecord, RunRecord, WorkerRecord
from specbatch.schemas.stats import (
    PartStats,
    PhaseSeconds,
    SpecCounters,
    accepted_by_position,
    proposed_by_position,
)

MANIFEST_NAME = "manifest.json"
SUCCESS_NAME = "_SUCCESS"


class Part(NamedTuple):
    """A part as the commit sees it: where it is, and the statistics of its footer."""

    record: PartRecord
    stats: PartStats


def build_commit(parts: Sequence[Part]) -> Commit:
    """The commit of a job from its parts; the order of ``parts`` does not matter.

    Seconds are added in the order of the paths: floating-point sums depend on the order, and every coordinator
    must write the same bytes.
    """
    ordered = sorted(parts, key=lambda part: part.record.path)
    total = PartStats()
    for part in ordered:
        total = total + part.stats
    return Commit(
        counts=Counts(
            rows=total.num_rows,
            results=total.num_results,
            ok=total.num_ok,
            errors=total.num_errors,
            errors_by_code=dict(total.errors_by_code),
        ),
        tokens=Tokens(
            prompt=total.num_prompt_tokens,
            completion=total.num_completion_tokens,
            draft=total.counters.num_draft_tokens,
            accepted=total.counters.num_accepted_draft_tokens,
        ),
        near_ties=total.num_near_ties,
        acceptance=_acceptance(total.counters, total.num_completion_tokens),
        seconds=Seconds(**{f.name: getattr(total.seconds, f.name) for f in fields(PhaseSeconds)}),
        parts=[part.record for part in ordered],
        lengths=_lengths(total),
    )


def build_observed(runs: Sequence[RunRecord], commit: Commit) -> Observed:
    """What the runs of a job observed, in the order of their epochs.

    Throughput counts every token that the runs decoded, also those of shards that were given up and decoded again,
    over the sum of the runs' wall seconds (first ready worker to last part, or to the last news of a run that was cut
    short): it says how fast the machines worked.
    Only where no run recorded a token (its record was lost) the tokens and rows of the commit stand in.

    ``k_share`` is the share of row-steps by number of drafts proposed; ``execution``, ``hardware``, ``versions`` and
    ``memory`` are those of the last run that had workers. Blocks of workers that never speculated do not enter the
    speed-up: their plain rounds are the whole run, not a draw from it.
    """
    ordered = sorted(runs, key=lambda run: run.epoch)
    workers = [(run.epoch, worker) for run in ordered for worker in run.workers]
    working = [run for run in ordered if run.workers] or list(ordered)
    last = working[-1] if working else None
    return Observed(
        throughput=_throughput(ordered, workers, commit),
        k_share=_k_share(worker for _, worker in workers),
        speedup=measure_speedup(_comparable_blocks(worker for _, worker in workers)),
        timeline=build_timeline(ordered),
        execution=dict(last.execution) if last else {},
        hardware=dict(last.hardware) if last else {},
        versions=dict(sorted(item for worker in last.workers for item in worker.versions.items())) if last else {},
        memory=[_memory(worker) for worker in last.workers] if last else [],
        attempts=sum(run.attempts for run in ordered),
        restarts=sum(run.restarts for run in ordered),
        preemptions=sum(run.preemptions for run in ordered),
        runs=len(ordered),
        forecast=next((run.forecast for run in ordered if run.forecast is not None), None),
        cost=measure_cost(ordered),
        history=summarize_runs(ordered),
        events=first_events(ordered),
        deaths=sum(run.crashes for run in ordered),
        quarantined=sorted({place for run in ordered for place in run.quarantined}),
        draft_given_up=find_draft_given_up(last),
        store_retries=sum(run.store_retries for run in ordered),
    )


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``: indented JSON with sorted keys, so that equal manifests are equal files."""
    document = manifest.model_dump(mode="json")
    text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8") + b"\n"


def decode_manifest(data: bytes) -> Manifest:
    """Reads ``manifest.json``.

    Raises:
        SpecbatchError: ``JOB_FORMAT``, not a manifest of the version that this program reads.
    """
    try:
        document = json.loads(data)
        json.dumps(document, allow_nan=False)  # 1e999 parses as infinity, which no reader of a manifest expects
    except (ValueError, RecursionError) as error:
        raise SpecbatchError(ErrorCode.JOB_FORMAT, "manifest.json is not JSON; `specbatch verify` says more") from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != MANIFEST_FORMAT:
        raise SpecbatchError(
            ErrorCode.JOB_FORMAT,
            f"manifest.json has format {str(found)[:60]!r}, this version reads {MANIFEST_FORMAT!r}; "
            "use the version of specbatch that wrote it",
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(key) for key in first["loc"])
        raise SpecbatchError(
            ErrorCode.JOB_FORMAT, f"manifest.json is not a valid manifest: {where}: {first['msg']}"
        ) from error


def success_digest(data: bytes) -> bytes:
    """Contents of ``_SUCCESS`` for the manifest's bytes; ``sha256sum --check _SUCCESS`` reads it too."""
    return f"{sha256_hex(data)}  {MANIFEST_NAME}\n".encode("ascii")


def _acceptance(counters: SpecCounters, num_completion_tokens: int) -> Acceptance:
    num_steps = counters.num_spec_steps + counters.num_plain_steps
    proposed = [count for count in proposed_by_position(counters) if count > 0]
    accepted = (*accepted_by_position(counters), *([0] * len(proposed)))
    return Acceptance(
        rate=_ratio(counters.num_accepted_draft_tokens, counters.num_draft_tokens),
        mean_accepted=_ratio(counters.num_accepted_draft_tokens, counters.num_spec_steps),
        mean_emitted=_ratio(num_completion_tokens, num_steps),
        histogram=list(counters.acceptance_histogram),
        by_position=[hit / count for hit, count in zip(accepted, proposed, strict=False)],
    )


def _lengths(total: PartStats) -> Lengths | None:
    """None where some part, written by an older version, does not say how long its results are."""
    if sum(total.completion_lengths) != total.num_ok or sum(total.prompt_lengths) != total.num_ok:
        return None
    return Lengths(prompt=list(total.prompt_lengths), completion=list(total.completion_lengths), num_cut=total.num_cut)


def _throughput(runs: Sequence[RunRecord], workers: Sequence[tuple[int, WorkerRecord]], commit: Commit) -> Throughput:
    wall_seconds = sum(_run_seconds(run) for run in runs)
    num_tokens = sum(worker.completion_tokens for _, worker in workers) or commit.tokens.completion
    num_rows = sum(worker.rows for _, worker in workers) or commit.counts.rows
    active_seconds = sum(worker.active_seconds for _, worker in workers)
    idle_seconds = sum(worker.idle_seconds for _, worker in workers)
    return Throughput(
        wall_seconds=wall_seconds,
        total_seconds=sum(run.total_seconds for run in runs),
        output_tokens_per_second=_ratio(num_tokens, wall_seconds) or 0.0,
        rows_per_second=_ratio(num_rows, wall_seconds) or 0.0,
        per_worker=[
            {
                "epoch": epoch,
                "worker": worker.worker,
                "host": worker.host,
                "device": worker.device,
                "dtype": worker.dtype,
                "num_threads": worker.num_threads,
                "rows": worker.rows,
                "completion_tokens": worker.completion_tokens,
                "active_seconds": worker.active_seconds,
                "idle_seconds": worker.idle_seconds,
                "load_seconds": worker.load_seconds,
                "tokens_per_active_second": _ratio(worker.completion_tokens, worker.active_seconds) or 0.0,
                "acceptance_rate": _ratio(worker.num_accepted_draft_tokens, worker.num_draft_tokens),
            }
            for epoch, worker in workers
        ],
        idle_share=_ratio(idle_seconds, active_seconds + idle_seconds) or 0.0,
    )


def _run_seconds(run: RunRecord) -> float:
    """Seconds in which the tokens of a run were decoded.

    A run that was cut short counts the tokens behind its last part, so it must count the seconds behind it too.
    """
    if run.outcome == "complete":
        return run.wall_seconds
    return max([run.wall_seconds, *(worker.active_seconds + worker.idle_seconds for worker in run.workers)])


def _k_share(workers: Iterable[WorkerRecord]) -> dict[str, float]:
    """Share of row-steps by the number of drafts that the row proposed; "0" are the plain steps."""
    counts = sum_histograms([worker.num_plain_steps, *worker.draft_length_histogram[1:]] for worker in workers)
    num_steps = sum(counts)
    return {str(k): count / num_steps for k, count in enumerate(counts) if count}


def _comparable_blocks(workers: Iterable[WorkerRecord]) -> list[BlockRecord]:
    """Blocks of the workers that speculated; of all workers where none did, so that the note can say so."""
    groups = [worker.blocks for worker in workers]
    speculating = [group for group in groups if any(block.num_spec_rounds for block in group)]
    return [block for group in speculating or groups for block in group]


def _memory(worker: WorkerRecord) -> dict[str, object]:
    return {"worker": worker.worker, "host": worker.host, "device": worker.device, **worker.memory}


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None
