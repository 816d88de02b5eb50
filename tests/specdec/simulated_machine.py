"""A machine of arithmetic for the controller: its own clock, its own acceptance, seeded noise.

Shape letters: B rows, K drafts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from specbatch.specdec.policy.buckets import bucket_of
from specbatch.specdec.policy.choice import has_suffix_drafts
from specbatch.specdec.policy.controller import Policy, RoundMeasure, RoundPlan, RoundView
from specbatch.specdec.rounds.ahead import num_blind_rounds
from specbatch.specdec.rounds.log import is_plain_sample

# Milliseconds of scoring so many tokens, as measured on two cores.
SCORE_MS = {1: 20.0, 4: 22.0, 8: 25.0, 16: 31.0, 24: 37.0, 32: 42.0, 64: 66.0, 128: 110.0, 640: 462.0}
Rates = Callable[[int], float]


def score_seconds(num_tokens: int) -> float:
    """Between the measured sizes as straight lines."""
    return float(np.interp(num_tokens, list(SCORE_MS), list(SCORE_MS.values()))) / 1000


@dataclass
class Machine:
    """Rows of ``row_tokens`` tokens in ``num_rows`` slots; a row that ends is followed by the next.

    Attributes:
        row_acceptance: acceptance of the draft model's proposals for the n-th row of the job.
        suffix_acceptance: of the suffix index's, by length of the match; None where there is no index.
        draft_ms, draft_row_ms: a step of the draft model, and what each row adds to it.
        noise: relative standard deviation of every time.
        num_waiting: what the policy is told about the queue.
        match_shares: how often rows have a match of 0, 2, 5 and 20 tokens.
        landing_ms: what the host does between two rounds, half behind the first and half before the second, unless the
            second is launched before: as in the engine not behind drafts of the suffix index. 0: no round ever is.
        in_buckets: rounds have fixed shapes, as where they are captured: scoring takes what the next bucket takes.
    """

    num_rows: int
    row_acceptance: Rates = lambda row: 0.7
    suffix_acceptance: Rates | None = None
    draft_ms: float = 1.2
    draft_row_ms: float = 0.05
    catch_up_ms: float = 0.05
    other_ms: float = 1.0
    noise: float = 0.03
    row_tokens: int = 300
    num_waiting: int = 1000
    seed: int = 0
    in_buckets: bool = False
    match_shares: tuple[float, ...] = (0.4, 0.2, 0.2, 0.2)
    landing_ms: float = 0.0
    hiccup_rounds: tuple[int, ...] = ()
    expected_seconds: float = 0.0
    expected_tokens: float = 0.0
    drafts: list[np.ndarray] = field(default_factory=list)
    is_model: list[np.ndarray] = field(default_factory=list)
    rows_of_round: list[np.ndarray] = field(default_factory=list)
    lookups: int = 0

    def __post_init__(self) -> None:
        B = self.num_rows
        self._generator = np.random.default_rng(self.seed)
        self._row_B = np.arange(B)
        self._num_blind = self._num_vain_looks = 0
        self._is_behind = False
        # Rows are met in mid-life, as in a job that has been running: they do not all end at once.
        self._left_B = self._generator.integers(self.row_tokens // 4, self.row_tokens + 1, B)
        self._lacking_B = np.ones(B, dtype=np.int64)
        self._reached_BK = np.zeros((B, 0), dtype=np.int64)
        self._accepted_BK = np.zeros((B, 0), dtype=np.int64)

    @property
    def tokens_per_second(self) -> float:
        """Of what the policy chose, by the true costs and rates: the noise that it sees is not in the verdict."""
        return self.expected_tokens / self.expected_seconds

    def largest(self) -> np.ndarray:
        """Most drafts of any row, by round; rounds that were sampled as plain ones left out."""
        return np.array([k.max() for n, k in enumerate(self.drafts) if not is_plain_sample(n)])

    def restart_clock(self) -> None:
        self.expected_seconds = self.expected_tokens = 0.0

    def run(self, policy: Policy, num_rounds: int) -> Machine:
        K = policy.max_draft_length
        if self._reached_BK.shape[1] != K:
            self._reached_BK = np.zeros((self.num_rows, K), dtype=np.int64)
            self._accepted_BK = np.zeros((self.num_rows, K), dtype=np.int64)
        for _ in range(num_rounds):
            self._round(policy, K)
        return self

    def _round(self, policy: Policy, K: int) -> None:
        B, rng = self.num_rows, self._generator
        match_B = np.zeros(B, dtype=np.int64)
        if self.suffix_acceptance is not None and policy.uses_suffix and not self._is_behind:
            self.lookups += 1
            match_B = rng.choice([0, 2, 5, 20], size=B, p=self.match_shares)
        room_B = np.minimum(self._left_B - 1, K)
        view = RoundView(
            room_B=room_B,
            draft_room_B=room_B,
            lacking_B=self._lacking_B.copy(),
            reached_BK=self._reached_BK.copy(),
            accepted_BK=self._accepted_BK.copy(),
            match_B=match_B,
            suffix_length_B=np.where(match_B > 0, K, 0),
            num_waiting=self.num_waiting,
        )
        # As in the engine: some rounds are plain whatever the policy wants, and it sees what they cost.
        draft_length_B, is_model_B = np.zeros(B, dtype=np.int64), np.zeros(B, dtype=np.bool_)
        if not is_plain_sample(len(self.drafts)):
            plan = policy.plan(view)
            draft_length_B, is_model_B = plan.draft_length_B, plan.is_model_B
        assert (draft_length_B <= room_B).all()
        assert not is_model_B[draft_length_B == 0].any()
        self._measure(policy, K, match_B, draft_length_B, is_model_B)

    def _measure(
        self, policy: Policy, K: int, match_B: np.ndarray, draft_length_B: np.ndarray, is_model_B: np.ndarray
    ) -> None:
        B, rng = self.num_rows, self._generator
        rate_B = np.array([self.row_acceptance(int(row)) for row in self._row_B])
        if self.suffix_acceptance is not None:
            suffix_B = np.array([self.suffix_acceptance(int(match)) for match in match_B])
            rate_B = np.where(is_model_B, rate_B, suffix_B)
        is_accepted_BK = (rng.random((B, K)) < rate_B[:, None]) & (np.arange(K) < draft_length_B[:, None])
        matched_B = np.cumprod(is_accepted_BK, axis=1, dtype=np.int64).sum(axis=1)
        num_steps = int(draft_length_B[is_model_B].max(initial=0))
        missing = int(np.where(is_model_B & (self._lacking_B > 2), self._lacking_B, 0).sum())
        hiccup = 20.0 if len(self.drafts) in self.hiccup_rounds else 1.0
        noise = hiccup * np.maximum(1 + self.noise * rng.normal(size=4), 0.3)
        num_scored = B + int(draft_length_B.sum())
        propose = num_steps * (self.draft_ms + self.draft_row_ms * int(is_model_B.sum())) / 1000
        score = score_seconds(bucket_of(num_scored) if self.in_buckets else num_scored)
        is_behind, is_followed = self._is_behind, self._may_fly(policy, draft_length_B, is_model_B)
        self._is_behind, self._num_blind = is_followed, (self._num_blind + 1) * is_followed
        other = (self.other_ms + self.landing_ms * (2 - is_behind - is_followed) / 2) / 1000
        catch_up = (self.draft_ms + self.catch_up_ms * missing) / 1000 if missing else 0.0
        measure = RoundMeasure(
            num_scored=num_scored,
            num_draft_steps=num_steps,
            propose_seconds=propose * noise[0],
            score_seconds=score * noise[1],
            other_seconds=other * noise[2],
            catch_up_seconds=catch_up * noise[3],
            num_catch_up_tokens=missing,
            draft_length_B=draft_length_B,
            matched_B=matched_B,
            is_model_B=is_model_B,
            match_B=match_B,
            hidden=("none", "part", "all")[is_behind + is_followed],
        )
        policy.observe(measure)
        self.expected_seconds += propose + score + other + catch_up
        is_drafted_BK = np.arange(K) < draft_length_B[:, None]
        self.expected_tokens += B + float((is_drafted_BK * rate_B[:, None] ** (np.arange(K) + 1)).sum())
        self.drafts.append(draft_length_B)
        self.is_model.append(is_model_B)
        self.rows_of_round.append(self._row_B.copy())
        self._advance(policy, K, draft_length_B, matched_B, is_model_B)

    def _may_fly(self, policy: Policy, draft_length_B: np.ndarray, is_model_B: np.ndarray) -> bool:
        """Whether the next round is launched before this one is settled."""
        if not self.landing_ms:
            return False
        if not policy.uses_suffix or is_plain_sample(len(self.drafts) + 1):
            return True
        has_drafts = has_suffix_drafts(RoundPlan(draft_length_B, is_model_B))
        if not self._is_behind:
            self._num_vain_looks = 0 if has_drafts else self._num_vain_looks + 1
        return not has_drafts and self._num_blind < num_blind_rounds(self._num_vain_looks)

    def _advance(
        self, policy: Policy, K: int, draft_length_B: np.ndarray, matched_B: np.ndarray, is_model_B: np.ndarray
    ) -> None:
        position_K = np.arange(K)
        of_model_B1 = is_model_B[:, None]
        self._reached_BK += (matched_B[:, None] >= position_K) & (draft_length_B[:, None] > position_K) & of_model_B1
        self._accepted_BK += (matched_B[:, None] > position_K) & of_model_B1
        self._lacking_B = np.where(is_model_B, 1, self._lacking_B + matched_B + 1)
        self._left_B -= matched_B + 1
        ended_b = np.flatnonzero(self._left_B <= 0)
        if len(ended_b):
            # Slot by slot, so that the mixture of rows in flight stays what it was.
            self._row_B[ended_b] += self.num_rows
            self._left_B[ended_b] = self.row_tokens
            self._lacking_B[ended_b] = 1 if policy.wants_draft else 200
            self._reached_BK[ended_b] = self._accepted_BK[ended_b] = 0
