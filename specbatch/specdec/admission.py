"""Admission: free slots are filled from the queue, prompts are run through both models, first tokens committed.

Shape letters: B rows of a prefill group, T tokens per row, V vocabulary.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from torch import Tensor

from specbatch.specdec.batch import Batch
from specbatch.specdec.output import SequenceOutput
from specbatch.specdec.prefill import PrefillGroup, plan_prefill
from specbatch.specdec.runner import ModelRunner
from specbatch.specdec.sampling import SamplingTensors, draw_target
from specbatch.specdec.slots import Request


def admit(batch: Batch, queue: deque[Request]) -> list[SequenceOutput]:
    """Fill closed and unused slots, then close the gaps; returns the rows that ended with their first token."""
    slots = batch.slots
    finished: list[SequenceOutput] = []
    while queue and (free := [*slots.closed_slots(), *range(slots.num_active, slots.num_slots)]):
        requests = [queue.popleft() for _ in range(min(len(free), len(queue)))]
        # Neighbours of like length share a forward with little padding; the order of admission never shows in the text.
        requests.sort(key=lambda request: len(request.prompt_ids))
        with batch.clock.timed("prefill"):
            finished += _prefill(batch, free, requests)
    batch.compact()
    return finished


def feed(batch: Batch, runner: ModelRunner, group: PrefillGroup, start: int = 0) -> Tensor:
    """Run positions ``start`` .. of consecutive slots through a model, in chunks.

    Rows are padded on the right: what padding writes lies beyond the row's length and is overwritten later.

    Returns:
        logits [B, V] behind each row's last position.
    """
    slots, B = batch.slots, len(group.lengths)
    kept: dict[int, Tensor] = {}
    for begin, end in group.chunks(start):
        last_T = sorted({length - 1 - begin for length in group.lengths if begin < length <= end})
        token_BT = slots.tensor(slots.token_SP[group.first_slot : group.first_slot + B, begin:end])
        position_BT = torch.arange(begin, end, device=slots.device).expand(B, -1)
        keep = torch.tensor(last_T or [0], device=slots.device)
        logits_BTV = runner.forward(token_BT, position_BT, group.first_slot, end, logits_to_keep=keep)
        for row, length in enumerate(group.lengths):
            if begin < length <= end:
                kept[row] = logits_BTV[row, last_T.index(length - 1 - begin)]
    return torch.stack([kept[row] for row in range(B)])


def _prefill(batch: Batch, free: list[int], requests: list[Request]) -> list[SequenceOutput]:
    slots = batch.slots
    batch.reserve(max(len(request.prompt_ids) + request.num_new_tokens for request in requests))
    opened = sorted(free[: len(requests)])
    for slot, request in zip(opened, requests, strict=True):
        slots.open(slot, request)
    slots.num_active = max(slots.num_active, opened[-1] + 1)
    finished: list[SequenceOutput] = []
    for group in plan_prefill(opened, [len(request.prompt_ids) for request in requests]):
        logits_BV = feed(batch, batch.target, group)
        if batch.draft is not None and batch.policy.wants_draft and min(group.lengths) < batch.draft.context_length:
            feed(batch, batch.draft, group)
            slots.draft_kv_S[group.first_slot : group.first_slot + len(group.lengths)] = group.lengths
        finished += _commit_first_tokens(batch, group, logits_BV)
    return finished


def _commit_first_tokens(batch: Batch, group: PrefillGroup, logits_BV: Tensor) -> list[SequenceOutput]:
    """The forward that ends prefill commits one token of each row: a plain step."""
    slots, B = batch.slots, len(group.lengths)
    opened = range(group.first_slot, group.first_slot + B)
    params = [request.params for slot in opened if (request := slots.requests[slot]) is not None]
    index_BT = torch.zeros((B, 1), dtype=torch.int64, device=slots.device)
    sampling = SamplingTensors.from_params(params, slots.device)
    draw = draw_target(logits_BV[:, None], index_BT, sampling, batch.epsilon)
    token_B, margin_B, is_stable_B, is_finite_B = (
        tensor.flatten().cpu().numpy()
        for tensor in (draw.token_BT, draw.margin_BT, draw.is_stable_BT, draw.is_finite_BT)
    )
    finished = []
    for row, slot in enumerate(opened):
        token, is_broken = int(token_B[row]), not is_finite_B[row]
        if batch.epsilon > 0 and not is_stable_B[row]:
            token = batch.canonical_token(slot, np.empty(0, dtype=np.int64))
        slots.token_SP[slot, slots.length_S[slot]] = token
        slots.length_S[slot] += 1
        slots.plain_steps_S[slot] = 1
        slots.margin_S[slot] = margin_B[row]
        is_stopped = bool((slots.stop_SX[slot] == token).any())
        if is_stopped or is_broken or slots.length_S[slot] >= slots.end_S[slot]:
            finished.append(batch.retire(slot, is_stopped=is_stopped, is_broken=is_broken))
    return finished
