"""An engine that decodes nothing: every prompt gets the same short completion in no time.

What is left of a job's time with it is the job system's own. ``SPECBATCH_ENGINE_FACTORY=noop_engine:NoopEngine`` puts
it into real worker processes; ``complete`` is what any other system is given to do for a row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Sequence

from specbatch.schemas.messages import MemoryReport, RoundBlock, WorkerConfig
from specbatch.schemas.sampling import SamplingParams
from specbatch.schemas.stats import PhaseSeconds, SpecCounters
from specbatch.specdec.output import SequenceOutput

_ROWS_IN_FLIGHT = 256
_COUNTERS = SpecCounters(num_plain_steps=4)


def encode(text: str) -> list[int]:
    """Token ids of a prompt, without a tokenizer's cost."""
    return [len(text)] * 8


def complete(prompt_ids: Sequence[int]) -> tuple[str, list[int]]:
    """Text and token ids of a completion."""
    return f"completion {prompt_ids[0]}", [1, 2, 3, 4]


class NoopTokenizer:
    """Text to token ids."""

    def encode(self, text: str) -> list[int]:
        return encode(text)


class NoopEngine:
    """Ends all that is queued, up to its batch, in one step."""

    def __init__(self, config: WorkerConfig) -> None:
        self.tokenizer = NoopTokenizer()
        self.context_length = 1 << 20
        self.note: str | None = None
        self.max_batch_size = _ROWS_IN_FLIGHT if config.batch_size == "auto" else config.batch_size
        self.seconds = PhaseSeconds()
        self.device, self.dtype = "cpu", "float32"
        self.num_active = 0
        self._queue: deque[tuple[Hashable, Sequence[int]]] = deque()

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    def submit(self, key: Hashable, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        self._queue.append((key, prompt_ids))

    def step(self) -> list[SequenceOutput]:
        ended = [self._queue.popleft() for _ in range(min(len(self._queue), self.max_batch_size))]
        return [self._output(key, prompt_ids) for key, prompt_ids in ended]

    def _output(self, key: Hashable, prompt_ids: Sequence[int]) -> SequenceOutput:
        text, token_ids = complete(prompt_ids)
        return SequenceOutput(
            key=key,
            num_prompt_tokens=len(prompt_ids),
            text=text,
            token_ids=tuple(token_ids),
            finish_reason="length",
            stats=_COUNTERS,
            min_margin=1.0,
        )

    def take_blocks(self) -> tuple[RoundBlock, ...]:
        return ()

    def memory(self) -> MemoryReport:
        return MemoryReport(0, 0, 0, 0, 0)

    def cancel(self, keys: Collection[Hashable]) -> None:
        self._queue = deque(entry for entry in self._queue if entry[0] not in keys)

    def cancel_all(self) -> None:
        self._queue.clear()

    def check_device(self) -> None:
        """There is none."""
