"""Prefill: pending rows read their prompts in chunks, packed without padding, for target and draft together.

One chunk per step, so that rows that decode never wait for a long prompt, and rows of all lengths share a chunk. The
row whose prompt ends in the chunk says its first token: a plain step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specbatch.specdec.accept import IntArray
from specbatch.specdec.batch import Batch
from specbatch.specdec.feed import Decoder
from specbatch.specdec.output import SequenceOutput
from specbatch.specdec.prefix import plan_sharing
from specbatch.specdec.settling import Proposals, settle_and_commit

CHUNK_TOKENS = 512
"""Tokens of one chunk: enough to be bound by arithmetic, little enough not to hold up the rows that decode."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens that some pending rows are fed, in ascending slots: ``count_B`` from ``start_B`` on."""

    row_B: IntArray
    start_B: IntArray
    count_B: IntArray


def prefill(batch: Batch) -> list[SequenceOutput]:
    """Feed pending rows one chunk; returns the rows that ended with their first token."""
    pending = batch.slots.rows(begun=False)
    if not len(pending):
        return []
    with batch.clock.timed("prefill"):
        chunk = _plan_chunk(batch, pending)
        layout = batch.layout(chunk.row_B, chunk.start_B, chunk.count_B)
        length_B = batch.slots.length_S[chunk.row_B]
        is_done_B = chunk.start_B + chunk.count_B == length_B
        keep_N = (np.cumsum(chunk.count_B) - 1)[is_done_B]
        logits_NV = batch.target.run(batch.feed(layout), keep_N)
        batch.slots.target_kv_S[chunk.row_B] += chunk.count_B
        if batch.draft is not None and batch.policy.wants_draft:
            feed_draft(batch, batch.draft, chunk.row_B, chunk.start_B + chunk.count_B)
        done = chunk.row_B[is_done_B]
        if not len(done):
            return []
    return settle_and_commit(batch, done, Proposals.none(len(done), batch.device), logits_NV).finished


def feed_draft(batch: Batch, draft: Decoder, row_B: IntArray, end_B: IntArray) -> int:
    """Bring the draft's cache of some rows up to ``end_B`` tokens, or to the draft's context; returns how many it read.

    Chunks bound the memory of the forwards.
    """
    slots = batch.slots
    end_B = np.minimum(end_B, draft.context_length)
    num_fed = 0
    while True:
        start_B = slots.draft_kv_S[row_B]
        count_B = _within(np.maximum(end_B - start_B, 0), CHUNK_TOKENS)
        fed = count_B > 0
        if not fed.any():
            return num_fed
        layout = batch.layout(row_B[fed], start_B[fed], count_B[fed])
        draft.run(batch.feed(layout), np.zeros(0, dtype=np.int64))
        slots.draft_kv_S[row_B] += count_B
        num_fed += int(count_B.sum())


def _plan_chunk(batch: Batch, pending: IntArray) -> Chunk:
    """The oldest rows first; rows that begin like one that is being read wait for it, and copy."""
    slots = batch.slots
    by_age = sorted((int(slot) for slot in pending), key=slots.opened.__getitem__)
    chosen: list[int] = []
    for slot in by_age:
        known = slots.token_SP[slot, : slots.length_S[slot] - 1]
        own = int(slots.target_kv_S[slot])
        sharing = plan_sharing(slot, own, known, slots.token_SP, slots.target_kv_S, slots.length_S, chosen)
        if sharing is not None and sharing.must_wait:
            continue
        if sharing is not None:
            batch.share(sharing.source, slot, sharing.num_tokens)
        chosen.append(slot)
    lacking = slots.length_S[chosen] - slots.target_kv_S[chosen]
    count = _within(lacking, CHUNK_TOKENS)
    row_B = np.array(chosen, dtype=np.int64)[count > 0]
    count_B = count[count > 0]
    order = np.argsort(row_B)
    row_B, count_B = row_B[order], count_B[order]
    return Chunk(row_B, slots.target_kv_S[row_B], count_B)


def _within(wanted_B: IntArray, budget: int) -> IntArray:
    """As much of each as fits into a common budget, first come first served."""
    before_B = np.cumsum(wanted_B) - wanted_B
    granted_B: IntArray = np.clip(budget - before_B, 0, wanted_B)
    return granted_B
