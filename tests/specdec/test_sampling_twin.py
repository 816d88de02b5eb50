"""The slow twin itself, on logits written by hand, and its stop strings against the other definition of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec import reference
from specbatch.specdec.rows.stops import naive_stop

PIECES = [b"a", b"b", b"ab", b" ", b"\xe2\x82", b"\xac", b"\xe2", b"\x82\xac!", b"ba", b""]


def decode(ids: Sequence[int]) -> str:
    return b"".join(PIECES[token] for token in ids).decode("utf-8", errors="replace")


class Descending(nn.Module):
    """Token 0 is the most likely one, then 1, and so on, whatever came before."""

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.arange(10.0, 0.0, -1.0).view(1, 1, 10))


def generate(params: SamplingParams, prompt: Sequence[int] = (9,)) -> reference.ReferenceOutput:
    return reference.generate(
        Descending(), prompt, params, eos_ids=(0,), vocab_size=10, context_length=20, decode=decode
    )


def test_masks_and_penalties_by_hand() -> None:
    assert generate(SamplingParams()).token_ids == (0,)
    assert generate(SamplingParams(max_new_tokens=3, min_new_tokens=2)).token_ids == (1, 1, 0)
    assert generate(SamplingParams(max_new_tokens=3, forced_token_ids=(5, 4))).token_ids == (5, 4, 0)
    assert generate(SamplingParams(banned_token_ids=(0, 1), max_new_tokens=2)).token_ids == (2, 2)
    assert generate(SamplingParams(allowed_token_ids=(7, 6), max_new_tokens=1)).token_ids == (6,)
    assert generate(SamplingParams(logit_bias=((8, 9.0),), max_new_tokens=1)).token_ids == (8,)
    quiet = SamplingParams(ignore_eos=True, max_new_tokens=6, frequency_penalty=0.7)
    assert generate(quiet).token_ids == (0, 0, 1, 0, 1, 2)
    assert generate(SamplingParams(ignore_eos=True, max_new_tokens=4, presence_penalty=2.0)).token_ids == (0, 1, 0, 0)
    # 10 / 1.2 lies between 9 and 8; the prompt counts too.
    repeating = SamplingParams(ignore_eos=True, max_new_tokens=2, repetition_penalty=1.2)
    assert generate(repeating).token_ids == (0, 1)
    assert generate(repeating, prompt=(0,)).token_ids == (1, 0)


def test_logprobs_and_text() -> None:
    output = generate(SamplingParams(min_new_tokens=1, banned_token_ids=(1,)))
    norm = math.log(sum(math.exp(value) for value in range(1, 11)))
    assert output.token_ids == (2, 0)
    assert output.logprobs == pytest.approx((8 - norm, 10 - norm))
    assert (output.text, output.finish_reason) == ("ab", "stop")
    cut = generate(SamplingParams(forced_token_ids=(3, 4, 5, 1), stop=("€",), max_new_tokens=9))
    assert (cut.token_ids, cut.text, cut.finish_reason) == ((3, 4, 5), " ", "stop")


def test_stop_strings_need_a_decoder() -> None:
    with pytest.raises(ValueError, match="decode"):
        reference.generate(Descending(), [1], SamplingParams(stop=("x",)), vocab_size=10, context_length=20)


def test_stop_strings_end_where_the_definition_says() -> None:
    """Random pieces, among them parts of characters, against the definition beside the fast matcher."""
    generator, num_stopped = np.random.default_rng(5), 0
    for _ in range(1500):
        ids = generator.integers(0, len(PIECES), 12).tolist()
        stop = tuple(generator.choice(["ab", "ba", "€", " a", "€!", "bb b"], 2, replace=False).tolist())
        params = SamplingParams(stop=stop, min_new_tokens=int(generator.integers(0, 6)))
        ends = [n for n in range(1, 13) if reference.stop_string_start(decode, ids[:n], params) is not None]
        found = naive_stop(decode, ids, stop, params.min_new_tokens)
        assert (ends[0] if ends else None) == (found[0] if found else None)
        if found:
            num_stopped += 1
            start = reference.stop_string_start(decode, ids[: found[0]], params)
            assert decode(ids[: found[0]])[:start] == found[1]
    assert num_stopped > 500
