"""Manifests of whole nights, made by code: good ones, bad ones, one without a draft, one with hostile names."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from specbatch.jobs.output.manifest import Part, build_commit, build_observed, decode_manifest
from specbatch.schemas.canonical import canonical_json, sha256_hex
from specbatch.schemas.manifest import MANIFEST_FORMAT, RUN_FORMAT, Identity, Manifest, ModelRecord, Models, PartRecord
from specbatch.schemas.run import BlockRecord, RunRecord, WorkerRecord
from specbatch.schemas.spec import JobSpec
from specbatch.schemas.stats import PartStats, PhaseSeconds, SpecCounters, length_histogram

EVENING = datetime(2026, 11, 23, 21, tzinfo=UTC)
GOLDEN = Path(__file__).resolve().parents[1] / "golden/0.1/manifest.json"
HOSTILE = "<script>alert('x')</script>\"&\u202e\x1b[31m|`"
NUM_BLOCKS = 300
BATCH = 32
EVENTS = (
    (3600.0, "worker 2 died: the process was killed or crashed (a signal, or out of memory)"),
    (5400.0, "worker 2 died: the process was killed or crashed (a signal, or out of memory)"),
    (9000.0, "worker 5 died: no sign of life for 121 s"),
    (9001.0, "node-2/cuda has failed 3 times; no worker there gets work any more"),
)


def night(
    *,
    seed: int = 1,
    hours: float = 6.0,
    num_workers: int = 4,
    num_rows: int = 96_000,
    worker_tokens_per_second: float = 1200.0,
    acceptance: float = 0.7,
    k: int = 4,
    errors: Mapping[str, int] | None = None,
    slow_to: float = 1.0,
    workers_left: int | None = None,
    stall: tuple[float, float] | None = None,
    ratio: float = 1.9,
    price: float | None = 2.5,
    forecast_hours: float | None = None,
    interrupted_after: float | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    inputs: str = "a",
    target: str = "models/boss-8b",
    host: str = "node",
    device: str = "cuda",
    skipped: Sequence[tuple[str, str]] = (),
    **changes: Any,
) -> Manifest:
    """A finished job of one run or, with ``interrupted_after`` (a share of the night), of two.

    Args:
        slow_to: share of the first throughput that the last half has. workers_left: how many decode in that half.
        stall: shares of the night between which nothing was decoded.
        changes: fields of the (last) run record.
    """
    rng = random.Random(seed)
    speculating = k > 0
    spec_settings = {"execution": {"speculation": "auto" if k else "off"}, **(settings or {})}
    spec = JobSpec.model_validate({"input": {"datasets": ["s3://bucket/prompts/"]}, **spec_settings})
    total_seconds = hours * 3600
    cuts = (0.0, 1.0) if interrupted_after is None else (0.0, interrupted_after, 1.0)
    runs = []
    for epoch, (start, stop) in enumerate(itertools.pairwise(cuts), 1):
        is_last = stop == 1.0
        workers = [
            _worker(
                rng,
                number,
                f"{host}-{number // 2}",
                device,
                start,
                stop,
                total_seconds,
                worker_tokens_per_second,
                acceptance,
                k,
                ratio,
            )
            for number in range(num_workers)
        ]
        workers = [
            _shaped(worker, start * total_seconds, total_seconds, slow_to, workers_left, stall) for worker in workers
        ]
        values: dict[str, Any] = {
            "format": RUN_FORMAT,
            "epoch": epoch,
            "started_at": (EVENING + timedelta(seconds=start * total_seconds + 600 * (epoch - 1))).isoformat(),
            "host": "head",
            "pid": 4300,
            "outcome": "complete" if is_last else "interrupted",
            "wall_seconds": (stop - start) * total_seconds - 40,
            "total_seconds": (stop - start) * total_seconds,
            "attempts": 96,
            "restarts": 0,
            "parts_found": 0,
            "execution": {
                "speculation": "auto" if k else "off",
                "draft": "models/intern-0.5b" if speculating else "none",
                "workers": num_workers,
                "batch_size": BATCH,
                "device": device,
                "price_per_device_hour": price,
            },
            "hardware": {"cpu": "Processor 9000", "cores": 64, "memory_bytes": 540e9, "gpus": ["Accelerator"] * 4},
            "workers": workers,
            "forecast": forecast(forecast_hours, num_workers, price) if forecast_hours else None,
        }
        runs.append(RunRecord.model_validate({**values, **(changes if is_last else {})}))
    return _manifest(rng, spec, runs, num_rows, errors or {}, k, acceptance, inputs, target, skipped)


def forecast(hours: float, num_workers: int, price: float | None) -> dict[str, Any]:
    """As ``forecast.Forecast.document`` has it."""
    return {
        "wall_seconds": hours * 3600,
        "low": hours * 3600 * 0.85,
        "high": hours * 3600 * 1.15,
        "device_hours": hours * num_workers,
        "cost": None if price is None else hours * num_workers * price,
        "tokens_per_second": 4800.0,
        "completion_tokens": 1_000_000,
        "profile": "p",
        "made_at": "2026-11-20T10:00:00+00:00",
    }


def bad_night(**changes: Any) -> Manifest:
    """Errors, deaths, a device out of service, half the workers gone, slower than forecast, the draft given up."""
    values: dict[str, Any] = {
        "seed": 2,
        "hours": 9.5,
        "errors": {"ROW_TOO_LONG": 4120, "ROW_POISON": 2, "ROW_PROMPT_NULL": 310},
        "slow_to": 0.95,
        "workers_left": 2,
        "stall": (0.42, 0.47),
        "acceptance": 0.31,
        "ratio": 0.9,
        "forecast_hours": 6.0,
        "crashes": 3,
        "restarts": 2,
        "preemptions": 1,
        "quarantined": ("node-2/cuda",),
        "skipped": (("day-17.parquet", "JOB_INPUT_CORRUPT"),),
        "interrupted_after": 0.3,
        "events": EVENTS,
    }
    manifest = night(**{**values, **changes})
    given_up = {"workers": 2, "at_seconds": 5000.0}
    return Manifest.model_validate(
        {**manifest.model_dump(), "observed": {**manifest.observed.model_dump(), "draft_given_up": given_up}}
    )


def hostile_night() -> Manifest:
    """Every text that comes from a user or a machine holds a script, quotes, a terminal escape and a bidi mark."""
    manifest = bad_night(
        target=HOSTILE,
        host=HOSTILE,
        events=((10.0, f"worker 1 died: {HOSTILE}"),),
        quarantined=(HOSTILE,),
        skipped=((HOSTILE, HOSTILE),),
        outcome=HOSTILE,
        hardware={HOSTILE: HOSTILE, "gpus": [HOSTILE]},
        settings={"input": {"datasets": [HOSTILE], "system": HOSTILE}, "models": {"target": HOSTILE}},
        errors={HOSTILE: 3},
    )
    speedup = manifest.observed.speedup.model_copy(update={"baseline": HOSTILE, "note": HOSTILE})
    observed = manifest.observed.model_copy(update={"speedup": speedup})
    return manifest.model_copy(update={"job_id": HOSTILE, "observed": observed})


def golden_night() -> Manifest:
    """As version 0.1 wrote it."""
    return decode_manifest(GOLDEN.read_bytes())


def _worker(
    rng: random.Random,
    number: int,
    host: str,
    device: str,
    start: float,
    stop: float,
    total_seconds: float,
    tokens_per_second: float,
    acceptance: float,
    k: int,
    ratio: float,
) -> WorkerRecord:
    num_blocks = max(4, round(NUM_BLOCKS * (stop - start)))
    seconds = (stop - start) * total_seconds / num_blocks
    blocks = [
        _block(rng, (index + 1) * seconds, seconds, tokens_per_second, acceptance, k, ratio, index / num_blocks)
        for index in range(num_blocks)
    ]
    lengths = [sum(values) for values in zip(*(block.draft_length_histogram for block in blocks), strict=True)]
    return WorkerRecord(
        worker=number,
        host=host,
        pid=5000 + number,
        device=device,
        dtype="bfloat16",
        num_threads=8,
        load_seconds=31.0,
        active_seconds=num_blocks * seconds * 0.98,
        idle_seconds=num_blocks * seconds * 0.02,
        rows=24_000,
        completion_tokens=sum(block.num_spec_tokens + block.num_plain_tokens for block in blocks),
        num_draft_tokens=sum(i * count for i, count in enumerate(lengths)),
        num_accepted_draft_tokens=sum(block.num_accepted_draft_tokens for block in blocks),
        draft_length_histogram=[0, *lengths[1:]],
        num_plain_steps=lengths[0],
        seconds={"propose": 1.0},
        memory={
            "target_bytes": 16_000_000_000,
            "draft_bytes": 1_000_000_000 if k else 0,
            "target_kv_bytes": 22_000_000_000,
            "draft_kv_bytes": 2_000_000_000 if k else 0,
            "process_bytes": 4_000_000_000,
        },
        versions={"torch": "2.13.0", "transformers": "5.23.0", "specbatch": "0.2.0"},
        blocks=blocks,
    )


def _block(
    rng: random.Random,
    at: float,
    seconds: float,
    tokens_per_second: float,
    acceptance: float,
    k: int,
    ratio: float,
    progress: float,
) -> BlockRecord:
    speed = tokens_per_second * (1 + 0.05 * math.sin(9 * progress)) * rng.gauss(1, 0.04)
    plain_seconds = 0.02 * seconds
    steps = 16 * BATCH
    histogram = [steps]
    if k:
        spread = [0.04, *(rng.uniform(0.05, 0.2) for _ in range(k - 1))]
        histogram = [round(steps * share) for share in spread]
        histogram.append(max(0, steps - sum(histogram)))
    drafted = sum(i * count for i, count in enumerate(histogram))
    hits = min(1.0, max(0.0, acceptance + 0.06 * math.sin(5 * progress) + rng.gauss(0, 0.01)))
    speculating = k > 0
    return BlockRecord(
        at_seconds=at,
        num_spec_rounds=15 if speculating else 0,
        num_plain_rounds=1 if speculating else 16,
        spec_seconds=seconds - plain_seconds if speculating else 0.0,
        plain_seconds=plain_seconds if speculating else seconds,
        num_spec_tokens=round(speed * (seconds - plain_seconds)) if speculating else 0,
        num_plain_tokens=round(speed / ratio * plain_seconds * rng.gauss(1, 0.1))
        if speculating
        else round(speed * seconds),
        draft_length_histogram=tuple(histogram),
        num_accepted_draft_tokens=round(drafted * hits),
    )


def _shaped(
    worker: WorkerRecord,
    offset: float,
    total_seconds: float,
    slow_to: float,
    workers_left: int | None,
    stall: tuple[float, float] | None,
) -> WorkerRecord:
    """The worker as it is on a night that goes wrong."""
    blocks = [
        shaped
        for block in worker.blocks
        if (shaped := _shape(block, offset, total_seconds, worker.worker, slow_to, workers_left, stall))
    ]
    num_tokens = sum(block.num_spec_tokens + block.num_plain_tokens for block in blocks)
    return worker.model_copy(update={"blocks": blocks, "completion_tokens": num_tokens})


def _shape(
    block: BlockRecord,
    offset: float,
    total_seconds: float,
    worker: int,
    slow_to: float,
    workers_left: int | None,
    stall: tuple[float, float] | None,
) -> BlockRecord | None:
    """The block as it is on a night that goes wrong; None where nothing was decoded."""
    share = (offset + block.at_seconds) / total_seconds
    if stall is not None and stall[0] <= share <= stall[1]:
        return None
    if share < 0.5:
        return block
    if workers_left is not None and worker >= workers_left:
        return None
    return block.model_copy(
        update={
            "num_spec_tokens": round(block.num_spec_tokens * slow_to),
            "num_plain_tokens": round(block.num_plain_tokens * slow_to),
        }
    )


def _manifest(
    rng: random.Random,
    spec: JobSpec,
    runs: Sequence[RunRecord],
    num_rows: int,
    errors: Mapping[str, int],
    k: int,
    acceptance: float,
    inputs: str,
    target: str,
    skipped: Sequence[tuple[str, str]],
) -> Manifest:
    num_parts = 24
    parts = []
    for index in range(num_parts):
        codes = {code: number // num_parts + (index < number % num_parts) for code, number in errors.items()}
        rows = num_rows // num_parts
        num_ok = rows - sum(codes.values())
        stats = PartStats(
            num_rows=rows,
            num_results=rows,
            num_ok=num_ok,
            num_prompt_tokens=num_ok * 210,
            num_completion_tokens=num_ok * 180,
            num_near_ties=rows // 60,
            errors_by_code=tuple(sorted((code, number) for code, number in codes.items() if number)),
            counters=_counters(num_ok, k, acceptance),
            seconds=PhaseSeconds(
                propose=610.0 if k else 0.0, score=1900.0, accept=95.0, host=130.0, prefill=420.0, load=14.0, write=22.0
            ),
            prompt_lengths=length_histogram(max(1, round(rng.lognormvariate(5.1, 0.7))) for _ in range(num_ok)),
            completion_lengths=length_histogram(
                min(512, max(1, round(rng.lognormvariate(5.0, 0.8)))) for _ in range(num_ok)
            ),
            num_cut=num_ok // 14,
        )
        record = PartRecord(
            path=f"data/part-{index:06d}-0123456789abcdef.parquet",
            rows=rows,
            bytes=rng.randint(8_000_000, 9_000_000),
            sha256="d" * 64,
        )
        parts.append(Part(record, stats))
    files = {"config.json": "a" * 64, "model-00001-of-00002.safetensors": "b" * 64}
    generation = spec.generation.model_dump(mode="json")
    identity_fields: dict[str, Any] = {
        "format": "specbatch/identity/2",
        "model": {"files": files, "tokenizer": "c" * 64, "dtype": "bfloat16", "path": "lean"},
        "prompt": {"column": spec.input.prompt_column},
        "generation": generation,
        "output": {"id_column": None, "limit": None},
        "inputs": [[f"{n}.parquet", 12_000_000, sha256_hex(f"{inputs}{n}".encode()), num_rows // 4] for n in range(4)],
    }
    if skipped:
        identity_fields["quarantined"] = [list(pair) for pair in skipped]
    if spec.generation.coupling == "distribution":
        identity_fields["speculation"] = {"K": k, "draft": files}
    commit = build_commit(parts)
    s = sha256_hex(canonical_json(identity_fields))
    draft = ModelRecord(name="models/intern-0.5b", revision="main", files=files, parameters=494_000_000)
    return Manifest(
        format=MANIFEST_FORMAT,
        job_id="job-20261123",
        identity=Identity(S=s, P=s[:16], fields=identity_fields),
        models=Models(
            target=ModelRecord(name=target, revision=None, files=files, parameters=8_030_000_000),
            draft=draft if k else None,
        ),
        commit=commit,
        observed=build_observed(runs, commit),
        spec=spec.model_dump(mode="json"),
    )


def _counters(num_ok: int, k: int, acceptance: float) -> SpecCounters:
    if not k:
        return SpecCounters(num_plain_steps=num_ok * 180)
    low, high = 0.0, 1.0  # the chance of each next draft that gives this share of all drafts
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle ** (i + 1) for i in range(k)) < k * acceptance else (low, middle)
    acceptance = low
    steps = num_ok * 50
    accepted = [round(steps * (1 - acceptance) * acceptance**i) for i in range(k)]
    accepted.append(steps - sum(accepted))
    drafted = [0] * k + [steps]
    return SpecCounters(
        num_spec_steps=steps,
        num_plain_steps=num_ok * 3,
        num_draft_tokens=steps * k,
        num_accepted_draft_tokens=sum(i * count for i, count in enumerate(accepted)),
        acceptance_histogram=tuple(accepted),
        draft_length_histogram=tuple(drafted),
    )
