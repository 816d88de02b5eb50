"""The memory roof: what the device moves and multiplies, and the fewest bytes that a round must read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from specbatch.specdec.inflate import Shape

_REPEATS = 8


@dataclass(frozen=True, slots=True)
class Model:
    """What a model's shape costs.

    Attributes:
        weight_bytes: read once by a forward of any size; the embedding is the output head too and so among them.
        kv_bytes: of one token, in all layers.
    """

    shape: Shape
    dtype_bytes: int

    @property
    def weight_bytes(self) -> int:
        return self.shape.parameters * self.dtype_bytes

    @property
    def kv_bytes(self) -> int:
        return 2 * self.shape.layers * self.shape.kv_heads * self.shape.head_dim * self.dtype_bytes

    def prefill_flops(self, rows: int, context: int) -> float:
        """Multiplications and additions of reading prompts: products with weights, and attention to earlier tokens."""
        shape = self.shape
        products = 2 * (shape.parameters - shape.vocab * shape.hidden) * context
        attention = 2 * context**2 * shape.layers * shape.heads * shape.head_dim  # causal: half of 4 n^2
        return rows * float(products + attention)


def round_bytes(
    target: Model, draft: Model | None, row_tokens: float, draft_steps: float, draft_tokens: float
) -> float:
    """Bytes that a round must read: weights of the target, its keys and values, and the same for each draft step.

    Args:
        row_tokens: tokens in the cache, all rows together.
        draft_steps: forwards of the draft model in a round. draft_tokens: tokens in its cache that they read in all.
    """
    own = target.weight_bytes + row_tokens * target.kv_bytes
    return own + (0.0 if draft is None else draft_steps * draft.weight_bytes + draft_tokens * draft.kv_bytes)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(device: torch.device, work: Callable[[], Any], repeats: int = _REPEATS) -> float:
    """Shortest of several runs behind two that warm up."""
    work(), work()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def measure(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Bytes per second of a copy, a triad and a sum, the best of them, and FLOP per second of a square product."""
    rates = _byte_rates(device)
    return rates | {"bytes_per_second": max(rates.values()), "flops_per_second": _product_rate(device, dtype)}


def _byte_rates(device: torch.device) -> dict[str, float]:
    """On buffers far larger than any cache."""
    count = (1 << 30) if device.type == "cuda" else (8 << 20)
    first, second, third = (torch.empty(count, dtype=torch.float32, device=device).normal_() for _ in range(3))
    works: dict[str, tuple[int, Callable[[], Any]]] = {
        "copy": (2, lambda: third.copy_(first)),
        "triad": (3, lambda: torch.add(first, second, alpha=0.5, out=third)),
        "sum": (1, lambda: first.sum()),
    }
    return {
        f"{name}_bytes_per_second": buffers * first.nbytes / best_seconds(device, work)
        for name, (buffers, work) in works.items()
    }


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """On random numbers: zeros run faster."""
    side = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(side, side, dtype=torch.float32, device=device).to(dtype) for _ in range(2))
    return 2.0 * side**3 / best_seconds(device, lambda: left @ right)
