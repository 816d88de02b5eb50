"""Products whose result for a row does not depend on the other rows, how many they are, or the row's place.

On a GPU that is a kernel of our own (``invariant_kernels``). On a CPU it is a matter of feeding one shape: a library
chooses its inner loops by the number of rows, so rows are fed in tiles of a fixed number of rows, filled up with zeros.
That leaves the row's place inside a tile. What was found, on an EPYC with AVX2, one and two threads, shapes from
37 x 61 to 6,912 x 768 (``pytest tests/specdec/kernels/test_invariant.py`` holds what the code rests on):

- oneDNN's packed product in float32: the place makes no difference, at any tile. It was found to be the same for any
  number of rows from 1 to 300 too, untiled, and on one thread or two; the tile is there because nobody promises that.
- ``functional.linear`` (MKL) in float32 and float64: differs with the number of rows from M = 2 on. In tiles of 6
  rows the place makes a difference on two threads, in tiles of 2 and 3 with 37 inputs on one thread, in float64 even in
  tiles of 16 with 37 inputs and a bias. So it is fed single rows: a tile of one row has one place.
- ``functional.rms_norm``: invariant in all four types, 8 to 4,096 wide, on one thread and two, so that norms are those
  of every model (``layer.add_rms_norm``; on a GPU a program has one row).

The number of threads and the machine are no part of the promise.

Shape letters: M rows, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from specbatch.specdec.kernels.layer import triton_module
from specbatch.specdec.kernels.packing import Product, can_pack

ROWS_PER_TILE = 16
"""Rows of a packed product. Fewer cost less with few rows and more with many: every tile reads the weights again. One
of 16 takes about twice as long as one row alone (``python benchmarks/bench_products.py --device cpu``)."""


class InvariantProduct:
    """x W^T + b for flat rows, like ``packing.Product``, each row as if it were alone.

    Attributes:
        weight: [O, I], None where it is packed. num_bytes: of weight and bias.
    """

    __slots__ = ("_bias", "_product", "in_features", "num_bytes", "out_features", "weight")

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self.out_features, self.in_features = weight_OI.shape
        self._bias = None if bias_O is None else bias_O.detach()
        self._product = Product(weight_OI, bias_O) if can_pack(weight_OI.device, weight_OI.dtype) else None
        self.weight = weight_OI.detach().contiguous() if self._product is None else None
        self.num_bytes = weight_OI.nbytes + (0 if bias_O is None else bias_O.nbytes)

    def __call__(self, x_MI: Tensor) -> Tensor:
        """[M, I] to [M, O].

        Raises:
            SpecbatchError: JOB_VERSION_SKEW on a GPU without Triton.
        """
        if self.weight is not None:
            return invariant_linear(x_MI, self.weight, self._bias)
        assert self._product is not None
        return _tiled(self._product, x_MI)


def invariant_linear(x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b, [M, I] to [M, O], each row as if it were alone; sums in float32, of float64 in float64.

    Args:
        weight_OI: row-major, of the type of ``x_MI``. On a CPU in float32 every call packs it; ``InvariantProduct``
            packs once, to the same bits.

    Raises:
        SpecbatchError: JOB_VERSION_SKEW on a GPU without Triton.
    """
    if x_MI.is_cuda:
        out_MO: Tensor = triton_module("invariant_kernels").launch_invariant_linear(x_MI, weight_OI, bias_O)
        return out_MO
    return invariant_linear_twin(x_MI, weight_OI, bias_O)


def invariant_linear_twin(x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """The same promise in torch; the sums are rounded in another order than the kernel's."""
    if can_pack(weight_OI.device, weight_OI.dtype):
        return _tiled(Product(weight_OI, bias_O), x_MI)
    out_MO = x_MI.new_empty(x_MI.shape[0], weight_OI.shape[0])
    for out_O, x_I in zip(out_MO, x_MI, strict=True):
        # A copy begins where the allocator says: where a row of x begins depends on its place.
        out_O.copy_(functional.linear(x_I.unsqueeze(0).clone(), weight_OI, bias_O)[0])
    return out_MO


def _tiled(product: Product, x_MI: Tensor) -> Tensor:
    M = x_MI.shape[0]
    num_tiles = -(-M // ROWS_PER_TILE)
    if num_tiles == 0:
        return x_MI.new_empty(0, product.out_features)
    padded = functional.pad(x_MI, (0, 0, 0, num_tiles * ROWS_PER_TILE - M))
    outs = [product(tile) for tile in padded.chunk(num_tiles)]
    return torch.cat(outs)[:M] if num_tiles > 1 else outs[0][:M]
