"""The lean path against the unmodified modules: logits of ragged feeds, and the tokens of ``generate``."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CONTEXT, VOCAB, WINDOW, decoder, engine, perturbed, tiny_model

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.forward.feed import Layout
from specbatch.specdec.models.families import LEAN_MODEL_TYPES, model_path

CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in LEAN_MODEL_TYPES),
    ("llama", {"attention_bias": True}),
    ("llama", {"num_key_value_heads": 4}),
    ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0, "attention_bias": True}),
]
NAMES = [f"{family}{number}" for number, (family, _) in enumerate(CASES)]


@pytest.mark.parametrize(("family", "overrides"), CASES, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_equal_those_of_the_module(family: str, overrides: dict[str, Any], dtype: torch.dtype) -> None:
    """Prompts of mixed lengths, then windows of mixed lengths, some slots left out; every kept logit."""
    model = tiny_model(family, seed=1, dtype=dtype, **overrides)
    generic, lean = decoder(copy.deepcopy(model), 4), decoder(model, 4, "lean")
    generator = np.random.default_rng(0)
    for subject in (generic, lean):
        subject.cache.resize(4, CONTEXT + 32)
    steps = [
        ([0, 1, 2, 3], [0, 0, 0, 0], [30, 5, 20, 1], [29, 34, 54, 55]),
        ([0, 1, 2, 3], [30, 5, 60, 1], [1, 3, 0, 17], None),
        ([0, 1, 2, 3], [31, 8, 20, 18], [2, 30, 4, 1], [0, 3, 5, 33, 36]),
    ]
    for slot, start, count, keep in steps:
        layout = Layout(*(np.array(values) for values in (slot, start, count)))
        token_M = torch.from_numpy(generator.integers(0, VOCAB, layout.num_tokens))
        keep_N = None if keep is None else np.array(keep)
        expected = generic.run(layout.feed(token_M), keep_N).float()
        found = lean.run(layout.feed(token_M), keep_N).float()
        assert found.shape == expected.shape
        tolerance = 1e-4 if dtype == torch.float32 else 0.05 * float(expected.abs().max())
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    prefix = torch.from_numpy(generator.integers(0, VOCAB, 25))
    torch.testing.assert_close(
        lean.canonical_logits(prefix).float(), generic.canonical_logits(prefix).float(), atol=tolerance, rtol=0
    )


@pytest.mark.parametrize(("family", "overrides"), CASES, ids=NAMES)
def test_greedy_tokens_equal_generate(family: str, overrides: dict[str, Any]) -> None:
    model = tiny_model(family, seed=1, dtype=torch.float32, **overrides)
    prompts = [[5], [1, 2, 3, 4, 5, 6, 7], [9, 8] * 12, [44, 3, 17, 21] * 15]
    new_tokens = 24
    stock = copy.deepcopy(model)
    stock.set_attn_implementation("sdpa")
    expected = [
        tuple(
            stock.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                do_sample=False,
                max_new_tokens=new_tokens,
                pad_token_id=0,
                suppress_tokens=list(range(VOCAB, model.config.vocab_size)),
            )[0, len(prompt) :].tolist()
        )
        for prompt in prompts
    ]
    for k, draft in ((0, None), (4, perturbed(model, 0.1))):
        outputs = engine(model, draft, k=k, batch=3, path="lean").generate(
            prompts, SamplingParams(max_new_tokens=new_tokens)
        )
        assert [output.token_ids for output in outputs] == expected
    assert sum(output.stats.num_accepted_draft_tokens for output in outputs) > 0


def test_what_the_lean_path_does_not_know_takes_the_generic_one() -> None:
    def path(family: str, **overrides: Any) -> str:
        return model_path(tiny_model(family, **overrides).config.to_dict())

    assert {path(family) for family in LEAN_MODEL_TYPES} == {"lean"}
    assert path("gemma2") == "generic"
    assert path("llama", hidden_act="gelu") == "generic"
    assert path("llama", mlp_bias=True) == "generic"
    assert model_path({"model_type": "llama"}) == "lean", "what a config leaves out is the library's default"
    assert model_path({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}) == "generic"
