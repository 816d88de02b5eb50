"""The engine: target and draft resident together, rows in slots, one round at a time.

A round: fill free slots (prefill), propose with the draft, score with the target, accept, commit, retire.

Shape letters: B active rows, K drafts of this round, T = K + 1, W tokens that the draft is fed first, V vocabulary.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.messages import MemoryReport, RoundBlock
from specbatch.schemas.sampling import SamplingParams
from specbatch.schemas.seeds import prompt_seed
from specbatch.schemas.stats import PhaseSeconds, SpecCounters
from specbatch.specdec import models
from specbatch.specdec.accept import BoolArray, Commit, IntArray, accept, commit
from specbatch.specdec.output import SequenceOutput
from specbatch.specdec.prefill import PrefillGroup, plan_prefill
from specbatch.specdec.rounds import RoundLog, is_plain_sample
from specbatch.specdec.runner import ModelRunner, load_model
from specbatch.specdec.sampling import Draw, SamplingTensors, draw_draft, draw_target
from specbatch.specdec.slots import Request, SlotTable
from specbatch.specdec.tokenizer import Tokenizer

NEAR_TIE_EPSILON = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.0, torch.float16: 0.0}
"""Logit gap below which a token is decided by canonical evaluation; 0 is off (half precision rounds far coarser)."""

_POSITIONS_STEP = 256
_MAX_FEED_TOKENS = 4
"""A row whose draft cache lacks more tokens than this catches up alone, so that it does not widen everybody's feed."""


