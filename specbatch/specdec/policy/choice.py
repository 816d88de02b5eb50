"""The drafts with the most tokens per second, given survivals and costs: pure arithmetic.

A round over B rows commits B tokens and one more for every draft that survives. It costs the scoring of B + N tokens
(rows are packed, nothing is padded), as many forwards of the draft model as its longest row has drafts, and what it
takes to feed rows to the draft model that it has not followed. For a given bound g on the draft model's steps each row
takes the source that promises more; then all drafts of all rows are sorted by survival and the best prefix is taken.
As survival never rises with the position, a prefix is a valid set of drafts. The objective is that of Liu et al.,
"Optimizing speculative decoding for serving large language models using goodput", arXiv 2406.14066, for ragged rows.

Shape letters: B rows, K drafts, N candidate drafts of all rows and both sources, G bounds on the draft model's steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from specbatch.specdec.accept import BoolArray, IntArray
from specbatch.specdec.policy.step_times import FloatArray
from specbatch.specdec.policy.types import RoundPlan

# A draft less likely than this is never worth a place in the sort.
_LEAST_SURVIVAL = 0.01
# Sources are compared by what exceeds the price of scoring; a trace of the rest decides where nothing does.
_TRACE = 1e-3
# Drafts that are equally likely (rows with the same match, or of which nothing is known) must be told apart by a cut:
# in their order each counts as less likely than the one before by this share. With costs in steps all of them together
# may fall into a bucket that does not pay.
_APART = 1e-9


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a round's pieces.

    Attributes:
        score: scoring B tokens, B + 1, and so on, with all that surrounds the models.
        draft_step: a forward of the draft model over 0 rows, 1, and so on up to B; None where there is none.
        catch_up_B: share of the price of feeding a row to the draft model that one round has to bear.
        landing: of any draft of the suffix index at all: the round must be settled before the next one begins.
    """

    score: FloatArray
    draft_step: FloatArray | None
    catch_up_B: FloatArray
    landing: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A bound on the draft model's steps and the smallest survival that is worth scoring, with its tokens per second.

    ``num_steps`` 0 and an infinite ``cut`` is plain decoding.
    """

    num_steps: int
    cut: float
    tokens_per_second: float

    @property
    def is_plain(self) -> bool:
        return math.isinf(self.cut)


def tokens_and_seconds(
    plan: RoundPlan, model_BK: FloatArray | None, suffix_BK: FloatArray | None, costs: Costs
) -> tuple[float, float]:
    """What a round with these drafts is expected to commit and to take."""
    num_drafts = int(plan.draft_length_B.sum())
    tokens, seconds = float(len(plan.draft_length_B)), float(costs.score[num_drafts])
    for survival_BK, is_source_B in ((model_BK, plan.is_model_B), (suffix_BK, ~plan.is_model_B)):
        if survival_BK is not None:
            is_taken_BK = np.arange(survival_BK.shape[1]) < (plan.draft_length_B * is_source_B)[:, None]
            tokens += float((survival_BK * is_taken_BK).sum())
    if costs.draft_step is not None and plan.is_model_B.any():
        num_steps = int(plan.draft_length_B[plan.is_model_B].max())
        seconds += num_steps * float(costs.draft_step[int(plan.is_model_B.sum())])
        seconds += float(costs.catch_up_B[plan.is_model_B].sum())
    return tokens, seconds + costs.landing * has_suffix_drafts(plan)


def has_suffix_drafts(plan: RoundPlan) -> bool:
    """Whether any row has drafts of the suffix index."""
    return bool(((plan.draft_length_B > 0) & ~plan.is_model_B).any())


class Candidates:
    """All drafts that a round could have, in the order in which they deserve it."""

    def __init__(self, model_BK: FloatArray | None, suffix_BK: FloatArray | None, costs: Costs) -> None:
        """Args:
        model_BK, suffix_BK: survivals by source, 0 where a row cannot have the draft; None where there is no source.
        costs: seconds; ``costs.score`` must reach to B * (K + 1) tokens.
        """
        known_BK = suffix_BK if model_BK is None else model_BK
        assert known_BK is not None
        B, K = known_BK.shape
        self._num_rows = B
        zero_BK = np.zeros((0, K))
        flat = np.concatenate([zero_BK if s is None else s for s in (model_BK, suffix_BK)]).ravel()
        candidate_N = np.flatnonzero(flat > _LEAST_SURVIVAL)
        candidate_N = candidate_N[np.argsort(-flat[candidate_N], kind="stable")]
        self._survival_N = flat[candidate_N]
        self._rank_N = self._survival_N * (1 - _APART * np.arange(len(candidate_N)))
        self._is_model_N = candidate_N < (0 if model_BK is None else B * K)
        self._row_N = candidate_N // K % B
        self._position_N = candidate_N % K + 1
        self._plain = B / float(costs.score[0])
        has_model, has_suffix = model_BK is not None and self._is_model_N.any(), suffix_BK is not None
        self._bound_G = np.arange(0 if has_suffix or not has_model else 1, K + 1 if has_model else 1)
        self._source_GB = self._choose_sources(model_BK, suffix_BK, costs)
        self._evaluate(costs)

    @property
    def plain(self) -> Choice:
        """Decoding without drafts."""
        return Choice(num_steps=0, cut=math.inf, tokens_per_second=self._plain)

    def best(self) -> Choice:
        """The choice with the most tokens per second, plain decoding included."""
        if not len(self._survival_N):
            return self.plain
        g, last = divmod(int(self._rate_GN.argmax()), len(self._survival_N))
        if self._rate_GN[g, last] <= self._plain:
            return self.plain
        # The cut lies between the last draft taken and the next one, so that small moves of either change nothing.
        later_n = np.flatnonzero(self._is_taken_GN[g, last + 1 :])
        below = float(self._rank_N[last + 1 + later_n[0]]) if len(later_n) else 0.0
        cut = math.sqrt(float(self._rank_N[last]) * max(below, _LEAST_SURVIVAL * (1 - _APART * len(self._rank_N))))
        return Choice(int(self._bound_G[g]), cut, float(self._rate_GN[g, last]))

    def evaluate(self, choice: Choice) -> Choice:
        """The same bound and cut among these candidates, with what they are worth here; plain if nothing is left."""
        g, number = self._locate(choice)
        if number == 0 or not self._is_taken_GN[g, :number].any():
            return self.plain
        return Choice(choice.num_steps, choice.cut, float(self._rate_GN[g, number - 1]))

    def plan(self, choice: Choice) -> RoundPlan:
        """The drafts of a choice, row by row."""
        draft_length_B = np.zeros(self._num_rows, dtype=np.int64)
        is_model_B = np.zeros(self._num_rows, dtype=np.bool_)
        g, number = self._locate(choice)
        if number:
            is_taken_n = self._is_taken_GN[g, :number]
            np.maximum.at(draft_length_B, self._row_N[:number][is_taken_n], self._position_N[:number][is_taken_n])
            is_model_B = (self._source_GB[g] == 1) & (draft_length_B > 0)
        return RoundPlan(draft_length_B=draft_length_B, is_model_B=is_model_B)

    def _locate(self, choice: Choice) -> tuple[int, int]:
        """Index of the choice's bound and the number of candidates above its cut."""
        first = int(self._bound_G[0])
        g = min(max(choice.num_steps - first, 0), len(self._bound_G) - 1)
        return g, int(np.searchsorted(-self._rank_N, -choice.cut, side="right"))

    def _choose_sources(self, model_BK: FloatArray | None, suffix_BK: FloatArray | None, costs: Costs) -> IntArray:
        """Int64 [G, B]: 1 draft model, 0 suffix index, -1 neither, for each bound on the steps."""
        B = self._num_rows
        # What scoring one more token costs, in tokens that plain decoding would commit meanwhile.
        price = float(costs.score[min(B, len(costs.score) - 1)] / costs.score[0]) - 1
        model_GB = np.zeros((len(self._bound_G), B))
        if model_BK is not None:
            value_BK = np.maximum(model_BK - price, 0) + _TRACE * model_BK
            sums_KB = np.concatenate([np.zeros((B, 1)), np.cumsum(value_BK, axis=1)], axis=1).T
            model_GB = sums_KB[self._bound_G] - self._plain * costs.catch_up_B
        suffix_B = np.zeros(B)
        if suffix_BK is not None:
            suffix_B = (np.maximum(suffix_BK - price, 0) + _TRACE * suffix_BK).sum(axis=1)
        source_GB: IntArray = np.where(model_GB > suffix_B, 1, np.where(suffix_B > 0, 0, -1))
        return source_GB

    def _evaluate(self, costs: Costs) -> None:
        """Tokens per second of every prefix under every bound."""
        source_GN = self._source_GB[:, self._row_N]
        is_within_GN = self._position_N <= self._bound_G[:, None]
        is_model_N = self._is_model_N
        is_taken_GN: BoolArray = np.where(is_model_N, (source_GN == 1) & is_within_GN, source_GN == 0)
        num_GN = np.cumsum(is_taken_GN, axis=1)
        gain_GN = np.cumsum(is_taken_GN * self._survival_N, axis=1)
        seconds_GN = costs.score[num_GN]
        if costs.draft_step is not None and is_model_N.any():
            is_drafted_GN = is_taken_GN & is_model_N
            is_first_GN = is_drafted_GN & (self._position_N == 1)
            num_steps_GN = np.maximum.accumulate(is_drafted_GN * self._position_N, axis=1)
            seconds_GN += num_steps_GN * costs.draft_step[np.cumsum(is_first_GN, axis=1)]
            if costs.catch_up_B.any():
                seconds_GN += np.cumsum(is_first_GN * costs.catch_up_B[self._row_N], axis=1)
        if costs.landing > 0:
            seconds_GN += costs.landing * np.logical_or.accumulate(is_taken_GN & ~is_model_N, axis=1)
        self._is_taken_GN = is_taken_GN
        self._rate_GN: FloatArray = (self._num_rows + gain_GN) / seconds_GN


def candidates_of(model_BK: FloatArray | None, suffix_BK: FloatArray | None, costs: Costs) -> Candidates:
    """All drafts that a round could have; those of the suffix index only where they are worth the landing."""
    candidates = Candidates(model_BK, suffix_BK, costs)
    if suffix_BK is None or not costs.landing or not suffix_BK.any():
        return candidates
    others = Candidates(model_BK, np.zeros_like(suffix_BK), costs)
    return candidates if candidates.best().tokens_per_second > others.best().tokens_per_second else others
