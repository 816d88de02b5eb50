"""The slow twin: one row, one token at a time, the whole prefix every time, no cache, no batch, no draft.

It is the oracle of everything fast, so it shares no arithmetic with it: sampling and noise are written a second time,
for one position, in Python integers and numpy float64.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
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
    """One completion.

    Attributes:
        token_ids: with the stop id, or through the token that completes a stop string.
        finish_reason: ``stop`` or ``length``.
        text: what ``decode`` makes of the ids, without a stop id and cut before a stop string; None without ``decode``.
        logprobs: natural logarithms of the tokens' probabilities under the raw logits.
    """

    token_ids: tuple[int, ...]
    finish_reason: str
    text: str | None = None
    logprobs: tuple[float, ...] = ()


@torch.inference_mode()
def generate(
    model: nn.Module,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    *,
    eos_ids: Sequence[int] = (),
    vocab_size: int,
    context_length: int,
    decode: Callable[[Sequence[int]], str] | None = None,
) -> ReferenceOutput:
    """Decode one row plainly; ``num_samples`` is not its business.

    Args:
        model: a causal language model of ``transformers``.
        vocab_size: real vocabulary; logits behind it are ignored.
        decode: text of completion ids; needed for stop strings.

    Raises:
        ValueError: stop strings without ``decode``.
    """
    if params.stop and decode is None:
        raise ValueError("stop strings need decode")
    stop_ids = set(params.stop_token_ids) | (set() if params.ignore_eos else set(eos_ids))
    prompt, completion, logprobs = list(prompt_ids), list[int](), list[float]()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for index in range(min(params.max_new_tokens, context_length - len(prompt))):
            output = model(input_ids=torch.tensor([prompt + completion]), use_cache=False, logits_to_keep=1)
            logits = output.logits[0, -1, :vocab_size].to(torch.float64).numpy()
            token = draw(logits, params, index, prompt_ids=prompt, completion_ids=completion, stop_ids=stop_ids)
            completion.append(token)
            logprobs.append(logprob(logits, token))
            cut = None if decode is None else stop_string_start(decode, completion, params)
            if token in stop_ids or cut is not None:
                text = None
                if decode is not None:
                    text = decode(completion[:-1] if token in stop_ids else completion)[:cut]
                return ReferenceOutput(tuple(completion), "stop", text, tuple(logprobs))
    finally:
        torch.set_num_threads(num_threads)
    text = None if decode is None else decode(completion)
    return ReferenceOutput(tuple(completion), "length", text, tuple(logprobs))


def stop_string_start(
    decode: Callable[[Sequence[int]], str], completion: Sequence[int], params: SamplingParams
) -> int | None:
    """Where the earliest stop string begins in the text of a completion that its last token may have ended.

    Not before ``min_new_tokens`` tokens, and not where the stop string was already there one token before that. A
    character that still lacks bytes reads as U+FFFD at the end and is no text yet.
    """
    if len(completion) < params.min_new_tokens:
        return None
    text = decode(completion).rstrip("\ufffd")
    protected = len(decode(completion[: max(params.min_new_tokens - 1, 0)]).rstrip("\ufffd"))
    starts = [
        start
        for string in params.stop
        for start in range(len(text))
        if text.startswith(string, start) and start + len(string) > protected
    ]
    return min(starts) if starts else None


def draw(
    logits: FloatArray,
    params: SamplingParams,
    index: int,
    *,
    prompt_ids: Sequence[int] = (),
    completion_ids: Sequence[int] = (),
    stop_ids: Collection[int] = (),
) -> int:
    """The token at ``index`` of the completion, from raw float64 logits [V]; the lowest id wins a tie."""
    changed = changed_logits(
        logits, params, index, prompt_ids=prompt_ids, completion_ids=completion_ids, stop_ids=stop_ids
    )
    if params.temperature == 0:
        return int(np.argmax(changed))
    kept = kept_tokens(changed, params)
    key = noise_key(params.seed, index)
    scores = [changed[token] + params.temperature * gumbel(token_bits(key, token)) for token in kept]
    return kept[int(np.argmax(scores))]


def changed_logits(
    logits: FloatArray,
    params: SamplingParams,
    index: int,
    *,
    prompt_ids: Sequence[int] = (),
    completion_ids: Sequence[int] = (),
    stop_ids: Collection[int] = (),
) -> FloatArray:
    """Logits after biases, bans, forced tokens and penalties, token by token."""
    bias, occurrences = dict(params.logit_bias), Counter(completion_ids)
    seen = set(prompt_ids) | set(completion_ids)
    changed = np.full(len(logits), -np.inf)
    for token in range(len(logits)):
        if index < len(params.forced_token_ids):
            if token == params.forced_token_ids[index]:
                changed[token] = logits[token]
            continue
        is_allowed = params.allowed_token_ids is None or token in params.allowed_token_ids
        is_early = index < params.min_new_tokens and token in stop_ids
        if not is_allowed or is_early or token in params.banned_token_ids:
            continue
        logit = float(logits[token]) + bias.get(token, 0.0)
        if token in seen:
            logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
        if occurrences[token]:
            logit = logit - params.frequency_penalty * occurrences[token]
            logit = logit - params.presence_penalty
        changed[token] = logit
    return changed


def kept_tokens(logits: FloatArray, params: SamplingParams) -> list[int]:
    """Ids that top-k, then top-p, then min-p leave, ascending; ties with the last kept token stay."""
    possible = [token for token in range(len(logits)) if logits[token] > -np.inf]
    order = sorted(possible, key=lambda token: (-logits[token], token))
    if 0 < params.top_k < len(order):
        border = logits[order[params.top_k - 1]]
        order = [token for token in order if logits[token] >= border]
    weights = np.exp((logits[order] - logits[order[0]]) / params.temperature)
    if params.top_p < 1:
        before = np.concatenate(([0.0], np.cumsum(weights / weights.sum())[:-1]))
        border = logits[order[max(int((before < params.top_p).sum()), 1) - 1]]
        order = [token for token in order if logits[token] >= border]
    return sorted(token for token, weight in zip(order, weights, strict=False) if weight >= params.min_p)


def logprob(logits: FloatArray, token: int) -> float:
    """Log-softmax of raw logits at one token."""
    probabilities = np.exp(logits - logits.max())
    return math.log(probabilities[token] / probabilities.sum()) if probabilities[token] > 0 else -math.inf


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
