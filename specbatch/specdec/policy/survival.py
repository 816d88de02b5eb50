"""How likely a draft is to be accepted: by position, by row, by length of match.

The draft model. Position rates are the job's, old rounds fade. A row differs from the job by a shift of the log-odds at
all its positions; the shift is estimated from the row's own counts and drawn towards 0 as strongly as the rows in
flight have been alike so far (empirical Bayes). Alike rows so share what is known, unlike rows part after a few rounds.

The suffix index. Rates by bucket of the match length and position, for the whole job.

Change. Rounds are compared with what was expected of exactly these rows. When a short window of them cannot be
explained, everything older is forgotten, the rows' own counts too, as long as they may hold older ones.

Shape letters: B rows, K drafts, C counts of one kind each (buckets).
"""

from __future__ import annotations

import math

import numpy as np

from specbatch.specdec.accept import IntArray
from specbatch.specdec.policy.step_times import FloatArray
from specbatch.specdec.policy.types import OWN_MATCH, RoundMeasure, RoundView

# Rounds fade so that about this many rows' drafts count: few enough to follow, enough to know a rate to 2 %.
_WINDOW_ROWS = 600.0
# Until something is known: drafts that were chosen for a target agree about so often.
_PRIOR_ACCEPTANCE = 0.6
_PRIOR_ROWS = 1.0
# A position is taken to be like the one before it until about so many rows have reached it.
_LIKE_THE_ONE_BEFORE_ROWS = 4.0
# What is kept of old counts when they may be outdated: two or three looks outweigh it, and one that contradicts it.
_STALE_ROWS = 25.0
# The window in which a change is looked for, and the deviations that are one: a false alarm in some 10,000 rounds.
_CHANGE_ROWS = 30.0
# What is kept when a change has been found: the window above still holds rows from before it.
_FRESH_ROWS = 8.0
_CHANGE_SD = 4.5
# Variance of the log-odds between rows: first guess, its weight in rows, bounds, and the memory in rounds.
_FIRST_SPREAD = 0.3
_FIRST_SPREAD_WEIGHT = 20.0
_LEAST_SPREAD, _MOST_SPREAD = 0.02, 4.0
_SPREAD_ROUNDS = 200.0
_RATE_BOUND = 0.005
# Smallest match length of each bucket, in other rows' text and in the row's own, and how often its drafts are right
# until it is known (``benchmarks/bench_suffix.py``).
_LENGTH_START = np.array([1, 2, 3, 4, 6, 9, 17])
_BUCKET_START = np.concatenate((_LENGTH_START, _LENGTH_START + OWN_MATCH))
_BUCKET_PRIOR = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8])
_BUCKET_PRIOR_ROWS = 2.0
_BUCKET_WINDOW_ROWS = 300.0
# A bucket forgets with time too, so that one that did not pay is looked at again.
_BUCKET_ROUNDS = 1000.0


def count_positions(draft_length_B: IntArray, matched_B: IntArray, max_draft_length: int) -> tuple[IntArray, IntArray]:
    """Which positions were reached and which accepted: two int64 arrays [B, K] of 0 and 1."""
    position_K = np.arange(max_draft_length)
    reached_BK = (matched_B[:, None] >= position_K) & (draft_length_B[:, None] > position_K)
    accepted_BK = np.minimum(matched_B, draft_length_B)[:, None] > position_K
    return reached_BK.astype(np.int64), accepted_BK.astype(np.int64)


