from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import Segment, Shard
from specbatch.storage.planfile import decode_plan, encode_plan


def segment(start: int, stop: int, first: int, path: str = "/d/a.parquet") -> Segment:
    return Segment(path, 1000, "ab" * 32, start, stop, first)


PLAN = (
    Shard(0, (segment(0, 10, 0),)),
    Shard(1, (segment(10, 15, 10), segment(0, 0, 15, "/d/é empty.parquet"), segment(0, 5, 15, "/d/b.parquet"))),
    Shard(2, (segment(5, 1 << 40, 20, "/d/b.parquet"),)),
)


def test_round_trip() -> None:
    assert decode_plan(encode_plan(PLAN)) == PLAN
    assert decode_plan(encode_plan(())) == ()


def test_equal_plans_give_equal_bytes() -> None:
    assert encode_plan(PLAN) == encode_plan(list(PLAN))


def test_one_row_per_shard_and_segment() -> None:
    table = pq.read_table(io.BytesIO(encode_plan(PLAN)))
    assert table.column("shard").to_pylist() == [0, 1, 1, 1, 2]
    assert table.column("segment").to_pylist() == [0, 0, 1, 2, 0]


@pytest.mark.parametrize("shards", [(PLAN[1],), (Shard(0, ()),), (PLAN[0], PLAN[2])])
def test_only_whole_plans_are_stored(shards: tuple[Shard, ...]) -> None:
    with pytest.raises(AssertionError):
        encode_plan(shards)


def parquet(table: pa.Table) -> bytes:
    data = io.BytesIO()
    pq.write_table(table, data)
    return data.getvalue()


def shuffled() -> bytes:
    table = pq.ParquetFile(io.BytesIO(encode_plan(PLAN))).read()
    return parquet(table.take([0, 2, 1, 3, 4]))


@pytest.mark.parametrize(
    "data", [b"", b"not parquet at all", encode_plan(PLAN)[:-40], parquet(pa.table({"shard": [0]})), shuffled()]
)
def test_damage_is_found(data: bytes) -> None:
    with pytest.raises(SpecbatchError) as caught:
        decode_plan(data)
    assert caught.value.code is ErrorCode.JOB_INTEGRITY
