"""What an invariant product promises on a CPU, and what that rests on; its kernel: ``layer_kernel_checks.py``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from specbatch.specdec.kernels.invariant import (
    ROWS_PER_TILE,
    InvariantProduct,
    invariant_linear,
    invariant_linear_twin,
)
from specbatch.specdec.kernels.layer import add_rms_norm
from specbatch.specdec.kernels.packing import Product, can_pack

CPU = torch.device("cpu")
SHAPES = pytest.mark.parametrize(("inputs", "outputs"), [(37, 61), (48, 320), (768, 384)])


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def case(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(inputs)
    return (
        torch.randn(rows, inputs, dtype=dtype),
        torch.randn(outputs, inputs, dtype=dtype) / inputs**0.5,
        torch.randn(outputs, dtype=dtype),
    )


@pytest.mark.usefixtures("_threads")
@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_row_is_alone(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    """Equal to the bit for M = 1 to 40, and with a row of NaN before or behind it, in every place."""
    x, weight, bias = case(40, inputs, outputs, dtype)
    product = InvariantProduct(weight, bias)
    alone = torch.cat([product(row) for row in x.split(1)])
    for rows in range(1, 41):
        assert torch.equal(product(x[-rows:]), alone[-rows:])
    for place in range(18):
        others = torch.full((18, inputs), float("nan"), dtype=dtype)
        others[place] = x[5]
        assert torch.equal(product(others)[place], alone[5])


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_is_the_product(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    x, weight, bias = case(17, inputs, outputs, dtype)
    tolerance = 1e-13 if dtype == torch.float64 else 5e-6
    for one in (bias, None):
        out = invariant_linear(x, weight, one)
        torch.testing.assert_close(out, functional.linear(x, weight, one), rtol=tolerance, atol=tolerance)
        assert torch.equal(out, invariant_linear_twin(x, weight, one))
        assert torch.equal(out, InvariantProduct(weight, one)(x))
        assert InvariantProduct(weight, one)(x[:0]).shape == (0, outputs)
    assert InvariantProduct(weight, bias).num_bytes == weight.nbytes + bias.nbytes


@pytest.mark.usefixtures("_threads")
@SHAPES
@pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="this torch does not pack")
def test_a_packed_tile_does_not_mind_the_place(inputs: int, outputs: int) -> None:
    """What the tiles rest on: oneDNN's packed product, at one number of rows."""
    x, weight, bias = case(ROWS_PER_TILE, inputs, outputs, torch.float32)
    product = Product(weight, bias)
    found = [product(x.roll(place, 0))[place] for place in range(ROWS_PER_TILE)]
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [8, 48, 320, 4096])
def test_a_normed_row_is_alone(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(width)
    x, weight = torch.randn(40, width).to(dtype), torch.randn(width).to(dtype)
    alone = torch.cat([add_rms_norm(row, None, weight, 1e-5)[1] for row in x.split(1)])
    for rows in range(1, 41):
        assert torch.equal(add_rms_norm(x[-rows:], None, weight, 1e-5)[1], alone[-rows:])