class ModelSurvival:
    """Survival of the draft model's proposals, by row and position."""

    def __init__(self, max_draft_length: int) -> None:
        self._reached_K = np.zeros(max_draft_length)
        self._accepted_K = np.zeros(max_draft_length)
        self._recent_reached_K = np.zeros(max_draft_length)
        self._recent_accepted_K = np.zeros(max_draft_length)
        self._recent_excess = 0.0
        self._recent_variance = 0.0
        self._excess_squared = _FIRST_SPREAD * _FIRST_SPREAD_WEIGHT
        self._variance_squared = _FIRST_SPREAD_WEIGHT
        self._num_rounds_since_change = 0
        self._expected_BK: FloatArray | None = None

    @property
    def spread(self) -> float:
        """Variance of the log-odds of acceptance between rows."""
        return min(max(self._excess_squared / self._variance_squared, _LEAST_SPREAD), _MOST_SPREAD)

    def job_rates(self) -> FloatArray:
        """Float64 [K]: acceptance of a position, given that the one before was accepted, over all rows."""
        rates_K = np.empty(len(self._reached_K))
        rate, weight = _PRIOR_ACCEPTANCE, _PRIOR_ROWS
        counts = zip(self._reached_K.tolist(), self._accepted_K.tolist(), strict=True)
        for position, (reached, accepted) in enumerate(counts):
            rate = (accepted + weight * rate) / (reached + weight)
            weight = _LIKE_THE_ONE_BEFORE_ROWS
            rates_K[position] = rate
        return rates_K

    def of_rows(self, view: RoundView) -> FloatArray:
        """Float64 [B, K]: probability that all drafts up to a position are accepted; never rises with the position."""
        rate_K = np.clip(self.job_rates(), _RATE_BOUND, 1 - _RATE_BOUND)
        log_odds_K = np.log(rate_K / (1 - rate_K))
        # Counts that reach back behind the last change say nothing; which rows hold some is known by their number.
        is_usable_B1 = view.reached_BK[:, :1] <= self._num_rounds_since_change
        reached_BK = view.reached_BK * is_usable_B1
        accepted_B = (view.accepted_BK * is_usable_B1).sum(axis=1)
        excess_B = accepted_B - reached_BK @ rate_K
        variance_B = reached_BK @ (rate_K * (1 - rate_K))
        self._learn_spread(excess_B, variance_B)
        precision = 1 / self.spread
        # Two Newton steps towards the shift of greatest posterior probability; the first alone falls short of rows
        # that are far from the job.
        shift_B = np.clip(excess_B / (variance_B + precision), -2.0, 2.0)
        rate_BK = 1 / (1 + np.exp(-(log_odds_K + shift_B[:, None])))
        slope_B = accepted_B - (reached_BK * rate_BK).sum(axis=1) - precision * shift_B
        bend_B = (reached_BK * rate_BK * (1 - rate_BK)).sum(axis=1) + precision
        shift_B = shift_B + np.clip(slope_B / bend_B, -2.0, 2.0)
        # Bounded, so that no row is ever thought to be certain.
        rate_BK = np.clip(1 / (1 + np.exp(-(log_odds_K + shift_B[:, None]))), _RATE_BOUND, 1 - _RATE_BOUND)
        self._expected_BK = rate_BK
        survival_BK: FloatArray = np.cumprod(rate_BK, axis=1)
        return survival_BK

    def optimistic(self, deviations: float) -> FloatArray:
        """The last ``of_rows`` if the job's rates are higher than they seem, by so many standard deviations."""
        assert self._expected_BK is not None
        rate_K = np.clip(self.job_rates(), _RATE_BOUND, 1 - _RATE_BOUND)
        shift_K = deviations / np.sqrt(self._reached_K * rate_K * (1 - rate_K) + 1)
        odds_BK = self._expected_BK / (1 - self._expected_BK) * np.exp(shift_K)
        survival_BK: FloatArray = np.cumprod(odds_BK / (1 + odds_BK), axis=1, dtype=np.float64)
        return survival_BK

    def add(self, measure: RoundMeasure) -> None:
        """Learn from a round in which the draft model proposed; the rows are those of the last ``of_rows``."""
        draft_length_B = measure.draft_length_B * measure.is_model_B
        reached_BK, accepted_BK = count_positions(draft_length_B, measure.matched_B, len(self._reached_K))
        accepted_BK = accepted_BK * measure.is_model_B[:, None]
        reached_K, accepted_K = reached_BK.sum(axis=0), accepted_BK.sum(axis=0)
        num_rows = float(reached_K[0])
        keep = math.exp(-num_rows / _WINDOW_ROWS)
        self._reached_K = keep * self._reached_K + reached_K
        self._accepted_K = keep * self._accepted_K + accepted_K
        keep = math.exp(-num_rows / _FRESH_ROWS)
        self._recent_reached_K = keep * self._recent_reached_K + reached_K
        self._recent_accepted_K = keep * self._recent_accepted_K + accepted_K
        keep = math.exp(-num_rows / _CHANGE_ROWS)
        self._num_rounds_since_change += 1
        if self._expected_BK is not None and self._expected_BK.shape == reached_BK.shape:
            expected_BK = self._expected_BK
            excess = float(accepted_K.sum() - (reached_BK * expected_BK).sum())
            self._recent_excess = keep * self._recent_excess + excess
            variance = float((reached_BK * expected_BK * (1 - expected_BK)).sum())
            self._recent_variance = keep * self._recent_variance + variance
            # The variance of what is expected of a rate that is itself not known well.
            uncertainty = self._recent_variance / max(float(self._reached_K[0]), 1.0)
            if abs(self._recent_excess) > _CHANGE_SD * math.sqrt(self._recent_variance * (1 + uncertainty) + 1):
                self.forget()

    def doubt(self) -> None:
        """What is known may be old: let the next rows weigh more, and judge a change by them alone."""
        self._recent_reached_K[:] = self._recent_accepted_K[:] = 0
        self._recent_excess = self._recent_variance = 0.0
        scale = min(_STALE_ROWS / max(float(self._reached_K[0]), _STALE_ROWS), 1.0)
        self._reached_K *= scale
        self._accepted_K *= scale

    def forget(self) -> None:
        """Keep only what the last few rounds have shown, and no row's counts from before now."""
        self._reached_K = self._recent_reached_K.copy()
        self._accepted_K = self._recent_accepted_K.copy()
        self._recent_excess = self._recent_variance = 0.0
        self._num_rounds_since_change = 0

    def _learn_spread(self, excess_B: FloatArray, variance_B: FloatArray) -> None:
        """Moments: alike rows scatter by the variance of their counts, a shift of the log-odds adds its square."""
        keep = 1 - 1 / _SPREAD_ROUNDS
        first = (1 - keep) * _FIRST_SPREAD_WEIGHT
        added = float((excess_B**2 - variance_B).sum())
        self._excess_squared = max(keep * self._excess_squared + first * _FIRST_SPREAD + added, 0.0)
        self._variance_squared = keep * self._variance_squared + first + float((variance_B**2).sum())


