"""Other ways to write what a step of the lean path does besides its products: is there one that torch runs faster?

python benchmarks/bench_forms.py

The MLP with its residual sum: as the lean path has it, with only the residual sum inside the last product, and with
SwiGLU and residual sum inside the packed products (oneDNN post-ops). Attention of a decoding batch: the one kernel that
the lean path calls against two batched products around a softmax, with the mask in the first or added to it.

Shape letters: M rows, E width, I inner width; B rows, H key-value heads, G query heads of each times queries,
P positions, D head width.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

WIDTH, INNER = 768, 3456
KV_HEADS, GROUP, HEAD_DIM, SLOT_POSITIONS = 2, 3, 64, 512


def microseconds(run: Callable[[], object], repeats: int = 100) -> float:
    """Median wall time."""
    for _ in range(5):
        run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def mlp_forms() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """x, residual [M, E] to [M, E], on the same random weights."""
    reorder, product = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
    gate_IE, up_IE = torch.randn(INNER, WIDTH) / WIDTH**0.5, torch.randn(INNER, WIDTH) / WIDTH**0.5
    down_EI = torch.randn(WIDTH, INNER) / INNER**0.5
    both, gate, up, down = (reorder(weight, 16) for weight in (torch.cat([gate_IE, up_IE]), gate_IE, up_IE, down_EI))

    def plain(x: Tensor, packed: Any) -> Any:
        return product(x, packed, None, "none", [], "")

    def lean(x: Tensor, residual: Tensor) -> Tensor:
        gated, upped = plain(x, both).chunk(2, -1)
        out: Tensor = residual + plain(functional.silu(gated) * upped, down)
        return out

    def fused_sum(x: Tensor, residual: Tensor) -> Tensor:
        gated, upped = plain(x, both).chunk(2, -1)
        out: Tensor = product.binary(functional.silu(gated) * upped, residual, down, None, "add")
        return out

    def fused_all(x: Tensor, residual: Tensor) -> Tensor:
        hidden = product.binary(x, product(x, gate, None, "swish", [], ""), up, None, "mul")
        out: Tensor = product.binary(hidden, residual, down, None, "add")
        return out

    return {"lean path": lean, "sum fused": fused_sum, "SwiGLU and sum fused": fused_all}


def attention_forms(B: int, T: int, P: int) -> dict[str, Callable[[], Tensor]]:
    """No argument to [B, H, G, D], on the same states read where they lie in a slot memory."""
    keys, values = (torch.randn(B, KV_HEADS, SLOT_POSITIONS, HEAD_DIM)[:, :, :P] for _ in range(2))
    query = torch.randn(B, KV_HEADS, GROUP * T, HEAD_DIM)
    mask = torch.zeros(B, 1, GROUP * T, P)
    mask[..., P - 3 :] = float("-inf")
    scale = HEAD_DIM**-0.5

    def kernel() -> Tensor:
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)

    def added() -> Tensor:
        return torch.matmul(torch.softmax(torch.matmul(query * scale, keys.transpose(2, 3)) + mask, -1), values)

    def accumulated() -> Tensor:
        folded = (states.reshape(B * KV_HEADS, -1, HEAD_DIM) for states in (query, keys, values))
        q, k, v = folded
        bias = mask.expand(B, KV_HEADS, GROUP * T, P).reshape(B * KV_HEADS, GROUP * T, P)
        weights = torch.softmax(torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale), -1)
        return torch.bmm(weights, v).view_as(query)

    return {"lean path": kernel, "products, mask added": added, "products, mask accumulated": accumulated}


@torch.inference_mode()
def main() -> None:
    """Print two Markdown tables; refuse forms that do not agree."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    mlp = mlp_forms()
    print("MLP with residual sum, µs\n\n| rows | " + " | ".join(mlp) + " |\n|---|---|---|---|")
    for rows in (1, 8, 16, 32, 48, 64):
        x, residual = torch.randn(rows, WIDTH), torch.randn(rows, WIDTH)
        for form in mlp.values():
            torch.testing.assert_close(form(x, residual), mlp["lean path"](x, residual), atol=1e-5, rtol=1e-5)
        times = [microseconds(partial(form, x, residual)) for form in mlp.values()]
        print(f"| {rows} | " + " | ".join(f"{value:.0f}" for value in times) + " |")

    shapes = ((8, 1, 150), (8, 4, 150), (16, 1, 150), (16, 3, 150), (32, 2, 250))
    print("\nAttention of one layer, µs\n\n| rows, queries, positions | " + " | ".join(attention_forms(1, 1, 4)) + " |")
    print("|---|---|---|---|")
    for shape in shapes:
        forms = attention_forms(*shape)
        for form in forms.values():
            torch.testing.assert_close(form(), forms["lean path"](), atol=1e-5, rtol=1e-5)
        times = [microseconds(form) for form in forms.values()]
        print(f"| {', '.join(map(str, shape))} | " + " | ".join(f"{value:.0f}" for value in times) + " |")


if __name__ == "__main__":
    main()
