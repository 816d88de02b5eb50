"""The adaptive policy on a machine of arithmetic: fast everywhere, never flickering, able to change its mind.

Verdicts use the true costs and rates of what was chosen, so only the policy's own mistakes count, not its luck. All
seeds are fixed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulated_machine import Machine, score_seconds

from specbatch.schemas.errors import SpecbatchError
from specbatch.specdec.models.memory import AUTO_DRAFT_LENGTH
from specbatch.specdec.policy.controller import (
    AdaptivePolicy,
    FixedPolicy,
    Policy,
    RoundView,
    make_policy,
)
from specbatch.specdec.rounds.log import is_plain_sample

ROUNDS = 600
NUM_SEEDS = 1
"""Of the noise of the machine, in cases that many others are like."""
PROFILE_SIZES = (1, 4, 8, 16, 32, 64, 128)


def auto(
    *, is_profiled: bool = True, has_draft: bool = True, has_suffix: bool = False, in_buckets: bool = False
) -> AdaptivePolicy:
    """A fresh policy; the profile at start is 10 % off in level, since the job's contexts are longer."""
    policy = AdaptivePolicy(AUTO_DRAFT_LENGTH, has_draft=has_draft, has_suffix=has_suffix)
    if is_profiled:
        policy.learn_times(
            {m: 0.9 * score_seconds(m) for m in PROFILE_SIZES},
            {r: (1.2 + 0.05 * r) / 1000 for r in (1, 8, 64)},
            in_buckets=in_buckets,
        )
    return policy


def speed(policy: Policy, num_rows: int, acceptance: float, rounds: int = ROUNDS, **settings: float) -> float:
    machine = Machine(num_rows, row_acceptance=lambda row: acceptance, **settings)  # type: ignore[arg-type]
    return machine.run(policy, rounds).tokens_per_second


def best_fixed(num_rows: int, acceptance: float) -> float:
    return max(speed(FixedPolicy(k), num_rows, acceptance, rounds=300, noise=0.0) for k in range(9))


@pytest.mark.parametrize("acceptance", [0.9, 0.7, 0.4])
@pytest.mark.parametrize("num_rows", [1, 2, 4, 8, 16, 32, 64])
def test_close_to_the_best_fixed_k_at_every_cap(num_rows: int, acceptance: float) -> None:
    best = best_fixed(num_rows, acceptance)
    for seed in range(NUM_SEEDS):
        assert speed(auto(), num_rows, acceptance, seed=seed) >= 0.97 * best


@pytest.mark.parametrize("acceptance", [0.7, 0.3, 0.05])
@pytest.mark.parametrize("num_rows", [20, 33, 64])
def test_close_to_the_best_fixed_k_where_rounds_are_padded_to_buckets(num_rows: int, acceptance: float) -> None:
    best = max(speed(FixedPolicy(k), num_rows, acceptance, rounds=300, noise=0.0, in_buckets=True) for k in range(9))
    for seed in range(NUM_SEEDS):
        assert speed(auto(in_buckets=True), num_rows, acceptance, seed=seed, in_buckets=True) >= 0.97 * best


@pytest.mark.parametrize("acceptance", [0.7, 0.3])
def test_where_plain_rounds_are_mostly_padding_it_fills_their_bucket_with_drafts(acceptance: float) -> None:
    """33 rows are padded to 48: the first 15 drafts cost nothing to score, which a smooth curve does not know."""
    for seed in range(NUM_SEEDS):
        by_size, by_bucket = (
            speed(auto(in_buckets=knows), 33, acceptance, seed=seed, in_buckets=True) for knows in (False, True)
        )
        assert by_bucket >= 1.01 * by_size


@pytest.mark.parametrize(("num_rows", "acceptance"), [(1, 0.7), (8, 0.7), (64, 0.7), (16, 0.9)])
def test_without_a_profile_it_learns_on_the_job(num_rows: int, acceptance: float) -> None:
    best = best_fixed(num_rows, acceptance)
    assert speed(auto(is_profiled=False), num_rows, acceptance) >= 0.96 * best


