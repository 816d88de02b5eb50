"""How many binaries Triton would make of a kernel for everything that a model is called with.

Triton compiles anew for what it knows of an argument: its type, whether it is 1, whether 16 divides it. Two binaries
may round differently. Nothing is compiled or launched here, so a driver that only names a device is enough.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from paged_cases import PAGE, int32
from torch import Tensor

from specbatch.specdec.kernels.spans import Spans

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter makes no binaries", allow_module_level=True)
triton = pytest.importorskip("triton")
HALF = torch.bfloat16


class H200:
    """As much of a driver as Triton asks before it compiles."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return -1

    def get_current_stream(self, _: int) -> int:
        return 0


@pytest.fixture
def binaries(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, set[str]]]:
    """Keys of the binaries that were asked for, by kernel."""
    found: dict[str, set[str]] = defaultdict(set)

    def note(*, key: str, fn: Any, **_: Any) -> bool:
        found[fn.jit_function.fn.__name__].add(key)
        return True  # which says that somebody else compiles it

    monkeypatch.setattr(triton.runtime.driver, "_active", H200())
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.jit_cache_hook = note
        yield found


def part(*shape: int, begin: int = 0, wider: int = 0, dtype: torch.dtype = HALF) -> Tensor:
    """A tensor that begins so many numbers behind an aligned one, with gaps between its rows."""
    *outer, width = shape
    return torch.zeros(*outer, width + wider + begin).to(dtype)[..., begin : begin + width]


@pytest.mark.parametrize("group", [1, 4])
def test_paged_attention(group: int, binaries: dict[str, set[str]]) -> None:
    from specbatch.specdec.kernels.paged_attention import paged_attention

    pools = [torch.zeros(40, PAGE, 3, 64, dtype=HALF) for _ in range(2)]
    for count, segments, max_keys, begin in [
        (1, 1, 300, 0),
        (1, 3, 600, 1),
        (5, 1, 1300, 0),
        (9, 16, 2600, 3),
        (40, 2, 256, 0),
    ]:
        for num_shares in (1, 2, 3):
            tables = torch.zeros(segments, 170 + begin, dtype=torch.int32)
            spans = Spans(
                *(torch.zeros(segments + begin, dtype=torch.int32)[begin:] for _ in range(3)),
                tables[:, begin:],
                count,
                max_keys,
            )
            query = part(count * segments, 3 * group, 64, begin=begin)
            paged_attention(query, *pools, spans, scaling=0.3, is_invariant=True, num_shares=num_shares)
    assert {name: len(keys) for name, keys in binaries.items()} == {"attend_kernel": 1, "merge_kernel": 1}


def test_the_kernels_of_a_layer(binaries: dict[str, set[str]]) -> None:
    from specbatch.specdec.kernels import layer_kernels

    norm, head_norm = torch.zeros(2, 64, dtype=HALF)
    pools = [torch.zeros(4, PAGE, 1, 64, dtype=HALF) for _ in range(2)]
    for rows in (1, 2, 16, 17):
        for begin, wider in ((0, 0), (1, 0), (0, 3), (5, 8), (0, 16)):
            x, cos, states, gate_up = (part(rows, width, begin=begin, wider=wider) for width in (64, 64, 256, 128))
            place = torch.zeros(rows + begin, dtype=torch.int64)[begin:]
            layer_kernels.launch_add_rms_norm(x, x, norm, 1e-5)
            layer_kernels.launch_silu_mul(gate_up)
            layer_kernels.launch_rotate_and_write(states, cos, cos, *pools, place, 2, 1, head_norm, head_norm)
    assert {name: len(keys) for name, keys in binaries.items()} == {
        "add_rms_norm_kernel": 1, "silu_mul_kernel": 1, "rotate_and_write_kernel": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("dtype", "most"), [(HALF, 2), (torch.float32, 1)], ids=str)
def test_the_invariant_product(dtype: torch.dtype, most: int, binaries: dict[str, set[str]]) -> None:
    """In half precision two, of one instruction and order; all other rows share theirs."""
    from specbatch.specdec.kernels.invariant_kernels import launch_invariant_linear

    weight = torch.zeros(48, 64, dtype=dtype)
    for rows in (1, 2, 16, 17, 32, 33, 64, 100):
        for begin, wider in ((0, 0), (1, 0), (3, 5)):
            launch_invariant_linear(part(rows, 64, begin=begin, wider=wider, dtype=dtype), weight, None)
    assert {name: len(keys) for name, keys in binaries.items()} == {"invariant_linear_kernel": most}


@pytest.mark.parametrize("is_random", [False, True])
def test_the_draw(is_random: bool, binaries: dict[str, set[str]]) -> None:
    """Rows, indices and parameters as the loop hands them over: parts of one tensor, of any number of rows."""
    from specbatch.specdec.kernels.draw_kernels import TILE, launch_draw

    for rows in (1, 2, 3, 16, 17):
        logits = torch.zeros(rows, 2 * TILE, dtype=HALF)[:, : TILE + 9]
        row, index, seed = torch.zeros(3 * rows, dtype=torch.int64).split(rows)
        _, temperature = torch.zeros(2 * rows, dtype=torch.float64).split(rows)
        launch_draw(logits, row, index, seed, temperature, is_random=is_random)
    assert {name: len(keys) for name, keys in binaries.items()} == {"draw_tiles_kernel": 1, "fold_tiles_kernel": 1}


def test_the_test_sees_a_second_binary(binaries: dict[str, set[str]]) -> None:
    """A stride of the pool is told to Triton: it is the same in all calls of a model."""
    from specbatch.specdec.kernels.paged_attention import paged_attention

    spans = Spans(int32([0]), int32([1]), int32([0]), int32([[1, 2]]), 1, 20)
    for wider in (0, 1):
        pools = [part(4, PAGE, 1, 64, wider=wider) for _ in range(2)]
        paged_attention(torch.zeros(1, 4, 64, dtype=HALF), *pools, spans, scaling=0.3)
    assert len(binaries["attend_kernel"]) == 2
