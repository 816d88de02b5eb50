"""Planning: whatever the row groups, shards partition the rows in order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specbatch.jobs.planning import choose_shard_rows, cut_shards
from specbatch.jobs.prepare import follow_inputs
from specbatch.schemas.plan import InputFile, Segment


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


row_groups = st.lists(st.integers(0, 60), max_size=6)


@given(
    st.lists(row_groups, max_size=4),
    st.one_of(st.just("auto"), st.integers(1, 40)),
    st.one_of(st.none(), st.integers(1, 150)),
)
def test_shards_partition_the_rows_in_order(groups: list[list[int]], shard_rows: object, limit: int | None) -> None:
    files = [make_file(str(index), *rows) for index, rows in enumerate(groups)]
    shards = cut_shards(files, shard_rows, limit)  # type: ignore[arg-type]
    num_rows = min(sum(file.num_rows for file in files), limit if limit is not None else 1 << 60)
    most = choose_shard_rows(num_rows, shard_rows)  # type: ignore[arg-type]
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
    assert len(shards) <= 2 * -(-num_rows // most)


def test_a_stored_plan_follows_a_dataset_that_moved() -> None:
    here = [make_file("a", 3), make_file("b", 3)]
    there = [replace(file, path=f"/elsewhere/{file.name}") for file in here]
    moved = follow_inputs(cut_shards(here, 4), there)
    assert moved == cut_shards(there, 4)
    assert moved[0].segments[0].path == "/elsewhere/a"
