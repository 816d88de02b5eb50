"""What the kernel of paged attention must do, in Triton's interpreter or on a GPU.

``test_kernels.py`` runs this file, each way in a process of its own. By hand: see ``device.py``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from device import DEVICE, HALF, IS_GPU
from paged_cases import Case
from paged_cases import case as case_on_cpu

from specbatch.specdec.kernels import paged_attention as module
from specbatch.specdec.kernels.launch import SPLIT, tile_rows
from specbatch.specdec.kernels.paged_attention import paged_attention
from specbatch.specdec.kernels.twin import paged_attention_twin

SCALING = 0.3
TOLERANCES = {torch.float64: 1e-13, torch.float32: 3e-6, torch.float16: 3e-3}
if IS_GPU:
    TOLERANCES[torch.bfloat16] = 2e-2


def case(*counts_and_starts: list[int], **options: Any) -> Case:
    return case_on_cpu(*counts_and_starts, **options).to(DEVICE)


def run(paged: Case, **options: Any) -> torch.Tensor:
    return paged_attention(paged.query_MQD, paged.key_NSHD, paged.value_NSHD, paged.spans, scaling=SCALING, **options)


def check(paged: Case, *, num_shares: int | None = None, is_invariant: bool = False, **options: Any) -> None:
    out = run(paged, num_shares=num_shares, is_invariant=is_invariant, **options)
    expected = paged_attention_twin(
        paged.query_MQD, paged.key_NSHD, paged.value_NSHD, paged.spans, scaling=SCALING, **options
    )
    tolerance = TOLERANCES[out.dtype]
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("num_shares", [1, 2])
def test_ragged_rows(dtype: torch.dtype, num_shares: int) -> None:
    check(
        case([1, 0, 5, 2, 1], [SPLIT - 1, 3, SPLIT - 2, 0, 2 * SPLIT + 7], heads=(4, 1), dtype=dtype),
        num_shares=num_shares,
    )


@pytest.mark.parametrize(
    ("heads", "widths"), [((1, 1), (64, 64)), ((8, 2), (80, 80)), ((7, 1), (128, 16)), ((14, 2), (16, 128))], ids=str
)
def test_heads_and_widths(heads: tuple[int, int], widths: tuple[int, int]) -> None:
    check(case([1, 3], [20, 9], heads=heads, widths=widths))


@pytest.mark.parametrize("num_shares", [1, 3])
@pytest.mark.parametrize(
    "options", [{"window": 1}, {"window": SPLIT + 1}, {"softcap": 1.5}, {"window": 9, "softcap": 0.5}],
    ids=str,
)  # fmt: skip
def test_windows_and_caps(options: dict[str, Any], num_shares: int) -> None:
    check(case([1, 6], [2 * SPLIT + 40, SPLIT - 3], heads=(2, 1)), num_shares=num_shares, **options)


@pytest.mark.parametrize(
    ("dtype", "width"),
    [(torch.float64, 16), (torch.float16, 16), *[(torch.bfloat16, width) for width in (64, 128, 256) if IS_GPU]],
    ids=str,
)
def test_pools_of_8_bits(dtype: torch.dtype, width: int) -> None:
    check(case([1, 3], [20, 9], widths=(width, width), dtype=dtype, pool=torch.float8_e4m3fn))


@pytest.mark.skipif(not IS_GPU, reason="the interpreter knows no tile that does not fit")
@pytest.mark.parametrize("pool", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("count", [1, 3, 8, 18, 70])
def test_every_tile(count: int, width: int, pool: torch.dtype) -> None:
    """With a group of 4: tiles of 16, 32, 64 and 128 rows, where the width has them."""
    paged = case([count, count], [SPLIT + 20, 9], heads=(8, 2), widths=(width, width), dtype=torch.bfloat16, pool=pool)
    for num_shares in (1, 2):
        check(paged, num_shares=num_shares)


@pytest.mark.parametrize(("is_invariant", "num_shares"), [(False, 1), (True, 1), (True, 2)])
def test_a_long_chunk_beside_short_segments(
    is_invariant: bool, num_shares: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = []
    decide = module.plan_launch
    monkeypatch.setattr(module, "plan_launch", lambda **sizes: launches.append(decide(**sizes)) or launches[-1])
    paged = case([1, 0, 70, 1, 2, 3], [30, 0, 5, SPLIT + 2, 60, 0], heads=(2, 1), dtype=torch.float16)
    check(paged, is_invariant=is_invariant, num_shares=num_shares)
    assert launches[0].tiles_per_segment == 0
    assert launches[0].num_tiles < 6 * -(-70 * 2 // launches[0].rows)


def test_more_segments_than_are_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIND_WIDTH", 4)
    check(case([0, 1, 2, 0, 1, 18, 0, 0, 0, 40, 1], list(range(11)), heads=(1, 1), dtype=torch.float32))


@pytest.mark.usefixtures("_rows_alike")
@pytest.mark.parametrize(
    ("dtype", "pool", "width", "window"),
    [
        (HALF, None, 16, None),
        (HALF, None, 16, SPLIT - 40),
        (torch.float32, None, 16, None),
        *[(HALF, pool, width, None) for pool in (None, torch.float8_e4m3fn) for width in (64, 128, 256) if IS_GPU],
    ],
    ids=str,
)
def test_a_querys_bits_depend_on_its_row_alone(
    dtype: torch.dtype, pool: torch.dtype | None, width: int, window: int | None
) -> None:
    """Among others or alone, in a chunk, a round or by itself, whatever the number of programs."""
    paged = case([1, 24, 5], [SPLIT + 3, SPLIT - 4, 7], heads=(3, 1), widths=(width, width), dtype=dtype, pool=pool)
    together = run(paged, window=window, is_invariant=True)[paged.segment(1)]
    for num_shares in (1, 2):
        alone = run(paged.part(1, 0, 24), window=window, is_invariant=True, num_shares=num_shares)
        assert torch.equal(alone, together), num_shares
    # Before the end of a split, at its last key, behind it; beside one another; at the end.
    for skipped, count in ((0, 1), (3, 1), (4, 5), (23, 1)):
        part = run(paged.part(1, skipped, count), window=window, is_invariant=True, num_shares=1 + skipped % 2)
        assert torch.equal(part, together[skipped : skipped + count]), (skipped, count)


def test_bits_do_not_depend_on_the_hints() -> None:
    """The host's bounds may be loose, as in a captured graph."""
    paged = case([1, 2], [SPLIT + 3, 7], dtype=torch.float16)
    loose = dataclasses.replace(paged, spans=dataclasses.replace(paged.spans, max_count=8, max_keys=9 * SPLIT))
    for num_shares in (1, 4):
        expected = run(paged, is_invariant=True, num_shares=num_shares)
        assert torch.equal(run(loose, is_invariant=True, num_shares=num_shares), expected)


