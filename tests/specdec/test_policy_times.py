"""What the policy is told about time where rounds of fixed shape, rounds with prompts and landed rounds alternate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_controller import auto, view_of
from test_controller_parts import measure
from tiny import engine

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.policy.controller import AdaptivePolicy, RoundMeasure


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
