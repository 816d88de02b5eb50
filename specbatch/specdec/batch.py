"""The rows in flight with the two resident models: what admission and decoding share.

Rows stand in slots 0 .. num_active - 1 of both caches and of the slot table at once; whatever moves, grows or ends a
row does so in all three.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.stats import PhaseSeconds, SpecCounters
from specbatch.specdec.accept import IntArray
from specbatch.specdec.controller import Policy
from specbatch.specdec.output import SequenceOutput
from specbatch.specdec.runner import ModelRunner
from specbatch.specdec.sampling import SamplingTensors, draw_target
from specbatch.specdec.slots import SlotTable
from specbatch.specdec.tokenizer import Tokenizer

NEAR_TIE_EPSILON = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.0, torch.float16: 0.0}
"""Logit gap below which a token is decided by canonical evaluation; 0 is off (half precision rounds far coarser)."""

POSITIONS_STEP = 256


class PhaseClock:
    """Wall seconds by phase."""

    def __init__(self) -> None:
        self.seconds = PhaseSeconds()

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to a phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self.seconds = replace(self.seconds, **{phase: getattr(self.seconds, phase) + elapsed})


class Batch:
    """Slots, models and clock of one engine.

    Attributes:
        epsilon: near-tie threshold in logits; 0 is off. policy: chooses K.
    """

    def __init__(
        self, target: ModelRunner, draft: ModelRunner | None, tokenizer: Tokenizer, num_slots: int, policy: Policy
    ) -> None:
        self.target = target
        self.draft = draft
        self.tokenizer = tokenizer
        self.policy = policy
        self.epsilon = NEAR_TIE_EPSILON[target.dtype]
        self.clock = PhaseClock()
        self.slots = SlotTable(num_slots, target.cache.max_positions, policy.max_draft_length, target.device)

    @property
    def runners(self) -> list[ModelRunner]:
        """The resident models, target first."""
        return [self.target] if self.draft is None else [self.target, self.draft]

    def reserve(self, num_tokens: int) -> None:
        """Lengthen the slots where a row needs more positions; drafts may stand beyond the last committed token."""
        needed = num_tokens + self.policy.max_draft_length + 1
        if needed > self.slots.max_positions:
            grown = -(-needed // POSITIONS_STEP) * POSITIONS_STEP
            self.slots.grow(grown)
            for runner in self.runners:
                runner.cache.grow(grown)

    def compact(self) -> None:
        """Move the last rows into closed slots, so that the active rows are the first ones."""
        slots = self.slots
        for slot in slots.closed_slots():
            while slots.num_active > slot and slots.requests[slots.num_active - 1] is None:
                slots.num_active -= 1
            if slots.num_active <= slot:
                return
            source = slots.num_active - 1
            length = int(slots.length_S[source])
            slots.move(source, slot)
            for runner in self.runners:
                runner.cache.move(source, slot, length)
            slots.num_active -= 1

    def canonical_token(self, slot: int, token_J: IntArray) -> int:
        """The draw behind the committed tokens of a row and ``token_J``, evaluated from the row alone.

        Every run that comes to this prefix gets the same token, whatever the batch around it.
        """
        slots, request = self.slots, self.slots.requests[slot]
        assert request is not None
        prefix = np.concatenate((slots.token_SP[slot, : slots.length_S[slot]], token_J))
        logits_V = self.target.canonical_logits(slots.tensor(prefix))
        index_BT = torch.tensor([[len(prefix) - len(request.prompt_ids)]], device=slots.device)
        sampling = SamplingTensors.from_params([request.params], slots.device)
        slots.near_ties_S[slot] += 1
        return int(draw_target(logits_V[None, None], index_BT, sampling, 0.0).token_BT)

    def retire(self, slot: int, *, is_stopped: bool, is_broken: bool) -> SequenceOutput:
        """Close a slot and give what its row has become; a broken row leaves nothing behind in its slot."""
        slots, request = self.slots, self.slots.requests[slot]
        assert request is not None
        num_prompt_tokens = len(request.prompt_ids)
        slots.close(slot)
        if is_broken:
            for runner in self.runners:
                runner.cache.clear(slot)
            return SequenceOutput(
                key=request.key,
                num_prompt_tokens=num_prompt_tokens,
                text=None,
                token_ids=(),
                finish_reason="error",
                stats=SpecCounters(),
                error_code=ErrorCode.ROW_NUMERIC.value,
                error_message="the target's logits are not finite; the weights or the device are damaged",
            )
        token_ids = tuple(int(t) for t in slots.token_SP[slot, num_prompt_tokens : slots.length_S[slot]])
        return SequenceOutput(
            key=request.key,
            num_prompt_tokens=num_prompt_tokens,
            text=self.tokenizer.decode(token_ids[:-1] if is_stopped else token_ids),
            token_ids=token_ids,
            finish_reason="stop" if is_stopped else "length",
            stats=slots.counters(slot),
            min_margin=float(slots.margin_S[slot]),
            num_near_ties=int(slots.near_ties_S[slot]),
        )
