"""The stored plan: a Parquet file with one row per (shard, segment)."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import Segment, Shard

_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("segment", pa.int64(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("footer_sha256", pa.string(), nullable=False),
        pa.field("row_start", pa.int64(), nullable=False),
        pa.field("row_stop", pa.int64(), nullable=False),
        pa.field("first_row_id", pa.int64(), nullable=False),
    ],
    metadata={"specbatch": "specbatch/plan/1"},
)


def encode_plan(shards: Sequence[Shard]) -> bytes:
    """The plan as the bytes of a Parquet file; equal plans give equal bytes."""
    assert [shard.index for shard in shards] == list(range(len(shards))), "shards are numbered from 0 without a gap"
    assert all(shard.segments for shard in shards), "a shard has at least one segment"
    rows = [
        {
            "shard": shard.index,
            "segment": number,
            "path": segment.path,
            "size_bytes": segment.size_bytes,
            "footer_sha256": segment.footer_sha256,
            "row_start": segment.row_start,
            "row_stop": segment.row_stop,
            "first_row_id": segment.first_row_id,
        }
        for shard in shards
        for number, segment in enumerate(shard.segments)
    ]
    data = io.BytesIO()
    table = pa.Table.from_pylist(rows, _SCHEMA)
    pq.write_table(table, data, compression="zstd", write_page_checksum=True)
    return data.getvalue()


def decode_plan(data: bytes) -> tuple[Shard, ...]:
    """The plan from the bytes of its file.

    Raises:
        SpecbatchError: ``JOB_INTEGRITY`` when the bytes are not a stored plan.
    """
    try:
        # A Python file object would be read on a thread of Arrow's own, which a short-lived command can outrun.
        table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise _damaged("it is not a readable Parquet file") from error
    if not table.schema.equals(_SCHEMA) or (table.schema.metadata or {}).get(b"specbatch") != b"specbatch/plan/1":
        raise _damaged("its columns are not those of a plan")
    shards: list[tuple[Segment, ...]] = []
    columns = [table.column(name).to_pylist() for name in _SCHEMA.names]
    for shard, number, *segment in zip(*columns, strict=True):
        if (shard, number) == (len(shards), 0):
            shards.append(())
        elif (shard, number) != (len(shards) - 1, len(shards[-1]) if shards else 0):
            raise _damaged(f"shard {shard} is out of order")
        shards[-1] += (Segment(*segment),)
    return tuple(Shard(index, segments) for index, segments in enumerate(shards))


def _damaged(reason: str) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_INTEGRITY, f"the stored plan is damaged: {reason}; submit the job to a new output"
    )
