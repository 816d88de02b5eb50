"""A small engine with the streaming face of the real one: echoes the prompt, at one token per round."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.messages import MemoryReport, RoundBlock, WorkerConfig
from specbatch.schemas.sampling import SamplingParams
from specbatch.schemas.stats import PhaseSeconds, SpecCounters
from specbatch.specdec.output import SequenceOutput


class ByteTokenizer:
    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))


@dataclass
class _Row:
    key: Hashable
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    num_left: int


class FakeEngine:
    """A row needs as many rounds as its prompt has tokens, ``max_new_tokens`` at most.

    Attributes:
        starved: rounds that ran with a free slot, as (active rows, keys in flight).
        log: keys in the order of admission.
        cancelled: keys that were taken back.
        num_checks: how often the device had to prove itself; is_lying: it cannot.
    """

    def __init__(self, config: WorkerConfig, *, step_seconds: float = 0.001, context_length: int = 64) -> None:
        self.tokenizer = ByteTokenizer()
        self.context_length = context_length
        self.note: str | None = None
        self.seconds = PhaseSeconds()
        self.device, self.dtype = "cpu", "float32"
        self.starved: list[tuple[int, tuple[Hashable, ...]]] = []
        self.log: list[Hashable] = []
        self.cancelled: list[Hashable] = []
        self.num_checks = 0
        self.is_lying = False
        self.fail_on: bytes | None = None
        assert config.batch_size != "auto"
        self.max_batch_size = config.batch_size
        self._step_seconds = step_seconds
        self._queue: deque[_Row] = deque()
        self._active: list[_Row] = []
        self._num_rounds = 0
        self._blocks: list[RoundBlock] = []

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    @property
    def num_active(self) -> int:
        return len(self._active)

    def submit(self, key: Hashable, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        self._queue.append(_Row(key, tuple(prompt_ids), params, min(len(prompt_ids), params.max_new_tokens)))

    def step(self) -> list[SequenceOutput]:
        while self._queue and len(self._active) < self.max_batch_size:
            self._active.append(self._queue.popleft())
            self.log.append(self._active[-1].key)
        ended = self._round() if self._active else []
        if not self._active and self._num_rounds:  # with the last row, as the real one does
            self._blocks.append(RoundBlock(num_plain_rounds=self._num_rounds))
            self._num_rounds = 0
        return [self._output(row) for row in ended]

    def _round(self) -> list[_Row]:
        if len(self._active) < self.max_batch_size:
            self.starved.append((len(self._active), tuple(row.key for row in self._active)))
        time.sleep(self._step_seconds)
        self._num_rounds += 1
        self.seconds = self.seconds + PhaseSeconds(score=1.0)
        if self.fail_on is not None and any(bytes(row.prompt_ids) == self.fail_on for row in self._active):
            raise RuntimeError("the engine broke")
        for row in self._active:
            row.num_left -= 1
        ended = [row for row in self._active if row.num_left == 0]
        self._active = [row for row in self._active if row.num_left]
        return ended

    def _output(self, row: _Row) -> SequenceOutput:
        token_ids = row.prompt_ids[: row.params.max_new_tokens]
        output = SequenceOutput(
            key=row.key,
            num_prompt_tokens=len(row.prompt_ids),
            text=bytes(token_ids).decode("utf-8", "replace"),
            token_ids=token_ids,
            finish_reason="length",
            stats=SpecCounters(num_plain_steps=len(token_ids)),
            min_margin=1.0,
            logprobs=tuple(-float(token) for token in token_ids) if row.params.logprobs else None,
            num_near_ties=1,
        )
        if bytes(row.prompt_ids) == b"numeric":
            return replace(
                output,
                text=None,
                token_ids=(),
                logprobs=None,
                finish_reason="error",
                error_code="ROW_NUMERIC",
                error_message="not finite",
            )
        return output

    def take_blocks(self) -> tuple[RoundBlock, ...]:
        blocks, self._blocks = tuple(self._blocks), []
        return blocks

    def memory(self) -> MemoryReport:
        return MemoryReport(1, 2, 3, 4, 5)

    def cancel(self, keys: Collection[Hashable]) -> None:
        self.cancelled.extend(keys)
        self._queue = deque(row for row in self._queue if row.key not in keys)
        self._active = [row for row in self._active if row.key not in keys]

    def check_device(self) -> None:
        self.num_checks += 1
        if self.is_lying:
            raise SpecbatchError(ErrorCode.JOB_DEVICE, "the device lies")

    def cancel_all(self) -> None:
        self._queue.clear()
        self._active.clear()