@pytest.mark.parametrize("seed", range(3))
def test_sizes_that_once_seemed_slow_are_tried_again(seed: int) -> None:
    """What seems too slow is never reached by the best choice; only trials show that it is not."""
    policy = auto()
    machine = Machine(4, row_acceptance=lambda row: 0.7, seed=seed).run(policy, 100)
    for _ in range(5):
        for size in range(12, 40, 4):
            policy._score.add(size, 1.3 * score_seconds(size))
        for size in (4, 8):
            policy._score.add(size, score_seconds(size))
    machine.run(policy, 400)
    machine.restart_clock()
    assert machine.run(policy, 300).tokens_per_second >= 0.98 * best_fixed(4, 0.7)


@pytest.mark.parametrize("is_profiled", [True, False])
@pytest.mark.parametrize("num_rows", [1, 2, 4, 8, 16, 32, 64])
def test_a_useless_draft_costs_less_than_a_hundredth(num_rows: int, is_profiled: bool) -> None:
    plain = speed(FixedPolicy(0), num_rows, 0.02, noise=0.0)
    for seed in range(2):
        assert speed(auto(is_profiled=is_profiled), num_rows, 0.02, seed=seed) >= 0.99 * plain


@pytest.mark.parametrize("num_rows", [1, 4, 16, 64])
def test_a_draft_that_does_not_pay_is_off_within_the_first_twentieth(num_rows: int) -> None:
    machine = Machine(num_rows, row_acceptance=lambda row: 0.05)
    machine.run(auto(), 400)
    drafted = np.array([length_B.sum() for length_B in machine.drafts])
    assert (drafted[20:] > 0).mean() <= 0.06, "only looks are left"
    assert drafted[20:].sum() <= 0.01 * 400 * num_rows + 20


@pytest.mark.parametrize(("num_rows", "gain"), [(4, 1.1), (8, 1.1), (16, 1.1), (32, 1.05)])
def test_k_per_row_beats_every_uniform_k_where_rows_differ(num_rows: int, gain: float) -> None:
    def acceptance(row: int) -> float:
        return 0.9 if row % 2 == 0 else 0.2

    uniform = max(
        Machine(num_rows, row_acceptance=acceptance, noise=0.0).run(FixedPolicy(k), 300).tokens_per_second
        for k in range(9)
    )
    machine = Machine(num_rows, row_acceptance=acceptance)
    assert machine.run(auto(), ROUNDS).tokens_per_second >= gain * uniform
    lengths, rows = np.concatenate(machine.drafts[200:]), np.concatenate(machine.rows_of_round[200:])
    assert lengths[rows % 2 == 0].mean() > 4 * lengths[rows % 2 == 1].mean()


@pytest.mark.parametrize("num_rows", [1, 4, 16])
def test_k_follows_when_cost_and_acceptance_change_in_mid_job(num_rows: int) -> None:
    """Good, bad, good: what was learnt first, or a table by batch size, would be wrong in one half or the other."""
    policy = auto()
    machine = Machine(num_rows, row_acceptance=lambda row: 0.85).run(policy, 300)
    good = np.array([length_B.max() for length_B in machine.drafts])
    assert np.median(good[100:]) >= 2
    machine.row_acceptance, machine.draft_ms = (lambda row: 0.05), 4.0
    machine.restart_clock()
    machine.run(policy, 400)
    bad = np.array([length_B.max() for length_B in machine.drafts[300:]])
    assert np.median(bad[60:120]) == 0
    assert (bad[60:] > 0).mean() < 0.1
    plain = speed(FixedPolicy(0), num_rows, 0.0, noise=0.0)
    assert machine.tokens_per_second >= 0.93 * plain
    machine.row_acceptance, machine.draft_ms = (lambda row: 0.85), 1.2
    machine.run(policy, 900)
    again = np.array([length_B.max() for length_B in machine.drafts[700:]])
    assert np.median(again[600:]) >= 2, "looks must find out that it pays again"


def test_k_follows_from_bad_to_good() -> None:
    policy = auto()
    machine = Machine(8, row_acceptance=lambda row: 0.03, draft_ms=4.0).run(policy, 200)
    assert np.median([length_B.max() for length_B in machine.drafts[50:]]) == 0
    machine.row_acceptance, machine.draft_ms = (lambda row: 0.9), 1.0
    machine.run(policy, 900)
    assert np.median([length_B.max() for length_B in machine.drafts[800:]]) >= 3


def test_a_change_of_cost_alone_is_followed() -> None:
    policy = auto()
    machine = Machine(4, row_acceptance=lambda row: 0.8).run(policy, 200)
    machine.draft_ms = 25.0
    machine.run(policy, 100)
    assert np.median([length_B.max() for length_B in machine.drafts[210:]]) == 0


