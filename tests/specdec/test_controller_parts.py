"""The parts of the adaptive policy alone: step times, survivals, and the choice against a brute-force search."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from specbatch.specdec.policy.buckets import buckets_of
from specbatch.specdec.policy.choice import Candidates, Costs, tokens_and_seconds
from specbatch.specdec.policy.controller import RoundMeasure, RoundPlan, RoundView
from specbatch.specdec.policy.probe import Budget, Look
from specbatch.specdec.policy.step_times import StepTimes
from specbatch.specdec.policy.survival import ModelSurvival, SuffixSurvival, count_positions


def view(reached_BK: np.ndarray, accepted_BK: np.ndarray) -> RoundView:
    zero_B = np.zeros(len(reached_BK), dtype=np.int64)
    return RoundView(
        room_B=zero_B + 8,
        draft_room_B=zero_B + 8,
        lacking_B=zero_B + 1,
        reached_BK=reached_BK,
        accepted_BK=accepted_BK,
        match_B=zero_B,
        suffix_length_B=zero_B,
        num_waiting=0,
    )


def measure(draft_length_B: list[int], matched_B: list[int], *, match: int = 0, is_model: bool = True) -> RoundMeasure:
    length_B = np.array(draft_length_B)
    return RoundMeasure(
        num_scored=len(length_B) + int(length_B.sum()),
        num_draft_steps=int(length_B.max()) if is_model else 0,
        propose_seconds=0.001,
        score_seconds=0.02,
        other_seconds=0.001,
        catch_up_seconds=0.0,
        num_catch_up_tokens=0,
        draft_length_B=length_B,
        matched_B=np.array(matched_B),
        is_model_B=(length_B > 0) & is_model,
        match_B=np.full(len(length_B), match),
    )


# ---- step times ----


def test_times_are_learnt_through_noise_and_never_overshoot_between_sizes() -> None:
    generator = np.random.default_rng(0)
    times = StepTimes()
    assert not times.is_known
    for size in generator.integers(1, 129, 400):
        times.add(int(size), (0.02 + 0.0007 * size) * (1 + 0.1 * generator.normal()))
    assert times.is_known
    seconds = times.between(1, 128)
    np.testing.assert_allclose(seconds[3:], 0.02 + 0.0007 * np.arange(4, 129), rtol=0.08)
    between = times.between(64, 96)
    assert ((between >= between[[0, -1]].min()) & (between <= between[[0, -1]].max())).all()


def test_one_measurement_gives_the_level_and_a_guess_of_the_rest() -> None:
    times = StepTimes()
    times.add(8, 0.5)
    assert times.at(8) == pytest.approx(0.5, rel=0.01)
    assert times.at(0) == times.at(1) < times.at(8) < times.at(64) < 0.5 * 8
    assert times.at(40_000) > times.at(20_000) * 1.9


def test_measurements_outweigh_a_profile_but_keep_its_shape() -> None:
    times = StepTimes()
    for size in (1, 8, 64):
        times.add(size, 0.01 * size**0.5, relative_noise=0.05)
    times.doubt()
    for _ in range(30):
        times.add(8, 0.02 * 8**0.5)
    assert times.at(8) == pytest.approx(0.02 * 8**0.5, rel=0.05)
    assert times.at(64) / times.at(8) == pytest.approx(8**0.5, rel=0.15)


@pytest.mark.parametrize("factor", [20.0, 1 / 20])
def test_one_impossible_time_is_a_hiccup_and_two_are_a_change(factor: float) -> None:
    times = StepTimes()
    for _ in range(20):
        times.add(4, 0.02)
    times.add(4, 0.02 * factor)
    assert times.at(4) == pytest.approx(0.02)
    times.add(4, 0.02)
    times.add(4, 0.02 * factor)
    assert times.at(4) == pytest.approx(0.02), "the two are not in a row"
    times.add(4, 0.02 * factor)
    assert times.at(4) == pytest.approx(0.02 * factor, rel=0.1)


def test_doubt_is_least_where_it_was_measured() -> None:
    times = StepTimes()
    for _ in range(20):
        times.add(4, 0.02)
        times.add(16, 0.03)
    doubt = times.doubt_between(4, 64, reference=4)
    assert doubt[0] < 1e-6
    assert doubt[16 - 4] < 0.5 * doubt[64 - 4]


# ---- survivals ----


def test_positions_are_reached_one_after_the_other() -> None:
    reached_BK, accepted_BK = count_positions(np.array([3, 3, 3, 0]), np.array([0, 2, 3, 0]), 4)
    assert reached_BK.tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert accepted_BK.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_job_rates_are_conditional_on_the_position_before() -> None:
    survival = ModelSurvival(3)
    survival.add(measure([3] * 400, [0, 1, 2, 3] * 100))
    assert survival.job_rates() == pytest.approx([0.75, 2 / 3, 0.5], abs=0.02)


def test_rows_part_from_the_job_by_their_own_counts() -> None:
    survival = ModelSurvival(2)
    for _ in range(30):
        survival.add(measure([2] * 4, [2, 2, 0, 1]))
    reached_BK = np.array([[20, 18], [20, 3], [0, 0]])
    accepted_BK = np.array([[18, 16], [3, 1], [0, 0]])
    for _ in range(50):
        good, bad, new = survival.of_rows(view(reached_BK, accepted_BK))
    assert good[0] > 0.85
    assert bad[0] < 0.3
    assert new[0] == pytest.approx(survival.job_rates()[0], abs=0.01)
    assert (np.diff(survival.of_rows(view(reached_BK, accepted_BK)), axis=1) <= 0).all()


def test_alike_rows_are_taken_for_alike() -> None:
    generator = np.random.default_rng(1)
    survival = ModelSurvival(1)
    reached_BK, accepted_BK = np.zeros((16, 1), dtype=np.int64), np.zeros((16, 1), dtype=np.int64)
    for _ in range(200):
        survival.of_rows(view(reached_BK, accepted_BK))
        matched_B = (generator.random(16) < 0.6).astype(np.int64)
        survival.add(measure([1] * 16, matched_B.tolist()))
        if reached_BK[0, 0] == 25:
            reached_BK[:], accepted_BK[:] = 0, 0
        reached_BK += 1
        accepted_BK += matched_B[:, None]
    rates = survival.of_rows(view(reached_BK, accepted_BK))[:, 0]
    assert np.abs(rates - 0.6).max() < 0.1
    assert survival.spread < 0.15


def test_a_change_is_noticed_and_old_counts_of_rows_are_not_believed_any_more() -> None:
    survival = ModelSurvival(2)
    reached_BK, accepted_BK = np.full((8, 2), 40), np.full((8, 2), 38)
    for _ in range(45):
        survival.of_rows(view(reached_BK, accepted_BK))
        survival.add(measure([2] * 8, [2] * 8))
    assert survival.of_rows(view(reached_BK, accepted_BK))[:, 0].min() > 0.9
    for _ in range(3):
        survival.add(measure([2] * 8, [0] * 8))
        rates = survival.of_rows(view(reached_BK, accepted_BK))
    assert rates.max() < 0.2


def test_optimism_shrinks_with_what_is_known() -> None:
    survival = ModelSurvival(1)
    zero_BK = np.zeros((1, 1), dtype=np.int64)
    gaps = []
    for _ in range(2):
        survival.add(measure([1] * 10, [1, 0] * 5))
        mean = survival.of_rows(view(zero_BK, zero_BK))
        gaps.append(float((survival.optimistic(1.0) - mean)[0, 0]))
        for _ in range(20):
            survival.add(measure([1] * 10, [1, 0] * 5))
    assert gaps[0] > 2 * gaps[1] > 0


def test_matches_of_other_length_are_other_kinds() -> None:
    survival = SuffixSurvival(4)
    for _ in range(10):
        survival.add(measure([4] * 6, [4] * 6, match=20, is_model=False))
        survival.add(measure([4] * 6, [0] * 6, match=3, is_model=False))
        survival.add(measure([4] * 6, [0] * 6, match=20, is_model=True))
    long, short, none = survival.of_rows(np.array([30, 3, 0]))
    assert long.min() > 0.8
    assert short.max() < 0.05
    assert none.max() == 0
    assert survival.evidence(np.array([20, 9])).tolist() == pytest.approx([54, 0], abs=3)


# ---- the choice ----


def brute_force(model_BK: np.ndarray, suffix_BK: np.ndarray | None, costs: Costs) -> float:
    """Most tokens per second over all plans there are."""
    B, K = model_BK.shape
    options = [(length, is_model) for length in range(K + 1) for is_model in ([True, False] if length else [False])]
    best = 0.0
    for rows in itertools.product(options, repeat=B):
        plan = RoundPlan(np.array([length for length, _ in rows]), np.array([is_model for _, is_model in rows]))
        if suffix_BK is None and (plan.draft_length_B[~plan.is_model_B] > 0).any():
            continue
        tokens, seconds = tokens_and_seconds(plan, model_BK, suffix_BK, costs)
        best = max(best, tokens / seconds)
    return best


@pytest.mark.parametrize(
    ("has_suffix", "draft_row", "share"), [(False, 0.0, 1 - 1e-12), (False, 0.3, 0.98), (True, 0.3, 0.98)]
)
@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_the_best_there_is(seed: int, has_suffix: bool, draft_row: float, share: float) -> None:
    """Exact for one source whose steps cost the same for any rows; rows that cost, and sources, go by their price."""
    generator = np.random.default_rng(seed)
    B, K = 3, 3
    model_BK = np.cumprod(generator.uniform(0.2, 1.0, (B, K)), axis=1)
    suffix_BK = np.cumprod(generator.uniform(0.0, 1.0, (B, K)), axis=1) if has_suffix else None
    costs = Costs(
        score=20 + np.cumsum(generator.uniform(0, 4, B * K + 1)),
        draft_step=1 + generator.uniform(0, 2) + draft_row * np.arange(B + 1),
        catch_up_B=np.zeros(B),
    )
    candidates = Candidates(model_BK, suffix_BK, costs)
    choice = candidates.best()
    plan = candidates.plan(choice)
    tokens, seconds = tokens_and_seconds(plan, model_BK, suffix_BK, costs)
    best = brute_force(model_BK, suffix_BK, costs)
    assert tokens / seconds == pytest.approx(choice.tokens_per_second)
    assert tokens / seconds >= share * best
    assert candidates.evaluate(choice) == choice, "the cut stands for the same drafts"


@pytest.mark.parametrize("is_suffix", [True, False])
def test_rows_that_are_equally_likely_are_cut_where_a_bucket_ends(is_suffix: bool) -> None:
    """Twelve rows of 64 with the same match: 32 drafts fill a bucket that pays; three for each row begin the next."""
    same_BK = np.zeros((64, 8))
    same_BK[10:22] = 0.9 ** np.arange(1, 9)
    num_scored = buckets_of(np.arange(64, 64 * 9 + 1))
    costs = Costs(score=20.0 + num_scored, draft_step=np.zeros(65), catch_up_B=np.zeros(64))
    candidates = Candidates(*((None, same_BK) if is_suffix else (same_BK, None)), costs)
    choice = candidates.best()
    plan = candidates.plan(choice)
    tokens, seconds = tokens_and_seconds(plan, *((None, same_BK) if is_suffix else (same_BK, None)), costs)
    assert plan.draft_length_B.sum() == 32
    assert tokens / seconds == pytest.approx(choice.tokens_per_second)
    assert tokens / seconds > candidates.plain.tokens_per_second
    assert candidates.evaluate(choice) == choice


def test_plain_is_best_when_nothing_pays() -> None:
    costs = Costs(score=np.arange(2, 11, dtype=float), draft_step=np.ones(3), catch_up_B=np.zeros(2))
    candidates = Candidates(np.full((2, 4), 0.5), None, costs)
    assert candidates.best().is_plain
    assert not candidates.plan(candidates.best()).draft_length_B.any()
    nothing = Candidates(np.zeros((2, 4)), None, costs)
    assert nothing.best().is_plain
    assert not nothing.plan(nothing.best()).draft_length_B.any()


def test_a_row_that_is_dear_to_feed_is_left_out() -> None:
    costs = Costs(score=np.linspace(20, 22, 9), draft_step=np.ones(3), catch_up_B=np.array([0.0, 200.0]))
    candidates = Candidates(np.array([[0.9, 0.8, 0.7, 0.6], [0.95, 0.9, 0.85, 0.8]]), None, costs)
    plan = candidates.plan(candidates.best())
    assert plan.draft_length_B[0] > 0
    assert plan.draft_length_B[1] == 0


# ---- looks and budgets ----


def test_a_look_takes_the_rows_that_are_cheapest_to_feed() -> None:
    zero_BK = np.zeros((6, 2), dtype=np.int64)
    rows = replace(
        view(zero_BK, zero_BK),
        lacking_B=np.array([900, 5, 1, 800, 7, 2]),
        draft_room_B=np.array([8, 8, 0, 8, 8, 8]),
    )
    assert Look(expected_acceptance=0.1).drafts(rows).tolist() == [0, 1, 0, 0, 1, 1]
    assert Look(expected_acceptance=None).drafts(rows).tolist() == [0, 1, 0, 0, 1, 1], "900 are not worth it"


def test_a_look_ends_when_it_has_seen_enough() -> None:
    look = Look(expected_acceptance=0.05)
    assert not look.is_over
    look.count(3, 3)
    assert look.is_over
    assert look.is_contradiction
    expected = Look(expected_acceptance=0.6)
    expected.count(3, 3)
    assert not expected.is_contradiction
    vain = Look(expected_acceptance=0.05)
    vain.count(3, 0)
    vain.count(3, 0)
    assert vain.is_over
    assert not vain.is_contradiction


def test_a_budget_is_a_share_of_the_time() -> None:
    budget = Budget(0.01)
    assert not budget.allows(0.1)
    budget.earn(10.0)
    assert budget.allows(0.1)
    budget.lose(0.1)
    budget.lose(-5.0)
    assert not budget.allows(0.1)
