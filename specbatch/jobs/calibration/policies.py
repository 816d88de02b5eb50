"""The policies that measure: one that goes through several K, and one that looks on while another decides.

An engine asks its policy before every round and tells it what the round cost and gave; that is all that a table of step
times and a trial need, and so they are taken from the very rounds that a job would have.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np

from specbatch.jobs.profiles.store import PositionRecord
from specbatch.specdec.policy.survival import count_positions
from specbatch.specdec.policy.types import Policy, RoundMeasure, RoundPlan, RoundView

_ROUNDS_OF_A_TURN = 4
"""Rounds with one K before the next one; the first of them still feels the one before and is not counted."""
FULL_ROWS = 0.75
FULL_DRAFTS = 0.9
"""A round counts for a batch size and K if it has at least such a share of the rows, and of the drafts."""


class SweepPolicy:
    """Goes through some K again and again, in random order, and keeps what each round cost and gave.

    Attributes:
        rounds: K -> (rows, seconds) of the rounds that were full.
    """

    def __init__(self, draft_lengths: Sequence[int], batch_size: int, seed: int = 0) -> None:
        self.max_draft_length = max(draft_lengths)
        self.uses_model = self.max_draft_length > 0
        self.samples_plain_rounds = False  # K = 0 has turns of its own
        self.rounds: dict[int, list[tuple[int, float]]] = {length: [] for length in draft_lengths}
        self._reached_K = np.zeros(self.max_draft_length, dtype=np.int64)
        self._accepted_K = np.zeros(self.max_draft_length, dtype=np.int64)
        self._batch_size = batch_size
        self._generator = random.Random(seed)
        self._turns = [0]  # plain rounds first: without them there is nothing to compare with
        self._turn = 0
        self._tried: set[int] = set()
        self._rounds_left = 0
        self._asked: tuple[int, int] | None = None

    @property
    def uses_suffix(self) -> bool:
        """Never: the table is of the draft model."""
        return False

    @property
    def wants_draft(self) -> bool:
        """Whether prompts should run through the draft model."""
        return self.uses_model

    @property
    def is_draft_given_up(self) -> bool:
        """Never."""
        return False

    @property
    def has_tried_all(self) -> bool:
        """Whether every K has had its turn."""
        return len(self._tried) == len(self.rounds) if self.uses_model else self.num_full_rounds > 0

    @property
    def num_full_rounds(self) -> int:
        """Counted rounds of the K that has the fewest."""
        return min(map(len, self.rounds.values()))

    @property
    def acceptance(self) -> tuple[PositionRecord, ...]:
        """By position, as far as drafts were judged."""
        pairs = zip(self._reached_K.tolist(), self._accepted_K.tolist(), strict=True)
        return tuple(PositionRecord(reached=reached, accepted=accepted) for reached, accepted in pairs if reached)

    def plan(self, view: RoundView) -> RoundPlan:
        """The same K for every row that has room for it."""
        if self._rounds_left == 0:
            if not self._turns:
                self._turns = list(self.rounds)
                self._generator.shuffle(self._turns)
            self._turn, self._rounds_left = self._turns.pop(), _ROUNDS_OF_A_TURN
        self._rounds_left -= 1
        if self._rounds_left == 0:
            self._tried.add(self._turn)
        draft_length_B = np.minimum(np.minimum(view.room_B, view.draft_room_B), self._turn)
        self._asked = int(draft_length_B.sum()), view.num_riding
        return RoundPlan(draft_length_B=draft_length_B, is_model_B=draft_length_B > 0)

    def observe(self, measure: RoundMeasure) -> None:
        """Keep a round that was full."""
        asked, self._asked = self._asked, None
        if self.uses_model:
            reached_BK, accepted_BK = count_positions(
                measure.draft_length_B * measure.is_model_B, measure.matched_B, self.max_draft_length
            )
            self._reached_K += reached_BK.sum(axis=0)
            self._accepted_K += (accepted_BK * measure.is_model_B[:, None]).sum(axis=0)
        if asked is None and self.uses_model:
            return
        num_drafts, num_riding = asked or (0, measure.num_scored - measure.num_rows)
        is_first = self.uses_model and self._rounds_left == _ROUNDS_OF_A_TURN - 1
        if is_first or num_riding or measure.num_catch_up_tokens:
            return
        is_full = measure.num_rows >= FULL_ROWS * self._batch_size
        if is_full and num_drafts >= FULL_DRAFTS * self._turn * measure.num_rows:
            self.rounds[self._turn].append((measure.num_rows, measure.seconds))

    def learn_times(
        self, score: Mapping[int, float], draft_step: Mapping[int, float], *, in_buckets: bool = False
    ) -> None:
        """Nothing to learn."""


class Onlooker:
    """Another policy, looked on: what each round took and gave.

    Attributes:
        rounds: (seconds, tokens committed) of every round.
    """

    def __init__(self, inner: Policy) -> None:
        self._inner = inner
        self.max_draft_length = inner.max_draft_length
        self.uses_model = inner.uses_model
        self.samples_plain_rounds = inner.samples_plain_rounds
        self.rounds: list[tuple[float, int]] = []

    @property
    def uses_suffix(self) -> bool:
        """As the other policy has it."""
        return self._inner.uses_suffix

    @property
    def wants_draft(self) -> bool:
        """As the other policy has it."""
        return self._inner.wants_draft

    @property
    def is_draft_given_up(self) -> bool:
        """As the other policy has it."""
        return self._inner.is_draft_given_up

    def plan(self, view: RoundView) -> RoundPlan:
        """As the other policy has it."""
        return self._inner.plan(view)

    def observe(self, measure: RoundMeasure) -> None:
        """Keep a round, and tell the other policy."""
        num_accepted = int(np.minimum(measure.matched_B, measure.draft_length_B).sum())
        self.rounds.append((measure.seconds, measure.num_rows + num_accepted))
        self._inner.observe(measure)

    def learn_times(
        self, score: Mapping[int, float], draft_step: Mapping[int, float], *, in_buckets: bool = False
    ) -> None:
        """Tell the other policy."""
        self._inner.learn_times(score, draft_step, in_buckets=in_buckets)
