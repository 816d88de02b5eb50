"""A small finished job, decoded by nobody: real plan, parts, manifest and run records with made-up rows."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from specbatch.jobs.output.manifest import Part, build_commit, build_observed, encode_manifest, success_digest
from specbatch.schemas.canonical import canonical_json, sha256_file, sha256_hex
from specbatch.schemas.manifest import (
    JOB_FORMAT,
    MANIFEST_FORMAT,
    PART_FORMAT,
    RUN_FORMAT,
    Identity,
    JobDocument,
    Manifest,
    ModelRecord,
    Models,
    PartRecord,
)
from specbatch.schemas.plan import Segment, Shard, part_name, plan_digest
from specbatch.schemas.rows import ResultForm, RowResult
from specbatch.schemas.run import BlockRecord, RunRecord, WorkerRecord
from specbatch.schemas.seeds import row_seed
from specbatch.schemas.spec import InputSpec, JobSpec
from specbatch.schemas.stats import PartStats, PhaseSeconds, SpecCounters
from specbatch.storage.parts import PartMeta, part_stats, write_part
from specbatch.storage.planfile import encode_plan

JOB_SEED = 7
TARGET = ModelRecord(name="code-pair/target", revision=None, files={"config.json": "a" * 64}, parameters=5_400_000)
DRAFT = ModelRecord(name="code-pair/draft-taught", revision=None, files={"config.json": "b" * 64}, parameters=900_000)


@dataclass(frozen=True)
class Output:
    """Where a made-up output is, and what went into it."""

    root: Path
    job: JobDocument
    shards: tuple[Shard, ...]
    parts: tuple[Part, ...]
    manifest: Manifest

    def part_path(self, shard: int) -> Path:
        return self.root / part_name(shard, self.job.identity.P)

    @property
    def plan_path(self) -> Path:
        return self.root / f"_specbatch/plan-{self.job.identity.P}.parquet"


def make_counters(rng: random.Random, k: int, num_tokens: int) -> SpecCounters:
    """Steps that give ``num_tokens`` tokens: one plain step, then rounds of at most k drafts."""
    if k == 0:
        return SpecCounters(num_plain_steps=num_tokens)
    accepted_at, drafted_at = [0] * (k + 1), [0] * (k + 1)
    left = num_tokens - 1
    num_plain = 1
    while left > 0:
        drafted = min(k, left - 1)
        if drafted == 0:
            num_plain += 1
            left -= 1
            continue
        accepted = rng.randint(0, drafted)
        drafted_at[drafted] += 1
        accepted_at[accepted] += 1
        left -= accepted + 1
    return SpecCounters(
        num_spec_steps=sum(accepted_at),
        num_plain_steps=num_plain,
        num_draft_tokens=sum(i * n for i, n in enumerate(drafted_at)),
        num_accepted_draft_tokens=sum(i * n for i, n in enumerate(accepted_at)),
        acceptance_histogram=tuple(accepted_at),
        draft_length_histogram=tuple(drafted_at),
    )


def make_result(row_id: int, k: int, error: bool = False, sample: int = 0, logprobs: bool = False) -> RowResult:
    rng = random.Random(row_id + 1000 * sample)
    seed = row_seed(JOB_SEED, row_id, sample)
    if error:
        return RowResult(
            row_id=row_id,
            sample_index=sample,
            row_seed=seed,
            finish_reason="error",
            error_code="ROW_PROMPT_NULL",
            error_message="the prompt is null",
        )
    num_tokens = rng.randint(1, 30)
    return RowResult(
        row_id=row_id,
        sample_index=sample,
        row_seed=seed,
        finish_reason=rng.choice(("stop", "length")),
        num_prompt_tokens=rng.randint(1, 20),
        completion=f"text {row_id}",
        completion_token_ids=tuple(rng.randrange(1000) for _ in range(num_tokens)),
        min_margin=rng.random(),
        logprobs=tuple(-rng.random() for _ in range(num_tokens)) if logprobs else None,
        num_near_ties=row_id % 2,
        counters=make_counters(rng, k, num_tokens),
    )


def make_run(
    epoch: int, stats: PartStats, *, k: int, tokens_per_second: float = 100.0, ratio: float = 1.6, **changes: Any
) -> RunRecord:
    """A run of one worker that decoded all of ``stats``; its blocks have a throughput ratio of exactly ``ratio``."""
    wall_seconds = stats.num_completion_tokens / tokens_per_second
    speculating = {"num_spec_rounds": 48, "spec_seconds": 4.8, "num_spec_tokens": round(480 * ratio)} if k else {}
    blocks = [
        BlockRecord.model_validate(
            {
                "at_seconds": 5.0 * (index + 1),
                "num_spec_rounds": 0,
                "spec_seconds": 0.0,
                "num_spec_tokens": 0,
                "num_plain_rounds": 2,
                "plain_seconds": 0.2,
                "num_plain_tokens": 20,
                **speculating,
            }
        )
        for index in range(10)
    ]
    worker = WorkerRecord(
        worker=0,
        host="node-1",
        pid=4321,
        device="cpu",
        dtype="float32",
        num_threads=2,
        load_seconds=0.5,
        active_seconds=wall_seconds * 0.9,
        idle_seconds=wall_seconds * 0.1,
        rows=stats.num_rows,
        completion_tokens=stats.num_completion_tokens,
        num_draft_tokens=stats.counters.num_draft_tokens,
        num_accepted_draft_tokens=stats.counters.num_accepted_draft_tokens,
        draft_length_histogram=list(stats.counters.draft_length_histogram),
        num_plain_steps=stats.counters.num_plain_steps,
        seconds={f.name: getattr(stats.seconds, f.name) for f in fields(PhaseSeconds)},
        memory={
            "target_bytes": 21_600_000,
            "draft_bytes": 3_600_000 if k else 0,
            "target_kv_bytes": 4_200_000,
            "draft_kv_bytes": 900_000 if k else 0,
            "process_bytes": 640_000_000,
        },
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
        blocks=blocks,
    )
    values: dict[str, Any] = {
        "format": RUN_FORMAT,
        "epoch": epoch,
        "started_at": "2026-11-23T10:00:00+00:00",
        "host": "node-1",
        "pid": 4300,
        "outcome": "complete",
        "wall_seconds": wall_seconds,
        "total_seconds": wall_seconds + 4.0,
        "attempts": 4,
        "restarts": 0,
        "parts_found": 0,
        "execution": {"speculation": k or "off", "workers": 1, "batch_size": 8, "device": "cpu"},
        "hardware": {"cpu_count": 2, "machine": "x86_64"},
        "workers": [worker],
    }
    return RunRecord.model_validate({**values, **changes})


def build(
    root: Path,
    *,
    num_rows: int = 20,
    shard_rows: int = 6,
    k: int = 4,
    errors: frozenset[int] = frozenset({3}),
    num_parts: int | None = None,
    tokens_per_second: float = 100.0,
    ratio: float = 1.6,
    temperature: float = 0.0,
    num_samples: int | None = None,
    logprobs: bool = False,
    table: pa.Table | None = None,
    form: ResultForm | None = None,
    output: dict[str, Any] | None = None,
) -> Output:
    """Writes a finished job; with ``num_parts`` only that many parts and no manifest.

    Args:
        table: the input's rows; some of its own if None.
        form: of the parts. output: more of what the identity says of them.
    """
    sizes = (num_rows // 2, num_rows - num_rows // 2)
    digests = (sha256_hex(b"first"), sha256_hex(b"second"))
    shards = _cut(sizes, digests, shard_rows)
    asked = {} if num_samples is None else {"num_samples": num_samples, "logprobs": logprobs}
    identity_fields = {
        "format": "specbatch/identity/1",
        "model": {"files": dict(TARGET.files), "tokenizer": "c" * 64, "dtype": "float32", "path": "generic"},
        "generation": {"seed": JOB_SEED, "temperature": temperature, **asked},
        "output": {"id_column": None, "limit": None, **(output or {})},
        "inputs": [[f"{n}.parquet", 1000, digests[n], sizes[n]] for n in range(2)],
    }
    s = sha256_hex(canonical_json(identity_fields))
    identity = Identity(S=s, P=plan_digest(s, shards), fields=identity_fields)
    models = Models(target=TARGET, draft=DRAFT if k else None)
    job = JobDocument(
        format=JOB_FORMAT,
        job_id="job-1",
        created_at="2026-11-23T10:00:00+00:00",
        identity=identity,
        models=models,
        spec=JobSpec(input=InputSpec(datasets=("in put.parquet",))).model_dump(mode="json"),
    )
    (root / "_specbatch").mkdir(parents=True)
    (root / "data").mkdir()
    (root / "_specbatch/job.json").write_bytes(canonical_json(job.model_dump(mode="json")))
    (root / f"_specbatch/plan-{identity.P}.parquet").write_bytes(encode_plan(shards))
    written = shards if num_parts is None else shards[:num_parts]
    form = form or ResultForm(with_logprobs=logprobs)
    parts = tuple(_write_part(root, shard, identity.P, k, errors, num_samples or 1, form, table) for shard in written)
    commit = build_commit(parts)
    run = make_run(1, _total(parts), k=k, tokens_per_second=tokens_per_second, ratio=ratio)
    manifest = Manifest(
        format=MANIFEST_FORMAT,
        job_id=job.job_id,
        identity=identity,
        models=models,
        commit=commit,
        observed=build_observed([run], commit),
    )
    output = Output(root, job, shards, parts, manifest)
    if num_parts is None:
        write_manifest(output, manifest)
    return output


def write_manifest(output: Output, manifest: Manifest) -> None:
    data = encode_manifest(manifest)
    (output.root / "manifest.json").write_bytes(data)
    (output.root / "_SUCCESS").write_bytes(success_digest(data))


def edit_manifest(output: Output, *, commit: bool = True, **changes: Any) -> None:
    """Writes a changed manifest with the right ``_SUCCESS``, as someone would who covers a lie."""
    document = json.loads(encode_manifest(output.manifest))
    _merge(document["commit"] if commit else document, changes)
    data = json.dumps(document).encode()
    (output.root / "manifest.json").write_bytes(data)
    (output.root / "_SUCCESS").write_bytes(success_digest(data))


def rewrite_part(output: Output, shard: int, table: pa.Table, footer: dict[str, Any] | None = None) -> None:
    """Replaces a part by other rows or another footer, and tells the manifest its new digest and size."""
    import pyarrow.parquet as pq

    path = output.part_path(shard)
    stored = pq.read_metadata(path).metadata[b"specbatch"]
    path.unlink()
    with path.open("xb") as file, pq.ParquetWriter(file, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"specbatch": json.dumps(footer).encode() if footer else stored})
    records = [
        part.record
        if index != shard
        else PartRecord(
            path=part.record.path, rows=part.record.rows, bytes=path.stat().st_size, sha256=sha256_file(path)
        )
        for index, part in enumerate(output.parts)
    ]
    commit = output.manifest.commit.model_copy(update={"parts": records})
    write_manifest(output, output.manifest.model_copy(update={"commit": commit}))


def _merge(document: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(document.get(key), dict):
            _merge(document[key], value)
        else:
            document[key] = value


def _cut(sizes: tuple[int, ...], digests: tuple[str, ...], shard_rows: int) -> tuple[Shard, ...]:
    """Shards of ``shard_rows`` rows that cross from one file into the next."""
    rows = [(file, row) for file, size in enumerate(sizes) for row in range(size)]
    shards = []
    for start in range(0, len(rows), shard_rows):
        segments: list[Segment] = []
        for row_id, (file, row) in enumerate(rows[start : start + shard_rows], start=start):
            if segments and segments[-1].path == f"/data/{file}.parquet":
                segments[-1] = replace(segments[-1], row_stop=row + 1)
            else:
                segments.append(Segment(f"/data/{file}.parquet", 1000, digests[file], row, row + 1, row_id))
        shards.append(Shard(len(shards), tuple(segments)))
    return tuple(shards)


def _write_part(
    root: Path,
    shard: Shard,
    plan: str,
    k: int,
    errors: frozenset[int],
    num_samples: int,
    form: ResultForm,
    table: pa.Table | None,
) -> Part:
    row_ids = range(shard.row_start, shard.row_stop)
    results = [
        make_result(row_id, k, row_id in errors, sample, form.with_logprobs)
        for row_id in row_ids
        for sample in range(num_samples)
    ]
    rows = pa.table({"prompt": [f"prompt {row_id}" for row_id in row_ids], "tag": [row_id % 3 for row_id in row_ids]})
    if table is not None:
        rows = table.slice(shard.row_start, len(row_ids))
    seconds = PhaseSeconds(propose=0.1, score=0.3, accept=0.01, host=0.02 + shard.index / 7, prefill=0.1, load=0.001)
    meta = PartMeta(
        format=PART_FORMAT,
        plan=plan,
        shard=shard.index,
        row_start=shard.row_start,
        row_stop=shard.row_stop,
        token="attempt",
        stats=part_stats(results, seconds),
    )
    name = part_name(shard.index, plan)
    path = root / name
    meta = write_part(path, rows, results, meta, num_samples=num_samples, form=form)
    record = PartRecord(path=name, rows=len(row_ids), bytes=path.stat().st_size, sha256=sha256_file(path))
    return Part(record, meta.stats)


def _total(parts: tuple[Part, ...]) -> PartStats:
    total = PartStats()
    for part in parts:
        total = total + part.stats
    return total