class SuffixSurvival:
    """Survival of the suffix index's proposals, by length of the match and position."""

    def __init__(self, max_draft_length: int) -> None:
        self._reached_CK = np.zeros((len(_BUCKET_START), max_draft_length))
        self._accepted_CK = np.zeros((len(_BUCKET_START), max_draft_length))

    def evidence(self, match_B: IntArray) -> FloatArray:
        """Float64 [B]: how many recent drafts the estimate for such a match rests on."""
        evidence_B: FloatArray = self._reached_CK[self._bucket(match_B), 0]
        return evidence_B

    def of_rows(self, match_B: IntArray) -> FloatArray:
        """Float64 [B, K]: probability that all drafts up to a position are accepted; 0 where nothing matched."""
        rate_CK = np.empty_like(self._reached_CK)
        rate_C, weight = _BUCKET_PRIOR, _BUCKET_PRIOR_ROWS
        for position in range(rate_CK.shape[1]):
            rate_C = (self._accepted_CK[:, position] + weight * rate_C) / (self._reached_CK[:, position] + weight)
            weight = _LIKE_THE_ONE_BEFORE_ROWS
            rate_CK[:, position] = rate_C
        survival_CK: FloatArray = np.cumprod(rate_CK, axis=1, dtype=np.float64)
        survival_BK: FloatArray = np.where((match_B > 0)[:, None], survival_CK[self._bucket(match_B)], 0.0)
        return survival_BK

    def add(self, measure: RoundMeasure) -> None:
        """Learn from a round, whatever it held."""
        self._reached_CK *= 1 - 1 / _BUCKET_ROUNDS
        self._accepted_CK *= 1 - 1 / _BUCKET_ROUNDS
        is_suffix_B = ~measure.is_model_B & (measure.draft_length_B > 0) & (measure.match_B > 0)
        if not is_suffix_B.any():
            return
        bucket_b = self._bucket(measure.match_B[is_suffix_B])
        reached_bK, accepted_bK = count_positions(
            measure.draft_length_B[is_suffix_B], measure.matched_B[is_suffix_B], self._reached_CK.shape[1]
        )
        keep_C = np.exp(-np.bincount(bucket_b, minlength=len(_BUCKET_START)) / _BUCKET_WINDOW_ROWS)
        self._reached_CK *= keep_C[:, None]
        self._accepted_CK *= keep_C[:, None]
        np.add.at(self._reached_CK, bucket_b, reached_bK)
        np.add.at(self._accepted_CK, bucket_b, accepted_bK)

    @staticmethod
    def _bucket(match_B: IntArray) -> IntArray:
        bucket_B: IntArray = np.maximum(np.searchsorted(_BUCKET_START, match_B, side="right") - 1, 0)
        return bucket_B
