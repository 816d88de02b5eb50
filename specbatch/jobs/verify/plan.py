"""The second opinion on job.json and the stored plan: S and P are computed anew, and rows are counted.

Part of ``verify``, which shares no code with the writers.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from specbatch.jobs.verify.files import Absent, Source, Unsound, canonical, parse_json, read_bounded
from specbatch.jobs.verify.parquet import open_untrusted

JOB_NAME = "_specbatch/job.json"

_MAX_JOB_BYTES = 64 << 20
_MAX_PLAN_BYTES = 256 << 20
_MAX_PLAN_ROWS = 10_000_000
_MAX_SAMPLE_LISTS = 64 << 20
_SAMPLES = "samples"
_AMENDS = "amends"
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
    """Shard ``index`` holds rows of the job, from ``row_start`` to before ``row_stop``, in the part ``name``.

    Attributes:
        picks: of an amendment, which has gaps: (first row, one past the last row, samples or None for all) in order;
            None where every row is there with all its samples.
    """

    index: int
    name: str
    row_start: int
    row_stop: int
    picks: tuple[tuple[int, int, tuple[int, ...] | None], ...] | None = None

    @property
    def num_rows(self) -> int:
        """Rows of the part, each counted once."""
        picks = self.picks or ((self.row_start, self.row_stop, None),)
        return sum(stop - start for start, stop, _ in picks)

    def num_results(self, num_samples: int) -> int:
        """Results of the part, where the job has so many samples of a row."""
        return sum((stop - start) * len(chosen) for start, stop, chosen in self._picks(num_samples))

    def expected(self, num_samples: int, begin: int, end: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Row id and sample index of the results ``begin`` to before ``end`` of the part: no more is ever in memory."""
        rows, samples = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        first = 0
        for start, stop, chosen in self._picks(num_samples):
            count = (stop - start) * len(chosen)
            place = np.arange(max(begin - first, 0), min(end - first, count))
            rows.append(start + place // len(chosen))
            samples.append(np.array(chosen, dtype=np.int64)[place % len(chosen)])
            first += count
            if first >= end:
                break
        return np.concatenate(rows), np.concatenate(samples)

    def _picks(self, num_samples: int) -> Iterator[tuple[int, int, Sequence[int]]]:
        for start, stop, chosen in self.picks or ((self.row_start, self.row_stop, None),):
            yield start, stop, range(num_samples) if chosen is None else chosen


@dataclass(frozen=True, slots=True)
class _Segment:
    shard: int
    segment: int
    footer_sha256: str
    row_start: int
    row_stop: int
    first_row_id: int
    samples: tuple[int, ...] | None = None

    @property
    def digested(self) -> list[Any]:
        """What of it enters P."""
        places: list[Any] = [self.footer_sha256, self.row_start, self.row_stop, self.first_row_id]
        return places if self.samples is None else [*places, list(self.samples)]


def check_job(source: Source, problems: list[str]) -> dict[str, Any]:
    """Reads job.json and recomputes S from its fields.

    Raises:
        Absent: there is none.
        Unsound: it cannot be read at all, so that nothing else can be judged.
    """
    job = parse_json(read_bounded(source, JOB_NAME, _MAX_JOB_BYTES), JOB_NAME)
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


def check_plan(source: Source, job: dict[str, Any], problems: list[str]) -> list[PlannedShard]:
    """Reads the plan that job.json names, recomputes P, and checks that its shards are the rows 0..N-1 in order.

    Those of an amendment are some of these rows, in order and none twice.

    Raises:
        Unsound: the plan cannot be read at all.
    """
    identity = job["identity"]
    name = f"_specbatch/plan-{identity['P']}.parquet"
    try:
        segments = _read_segments(read_bounded(source, name, _MAX_PLAN_BYTES), name)
    except Absent:
        raise Unsound(f"{name} is missing") from None
    is_amendment = _AMENDS in identity["fields"]
    next_row = 0
    previous = (-1, 0)
    for item in segments:
        if (item.shard, item.segment) not in ((previous[0] + 1, 0), (previous[0], previous[1] + 1)):
            raise Unsound(f"{name}: shards or segments do not follow each other")
        follows = item.first_row_id >= next_row if is_amendment else item.first_row_id == next_row
        if not follows or not 0 <= item.row_start < item.row_stop:
            raise Unsound(f"{name}: the rows of shard {item.shard} do not follow those before it")
        if item.samples is not None and not (is_amendment and _ascends(item.samples)):
            raise Unsound(f"{name}: shard {item.shard} names samples that it may not have")
        next_row = item.first_row_id + item.row_stop - item.row_start
        previous = (item.shard, item.segment)

    shards: list[list[_Segment]] = []
    for item in segments:
        if item.segment == 0:
            shards.append([])
        shards[-1].append(item)
    digest = hashlib.sha256(identity["S"].encode())
    for index, shard in enumerate(shards):
        digest.update(canonical([index, [item.digested for item in shard]]))
    if digest.hexdigest()[:16] != identity["P"]:
        problems.append(f"{name}: P is not the digest of S and the shards")
    _check_inputs(segments, identity["fields"], name, problems, is_amendment=is_amendment)
    return [
        PlannedShard(
            index=index,
            name=f"part-{index:06d}-{identity['P']}.parquet",
            row_start=shard[0].first_row_id,
            row_stop=_stop(shard[-1]),
            picks=tuple((s.first_row_id, _stop(s), s.samples) for s in shard) if is_amendment else None,
        )
        for index, shard in enumerate(shards)
    ]


def _stop(segment: _Segment) -> int:
    return segment.first_row_id + segment.row_stop - segment.row_start


def _ascends(samples: tuple[int, ...]) -> bool:
    return bool(samples) and samples[0] >= 0 and all(one < two for one, two in pairwise(samples))


def _check_inputs(
    segments: list[_Segment], fields: dict[str, Any], name: str, problems: list[str], *, is_amendment: bool = False
) -> None:
    """The segments must be the pinned inputs, each from its first row to its last, up to the limit.

    Those of an amendment must lie where the inputs have these rows.
    """
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
    if is_amendment:
        if not all(_lies_in(item, expected) for item in segments):
            problems.append(f"{name}: it names rows that the pinned inputs have elsewhere, or not at all")
        return
    merged: list[tuple[str, int, int]] = []
    for item in segments:
        # row_start 0 begins a file anew: the same file may be given twice.
        if merged and item.row_start and merged[-1][0] == item.footer_sha256 and merged[-1][2] == item.row_start:
            merged[-1] = (item.footer_sha256, merged[-1][1], item.row_stop)
        else:
            merged.append((item.footer_sha256, item.row_start, item.row_stop))
    if merged != expected:
        problems.append(f"{name}: it is not every row of the pinned inputs once and in order")


def _lies_in(item: _Segment, files: list[tuple[str, int, int]]) -> bool:
    """Whether a segment's rows are those that the inputs, one after the other, have under its row ids."""
    begins = [0, *accumulate(stop for _, _, stop in files)]
    place = bisect_right(begins, item.first_row_id) - 1
    if place >= len(files):
        return False
    sha256, _, num_rows = files[place]
    in_file = item.first_row_id - begins[place]
    return item.footer_sha256 == sha256 and item.row_start == in_file and item.row_stop <= num_rows


def _read_segments(data: bytes, name: str) -> list[_Segment]:
    parquet = open_untrusted(data, name, dictionary_columns=["footer_sha256"])
    if parquet.metadata.num_rows > _MAX_PLAN_ROWS:
        raise Unsound(f"{name} has more than {_MAX_PLAN_ROWS:,} rows")
    try:
        table = parquet.read(columns=list(_PLAN_COLUMNS), use_threads=False)
        columns = [table.column(column).cast(kind) for column, kind in _PLAN_COLUMNS.items()]
        samples = _read_samples(parquet, name)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise Unsound(f"{name} cannot be read as a plan") from error
    if any(column.null_count for column in columns):
        raise Unsound(f"{name} has empty cells")
    values = zip(*(column.to_pylist() for column in columns), samples, strict=True)
    return [_Segment(*cells) for cells in values]


def _read_samples(parquet: Any, name: str) -> list[tuple[int, ...] | None]:
    """The samples of each segment; None for all of them, as everywhere in a plan without that column."""
    if _SAMPLES not in parquet.schema_arrow.names:
        return [None] * parquet.metadata.num_rows
    column = parquet.read(columns=[_SAMPLES], use_threads=False).column(_SAMPLES).cast(pa.list_(pa.int32()))
    lists = column.to_pylist() if column.nbytes <= _MAX_SAMPLE_LISTS else None
    if lists is None or any(item is not None and None in item for item in lists):
        raise Unsound(f"{name} has lists of samples that are none")
    return [None if item is None else tuple(item) for item in lists]


def _is_hex(value: object, length: int) -> bool:
    return isinstance(value, str) and len(value) == length and set(value) <= set("0123456789abcdef")
