"""Attention of a few queries of many rows over paged keys and values, on a GPU.

What is launched, in a forward of M tokens with GROUP query heads per key-value head:

- Few queries (decoding rounds): a tile of 16 to 128 rows holds the queries of a segment with their heads. One program
  per segment, key-value head and share p of the row's splits; the partial results go to memory and a second launch
  folds them. There are as many shares as keep the device busy and let no program walk a long row alone, while short
  rows leave theirs at once; one share needs neither partials nor second launch.
- Many queries (chunks of prompts): one program per tile and key-value head, which folds in registers.
- Both in one call: where most tiles would be empty they are counted off over the segments, at most
  M * GROUP / BLOCK_M + segments of them, so that a segment costs what its tokens cost. A round of 256 rows with one
  token each beside a chunk of 2,048 tokens, with a GROUP of 4 and 8 key-value heads, is
  (2304 * 4 / 64 + 257) * 8 = 3,208 programs; 3,072 of them find work.

``launch`` decides about all of this, and says what of it may change bits.

Shape letters: M tokens, Q query heads, H key-value heads, D and V widths of keys and values, N pages of S positions,
P places for the partial results of splits.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from specbatch.specdec.kernels.launch import SPLIT, plan_launch, tile_options, tile_rows
from specbatch.specdec.kernels.paged_kernels import (
    FIND_WIDTH,
    MERGE_HEADS,
    MERGE_UNROLL,
    attend_kernel,
    merge_kernel,
)
from specbatch.specdec.kernels.spans import Spans

_SUMS = {torch.float32: tl.float32, torch.float64: tl.float64}


def paged_attention(
    query_MQD: Tensor,
    key_NSHD: Tensor,
    value_NSHD: Tensor,
    spans: Spans,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    is_invariant: bool = False,
    num_shares: int | None = None,
    out_MQV: Tensor | None = None,
) -> Tensor:
    """Attention of every segment's tokens over the keys of their own row.

    Args:
        query_MQD: float16, bfloat16, float32 or float64; the last dimension is dense.
        key_NSHD, value_NSHD: pools of one layer, of the same type or float8_e4m3fn; widths up to 256, page size a
            power of two and at least 16. The tokens' own keys and values are already in there.
        window: a query at position p sees p - window + 1 .. p.
        softcap: scores s become softcap * tanh(s / softcap).
        is_invariant: a query's bits depend on its row alone: not on the batch, nor on how many tokens its segment has.
        num_shares: of a row's splits, where the device's size is not to decide.
        out_MQV: dense, written where tokens stand in segments. None for zeros: a round of fixed shape has tokens in no
            segment, whose keys and logits nobody reads; what they are must still be numbers, because a sum over all
            tokens, or a product with 0, would carry anything else to the rows.

    Returns:
        [M, Q, V] of the queries' type, ``out_MQV`` if it was given; zeros for tokens in no segment otherwise.
    """
    M, Q, D = query_MQD.shape
    page_size, H, V = value_NSHD.shape[1:]
    if out_MQV is None:
        out_MQV = query_MQD.new_zeros(M, Q, V)
    assert out_MQV.shape == (M, Q, V)
    assert out_MQV.is_contiguous()
    num_segments = spans.count_R.shape[0]
    if num_segments == 0 or spans.max_count == 0:
        return out_MQV
    _check(query_MQD, key_NSHD, value_NSHD)
    group = Q // H
    launch = plan_launch(
        num_tokens=M,
        num_segments=num_segments,
        max_count=spans.max_count,
        max_keys=spans.max_keys,
        heads=(H, group),
        window=window,
        rows=tile_rows(
            query_MQD.dtype,
            max(D, V),
            num_rows=M * group,
            num_segments=num_segments,
            max_rows=spans.max_count * group,
            is_invariant=is_invariant,
        ),
        partial_bytes=M * Q * (V + 2) * (8 if query_MQD.dtype == torch.float64 else 4),
        num_processors=_num_processors(query_MQD.device),
        num_shares=num_shares,
    )
    sums = torch.float64 if query_MQD.dtype == torch.float64 else torch.float32
    num_partials = launch.num_splits if launch.num_shares > 1 else 0
    sum_MQPV = query_MQD.new_empty(M, Q, num_partials, V, dtype=sums)
    top_MQP, total_MQP = query_MQD.new_empty(2, M, Q, num_partials, dtype=sums)
    widths = {"V": V, "BLOCK_V": max(16, triton.next_power_of_2(V))}
    common = {"Q": Q, "SPLIT": SPLIT, "WINDOW": window or 0, "SUMS": _SUMS[sums]} | widths
    with torch.cuda.device_of(query_MQD):  # type: ignore[no-untyped-call]
        attend_kernel[(launch.num_tiles, H, launch.num_shares)](
            out_MQV, sum_MQPV, top_MQP, total_MQP, query_MQD, key_NSHD, value_NSHD,
            spans.first_R, spans.count_R, spans.start_R, spans.table_RW,
            query_MQD.stride(0), query_MQD.stride(1), *key_NSHD.stride()[:3], *value_NSHD.stride()[:3],
            spans.table_RW.stride(0), num_segments, launch.tiles_per_segment, launch.num_shares, launch.num_splits,
            GROUP=group, D=D, BLOCK_D=max(16, triton.next_power_of_2(D)), PAGE=page_size,
            SCALING=float(scaling), SOFTCAP=float(softcap or 0.0), IS_FP8=key_NSHD.dtype.itemsize == 1,
            WIDTH=FIND_WIDTH, **common, **tile_options(query_MQD.dtype, max(D, V), launch.rows),
        )  # fmt: skip
        if launch.num_shares > 1:
            merge_kernel[(num_segments * spans.max_count, triton.cdiv(Q, MERGE_HEADS))](
                out_MQV, sum_MQPV, top_MQP, total_MQP, spans.first_R, spans.count_R, spans.start_R,
                spans.max_count, launch.num_splits, HEADS=MERGE_HEADS, UNROLL=MERGE_UNROLL, num_warps=2,
                enable_fp_fusion=False, **common,
            )  # fmt: skip
    return out_MQV


@functools.cache
def _num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _check(query_MQD: Tensor, key_NSHD: Tensor, value_NSHD: Tensor) -> None:
    """State what the callers promise."""
    page_size, H = key_NSHD.shape[1:3]
    assert query_MQD.shape[1] % H == 0
    assert query_MQD.shape[2] == key_NSHD.shape[3]
    assert key_NSHD.shape[:3] == value_NSHD.shape[:3]
    assert max(key_NSHD.shape[3], value_NSHD.shape[3]) <= 256
    assert page_size >= 16
    assert page_size & (page_size - 1) == 0, "the page size is a power of two"
    assert query_MQD.stride(2) == key_NSHD.stride(3) == value_NSHD.stride(3) == 1
    assert key_NSHD.dtype == value_NSHD.dtype
    assert key_NSHD.dtype in (query_MQD.dtype, torch.float8_e4m3fn)
