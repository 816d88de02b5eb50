"""A matrix product in Triton whose row does not depend on the other rows, their number or its own place.

What makes it so, for given weights:

- One instruction. Whatever the tile, Triton multiplies half precision with ``mma.sync`` m16n8k16: a warpgroup's
  ``wgmma`` wants four warps and 64 rows, and no tile here has both. A row that is missing is fed as zeros, and rows of
  an instruction do not meet.
- One order of sums: a program walks all inputs from first to last, 16 at a time, in float32 (float64 of float64), and
  nobody else adds to its outputs. No split of the inputs, whatever it would bring with few rows.
- Two binaries at most, one for each tile. The number of rows is not specialized on, and the inputs are always dense and
  aligned. That both tiles give a row the same bits follows from the two points above, if a row of an instruction is
  rounded alike wherever it stands; ``compile_layer.py`` looks into the machine code, and a device must show the rest.

What it costs: every weight is read once for every tile of rows, from memory once and then from the second-level cache,
since programs that share weights stand next to each other in the grid. So many rows have tiles of 64. Few outputs leave
processors idle (2,048 outputs are 64 programs, or 32): that is the price of not splitting the inputs.

Shape letters: M rows, I inputs, O outputs; X rows of a tile, Y outputs of a tile, K inputs of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from specbatch.specdec.kernels.layer_kernels import dense


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and outputs of a program, its warps, and one more than the steps that shared memory holds."""

    rows: int
    outputs: int
    num_warps: int
    num_stages: int


STEP_BYTES = 256
"""Inputs of a step, in bytes of a row."""
FEW = Tile(rows=16, outputs=32, num_warps=4, num_stages=5)
"""A step is 12 KiB, so four take 48 KiB of shared memory, 32 KiB of it weights. A processor of an H200 holds four such
programs; 4.8 TB/s over 132 processors at a latency near a microsecond ask for some 36 KiB in flight on each (an
estimate)."""
MANY = Tile(rows=64, outputs=64, num_warps=2, num_stages=3)
"""A step is 32 KiB, so two take 64 KiB, and a processor holds three programs. Two warps: four would use ``wgmma``."""
MOST_FEW_ROWS = 32
"""With more rows tiles are those of many. Two small tiles read no slower than a large one, of which there are a quarter
as many programs (an estimate). Should a device show other bits in the two, a number that no batch has makes ``FEW``
compute everything."""


def tile_of(dtype: torch.dtype, num_rows: int) -> Tile:
    """Wide types have small tiles only: float32 is multiplied without matrix instructions, out of registers."""
    return MANY if num_rows > MOST_FEW_ROWS and dtype.itemsize == 2 else FEW


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
    x = dense(x_MI)
    out = torch.empty((M, outputs), dtype=x.dtype, device=x.device)
    if M == 0:
        return out
    tile, step = tile_of(x.dtype, M), STEP_BYTES // x.element_size()
    with torch.cuda.device_of(x):
        invariant_linear_kernel[(triton.cdiv(outputs, tile.outputs) * triton.cdiv(M, tile.rows),)](
            out, x, weight_OI, weight_OI if bias_O is None else bias_O, M, outputs, inputs,
            HAS_BIAS=bias_O is not None, IS_EVEN=inputs % step == 0,
            COMPUTE=tl.float64 if x.dtype == torch.float64 else tl.float32,
            BLOCK_M=tile.rows, BLOCK_N=tile.outputs, BLOCK_K=step,
            num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
        )  # fmt: skip
    return out
