"""The engine: target and draft resident together, rows in slots, one round at a time.

A step admits rows into free slots, feeds pending prompts one chunk, and moves every row that decodes on by a round.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.messages import MemoryReport, RoundBlock
from specbatch.schemas.sampling import SamplingParams
from specbatch.schemas.stats import PhaseSeconds
from specbatch.specdec import loading
from specbatch.specdec.drafters.suffix import SuffixIndex
from specbatch.specdec.forward.feed import Decoder
from specbatch.specdec.forward.threads import current_device
from specbatch.specdec.intake import Intake
from specbatch.specdec.output import SequenceOutput
from specbatch.specdec.policy.controller import Policy
from specbatch.specdec.ranks.group import Leader
from specbatch.specdec.rows.batch import Batch
from specbatch.specdec.rows.slots import Request
from specbatch.specdec.stepping import Rounds, Stepper
from specbatch.specdec.tokenizer import Tokenizer

if TYPE_CHECKING:
    from specbatch.schemas.spec import KvCacheDtype

Coupling = Literal["seed", "distribution"]


class Engine:
    """Batched speculative decoding with one target and at most one draft.

    Use ``from_pretrained``; then either ``generate``, or ``submit`` and ``step``. ``tokenizer`` makes ids of text and
    text of ids; ``context_length`` is the longest prompt and completion together. ``note`` belongs to whoever loads the
    engine: what the user should know about how that went.

    Args:
        target, draft: resident models; the draft may be None.
        policy: chooses K and drafter of every row; one whose largest K is 0 decodes plainly.
        max_batch_size: rows in flight.
        max_sequence_tokens: longest prompt and completion together.
        max_kv_tokens: positions that the slots may have in all; None is without bound.
        coupling: ``seed`` gives the target's own keyed draws, ``distribution`` only its law.
        grown_batch_size: rows in flight once the draft has been given up.
        has_suffix: index all text for drafts.
        has_profile: measure the models now, for the policy to begin with.
        has_warm_up: compile a GPU's kernels now, and not in the first steps.
        rounds: how rounds are decoded over pages.
    """

    def __init__(
        self,
        target: Decoder,
        draft: Decoder | None,
        tokenizer: Tokenizer,
        *,
        eos_ids: tuple[int, ...],
        policy: Policy,
        max_batch_size: int,
        max_sequence_tokens: int,
        max_kv_tokens: int | None = None,
        coupling: Coupling = "seed",
        grown_batch_size: int | None = None,
        has_suffix: bool = False,
        has_profile: bool = False,
        has_warm_up: bool = False,
        rounds: Rounds = "ahead",
    ) -> None:
        if policy.uses_model and draft is None:
            raise SpecbatchError(ErrorCode.JOB_CONFIG, "speculation needs a draft model; give one or use 'off'")
        self.note: str | None = None
        self.tokenizer = tokenizer
        self.context_length = max_sequence_tokens
        self._intake = Intake(tokenizer, eos_ids, max_sequence_tokens)
        self._queue: deque[Request] = deque()
        self._batch = Batch(
            target,
            draft,
            tokenizer,
            max_batch_size,
            policy,
            suffix=SuffixIndex(max_batch_size) if has_suffix else None,
            max_kv_tokens=max_kv_tokens,
            has_ratio_test=coupling == "distribution",
        )
        with torch.inference_mode(), current_device(target.device):  # as in ``step``, for graphs are captured in both
            self._stepper = Stepper(
                self._batch,
                self._queue,
                max_rows=max_batch_size,
                grown_max_rows=grown_batch_size or max_batch_size,
                rounds=rounds,
            )
            if has_warm_up:
                self._stepper.warm_up()
            if has_profile:
                policy.learn_times(*self._stepper.profile(max_batch_size), in_buckets=self._stepper.has_fixed_shapes)

    @classmethod
    def from_pretrained(
        cls,
        target: str | Path,
        draft: str | Path | None = None,
        *,
        max_batch_size: int | Literal["auto"] = 8,
        speculation: int | Literal["auto", "off"] = "auto",
        device: str = "auto",
        dtype: str = "auto",
        coupling: Coupling = "seed",
        memory_fraction: float = 0.9,
        model_path: Literal["auto", "generic"] = "auto",
        num_threads: int | None = None,
        max_sequence_tokens: int | None = None,
        quantization: str | None = None,
        leader: Leader | None = None,
        kv_cache_dtype: KvCacheDtype = "auto",
        bitwise: bool = False,
    ) -> Engine:
        """Load a pair.

        Args:
            target, draft: folders, bundled names or hub ids; without a draft only the suffix index proposes.
            max_batch_size: rows in flight; ``auto`` takes what the memory ledger allows.
            speculation: ``"auto"`` chooses K by measurement, a number fixes it, ``"off"`` decodes plainly.
            device: ``auto`` takes a GPU where there is one.
            dtype: ``auto`` is float32 on a CPU, the checkpoint's own on a GPU.
            coupling: ``seed`` gives the same text whatever the draft, ``distribution`` the same law.
            memory_fraction: share of the free memory that weights, caches and workspace may take.
            model_path: ``auto`` decodes common families by the lean path; ``generic`` runs unmodified modules.
            num_threads: arithmetic threads on CPU.
            max_sequence_tokens: longest prompt and completion together; the model's context if not given.
            quantization: how the target's dense weights are quantized on loading, on a CPU only; names of
                ``specdec.models.quantization.ON_LOAD``.
            leader: the meeting point of the processes that share the target; None on one device.
            kv_cache_dtype: ``fp8`` keeps keys and values in 8 bits; it changes the text.
            bitwise: compute every token with the same bits whatever is computed beside it; slower.

        Raises:
            SpecbatchError: the model cannot be used, or the two are no pair; JOB_MEMORY.
        """
        pair = loading.load_pair(
            str(target),
            None if draft is None else str(draft),
            max_batch_size=max_batch_size,
            speculation=speculation,
            device=device,
            dtype=dtype,
            memory_fraction=memory_fraction,
            model_path=model_path,
            num_threads=num_threads,
            max_sequence_tokens=max_sequence_tokens,
            quantization=quantization,
            leader=leader,
            coupling=coupling,
            kv_cache_dtype=kv_cache_dtype,
            bitwise=bitwise,
        )
        return cls(
            pair.target,
            pair.draft,
            pair.tokenizer,
            eos_ids=pair.eos_ids,
            policy=pair.policy,
            max_batch_size=pair.max_batch_size,
            max_sequence_tokens=pair.max_sequence_tokens,
            max_kv_tokens=pair.max_kv_tokens,
            coupling=coupling,
            grown_batch_size=pair.grown_batch_size,
            has_suffix=pair.policy.uses_suffix,
            has_profile=speculation == "auto",
            has_warm_up=pair.target.device.type == "cuda",
        )

    def generate(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[SequenceOutput]:
        """Complete prompts; outputs are in the order of the prompts, the samples of a prompt one after another.

        Interrupted, it forgets all that it was given.

        Args:
            prompts: texts or token ids.
            params: one for all (prompt i then has a seed derived from (seed, i), prompt 0 keeps it), or one per prompt.
                Sample s > 0 of a prompt has a seed derived from (the prompt's seed, s).

        Raises:
            SpecbatchError: ROW_TOO_LONG or ROW_PROMPT_EMPTY for a prompt that cannot be decoded; JOB_CONFIG while there
                are sequences of ``submit``, whose outputs it would take.
        """
        if num_left := self.num_queued + self.num_active:
            message = f"generate cannot begin while {num_left} sequences given to submit are under way"
            remedy = "call step until they have ended, or cancel_all"
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"{message}; {remedy}")
        requests = self._intake.samples(prompts, params)
        outputs: dict[Hashable, SequenceOutput] = {}
        try:
            self._queue.extend(requests)
            while len(outputs) < len(requests):
                outputs.update((output.key, output) for output in self.step())
        except BaseException:
            self.cancel_all()  # their keys are those of the next call's
            raise
        return [outputs[index] for index in range(len(requests))]

    def submit(self, key: Hashable, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        """Queue one sequence; ``step`` returns it under ``key`` when it has ended.

        Raises:
            SpecbatchError: ROW_PROMPT_EMPTY, ROW_TOO_LONG; JOB_CONFIG for several samples, each of which needs a key.
        """
        if params.num_samples != 1:
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG, f"num_samples is {params.num_samples}; submit every sample under a key of its own"
            )
        self._queue.append(self._intake.request(key, prompt_ids, params))

    @torch.inference_mode()
    def step(self) -> list[SequenceOutput]:
        """One round over all rows in flight; returns those that ended. Does nothing when there are none.

        Where memory runs out, half of the rows go back to the queue and the rest goes on.

        Raises:
            SpecbatchError: JOB_DEVICE; a row's logits were not finite and the device fails its self-test.
        """
        with current_device(self._batch.device):
            return self._stepper.step()

    @property
    def max_batch_size(self) -> int:
        """Rows that may be in flight: what was asked for, less where memory ran out, more without a draft."""
        return self._stepper.max_rows

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
        """Sequences in flight."""
        return self._batch.slots.num_rows

    @property
    def device(self) -> str:
        """Where the target is, such as ``cpu`` or ``cuda:0``."""
        return str(self._batch.target.device)

    @property
    def dtype(self) -> str:
        """What the target computes in, such as ``float32``."""
        return str(self._batch.target.dtype).removeprefix("torch.")

    @property
    def model_path(self) -> str:
        """``lean`` or ``generic``: which code runs the target; part of what decides its rounding."""
        return self._batch.target.path

    def take_blocks(self) -> tuple[RoundBlock, ...]:
        """Sums over rounds since the last call."""
        return self._stepper.log.take()

    def cancel(self, keys: Collection[Hashable]) -> None:
        """Forget some sequences, queued or in flight; ``step`` returns none of them any more."""
        kept = [request for request in self._queue if request.key not in keys]
        self._queue.clear()
        self._queue.extend(kept)
        self._stepper.drop(keys)

    @torch.inference_mode()
    def check_device(self) -> None:
        """Evaluate a short fixed prefix again.

        Raises:
            SpecbatchError: JOB_DEVICE; the answer is not the one that was given when the engine was made.
        """
        with current_device(self._batch.device):
            self._stepper.selftest.check()

    def cancel_all(self) -> None:
        """Drop every queued and active sequence; right too after a step that was interrupted at any point."""
        self._queue.clear()
        self._stepper.drop_all()

    def memory(self) -> MemoryReport:
        """Bytes held by both models and both caches, and by the whole process."""
        return loading.memory_report(self._batch.target, self._batch.draft)
