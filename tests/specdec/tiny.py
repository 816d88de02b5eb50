"""Tiny random models and engines around them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from specbatch.specdec import attention
from specbatch.specdec.controller import FixedPolicy, Policy
from specbatch.specdec.engine import Engine
from specbatch.specdec.runner import ModelRunner

VOCAB = 61
PADDED_VOCAB = 64
CONTEXT = 96

_COMMON = {
    "vocab_size": PADDED_VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.4,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _COMMON,
    "mistral": _COMMON | {"sliding_window": None},
    "qwen2": _COMMON,
    "qwen3": _COMMON | {"head_dim": 8},
    "gpt_neox": {k: v for k, v in _COMMON.items() if k != "num_key_value_heads"},
    "gpt2": {
        "vocab_size": PADDED_VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT,
        "initializer_range": 0.4,
    },
    "opt": {
        "vocab_size": PADDED_VOCAB, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": CONTEXT, "word_embed_proj_dim": 32, "init_std": 0.4,
    },
}  # fmt: skip


class NumberTokenizer:
    """Ids are their own text; enough for an engine whose prompts are ids."""

    vocab_size = VOCAB

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Any) -> str:
        return " ".join(str(i) for i in ids)


def tiny_model(family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float64, **overrides: Any) -> Any:
    """A random model whose distributions are peaked enough to be interesting."""
    attention.register()
    # Ids of special tokens are cleared, so that no token of the tiny vocabulary means anything by accident.
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = CONFIG_MAPPING[family](**(FAMILIES[family] | ids | overrides))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.ATTENTION_NAME)
    return model.to(dtype).eval().requires_grad_(False)


def perturbed(model: Any, scale: float, seed: int = 1) -> Any:
    """A draft that half agrees: the same weights with noise."""
    draft = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in draft.parameters():
            noise = torch.empty(parameter.shape, dtype=torch.float32).normal_(generator=generator)
            parameter += scale * parameter.std() * noise.to(parameter.dtype)
    return draft


def runner(model: Any, num_slots: int) -> ModelRunner:
    return ModelRunner(model, num_slots=num_slots, max_positions=16, context_length=CONTEXT, vocab_size=VOCAB)


def engine(
    target: Any,
    draft: Any = None,
    *,
    k: int | Policy = 0,
    batch: int = 4,
    eos: tuple[int, ...] = (),
    context: int = CONTEXT,
) -> Engine:
    return Engine(
        runner(target, batch),
        runner(draft, batch) if draft is not None else None,
        NumberTokenizer(),  # type: ignore[arg-type]
        eos_ids=eos,
        policy=FixedPolicy(k) if isinstance(k, int) else k,
        max_batch_size=batch,
        max_sequence_tokens=context,
    )
