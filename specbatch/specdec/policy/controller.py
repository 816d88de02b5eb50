"""Chooses the drafts of every row for every round from what was measured: pure, and unable to change the text.

The face of the policies: what they are told, what they answer, and which one a setting asks for.

Shape letters: B rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.sampling import MAX_DRAFT_LENGTH
from specbatch.specdec.models.memory import AUTO_DRAFT_LENGTH
from specbatch.specdec.policy.auto import AdaptivePolicy
from specbatch.specdec.policy.types import OWN_MATCH, STEADY_LACK, Policy, RoundMeasure, RoundPlan, RoundView

__all__ = [
    "OWN_MATCH",
    "STEADY_LACK",
    "AdaptivePolicy",
    "FixedPolicy",
    "Policy",
    "RoundMeasure",
    "RoundPlan",
    "RoundView",
    "make_policy",
]


class FixedPolicy:
    """The same K for every row in every round, as far as the row has room; K = 0 decodes plainly.

    The drafts are the draft model's; the suffix index is asked only where there is no draft model. No round is decoded
    plainly for comparison: which rows it met would depend on their batch, and so would the counters of a row, which at
    a fixed K are the same on every run.
    """

    samples_plain_rounds = False

    def __init__(self, draft_length: int, *, has_draft: bool = True, has_suffix: bool = False) -> None:
        self.max_draft_length = draft_length
        self.uses_model = has_draft and draft_length > 0
        self._has_suffix = has_suffix and not has_draft and draft_length > 0

    @property
    def uses_suffix(self) -> bool:
        """Whether the suffix index should be asked before the next round."""
        return self._has_suffix

    @property
    def wants_draft(self) -> bool:
        """Whether prompts should run through the draft model."""
        return self.uses_model

    @property
    def is_draft_given_up(self) -> bool:
        """Never: the setting asked for the draft model."""
        return False

    def plan(self, view: RoundView) -> RoundPlan:
        """K drafts for every row that has room for them."""
        offered_B = view.draft_room_B if self.uses_model else view.suffix_length_B * self._has_suffix
        draft_length_B = np.minimum(np.minimum(view.room_B, offered_B), self.max_draft_length)
        return RoundPlan(draft_length_B=draft_length_B, is_model_B=(draft_length_B > 0) & self.uses_model)

    def observe(self, measure: RoundMeasure) -> None:
        """Nothing to learn."""

    def learn_times(
        self, score: Mapping[int, float], draft_step: Mapping[int, float], *, in_buckets: bool = False
    ) -> None:
        """Nothing to learn."""


def make_policy(speculation: int | Literal["auto", "off"], *, has_draft: bool, has_suffix: bool) -> Policy:
    """The policy that a setting asks for.

    Args:
        speculation: ``"auto"`` chooses by measurement, a number fixes K, ``"off"`` and 0 decode plainly.
        has_draft: there is a draft model. has_suffix: there may be a suffix index; the policy's ``uses_suffix`` says
            whether it wants one. Without either nothing is drafted.

    Raises:
        SpecbatchError: JOB_CONFIG for a number that is no K.
    """
    if speculation not in ("auto", "off", *range(MAX_DRAFT_LENGTH + 1)):
        rule = f"auto, off, or from 0 to {MAX_DRAFT_LENGTH}"
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"speculation is {speculation!r}; it must be {rule}")
    if speculation == "off" or not (has_draft or has_suffix):
        return FixedPolicy(0)
    if speculation == "auto":
        return AdaptivePolicy(AUTO_DRAFT_LENGTH, has_draft=has_draft, has_suffix=has_suffix)
    return FixedPolicy(speculation, has_draft=has_draft, has_suffix=has_suffix)
