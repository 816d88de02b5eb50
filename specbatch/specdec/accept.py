"""Acceptance and commit as pure array functions: no model, no cache, no randomness.

Glossary.
  draft token      a proposal for the next position.
  target's draw    what the target itself says at a position, given everything before it.
  accepted         a draft token that equals the target's draw, with all drafts before it accepted too.
  bonus            the target's draw behind the last accepted draft: a correction where a draft was refused, or one
                   token more where all were accepted. Every round commits it unless a terminator came earlier.
  committed        the tokens that become part of the completion: accepted drafts, then the bonus, up to a terminator.
  terminator       what ends a row: a stop id, the token that completes a stop string (``rows.stops``), or the last
                   token it may say. They act in committed order, the earliest wins. At the same token a stop id comes
                   first, then a stop string, then the token limit.

Because a draft is accepted only while it *is* the target's draw, the committed tokens are always a prefix of the
target's draws: the text is the target's own whatever was proposed (coupling by shared noise: Daliri, Musco, Suresh,
"Coupling without communication and drafter-invariant speculative decoding", arXiv 2408.07978).

Rows differ in the number of their drafts: arrays are padded to the largest K of the round, and what stands behind a
row's own drafts is never looked at. No drafts at all is plain decoding.

Shape letters: B rows, K drafts, T = K + 1 scored positions, S stop ids.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

NO_CUT = int(np.iinfo(np.int64).max)
"""More tokens than any row has: no stop string ends it."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What one round adds to each row.

    Attributes:
        num_committed_B: tokens added, at least 1.
        num_accepted_B: committed tokens that were drafts.
        num_proposed_B: drafts that count; those behind a committed terminator do not.
        is_stopped_B: the last committed token is a stop id.
        is_cut_B: the last committed token completes a stop string, and is no stop id.
        is_exhausted_B: the row has all the tokens it may have, and no stop id or stop string ends at the last one.
        has_ended_B: one of these three.
    """

    num_committed_B: IntArray
    num_accepted_B: IntArray
    num_proposed_B: IntArray
    is_stopped_B: BoolArray
    is_cut_B: BoolArray
    is_exhausted_B: BoolArray
    has_ended_B: BoolArray

    def of(self, is_chosen_B: BoolArray) -> Commit:
        """The same of some rows."""
        return Commit(*(getattr(self, entry.name)[is_chosen_B] for entry in fields(self)))


def accept(draft_BK: IntArray, draft_length_B: IntArray, target_BT: IntArray) -> IntArray:
    """Number of leading drafts that equal the target's draws.

    Args:
        draft_BK: proposals; entries at or beyond a row's draft length are ignored.
        draft_length_B: proposals of each row, 0 to K.
        target_BT: the target's draws; entry j follows the first j drafts.

    Returns:
        int64 [B], from 0 to the row's draft length.
    """
    K = draft_BK.shape[1]
    is_match_BK = (draft_BK == target_BT[:, :K]) & (np.arange(K) < draft_length_B[:, None])
    leading_BK: IntArray = np.cumprod(is_match_BK, axis=1, dtype=np.int64)
    num_matched_B: IntArray = leading_BK.sum(axis=1)
    return num_matched_B


def commit(
    target_BT: IntArray,
    num_matched_B: IntArray,
    draft_length_B: IntArray,
    num_remaining_B: IntArray,
    stop_BS: IntArray,
    cut_B: IntArray | None = None,
) -> Commit:
    """Cut each row's tokens at its earliest terminator.

    Stop strings are found in the tokens that would be committed without them. So a round whose rows have any calls
    this twice: without ``cut_B``, then with what ``rows.stops.StopMatcher`` says of the tokens of the first call.

    Args:
        target_BT: the target's draws.
        num_matched_B: result of ``accept``.
        draft_length_B: proposals of each row.
        num_remaining_B: tokens the row may still say, at least 1.
        stop_BS: stop ids of each row, padded with -1.
        cut_B: tokens of this round after which a stop string ends the row, at least 1; ``NO_CUT`` where none does.
    """
    num_candidates_B = np.minimum(num_matched_B + 1, num_remaining_B)
    # A first stop id behind the candidates lies beyond the minimum below, so it needs no mask.
    is_stop_BT = (target_BT[:, :, None] == stop_BS[:, None, :]).any(axis=2)
    stop_B = np.where(is_stop_BT.any(axis=1), is_stop_BT.argmax(axis=1) + 1, NO_CUT)
    string_B = np.full_like(num_matched_B, NO_CUT) if cut_B is None else cut_B
    num_committed_B = np.minimum(num_candidates_B, np.minimum(stop_B, string_B))
    is_stopped_B = stop_B == num_committed_B
    is_cut_B = (string_B == num_committed_B) & ~is_stopped_B
    is_exhausted_B = (num_remaining_B == num_committed_B) & ~is_stopped_B & ~is_cut_B
    has_ended_B = is_stopped_B | is_cut_B | is_exhausted_B
    return Commit(
        num_committed_B=num_committed_B,
        num_accepted_B=np.minimum(num_matched_B, num_committed_B),
        num_proposed_B=np.where(has_ended_B, np.minimum(draft_length_B, num_committed_B), draft_length_B),
        is_stopped_B=is_stopped_B,
        is_cut_B=is_cut_B,
        is_exhausted_B=is_exhausted_B,
        has_ended_B=has_ended_B,
    )
