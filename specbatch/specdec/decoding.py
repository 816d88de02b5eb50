"""One round over the rows in flight: plan, propose, score, settle, commit.

Shape letters: B active rows, K drafts of this round, T = K + 1, W tokens that the draft is fed first, V vocabulary.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specbatch.specdec.accept import BoolArray, Commit, IntArray, accept, commit
from specbatch.specdec.admission import feed
from specbatch.specdec.batch import Batch
from specbatch.specdec.controller import RoundMeasure
from specbatch.specdec.output import SequenceOutput
from specbatch.specdec.prefill import PrefillGroup
from specbatch.specdec.rounds import is_plain_sample
from specbatch.specdec.sampling import Draw, draw_draft, draw_target

_MAX_FEED_TOKENS = 4
"""A row whose draft cache lacks more tokens than this catches up alone, so that it does not widen everybody's feed."""


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What a round did: rows that ended, tokens committed, and whether it was decoded plainly."""

    finished: list[SequenceOutput]
    num_tokens: int
    is_plain: bool


def decode_round(batch: Batch, round_number: int) -> RoundResult:
    """Move every active row on by at least one token."""
    started, before = time.perf_counter(), batch.clock.seconds
    draft_length_B, is_plain = plan_round(batch, round_number)
    catch_up(batch, draft_length_B)
    draft_BK = propose(batch, draft_length_B)
    draw = score(batch, draft_BK)
    target_BT, verdict = settle(batch, draft_BK, draft_length_B, draw)
    finished = commit_round(batch, target_BT, draft_length_B, verdict, draw)
    spent = batch.clock.seconds - before
    batch.policy.observe(
        RoundMeasure(
            num_rows=len(draft_length_B),
            draft_length=draft_BK.shape[1],
            propose_seconds=spent.propose,
            score_seconds=spent.score,
            other_seconds=time.perf_counter() - started - spent.propose - spent.score - spent.prefill,
            catch_up_seconds=spent.prefill,
            proposed_B=verdict.num_proposed_B,
            matched_B=verdict.num_accepted_B,
        )
    )
    return RoundResult(finished, int(verdict.num_committed_B.sum()), is_plain)


def plan_round(batch: Batch, round_number: int) -> tuple[IntArray, bool]:
    """Drafts of each row: K, clipped to what the row may still say behind them and to the draft's own context."""
    slots, B = batch.slots, batch.slots.num_active
    is_plain = batch.policy.max_draft_length == 0 or is_plain_sample(round_number)
    if is_plain or batch.draft is None:
        return np.zeros(B, dtype=np.int64), is_plain
    length_B = slots.length_S[:B]
    room_B = np.minimum(slots.end_S[:B] - length_B - 1, batch.draft.context_length - length_B)
    return np.clip(room_B, 0, batch.policy.choose(B)), is_plain


def catch_up(batch: Batch, draft_length_B: IntArray) -> None:
    """Feed the draft what it lacks where that is much: after a stretch without drafts, or a whole prompt."""
    slots, B = batch.slots, len(draft_length_B)
    lacking_B = slots.length_S[:B] - slots.draft_kv_S[:B]
    late = np.nonzero((lacking_B > _MAX_FEED_TOKENS) & (draft_length_B > 0))[0]
    if batch.draft is None or not len(late):
        return
    with batch.clock.timed("prefill"):
        for slot in late:
            start, stop = int(slots.draft_kv_S[slot]), int(slots.length_S[slot]) - 1
            feed(batch, batch.draft, PrefillGroup(int(slot), (stop,)), start)
            slots.draft_kv_S[slot] = stop


def propose(batch: Batch, draft_length_B: IntArray) -> Tensor:
    """Drafts int64 [B, K] on the device; entries beyond a row's own draft length are ignored later.

    The first step feeds every token that the draft's cache lacks: one behind a refusal, two behind a round that
    accepted everything, more behind plain rounds. All rows are fed the same width; what a row has is written again.
    """
    slots, draft, K = batch.slots, batch.draft, int(draft_length_B.max())
    B = slots.num_active
    if K == 0 or draft is None:
        return torch.empty((B, 0), dtype=torch.int64, device=slots.device)
    with batch.clock.timed("propose"):
        length_B = slots.length_S[:B]
        lacking_B = (length_B - slots.draft_kv_S[:B])[draft_length_B > 0]
        W = int(min(lacking_B.max(), length_B.min()))
        position_BW = length_B[:, None] + np.arange(-W, 0)
        token_BT = slots.tensor(slots.token_SP[np.arange(B)[:, None], position_BW])
        position_BT = slots.tensor(position_BW)
        index_B = slots.tensor(length_B - slots.prompt_length_S[:B])
        num_keys = int(length_B.max())
        drafts = []
        for j in range(K):
            logits_BTV = draft.forward(token_BT, position_BT, 0, num_keys + j, logits_to_keep=1)
            draft_B = draw_draft(logits_BTV[:, -1], index_B + j, slots.sampling())
            drafts.append(draft_B)
            token_BT, position_BT = draft_B.unsqueeze(1), position_BT[:, -1:] + 1
        return torch.stack(drafts, dim=1)


