"""The stored plan: a Parquet file with one row per (shard, segment).

``specbatch/plan/1`` is the plan of a dataset; ``specbatch/plan/2``, which only amendments are written in, has one
column more: which samples of a segment's rows are wanted.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import Segment, Shard

_FIELDS = [
    pa.field("shard", pa.int64(), nullable=False),
    pa.field("segment", pa.int64(), nullable=False),
    pa.field("path", pa.string(), nullable=False),
    pa.field("size_bytes", pa.int64(), nullable=False),
    pa.field("footer_sha256", pa.string(), nullable=False),
    pa.field("row_start", pa.int64(), nullable=False),
    pa.field("row_stop", pa.int64(), nullable=False),
    pa.field("first_row_id", pa.int64(), nullable=False),
]
_SAMPLES = pa.field("samples", pa.list_(pa.field("element", pa.int32(), nullable=False)))
_FORMAT_KEY = b"specbatch"
_SCHEMAS = {
    b"specbatch/plan/1": pa.schema(_FIELDS, metadata={_FORMAT_KEY: b"specbatch/plan/1"}),
    b"specbatch/plan/2": pa.schema([*_FIELDS, _SAMPLES], metadata={_FORMAT_KEY: b"specbatch/plan/2"}),
}


def encode_plan(shards: Sequence[Shard]) -> bytes:
    """The plan as the bytes of a Parquet file; equal plans give equal bytes."""
    assert all(shard.index == number for number, shard in enumerate(shards)), "shards are numbered from 0 without a gap"
    assert all(shard.segments for shard in shards), "a shard has at least one segment"
    segments = [segment for shard in shards for segment in shard.segments]
    has_samples = any(segment.samples is not None for segment in segments)
    schema = _SCHEMAS[b"specbatch/plan/2" if has_samples else b"specbatch/plan/1"]
    columns = {name: [getattr(segment, name) for segment in segments] for name in schema.names[2:]}
    columns["shard"] = [shard.index for shard in shards for _ in shard.segments]
    columns["segment"] = [number for shard in shards for number in range(len(shard.segments))]
    table = pa.Table.from_arrays([pa.array(columns[field.name], field.type) for field in schema], schema=schema)
    data = io.BytesIO()
    pq.write_table(table, data, compression="zstd", write_page_checksum=True)
    return data.getvalue()


def decode_plan(data: bytes) -> tuple[Shard, ...]:
    """The plan from the bytes of its file.

    Raises:
        SpecbatchError: ``JOB_INTEGRITY`` when the bytes are not a stored plan, ``JOB_FORMAT`` where a newer version
            wrote it.
    """
    try:
        # A Python file object would be read on a thread of Arrow's own, which a short-lived command can outrun.
        table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of names that are no text
        raise _damaged("it is not a readable Parquet file") from error
    format = (table.schema.metadata or {}).get(_FORMAT_KEY, b"")
    if format not in _SCHEMAS and format.startswith(b"specbatch/plan/"):
        raise SpecbatchError(
            ErrorCode.JOB_FORMAT,
            f"the stored plan is {format[:40].decode('ascii', 'replace')}, which this version does not read; "
            "use the version of specbatch that wrote it",
        )
    if format not in _SCHEMAS or not table.schema.equals(_SCHEMAS[format]):
        raise _damaged("its columns are not those of a plan")
    shards: list[list[Segment]] = []
    texts: dict[str, str] = {}  # one copy of a path for all of its segments
    columns = [table.column(name).to_pylist() for name in table.schema.names]
    for shard, number, path, size_bytes, footer_sha256, start, stop, first, *rest in zip(*columns, strict=True):
        if (shard, number) == (len(shards), 0):
            shards.append([])
        elif (shard, number) != (len(shards) - 1, len(shards[-1]) if shards else 0):
            raise _damaged(f"shard {shard} is out of order")
        path, footer_sha256 = texts.setdefault(path, path), texts.setdefault(footer_sha256, footer_sha256)
        samples = tuple(rest[0]) if rest and rest[0] is not None else None
        shards[-1].append(Segment(path, size_bytes, footer_sha256, start, stop, first, samples))
    return tuple(Shard(index, tuple(segments)) for index, segments in enumerate(shards))


def _damaged(reason: str) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_INTEGRITY, f"the stored plan is damaged: {reason}; submit the job to a new output"
    )
