"""Models made on the spot: the bundled pair grown to real shapes, on the device, without a file in between.

The draft that is "the target, disturbed" is the small target with noise on its matrices, as much as makes it agree with
the target on a given share of tokens, and then grown. It is a real model with a real model's ups and downs of
acceptance, and the target's text stays what it is.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from gpu.roof import Model
from gpu.shapes import SHAPES
from specbatch.specdec.forward.lean import LeanDecoder
from specbatch.specdec.forward.lean_paged import PagedLeanDecoder
from specbatch.specdec.forward.paged_memory import Pages
from specbatch.specdec.forward.paging import PAGE_SIZE
from specbatch.specdec.inflate import Shape, check_growth, fill_weight, inflated_config, load_state, shape_of
from specbatch.specdec.loading import uses_pages
from specbatch.specdec.models.folders import locate_model
from specbatch.specdec.rows.batch import POSITIONS_STEP
from specbatch.specdec.tokenizer import Tokenizer

_PROMPTS = Path(__file__).resolve().parent.parent.parent / "examples" / "prompts.parquet"
CONTEXT_LENGTH = 32768
"""Positions that the models are told to know; the bundled pair was trained on far fewer, so its text there is poor."""
TARGET, TAUGHT = "code-pair/target", "code-pair/draft-taught"
OWN = "own"
_CALIBRATION_TOKENS, _CALIBRATION_PROMPT_TOKENS = 64, 16 * 1024
_MOST_NOISE, _BISECTIONS = 4.0, 9


@dataclass(frozen=True, slots=True)
class Source:
    """A small model: its config, weights and shape."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    shape: Shape


@lru_cache(maxsize=2)
def source(name: str) -> Source:
    """A bundled model, weights in float32 on the host."""
    folder = locate_model(name)
    state = {key: weight.float() for key, weight in load_state(folder.path).items()}
    return Source(folder.config | {"max_position_embeddings": CONTEXT_LENGTH}, state, shape_of(folder.config))


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    """The pair's."""
    return Tokenizer.from_folder(locate_model(TARGET).path)


@lru_cache(maxsize=1)
def _tokens() -> list[int]:
    """Tokens of all demo prompts, one after another."""
    import pyarrow.parquet as pq  # here, so that on a bare machine a task can say what it lacks

    table = pq.read_table(_PROMPTS)
    return [token for text in table.column("prompt").to_pylist() for token in tokenizer().encode(text)]


