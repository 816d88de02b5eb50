"""What a round is seen as, before and after: the same for both ways of decoding one.

Shape letters: B rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specbatch.specdec.accept import Commit, IntArray
from specbatch.specdec.drafters.suffix import Proposal
from specbatch.specdec.output import SequenceOutput
from specbatch.specdec.policy.controller import OWN_MATCH, RoundView
from specbatch.specdec.rows.batch import Batch


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What a round did: rows that ended, tokens committed, whether it was plain, and how long it took.

    Attributes:
        is_mixed: compared with nothing, because prompts were read too or a graph was captured meanwhile.
        verdict: of the rows that were decoding before it.
    """

    finished: list[SequenceOutput]
    num_tokens: int
    is_plain: bool
    is_mixed: bool
    seconds: float
    verdict: Commit


def view(batch: Batch, row_B: IntArray, looked_up: Proposal | None, num_waiting: int, num_riding: int) -> RoundView:
    """The round as the policy sees it. A row has no use for drafts beyond the tokens that it may still say."""
    slots = batch.slots
    none_B = np.zeros(len(row_B), dtype=np.int64)
    length_B = slots.length_S[row_B]
    room_B = np.maximum(slots.end_S[row_B] - length_B - 1, 0)
    draft_room_B = none_B
    if batch.draft is not None:
        draft_room_B = np.clip(batch.draft.context_length - length_B, 0, room_B)
    return RoundView(
        room_B=room_B,
        draft_room_B=draft_room_B,
        lacking_B=length_B - slots.draft_kv_S[row_B],
        reached_BK=slots.reached_SK[row_B],
        accepted_BK=slots.agreed_SK[row_B],
        match_B=kind_of_match(looked_up, len(row_B)),
        suffix_length_B=none_B if looked_up is None else looked_up.length_B,
        num_waiting=num_waiting,
        num_riding=num_riding,
    )


def kind_of_match(looked_up: Proposal | None, num_rows: int) -> IntArray:
    """Lengths of the matches as the policy tells them apart, int64 [B]."""
    if looked_up is None:
        return np.zeros(num_rows, dtype=np.int64)
    kind_B: IntArray = looked_up.match_B + OWN_MATCH * looked_up.is_own_B
    return kind_B
