"""The forecast: rows through a batch in thought, lengths that were cut short, several workers, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_profiles import make_profile, make_step, make_trial

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.planning.scan_text import forecast_lines
from specbatch.jobs.profiles.forecast import batch_seconds, expected_lengths, forecast, lengths_error

SPEEDS = [(1, 10.0), (8, 80.0)]


@dataclass(frozen=True)
class Prompts:
    num_results: int = 800
    num_prompt_tokens: int = 0


@dataclass(frozen=True)
class Execution:
    device: str = "cpu"
    num_workers: int = 1
    batch_size: int | str = 8
    speculation: int | str = "auto"
    max_new_tokens: int = 128
    price_per_device_hour: float | None = None


def test_rows_of_one_length_take_their_tokens_at_the_speed_of_the_batch() -> None:
    # 8 rows at a time, 100 tokens each, 80 tokens per second together: 10 seconds a batch, 100 batches.
    assert batch_seconds([100], 800, 8, SPEEDS) == pytest.approx(1000.0)


def test_the_last_rows_are_slower_together() -> None:
    # One long row is left alone: 100 tokens beside seven others, then 900 alone at 10 tokens per second.
    assert batch_seconds([100] * 7 + [1000], 8, 8, SPEEDS) == pytest.approx(10.0 + 90.0)
    # A machine that is no slower for eight rows than for one does the same work in the same time.
    assert batch_seconds([100], 3, 8, SPEEDS) == pytest.approx(10.0)


def test_rows_beyond_the_simulated_ones_add_to_the_middle() -> None:
    few, many = (batch_seconds([50, 150], n, 8, SPEEDS) for n in (4096, 40_960))
    assert many == pytest.approx(few + (40_960 - 4096) * 100 / 80)


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 60), st.integers(1, 16))
def test_no_job_is_faster_than_its_tokens_allow(lengths: list[int], num_rows: int, batch_size: int) -> None:
    speeds = [(1, 10.0), (16, 100.0)]
    seconds = batch_seconds(lengths, num_rows, batch_size, speeds)
    assert seconds >= min(lengths) * num_rows / 100.0 * 0.999
    assert seconds <= max(lengths) * num_rows / 10.0 * 1.001
    assert batch_seconds(lengths, num_rows + 1, batch_size, speeds) >= 0


def test_no_rows_take_no_time() -> None:
    assert batch_seconds([10], 0, 8, SPEEDS) == 0.0


def test_lengths_that_ended_by_themselves_are_their_own_distribution() -> None:
    lengths = expected_lengths([(10, True), (20, True), (30, True), (40, True)], cap=100)
    assert sorted(set(lengths)) == [10, 20, 30, 40]
    assert sum(lengths) / len(lengths) == pytest.approx(25.0)


def test_a_completion_that_was_cut_shares_the_fate_of_the_longer_ones() -> None:
    # The one that was cut at 15 ends at 20, 30 or 40, each as likely.
    lengths = expected_lengths([(10, True), (15, False), (20, True), (30, True), (40, True)], cap=100)
    assert sum(lengths) / len(lengths) == pytest.approx(0.2 * 10 + 0.8 * 30, rel=0.01)


def test_what_nothing_is_known_of_goes_on_to_the_cap() -> None:
    assert set(expected_lengths([(64, False)] * 5, cap=128)) == {128}
    half = expected_lengths([(10, True), (64, False)], cap=128)
    assert sum(half) / len(half) == pytest.approx(69.0)


def test_a_smaller_cap_cuts_what_was_longer() -> None:
    assert set(expected_lengths([(64, False), (100, True)], cap=32)) == {32}
    assert set(expected_lengths([(10, True), (100, True)], cap=32)) == {10, 32}


@given(st.lists(st.tuples(st.integers(1, 200), st.booleans()), min_size=1, max_size=30), st.integers(1, 200))
def test_lengths_are_possible_lengths(seen: list[tuple[int, bool]], cap: int) -> None:
    lengths = expected_lengths(seen, cap)
    assert lengths == sorted(lengths)
    assert min(min(length for length, _ in seen), cap) <= lengths[0]
    assert lengths[-1] <= cap


def test_a_whole_forecast() -> None:
    profile = make_profile(
        steps=[make_step(1, 0, seconds=0.1), make_step(8, 0, seconds=0.1)],
        trial=make_trial(
            [(100, True)] * 50, load_seconds=3.0, prefill_seconds=2.0, num_prompt_tokens=1000, overhead=1.5
        ),
    )
    expected = forecast(profile, Prompts(num_prompt_tokens=50_000), Execution(price_per_device_hour=2.0))
    working = 1.5 * 1000.0 + 50_000 * 2.0 / 1000
    assert expected.wall_seconds == pytest.approx(working + 3.0 + 5.0)
    assert expected.tokens_per_second == pytest.approx(80_000 / working)
    assert expected.completion_tokens == 80_000
    assert expected.device_hours == pytest.approx(expected.wall_seconds / 3600)
    assert expected.cost == pytest.approx(2 * expected.device_hours)
    assert expected.low == pytest.approx(expected.wall_seconds / 1.1)
    assert expected.high == pytest.approx(expected.wall_seconds * 1.1)
    assert expected.document()["wall_seconds"] == pytest.approx(expected.wall_seconds, abs=1e-3)
    assert set(expected.document()) >= {"wall_seconds", "low", "high", "device_hours", "cost", "tokens_per_second"}


def test_each_gpu_costs_its_own_hours_and_no_price_no_cost() -> None:
    profile = make_profile(trial=make_trial(load_seconds=10.0))
    alone = forecast(profile, Prompts(), Execution(device="cuda"))
    four = forecast(profile, Prompts(), Execution(device="cuda", num_workers=4))
    assert four.wall_seconds == pytest.approx(5 + 10 + 250)
    assert four.device_hours == pytest.approx(4 * (10 + 250) / 3600)
    assert four.tokens_per_second == pytest.approx(4 * alone.tokens_per_second)
    assert four.cost is None


def test_what_was_cut_and_what_scatters_widens_the_interval() -> None:
    def width(trial_fields: dict[str, float], lengths: list[tuple[int, bool]]) -> float:
        found = forecast(make_profile(trial=make_trial(lengths, **trial_fields)), Prompts(), Execution())
        assert found.low < found.wall_seconds < found.high
        return found.high / found.low

    sure = width({}, [(100, True)] * 50)
    assert width({"speed_error": 0.1}, [(100, True)] * 50) > sure
    assert width({}, [(50, True), (150, True)]) > sure
    assert width({}, [(40, False)] * 25 + [(100, True)] * 25) > sure


def test_rows_that_were_cut_may_have_been_about_to_end() -> None:
    found = forecast(make_profile(trial=make_trial([(40, False)] * 8)), Prompts(8), Execution())
    working = found.wall_seconds - 5.0
    assert found.completion_tokens == 8 * 128
    assert found.low == pytest.approx((5.0 + working * 40 / 128) / 1.1)
    assert found.high == pytest.approx(found.wall_seconds * 1.1)


def test_the_batch_of_the_trial_stands_for_auto() -> None:
    profile = make_profile(steps=[make_step(1, 0, seconds=0.1), make_step(8, 0, seconds=0.1)])
    by_auto = forecast(profile, Prompts(), Execution(batch_size="auto"))
    assert by_auto == forecast(profile, Prompts(), Execution(batch_size=8))
    assert by_auto.wall_seconds < forecast(profile, Prompts(), Execution(batch_size=1)).wall_seconds / 4


def test_the_error_of_a_mean_falls_with_the_root_of_the_sample() -> None:
    assert lengths_error([50, 150], 100) == pytest.approx(0.05)
    assert lengths_error([100], 1) == 0.0


def test_what_the_interval_holds_is_said_with_it() -> None:
    expected = forecast(make_profile(), Prompts(), Execution())
    lines = forecast_lines(expected, ["another dataset"])
    assert lines[0].startswith(f"forecast     {fmt.clock(expected.wall_seconds)} ({fmt.clock(expected.low)} to ")
    assert lines[1].startswith("  interval   95 %: ")
    assert lines[1].endswith("no losses, no other load")
    assert lines[2] == "  note       another dataset"
