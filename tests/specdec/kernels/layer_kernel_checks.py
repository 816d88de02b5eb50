"""What the kernels of a layer and the invariant product must do, in Triton's interpreter or on a GPU.

``test_kernels.py`` runs this file, each way in a process of its own. By hand: see ``device.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from device import DEVICE, HALF, IS_GPU
from torch import Tensor
from torch.nn import functional

from specbatch.specdec.kernels import invariant_kernels, layer, layer_kernels, layer_twin
from specbatch.specdec.kernels.invariant import InvariantProduct, invariant_linear_twin
from specbatch.specdec.kernels.invariant_kernels import MOST_FEW_ROWS, launch_invariant_linear

TOLERANCES = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 0.0}
if IS_GPU:
    TOLERANCES |= {dtype: torch.finfo(dtype).eps for dtype in (torch.float16, torch.bfloat16)}
EPSILON = 1e-5
TYPES = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
PRODUCTS = [(37, 61), (256, 40), (300, 32), *([(768, 384), (4096, 512)] if IS_GPU else [])]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE)


def agree(one: Tensor, other: Tensor) -> None:
    """Half precision to the bit: whatever rounds elsewhere than eager mode shows there.

    A device adds in an order of its own, and may round what lies near the middle to the other neighbour: seldom, where
    rounding elsewhere would show in a quarter of all values.
    """
    tolerance = TOLERANCES[one.dtype]
    if not IS_GPU:
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    elif one.numel():
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * other.abs().max().item())
        assert one.dtype.itemsize > 2 or (one == other).double().mean() > 0.97


@TYPES
@pytest.mark.parametrize("width", [48, 320, *([4096] if IS_GPU else [])])
@pytest.mark.parametrize("rows", [0, 1, 3, 17])
def test_add_rms_norm(dtype: torch.dtype, width: int, rows: int) -> None:
    x, delta, weight = randn(rows, width), randn(rows, width), 1 + randn(width)
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
    gate_up = (3 * randn(rows, 2 * inner)).to(dtype)
    # Exponentials differ in the last bit, and that may round a half-precision value to its neighbour. A device's are of
    # powers of two, of a product that is rounded.
    tolerance = 1e-3 if dtype == torch.float16 else TOLERANCES[dtype] * (4 if IS_GPU else 1)
    expected = layer_twin.silu_mul_twin(gate_up)
    torch.testing.assert_close(layer_kernels.launch_silu_mul(gate_up), expected, rtol=tolerance, atol=1e-3 * tolerance)


@TYPES
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rows", "normed"),
    [
        (2, 2, 16, 17, ()), (6, 2, 20, 3, ("query", "key")), (7, 1, 8, 1, ("query", "key")), (4, 1, 8, 3, ("query",)),
        (4, 1, 8, 3, ("key",)), *([(32, 8, 128, 17, ()), (16, 8, 128, 17, ("query", "key"))] if IS_GPU else []),
    ],
)  # fmt: skip
def test_rotate_and_write(
    dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, rows: int, normed: tuple[str, ...]
) -> None:
    ours, theirs = both(dtype, dtype, heads, kv_heads, head_dim, rows, normed)
    for one, other in zip(ours, theirs, strict=True):
        agree(one, other)


@pytest.mark.parametrize("normed", [(), ("query", "key")], ids=str)
@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    [(torch.float32, 16), *((dtype, width) for dtype in (HALF, torch.float32) for width in (64, 128, 256) if IS_GPU)],
    ids=str,
)
def test_pools_of_8_bits(dtype: torch.dtype, head_dim: int, normed: tuple[str, ...]) -> None:
    (query, *ours), (expected, *theirs) = both(dtype, torch.float8_e4m3fn, 2, 2, head_dim, 9, normed)
    agree(query, expected)
    for one, other in zip(ours, theirs, strict=True):
        same_8_bits(one.float(), other.float())
    assert theirs[1].float().abs().max() == 448


def same_8_bits(one: Tensor, other: Tensor) -> None:
    is_normal = other.abs() >= 2**-6
    if IS_GPU:
        # What was rounded once before may lie on the other side of the middle between two numbers of 8 bits.
        assert (one == other).double().mean() > 0.97
        torch.testing.assert_close(one[is_normal], other[is_normal], rtol=2**-3, atol=0)
    else:
        # From float32: no value lies halfway between two of 8 bits, where the interpreter rounds otherwise.
        # It loses the carry where rounding reaches the next power of two (127.5 becomes 64, not 128).
        is_lost = (torch.frexp(other).mantissa.abs() == 0.5) & (2 * one == other)
        assert 0 < is_lost.sum() < 0.2 * (other != 0).sum()
        assert torch.equal(one[is_normal & ~is_lost], other[is_normal & ~is_lost])
    # Below that the interpreter rounds in a way of its own, too.
    assert ((one - other).abs() <= 2**-9)[~is_normal].all()


def both(
    dtype: torch.dtype, pool_type: torch.dtype, heads: int, kv_heads: int, head_dim: int, rows: int,
    normed: tuple[str, ...],
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Queries and both pools, of the kernel and of its twin."""
    states = (200 * randn(rows, (heads + 2 * kv_heads) * head_dim)).to(dtype)
    cos, sin = randn(2, rows, head_dim).to(dtype)
    norms = (1 + randn(2, head_dim)).to(dtype)
    query_norm, key_norm = (norms[n] if name in normed else None for n, name in enumerate(("query", "key")))
    arguments = (torch.randperm(8 * 4, device=DEVICE)[:rows], heads, kv_heads, query_norm, key_norm, EPSILON)
    found = []
    for run in (layer_kernels.launch_rotate_and_write, layer_twin.rotate_and_write_twin):
        # One layer out of three: pages do not follow each other without a gap.
        pools = [torch.zeros(8, 3, 4, kv_heads, head_dim, device=DEVICE).to(pool_type)[:, 1] for _ in range(2)]
        found.append([run(states, cos, sin, *pools, *arguments), *pools])
    return found[0], found[1]


