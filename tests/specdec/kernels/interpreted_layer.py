"""The kernels of a layer and the invariant product in Triton's interpreter; ``test_layer.py`` runs this file:

TRITON_INTERPRET=1 python -m pytest tests/specdec/kernels/interpreted_layer.py
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from specbatch.specdec.kernels import invariant_kernels, layer_kernels, layer_twin
from specbatch.specdec.kernels.invariant import invariant_linear_twin

assert os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter cuts bfloat16 off instead of rounding it, and multiplies its bits as integers: no bfloat16 here.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 0.0}
EPSILON = 1e-5
TYPES = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def agree(one: Tensor, other: Tensor) -> None:
    """Half precision to the bit: whatever rounds elsewhere than eager mode shows there."""
    tolerance = TOLERANCES[one.dtype]
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@TYPES
@pytest.mark.parametrize("width", [48, 320])
@pytest.mark.parametrize("rows", [0, 1, 3, 17])
def test_add_rms_norm(dtype: torch.dtype, width: int, rows: int) -> None:
    x, delta, weight = torch.randn(rows, width), torch.randn(rows, width), 1 + torch.randn(width)
    x, delta, weight = x.to(dtype), delta.to(dtype), weight.to(dtype)
    for added in (delta, None):
        total, normed = layer_kernels.launch_add_rms_norm(x, added, weight, EPSILON)
        expected_total, expected_normed = layer_twin.add_rms_norm_twin(x, added, weight, EPSILON)
        assert torch.equal(total, expected_total)
        agree(normed, expected_normed)
    assert layer_kernels.launch_add_rms_norm(x, None, weight, EPSILON)[0] is x


@TYPES
@pytest.mark.parametrize(("rows", "inner"), [(0, 40), (1, 1100), (3, 40), (17, 40)])
def test_silu_mul(dtype: torch.dtype, rows: int, inner: int) -> None:
    gate_up = (3 * torch.randn(rows, 2 * inner)).to(dtype)
    # Exponentials differ in the last bit, and that may round a half-precision value to its neighbour.
    tolerance = 1e-3 if dtype == torch.float16 else TOLERANCES[dtype]
    expected = layer_twin.silu_mul_twin(gate_up)
    torch.testing.assert_close(layer_kernels.launch_silu_mul(gate_up), expected, rtol=tolerance, atol=1e-3 * tolerance)


@TYPES
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rows", "normed"),
    [
        (2, 2, 16, 17, ()), (6, 2, 20, 3, ("query", "key")), (7, 1, 8, 1, ("query", "key")), (4, 1, 8, 3, ("query",)),
        (4, 1, 8, 3, ("key",)),
    ],
)  # fmt: skip
def test_rotate_and_write(
    dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, rows: int, normed: tuple[str, ...]
) -> None:
    ours, theirs = both(dtype, dtype, heads, kv_heads, head_dim, rows, normed)
    for one, other in zip(ours, theirs, strict=True):
        agree(one, other)


@pytest.mark.parametrize("normed", [(), ("query", "key")], ids=str)
def test_pools_of_8_bits(normed: tuple[str, ...]) -> None:
    (query, *ours), (expected, *theirs) = both(torch.float32, torch.float8_e4m3fn, 2, 2, 16, 9, normed)
    agree(query, expected)
    # From float32: no value lies halfway between two of 8 bits, where the interpreter rounds otherwise.
    for one, other in zip(ours, theirs, strict=True):
        one, other = one.float(), other.float()
        # The interpreter loses the carry where rounding reaches the next power of two (127.5 becomes 64, not 128).
        is_lost = (torch.frexp(other).mantissa.abs() == 0.5) & (2 * one == other)
        assert 0 < is_lost.sum() < 0.2 * (other != 0).sum()
        is_normal = other.abs() >= 2**-6
        assert torch.equal(one[is_normal & ~is_lost], other[is_normal & ~is_lost])
        # Below that it rounds in a way of its own, too.
        assert ((one - other).abs() <= 2**-9)[~is_normal].all()
    assert theirs[1].float().abs().max() == 448


def both(
    dtype: torch.dtype, pool_type: torch.dtype, heads: int, kv_heads: int, head_dim: int, rows: int,
    normed: tuple[str, ...],
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Queries and both pools, of the kernel and of its twin."""
    states = (200 * torch.randn(rows, (heads + 2 * kv_heads) * head_dim)).to(dtype)
    cos, sin = torch.randn(2, rows, head_dim).to(dtype)
    norms = (1 + torch.randn(2, head_dim)).to(dtype)
    query_norm, key_norm = (norms[n] if name in normed else None for n, name in enumerate(("query", "key")))
    arguments = (torch.randperm(8 * 4)[:rows], heads, kv_heads, query_norm, key_norm, EPSILON)
    found = []
    for run in (layer_kernels.launch_rotate_and_write, layer_twin.rotate_and_write_twin):
        # One layer out of three: pages do not follow each other without a gap.
        pools = [torch.zeros(8, 3, 4, kv_heads, head_dim).to(pool_type)[:, 1] for _ in range(2)]
        found.append([run(states, cos, sin, *pools, *arguments), *pools])
    return found[0], found[1]


@TYPES
@pytest.mark.parametrize(("inputs", "outputs"), [(37, 61), (256, 40), (300, 32)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_product(dtype: torch.dtype, inputs: int, outputs: int, has_bias: bool) -> None:
    x = torch.randn(18, inputs).to(dtype)
    weight, bias = (torch.randn(outputs, inputs) / inputs**0.5).to(dtype), torch.randn(outputs).to(dtype)
    out = invariant_kernels.launch_invariant_linear(x, weight, bias if has_bias else None)
    expected = invariant_linear_twin(x, weight, bias if has_bias else None)
    tolerance = {torch.float64: 1e-13, torch.float32: 5e-6, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


def test_a_row_of_the_product_is_alone() -> None:
    """The program's own doing. In float32 numpy's product, which plays the matrix unit here, minds the place."""
    x, weight = torch.randn(40, 300, dtype=torch.float64), torch.randn(40, 300, dtype=torch.float64)
    alone = torch.cat([invariant_kernels.launch_invariant_linear(row, weight, None) for row in x[:20].split(1)])
    for rows in (2, 16, 17, 40):
        out = invariant_kernels.launch_invariant_linear(x[:rows], weight, None)
        assert torch.equal(out[:20], alone[:rows])
    strange = torch.full_like(x[:17], float("nan"))
    strange[9] = x[3]
    assert torch.equal(invariant_kernels.launch_invariant_linear(strange, weight, None)[9], alone[3])


def test_a_slice_of_columns_and_no_rows() -> None:
    x, weight = torch.randn(3, 50, dtype=torch.float64), torch.randn(8, 20, dtype=torch.float64)
    part = x[:, 7:27]
    assert torch.equal(
        invariant_kernels.launch_invariant_linear(part, weight, None),
        invariant_kernels.launch_invariant_linear(part.clone(), weight, None),
    )
    assert invariant_kernels.launch_invariant_linear(part[:0], weight, None).shape == (0, 8)
