"""When and on which rows to try what the policy does not use: a budget of lost time, and the cheapest rows.

While a source of drafts is not used nothing is learnt about it, and models, texts and machines change. Trying it costs
a little time, so it is tried on a few rows only, and as often as a small share of the job's time allows.

Shape letters: B rows, K drafts.
"""

from __future__ import annotations

import math

import numpy as np

from specbatch.specdec.accept import IntArray
from specbatch.specdec.policy.choice import Costs, has_suffix_drafts
from specbatch.specdec.policy.step_times import FloatArray
from specbatch.specdec.policy.types import RoundPlan, RoundView

# Shares of the job's time that may be lost: by looks at the unused draft model, the first one included; by rounds with
# drafts that may be better than they seem; by trying the suffix index. A useless draft may cost a job 1 % in all.
LOOK_BUDGET = 0.005
TRIAL_BUDGET = 0.002
SUFFIX_BUDGET = 0.002
# A look is over after so many drafts: enough to tell 5 % acceptance from 50 %, two or three rounds of a batch. It is
# over sooner when so many were right that the draft model cannot be useless.
_FIRST_DRAFTS, _LATER_DRAFTS = 14, 6
_FIRST_ROWS, _LATER_ROWS = 8, 3
_PROMISING_DRAFTS = 3
_CONTRADICTION_SD = 3.0
# However cheap, looks keep so many rounds apart, and trials are a few rounds on end out of so many: K should not
# flicker for the sake of knowledge.
LOOK_EVERY_ROUNDS = 60
TRIAL_EVERY_ROUNDS, TRIAL_ROUNDS = 40, 3
# Standard deviations by which a trial takes what is not known well to be better than it seems.
TRIAL_OPTIMISM = 1.5
# Rows that lack far more than the best-fed one are not worth feeding for a probe.
_LACKING_FACTOR, _LACKING_SLACK = 2, 32
# A kind of match is tried, where it is cheap, until so many of its drafts have been seen.
_SUFFIX_EVIDENCE = 6.0
_SUFFIX_PROBE_LENGTH = 2


class Look:
    """A few rows with one draft each of the draft model, for a few rounds."""

    def __init__(self, *, expected_acceptance: float | None) -> None:
        """Args:
        expected_acceptance: of the first draft, by what is known; None for the first look.
        """
        self._expected = expected_acceptance
        self._num_rows = _FIRST_ROWS if self.is_first else _LATER_ROWS
        self._num_drafts_left = _FIRST_DRAFTS if self.is_first else _LATER_DRAFTS
        self._num_drafts = self._num_right = 0

    @property
    def is_first(self) -> bool:
        return self._expected is None

    @property
    def is_over(self) -> bool:
        return self._num_drafts_left <= 0 or self._num_right >= _PROMISING_DRAFTS

    @property
    def is_contradiction(self) -> bool:
        """Far more drafts were right than was expected: what was known is no longer true."""
        if self._expected is None or self._num_right < _PROMISING_DRAFTS:
            return False
        mean, rest = self._num_drafts * self._expected, 1 - self._expected
        return self._num_right - mean > _CONTRADICTION_SD * math.sqrt(mean * rest)

    def num_rounds(self, num_rows: int) -> int:
        """Rounds that the rest of the look takes on so many rows, at most."""
        return math.ceil(self._num_drafts_left / num_rows)

    def count(self, num_drafts: int, num_right: int) -> None:
        """A round with so many drafts has been seen."""
        self._num_drafts_left -= num_drafts
        self._num_drafts += num_drafts
        self._num_right += num_right

    def drafts(self, view: RoundView) -> IntArray:
        """Int64 [B]: 1 for the rows that are cheapest to look at, else 0; all 0 if no row can have a draft."""
        room_B = np.minimum(view.room_B, view.draft_room_B)
        draft_length_B = np.zeros_like(room_B)
        able_b = np.flatnonzero(room_B > 0)
        if len(able_b):
            able_b = able_b[np.argsort(view.lacking_B[able_b], kind="stable")][: self._num_rows]
            most = _LACKING_FACTOR * int(view.lacking_B[able_b[0]]) + _LACKING_SLACK
            able_b = able_b[view.lacking_B[able_b] <= most]
            draft_length_B[able_b] = 1
        return draft_length_B


class Budget:
    """Lost time against all time."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._allowed_seconds = 0.0
        self._lost_seconds = 0.0

    def earn(self, seconds: float) -> None:
        """Time has passed."""
        self._allowed_seconds += self._share * seconds

    def lose(self, seconds: float) -> None:
        """A probe has cost so much more than it gave."""
        self._lost_seconds += max(seconds, 0.0)

    def allows(self, seconds: float) -> bool:
        """Whether a probe that may lose so much is due."""
        return self._lost_seconds + seconds <= self._allowed_seconds


def suffix_probe(
    view: RoundView, plan: RoundPlan, evidence_B: FloatArray, costs: Costs
) -> tuple[RoundPlan, float] | None:
    """The plan with drafts of the suffix index for one row whose kind of match is not known yet; None if there is none.

    Args:
        evidence_B: drafts that have been seen behind each row's kind of match.

    Returns:
        the plan, and the seconds that are lost if none of the drafts is right.
    """
    offered_B = np.minimum(np.minimum(view.suffix_length_B, view.room_B), _SUFFIX_PROBE_LENGTH)
    is_unused_B = (plan.draft_length_B == 0) | plan.is_model_B
    is_unknown_B = (offered_B > 0) & is_unused_B & (evidence_B < _SUFFIX_EVIDENCE)
    if not is_unknown_B.any():
        return None
    row = int(np.where(is_unknown_B, view.match_B, 0).argmax())
    num_drafts = int(plan.draft_length_B.sum())
    more = min(num_drafts + int(offered_B[row]), len(costs.score) - 1)
    seconds = float(costs.score[more] - costs.score[num_drafts])
    # A row that had the draft model's proposals gives them up for this round.
    seconds += float(plan.draft_length_B[row]) * float(costs.score[0]) / len(offered_B)
    seconds += 0.0 if has_suffix_drafts(plan) else costs.landing
    draft_length_B, is_model_B = plan.draft_length_B.copy(), plan.is_model_B.copy()
    draft_length_B[row], is_model_B[row] = offered_B[row], False
    return RoundPlan(draft_length_B, is_model_B), seconds
