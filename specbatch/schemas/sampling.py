"""How one row is sampled and when it ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index

from specbatch.schemas.errors import ErrorCode, SpecbatchError

MAX_NEW_TOKENS_LIMIT = 1_000_000
MAX_STOP_TOKEN_IDS = 64
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_BIASED_TOKENS = 1024
MAX_FORCED_TOKENS = 4096
MAX_NUM_SAMPLES = 1024
MAX_DRAFT_LENGTH = 16
"""Largest K. Every slot reserves room for what drafts of that length write beyond a row's end."""


def _refuse(field: str, value: object, rule: str) -> SpecbatchError:
    text = repr(value)
    shown = text if len(text) <= 100 else f"{text[:97]}..."
    return SpecbatchError(ErrorCode.JOB_CONFIG, f"{field} is {shown}; it must be {rule}")


@dataclass(frozen=True)  # without slots: ``with_seed`` copies one for every row, and a dictionary is copied at once
class SamplingParams:
    """Sampling of one row.

    The transform of the logits, in this order: logit bias, banned and allowed tokens, stop ids below
    ``min_new_tokens``, forced tokens; repetition, then frequency, then presence penalty; temperature; top-k; top-p;
    min-p. A banned token stays banned whatever its bias. Sequences may be given as lists, ``logit_bias`` as a mapping,
    ``stop`` as one string; they are kept as tuples.

    Attributes:
        max_new_tokens: most tokens of the completion, the stop id included.
        temperature: 0 takes the most likely token; above 0 draws from softmax(logits / temperature).
        top_k: keep the k most likely tokens; 0 keeps all. Tokens tied with the k-th are kept.
        top_p: keep the smallest set of most likely tokens whose probability reaches top_p; 1 keeps all.
        seed: seed of this row, in [0, 2**63).
        ignore_eos: do not end at the model's end-of-sequence ids.
        stop_token_ids: further token ids that end the row.
        min_new_tokens: stop ids are not drawn as one of the first so many tokens, and stop strings are not looked for
            before the completion has that many.
        min_p: keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
        repetition_penalty: logits of tokens in the prompt or the completion are divided by it where positive and
            multiplied by it where negative (Keskar et al. 2019, CTRL); 1 is off.
        presence_penalty: subtracted from the logit of every token that the completion holds.
        frequency_penalty: subtracted from the logit once per occurrence in the completion.
        logit_bias: (token id, bias) pairs, added to the logits.
        banned_token_ids: tokens that are never drawn.
        allowed_token_ids: the only tokens that are drawn; None allows all.
        forced_token_ids: the completion begins with exactly these tokens.
        stop: strings that end the row when the completion's text holds one.
        num_samples: completions of this prompt, each with a seed of its own.
        logprobs: report the log-probability of every token under the target's untransformed logits.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    min_new_tokens: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    banned_token_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    forced_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    num_samples: int = 1
    logprobs: bool = False

    def __post_init__(self) -> None:
        _normalise(self)
        _check_numbers(self)
        _check_tokens(self)
        _check_strings(self)
        _check_conflicts(self)

    def with_seed(self, seed: int) -> SamplingParams:
        """These settings under another seed. They are not checked again, which every row of a job would pay for.

        Raises:
            SpecbatchError: JOB_CONFIG; the seed is out of range.
        """
        if not 0 <= seed < 1 << 63:
            raise _bad_seed(seed)
        other = object.__new__(SamplingParams)
        settings = self.__dict__.copy()
        settings["seed"] = seed
        object.__setattr__(other, "__dict__", settings)
        return other


def check_vocabulary(params: SamplingParams, stop_ids: Sequence[int], vocab_size: int) -> None:
    """Refuse settings that no token of this vocabulary can satisfy.

    Args:
        stop_ids: every id that ends the row, the model's end-of-sequence ids included where they count.
        vocab_size: real vocabulary of the target.

    Raises:
        SpecbatchError: JOB_CONFIG; an id lies outside the vocabulary, or a position has no token left to draw.
    """
    fields = {
        "logit_bias": [token for token, _ in params.logit_bias],
        "banned_token_ids": params.banned_token_ids,
        "allowed_token_ids": params.allowed_token_ids or (),
        "forced_token_ids": params.forced_token_ids,
    }
    for field, tokens in fields.items():
        outside = [token for token in tokens if token >= vocab_size]
        if outside:
            raise _refuse(field, outside, f"ids below the vocabulary's size, {vocab_size}")
    stops = {token for token in stop_ids if token < vocab_size}
    for place, token in enumerate(params.forced_token_ids):
        if token in stops and (place < params.min_new_tokens or place + 1 < len(params.forced_token_ids)):
            raise _refuse(
                "forced_token_ids", params.forced_token_ids, f"without stop id {token}, which ends the row too early"
            )
    allowed = set(range(vocab_size)) if params.allowed_token_ids is None else set(params.allowed_token_ids)
    allowed -= set(params.banned_token_ids)
    if not allowed:
        raise _refuse("banned_token_ids", params.banned_token_ids, "fewer than all tokens that may be drawn")
    if params.min_new_tokens > len(params.forced_token_ids) and not allowed - stops:
        raise _refuse("min_new_tokens", params.min_new_tokens, "0 where only stop ids may be drawn")


def _normalise(params: SamplingParams) -> None:
    def assign(field: str, value: object) -> None:
        object.__setattr__(params, field, value)

    stop: object = params.stop
    if isinstance(stop, str):
        assign("stop", (stop,))
    for field in ("stop", "stop_token_ids", "banned_token_ids", "allowed_token_ids", "forced_token_ids"):
        value = getattr(params, field)
        if isinstance(value, Iterable) and not isinstance(value, tuple | str):
            assign(field, tuple(value))
    bias: object = params.logit_bias
    pairs = bias.items() if isinstance(bias, Mapping) else bias
    try:
        # Keys of a JSON object are strings.
        assign("logit_bias", tuple(sorted((index(int(t) if isinstance(t, str) else t), float(b)) for t, b in pairs)))  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise _refuse("logit_bias", bias, "a mapping or pairs of token id and number") from None


def _check_numbers(params: SamplingParams) -> None:
    if not 1 <= params.max_new_tokens <= MAX_NEW_TOKENS_LIMIT:
        raise _refuse("max_new_tokens", params.max_new_tokens, f"from 1 to {MAX_NEW_TOKENS_LIMIT}")
    if not (math.isfinite(params.temperature) and (params.temperature == 0 or 0.01 <= params.temperature <= 100)):
        raise _refuse("temperature", params.temperature, "0, or from 0.01 to 100")
    if params.top_k < 0:
        raise _refuse("top_k", params.top_k, "0 (off) or more")
    if not 0 < params.top_p <= 1:
        raise _refuse("top_p", params.top_p, "above 0 and at most 1")
    if not 0 <= params.seed < 1 << 63:
        raise _bad_seed(params.seed)
    if not 0 <= params.min_p <= 1:
        raise _refuse("min_p", params.min_p, "from 0 (off) to 1")
    if not 0.1 <= params.repetition_penalty <= 10:
        raise _refuse("repetition_penalty", params.repetition_penalty, "from 0.1 to 10; 1 is off")
    for field in ("presence_penalty", "frequency_penalty"):
        if not -2 <= getattr(params, field) <= 2:
            raise _refuse(field, getattr(params, field), "from -2 to 2; 0 is off")
    if not 1 <= params.num_samples <= MAX_NUM_SAMPLES:
        raise _refuse("num_samples", params.num_samples, f"from 1 to {MAX_NUM_SAMPLES}")


def _bad_seed(seed: int) -> SpecbatchError:
    return _refuse("seed", seed, "from 0 to 2**63 - 1")


def _check_tokens(params: SamplingParams) -> None:
    limits = {
        "stop_token_ids": MAX_STOP_TOKEN_IDS,
        "banned_token_ids": None,
        "allowed_token_ids": None,
        "forced_token_ids": MAX_FORCED_TOKENS,
    }
    for field, limit in limits.items():
        tokens = getattr(params, field)
        if tokens is None and field == "allowed_token_ids":
            continue
        is_valid = isinstance(tokens, tuple) and all(type(token) is int and token >= 0 for token in tokens)
        if not is_valid or (limit is not None and len(tokens) > limit):
            raise _refuse(field, tokens, ("" if limit is None else f"at most {limit} ") + "ids, each 0 or more")
    if params.allowed_token_ids == ():
        raise _refuse("allowed_token_ids", (), "None (all tokens) or hold at least one id")
    if len(params.logit_bias) > MAX_BIASED_TOKENS or any(
        token < 0 or not -100 <= bias <= 100 for token, bias in params.logit_bias
    ):
        rule = f"at most {MAX_BIASED_TOKENS} ids, each 0 or more, with biases from -100 to 100"
        raise _refuse("logit_bias", params.logit_bias, rule)
    if len({token for token, _ in params.logit_bias}) < len(params.logit_bias):
        raise _refuse("logit_bias", params.logit_bias, "one bias per token id")


def _check_strings(params: SamplingParams) -> None:
    is_valid = isinstance(params.stop, tuple) and len(params.stop) <= MAX_STOP_STRINGS
    if not is_valid or any(
        not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARACTERS or _has_half_characters(text)
        for text in params.stop
    ):
        rule = f"at most {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_CHARACTERS} whole characters"
        raise _refuse("stop", params.stop, rule)


def _check_conflicts(params: SamplingParams) -> None:
    if not 0 <= params.min_new_tokens <= params.max_new_tokens:
        raise _refuse("min_new_tokens", params.min_new_tokens, f"from 0 to max_new_tokens ({params.max_new_tokens})")
    if params.num_samples > 1 and params.temperature == 0:
        raise _refuse("num_samples", params.num_samples, "1 at temperature 0, where all samples would be equal")
    if len(params.forced_token_ids) > params.max_new_tokens:
        rule = f"no longer than max_new_tokens ({params.max_new_tokens})"
        raise _refuse("forced_token_ids", params.forced_token_ids, rule)
    forced, banned = set(params.forced_token_ids), set(params.banned_token_ids)
    if forced & banned:
        raise _refuse("forced_token_ids", params.forced_token_ids, f"free of banned tokens {sorted(forced & banned)}")
    if params.allowed_token_ids is not None:
        allowed = set(params.allowed_token_ids)
        if forced - allowed:
            rule = f"within allowed_token_ids; {sorted(forced - allowed)} are not"
            raise _refuse("forced_token_ids", params.forced_token_ids, rule)
        if allowed & banned:
            rule = f"free of banned tokens {sorted(allowed & banned)}"
            raise _refuse("allowed_token_ids", params.allowed_token_ids, rule)


def _has_half_characters(text: str) -> bool:
    """Lone surrogates: no completion can ever hold one."""
    return any("\ud800" <= character <= "\udfff" for character in text)
