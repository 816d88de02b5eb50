"""The second opinion on job.json and the stored plan: S and P are computed anew, and rows are counted.

Part of ``verify``, which shares no code with the writers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from specbatch.jobs.verify_files import Absent, Unsound, canonical, parse_json, read_bounded
from specbatch.jobs.verify_parquet import open_untrusted

JOB_NAME = "_specbatch/job.json"

_MAX_JOB_BYTES = 64 << 20
_MAX_PLAN_BYTES = 256 << 20
_MAX_PLAN_ROWS = 10_000_000
_PLAN_COLUMNS = {
    "shard": pa.int64(),
    "segment": pa.int64(),
    "footer_sha256": pa.string(),
    "row_start": pa.int64(),
    "row_stop": pa.int64(),
    "first_row_id": pa.int64(),
}


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """Shard ``index`` holds rows [row_start, row_stop) of the job in the part ``name``."""

    index: int
    name: str
    row_start: int
    row_stop: int


@dataclass(frozen=True, slots=True)
class PartRules:
    """What the identity says about every part.

    Attributes:
        plan: plan digest P.
        job_seed: the job's seed, from which the seed of each sample follows; None leaves the seeds unchecked.
        num_samples: results of each row.
        has_logprobs: whether there is a column of logprobs.
    """

    plan: str
    job_seed: int | None
    num_samples: int = 1
    has_logprobs: bool = False


@dataclass(frozen=True, slots=True)
class _Segment:
    shard: int
    segment: int
    footer_sha256: str
    row_start: int
    row_stop: int
    first_row_id: int


def check_job(root: Path, problems: list[str]) -> dict[str, Any]:
    """Reads job.json and recomputes S from its fields.

    Raises:
        Absent: there is none.
        Unsound: it cannot be read at all, so that nothing else can be judged.
    """
    job = parse_json(read_bounded(root, JOB_NAME, _MAX_JOB_BYTES), JOB_NAME)
    if job.get("format") != "specbatch/job/1":
        raise Unsound(f"{JOB_NAME} has format {str(job.get('format'))[:60]!r}, not 'specbatch/job/1'")
    identity = job.get("identity")
    if not (
        isinstance(identity, dict)
        and set(identity) == {"S", "P", "fields"}
        and _is_hex(identity["S"], 64)
        and _is_hex(identity["P"], 16)
        and isinstance(identity["fields"], dict)
    ):
        raise Unsound(f"{JOB_NAME} has no identity with S, P and fields")
    if hashlib.sha256(canonical(identity["fields"])).hexdigest() != identity["S"]:
        problems.append(f"{JOB_NAME}: S is not the digest of its fields")
    return job


def part_rules(job: dict[str, Any], problems: list[str]) -> PartRules:
    """What job.json says about its parts; a job written before samples and logprobs existed has one and none."""
    generation = job["identity"]["fields"].get("generation")
    settings = generation if isinstance(generation, dict) else {}
    seed, num_samples = settings.get("seed"), settings.get("num_samples", 1)
    if type(seed) is not int:
        problems.append("job.json: the identity names no seed")
        seed = None
    if type(num_samples) is not int or num_samples < 1:
        raise Unsound(f"{JOB_NAME}: the number of samples is {str(num_samples)[:40]!r}")
    return PartRules(job["identity"]["P"], seed, num_samples, settings.get("logprobs") is True)


def check_plan(root: Path, job: dict[str, Any], problems: list[str]) -> list[PlannedShard]:
    """Reads the plan that job.json names, recomputes P, and checks that its shards are the rows 0..N-1 in order.

    Raises:
        Unsound: the plan cannot be read at all.
    """
    identity = job["identity"]
    name = f"_specbatch/plan-{identity['P']}.parquet"
    try:
        segments = _read_segments(read_bounded(root, name, _MAX_PLAN_BYTES), name)
    except Absent:
        raise Unsound(f"{name} is missing") from None
    next_row = 0
    previous = (-1, 0)
    for item in segments:
        if (item.shard, item.segment) not in ((previous[0] + 1, 0), (previous[0], previous[1] + 1)):
            raise Unsound(f"{name}: shards or segments do not follow each other")
        if item.first_row_id != next_row or not 0 <= item.row_start < item.row_stop:
            raise Unsound(f"{name}: the rows of shard {item.shard} do not follow those before it")
        next_row += item.row_stop - item.row_start
        previous = (item.shard, item.segment)

    shards: list[list[_Segment]] = []
    for item in segments:
        if item.segment == 0:
            shards.append([])
        shards[-1].append(item)
    digest = hashlib.sha256(identity["S"].encode())
    for index, shard in enumerate(shards):
        digest.update(canonical([index, [[s.footer_sha256, s.row_start, s.row_stop, s.first_row_id] for s in shard]]))
    if digest.hexdigest()[:16] != identity["P"]:
        problems.append(f"{name}: P is not the digest of S and the shards")
    _check_inputs(segments, identity["fields"], name, problems)
    return [
        PlannedShard(
            index=index,
            name=f"part-{index:06d}-{identity['P']}.parquet",
            row_start=shard[0].first_row_id,
            row_stop=shard[-1].first_row_id + shard[-1].row_stop - shard[-1].row_start,
        )
        for index, shard in enumerate(shards)
    ]


def _check_inputs(segments: list[_Segment], fields: dict[str, Any], name: str, problems: list[str]) -> None:
    """The segments must be the pinned inputs, each from its first row to its last, up to the limit."""
    inputs, output = fields.get("inputs"), fields.get("output")
    limit = output.get("limit") if isinstance(output, dict) else None
    try:
        pinned = [(str(sha256), int(num_rows)) for _, _, sha256, num_rows in inputs or ()]
    except (TypeError, ValueError):
        problems.append(f"{JOB_NAME}: the inputs of the identity are not (name, bytes, digest, rows)")
        return
    left = sum(num_rows for _, num_rows in pinned)
    if isinstance(limit, int):
        left = min(left, limit)
    expected: list[tuple[str, int, int]] = []
    for sha256, num_rows in pinned:
        taken = min(num_rows, left)
        if taken:
            expected.append((sha256, 0, taken))
        left -= taken
    merged: list[tuple[str, int, int]] = []
    for item in segments:
        # row_start 0 begins a file anew: the same file may be given twice.
        if merged and item.row_start and merged[-1][0] == item.footer_sha256 and merged[-1][2] == item.row_start:
            merged[-1] = (item.footer_sha256, merged[-1][1], item.row_stop)
        else:
            merged.append((item.footer_sha256, item.row_start, item.row_stop))
    if merged != expected:
        problems.append(f"{name}: it is not every row of the pinned inputs once and in order")


def _read_segments(data: bytes, name: str) -> list[_Segment]:
    parquet = open_untrusted(data, name, dictionary_columns=["footer_sha256"])
    if parquet.metadata.num_rows > _MAX_PLAN_ROWS:
        raise Unsound(f"{name} has more than {_MAX_PLAN_ROWS:,} rows")
    try:
        table = parquet.read(columns=list(_PLAN_COLUMNS), use_threads=False)
        columns = [table.column(column).cast(kind) for column, kind in _PLAN_COLUMNS.items()]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise Unsound(f"{name} cannot be read as a plan") from error
    if any(column.null_count for column in columns):
        raise Unsound(f"{name} has empty cells")
    return [_Segment(*values) for values in zip(*(column.to_pylist() for column in columns), strict=True)]


def _is_hex(value: object, length: int) -> bool:
    return isinstance(value, str) and len(value) == length and set(value) <= set("0123456789abcdef")