@pytest.mark.parametrize(("num_rows", "acceptance"), [(1, 0.9), (4, 0.7), (16, 0.7), (16, 0.02), (64, 0.9)])
def test_k_does_not_flicker_on_a_noisy_machine(num_rows: int, acceptance: float) -> None:
    """Trials of other lengths included: they come a few rounds on end, out of forty."""
    machine = Machine(num_rows, row_acceptance=lambda row: acceptance, noise=0.1, row_tokens=10**6)
    largest = machine.run(auto(), ROUNDS).largest()[100:]
    assert (np.diff(largest) != 0).mean() <= 0.10


def test_a_hiccup_of_the_machine_changes_nothing() -> None:
    calm = Machine(4, row_acceptance=lambda row: 0.85, row_tokens=10**6).run(auto(), 300)
    upset = Machine(4, row_acceptance=lambda row: 0.85, row_tokens=10**6, hiccup_rounds=(251,)).run(auto(), 300)
    assert not is_plain_sample(251)
    for before, after in zip(calm.drafts[245:260], upset.drafts[245:260], strict=True):
        np.testing.assert_array_equal(before, after)


def test_few_rows_at_the_tail_get_more_drafts() -> None:
    """The batch shrinks from 32 rows to 2 and then to 1: nothing tells the policy but the numbers."""
    policy = auto()
    medians = []
    for num_rows in (32, 2, 1):
        machine = Machine(num_rows, row_acceptance=lambda row: 0.8, num_waiting=0).run(policy, 100)
        medians.append(np.median([length_B.max() for length_B in machine.drafts[20:]]))
    assert medians[0] <= 2
    assert medians[1] >= medians[0] + 2


@pytest.mark.parametrize("has_draft", [True, False])
@pytest.mark.parametrize("num_rows", [1, 8, 32])
def test_suffix_proposals_are_used_where_their_kind_of_match_pays(num_rows: int, has_draft: bool) -> None:
    rates = {0: 0.0, 2: 0.02, 5: 0.3, 20: 0.92}
    machine = Machine(num_rows, row_acceptance=lambda row: 0.4, suffix_acceptance=rates.__getitem__)
    used: dict[int, list[int]] = {match: [] for match in rates}
    policy = auto(has_draft=has_draft, has_suffix=True)
    observe = policy.observe

    def spy(measure) -> None:  # type: ignore[no-untyped-def]
        for match in rates:
            used[match].extend((measure.draft_length_B * ~measure.is_model_B)[measure.match_B == match])
        observe(measure)

    policy.observe = spy  # type: ignore[method-assign]
    machine.run(policy, 400)
    assert np.mean(used[20]) > 3
    assert np.mean(used[2]) < 0.25
    assert sum(used[0]) == 0
    if num_rows == 32:
        assert np.mean(used[5]) < 0.25, "where every scored token costs, 30 % is not enough"
    without = Machine(num_rows, row_acceptance=lambda row: 0.4).run(auto(), 400)
    assert machine.tokens_per_second > 1.05 * without.tokens_per_second


@pytest.mark.parametrize("num_rows", [2, 16])
def test_useless_suffix_proposals_cost_next_to_nothing_and_are_seldom_asked_for(num_rows: int) -> None:
    machine = Machine(num_rows, suffix_acceptance=lambda match: 0.01)
    machine.run(auto(has_draft=False, has_suffix=True), ROUNDS)
    assert machine.tokens_per_second >= 0.99 * speed(FixedPolicy(0), num_rows, 0.0, noise=0.0)
    if num_rows == 16:
        assert machine.lookups < 0.6 * ROUNDS


def test_the_suffix_index_is_tried_only_for_time_that_was_earned() -> None:
    """At 64 rows a scored token is dear, and a short match promises little."""
    policy = auto(has_draft=False, has_suffix=True)
    view = view_of(64)
    view.match_B[:], view.suffix_length_B[:] = 2, 8
    assert not policy.plan(view).draft_length_B.any()
    policy._suffix_budget.earn(100.0)
    plan = policy.plan(view)
    assert (plan.draft_length_B > 0).sum() == 1
    assert not plan.is_model_B.any()


