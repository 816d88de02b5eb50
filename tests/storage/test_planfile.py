from __future__ import annotations

import io
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_a_plan_of_a_dataset_keeps_the_first_format() -> None:
    """What older versions wrote and read: the column order, the types and the mark are fixed."""
    table = pq.read_table(io.BytesIO(encode_plan(PLAN)))
    assert table.schema.metadata == {b"specbatch": b"specbatch/plan/1"}
    assert table.schema.names == [
        "shard",
        "segment",
        "path",
        "size_bytes",
        "footer_sha256",
        "row_start",
        "row_stop",
        "first_row_id",
    ]
    assert not any(field.nullable for field in table.schema)


def test_samples_of_an_amendment_come_back() -> None:
    """Gaps between segments and named samples are for amendments, which the second format is for."""
    plan = (
        Shard(0, (replace(segment(3, 4, 3), samples=(0, 2)), segment(7, 9, 7))),
        Shard(1, (replace(segment(20, 21, 20), samples=(1,)),)),
    )
    assert decode_plan(encode_plan(plan)) == plan
    table = pq.read_table(io.BytesIO(encode_plan(plan)))
    assert table.schema.metadata == {b"specbatch": b"specbatch/plan/2"}
    assert table.column("samples").to_pylist() == [[0, 2], None, [1]]


def test_the_plan_of_a_newer_version_is_named() -> None:
    """Fault 48: never read half-understood."""
    table = pq.read_table(io.BytesIO(encode_plan(PLAN))).replace_schema_metadata({"specbatch": "specbatch/plan/9"})
    with pytest.raises(SpecbatchError) as caught:
        decode_plan(parquet(table))
    assert caught.value.code is ErrorCode.JOB_FORMAT
    assert "specbatch/plan/9" in caught.value.message


def test_the_cost_of_a_segment_does_not_grow_with_their_number() -> None:
    """A shard of very many segments, as a hundred thousand one-row files give: quadratic code takes minutes."""
    plan = (Shard(0, tuple(segment(0, 1, number, f"/d/{number}") for number in range(50_000))),)
    assert decode_plan(encode_plan(plan)) == plan


segments = st.builds(
    lambda path, start, count, first, samples: Segment(path, 10, "ab" * 32, start, start + count, first, samples),
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.integers(0, 1 << 50),
    st.integers(0, 1 << 20),
    st.integers(0, 1 << 60),
    st.none() | st.lists(st.integers(0, 1 << 20), max_size=3).map(tuple),
)


@given(st.lists(st.lists(segments, min_size=1, max_size=4), max_size=5))
def test_every_plan_comes_back(groups: list[list[Segment]]) -> None:
    plan = tuple(Shard(index, tuple(group)) for index, group in enumerate(groups))
    assert decode_plan(encode_plan(plan)) == plan


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
