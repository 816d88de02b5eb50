"""Every supported family, greedy, float32: the tokens of ``transformers`` ``generate``, as target and as draft."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import FAMILIES, VOCAB, engine, perturbed, tiny_model

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.models import SUPPORTED_MODEL_TYPES

PROMPTS = [[5], [1, 2, 3, 4, 5, 6, 7], [9, 8] * 12, [44, 3, 17, 21]]
NEW_TOKENS = 24


def hf_generate(model: Any, prompt: list[int]) -> tuple[int, ...]:
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=0,
        # The engine cuts logits to the tokenizer's vocabulary; generate is told to leave the padding rows out too.
        suppress_tokens=list(range(VOCAB, model.config.vocab_size)),
    )
    return tuple(output[0, len(prompt) :].tolist())


def test_the_list_is_what_is_tested() -> None:
    assert sorted(FAMILIES) == list(SUPPORTED_MODEL_TYPES)


@pytest.mark.parametrize("family", SUPPORTED_MODEL_TYPES)
def test_greedy_equals_generate(family: str) -> None:
    model = tiny_model(family, seed=1, dtype=torch.float32)
    params = SamplingParams(max_new_tokens=NEW_TOKENS)
    # generate() runs under the stock attention, so that our own attention function is tested too.
    stock = tiny_model(family, seed=1, dtype=torch.float32)
    stock.set_attn_implementation("sdpa")
    expected = [hf_generate(stock, prompt) for prompt in PROMPTS]
    plain = engine(model, batch=3).generate(PROMPTS, params)
    assert [output.token_ids for output in plain] == expected
    spec = engine(model, perturbed(model, 0.1), k=4, batch=3).generate(PROMPTS, params)
    assert [output.token_ids for output in spec] == expected
    assert sum(output.stats.num_accepted_draft_tokens for output in spec) > 0
