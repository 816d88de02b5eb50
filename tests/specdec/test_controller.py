"""The controller on a machine of arithmetic: its own clock, its own acceptance, no noise but what the test adds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from specbatch.specdec.controller import (
    AdaptivePolicy,
    FixedPolicy,
    Policy,
    RoundMeasure,
    StepTimes,
    Survival,
    make_policy,
)
from specbatch.specdec.rounds import is_plain_sample


@dataclass
class Machine:
    """Costs in seconds; acceptance is per position. ``knee`` is where scoring begins to cost by the position."""

    base: float = 0.020
    per_position: float = 0.0012
    knee: int = 4
    draft_step: float = 0.002
    acceptance: float = 0.7
    jitter: float = 0.05
    seed: int = 0
    seconds: float = 0.0
    tokens: int = 0
    chosen: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.seed)

    def run(self, policy: Policy, rounds: int, rows: int) -> Machine:
        for _ in range(rounds):
            # As in the engine: some rounds are plain whatever the policy wants, and it sees what they cost.
            k = 0 if is_plain_sample(len(self.chosen)) else policy.choose(rows)
            self.chosen.append(k)
            noise = 1 + self.jitter * abs(self._generator.normal())
            score = (self.base + self.per_position * max(rows * (k + 1) - self.knee, 0)) * noise
            is_accepted = self._generator.random((rows, k)) < self.acceptance
            matched_B = np.cumprod(is_accepted, axis=1, dtype=np.int64).sum(axis=1)
            measure = RoundMeasure(
                num_rows=rows,
                draft_length=k,
                propose_seconds=k * self.draft_step * noise,
                score_seconds=score,
                other_seconds=0.001,
                catch_up_seconds=0.0,
                proposed_B=np.full(rows, k),
                matched_B=matched_B,
            )
            policy.observe(measure)
            self.seconds += measure.seconds
            self.tokens += rows + int(matched_B.sum())
        return self

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def speed(policy: Policy, rounds: int, rows: int, **costs: float) -> float:
    return Machine(**costs).run(policy, rounds, rows).tokens_per_second  # type: ignore[arg-type]


COSTS = [
    {"acceptance": 0.9},
    {"acceptance": 0.7},
    {"acceptance": 0.4},
    {"acceptance": 0.05},
    {"acceptance": 0.7, "draft_step": 0.012},
    {"acceptance": 0.8, "per_position": 0.0002},
    {"acceptance": 0.8, "per_position": 0.006},
]


@pytest.mark.parametrize("rows", [1, 4, 16, 64])
@pytest.mark.parametrize("costs", COSTS)
def test_close_to_the_best_fixed_k_and_never_below_plain(costs: dict[str, float], rows: int) -> None:
    rounds = 600
    auto = speed(AdaptivePolicy(8), rounds, rows, **costs)
    fixed = [speed(FixedPolicy(k), rounds, rows, **costs) for k in range(9)]
    assert auto >= 0.97 * fixed[0]
    assert auto >= 0.93 * max(fixed)


def test_a_draft_that_does_not_pay_is_off_within_the_first_twentieth() -> None:
    machine = Machine(acceptance=0.05).run(AdaptivePolicy(8), 400, 16)
    assert sum(machine.chosen[:20]) <= 10
    assert sum(k > 0 for k in machine.chosen[20:]) <= 0.02 * 400


def test_k_follows_when_the_draft_changes_in_mid_job() -> None:
    """Cost and acceptance are swapped while the job runs; a table made at the start would stay where it was."""
    policy = AdaptivePolicy(8)
    good = Machine(acceptance=0.85).run(policy, 300, 4)
    bad = Machine(acceptance=0.1, draft_step=0.02).run(policy, 300, 4)
    again = Machine(acceptance=0.85).run(policy, 900, 4)
    assert np.median(good.chosen[100:]) >= 2
    assert np.median(bad.chosen[30:]) == 0
    assert np.median(again.chosen[450:]) >= 2, "the probes must find out that it pays again"
    assert bad.tokens_per_second >= 0.93 * Machine(acceptance=0.1).run(FixedPolicy(0), 300, 4).tokens_per_second


def test_fewer_rows_get_more_drafts() -> None:
    policy = AdaptivePolicy(8)
    costs = {"acceptance": 0.8, "per_position": 0.001, "base": 0.02, "knee": 8}
    many = Machine(**costs).run(policy, 200, 32)  # type: ignore[arg-type]
    few = Machine(**costs).run(policy, 200, 2)  # type: ignore[arg-type]
    assert np.median(few.chosen[100:]) > np.median(many.chosen[100:])


def test_a_hiccup_does_not_switch_speculation_off() -> None:
    policy = AdaptivePolicy(8)
    Machine(acceptance=0.85).run(policy, 200, 4)
    Machine(acceptance=0.85, base=2.0, draft_step=0.2).run(policy, 1, 4)
    after = Machine(acceptance=0.85).run(policy, 60, 4)
    assert np.median(after.chosen[20:]) >= 2


def test_step_times_between_and_beyond_what_was_seen() -> None:
    times = StepTimes()
    times.add(10, 1.0)
    assert times.at(99) == 1.0
    times.add(20, 2.0)
    assert times.at(15) == pytest.approx(1.5)
    assert times.at(30) == pytest.approx(3.0)
    assert times.at(1) == pytest.approx(0.2)
    times.add(40, 1.5)
    assert times.at(80) == pytest.approx(1.5), "time never falls with size beyond what was seen"
    times.doubt()
    times.add(40, 9.0)
    assert times.at(40) == 9.0
    times.add(40, 99.0)
    assert times.at(40) == 9.0, "a single outlier is a hiccup"
    times.add(40, 98.0)
    assert times.at(40) == 98.0, "a second one is a change"


def test_survival_is_conditional_and_fades() -> None:
    survival = Survival(3)
    proposed, matched = np.full(400, 3), np.array([0, 1, 2, 3] * 100)
    survival.add(proposed, matched)
    assert survival.conditional() == pytest.approx([0.75, 2 / 3, 0.5], abs=0.02)
    assert survival.tokens_per_row(0) == 1.0
    assert survival.tokens_per_row(3) == pytest.approx(1 + 0.75 + 0.5 + 0.25, abs=0.04)
    survival.add(proposed, np.zeros(400, dtype=np.int64))
    assert survival.conditional()[0] < 0.02, "what cannot be explained by the past is not averaged with it"


def test_settings_make_policies() -> None:
    assert make_policy("off").max_draft_length == 0
    assert not make_policy("off").wants_draft
    assert make_policy(3).choose(99) == 3
    assert isinstance(make_policy("auto"), AdaptivePolicy)
