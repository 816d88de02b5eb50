"""One round over the rows that decode: plan, catch up, propose, score; ``settling`` does the rest.

Shape letters: B rows, K drafts, N scored positions, V vocabulary.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from specbatch.specdec.accept import IntArray
from specbatch.specdec.drafters.suffix import Proposal
from specbatch.specdec.forward.feed import Decoder
from specbatch.specdec.policy.controller import STEADY_LACK, RoundMeasure, RoundPlan
from specbatch.specdec.rounds.ahead import Ahead
from specbatch.specdec.rounds.log import is_plain_sample
from specbatch.specdec.rounds.parts import RoundResult, kind_of_match, view
from specbatch.specdec.rounds.prefill import Chunk, feed_draft, follow_chunk
from specbatch.specdec.rounds.settling import Proposals, settle_and_commit
from specbatch.specdec.rows.batch import Batch
from specbatch.specdec.sampling.coupling import propose_token
from specbatch.specdec.sampling.draw import draw_draft, transformed_logits


def may_ride(batch: Batch, round_number: int) -> bool:
    """Whether prompts may share the round's forward: some row decodes, and the round measures nothing else."""
    is_measured = batch.policy.max_draft_length > 0 and _is_drawn(batch, round_number)
    return bool(batch.slots.is_begun_S[: batch.slots.num_active].any()) and not is_measured


def is_plain_round(batch: Batch, round_number: int) -> bool:
    """Whether the round has no drafts: they are switched off, or it is one of those that measure plain decoding."""
    return not batch.policy.max_draft_length or _is_drawn(batch, round_number)


def _is_drawn(batch: Batch, round_number: int) -> bool:
    """Whether the round is decoded plainly to have something to compare with."""
    return batch.policy.samples_plain_rounds and is_plain_sample(round_number)


def decode_round(
    batch: Batch, round_number: int, num_waiting: int, chunk: Chunk | None, ahead: Ahead | None = None
) -> RoundResult | None:
    """Move every row that decodes on by at least one token; None if there is none, or while the round is under way.

    Args:
        chunk: prompt tokens of pending rows that ride along. ahead: decodes rounds of fixed shape, where it can.
    """
    row_B = batch.slots.rows(begun=True)
    if not len(row_B):
        return None
    started, before = time.perf_counter(), batch.clock.seconds
    num_riding = 0 if chunk is None else chunk.num_tokens
    is_plain = is_plain_round(batch, round_number)
    looked_up = None if is_plain else look_up(batch, row_B)
    if is_plain:
        plan = _plain_plan(len(row_B))
    else:
        plan = batch.policy.plan(view(batch, row_B, looked_up, num_waiting, num_riding))
    num_caught_up = catch_up(batch, row_B, plan)
    catch_up_seconds = (batch.clock.seconds - before).prefill
    has_fixed_shape = ahead is not None and ahead.captured.can_launch(row_B, plan)
    if ahead is not None and has_fixed_shape and chunk is None:
        prepare_seconds = time.perf_counter() - started - catch_up_seconds
        return ahead.decode(row_B, plan, looked_up, is_plain, (num_caught_up, catch_up_seconds), prepare_seconds)
    proposals = propose(batch, row_B, plan, looked_up)
    logits_NV = score(batch, row_B, proposals, chunk)
    if chunk is None:
        settled = settle_and_commit(batch, row_B, proposals, logits_NV)
        verdict = settled.verdict
    else:
        follow_chunk(batch, chunk)
        all_B = np.sort(np.concatenate((row_B, chunk.done)))
        settled = settle_and_commit(batch, all_B, proposals.among(row_B, all_B), logits_NV)
        verdict = settled.verdict.of(np.isin(all_B, row_B))
    elapsed, spent = time.perf_counter() - started, batch.clock.seconds - before
    batch.policy.observe(
        RoundMeasure(
            num_scored=len(row_B) + int(plan.draft_length_B.sum()) + num_riding,
            num_draft_steps=plan.num_draft_steps,
            propose_seconds=spent.propose,
            score_seconds=spent.score,
            other_seconds=elapsed - spent.propose - spent.score - spent.prefill,
            catch_up_seconds=catch_up_seconds,
            num_catch_up_tokens=num_caught_up,
            draft_length_B=verdict.num_proposed_B,
            matched_B=verdict.num_accepted_B,
            is_model_B=plan.is_model_B,
            match_B=kind_of_match(looked_up, len(row_B)),
            # Without its prompts the round would have been launched as one piece, at a fraction of the price.
            is_typical=not has_fixed_shape,
        )
    )
    return RoundResult(
        finished=settled.finished,
        num_tokens=int(settled.verdict.num_committed_B.sum()),
        is_plain=is_plain,
        is_mixed=num_riding > 0,
        seconds=time.perf_counter() - started,
        verdict=verdict,
    )


def look_up(batch: Batch, row_B: IntArray) -> Proposal | None:
    """What the suffix index would propose, if the policy cares."""
    if batch.suffix is None or not batch.policy.uses_suffix:
        return None
    with batch.clock.timed("propose"):
        return batch.suffix.propose(row_B, batch.policy.max_draft_length)


def catch_up(batch: Batch, row_B: IntArray, plan: RoundPlan) -> int:
    """Feed the draft what it lacks where that is much, after a stretch without it; returns the tokens it read."""
    slots = batch.slots
    lacking_B = slots.length_S[row_B] - slots.draft_kv_S[row_B]
    late = row_B[(lacking_B > STEADY_LACK) & plan.is_model_B & (plan.draft_length_B > 0)]
    if batch.draft is None or not len(late):
        return 0
    with batch.clock.timed("prefill"):
        return feed_draft(batch, batch.draft, late, slots.length_S[late] - 1)