def prompts(batch: int, context: int) -> list[list[int]]:
    """Prompts of ``context`` tokens: the demo prompts' tokens over and over, each row from a place of its own."""
    tokens = _tokens()
    copies = tokens * (math.ceil(context / len(tokens)) + 1)
    starts = [row * len(tokens) // batch for row in range(batch)]
    return [copies[start : start + context] for start in starts]


def build(small: Source, goal: Shape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """A module of ``transformers`` with the function of a small model, made where it will run."""
    check_growth(small.config, small.shape, goal)
    config = AutoConfig.for_model(**inflated_config(small.config, small.shape, goal, str(dtype).removeprefix("torch.")))
    with torch.device(device):
        module = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    module = module.to(device=device, dtype=dtype).eval().requires_grad_(False)
    _fill(module, small, goal, seed)
    module.generation_config.eos_token_id = None
    module.generation_config.pad_token_id = 0
    return module


def _fill(module: Any, small: Source, goal: Shape, seed: int = 0) -> None:
    """Write all weights of a module where they lie."""
    generator = torch.Generator(next(module.parameters()).device).manual_seed(seed)
    for name, weight in module.named_parameters():
        fill_weight(name, weight, small.state, small.shape, goal, generator)


def lean(small: Source, goal: Shape, device: torch.device, dtype: torch.dtype) -> LeanDecoder:
    """The engine's decoder of a grown model; its memory is brought to size by ``fit_caches``."""
    module, known = build(small, goal, device, dtype), {"vocab_size": tokenizer().vocab_size}
    decoder: LeanDecoder
    if uses_pages(device):
        pages = Pages(2, 1, CONTEXT_LENGTH, device)
        decoder = PagedLeanDecoder(module, pages=pages, context_length=CONTEXT_LENGTH, **known)
    else:
        sizes = {"num_slots": 1, "max_positions": POSITIONS_STEP, "context_length": CONTEXT_LENGTH}
        decoder = LeanDecoder(module, **sizes, **known)
    release()
    return decoder


def num_pages(num_slots: int, row_tokens: int) -> int:
    """Pages for so many rows of so many tokens."""
    return num_slots * -(-row_tokens // PAGE_SIZE)


def release() -> None:
    """Give back memory that nothing holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def disturbed(small: Source, scale: float, seed: int = 1) -> Source:
    """The same model with noise of ``scale`` times their own deviation on its matrices."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, weight in small.state.items():
        noise = torch.empty(weight.shape).normal_(generator=generator)
        state[name] = weight + scale * weight.std() * noise if weight.dim() == 2 else weight
    return Source(small.config, state, small.shape)


@torch.inference_mode()
def agreeing(
    small: Source, share: float, context: int, device: torch.device, dtype: torch.dtype
) -> tuple[Source, float]:
    """The small target disturbed so far that its first choice is the target's for about ``share`` of the tokens.

    Returns:
        the model, and the share measured on the target's own greedy text behind prompts of ``context`` tokens.
    """
    rows = max(min(16, _CALIBRATION_PROMPT_TOKENS // context), 2)
    ids = torch.tensor(prompts(rows, context), device=device)
    target = build(small, small.shape, device, dtype)
    whole = target.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=_CALIBRATION_TOKENS
    )
    said = whole[:, context:]

    def agreement(scale: float) -> float:
        _fill(target, disturbed(small, scale), small.shape)
        logits = target(input_ids=whole[:, :-1], use_cache=False, logits_to_keep=said.shape[1]).logits
        return float((logits.argmax(-1) == said).double().mean())

    low, high = 0.0, _MOST_NOISE
    tried = {}
    for _ in range(_BISECTIONS):
        scale = (low + high) / 2
        tried[scale] = agreement(scale)
        low, high = (scale, high) if tried[scale] > share else (low, scale)
    best = min(tried, key=lambda scale: abs(tried[scale] - share))
    return disturbed(small, best), tried[best]


class Pair:
    """Target and draft of one size, resident; the draft is made anew when the context changes."""

    def __init__(self, name: str, acceptance: str, device: torch.device, dtype: torch.dtype) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self._acceptance = acceptance
        shapes = SHAPES[name]
        self.target_model = Model(shapes.target, dtype.itemsize)
        self.draft_model = Model(shapes.draft, dtype.itemsize)
        self.target = lean(source(TARGET), shapes.target, device, dtype)
        self.draft: LeanDecoder | None = None
        self.agreement: dict[int, float] = {}
        self._context = 0
        self._draft_source = source(TAUGHT)
        self._modules: dict[str, Any] = {}

    def ready_draft(self, context: int) -> LeanDecoder:
        """The draft for prompts of ``context`` tokens."""
        if self.draft is None or (context != self._context and self._acceptance != OWN):
            self.draft = None
            self._modules.pop("draft", None)
            if self._acceptance != OWN:
                share = float(self._acceptance)
                made, agreement = agreeing(source(TARGET), share, context, self.device, self.dtype)
                self._draft_source, self.agreement[context] = made, agreement
            self.draft = lean(self._draft_source, self.draft_model.shape, self.device, self.dtype)
            self._context = context
        return self.draft

    def module(self, role: str) -> Any:
        """Target or draft as a module of ``transformers``, of the same weights; for the peers."""
        if role not in self._modules:
            small = source(TARGET) if role == "target" else self._draft_source
            shape = self.target_model.shape if role == "target" else self.draft_model.shape
            self._modules[role] = build(small, shape, self.device, self.dtype)
        return self._modules[role]

    def fit_caches(self, num_slots: int, row_tokens: int = POSITIONS_STEP) -> None:
        """Small caches of so many slots, which the engine lets grow; or all pages, for rows of so many tokens."""
        decoders = [decoder for decoder in (self.target, self.draft) if decoder is not None]
        paged = [decoder for decoder in decoders if isinstance(decoder, PagedLeanDecoder)]
        if paged:
            pages = Pages(1 + num_pages(num_slots, row_tokens), num_slots, CONTEXT_LENGTH, self.device)
            for decoder in paged:
                _use_pages(decoder, pages)
        for other in decoders:
            if other not in paged:
                other.cache.resize(1, POSITIONS_STEP)
                other.cache.resize(num_slots, POSITIONS_STEP)
        release()


def _use_pages(decoder: PagedLeanDecoder, pages: Pages) -> None:
    """Give a decoder another page table, which nothing but a benchmark does; its pool goes before it gets a new one."""
    decoder.cache.free()
    decoder._pages = pages
    decoder.cache = decoder.make_memory(0, 0)


def equal_rows(left: Sequence[Sequence[int]], right: Sequence[Sequence[int]]) -> float:
    """Share of rows whose texts are equal as far as both go."""
    same = sum(list(a[: len(b)]) == list(b[: len(a)]) for a, b in zip(left, right, strict=True))
    return same / max(len(left), 1)