def test_the_draft_is_given_up_only_after_long_loss_with_rows_waiting() -> None:
    policy = auto()
    machine = Machine(8, row_acceptance=lambda row: 0.02).run(policy, 900)
    assert not policy.is_draft_given_up
    machine.run(policy, 900)
    assert policy.is_draft_given_up
    assert not policy.wants_draft
    at_the_tail = auto()
    Machine(8, row_acceptance=lambda row: 0.02, num_waiting=0).run(at_the_tail, 1800)
    assert not at_the_tail.is_draft_given_up, "nobody waits for the memory"
    winning = auto()
    Machine(4, row_acceptance=lambda row: 0.8).run(winning, 1500)
    assert not winning.is_draft_given_up
    assert winning.wants_draft


def view_of(num_rows: int, *, room: int = 8, draft_room: int = 8, max_draft_length: int = 8) -> RoundView:
    zero_B = np.zeros(num_rows, dtype=np.int64)
    zero_BK = np.zeros((num_rows, max_draft_length), dtype=np.int64)
    return RoundView(
        room_B=zero_B + room,
        draft_room_B=zero_B + draft_room,
        lacking_B=zero_B + 1,
        reached_BK=zero_BK,
        accepted_BK=zero_BK,
        match_B=zero_B,
        suffix_length_B=zero_B,
        num_waiting=0,
    )


def test_room_is_respected() -> None:
    policy = auto()
    Machine(4, row_acceptance=lambda row: 0.9).run(policy, 100)
    plan = policy.plan(view_of(4, room=3))
    assert plan.draft_length_B.max() == 3
    assert not policy.plan(view_of(4, draft_room=0)).draft_length_B.any()
    assert not policy.plan(view_of(4, room=0)).draft_length_B.any()
    assert len(policy.plan(view_of(0)).draft_length_B) == 0


def test_rows_that_the_draft_model_has_not_followed_must_be_worth_feeding() -> None:
    policy = auto()
    Machine(4, row_acceptance=lambda row: 0.8, catch_up_ms=0.5).run(policy, 100)
    policy._catch_up.add(1000, 0.5)
    view = view_of(4)
    view.lacking_B[2] = 100_000
    plan = policy.plan(view)
    assert plan.draft_length_B[2] == 0
    assert (plan.draft_length_B[[0, 1, 3]] > 0).all()


def test_nothing_to_draft_with_in_the_first_rounds() -> None:
    policy = auto(is_profiled=False)
    for _ in range(3):
        assert not policy.plan(view_of(2, draft_room=0)).draft_length_B.any()


@pytest.mark.parametrize("speculation", [-1, 17, 64, "on"])
def test_a_number_that_is_no_k_is_refused(speculation: Any) -> None:
    """Slots have room for drafts of 16 tokens; a longer one would be written beyond them."""
    for has_draft in (True, False):
        with pytest.raises(SpecbatchError, match=r"JOB_CONFIG: speculation is .* from 0 to 16"):
            make_policy(speculation, has_draft=has_draft, has_suffix=False)
    assert make_policy(16, has_draft=True, has_suffix=False).max_draft_length == 16
    assert make_policy(0, has_draft=True, has_suffix=False).max_draft_length == 0


def test_settings_make_policies() -> None:
    off = make_policy("off", has_draft=True, has_suffix=True)
    assert (off.max_draft_length, off.wants_draft, off.uses_model, off.uses_suffix) == (0, False, False, False)
    fixed = make_policy(3, has_draft=True, has_suffix=True)
    plan = fixed.plan(view_of(2, room=9))
    assert plan.draft_length_B.tolist() == [3, 3]
    assert plan.is_model_B.all()
    assert not fixed.uses_suffix
    assert fixed.plan(view_of(2, room=2)).draft_length_B.tolist() == [2, 2]
    index_only = make_policy(3, has_draft=False, has_suffix=True)
    view = view_of(2)
    view.suffix_length_B[1] = 8
    plan = index_only.plan(view)
    assert plan.draft_length_B.tolist() == [0, 3]
    assert not plan.is_model_B.any()
    assert index_only.uses_suffix
    assert not index_only.wants_draft
    assert make_policy(4, has_draft=False, has_suffix=False).max_draft_length == 0
    assert make_policy("auto", has_draft=False, has_suffix=False).max_draft_length == 0
    assert isinstance(make_policy("auto", has_draft=False, has_suffix=True), AdaptivePolicy)
    assert make_policy("auto", has_draft=True, has_suffix=False).uses_model