def test_what_a_window_has_left_behind_is_not_read() -> None:
    """Its pages may be another row's by then."""
    paged = case([2], [SPLIT + 50])
    window = 20
    lowest = SPLIT + 50 - window + 1
    for position in range(lowest):
        page = int(paged.spans.table_RW[0, position // 16])
        paged.key_NSHD[page, position % 16] = paged.value_NSHD[page, position % 16] = torch.nan
    check(paged, window=window)
    check(paged, window=window, num_shares=2)


def test_a_token_in_no_segment_is_zero_and_a_row_that_is_no_number_stays_alone() -> None:
    paged = case([1, 2], [5, 7])
    paged.query_MQD[paged.segment(0)] = torch.nan
    out = run(paged)
    assert out[paged.segment(0)].isnan().all()
    assert out[paged.segment(1)].isfinite().all()
    assert not out[0].any()
    assert not out[-1].any()


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_an_invariant_tile_has_one_shape(dtype: torch.dtype) -> None:
    """The interpreter rounds all shapes alike, and would not tell."""
    sizes = [(4, 1, 4), (2048, 1, 2048), (2304, 257, 2048), (160, 32, 5)]
    shapes = {
        tile_rows(dtype, 64, num_rows=rows, num_segments=segments, max_rows=most, is_invariant=True)
        for rows, segments, most in sizes
    }
    assert len(shapes) == 1


def test_what_is_given_to_write_to_is_written_where_segments_are() -> None:
    paged = case([3, 2], [300, 20])
    expected, given = run(paged, num_shares=2), torch.full_like(paged.query_MQD, 7.0)
    out = run(paged, num_shares=2, out_MQV=given)
    assert out is given
    is_outside = torch.ones(len(given), dtype=torch.bool)
    for row in range(2):
        is_outside[paged.segment(row)] = False
        assert torch.equal(given[paged.segment(row)], expected[paged.segment(row)])
    assert is_outside.any()
    assert (given[is_outside.to(given.device)] == 7.0).all()


def test_no_segment_at_all() -> None:
    paged = case([1], [5])
    nothing = paged.spans.count_R[:0]
    spans = dataclasses.replace(
        paged.spans, first_R=nothing, count_R=nothing, start_R=nothing, table_RW=paged.spans.table_RW[:0]
    )
    assert not run(dataclasses.replace(paged, spans=spans)).any()


@pytest.mark.skipif(not IS_GPU, reason="graphs are captured on a GPU")
@pytest.mark.parametrize("num_shares", [1, 3])
def test_a_captured_launch_computes_what_its_tensors_hold_by_then(num_shares: int) -> None:
    paged = case([1, 5, 2], [SPLIT + 3, 3 * SPLIT, 7], dtype=torch.bfloat16)
    expected = run(paged, num_shares=num_shares)  # compiles as well
    kept = paged.query_MQD.clone()
    paged.query_MQD.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(paged, num_shares=num_shares)
    paged.query_MQD.copy_(kept)
    graph.replay()
    assert torch.equal(out, expected)