def product(dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, weight and bias."""
    return randn(rows, inputs).to(dtype), (randn(outputs, inputs) / inputs**0.5).to(dtype), randn(outputs).to(dtype)


@TYPES
@pytest.mark.parametrize(("inputs", "outputs"), PRODUCTS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_product(dtype: torch.dtype, inputs: int, outputs: int, has_bias: bool) -> None:
    x, weight, bias = product(dtype, MOST_FEW_ROWS + 4, inputs, outputs)
    tolerance = {torch.float64: 1e-13, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for rows in (18, len(x)):  # with tiles of either kind
        out = launch_invariant_linear(x[:rows], weight, bias if has_bias else None)
        expected = invariant_linear_twin(x[:rows], weight, bias if has_bias else None)
        torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("_rows_alike")
@pytest.mark.parametrize("dtype", [HALF, torch.float64, *([torch.float16, torch.float32] if IS_GPU else [])], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(140, 33), *([(37, 61), (768, 384), (4096, 6144)] if IS_GPU else [])])
def test_a_row_of_the_product_is_alone(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    """Equal to the bit with few rows and with many, wherever it stands, and beside rows that are no numbers."""
    most = 3 * MOST_FEW_ROWS if IS_GPU else MOST_FEW_ROWS + 2
    x, weight, bias = product(dtype, most, inputs, outputs)
    alone = torch.cat([launch_invariant_linear(row, weight, bias) for row in x.split(1)])
    for rows in range(2, most + 1) if IS_GPU else (2, 17, most):
        for begin in {0, most - rows}:
            out = launch_invariant_linear(x[begin : begin + rows], weight, bias)
            assert torch.equal(out, alone[begin : begin + rows]), (rows, begin)
    for rows in (17, most):
        for place in range(rows) if IS_GPU else (9,):
            strange = torch.full_like(x[:rows], float("nan"))
            strange[place] = x[3]
            assert torch.equal(launch_invariant_linear(strange, weight, bias)[place], alone[3]), (rows, place)


def test_tensors_may_begin_anywhere_and_be_part_of_wider_ones() -> None:
    """To the bit what dense ones give; an empty part too."""

    def part(rows: int, width: int) -> Tensor:
        return randn(rows, width + 30)[:, 7 : 7 + width]

    weight, norm, cos, sin = randn(8, 20), randn(20), part(3, 8), part(3, 8)
    pools = [torch.zeros(2, 4, 1, 8, device=DEVICE) for _ in range(2)]
    place = torch.arange(4, device=DEVICE)[1:]
    runs: list[tuple[Callable[[Tensor], Tensor], int]] = [
        (lambda x: launch_invariant_linear(x, weight, None), 20),
        (lambda x: layer_kernels.launch_add_rms_norm(x, x, norm, EPSILON)[1], 20),
        (layer_kernels.launch_silu_mul, 20),
        (lambda x: layer_kernels.launch_rotate_and_write(x, cos, sin, *pools, place, 2, 1), 32),
    ]
    for run, width in runs[:3]:
        x = part(3, width)
        assert torch.equal(run(x), run(x.clone()))
        assert len(run(x[:0])) == 0
    run, width = runs[3]
    x = part(3, width)
    written = [run(x), *(pool.clone() for pool in pools)]
    expected = layer_kernels.launch_rotate_and_write(x.clone(), cos.clone(), sin.clone(), *pools, place.clone(), 2, 1)
    assert all(torch.equal(one, other) for one, other in zip(written, [expected, *pools], strict=True))
    assert pools[0][0, 1:].any()


def layer_launches(device: str, dtype: torch.dtype) -> list[Callable[[], Tensor]]:
    """Every launcher, with a result that can be compared."""

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    x, delta, norm, weight, gate_up = made(5, 48), made(5, 48), made(48), made(32, 48), made(5, 96)
    states, cos, sin, pools = made(5, 4 * 16), made(5, 16), made(5, 16), [made(2, 16, 1, 16) for _ in range(2)]
    place = torch.arange(16, 21, device=device)
    return [
        lambda: layer_kernels.launch_add_rms_norm(x, delta, norm, EPSILON)[1],
        lambda: layer_kernels.launch_silu_mul(gate_up),
        lambda: layer_kernels.launch_rotate_and_write(states, cos, sin, *pools, place, 2, 1),
        lambda: launch_invariant_linear(x, weight, None),
    ]


def test_a_launch_enters_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[Any] = []

    class Entered(torch.cuda.device_of):  # type: ignore[misc]
        def __init__(self, tensor: Tensor) -> None:
            super().__init__(tensor)
            entered.append(tensor.device.type)

    monkeypatch.setattr(torch.cuda, "device_of", Entered)
    for number, launch in enumerate(layer_launches(DEVICE, HALF), start=1):
        launch()
        assert entered == [DEVICE] * number


@pytest.mark.skipif(not IS_GPU or torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_second_device() -> None:
    for device in ("cuda:0", "cuda:1"):
        torch.manual_seed(7)
        results = [launch() for launch in layer_launches(device, HALF)]
        assert all(result.isfinite().all() and result.device == torch.device(device) for result in results)


@pytest.mark.skipif(not IS_GPU, reason="a CPU runs the twins")
def test_what_a_model_calls_runs_the_kernels() -> None:
    """And stands in a graph: it computes what its tensors hold by then."""
    x, weight, bias = product(HALF, 40, 320, 96)
    norm = (1 + randn(320)).to(HALF)
    assert torch.equal(InvariantProduct(weight, bias)(x), launch_invariant_linear(x, weight, bias))
    alone = torch.cat([layer.add_rms_norm(row, None, norm, EPSILON)[1] for row in x.split(1)])
    assert torch.equal(layer.add_rms_norm(x, None, norm, EPSILON)[1], alone)
    agree(alone, functional.rms_norm(x, (320,), norm, EPSILON))

    def forward() -> list[Tensor]:
        total, normed = layer.add_rms_norm(x, x, norm, EPSILON)
        return [total, normed, layer.silu_mul(normed), InvariantProduct(weight, bias)(normed)]

    expected, kept = forward(), x.clone()
    x.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = forward()
    x.copy_(kept)
    graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(outs, expected, strict=True))


def test_the_tile_follows_from_type_and_rows_alone() -> None:
    few, many = invariant_kernels.FEW, invariant_kernels.MANY
    assert [invariant_kernels.tile_of(torch.bfloat16, rows) for rows in (1, MOST_FEW_ROWS)] == [few, few]
    assert invariant_kernels.tile_of(torch.float16, MOST_FEW_ROWS + 1) == many
    assert invariant_kernels.tile_of(torch.float32, 1000) == few
    # With four warps and 64 rows it would be another instruction.
    assert all(tile.num_warps % 4 or tile.rows % 64 for tile in (few, many))
