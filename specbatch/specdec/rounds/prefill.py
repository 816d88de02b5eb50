"""Prefill: pending rows read their prompts in chunks, packed without padding, for target and draft together.

One chunk per step, so that rows that decode never wait for a long prompt, and rows of all lengths share a chunk. It
rides along in the forward that scores the step's round, which saves a pass over the weights; where no row decodes, or
the round is one of those that measure plain decoding, it is fed alone. The row whose prompt ends in the chunk says its
first token: a plain step.

Shape letters: B rows of the chunk, N positions whose logits are kept, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specbatch.specdec.accept import BoolArray, IntArray
from specbatch.specdec.forward.feed import Decoder
from specbatch.specdec.output import SequenceOutput
from specbatch.specdec.rounds.settling import Proposals, settle_and_commit
from specbatch.specdec.rows.batch import Batch
from specbatch.specdec.rows.prefix import plan_sharing

CHUNK_TOKENS = 512
"""Tokens of one chunk: enough to be bound by arithmetic, little enough not to hold up the rows that decode."""

DEVICE_CHUNK_TOKENS = 2048
"""The same on a GPU, whose matrix units want more of them at once."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens that some pending rows are fed, in ascending slots: ``count_B`` from ``start_B`` on.

    Attributes:
        is_done_B: the row's prompt ends in the chunk, so that its first token is drawn.
    """

    row_B: IntArray
    start_B: IntArray
    count_B: IntArray
    is_done_B: BoolArray

    @property
    def num_tokens(self) -> int:
        return int(self.count_B.sum())

    @property
    def done(self) -> IntArray:
        """Slots of the rows whose prompt ends in the chunk."""
        return self.row_B[self.is_done_B]


def plan_chunk(batch: Batch) -> Chunk | None:
    """What pending rows are fed in this step, beginnings that are held elsewhere copied first; None if none is pending.

    The oldest rows come first; rows that begin like one that is being read wait for it, and copy. Rows behind a full
    chunk are not looked at: they copy when their turn comes, from the rows before them, which hold what they have read.
    """
    slots = batch.slots
    pending = slots.rows(begun=False)
    if not len(pending):
        return None
    by_age = sorted((int(slot) for slot in pending), key=slots.opened.__getitem__)
    chosen: list[int] = []
    budget = left = _chunk_tokens(batch)
    for slot in by_age:
        if left <= 0:
            break
        known = slots.token_SP[slot, : slots.length_S[slot] - 1]
        own = int(slots.target_kv_S[slot])
        sharing = plan_sharing(slot, own, known, slots.token_SP, slots.target_kv_S, slots.length_S, chosen)
        if sharing is not None and sharing.must_wait:
            continue
        if sharing is not None:
            batch.share(sharing.source, slot, sharing.num_tokens)
        chosen.append(slot)
        left -= int(slots.length_S[slot] - slots.target_kv_S[slot])
    count = _within(slots.length_S[chosen] - slots.target_kv_S[chosen], budget)
    row_B = np.array(chosen, dtype=np.int64)[count > 0]
    count_B = count[count > 0]
    order = np.argsort(row_B)
    row_B, count_B = row_B[order], count_B[order]
    start_B = slots.target_kv_S[row_B]
    return Chunk(row_B, start_B, count_B, start_B + count_B == slots.length_S[row_B])


def read_chunk(batch: Batch, chunk: Chunk) -> list[SequenceOutput]:
    """Feed a chunk in a forward of its own; returns the rows that ended with their first token."""
    with batch.clock.timed("prefill"):
        layout = batch.layout(chunk.row_B, chunk.start_B, chunk.count_B)
        keep_N = (np.cumsum(chunk.count_B) - 1)[chunk.is_done_B]
        logits_NV = batch.target.run(batch.feed(layout), keep_N)
    follow_chunk(batch, chunk)
    done = chunk.done
    if not len(done):
        return []
    return settle_and_commit(batch, done, Proposals.none(len(done), batch.device), logits_NV).finished


def follow_chunk(batch: Batch, chunk: Chunk) -> None:
    """Behind the target's forward: let the draft read it too, if it is in use; then book what the target has read.

    Until a row's first token is committed memory may run out, and the logits are gone then. So the draft reads first,
    and a row whose prompt ends in the chunk is booked with that token: where something fails before, it is read again.
    """
    if batch.draft is not None and batch.policy.wants_draft:
        with batch.clock.timed("prefill"):
            feed_draft(batch, batch.draft, chunk.row_B, chunk.start_B + chunk.count_B)
    batch.slots.target_kv_S[chunk.row_B] += np.where(chunk.is_done_B, 0, chunk.count_B)


def feed_draft(batch: Batch, draft: Decoder, row_B: IntArray, end_B: IntArray) -> int:
    """Bring the draft's cache of some rows up to ``end_B`` tokens, or to the draft's context; returns how many it read.

    Chunks bound the memory of the forwards.
    """
    slots = batch.slots
    end_B = np.minimum(end_B, draft.context_length)
    num_fed = 0
    while True:
        start_B = slots.draft_kv_S[row_B]
        count_B = _within(np.maximum(end_B - start_B, 0), _chunk_tokens(batch))
        fed = count_B > 0
        if not fed.any():
            return num_fed
        layout = batch.layout(row_B[fed], start_B[fed], count_B[fed])
        draft.run(batch.feed(layout), np.zeros(0, dtype=np.int64))
        slots.draft_kv_S[row_B] += count_B
        num_fed += int(count_B.sum())


def _chunk_tokens(batch: Batch) -> int:
    return DEVICE_CHUNK_TOKENS if batch.device.type == "cuda" else CHUNK_TOKENS


def _within(wanted_B: IntArray, budget: int) -> IntArray:
    """As much of each as fits into a common budget, first come first served."""
    before_B = np.cumsum(wanted_B) - wanted_B
    granted_B: IntArray = np.clip(budget - before_B, 0, wanted_B)
    return granted_B
