"""Jobs that are decoded by nobody: a plan, an identity, and for every row the result that any attempt must come to."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from specbatch.schemas.canonical import canonical_json, sha256_hex
from specbatch.schemas.manifest import Identity, ModelRecord, Models
from specbatch.schemas.messages import Lease
from specbatch.schemas.plan import Segment, Shard, plan_digest
from specbatch.schemas.rows import RowResult
from specbatch.schemas.seeds import row_seed
from specbatch.schemas.spec import InputSpec, JobSpec
from specbatch.schemas.stats import PhaseSeconds, SpecCounters
from specbatch.workers.shards import Assignment, FinishedShard

MODELS = Models(target=ModelRecord(name="target", revision=None, files={"w": "a" * 64}, parameters=1), draft=None)
TEXT_COLUMNS = (
    "prompt", "row_id", "sample_index", "status", "completion", "completion_token_ids", "finish_reason", "error_code",
    "num_prompt_tokens", "num_completion_tokens", "row_seed", "min_margin",
)  # fmt: skip
"""Everything but the speculation counters: a resumed job may have chosen another K."""


@dataclass(frozen=True)
class SimulatedJob:
    """A job and one way to cut it. Jobs of one number have one identity S; each cut gives another P."""

    number: int
    identity: Identity
    shards: tuple[Shard, ...]
    spec: dict[str, Any]

    @property
    def num_rows(self) -> int:
        return self.shards[-1].row_stop


@functools.cache
def make_job(number: int, num_rows: int, shard_rows: int) -> SimulatedJob:
    """Job ``number`` in shards of so many rows."""
    digest = sha256_hex(f"input of job {number}".encode())
    starts = range(0, num_rows, shard_rows)
    shards = tuple(
        Shard(index, (Segment("/data/0.parquet", 1000, digest, start, min(start + shard_rows, num_rows), start),))
        for index, start in enumerate(starts)
    )
    fields = {
        "format": "specbatch/identity/1",
        "model": {"files": dict(MODELS.target.files), "tokenizer": "c" * 64, "dtype": "float32", "path": "generic"},
        "generation": {"seed": number, "temperature": 0.0},
        "output": {"id_column": None, "limit": None},
        "inputs": [["0.parquet", 1000, digest, num_rows]],
    }
    s = sha256_hex(canonical_json(fields))
    identity = Identity(S=s, P=plan_digest(s, shards), fields=fields)
    spec = JobSpec(input=InputSpec(datasets=("/data/0.parquet",))).model_dump(mode="json")
    return SimulatedJob(number, identity, shards, spec)


def poisoned(result: RowResult) -> RowResult:
    """The error row that stands for a row which kills workers."""
    return replace(
        result, finish_reason="error", num_prompt_tokens=0, completion=None, completion_token_ids=None,
        error_code="ROW_POISON", error_message="it killed workers", min_margin=None, counters=SpecCounters(),
    )  # fmt: skip


@functools.cache
def _result(job: int, row_id: int, k: int) -> RowResult:
    token_ids = (job, row_id, row_id + 1, 7)
    spec_steps = 1 if k else 0
    return RowResult(
        row_id=row_id,
        sample_index=0,
        row_seed=row_seed(job, row_id, 0),
        finish_reason="stop" if row_id % 3 else "length",
        num_prompt_tokens=3,
        completion=f"completion {row_id} of job {job}",
        completion_token_ids=token_ids,
        min_margin=float(row_id) + 0.5,
        counters=SpecCounters(
            num_spec_steps=spec_steps,
            num_plain_steps=len(token_ids) - 2 * spec_steps,
            num_draft_tokens=spec_steps,
            num_accepted_draft_tokens=spec_steps,
            acceptance_histogram=(0, 1) if k else (),
            draft_length_histogram=(0, 1) if k else (),
        ),
    )


@functools.cache
def _table(job: int, start: int, stop: int) -> pa.Table:
    return pa.table({"prompt": [f"prompt {row_id} of job {job}" for row_id in range(start, stop)]})


def decode(job: SimulatedJob, lease: Lease, k: int) -> FinishedShard:
    """What a worker makes of a shard. ``k`` changes the counters and nothing else."""
    shard = lease.shard
    results = [_result(job.number, row_id, k) for row_id in range(shard.row_start, shard.row_stop)]
    rows = tuple(poisoned(result) if result.row_id in lease.poison else result for result in results)
    return FinishedShard(
        Assignment(0, lease), _table(job.number, shard.row_start, shard.row_stop), rows, PhaseSeconds(score=1.0)
    )


def expected_row(job: SimulatedJob, row_id: int, poison: Collection[int]) -> dict[str, Any]:
    """The text columns of a row of the undisturbed run."""
    result = _result(job.number, row_id, 0)
    if row_id in poison:
        result = poisoned(result)
    ids = result.completion_token_ids
    return {
        "prompt": f"prompt {row_id} of job {job.number}",
        "row_id": row_id,
        "sample_index": 0,
        "status": result.status,
        "completion": result.completion,
        "completion_token_ids": None if ids is None else list(ids),
        "finish_reason": result.finish_reason,
        "error_code": result.error_code,
        "num_prompt_tokens": result.num_prompt_tokens,
        "num_completion_tokens": result.num_completion_tokens,
        "row_seed": result.row_seed,
        "min_margin": result.min_margin,
    }
