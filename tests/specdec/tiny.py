"""Tiny random models and engines around them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from specbatch.specdec.engine import Engine
from specbatch.specdec.forward.feed import Decoder
from specbatch.specdec.forward.generic import GenericDecoder
from specbatch.specdec.forward.generic_paged import PagedGenericDecoder
from specbatch.specdec.forward.lean import LeanDecoder
from specbatch.specdec.forward.lean_paged import PagedLeanDecoder
from specbatch.specdec.forward.paged_memory import Pages, pages_of
from specbatch.specdec.forward.paging import PAGE_SIZE
from specbatch.specdec.forward.runner import ModelRunner, attention_name, experts_name
from specbatch.specdec.kernels import attention
from specbatch.specdec.models.families import max_context
from specbatch.specdec.policy.controller import FixedPolicy, Policy, RoundPlan, RoundView

VOCAB = 61
PADDED_VOCAB = 64
CONTEXT = 96

WINDOW = 10
"""Keys that the sliding layers see: fewer than most prompts have."""

_COMMON: dict[str, Any] = {
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
_UNGROUPED = {key: value for key, value in _COMMON.items() if key != "num_key_value_heads"}
_GPT = {
    "vocab_size": PADDED_VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT,
    "initializer_range": 0.4,
}  # fmt: skip
_ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "cohere": _COMMON | {"logit_scale": 1.0},
    "cohere2": _COMMON | _ALTERNATING | {"logit_scale": 1.0},
    "falcon": _UNGROUPED | {"multi_query": True},
    "gemma": _COMMON | {"head_dim": 8},
    "gemma2": _COMMON
    | _ALTERNATING
    | {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": _COMMON
    | _ALTERNATING
    | {"query_pre_attn_scalar": 16, "rope_theta": 1e6, "rope_local_base_freq": 100.0},
    "glm": _COMMON | {"head_dim": 8},
    "glm4": _COMMON | {"head_dim": 8},
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neox": _UNGROUPED,
    "gptj": _GPT | {"rotary_dim": 4},
    "granite": _COMMON | {"attention_multiplier": 0.2, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "granitemoe": _COMMON | _EXPERTS,
    "llama": _COMMON,
    "mistral": _COMMON | {"sliding_window": WINDOW},
    "mixtral": _COMMON | _EXPERTS | {"sliding_window": WINDOW},
    "olmo": _COMMON,
    "olmo2": _COMMON,
    "olmo3": _COMMON | _ALTERNATING,
    "olmoe": _COMMON | _EXPERTS,
    "opt": {
        "vocab_size": PADDED_VOCAB, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": CONTEXT, "word_embed_proj_dim": 32, "init_std": 0.4,
    },
    "phi": _COMMON,
    "phi3": _COMMON | {"sliding_window": WINDOW},
    "qwen2": _COMMON | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen2_moe": _COMMON | _EXPERTS | {"shared_expert_intermediate_size": 40},
    "qwen3": _COMMON | {"head_dim": 8},
    "qwen3_moe": _COMMON | _EXPERTS | {"head_dim": 8, "norm_topk_prob": True},
    "smollm3": _COMMON,
    "stablelm": _COMMON,
    "starcoder2": _COMMON | {"sliding_window": WINDOW},
}  # fmt: skip
"""A small config of every supported family, with what makes the family special switched on."""

_LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [9.0] * 4}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon without multi-query": ("falcon", {"multi_query": False}),
    "falcon, newer architecture": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt_bigcode without multi-query": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neox in sequence": ("gpt_neox", {"use_parallel_residual": False}),
    "llama with dynamic frequencies": ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "opt with a projection": ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "phi3 with frequencies by length": (
        "phi3", {"rope_scaling": _LONGROPE, "original_max_position_embeddings": 64, "sliding_window": None},
    ),
    "qwen2 without windows": ("qwen2", {"use_sliding_window": False}),
    "qwen2_moe with windows": ("qwen2_moe", {"use_sliding_window": True, "sliding_window": WINDOW}),
    "qwen3 with windows": ("qwen3", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3_moe with windows": ("qwen3_moe", {"use_sliding_window": True, "sliding_window": WINDOW}),
    "smollm3 with windows": ("smollm3", _ALTERNATING | {"use_sliding_window": True}),
    "stablelm in parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
}  # fmt: skip
"""Other settings of these families that take other paths through their code."""


class NumberTokenizer:
    """Ids are their own text; enough for an engine whose prompts are ids."""

    vocab_size = VOCAB

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Any) -> str:
        return " ".join(str(i) for i in ids)


def tiny_model(family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float64, **overrides: Any) -> Any:
    """A random model of a family or variant whose distributions are peaked enough to be interesting."""
    attention.register()
    # Ids of special tokens are cleared, so that no token of the tiny vocabulary means anything by accident.
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    kind, variant = VARIANTS.get(family, (family, {}))
    config = CONFIG_MAPPING[kind](**(FAMILIES[kind] | ids | variant | overrides))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention_name(kind), experts_implementation=experts_name(dtype)
    )
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


def context_of(model: Any) -> int:
    return max_context(model.config.to_dict()) or CONTEXT


def runner(model: Any, num_slots: int, max_positions: int = 16) -> ModelRunner:
    return ModelRunner(
        model,
        num_slots=num_slots,
        max_positions=max_positions,
        context_length=context_of(model),
        vocab_size=VOCAB,
    )


ROUNDS: dict[str, Literal["ahead", "captured", "loop"]] = {
    "paged": "loop",
    "captured": "captured",
    "ahead": "ahead",
    "generic paged": "loop",
    "generic ahead": "ahead",
}
"""Ways to decode over pages: by the plain loop, in rounds of fixed shape, and those launched ahead."""

PATHS = [
    "generic",
    "lean",
    "ahead",  # whose pages and rounds are those of the next two
    pytest.param("paged", marks=pytest.mark.long),
    pytest.param("captured", marks=pytest.mark.long),
]


def decoder(
    model: Any, num_slots: int, path: str = "generic", pages: Pages | None = None, num_pages: int = 200
) -> Decoder:
    """One model behind the face of all paths; the lean ones take a copy, because they take the weights over."""
    if path == "generic":
        return GenericDecoder(runner(model, num_slots))
    if path in ROUNDS:
        is_generic = path.startswith("generic")
        pages = Pages(num_pages, num_slots, CONTEXT + 1, torch.device("cpu")) if pages is None else pages
        known = {"context_length": context_of(model), "vocab_size": VOCAB}
        kind = PagedGenericDecoder if is_generic else PagedLeanDecoder
        return kind(copy.deepcopy(model), pages=pages, **known)
    sizes = {"num_slots": num_slots, "max_positions": 16, "context_length": context_of(model), "vocab_size": VOCAB}
    return LeanDecoder(copy.deepcopy(model), **sizes)


def engine(
    target: Any,
    draft: Any = None,
    *,
    k: int | Policy = 0,
    batch: int = 4,
    eos: tuple[int, ...] = (),
    context: int = CONTEXT,
    path: str = "generic",
    has_suffix: bool = False,
    max_kv_tokens: int | None = None,
    **settings: Any,
) -> Engine:
    num_pages = 200 if max_kv_tokens is None else 1 + max_kv_tokens // PAGE_SIZE
    first = decoder(target, batch, path, num_pages=num_pages)
    return Engine(
        first,
        decoder(draft, batch, path, pages_of(first)) if draft is not None else None,
        NumberTokenizer(),  # type: ignore[arg-type]
        eos_ids=eos,
        policy=FixedPolicy(k, has_draft=draft is not None, has_suffix=has_suffix) if isinstance(k, int) else k,
        max_batch_size=batch,
        max_sequence_tokens=context,
        max_kv_tokens=max_kv_tokens,
        has_suffix=has_suffix,
        rounds=ROUNDS.get(path, "loop"),
        **settings,
    )


class MixedPolicy(FixedPolicy):
    """What the suffix index offers, for rows that it offers much; one draft of the model's for the others."""

    uses_suffix = True

    def plan(self, view: RoundView) -> RoundPlan:
        looked_up_B = np.minimum(np.minimum(view.suffix_length_B, view.room_B), self.max_draft_length)
        drawn_B = np.minimum(np.minimum(view.draft_room_B, view.room_B), 1)
        is_model_B = looked_up_B <= 1
        return RoundPlan(np.where(is_model_B, drawn_B, looked_up_B), is_model_B & (drawn_B > 0))


NO_MEMORY = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"


class Scarce:
    """A decoder whose forwards fail now and then for want of memory, as an allocator says it.

    Args:
        fails: whether a forward does, by what it is fed and which logits it is to keep.
    """

    def __init__(self, decoder: Any, fails: Callable[[Any, Any], bool]) -> None:
        self._run, self._fails = decoder.run, fails
        self.num_failures = 0
        decoder.run = self.run

    def run(self, feed: Any, keep: Any) -> torch.Tensor:
        if self._fails(feed, keep):
            self.num_failures += 1
            raise RuntimeError(NO_MEMORY)
        logits: torch.Tensor = self._run(feed, keep)
        return logits


def longer_than(num_tokens: int) -> Callable[[Any, Any], bool]:
    """Forwards of more tokens than these."""
    return lambda feed, keep: len(feed.token_M) > num_tokens
