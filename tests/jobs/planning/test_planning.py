"""Planning: whatever the row groups, shards partition the rows in order."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specbatch.jobs.planning.planning import MAX_TAIL_ROWS, choose_shard_rows, cut_shards
from specbatch.jobs.planning.prepare import follow_inputs
from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.plan import InputFile, Segment, plan_digest
from specbatch.storage.inputs import read_inputs, read_segment
from specbatch.storage.planfile import decode_plan, encode_plan


def make_file(name: str, *row_groups: int) -> InputFile:
    return InputFile(name, f"/data/{name}", 1000, f"footer of {name}", row_groups)


def sizes(shards: tuple[object, ...]) -> list[int]:
    return [shard.num_rows for shard in shards]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("num_rows", "asked", "chosen"),
    [(0, "auto", 16), (256, "auto", 16), (257, "auto", 17), (10_000, "auto", 625), (1 << 30, "auto", 1024), (5, 3, 3)],
)
def test_shard_rows(num_rows: int, asked: object, chosen: int) -> None:
    assert choose_shard_rows(num_rows, asked) == chosen  # type: ignore[arg-type]


def test_long_rows_make_short_shards() -> None:
    assert choose_shard_rows(1 << 20, "auto", num_bytes=1 << 40) == 32
    assert choose_shard_rows(1 << 20, "auto", num_bytes=1 << 60) == 1
    assert choose_shard_rows(1 << 20, 500, num_bytes=1 << 60) == 500
    heavy = replace(make_file("a", 4000), size_bytes=4000 << 20)
    assert max(sizes(cut_shards([heavy]))) == 32
    assert sizes(cut_shards([heavy], limit=40)) == [14, 13, 13]


@pytest.mark.parametrize("num_rows", [1_009, 10_000, 100_000, 3_000_000])
def test_the_last_tenth_is_cut_into_small_shards(num_rows: int) -> None:
    files = [make_file(str(index), *[5000] * 20) for index in range(-(-num_rows // 100_000))]
    shards = cut_shards(files, "auto", num_rows)
    most = choose_shard_rows(num_rows, "auto")
    num_small = min(num_rows // 10, MAX_TAIL_ROWS)
    assert max(sizes(shards)) <= most
    tail = [shard for shard in shards if shard.row_start >= num_rows - num_small]
    assert tail[0].row_start == num_rows - num_small, "a shard begins where the tail does"
    assert max(sizes(tuple(tail))) <= most // 4
    assert len(tail) <= 2 * -(-num_small // (most // 4))
    assert cut_shards(files, "auto", num_rows) == shards


def test_small_jobs_and_explicit_sizes_have_no_tail() -> None:
    assert sizes(cut_shards([make_file("a", 1000)])) == [63] * 8 + [62] * 8
    assert sizes(cut_shards([make_file("a", 10_000)], 1000)) == [1000] * 10


def test_more_shards_than_names_are_refused() -> None:
    huge = make_file("a", *[(1 << 31) - 1] * 2)
    with pytest.raises(SpecbatchError, match="JOB_INPUT_LIMIT: the plan would have more than 1,000,000 shards"):
        cut_shards([huge])
    with pytest.raises(SpecbatchError, match="--shard-rows"):
        cut_shards([make_file("a", 1_000_001)], 1)


def test_the_cost_of_a_file_does_not_grow_with_their_number() -> None:
    """A hundred thousand files of one row (bad input 25): shards span files, and quadratic code takes minutes."""
    files = [make_file(str(index), 1) for index in range(100_000)]
    shards = cut_shards(files)
    assert sum(len(shard.segments) for shard in shards) == 100_000
    assert len(plan_digest("0" * 64, shards)) == 16


def test_row_groups_that_fit_are_kept_whole() -> None:
    assert sizes(cut_shards([make_file("a", 16, 16, 16)], 16)) == [16, 16, 16]


def test_small_row_groups_are_merged_and_large_ones_cut_evenly() -> None:
    assert sizes(cut_shards([make_file("a", 4, 4, 4, 4, 4)], 16)) == [16, 4]
    assert sizes(cut_shards([make_file("a", 33)], 16)) == [11, 11, 11]


def test_a_shard_ends_at_a_border_when_it_is_half_full() -> None:
    assert sizes(cut_shards([make_file("a", 9, 12)], 16)) == [9, 12]
    assert sizes(cut_shards([make_file("a", 4, 14)], 16)) == [9, 9]


def test_segments_follow_files_and_join_within_one() -> None:
    shards = cut_shards([make_file("a", 2, 3), make_file("empty"), make_file("zero", 0), make_file("b", 2)], 16)
    assert [shard.segments for shard in shards] == [
        (
            Segment("/data/a", 1000, "footer of a", 0, 5, 0),
            Segment("/data/b", 1000, "footer of b", 0, 2, 5),
        )
    ]


def test_limit_cuts_inside_a_row_group() -> None:
    shards = cut_shards([make_file("a", 5), make_file("b", 5)], 4, limit=7)
    assert shards[-1].row_stop == 7
    assert sum(sizes(shards)) == 7
    assert sizes(cut_shards([make_file("a", 5)], 16, limit=100)) == [5]


def test_no_rows_no_shards() -> None:
    assert cut_shards([make_file("a"), make_file("b", 0)], "auto") == ()


row_groups = st.lists(st.integers(0, 60) | st.integers(0, 2000), max_size=6)


@given(
    st.lists(row_groups, max_size=4),
    st.one_of(st.just("auto"), st.integers(1, 40)),
    st.one_of(st.none(), st.integers(1, 150)),
)
def test_shards_partition_the_rows_in_order(groups: list[list[int]], shard_rows: object, limit: int | None) -> None:
    files = [make_file(str(index), *rows) for index, rows in enumerate(groups)]
    shards = cut_shards(files, shard_rows, limit)  # type: ignore[arg-type]
    num_rows = min(sum(file.num_rows for file in files), limit if limit is not None else 1 << 60)
    num_bytes = sum(file.size_bytes for file in files if file.num_rows)
    most = choose_shard_rows(num_rows, shard_rows, num_bytes)  # type: ignore[arg-type]
    starts = {}
    for file in files:
        starts[file.path] = sum(starts_file.num_rows for starts_file in files[: int(file.name)])
    next_row_id = 0
    for index, shard in enumerate(shards):
        assert shard.index == index
        assert 1 <= shard.num_rows <= most
        assert shard.row_start == next_row_id
        for segment in shard.segments:
            assert segment.num_rows >= 1
            assert segment.first_row_id == next_row_id == starts[segment.path] + segment.row_start
            next_row_id += segment.num_rows
        assert shard.row_stop == next_row_id
    assert next_row_id == num_rows
    small = num_rows // 10 if shard_rows == "auto" and most >= 64 else 0
    assert len(shards) <= 2 * -(-num_rows // most) + 2 * -(-small // (most // 4 or 1)) + 1


def make_rows(first: int, count: int) -> pa.Table:
    """Rows with what columns may be: null here and there, nested, without any value."""
    numbers = range(first, first + count)
    return pa.table(
        {
            "prompt": pa.array([None if n % 7 == 3 else f"prompt {n} é" for n in numbers], pa.string()),
            "number": pa.array(numbers, pa.int64()),
            "nested": pa.array(
                [None if n % 5 == 1 else [{"a": n, "b": None if n % 2 else "x"}] * (n % 3) for n in numbers],
                pa.list_(pa.struct([("a", pa.int64()), ("b", pa.large_string())])),
            ),
            "nothing": pa.nulls(count),
        }
    )


shapes = st.lists(
    st.lists(st.integers(0, 5) | st.integers(0, 300) | st.sampled_from([1, 1, 1024, 5000]), max_size=5), max_size=4
)


def check_shape(groups: list[list[int]], shard_rows: object, compression: str) -> None:
    """What is read by the stored plan of a dataset is the dataset, each row once, in order."""
    tables = [make_rows(0, 0)]
    with tempfile.TemporaryDirectory() as folder:
        for index, rows in enumerate([[], *groups]):
            path = Path(folder) / f"{index}.parquet"
            with pq.ParquetWriter(path, tables[0].schema, compression=compression) as writer:
                for count in rows:
                    tables.append(make_rows(sum(table.num_rows for table in tables), count))
                    writer.write_table(tables[-1], row_group_size=max(count, 1))
        inputs = read_inputs([folder])
        shards = decode_plan(encode_plan(cut_shards(inputs.files, shard_rows)))  # type: ignore[arg-type]
        read = [read_segment(segment) for shard in shards for segment in shard.segments]
        assert inputs.schema == tables[0].schema
        assert pa.concat_tables([tables[0], *read]).equals(pa.concat_tables(tables))


@settings(max_examples=40, deadline=None)
@given(shapes, st.just("auto") | st.integers(1, 700), st.sampled_from(["none", "zstd", "snappy"]))
def test_whatever_the_shape_of_the_dataset_its_plan_reads_it_back(
    groups: list[list[int]], shard_rows: object, compression: str
) -> None:
    check_shape(groups, shard_rows, compression)


def test_a_hundred_thousand_rows_read_back() -> None:
    check_shape([[100_000]], "auto", "zstd")
    check_shape([[1] * 300, [0, 20_000, 1], []], "auto", "none")


def test_a_stored_plan_follows_a_dataset_that_moved() -> None:
    here = [make_file("a", 3), make_file("b", 3)]
    there = [replace(file, path=f"/elsewhere/{file.name}") for file in here]
    moved = follow_inputs(cut_shards(here, 4), there)
    assert moved == cut_shards(there, 4)
    assert moved[0].segments[0].path == "/elsewhere/a"
