"""The engine: target and draft resident together, rows in slots, one round at a time.

A round fills free slots (``admission``), then proposes, scores, accepts and commits (``decoding``).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.messages import MemoryReport, RoundBlock
from specbatch.schemas.sampling import SamplingParams
from specbatch.schemas.seeds import prompt_seed
from specbatch.schemas.stats import PhaseSeconds
from specbatch.specdec import models
from specbatch.specdec.admission import admit
from specbatch.specdec.batch import POSITIONS_STEP, Batch
from specbatch.specdec.controller import Policy, make_policy
from specbatch.specdec.decoding import decode_round
from specbatch.specdec.output import SequenceOutput
from specbatch.specdec.rounds import RoundLog
from specbatch.specdec.runner import ModelRunner, load_model
from specbatch.specdec.slots import Request
from specbatch.specdec.tokenizer import Tokenizer


class Engine:
    """Batched speculative decoding with one target and at most one draft.

    Use ``from_pretrained``; then either ``generate``, or ``submit`` and ``step``.

    Args:
        target: runner of the target. draft: runner of the draft, or None.
        policy: chooses K, drafts per row and round; a fixed 0 decodes plainly.
    """

    def __init__(
        self,
        target: ModelRunner,
        draft: ModelRunner | None,
        tokenizer: Tokenizer,
        *,
        eos_ids: tuple[int, ...],
        policy: Policy,
        max_batch_size: int,
        max_sequence_tokens: int,
    ) -> None:
        if policy.max_draft_length > 0 and draft is None:
            raise SpecbatchError(ErrorCode.JOB_CONFIG, "speculation needs a draft model; give one or use 'off'")
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size
        self.context_length = max_sequence_tokens
        self._eos_ids = eos_ids
        self._queue: deque[Request] = deque()
        self._batch = Batch(target, draft, tokenizer, max_batch_size, policy)
        self._rounds = RoundLog()
        self._round_number = 0

    @classmethod
    def from_pretrained(
        cls,
        target: str | Path,
        draft: str | Path | None = None,
        *,
        max_batch_size: int = 8,
        speculation: int | Literal["auto", "off"] = "auto",
        device: str = "auto",
        dtype: str = "auto",
        num_threads: int | None = None,
        max_sequence_tokens: int | None = None,
    ) -> Engine:
        """Load a pair.

        Args:
            target, draft: folders, bundled names or hub ids; without a draft the engine decodes plainly.
            max_batch_size: rows in flight.
            speculation: ``"auto"`` chooses K by measurement, a number fixes it, ``"off"`` decodes plainly.
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
        policy = make_policy(speculation if draft is not None else "off")
        target_folder = models.locate_model(str(target))
        draft_folder = models.locate_model(str(draft)) if draft is not None and policy.max_draft_length > 0 else None
        if draft_folder is not None:
            models.check_pair(target_folder, draft_folder)
        tokenizer = Tokenizer.from_folder(target_folder.path)
        dtype_name = models.resolve_dtype(dtype, where.type, target_folder)

        def runner(folder: models.ModelFolder) -> ModelRunner:
            return ModelRunner(
                load_model(folder.path, getattr(torch, dtype_name), where),
                num_slots=max_batch_size,
                max_positions=POSITIONS_STEP,
                context_length=models.context_length(folder),
                vocab_size=tokenizer.vocab_size,
            )

        # The target's context alone decides lengths: a draft with a shorter one stops proposing there, no more.
        context = models.context_length(target_folder)
        return cls(
            runner(target_folder),
            runner(draft_folder) if draft_folder is not None else None,
            tokenizer,
            eos_ids=models.eos_token_ids(target_folder.path),
            policy=policy,
            max_batch_size=max_batch_size,
            max_sequence_tokens=min(context, max_sequence_tokens or context),
        )

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
        finished = admit(self._batch, self._queue)
        if self._batch.slots.num_active == 0:
            self._rounds.flush()
            return finished
        started = time.perf_counter()
        result = decode_round(self._batch, self._round_number)
        elapsed = time.perf_counter() - started
        self._rounds.add(is_plain=result.is_plain, seconds=elapsed, num_tokens=result.num_tokens)
        self._round_number += 1
        return finished + result.finished

    @property
    def seconds(self) -> PhaseSeconds:
        """Wall seconds by phase since the engine was made."""
        return self._batch.clock.seconds

    @property
    def num_queued(self) -> int:
        """Sequences that wait for a slot."""
        return len(self._queue)

    @property
    def num_active(self) -> int:
        """Rows in flight."""
        return self._batch.slots.num_active - len(self._batch.slots.closed_slots())

    @property
    def device(self) -> str:
        return str(self._batch.target.device)

    @property
    def dtype(self) -> str:
        return str(self._batch.target.dtype).removeprefix("torch.")

    def take_blocks(self) -> tuple[RoundBlock, ...]:
        """Sums over rounds since the last call."""
        return self._rounds.take()

    def cancel_all(self) -> None:
        """Drop every queued and active sequence."""
        self._queue.clear()
        slots = self._batch.slots
        for slot in range(slots.num_active):
            slots.close(slot)
        slots.num_active = 0

    def memory(self) -> MemoryReport:
        """Bytes held by both models and both caches, and by the whole process."""
        target, draft = self._batch.target, self._batch.draft
        return MemoryReport(
            target_bytes=target.weight_bytes,
            draft_bytes=draft.weight_bytes if draft else 0,
            target_kv_bytes=target.cache.num_bytes,
            draft_kv_bytes=draft.cache.num_bytes if draft else 0,
            process_bytes=_resident_bytes(),
        )

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


def _resident_bytes() -> int:
    """Resident set of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
