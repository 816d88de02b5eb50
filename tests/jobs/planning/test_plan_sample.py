"""The sample of rows: seeded, without repetition, across the dataset, and honest about what it does not know."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specbatch.jobs.planning.sample import choose_segments, interval
from specbatch.schemas.plan import InputFile, Segment


def make_files(*files: tuple[int, ...]) -> list[InputFile]:
    return [InputFile(f"f{i}", f"/data/f{i}", 1000, f"footer {i}", groups) for i, groups in enumerate(files)]


def row_ids(segments: tuple[Segment, ...]) -> list[int]:
    return [row for s in segments for row in range(s.first_row_id, s.first_row_id + s.num_rows)]


FILES = st.lists(st.lists(st.integers(0, 200), max_size=6).map(tuple), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(FILES, st.integers(1, 400), st.integers(0, 5), st.data())
def test_a_sample_has_the_rows_that_it_should(
    files: list[tuple[int, ...]], amount: int, seed: int, data: st.DataObject
) -> None:
    inputs = make_files(*files)
    all_rows = sum(map(sum, files))
    num_rows = data.draw(st.integers(0, all_rows))
    segments = choose_segments(inputs, num_rows, amount, seed)
    rows = row_ids(segments)
    assert len(set(rows)) == len(rows)
    assert rows == sorted(rows)
    assert all(0 <= row < num_rows for row in rows)
    if amount >= num_rows:
        assert rows == list(range(num_rows))
    else:
        assert 0.9 * amount - 1 <= len(rows) <= amount
    starts, at = {}, 0
    for file in inputs:
        starts[file.path] = at
        at += file.num_rows
    for segment in segments:
        assert segment.first_row_id == starts[segment.path] + segment.row_start
    assert choose_segments(inputs, num_rows, amount, seed) == segments


def test_all_rows_are_every_row() -> None:
    assert row_ids(choose_segments(make_files((3, 4), (5,)), 10, None, 0)) == list(range(10))


def test_another_seed_chooses_other_rows_and_they_lie_across_the_dataset() -> None:
    inputs = make_files(*[(1000,) * 10] * 10)
    first, second = (choose_segments(inputs, 100_000, 10_000, seed) for seed in (0, 1))
    assert first != second
    assert len(row_ids(first)) == 10_000
    assert len({segment.path for segment in first}) >= 5
    assert len({segment.first_row_id // 1000 for segment in first}) >= 16


def test_of_one_large_row_group_no_end_is_left_out() -> None:
    rows = row_ids(choose_segments(make_files((1_000_000,)), 1_000_000, 10_000, 0))
    assert len(rows) == 10_000
    assert len({row // 125_000 for row in rows}) == 8


def test_of_large_row_groups_few_are_read() -> None:
    def num_groups(size_bytes: int) -> int:
        files = [InputFile("f", "/data/f", size_bytes, "footer", (20_000,) * 40)]
        return len({s.row_start // 20_000 for s in choose_segments(files, 800_000, 10_000, 0)})

    assert num_groups(size_bytes=40 << 20) == 16
    assert num_groups(size_bytes=40 << 30) == 2


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(share: float) -> None:
    generator = random.Random(7)
    num_rows, held = 20_000, 0
    for _ in range(200):
        bad = set(generator.sample(range(num_rows), round(share * num_rows)))
        inputs = make_files(*[(500,) * 4] * 10)
        segments = choose_segments(inputs, num_rows, 1000, generator.randrange(1 << 30))
        counts = [(sum(r in bad for r in row_ids((s,))), s.num_rows) for s in segments]
        _, low, high = interval(counts, num_rows)
        held += low <= len(bad) <= high
    assert held >= 182  # 91 % of 200: three standard deviations below 95 %


def test_rows_that_are_alike_widen_the_interval() -> None:
    apart = [(1, 10)] * 20
    together = [(10, 10)] * 2 + [(0, 10)] * 18
    _, low, high = interval(apart, 100_000)
    _, wide_low, wide_high = interval(together, 100_000)
    assert wide_high - wide_low > 2 * (high - low)


def test_what_was_seen_whole_has_no_interval() -> None:
    assert interval([(3, 50), (0, 50)], 100) == (3, 3, 3)


def test_no_bad_row_in_a_sample_is_no_promise() -> None:
    estimate, low, high = interval([(0, 100)] * 100, 1_000_000)
    assert (estimate, low) == (0, 0)
    assert 300 < high < 500
