"""The small operations of a layer: the twins against the lean decoder. Their kernels: ``layer_kernel_checks.py``."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from specbatch.specdec.forward.lean import LeanDecoder
from specbatch.specdec.kernels import layer


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_twins_are_the_lean_layer(family: str, dtype: torch.dtype) -> None:
    """To the bit: queries, pages, MLP and residual of the first layer."""
    model: Any = tiny_model(seed=3, family=family).to(dtype)
    decoder = LeanDecoder(model, num_slots=2, max_positions=32, context_length=64, vocab_size=61)
    one, E, D = decoder.layers[0], 32, decoder.head_dim
    Q, H = decoder.num_heads, decoder.num_kv_heads
    torch.manual_seed(1)
    x = torch.randn(9, E).to(dtype)
    cos, sin = decoder._rotary(x, torch.arange(9) + 3)
    with torch.inference_mode():
        query, key, value = decoder._project(one, x, cos, sin)
        out = torch.randn(9, Q * D).to(dtype)
        finished = decoder._finish(one, x, out)

        total, normed = layer.add_rms_norm(x, None, one.input_norm, decoder.epsilon)
        pools = [torch.zeros(5, 4, H, D, dtype=dtype) for _ in range(2)]
        place = torch.tensor([4, 5, 6, 7, 16, 17, 18, 19, 12])
        rotated = layer.rotate_and_write(
            one.qkv(normed), cos[:, 0], sin[:, 0], pools[0], pools[1], place, Q, H, one.query_norm, one.key_norm,
            decoder.epsilon,
        )  # fmt: skip
        residual, mlp_normed = layer.add_rms_norm(total, one.out(out), one.mlp_norm, decoder.epsilon)
        down = one.down(layer.silu_mul(one.gate_up(mlp_normed)))
        last, _ = layer.add_rms_norm(residual, down, one.input_norm, decoder.epsilon)
    assert (family == "qwen3") == (one.query_norm is not None)
    assert torch.equal(rotated, query)
    assert torch.equal(pools[0].flatten(0, 1)[place], key)
    assert torch.equal(pools[1].flatten(0, 1)[place], value)
    assert torch.equal(last, finished)
    assert not pools[0][[0, 2]].any()


def test_8_bits_are_cut_and_not_lost() -> None:
    pools = [torch.zeros(2, 2, 1, 2).to(torch.float8_e4m3fn) for _ in range(2)]
    states = torch.tensor([[1.0, 2.0, 1e4, -1e4, 465.0, float("nan")]])
    cos, sin = torch.ones(1, 2), torch.zeros(1, 2)
    layer.rotate_and_write(states, cos, sin, pools[0], pools[1], torch.tensor([3]), 1, 1)
    assert pools[0][1, 1, 0].float().tolist() == [448.0, -448.0]
    assert pools[1][1, 1, 0, 0] == 448
    assert pools[1][1, 1, 0, 1].isnan()


def test_the_norm_is_torch_s_and_not_the_module_s() -> None:
    """In half precision the two round differently; forward/lean.py follows torch."""
    torch.manual_seed(0)
    x, weight = torch.randn(40, 320).bfloat16(), (1 + 0.2 * torch.randn(320)).bfloat16()
    _, normed = layer.add_rms_norm(x, None, weight, 1e-5)

    def by_hand(rounds_first: bool) -> Tensor:
        wide = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)
        return wide.bfloat16() * weight if rounds_first else (wide * weight.float()).bfloat16()

    assert torch.equal(normed, by_hand(False))
    assert not torch.equal(normed, by_hand(True))


def test_triton_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from specbatch.schemas.errors import SpecbatchError

    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "specbatch.specdec.kernels.layer_kernels", raising=False)
    with pytest.raises(SpecbatchError, match="install 'triton"):
        layer.triton_module("layer_kernels")
