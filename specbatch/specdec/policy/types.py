"""What the decode loop and the policy say to each other: numbers only, no tensors and no clocks.

Shape letters: B rows that decode in the round, K drafts (the policy's largest).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from specbatch.specdec.accept import BoolArray, IntArray

STEADY_LACK = 2
"""Tokens that the draft model's cache lacks at most behind a round that used it: one where a draft was refused, two
where all were accepted. They are fed with the next draft step and cost nothing of their own."""

OWN_MATCH = 32
"""Added to the length of a match in the row's own text; no match is longer than this."""


@dataclass(frozen=True, slots=True)
class RoundView:
    """What a policy may look at before a round. Arrays are int64.

    Attributes:
        room_B: most drafts that the row may have, as many as it may still say behind the round's own token.
        draft_room_B: the same for the draft model, whose context may be shorter; 0 where there is none.
        lacking_B: committed tokens that the draft model's cache lacks: up to ``STEADY_LACK`` while it is used, many
            after a stretch without it.
        reached_BK, accepted_BK: how often the row's proposals of the draft model at a position were reached (all before
            them accepted) and accepted, over the row's life.
        match_B: length of the context that the suffix index found again, 0 for none; ``OWN_MATCH`` more where it was
            found in the row's own text, whose continuations are right more often.
        suffix_length_B: drafts that the suffix index offers.
        num_waiting: rows queued behind these; 0 at the tail of a job.
        num_riding: tokens of prompts that the target reads in the same forward.
    """

    room_B: IntArray
    draft_room_B: IntArray
    lacking_B: IntArray
    reached_BK: IntArray
    accepted_BK: IntArray
    match_B: IntArray
    suffix_length_B: IntArray
    num_waiting: int
    num_riding: int = 0


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """Drafts of each row, int64, and whether they come from the draft model (else from the suffix index)."""

    draft_length_B: IntArray
    is_model_B: BoolArray

    @property
    def num_draft_steps(self) -> int:
        """Forwards of the draft model: the largest K of its rows, however many drafts others look up."""
        return int(self.draft_length_B[self.is_model_B].max(initial=0))


@dataclass(frozen=True, slots=True)
class RoundMeasure:
    """What one round cost and gave.

    Attributes:
        num_scored: tokens of the target's forward: each row's drafts and one, and prompts.
        num_draft_steps: forwards of the draft model, the largest K of its rows.
        propose_seconds, score_seconds: the two models. other_seconds: what surrounds them.
        catch_up_seconds, num_catch_up_tokens: feeding the draft model what it had missed; a price of coming back to it,
            not of a round.
        draft_length_B, matched_B: drafts of each row and how many of them led the target's draws.
        is_model_B, match_B: whose drafts they were, and the length of the match if they were the suffix index's.
        is_typical: False where the round was decoded in another way than those that drafts are planned for, so that its
            seconds say nothing about them.
        hidden: how much of the host's part was done while the device ran: all of it where the round was launched before
            the last one was settled and the next one before this was, none of it where neither was.
    """

    num_scored: int
    num_draft_steps: int
    propose_seconds: float
    score_seconds: float
    other_seconds: float
    catch_up_seconds: float
    num_catch_up_tokens: int
    draft_length_B: IntArray
    matched_B: IntArray
    is_model_B: BoolArray
    match_B: IntArray
    is_typical: bool = True
    hidden: Literal["none", "part", "all"] = "none"

    @property
    def num_rows(self) -> int:
        """Rows in flight."""
        return len(self.draft_length_B)

    @property
    def num_model_rows(self) -> int:
        """Rows for which the draft model proposed."""
        return int((self.is_model_B & (self.draft_length_B > 0)).sum())

    @property
    def seconds(self) -> float:
        """The whole round."""
        return self.propose_seconds + self.score_seconds + self.other_seconds + self.catch_up_seconds


class Policy(Protocol):
    """Decides how many drafts each row of the next round has, and who proposes them.

    Attributes:
        max_draft_length: no row ever gets more. uses_model: whether the draft model may ever be asked.
        samples_plain_rounds: whether rounds are drawn by lot to be decoded plainly, for the measured speed-up.
    """

    max_draft_length: int
    uses_model: bool
    samples_plain_rounds: bool

    @property
    def uses_suffix(self) -> bool:
        """Whether the suffix index should be asked before the next round."""

    @property
    def wants_draft(self) -> bool:
        """False while the draft model is not used: prompts need not run through it then."""

    @property
    def is_draft_given_up(self) -> bool:
        """True when the draft model has lost for so long that its memory serves better elsewhere."""

    def plan(self, view: RoundView) -> RoundPlan:
        """Drafts of the next round."""

    def observe(self, measure: RoundMeasure) -> None:
        """Learn from a round, whoever chose its drafts."""

    def learn_times(
        self, score: Mapping[int, float], draft_step: Mapping[int, float], *, in_buckets: bool = False
    ) -> None:
        """Seconds from a profile at start: of scoring by number of tokens, of a draft step by number of rows.

        Args:
            in_buckets: rounds have fixed shapes: they take what the next bucket of tokens or rows takes.
        """
