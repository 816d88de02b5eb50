"""Unmodified modules over paged memory, for every supported family; on a GPU where there is one, by the kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from paged_cases import int32 as int32_on_cpu
from tiny import CONTEXT, VARIANTS, VOCAB, tiny_model
from torch import Tensor, nn
from transformers.cache_utils import Cache

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.specdec.kernels import interface
from specbatch.specdec.kernels.attention import layer_masks
from specbatch.specdec.kernels.spans import Spans
from specbatch.specdec.kernels.twin import pages_and_offsets, write_pages
from specbatch.specdec.models.families import FAMILIES, layer_windows

_CONFIGS: dict[str, dict[str, Any]] = {family: {"model_type": family} for family in FAMILIES} | {
    name: {"model_type": kind} | variant for name, (kind, variant) in VARIANTS.items()
}
_PAGED = [name for name, config in _CONFIGS.items() if interface.takes_pages(config)]
PAGE = 16
NUM_PAGES = 8
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def int32(values: list[Any]) -> Tensor:
    return int32_on_cpu(values).to(DEVICE)


class Pages(Cache):
    """Writes tokens to their places, and gives back the pools of a layer."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.pools: dict[int, tuple[Tensor, Tensor]] = {}
        self.place_M = torch.zeros(0)

    def get_seq_length(self, *_: Any) -> int:
        return 0

    def update(self, key_1HMD: Tensor, value_1HMD: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        states = [tensor[0].transpose(0, 1) for tensor in (key_1HMD, value_1HMD)]
        if layer not in self.pools:
            shapes = [(NUM_PAGES, PAGE, *state.shape[1:]) for state in states]
            keys, values = (torch.full(shape, torch.nan, device=DEVICE).double() for shape in shapes)
            self.pools[layer] = keys, values
        for pool, state in zip(self.pools[layer], states, strict=True):
            write_pages(pool, state, pages_and_offsets(self.place_M, PAGE))
        return self.pools[layer]


def paged_logits(model: Any, rows: list[Tensor], pieces: list[int]) -> list[Tensor]:
    """Logits of all tokens, the rows side by side and read in pieces of so many tokens."""
    table = int32([[3, 1, 6], [5, 2, 7]])
    cache, outs, begins = Pages(), [[] for _ in rows], [0] * len(rows)
    for piece in pieces:
        counts = [min(piece, len(row) - begin) for row, begin in zip(rows, begins, strict=True)]
        positions = [
            torch.arange(begin, begin + count, device=DEVICE) for begin, count in zip(begins, counts, strict=True)
        ]
        cache.place_M = torch.cat(
            [table[number, where // PAGE].long() * PAGE + where % PAGE for number, where in enumerate(positions)]
        )
        firsts = [0, counts[0]]
        ends = [begin + count for begin, count in zip(begins, counts, strict=True)]
        spans = Spans(int32(firsts), int32(counts), int32(begins), table, max(counts), max(ends))
        tokens = torch.cat([row[begin:end] for row, begin, end in zip(rows, begins, ends, strict=True)])
        logits = model(
            input_ids=tokens.unsqueeze(0),
            position_ids=torch.cat(positions).unsqueeze(0),
            past_key_values=cache,
            use_cache=True,
            specbatch_spans=spans,
        ).logits[0]
        for number, (first, count) in enumerate(zip(firsts, counts, strict=True)):
            outs[number].append(logits[first : first + count])
        begins = ends
    return [torch.cat(out) for out in outs]


def whole_logits(model: Any, row: Tensor) -> Tensor:
    """By the same attention function without spans; its tokens are held against ``generate`` elsewhere."""
    positions = torch.arange(len(row), device=DEVICE).unsqueeze(0)
    masks = layer_masks(layer_windows(model.config), positions, len(row), torch.float64)
    return model(input_ids=row.unsqueeze(0), position_ids=positions, attention_mask=masks, use_cache=False).logits[0]


@pytest.mark.parametrize("family", _PAGED)
@torch.inference_mode()
def test_modules_over_pages_say_what_they_say_without(family: str) -> None:
    interface.register()
    model = tiny_model(family, seed=2).to(DEVICE)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, VOCAB, (length,), generator=generator).to(DEVICE) for length in (40, 23)]
    model.set_attn_implementation(interface.PAGED_ATTENTION_NAME)
    expected = [whole_logits(model, row) for row in rows]
    for logits, wanted in zip(paged_logits(model, rows, [17, 5, 1, CONTEXT]), expected, strict=True):
        torch.testing.assert_close(logits, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["stablelm", "qwen2_moe with windows"])
@torch.inference_mode()
def test_modules_that_keep_arguments_to_themselves_are_refused(family: str) -> None:
    interface.register()
    model = tiny_model(family).to(DEVICE)
    model.set_attn_implementation(interface.PAGED_ATTENTION_NAME)
    with pytest.raises(SpecbatchError, match=r"that it does not tell its function|does not say where its tokens stand"):
        paged_logits(model, [torch.arange(12, device=DEVICE), torch.arange(9, device=DEVICE)], [CONTEXT])


def test_the_families_that_stay_without_pages() -> None:
    unpaged = {name for name in _CONFIGS if name not in _PAGED}
    assert unpaged & FAMILIES.keys() == {"falcon", "gptj", "stablelm"}
    kinds = {_CONFIGS[name]["model_type"] for name in unpaged - FAMILIES.keys()}
    assert kinds == {"falcon", "stablelm", "qwen2_moe"}, "the last one with windows"


@pytest.mark.parametrize(
    "arguments", [{"attention_mask": torch.zeros(1)}, {"attention_mask": None, "s_aux": torch.zeros(1)}], ids=str
)
def test_what_is_not_computed_is_refused(arguments: dict[str, Any]) -> None:
    spans = Spans(int32([0]), int32([1]), int32([0]), int32([[1]]), 1, 1)
    pool = torch.zeros(2, PAGE, 1, 16)
    with pytest.raises(SpecbatchError) as caught:
        interface.paged_interface(
            nn.Identity(), torch.zeros(1, 1, 1, 16), pool, pool, specbatch_spans=spans, **arguments
        )
    assert caught.value.code == ErrorCode.JOB_MODEL_UNSUPPORTED
