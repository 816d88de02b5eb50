"""What the engine gives back for one sequence."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.rows import FinishReason
from specbatch.schemas.stats import SpecCounters


@dataclass(slots=True)
class SequenceOutput:
    """One finished sequence. Never changed once it is made; like ``RowResult`` not frozen for its price.

    Attributes:
        key: what the caller gave to ``submit``.
        text: completion without the stop id or stop string; None for an error.
        token_ids: completion with the stop id or the tokens of the stop string; empty for an error.
        min_margin: smallest gap between the best and second-best noisy score, in logits; None for an error, and under
            the ``distribution`` coupling, which compares none.
        num_near_ties: tokens that were decided by canonical evaluation.
        logprobs: log-softmax of the target's raw logits at each of ``token_ids``, where they were asked for.
    """

    key: Hashable
    num_prompt_tokens: int
    text: str | None
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stats: SpecCounters
    min_margin: float | None = None
    num_near_ties: int = 0
    logprobs: tuple[float, ...] | None = None
    error_code: str | None = None
    error_message: str | None = None


def error_output(key: Hashable, num_prompt_tokens: int, code: ErrorCode, message: str) -> SequenceOutput:
    """What a sequence becomes that cannot be decoded."""
    return SequenceOutput(
        key=key,
        num_prompt_tokens=num_prompt_tokens,
        text=None,
        token_ids=(),
        finish_reason="error",
        stats=SpecCounters(),
        error_code=code.value,
        error_message=message,
    )
