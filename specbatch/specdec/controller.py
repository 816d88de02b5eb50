"""Chooses K for every round from what was measured: pure, and unable to change the text.

The yield of a round over B rows with K drafts is B * (1 + S_1 + ... + S_K) tokens, S_j being the share of rows whose
first j drafts are accepted. Its cost is the time of scoring B * (K + 1) positions, of K draft steps, and of what
surrounds them. Both are estimated from the job's own rounds, K = 0 among them, and the K with the most tokens per
second is taken (the objective of Liu et al., "Optimizing speculative decoding for serving large language models using
goodput", arXiv 2406.14066). In doubt it is 0.

While K = 0 is best nothing is learnt about the draft, so it is tried again now and then, as often as a budget of lost
time allows.

Shape letters: K drafts, j position of a draft.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from specbatch.specdec.accept import IntArray

MAX_AUTO_DRAFT_LENGTH = 8
_EMA_WEIGHT = 0.25
_OUTLIER = 3.0
_WINDOW_ROWS = 300.0
_STALE_ROWS = 8.0
_PRIOR_ACCEPTANCE = 0.6
_PRIOR_ROWS = 1.0
_LIKE_THE_ONE_BEFORE_ROWS = 4.0
_SURPRISE = 4.0
_HYSTERESIS = 1.03
_PLAIN_ADVANTAGE = 1.02
_FIRST_DRAFT_LENGTH = 2
_PROBE_DRAFT_LENGTH = 1
_BURST_ROUNDS = 3
_PROBE_BUDGET = 0.01


@dataclass(frozen=True, slots=True)
class RoundMeasure:
    """What one round cost and gave.

    Attributes:
        num_rows: rows in flight. draft_length: largest K of any row in the round.
        propose_seconds, score_seconds: the two models. other_seconds: what surrounds them.
        catch_up_seconds: feeding the draft what it had missed; a price of coming back to it, not of a round.
        proposed_B, matched_B: drafts of each row and how many of them led the target's draws.
    """

    num_rows: int
    draft_length: int
    propose_seconds: float
    score_seconds: float
    other_seconds: float
    catch_up_seconds: float
    proposed_B: IntArray
    matched_B: IntArray

    @property
    def seconds(self) -> float:
        return self.propose_seconds + self.score_seconds + self.other_seconds + self.catch_up_seconds


class Policy(Protocol):
    """Decides how many drafts the rows of the next round may have."""

    max_draft_length: int

    @property
    def wants_draft(self) -> bool:
        """False while the draft is not used: prompts need not run through it then."""

    def choose(self, num_rows: int) -> int:
        """K of the next round."""

    def observe(self, measure: RoundMeasure) -> None:
        """Learn from the round."""


class FixedPolicy:
    """The same K in every round."""

    def __init__(self, draft_length: int) -> None:
        self.max_draft_length = draft_length

    @property
    def wants_draft(self) -> bool:
        return self.max_draft_length > 0

    def choose(self, num_rows: int) -> int:
        return self.max_draft_length

    def observe(self, measure: RoundMeasure) -> None:
        """Nothing to learn."""


def make_policy(speculation: int | Literal["auto", "off"]) -> Policy:
    """The policy that a setting asks for."""
    if speculation == "auto":
        return AdaptivePolicy(MAX_AUTO_DRAFT_LENGTH)
    return FixedPolicy(0 if speculation == "off" else speculation)


class StepTimes:
    """Seconds as a function of a size: moving averages at the sizes seen, straight lines between them."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._replaceable: set[int] = set()

    def doubt(self) -> None:
        """What is known is old: the next measurement of a size replaces it."""
        self._replaceable = set(self._seconds)

    def add(self, size: int, seconds: float) -> None:
        """One measurement. A single one far above the average is a hiccup of the machine; two in a row are a change."""
        known = self._seconds.get(size)
        if known is None or size in self._replaceable:
            self._seconds[size] = seconds
            self._replaceable.discard(size)
        elif seconds > _OUTLIER * known:
            self._replaceable.add(size)
        else:
            self._seconds[size] = known + _EMA_WEIGHT * (seconds - known)

    def at(self, size: int) -> float:
        """Estimate; beyond the sizes seen the outermost line goes on, and time never falls with size there."""
        sizes = sorted(self._seconds)
        if size in self._seconds:
            return self._seconds[size]
        if len(sizes) == 1:
            return self._seconds[sizes[0]]
        right = min(max(bisect_left(sizes, size), 1), len(sizes) - 1)
        x0, x1 = sizes[right - 1], sizes[right]
        y0, y1 = self._seconds[x0], self._seconds[x1]
        slope = (y1 - y0) / (x1 - x0)
        if not x0 < size < x1:
            slope = max(slope, 0.0)
        anchor_x, anchor_y = (x1, y1) if size > x1 else (x0, y0)
        return max(anchor_y + slope * (size - anchor_x), 0.2 * anchor_y)