def score(batch: Batch, draft_BK: Tensor) -> Draw:
    """The target's draws [B, K + 1]: behind the last committed token and behind each draft."""
    slots, (B, K) = batch.slots, draft_BK.shape
    length_B, offset_T = slots.length_S[:B], np.arange(K + 1)
    with batch.clock.timed("score"):
        last_B1 = slots.tensor(slots.token_SP[np.arange(B), length_B - 1]).unsqueeze(1)
        logits_BTV = batch.target.forward(
            torch.cat((last_B1, draft_BK), dim=1),
            slots.tensor(length_B[:, None] - 1 + offset_T),
            0,
            int(length_B.max()) + K,
            logits_to_keep=K + 1,
        )
    with batch.clock.timed("accept"):
        index_BT = slots.tensor((length_B - slots.prompt_length_S[:B])[:, None] + offset_T)
        return draw_target(logits_BTV, index_BT, slots.sampling(), batch.epsilon)


def settle(batch: Batch, draft_BK: Tensor, draft_length_B: IntArray, draw: Draw) -> tuple[IntArray, Commit]:
    """Accept; where a token that would be committed is a near tie, canonical evaluation decides it first.

    Positions are settled in order, because what follows a changed token was drawn behind another prefix.

    Returns:
        the target's draws int64 [B, T] on the host, and what is committed of them.
    """
    with batch.clock.timed("accept"):
        slots, B = batch.slots, batch.slots.num_active
        target_BT: IntArray = draw.token_BT.cpu().numpy()
        host_draft_BK: IntArray = draft_BK.cpu().numpy()
        is_open_BT: BoolArray = ~draw.is_stable_BT.cpu().numpy() & (batch.epsilon > 0)
        remaining_B = slots.end_S[:B] - slots.length_S[:B]
        while True:
            num_matched_B = accept(host_draft_BK, draft_length_B, target_BT)
            verdict = commit(target_BT, num_matched_B, draft_length_B, remaining_B, slots.stop_SX[:B])
            is_due_BT = is_open_BT & _is_committed(target_BT, verdict)
            if not is_due_BT.any():
                return target_BT, verdict
            for row in np.nonzero(is_due_BT.any(axis=1))[0]:
                j = int(is_due_BT[row].argmax())
                target_BT[row, j] = batch.canonical_token(int(row), target_BT[row, :j])
                is_open_BT[row, j] = False


def commit_round(
    batch: Batch, target_BT: IntArray, draft_length_B: IntArray, verdict: Commit, draw: Draw
) -> list[SequenceOutput]:
    """Append the committed tokens, keep the books, retire the rows that ended."""
    with batch.clock.timed("host"):
        slots, B = batch.slots, batch.slots.num_active
        is_committed_BT = _is_committed(target_BT, verdict)
        margin_BT = np.where(is_committed_BT, draw.margin_BT.cpu().numpy(), np.inf)
        slots.margin_S[:B] = np.minimum(slots.margin_S[:B], margin_BT.min(axis=1))
        is_broken_B = (is_committed_BT & ~draw.is_finite_BT.cpu().numpy()).any(axis=1)
        # The draft has seen its own proposals but the last; those that were accepted stay in its cache.
        draft_kv_B = slots.length_S[:B] + np.minimum(draft_length_B - 1, verdict.num_accepted_B)
        slots.draft_kv_S[:B] = np.where(draft_length_B > 0, draft_kv_B, slots.draft_kv_S[:B])
        slots.append(target_BT, verdict)
        slots.count(draft_length_B, verdict)
        has_ended_B = verdict.is_stopped_B | verdict.is_exhausted_B | is_broken_B
        return [
            batch.retire(int(slot), is_stopped=bool(verdict.is_stopped_B[slot]), is_broken=bool(is_broken_B[slot]))
            for slot in np.nonzero(has_ended_B)[0]
        ]


def _is_committed(target_BT: IntArray, verdict: Commit) -> BoolArray:
    is_committed_BT: BoolArray = np.arange(target_BT.shape[1]) < verdict.num_committed_B[:, None]
    return is_committed_BT
