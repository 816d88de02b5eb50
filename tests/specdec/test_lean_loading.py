"""Weights are taken out of a module layer by layer: what is made of them and what they were are never held together."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from tiny import VOCAB, context_of, tiny_model
from torch import Tensor, nn

from specbatch.specdec.forward.lean import LeanDecoder
from specbatch.specdec.kernels import packing
from specbatch.specdec.kernels.packing import RowProduct, pack_linears

NUM_LAYERS = 5


class Watched(LeanDecoder):
    """Notes, whenever a product or the memory of keys and values is made, how many weights are still the module's."""

    def __init__(self, model: Any, **sizes: int) -> None:
        linears = [module for module in model.model.modules() if isinstance(module, nn.Linear)]
        self.originals = [weakref.ref(linear.weight) for linear in linears]
        self.held: list[int] = []
        self.held_at_memory = -1
        super().__init__(model, **sizes)

    def num_held(self) -> int:
        return sum(original() is not None for original in self.originals)

    def make_product(self, weight_OI: Tensor, bias_O: Tensor | None) -> RowProduct:
        self.held.append(self.num_held())
        return super().make_product(weight_OI, bias_O)

    def make_memory(self, num_slots: int, max_positions: int) -> Any:
        self.held_at_memory = self.num_held()
        return super().make_memory(num_slots, max_positions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_weight_goes_when_its_product_is_made(dtype: torch.dtype, is_tied: bool, has_bias: bool) -> None:
    model = tiny_model(dtype=dtype, num_hidden_layers=NUM_LAYERS, tie_word_embeddings=is_tied, attention_bias=has_bias)
    head = weakref.ref(model.get_output_embeddings().weight)
    weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
    subject = Watched(model, num_slots=1, max_positions=32, context_length=context_of(model), vocab_size=VOCAB)
    # Seven weights a layer: three become one product, then one, two and one more.
    assert subject.held == [7 * n - gone for n in range(NUM_LAYERS, 0, -1) for gone in (0, 3, 4, 6)] + [0]
    assert subject.held_at_memory == 0
    assert (head() is None) != is_tied
    if dtype == torch.bfloat16:
        assert subject.weight_bytes <= weight_bytes, "nothing is held twice"
    with torch.inference_mode():
        logits = subject.canonical_logits(torch.tensor([1, 2, 3]))
    module = tiny_model(dtype=dtype, num_hidden_layers=NUM_LAYERS, tie_word_embeddings=is_tied, attention_bias=has_bias)
    expected = module(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False).logits[0, -1, :VOCAB]
    torch.testing.assert_close(logits.float(), expected.float(), atol=0.05 * float(expected.abs().max()), rtol=0)


def test_a_weight_that_is_alone_in_its_product_is_not_copied() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    places = [layer.self_attn.o_proj.weight.data_ptr() for layer in model.model.layers]
    subject = LeanDecoder(model, num_slots=1, max_positions=32, context_length=context_of(model), vocab_size=VOCAB)
    weights = [layer.out.weight for layer in subject.layers]
    assert [None if weight is None else weight.data_ptr() for weight in weights] == places


def test_packing_lets_go_what_it_has_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gemma2", dtype=torch.float32)
    originals = [weakref.ref(module.weight) for module in model.modules() if isinstance(module, nn.Linear)]
    held = []
    pack = packing.pack

    def counted(weight_OI: Tensor) -> Any:
        held.append(sum(original() is not None for original in originals))
        return pack(weight_OI)

    monkeypatch.setattr(packing, "pack", counted)
    assert pack_linears(model) == len(originals) == len(held)
    assert held == list(range(len(originals), 0, -1))