class Survival:
    """Acceptance of each draft position, given that the one before was accepted; old rows fade."""

    def __init__(self, max_draft_length: int) -> None:
        self._reached_K = np.zeros(max_draft_length)
        self._accepted_K = np.zeros(max_draft_length)

    def add(self, proposed_B: IntArray, matched_B: IntArray) -> None:
        """One round. When it cannot be explained by what was known, what was known is forgotten."""
        position_K = np.arange(len(self._reached_K))
        reached_K = ((matched_B[:, None] >= position_K) & (proposed_B[:, None] > position_K)).sum(axis=0)
        accepted_K = (matched_B[:, None] > position_K).sum(axis=0)
        num_rows, expected = float(reached_K[0]), self.conditional()[0]
        deviation = math.sqrt(num_rows * expected * (1 - expected) + 1)
        if self._reached_K[0] > 0 and abs(accepted_K[0] - num_rows * expected) > _SURPRISE * deviation:
            self._reached_K[:] = self._accepted_K[:] = 0
        keep = math.exp(-num_rows / _WINDOW_ROWS)
        self._reached_K = keep * self._reached_K + reached_K
        self._accepted_K = keep * self._accepted_K + accepted_K

    def doubt(self) -> None:
        """What is known is old: let a few new rows outweigh it."""
        scale = min(_STALE_ROWS / max(float(self._reached_K[0]), _STALE_ROWS), 1.0)
        self._reached_K *= scale
        self._accepted_K *= scale

    def conditional(self) -> list[float]:
        """Estimates by position; a position never reached is taken to be like the one before it."""
        rates: list[float] = []
        rate, weight = _PRIOR_ACCEPTANCE, _PRIOR_ROWS
        for reached, accepted in zip(self._reached_K, self._accepted_K, strict=True):
            rate = float((accepted + weight * rate) / (reached + weight))
            weight = _LIKE_THE_ONE_BEFORE_ROWS
            rates.append(rate)
        return rates

    def tokens_per_row(self, draft_length: int) -> float:
        """Expected tokens of a row in a round: 1 + S_1 + ... + S_K."""
        survival, total = 1.0, 1.0
        for rate in self.conditional()[:draft_length]:
            survival *= rate
            total += survival
        return total


class AdaptivePolicy:
    """The K with the most tokens per second, by this job's own measurements."""

    def __init__(self, max_draft_length: int) -> None:
        self.max_draft_length = max_draft_length
        self._score = StepTimes()
        self._draft_step = StepTimes()
        self._other = StepTimes()
        self._survival = Survival(max_draft_length)
        self._current = 0
        self._burst = _BURST_ROUNDS
        self._burst_length = min(_FIRST_DRAFT_LENGTH, max_draft_length)
        self._num_rounds = 0
        self._seconds = 0.0
        self._lost_seconds = 0.0

    @property
    def wants_draft(self) -> bool:
        return self._current > 0 or self._burst > 0

    def choose(self, num_rows: int) -> int:
        """K of the next round: the best by estimate, a plain round early on, or a probe."""
        self._num_rounds += 1
        if self._num_rounds == 2:
            return 0  # the cost of a plain round is needed before anything can be compared
        if self._burst > 0:
            return self._burst_length
        if self._current == 0 and self._may_probe(num_rows):
            self._burst, self._burst_length = _BURST_ROUNDS, _PROBE_DRAFT_LENGTH
            self._survival.doubt()
            self._draft_step.doubt()
            return self._burst_length
        self._current = self._best(num_rows)
        return self._current

    def observe(self, measure: RoundMeasure) -> None:
        """Learn from a round, whoever chose its K."""
        rows, draft_length = measure.num_rows, measure.draft_length
        self._score.add(rows * (draft_length + 1), measure.score_seconds)
        self._other.add(rows * (draft_length + 1), measure.other_seconds)
        self._seconds += measure.seconds
        if draft_length > 0:
            self._draft_step.add(rows, measure.propose_seconds / draft_length)
            self._survival.add(measure.proposed_B, measure.matched_B)
            if self._burst > 0:
                self._burst -= 1
                gained = float(rows + np.minimum(measure.matched_B, measure.proposed_B).sum())
                self._lost_seconds += max(measure.seconds - gained / rows * self._round_seconds(rows, 0), 0.0)
                if self._burst == 0:
                    self._current = self._best(rows)

    def _best(self, num_rows: int) -> int:
        rates = [self._tokens_per_second(num_rows, k) for k in range(self.max_draft_length + 1)]
        rates[0] *= _PLAIN_ADVANTAGE
        best = max(range(len(rates)), key=rates.__getitem__)
        is_worth_a_change = best == 0 or rates[best] > _HYSTERESIS * rates[self._current]
        return best if is_worth_a_change else self._current

    def _tokens_per_second(self, num_rows: int, draft_length: int) -> float:
        return num_rows * self._survival.tokens_per_row(draft_length) / self._round_seconds(num_rows, draft_length)

    def _round_seconds(self, num_rows: int, draft_length: int) -> float:
        size = num_rows * (draft_length + 1)
        drafting = draft_length * self._draft_step.at(num_rows) if draft_length else 0.0
        return self._score.at(size) + self._other.at(size) + drafting

    def _may_probe(self, num_rows: int) -> bool:
        """Whether the budget of lost time allows a burst of rounds that may all be in vain."""
        probe, plain = (self._round_seconds(num_rows, k) for k in (_PROBE_DRAFT_LENGTH, 0))
        price = _BURST_ROUNDS * max(probe - plain, 0.0)
        return self._lost_seconds + price <= _PROBE_BUDGET * self._seconds
