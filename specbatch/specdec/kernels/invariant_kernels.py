"""A matrix product in Triton whose row does not depend on the other rows, their number or its own place.

What makes it so, for given weights:

- One binary. The number of rows is not specialized on, and the inputs are always dense and aligned.
- One tile shape, chosen from nothing but the type. With 16 rows, Triton uses the matrix instruction of 16 rows
  (``mma.sync`` m16n8k16 in half precision) for one row as for a thousand; with 64 it would use another instruction.
  A row that is missing is fed as zeros, and rows of an instruction do not meet.
- One order of sums: a program walks all inputs from first to last in float32 (float64 of float64), and nobody else
  adds to its outputs. No split of the inputs, whatever it would bring with few rows.

What it costs: with M rows every weight is read M / 16 times, from memory once and then from the second-level cache,
since programs that share weights stand next to each other in the grid. Few outputs leave processors idle (2,048 outputs
are 64 programs): that is the price of not splitting the inputs.

Shape letters: M rows, I inputs, O outputs; X rows of a tile, Y outputs of a tile, K inputs of a step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
OUTPUTS = 32
STEP_BYTES = 256
"""Inputs of a step, in bytes of a row: 12 KiB for a step's rows and weights in any type."""
NUM_WARPS = 4
NUM_STAGES = 5
"""Four steps are on their way while one is multiplied: 48 KiB of shared memory per program, 32 KiB of it weights. A
processor of an H200 holds four such programs; 4.8 TB/s over 132 processors at a latency near a microsecond ask for some
36 KiB in flight on each (an estimate)."""


@triton.jit(do_not_specialize=["num_rows"])
def invariant_linear_kernel(
    out_MO,
    x_MI,
    weight_OI,
    bias_O,
    num_rows,
    num_outputs,
    num_inputs,
    HAS_BIAS: tl.constexpr,
    IS_EVEN: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (tiles of outputs times tiles of rows), the rows running faster. IS_EVEN: no step is cut."""
    num_row_tiles = tl.cdiv(num_rows, BLOCK_M)
    program = tl.program_id(0)
    row_X = (program % num_row_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    output_Y = (program // num_row_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    step_K = tl.arange(0, BLOCK_K)
    is_row_X, is_output_Y = row_X < num_rows, output_Y < num_outputs
    x_XK = x_MI + row_X.to(tl.int64)[:, None] * num_inputs + step_K[None, :]
    weight_KY = weight_OI + output_Y.to(tl.int64)[None, :] * num_inputs + step_K[:, None]
    sum_XY = tl.zeros((BLOCK_M, BLOCK_N), dtype=COMPUTE)
    for begin in range(0, num_inputs, BLOCK_K):
        if IS_EVEN:
            rows = tl.load(x_XK, mask=is_row_X[:, None], other=0.0)
            weights = tl.load(weight_KY, mask=is_output_Y[None, :], other=0.0)
        else:
            is_input_K = step_K < num_inputs - begin
            rows = tl.load(x_XK, mask=is_row_X[:, None] & is_input_K[None, :], other=0.0)
            weights = tl.load(weight_KY, mask=is_output_Y[None, :] & is_input_K[:, None], other=0.0)
        sum_XY = tl.dot(rows, weights, sum_XY, input_precision="ieee", out_dtype=COMPUTE)
        x_XK += BLOCK_K
        weight_KY += BLOCK_K
    if HAS_BIAS:
        sum_XY += tl.load(bias_O + output_Y, mask=is_output_Y, other=0.0).to(COMPUTE)[None, :]
    out_XY = out_MO + row_X.to(tl.int64)[:, None] * num_outputs + output_Y[None, :]
    tl.store(out_XY, sum_XY.to(out_MO.dtype.element_ty), mask=is_row_X[:, None] & is_output_Y[None, :])


def launch_invariant_linear(x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """See ``invariant.invariant_linear``; reads nothing from the device, so it may stand in a CUDA graph."""
    (M, inputs), outputs = x_MI.shape, weight_OI.shape[0]
    assert weight_OI.shape[1] == inputs
    assert weight_OI.is_contiguous()
    assert weight_OI.dtype == x_MI.dtype
    x = x_MI.contiguous()
    if x.data_ptr() % 16:
        x = x.clone()
    out = torch.empty((M, outputs), dtype=x.dtype, device=x.device)
    if M == 0:
        return out
    step = STEP_BYTES // x.element_size()
    invariant_linear_kernel[(triton.cdiv(outputs, OUTPUTS) * triton.cdiv(M, ROWS),)](
        out, x, weight_OI, weight_OI if bias_O is None else bias_O, M, outputs, inputs,
        HAS_BIAS=bias_O is not None, IS_EVEN=inputs % step == 0,
        COMPUTE=tl.float64 if x.dtype == torch.float64 else tl.float32,
        BLOCK_M=ROWS, BLOCK_N=OUTPUTS, BLOCK_K=step, num_warps=NUM_WARPS, num_stages=NUM_STAGES,
        enable_fp_fusion=False,
    )  # fmt: skip
    return out
