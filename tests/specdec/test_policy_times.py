"""What the policy is told about time where rounds of fixed shape, rounds with prompts and landed rounds alternate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulated_machine import Machine, score_seconds
from test_controller import NUM_SEEDS, auto, view_of
from test_controller_parts import measure
from tiny import engine

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.policy.controller import AdaptivePolicy, FixedPolicy, Policy, RoundMeasure
from specbatch.specdec.policy.surroundings import Surroundings


def measures_of(target: Any, draft: Any, params: list[SamplingParams], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a job of rows that come while others decode tells its policy: (prompts rode along, measure)."""
    policy = AdaptivePolicy(2, has_draft=True)
    seen: list[RoundMeasure] = []
    observe = policy.observe
    monkeypatch.setattr(policy, "observe", lambda measure: (seen.append(measure), observe(measure))[1])
    engine(target, draft, k=policy, batch=2, path="ahead").generate([[n, 7, n] for n in range(len(params))], params)
    return [(one.num_scored > one.num_rows + int(one.draft_length_B.sum()), one) for one in seen]


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_rounds_with_prompts_are_not_typical_where_the_others_have_fixed_shapes(
    target: Any, draft: Any, monkeypatch: pytest.MonkeyPatch, penalty: float
) -> None:
    """Rows with penalties have none: all their rounds go through the loop, and the policy must know what they cost."""
    params = [SamplingParams(max_new_tokens=10 + 3 * n, repetition_penalty=penalty, seed=n) for n in range(6)]
    seen = measures_of(target, draft, params, monkeypatch)
    mixed = {one.is_typical for has_prompts, one in seen if has_prompts}
    others = {one.is_typical for has_prompts, one in seen if not has_prompts}
    assert (mixed, others) == ({penalty > 1.0}, {True})


def test_seconds_of_rounds_that_are_not_typical_change_no_estimate_but_what_was_accepted_counts() -> None:
    """Draft steps launched kernel by kernel take some six times what they take as one piece."""
    policy = auto()
    usual = replace(measure([2] * 8, [2] * 8), score_seconds=0.03, propose_seconds=0.003)
    for _ in range(30):
        policy.observe(usual)
    step, score, other = (times.at(8) for times in (policy._draft_step, policy._score, policy._other))
    rate = policy._model.job_rates()[0]
    dear = replace(
        measure([2] * 8, [0] * 8), score_seconds=0.06, propose_seconds=0.018, other_seconds=0.02, is_typical=False
    )
    for _ in range(5):
        policy.observe(dear)
    assert (step, score, other) == tuple(times.at(8) for times in (policy._draft_step, policy._score, policy._other))
    assert policy._model.job_rates()[0] < 0.9 * rate


def test_a_policy_that_has_seen_only_rounds_with_prompts_still_plans_them() -> None:
    """As where the profile found no memory, and rows come without end."""
    policy = AdaptivePolicy(8, has_draft=True, has_suffix=True)
    view = replace(view_of(4), num_riding=200, suffix_length_B=np.full(4, 8), match_B=np.full(4, 20))
    for _ in range(30):
        plan = policy.plan(view)
        assert (plan.draft_length_B <= 8).all()
        none = measure(plan.draft_length_B.tolist(), [0] * 4)
        policy.observe(replace(none, is_model_B=plan.is_model_B, is_typical=False))


# ---- what it costs to land -----------------------------------------------------------------------------------------

RATES = {0: 0.0, 2: 0.02, 5: 0.3, 20: 0.92}


def landing_machine(num_rows: int, policy: Policy, shares: tuple[float, ...], acceptance: float, seed: int) -> Machine:
    """Rounds that fly, where the host would need a fifth of a round if they did not."""
    landing_ms = 200 * score_seconds(num_rows)
    return Machine(
        num_rows,
        row_acceptance=lambda row: acceptance,
        suffix_acceptance=RATES.__getitem__,
        match_shares=shares,
        landing_ms=landing_ms,
        in_buckets=True,
        seed=seed,
    ).run(policy, 600)


@pytest.mark.parametrize("acceptance", [None, 0.1, 0.7])
@pytest.mark.parametrize("num_rows", [4, 16, 64])
def test_a_row_with_a_match_does_not_ground_the_whole_batch(num_rows: int, acceptance: float | None) -> None:
    """Some row nearly always has one; its drafts are not worth that the host's part of every round is waited for."""
    few = (1 - 1.5 / num_rows, 0.0, 0.0, 1.5 / num_rows)
    has_draft = acceptance is not None
    policies = [FixedPolicy(0), auto(has_draft=has_draft, in_buckets=True)][: 1 + has_draft]
    rate = acceptance or 0.0
    best = max(landing_machine(num_rows, policy, few, rate, 0).tokens_per_second for policy in policies)
    for seed in range(NUM_SEEDS):
        policy = auto(has_draft=has_draft, has_suffix=True, in_buckets=True)
        assert landing_machine(num_rows, policy, few, rate, seed).tokens_per_second >= 0.97 * best


@pytest.mark.parametrize("num_rows", [1, 4])
def test_where_most_rows_repeat_what_is_known_they_land_for_it(num_rows: int) -> None:
    many = (0.1, 0.0, 0.0, 0.9)
    machine = landing_machine(num_rows, auto(has_draft=False, has_suffix=True, in_buckets=True), many, 0.0, 0)
    plain = landing_machine(num_rows, FixedPolicy(0), many, 0.0, 0)
    assert machine.tokens_per_second >= 1.5 * plain.tokens_per_second


@pytest.mark.parametrize("acceptance", [None, 0.1])
def test_matches_that_are_alike_are_worth_their_bucket_even_where_scoring_is_dear(acceptance: float | None) -> None:
    """Of 64 rows a fifth have the same good match: half of their drafts fill a bucket, all of them would cost more."""
    settings: dict[str, Any] = {"row_acceptance": lambda row: acceptance or 0.0, "in_buckets": True}
    plain = Machine(64, **settings).run(FixedPolicy(0), 200).tokens_per_second
    machine = Machine(64, suffix_acceptance=RATES.__getitem__, **settings)
    policy = auto(has_draft=acceptance is not None, has_suffix=True, in_buckets=True)
    machine.run(policy, 200).restart_clock()
    assert machine.run(policy, 200).tokens_per_second >= 1.03 * plain


def test_where_rounds_never_fly_landing_costs_nothing() -> None:
    policy = auto(has_draft=False, has_suffix=True)
    Machine(8, suffix_acceptance=RATES.__getitem__).run(policy, 200)
    assert policy._other.landing(8) == 0.0
    assert policy._other.at(8) == pytest.approx(0.001, rel=0.2)


def test_rounds_that_were_hidden_in_part_tell_neither_price() -> None:
    other = Surroundings()
    for hidden, seconds in (("part", 5.0), ("none", 0.03), ("part", 5.0), ("all", 0.01)):
        other.add(replace(measure([1] * 4, [0] * 4), hidden=hidden), seconds)  # type: ignore[arg-type]
    assert other.at(8) == pytest.approx(0.01, rel=0.05)
    assert other.landing(8) == pytest.approx(0.02, rel=0.05)
    assert Surroundings().at(8) == Surroundings().landing(8) == 0.0
