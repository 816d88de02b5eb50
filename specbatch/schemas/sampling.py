"""How one row is sampled and when it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

from specbatch.schemas.errors import ErrorCode, SpecbatchError

MAX_NEW_TOKENS_LIMIT = 1_000_000
MAX_STOP_TOKEN_IDS = 64


def _refuse(field: str, value: object, rule: str) -> SpecbatchError:
    return SpecbatchError(ErrorCode.JOB_CONFIG, f"{field} is {value!r}; it must be {rule}")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling of one row.

    Attributes:
        max_new_tokens: most tokens of the completion, the stop id included.
        temperature: 0 takes the most likely token; above 0 draws from softmax(logits / temperature).
        top_k: keep the k most likely tokens; 0 keeps all. Tokens tied with the k-th are kept.
        top_p: keep the smallest set of most likely tokens whose probability reaches top_p; 1 keeps all.
        seed: seed of this row, in [0, 2**63).
        ignore_eos: do not end at the model's end-of-sequence ids.
        stop_token_ids: further token ids that end the row.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.max_new_tokens <= MAX_NEW_TOKENS_LIMIT:
            raise _refuse("max_new_tokens", self.max_new_tokens, f"from 1 to {MAX_NEW_TOKENS_LIMIT}")
        if not (math.isfinite(self.temperature) and (self.temperature == 0 or 0.01 <= self.temperature <= 100)):
            raise _refuse("temperature", self.temperature, "0, or from 0.01 to 100")
        if self.top_k < 0:
            raise _refuse("top_k", self.top_k, "0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise _refuse("top_p", self.top_p, "above 0 and at most 1")
        if not 0 <= self.seed < 1 << 63:
            raise _refuse("seed", self.seed, "from 0 to 2**63 - 1")
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS or any(token < 0 for token in self.stop_token_ids):
            raise _refuse("stop_token_ids", self.stop_token_ids, f"at most {MAX_STOP_TOKEN_IDS} ids, each 0 or more")
