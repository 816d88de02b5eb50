"""The two best scores of each position, noise included: one launch over the logits on a GPU.

Its twin is what ``sampling.untruncated`` does in torch, step by step; that is the oracle, and what runs elsewhere.

Shape letters: N positions, B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specbatch.specdec.kernels.layer import triton_module


def is_drawn_by_kernel(logits_NV: Tensor) -> bool:
    """Whether ``two_best`` takes these: not float64, whose draws are exact and the same on every device."""
    return logits_NV.is_cuda and logits_NV.dtype != torch.float64


def two_best(
    logits_NV: Tensor, row_N: Tensor, index_N: Tensor, seed_B: Tensor, temperature_B: Tensor, *, is_random: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The token with the best score, the lowest of equal ones, and how far it leads.

    Args:
        logits_NV: float32, bfloat16 or float16 on a GPU; the tokens of a position dense.
        row_N, index_N: int64 row of each position, and index in its completion.
        seed_B, temperature_B: int64 and float64. At temperature 0 a score is the logit; at others it is as right as
            ``sampling.untruncated`` counts on.
        is_random: some temperature is above 0.

    Returns:
        int64 tokens [N], float32 best scores (NaN where any logit is) and second scores.

    Raises:
        SpecbatchError: JOB_VERSION_SKEW without Triton.
    """
    launch = triton_module("draw_kernels").launch_draw
    found: tuple[Tensor, Tensor, Tensor] = launch(logits_NV, row_N, index_N, seed_B, temperature_B, is_random=is_random)
    return found