def propose(batch: Batch, row_B: IntArray, plan: RoundPlan, looked_up: Proposal | None) -> Proposals:
    """Drafts of the round: of the draft model for some rows, of the suffix index for others."""
    K = int(plan.draft_length_B.max())
    if K == 0:
        return Proposals.none(len(row_B), batch.device)
    with batch.clock.timed("propose"):
        draft_BK = torch.zeros((len(row_B), K), dtype=torch.int64, device=batch.device)
        if looked_up is not None:
            draft_BK += batch.tensor(looked_up.token_BK[:, :K])
        q_logits: list[Tensor] = []
        chosen = np.nonzero(plan.is_model_B & (plan.draft_length_B > 0))[0]
        if batch.draft is not None and len(chosen):
            q_logits = _run_draft(batch, batch.draft, row_B, chosen, plan.draft_length_B, draft_BK)
        return Proposals(draft_BK, plan.draft_length_B, plan.is_model_B, q_logits)


def _run_draft(
    batch: Batch, draft: Decoder, row_B: IntArray, chosen: IntArray, draft_length_B: IntArray, draft_BK: Tensor
) -> list[Tensor]:
    """The draft model's own draws for the chosen rows, written into ``draft_BK``; their q with the ratio test.

    The first step feeds every token that the draft's cache lacks: one behind a refusal, two behind a round that
    accepted everything. A step feeds only the rows that propose in it.
    """
    slots = batch.slots
    sampling = batch.sampling(row_B)
    length_B = slots.length_S[row_B]
    index_B = length_B - slots.prompt_length_S[row_B]
    lengths_B2 = np.stack((length_B, slots.prompt_length_S[row_B]), axis=1)
    token_BP = slots.history(row_B) if sampling.needs_history else slots.token_SP[:0]
    q_logits = []
    for j in range(int(draft_length_B[chosen].max())):
        rows = chosen[draft_length_B[chosen] > j]
        start = slots.draft_kv_S[row_B[rows]] if j == 0 else length_B[rows] - 1 + j
        layout = batch.layout(row_B[rows], start, length_B[rows] + j - start)
        picked = batch.tensor(rows)
        feed = batch.feed(layout) if j == 0 else layout.feed(draft_BK[picked, j - 1])
        keep_N = np.cumsum(length_B[rows] + j - start) - 1
        logits_NV = draft.run(feed, keep_N)
        window_NJ = draft_BK[picked, :j] if sampling.needs_history else None
        positions = batch.positions(sampling, rows, index_B[rows] + j, token_BP, lengths_B2, window_NJ)
        if batch.has_ratio_test:
            q_NV = transformed_logits(logits_NV, positions, sampling)
            start_N = batch.tensor(index_B[rows])
            token_N = propose_token(q_NV, sampling.seed_B[positions.row_N], start_N, positions.index_N)
            q_BV = torch.zeros((len(row_B), q_NV.shape[1]), dtype=q_NV.dtype, device=batch.device)
            q_logits.append(q_BV.index_copy_(0, picked, q_NV))
        else:
            token_N = draw_draft(logits_NV, positions, sampling)
        draft_BK[picked, j] = token_N
    return q_logits


def score(batch: Batch, row_B: IntArray, proposals: Proposals, chunk: Chunk | None) -> Tensor:
    """The target's logits [N, V] behind the last committed token of each row and behind each of its drafts.

    Where a chunk of prompts rides along, logits behind every prompt that ends in it are among them, slots in order.
    """
    slots, (B, K) = batch.slots, proposals.draft_BK.shape
    with batch.clock.timed("score"):
        length_B = slots.length_S[row_B]
        last_B1 = batch.tensor(slots.token_SP[row_B, length_B - 1]).unsqueeze(1)
        own_X = torch.cat((last_B1, proposals.draft_BK), dim=1).flatten()
        count_B, start_B = proposals.draft_length_B + 1, length_B - 1
        if chunk is None:
            layout = batch.layout(row_B, start_B, count_B)
            return batch.target.run(layout.feed(own_X[batch.tensor(_places(count_B, K))]), None)
        all_B = np.concatenate((row_B, chunk.row_B))
        order = np.argsort(all_B)
        all_count_B = np.concatenate((count_B, chunk.count_B))
        layout = batch.layout(all_B[order], np.concatenate((start_B, chunk.start_B))[order], all_count_B[order])
        # Each token is one of the round's own, or stands in the prompts, behind those in one flat tensor.
        prompt_M = slots.token_SP[layout.slot_M, layout.position_M]
        is_own_M = np.repeat(np.isin(all_B[order], row_B), all_count_B[order])
        place_M = B * (K + 1) + np.arange(layout.num_tokens)
        place_M[is_own_M] = _places(count_B, K)
        token_M = torch.cat((own_X, batch.tensor(prompt_M)))[batch.tensor(place_M)]
        is_kept_M = is_own_M.copy()
        is_kept_M[(np.cumsum(all_count_B[order]) - 1)[np.isin(all_B[order], chunk.done)]] = True
        return batch.target.run(layout.feed(token_M), np.flatnonzero(is_kept_M))


def _places(count_B: IntArray, K: int) -> IntArray:
    """Places in [B, K + 1] of each row's first ``count_B`` entries, flat."""
    first_B = np.cumsum(count_B) - count_B
    row_N = np.repeat(np.arange(len(count_B)), count_B)
    place_N: IntArray = row_N * (K + 1) + np.arange(len(row_N)) - first_B[row_N]
    return place_N


def _plain_plan(num_rows: int) -> RoundPlan:
    return RoundPlan(np.zeros(num_rows, dtype=np.int64), np.zeros(num_rows, dtype=np.bool_))