class Engine:
    """Batched speculative decoding with one target and at most one draft.

    Use ``from_pretrained``; then either ``generate``, or ``submit`` and ``step``.

    Args:
        target: runner of the target. draft: runner of the draft, or None.
        draft_length: K, drafts per row and round; 0 decodes plainly.
    """

    def __init__(
        self,
        target: ModelRunner,
        draft: ModelRunner | None,
        tokenizer: Tokenizer,
        *,
        eos_ids: tuple[int, ...],
        draft_length: int,
        max_batch_size: int,
        max_sequence_tokens: int,
    ) -> None:
        if draft_length > 0 and draft is None:
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG, f"speculation {draft_length} needs a draft model; give one or use 'off'"
            )
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size
        self.context_length = max_sequence_tokens
        self.draft_length = draft_length
        self.seconds = PhaseSeconds()
        self._target = target
        self._draft = draft
        self._eos_ids = eos_ids
        self._epsilon = NEAR_TIE_EPSILON[target.dtype]
        self._queue: deque[Request] = deque()
        self._slots = SlotTable(max_batch_size, target.cache.max_positions, draft_length, target.device)
        self._rounds = RoundLog()
        self._round_number = 0

    @classmethod
    def from_pretrained(
        cls,
        target: str | Path,
        draft: str | Path | None = None,
        *,
        max_batch_size: int = 8,
        speculation: int | Literal["off"] = 4,
        device: str = "auto",
        dtype: str = "auto",
        num_threads: int | None = None,
        max_sequence_tokens: int | None = None,
    ) -> Engine:
        """Load a pair.

        Args:
            target, draft: folders, bundled names or hub ids; without a draft the engine decodes plainly.
            max_batch_size: rows in flight.
            speculation: K, or ``"off"``.
            device: ``auto`` takes a GPU where there is one. dtype: ``auto`` is float32 on CPU.
            num_threads: arithmetic threads on CPU.
            max_sequence_tokens: longest prompt and completion together; the model's context if not given.

        Raises:
            SpecbatchError: any of the model codes of ``models.locate_model`` and ``models.check_pair``.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        where = (
            torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
        )
        draft_length = 0 if speculation == "off" or draft is None else speculation
        target_folder = models.locate_model(str(target))
        draft_folder = models.locate_model(str(draft)) if draft is not None and draft_length > 0 else None
        if draft_folder is not None:
            models.check_pair(target_folder, draft_folder)
        tokenizer = Tokenizer.from_folder(target_folder.path)
        dtype_name = models.resolve_dtype(dtype, where.type, target_folder)

        def runner(folder: models.ModelFolder) -> ModelRunner:
            return ModelRunner(
                load_model(folder.path, getattr(torch, dtype_name), where),
                num_slots=max_batch_size,
                max_positions=_POSITIONS_STEP,
                context_length=models.context_length(folder),
                vocab_size=tokenizer.vocab_size,
            )

        context = min(models.context_length(folder) for folder in (target_folder, draft_folder) if folder is not None)
        return cls(
            runner(target_folder),
            runner(draft_folder) if draft_folder is not None else None,
            tokenizer,
            eos_ids=models.eos_token_ids(target_folder.path),
            draft_length=draft_length,
            max_batch_size=max_batch_size,
            max_sequence_tokens=min(context, max_sequence_tokens or context),
        )

    # ---- the library face ------------------------------------------------------------------------------------------

    def generate(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[SequenceOutput]:
        """Complete prompts; outputs are in the order of the prompts.

        Args:
            prompts: texts or token ids.
            params: one for all (prompt i then has a seed derived from (seed, i), prompt 0 keeps it), or one per prompt.

        Raises:
            SpecbatchError: ROW_TOO_LONG or ROW_PROMPT_EMPTY for a prompt that cannot be decoded.
        """
        if isinstance(params, SamplingParams):
            params = [replace(params, seed=prompt_seed(params.seed, index)) for index in range(len(prompts))]
        if len(params) != len(prompts):
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"{len(params)} SamplingParams for {len(prompts)} prompts")
        encoded = [self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        requests = [self._request(i, ids, row) for i, (ids, row) in enumerate(zip(encoded, params, strict=True))]
        self._queue.extend(requests)
        outputs: dict[Hashable, SequenceOutput] = {}
        while len(outputs) < len(prompts):
            outputs.update((output.key, output) for output in self.step())
        return [outputs[index] for index in range(len(prompts))]

    def submit(self, key: Hashable, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        """Queue one sequence; ``step`` returns it under ``key`` when it has ended.

        Raises:
            SpecbatchError: ROW_PROMPT_EMPTY, ROW_TOO_LONG.
        """
        self._queue.append(self._request(key, prompt_ids, params))

    @torch.inference_mode()
    def step(self) -> list[SequenceOutput]:
        """One round over all rows in flight; returns those that ended. Does nothing when there are none."""
        finished = self._admit()
        if self._slots.num_active == 0:
            self._rounds.flush()
            return finished
        started = time.perf_counter()
        draft_length_B, is_plain = self._plan_round()
        draft_BK = self._propose(draft_length_B)
        draw = self._score(draft_BK)
        target_BT, verdict = self._settle(draft_BK, draft_length_B, draw)
        ended = self._commit(target_BT, draft_length_B, verdict, draw)
        self._rounds.add(
            is_plain=is_plain,
            seconds=time.perf_counter() - started,
            num_tokens=int(verdict.num_committed_B.sum()),
        )
        self._round_number += 1
        return finished + ended

    @property
    def num_queued(self) -> int:
        """Sequences that wait for a slot."""
        return len(self._queue)

    @property
    def num_active(self) -> int:
        """Rows in flight."""
        return self._slots.num_active - len(self._slots.closed_slots())

    @property
    def device(self) -> str:
        return str(self._target.device)

    @property
    def dtype(self) -> str:
        return str(self._target.dtype).removeprefix("torch.")

    def take_blocks(self) -> tuple[RoundBlock, ...]:
        """Sums over rounds since the last call."""
        return self._rounds.take()

    def cancel_all(self) -> None:
        """Drop every queued and active sequence."""
        self._queue.clear()
        for slot in range(self._slots.num_active):
            self._slots.close(slot)
        self._slots.num_active = 0

    def memory(self) -> MemoryReport:
        """Bytes held by both models and both caches, and by the whole process."""
        return MemoryReport(
            target_bytes=self._target.weight_bytes,
            draft_bytes=self._draft.weight_bytes if self._draft else 0,
            target_kv_bytes=self._target.cache.num_bytes,
            draft_kv_bytes=self._draft.cache.num_bytes if self._draft else 0,
            process_bytes=_resident_bytes(),
        )

    # ---- one round -------------------------------------------------------------------------------------------------

    def _plan_round(self) -> tuple[IntArray, bool]:
        """Drafts of each row: K, clipped to what the row may still say behind them."""
        B = self._slots.num_active
        is_plain = self.draft_length == 0 or is_plain_sample(self._round_number)
        remaining_B = self._slots.end_S[:B] - self._slots.length_S[:B]
        return np.minimum(0 if is_plain else self.draft_length, remaining_B - 1), is_plain

    def _propose(self, draft_length_B: IntArray) -> Tensor:
        """Drafts int64 [B, K] on the device; entries beyond a row's own draft length are ignored later."""
        slots, K = self._slots, int(draft_length_B.max())
        B = slots.num_active
        if K == 0 or self._draft is None:
            return torch.empty((B, 0), dtype=torch.int64, device=slots.device)
        with self._timed("propose"):
            self._catch_up(draft_length_B)
            length_B = slots.length_S[:B]
            lacking = (length_B - slots.draft_kv_S[:B])[draft_length_B > 0]
            W = int(min(max(lacking.max(), 2), length_B.min()))
            position_BW = length_B[:, None] + np.arange(-W, 0)
            token_BT = slots.tensor(slots.token_SP[np.arange(B)[:, None], position_BW])
            index_B = slots.tensor(length_B - slots.prompt_length_S[:B])
            num_keys = int(length_B.max())
            position_BT = slots.tensor(position_BW)
            proposals = []
            for j in range(K):
                logits_BTV = self._draft.forward(token_BT, position_BT, 0, num_keys + j, logits_to_keep=1)
                draft_B = draw_draft(logits_BTV[:, -1], index_B + j, slots.sampling())
                proposals.append(draft_B)
                token_BT, position_BT = draft_B.unsqueeze(1), position_BT[:, -1:] + 1
            return torch.stack(proposals, dim=1)

    def _catch_up(self, draft_length_B: IntArray) -> None:
        """Feed the draft what it lacks where that is much: after a stretch without drafts, or all of a prompt."""
        slots = self._slots
        lacking_B = slots.length_S[: len(draft_length_B)] - slots.draft_kv_S[: len(draft_length_B)]
        for slot in np.nonzero((lacking_B > _MAX_FEED_TOKENS) & (draft_length_B > 0))[0]:
            start, stop = int(slots.draft_kv_S[slot]), int(slots.length_S[slot]) - 1
            self._feed(self._draft, PrefillGroup(int(slot), (stop,)), start)
            slots.draft_kv_S[slot] = stop

    def _score(self, draft_BK: Tensor) -> Draw:
        """The target's draws [B, K + 1]: behind the last committed token and behind each draft."""
        slots, (B, K) = self._slots, draft_BK.shape
        with self._timed("score"):
            length_B = slots.length_S[:B]
            last_B1 = slots.tensor(slots.token_SP[np.arange(B), length_B - 1]).unsqueeze(1)
            offset_T = np.arange(K + 1)
            logits_BTV = self._target.forward(
                torch.cat((last_B1, draft_BK), dim=1),
                slots.tensor(length_B[:, None] - 1 + offset_T),
                0,
                int(length_B.max()) + K,
                logits_to_keep=K + 1,
            )
        with self._timed("accept"):
            index_BT = slots.tensor((length_B - slots.prompt_length_S[:B])[:, None] + offset_T)
            return draw_target(logits_BTV, index_BT, slots.sampling(), self._epsilon)

    def _settle(self, draft_BK: Tensor, draft_length_B: IntArray, draw: Draw) -> tuple[IntArray, Commit]:
        """Accept; where a token that would be committed is a near tie, let canonical evaluation decide it first.

        Positions are settled in order, because what follows a changed token was drawn behind another prefix.
        """
        with self._timed("accept"):
            slots, B = self._slots, self._slots.num_active
            target_BT: IntArray = draw.token_BT.cpu().numpy()
            is_open_BT: BoolArray = (
                ~draw.is_stable_BT.cpu().numpy() if self._epsilon > 0 else np.zeros_like(target_BT, bool)
            )
            drafts: IntArray = draft_BK.cpu().numpy()
            remaining_B = slots.end_S[:B] - slots.length_S[:B]
            while True:
                matched_B = accept(drafts, draft_length_B, target_BT)
                verdict = commit(target_BT, matched_B, draft_length_B, remaining_B, slots.stop_SX[:B])
                is_due_BT = is_open_BT & (np.arange(target_BT.shape[1]) < verdict.num_committed_B[:, None])
                if not is_due_BT.any():
                    return target_BT, verdict
                for row in np.nonzero(is_due_BT.any(axis=1))[0]:
                    j = int(is_due_BT[row].argmax())
                    target_BT[row, j] = self._canonical_token(int(row), target_BT[row, :j])
                    is_open_BT[row, j] = False
                    slots.near_ties_S[row] += 1

    def _canonical_token(self, slot: int, token_J: IntArray) -> int:
        """The draw behind the committed tokens of a row and ``token_J``, from the row alone."""
        slots = self._slots
        length, request = int(slots.length_S[slot]), slots.requests[slot]
        assert request is not None
        prefix = np.concatenate((slots.token_SP[slot, :length], token_J))
        logits_V = self._target.canonical_logits(slots.tensor(prefix))
        index = len(prefix) - len(request.prompt_ids)
        sampling = SamplingTensors.from_params([request.params], slots.device)
        index_BT = torch.tensor([[index]], device=slots.device)
        return int(draw_target(logits_V[None, None], index_BT, sampling, 0.0).token_BT)

    def _commit(
        self, target_BT: IntArray, draft_length_B: IntArray, verdict: Commit, draw: Draw
    ) -> list[SequenceOutput]:
        """Move every row on, and retire those that ended."""
        with self._timed("host"):
            slots, B = self._slots, self._slots.num_active
            is_committed_BT = np.arange(target_BT.shape[1]) < verdict.num_committed_B[:, None]
            margin_BT = np.where(is_committed_BT, draw.margin_BT.cpu().numpy(), np.inf)
            slots.margin_S[:B] = np.minimum(slots.margin_S[:B], margin_BT.min(axis=1))
            is_broken_B = (is_committed_BT & ~draw.is_finite_BT.cpu().numpy()).any(axis=1)
            before_B = slots.length_S[:B].copy()
            slots.append(target_BT, verdict)
            slots.count(draft_length_B, verdict)
            written_B = before_B + np.minimum(draft_length_B - 1, verdict.num_accepted_B)
            slots.draft_kv_S[:B] = np.where(draft_length_B > 0, written_B, slots.draft_kv_S[:B])
            return self._retire(verdict.is_stopped_B, verdict.is_exhausted_B, is_broken_B)

    def _retire(
        self, is_stopped_B: BoolArray, is_exhausted_B: BoolArray, is_broken_B: BoolArray
    ) -> list[SequenceOutput]:
        """Outputs of the rows that ended; their slots are closed."""
        outputs = []
        for slot in np.nonzero(is_stopped_B | is_exhausted_B | is_broken_B)[0]:
            outputs.append(self._output(int(slot), bool(is_stopped_B[slot]), bool(is_broken_B[slot])))
            self._slots.close(int(slot))
        return outputs

    def _output(self, slot: int, is_stopped: bool, is_broken: bool) -> SequenceOutput:
        """What the row of a slot has become; a broken row leaves nothing behind in its slot."""
        slots, request = self._slots, self._slots.requests[slot]
        assert request is not None
        num_prompt_tokens = len(request.prompt_ids)
        if is_broken:
            for runner in self._runners():
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

    def _runners(self) -> list[ModelRunner]:
        return [self._target] if self._draft is None else [self._target, self._draft]

    # ---- admission -------------------------------------------------------------------------------------------------

    def _request(self, key: Hashable, prompt_ids: Sequence[int], params: SamplingParams) -> Request:
        ids = tuple(int(token) for token in prompt_ids)
        if not ids:
            raise SpecbatchError(ErrorCode.ROW_PROMPT_EMPTY, "the prompt has no tokens")
        if len(ids) >= self.context_length:
            raise SpecbatchError(
                ErrorCode.ROW_TOO_LONG,
                f"the prompt has {len(ids)} tokens; a context of {self.context_length} leaves no room for a completion",
            )
        if not all(0 <= token < self.tokenizer.vocab_size for token in ids):
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"prompt ids must be from 0 to {self.tokenizer.vocab_size - 1}")
        stop_ids = params.stop_token_ids if params.ignore_eos else (*self._eos_ids, *params.stop_token_ids)
        num_new_tokens = min(params.max_new_tokens, self.context_length - len(ids))
        return Request(key, ids, params, tuple(dict.fromkeys(stop_ids)), num_new_tokens)

    def _admit(self) -> list[SequenceOutput]:
        """Fill closed and unused slots from the queue, then close the gaps; returns rows that ended at once."""
        slots = self._slots
        finished: list[SequenceOutput] = []
        while self._queue and (free := [*slots.closed_slots(), *range(slots.num_active, slots.num_slots)]):
            requests = [self._queue.popleft() for _ in range(min(len(free), len(self._queue)))]
            finished += self._prefill(free, sorted(requests, key=lambda request: len(request.prompt_ids)))
        self._compact()
        return finished

    def _compact(self) -> None:
        """Move the last rows into closed slots, so that the active rows are the first ones."""
        slots = self._slots
        for slot in slots.closed_slots():
            while slots.num_active > slot and slots.requests[slots.num_active - 1] is None:
                slots.num_active -= 1
            if slots.num_active <= slot:
                return
            source = slots.num_active - 1
            length = int(slots.length_S[source])
            slots.move(source, slot)
            for runner in self._runners():
                runner.cache.move(source, slot, length)
            slots.num_active -= 1

    def _prefill(self, free: list[int], requests: list[Request]) -> list[SequenceOutput]:
        """Open slots, run the prompts through both models and commit each row's first token."""
        slots = self._slots
        with self._timed("prefill"):
            self._reserve(max(len(r.prompt_ids) + r.num_new_tokens for r in requests))
            opened = sorted(free[: len(requests)])
            for slot, request in zip(opened, requests, strict=True):
                slots.open(slot, request)
            slots.num_active = max(slots.num_active, opened[-1] + 1)
            finished = []
            for group in plan_prefill(opened, [len(request.prompt_ids) for request in requests]):
                logits_BV = self._feed(self._target, group, 0)
                if self._draft is not None:
                    self._feed(self._draft, group, 0)
                finished += self._first_tokens(group, logits_BV)
            return finished

    def _feed(self, runner: ModelRunner | None, group: PrefillGroup, start: int) -> Tensor:
        """Run positions ``start`` .. of consecutive slots through a model, in chunks; logits [B, V] of each last one.

        Rows are padded on the right: what padding writes lies beyond the row's length and is overwritten later.
        """
        assert runner is not None
        slots, B = self._slots, len(group.lengths)
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

    def _first_tokens(self, group: PrefillGroup, logits_BV: Tensor) -> list[SequenceOutput]:
        """The forward that ends prefill commits a token: a plain step of each row."""
        slots, B = self._slots, len(group.lengths)
        outputs = []
        for row in range(B):
            slot = group.first_slot + row
            request = slots.requests[slot]
            assert request is not None
            sampling = SamplingTensors.from_params([request.params], slots.device)
            index_BT = torch.zeros((1, 1), dtype=torch.int64, device=slots.device)
            draw = draw_target(logits_BV[row][None, None], index_BT, sampling, self._epsilon)
            token = int(draw.token_BT)
            if self._epsilon > 0 and not bool(draw.is_stable_BT):
                token = self._canonical_token(slot, np.empty(0, dtype=np.int64))
                slots.near_ties_S[slot] += 1
            slots.token_SP[slot, slots.length_S[slot]] = token
            slots.length_S[slot] += 1
            slots.plain_steps_S[slot] = 1
            slots.margin_S[slot] = float(draw.margin_BT)
            slots.draft_kv_S[slot] = slots.length_S[slot] - 1 if self._draft is not None else 0
            is_stopped = token in request.stop_ids
            is_broken = not bool(draw.is_finite_BT)
            if is_stopped or is_broken or slots.length_S[slot] >= slots.end_S[slot]:
                outputs.append(self._output(slot, is_stopped, is_broken))
                slots.close(slot)
        return outputs

    def _reserve(self, num_tokens: int) -> None:
        """Lengthen the slots where a row needs more positions; drafts may stand beyond the last committed token."""
        needed = num_tokens + self.draft_length + 1
        if needed > self._slots.max_positions:
            longest = self.context_length + self.draft_length + 1
            grown = min(-(-needed // _POSITIONS_STEP) * _POSITIONS_STEP, max(longest, needed))
            self._slots.grow(grown)
            for runner in self._runners():
                runner.cache.grow(grown)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self.seconds = replace(self.seconds, **{phase: getattr(self.seconds, phase) + elapsed})


def _resident_bytes() -> int:
    """Resident set of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
