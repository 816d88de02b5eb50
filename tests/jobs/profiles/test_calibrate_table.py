"""The table of a profile: what its cells promise, which of them is taken, and what it says of the draft."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_profiles import make_profile, make_step, make_trial

from specbatch.jobs.calibration.text import verdict_lines
from specbatch.jobs.profiles.store import PositionRecord
from specbatch.jobs.profiles.table import (
    best_batch,
    best_by_batch,
    cells,
    judge,
    scatter,
    speed_at,
    speeds_of,
    summarise_rounds,
    survival,
    tokens_per_row,
)

HALVES = (PositionRecord(reached=100, accepted=50), PositionRecord(reached=50, accepted=25))


def test_survival_is_the_product_of_the_rates() -> None:
    assert survival(HALVES) == (0.5, 0.25)
    assert tokens_per_row(0, HALVES) == 1.0
    assert tokens_per_row(1, HALVES) == 1.5
    assert tokens_per_row(8, HALVES) == 1.75


def test_positions_that_were_never_judged_promise_nothing() -> None:
    assert survival((PositionRecord(reached=10, accepted=0), PositionRecord(reached=0, accepted=0))) == (0.0,)


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 1)), min_size=1, max_size=8), st.integers(0, 8))
def test_more_drafts_never_promise_fewer_tokens(given: list[tuple[int, float]], draft_length: int) -> None:
    positions = tuple(PositionRecord(reached=n, accepted=int(share * n)) for n, share in given)
    assert 1 <= tokens_per_row(draft_length, positions) <= tokens_per_row(draft_length + 1, positions) <= 9


def test_the_speed_of_a_cell_is_tokens_by_seconds() -> None:
    (cell,) = cells((make_step(8, 2, seconds=0.1),), HALVES)
    assert cell.tokens_per_second == pytest.approx(8 * 1.75 / 0.1)
    assert 0 < cell.error < 0.2


def test_a_median_is_not_moved_by_a_hiccup() -> None:
    step = summarise_rounds(4, 1, [(4, 0.01)] * 9 + [(3, 5.0)])
    assert step.seconds == 0.01
    assert step.rows == 3.9
    assert step.num_rounds == 10


STEPS = (
    make_step(1, 0, seconds=0.010),
    make_step(1, 2, seconds=0.012),
    make_step(8, 0, seconds=0.040),
    make_step(8, 2, seconds=0.050),
    make_step(32, 0, seconds=0.080),
    make_step(32, 2, seconds=0.400),
)
TABLE = cells(STEPS, HALVES)


def test_each_setting_takes_its_own_cells() -> None:
    assert {size: cell.draft_length for size, cell in best_by_batch(TABLE, "auto").items()} == {1: 2, 8: 2, 32: 0}
    assert {size: cell.draft_length for size, cell in best_by_batch(TABLE, "off").items()} == {1: 0, 8: 0, 32: 0}
    assert {size: cell.draft_length for size, cell in best_by_batch(TABLE, 2).items()} == {1: 2, 8: 2, 32: 2}
    assert {size: cell.draft_length for size, cell in best_by_batch(TABLE, 1).items()} == {1: 0, 8: 0, 32: 0}


def test_the_usual_batch_stays_unless_another_is_clearly_faster() -> None:
    assert best_batch(TABLE, "auto", usual=8, most=32) == 32  # 400 against 280
    assert best_batch(TABLE, "auto", usual=8, most=16) == 8
    assert best_batch(TABLE, 2, usual=32, most=32) == 8
    assert best_batch(TABLE, "auto", usual=32, most=32) == 32
    scattered = cells([step.model_copy(update={"spread": 0.5, "num_rounds": 4}) for step in STEPS], HALVES)
    assert best_batch(scattered, 2, usual=32, most=32) == 32
    calm, wild = (STEPS[2], STEPS[4].model_copy(update={"spread": 0.5, "num_rounds": 4}))
    assert best_batch(cells((calm, wild), ()), "off", usual=8, most=32) == 8  # twice as fast, by chance perhaps
    nearly = cells((make_step(8, 0, seconds=0.1), make_step(32, 0, seconds=0.4 / 1.04)), ())
    assert best_batch(nearly, "auto", usual=8, most=32) == 8
    assert best_batch(nearly, "auto", usual=8, most=4) == 8


def test_a_batch_between_two_measured_ones_has_a_speed_between_theirs() -> None:
    assert best_batch(TABLE, "off", usual=31, most=32) == 31
    assert speed_at([(4, 40.0), (8, 60.0)], 6) == 50.0
    assert speed_at([(4, 40.0), (8, 60.0)], 2) == 20.0
    assert speed_at([(4, 40.0), (8, 60.0)], 100) == 60.0


def test_a_setting_that_was_not_measured_is_taken_as_plain() -> None:
    drafted = cells((make_step(4, 0, seconds=0.1), make_step(4, 2, seconds=0.1)), HALVES)
    assert speeds_of(drafted, 1) == [(4, pytest.approx(40.0))]


@dataclass(frozen=True)
class Case:
    seconds: float
    is_worth: bool
    says: str


@pytest.mark.parametrize(
    "case",
    [
        Case(0.050, True, "with it 1.4 times faster than without at batch 8"),
        Case(0.069, False, "with it 1.0 times faster than without at batch 8"),
        Case(0.140, False, "it gives 0.50 of the speed without it"),
    ],
    ids=["pays", "as fast", "slower"],
)
def test_a_draft_gets_a_plain_answer_with_numbers(case: Case) -> None:
    steps = (make_step(8, 0, seconds=0.040), make_step(8, 2, seconds=case.seconds))
    profile = make_profile(steps=steps, acceptance=HALVES, draft_bytes=22_000_000)
    assert judge(profile).is_worth is case.is_worth
    text = "\n".join(verdict_lines(profile))
    assert "the draft agrees on 50 % of first tokens" in text
    assert case.says in text
    assert ("not worth its 22.0 MB: use --draft none" in text) is not case.is_worth


def test_a_table_that_the_trial_contradicts_is_in_doubt() -> None:
    steps = (make_step(8, 0, seconds=0.040), make_step(8, 2, seconds=0.050))
    for overhead, words in ((0.18, "5.6 times as fast as"), (3.0, "3.0 times as slow as"), (1.9, ""), (0.6, "")):
        profile = make_profile(steps=steps, acceptance=HALVES, trial=make_trial(overhead=overhead))
        first = verdict_lines(profile)[0]
        assert first.startswith("in doubt: real rows went ") is bool(words)
        assert words in first


def test_a_draft_that_pays_only_where_nobody_would_work_is_not_worth_it() -> None:
    steps = (
        make_step(1, 0, seconds=0.010),
        make_step(1, 2, seconds=0.010),
        make_step(32, 0, seconds=0.040),
        make_step(32, 2, seconds=0.100),
    )
    verdict = judge(make_profile(steps=steps, acceptance=HALVES))
    assert verdict.widest is not None
    assert (verdict.widest[0].batch_size, verdict.widest[1]) == (1, pytest.approx(1.75))
    assert not verdict.is_worth


def test_scatter_is_that_of_most_cells() -> None:
    assert scatter(STEPS) == pytest.approx(0.02)
    assert scatter([step.model_copy(update={"spread": 0.4}) for step in STEPS]) == pytest.approx(0.4)


def test_without_a_draft_there_is_nothing_to_judge() -> None:
    profile = make_profile(steps=(make_step(8, 0, seconds=0.04),), acceptance=(), draft_bytes=0)
    assert not judge(profile).is_worth
    assert verdict_lines(profile) == ["no draft was measured; the fastest is batch 8: 200 tokens/s"]
