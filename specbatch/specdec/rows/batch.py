"""The rows in flight with the two resident models: what admission, prefill and decoding share.

Rows stand in the slots of the slot table and of both caches at once; whatever moves, grows or ends a row does so in all
of them.

Shape letters: S slots, B rows of a round, R slots of a segment each, P positions, M tokens of a forward, N scored
positions, J drafts before one of them, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from specbatch.schemas.errors import ErrorCode
from specbatch.specdec.accept import IntArray
from specbatch.specdec.drafters.suffix import SuffixIndex
from specbatch.specdec.forward.feed import GROUP_WIDTH, Decoder, Feed, Layout, on_device
from specbatch.specdec.forward.paged_memory import PagedMemory, pages_of
from specbatch.specdec.output import SequenceOutput, error_output
from specbatch.specdec.policy.controller import Policy
from specbatch.specdec.rows.clock import PhaseClock
from specbatch.specdec.rows.prefix import common_prefix
from specbatch.specdec.rows.slots import Request, SlotTable
from specbatch.specdec.sampling.draw import History, Positions, SamplingTensors, draw_target
from specbatch.specdec.tokenizer import Tokenizer

NEAR_TIE_EPSILON = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.0, torch.float16: 0.0}
"""Logit gap below which a token is decided by canonical evaluation; 0 is off (half precision rounds far coarser)."""

POSITIONS_STEP = 256
SLACK_POSITIONS = 3 * GROUP_WIDTH
"""Drafts stand beyond a row's committed tokens, up to one group's width; what padding writes stands beyond those."""


class Batch:
    """Slots, models and clock of one engine.

    Args:
        suffix: index over all text seen, or None.
        max_kv_tokens: slots times positions that the caches may have; None is without bound.
        has_ratio_test: the coupling is ``distribution``.

    Attributes:
        epsilon: near-tie threshold in logits; 0 is off. policy: chooses K and drafter of every row.
        pages: the page table, where the target's keys and values are in pages; None where they are in slots.
    """

    def __init__(
        self,
        target: Decoder,
        draft: Decoder | None,
        tokenizer: Tokenizer,
        num_slots: int,
        policy: Policy,
        *,
        suffix: SuffixIndex | None = None,
        max_kv_tokens: int | None = None,
        has_ratio_test: bool = False,
    ) -> None:
        self.target = target
        self.draft = draft
        self.tokenizer = tokenizer
        self.policy = policy
        self.max_kv_tokens = max_kv_tokens
        self.has_ratio_test = has_ratio_test
        # The law of a draw does not hang on a near tie, and nobody promises the text there.
        has_near_ties = target.settles_near_ties and not has_ratio_test
        self.epsilon = NEAR_TIE_EPSILON[target.dtype] if has_near_ties else 0.0
        self.clock = PhaseClock(target.device)
        if (pages := pages_of(target)) is not None:
            pages.release_all()
            pages.resize(num_slots)
        self.pages = pages
        positions = target.cache.max_positions if pages is None else POSITIONS_STEP
        self.slots = SlotTable(num_slots, positions, policy.max_draft_length)
        self.suffix = suffix
        self._sampling: dict[tuple[int, bytes], SamplingTensors] = {}

    @property
    def device(self) -> torch.device:
        return self.target.device

    @property
    def decoders(self) -> list[Decoder]:
        """The resident models, target first."""
        return [self.target] if self.draft is None else [self.target, self.draft]

    # ---- rows and slots --------------------------------------------------------------------------------------------

    def open(self, slot: int, request: Request) -> None:
        """Put a request into a free slot; what the slot's caches hold of its beginning stays valid."""
        slots = self.slots
        num_held = int(self.num_held(np.array([slot]), request)[0])
        if self.pages is not None:
            num_held = self.pages.keep(slot, num_held)
        slots.target_kv_S[slot] = num_held
        slots.draft_kv_S[slot] = min(num_held, slots.draft_kv_S[slot])
        slots.open(slot, request)
        if self.suffix is not None:
            row = slots.token_SP[slot, : slots.length_S[slot]]
            self.suffix.open(slot, row, int(slots.end_S[slot] - slots.length_S[slot]))

    def best_slot(self, request: Request) -> tuple[int, int]:
        """The free slot that holds most of a request's prompt, the lowest of those, and how many tokens it holds."""
        free = self.slots.free_slots()
        held = self.num_held(np.array(free), request)
        return free[held.argmax()], int(held.max())

    def num_held(self, slot_R: IntArray, request: Request) -> IntArray:
        """Tokens of a request's prompt that the target's cache holds in free slots, the last one left out."""
        token_P = np.array(request.prompt_ids[:-1], dtype=np.int64)
        return common_prefix(self.slots.token_SP, self.slots.target_kv_S, token_P, slot_R)

    def share(self, source: int, destination: int, num_tokens: int) -> None:
        """Copy the beginning of one slot's caches to another."""
        slots = self.slots
        if self.pages is not None:
            num_tokens = self.pages.share(source, destination, num_tokens)
        else:
            self.target.cache.copy(source, destination, num_tokens)
        slots.target_kv_S[destination] = num_tokens
        if self.draft is None:
            return
        num_drafted = min(num_tokens, int(slots.draft_kv_S[source]))
        if pages_of(self.draft) is not None:
            slots.draft_kv_S[destination] = num_drafted
        elif num_drafted > slots.draft_kv_S[destination]:
            self.draft.cache.copy(source, destination, num_drafted)
            slots.draft_kv_S[destination] = num_drafted

    def resize(self, num_slots: int, max_positions: int) -> None:
        """Give slots and caches another shape.

        The slot table comes last: where memory runs out on the way it still says what every layer can be brought to.
        """
        for decoder in self.decoders:
            decoder.cache.resize(num_slots, max_positions)
        self.slots.resize(num_slots, max_positions)

    def compact(self) -> None:
        """Move the last rows into closed slots, so that attention reads as few slots as there are rows."""
        slots = self.slots
        for slot in slots.closed_slots():
            source = slots.num_active - 1
            if source <= slot:
                return
            num_positions = int(slots.length_S[source])
            if self.pages is not None:
                self.pages.table.move(source, slot)
            for decoder in self.decoders:
                if pages_of(decoder) is None:
                    decoder.cache.copy(source, slot, num_positions)
            slots.move(source, slot)
            if self.pages is not None:  # the pages went with the row; in slots a copy stays behind
                slots.target_kv_S[source] = slots.draft_kv_S[source] = 0
            if self.suffix is not None:
                self.suffix.move(source, slot)

    def drop_draft(self) -> None:
        """Give the draft's memory back."""
        if self.draft is not None and isinstance(self.draft.cache, PagedMemory):
            self.draft.cache.pages.drop(self.draft.cache)
        self.draft = None
        self.slots.draft_kv_S[:] = 0

    def preempt(self, slot: int) -> Request:
        """Take a row out of its slot; the request that is returned goes on where the row stood."""
        request = replace(self.slots.request(slot), state=self.slots.state(slot))
        self._close(slot)
        return request

    def retire(self, slot: int, *, is_stopped: bool, is_broken: bool = False) -> SequenceOutput:
        """Close a slot and give what its row has become; a broken row leaves nothing behind in its slot."""
        if is_broken:
            message = "the target's logits are not finite; the weights or the device are damaged"
            return self.fail(slot, ErrorCode.ROW_NUMERIC, message)
        slots, request = self.slots, self.slots.request(slot)
        begin, end = len(request.prompt_ids), int(slots.length_S[slot])
        token_ids = tuple(slots.token_SP[slot, begin:end].tolist())
        ends_in_stop_id = is_stopped and token_ids[-1] in request.stop_ids
        if request.matcher is not None:
            text = request.matcher.text(token_ids, ends_in_stop_id=ends_in_stop_id)
        else:
            text = self.tokenizer.decode(token_ids[:-1] if ends_in_stop_id else token_ids)
        logprobs = tuple(slots.logprob_SP[slot, begin:end].tolist()) if request.params.logprobs else None
        self._close(slot)
        return SequenceOutput(
            key=request.key,
            num_prompt_tokens=begin,
            text=text,
            token_ids=token_ids,
            finish_reason="stop" if is_stopped else "length",
            stats=slots.counters(slot),
            min_margin=float(slots.margin_S[slot]) if np.isfinite(slots.margin_S[slot]) else None,
            num_near_ties=int(slots.near_ties_S[slot]),
            logprobs=logprobs,
        )

    def fail(self, slot: int, code: ErrorCode, message: str) -> SequenceOutput:
        """Close a slot whose row cannot be decoded, and wipe it."""
        request = self.slots.request(slot)
        self._close(slot)
        self.slots.target_kv_S[slot] = self.slots.draft_kv_S[slot] = 0
        for decoder in self.decoders:
            decoder.cache.clear(slot)
        return error_output(request.key, len(request.prompt_ids), code, message)

    def _close(self, slot: int) -> None:
        self.slots.close(slot)
        if self.suffix is not None:
            self.suffix.close(slot)

    # ---- what a forward needs --------------------------------------------------------------------------------------

    def layout(self, row_B: IntArray, start_B: IntArray, count_B: IntArray) -> Layout:
        """Segments of some rows, ascending; slots between them get segments of no tokens.

        The generic path writes padding even for those, so they start where neither tokens nor drafts can be.
        """
        slot_R = np.arange(int(row_B[0]), int(row_B[-1]) + 1)
        start_R = self.slots.length_S[slot_R] + GROUP_WIDTH
        count_R = np.zeros(len(slot_R), dtype=np.int64)
        start_R[row_B - slot_R[0]] = start_B
        count_R[row_B - slot_R[0]] = count_B
        return Layout(slot_R, start_R, count_R)

    def feed(self, layout: Layout) -> Feed:
        """Committed tokens, where a layout has them."""
        return layout.feed(self.tensor(self.slots.token_SP[layout.slot_M, layout.position_M]))

    def tensor(self, array: IntArray) -> Tensor:
        """An int64 host array on the device."""
        return on_device(array, self.device)

    def sampling(self, row_B: IntArray) -> SamplingTensors:
        """Sampling parameters of some rows; two sets are kept, as a round in which a prompt ends asks for two."""
        key = self.slots.version, row_B.tobytes()
        if key not in self._sampling:
            kept = [item for item in self._sampling.items() if item[0][0] == key[0]][-1:]
            made = self._sampling_of([self.slots.request(int(slot)) for slot in row_B])
            self._sampling = dict([*kept, (key, made)])
        return self._sampling[key]

    def canonical_token(self, slot: int, token_J: IntArray) -> tuple[int, float]:
        """The draw behind the committed tokens of a row and ``token_J``, from the row alone, and its logprob.

        Every run that comes to this prefix gets the same token, whatever the batch around it.
        """
        slots, request = self.slots, self.slots.request(slot)
        prefix = np.concatenate((slots.token_SP[slot, : slots.length_S[slot]], token_J))
        logits_V = self.target.canonical_logits(self.tensor(prefix))
        sampling = self._sampling_of([request])
        positions = self.positions(
            sampling,
            np.zeros(1, dtype=np.int64),
            np.array([len(prefix) - len(request.prompt_ids)]),
            prefix[None],
            np.array([[len(prefix), len(request.prompt_ids)]]),
        )
        draw = draw_target(logits_V[None], positions, sampling, 0.0, is_final=True)
        slots.near_ties_S[slot] += 1
        return int(draw.token_N), 0.0 if draw.logprob_N is None else float(draw.logprob_N)

    def positions(
        self,
        sampling: SamplingTensors,
        row_N: IntArray,
        index_N: IntArray,
        token_BP: IntArray,
        length_B2: IntArray,
        window_NJ: Tensor | None = None,
    ) -> Positions:
        """Where scored positions stand, with their histories if sampling asks for them.

        Args:
            length_B2: lengths of the rows and of their prompts. window_NJ: drafts before each position, padded with -1.
        """
        flat = self.tensor(np.concatenate((row_N, index_N)))
        history = None
        if sampling.needs_history:
            width = int(length_B2[:, 0].max())
            lengths = self.tensor(length_B2)
            if window_NJ is None:
                window_NJ = torch.empty((len(row_N), 0), dtype=torch.int64, device=self.device)
            history = History(self.tensor(token_BP[:, :width]), lengths[:, 0], lengths[:, 1], window_NJ)
        return Positions(flat[: len(row_N)], flat[len(row_N) :], history)

    def _sampling_of(self, requests: Sequence[Request]) -> SamplingTensors:
        return SamplingTensors.from_params(
            [request.params for request in requests],
            [request.stop_ids for request in requests],
            self.device,
            self.target.vocab_size,
        )
