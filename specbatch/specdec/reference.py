"""The slow twin: one row, one token at a time, the whole prefix every time, no cache, no batch, no draft.

It is the oracle of everything fast, so it shares no arithmetic with it: sampling and noise are written a second time,
for one position, in Python integers and numpy float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from specbatch.schemas.sampling import SamplingParams

FloatArray = NDArray[np.float64]

_MASK_64 = (1 << 64) - 1
_MASK_32 = (1 << 32) - 1
_DOMAIN = (0x5350_4543_4755_4D31 - (1 << 63)) & _MASK_64


@dataclass(frozen=True, slots=True)
class ReferenceOutput:
    """Completion ids with the stop id, and why it ended."""

    token_ids: tuple[int, ...]
    finish_reason: str


@torch.inference_mode()
def generate(
    model: nn.Module,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    *,
    eos_ids: Sequence[int] = (),
    vocab_size: int,
    context_length: int,
) -> ReferenceOutput:
    """Decode one row plainly.

    Args:
        model: a causal language model of ``transformers``.
        vocab_size: real vocabulary; logits behind it are ignored.
    """
    stop_ids = set(params.stop_token_ids) | (set() if params.ignore_eos else set(eos_ids))
    token_ids = list(prompt_ids)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for index in range(min(params.max_new_tokens, context_length - len(prompt_ids))):
            output = model(input_ids=torch.tensor([token_ids]), use_cache=False, logits_to_keep=1)
            logits = output.logits[0, -1, :vocab_size].to(torch.float64).numpy()
            token_ids.append(draw(logits, params, index))
            if token_ids[-1] in stop_ids:
                return ReferenceOutput(tuple(token_ids[len(prompt_ids) :]), "stop")
    finally:
        torch.set_num_threads(num_threads)
    return ReferenceOutput(tuple(token_ids[len(prompt_ids) :]), "length")


def draw(logits: FloatArray, params: SamplingParams, index: int) -> int:
    """The token at ``index`` of the completion, from float64 logits [V]; the lowest id wins a tie."""
    if params.temperature == 0:
        return int(np.argmax(logits))
    kept = kept_tokens(logits, params)
    key = noise_key(params.seed, index)
    scores = [logits[token] + params.temperature * gumbel(token_bits(key, token)) for token in kept]
    return kept[int(np.argmax(scores))]


def kept_tokens(logits: FloatArray, params: SamplingParams) -> list[int]:
    """Ids that top-k and then top-p leave, ascending; ties with the last kept token stay."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if 0 < params.top_k < len(order):
        border = logits[order[params.top_k - 1]]
        order = [token for token in order if logits[token] >= border]
    if params.top_p < 1:
        weights = np.exp((logits[order] - logits[order[0]]) / params.temperature)
        before = np.concatenate(([0.0], np.cumsum(weights / weights.sum())[:-1]))
        border = logits[order[max(int((before < params.top_p).sum()), 1) - 1]]
        order = [token for token in order if logits[token] >= border]
    return sorted(order)


def noise_key(seed: int, index: int) -> int:
    """64-bit key of (row seed, index in the completion)."""
    return _splitmix(_splitmix(seed + _DOMAIN) + index * 0x9E3779B97F4A7C15)


def token_bits(key: int, token: int) -> int:
    """32 random bits of (key, token id), unsigned."""
    x = (token * 0x9E3779B1 & _MASK_32) ^ (key & _MASK_32)
    return _lowbias(_lowbias(x) ^ (key >> 32))


def gumbel(bits: int) -> float:
    """Gumbel noise of 32 bits. The fast side reads them as signed, hence the flipped top bit."""
    uniform = ((bits ^ (1 << 31)) + 0.5) / 4294967296.0
    return -math.log(-math.log(uniform))


def _splitmix(x: int) -> int:
    x &= _MASK_64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK_64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK_64
    return x ^ (x >> 31)


def _lowbias(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x7FEB352D & _MASK_32
    x = (x ^ (x >> 15)) * 0x846CA68B & _MASK_32
    return x ^ (x >> 16)
