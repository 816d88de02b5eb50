"""The Triton programs of ``paged_attention``.

A tile is BLOCK_M rows, and a row is one query head of one query of a segment: row x is query x // GROUP and head
x % GROUP of the key-value head. So the query heads of a group read their keys once.

Keys are taken in splits of SPLIT positions, cut at multiples of SPLIT of the row and nowhere else, and inside a split
in blocks of BLOCK_N. The results of splits are folded in order by ``_fold``. Where the next split begins, what comes
before it in the sum and how it is rounded depends on the position of a query alone: not on the batch, nor on the other
queries of its segment, nor on how many programs share its row. A block or split that a query does not see leaves its
sums as they are, to the bit: the factors are 1 and the terms 0.

Scores are kept in units of log2, so that the exponential is one instruction. Multiply-adds of sums are written as
``fma``; left to the compiler, two programs could round the same line differently.

Shape letters: M tokens, Q query heads, H key-value heads, D and V widths of keys and values, N pages of S positions,
R segments, P places for the partial results of splits, K keys of a block, X what one program holds side by side: rows
of a tile, heads of a token, or segments that are looked through.
"""

from __future__ import annotations

import triton
import triton.language as tl

FIND_WIDTH = 128
MERGE_HEADS = 4
MERGE_UNROLL = 4


@triton.jit
def _fold(top_X, total_X, sum_XV, split_top_X, split_total_X, split_sum_XV):
    """Add the result of the next split: highest score, sum of weights, weighted sum of values."""
    new_top_X = tl.maximum(top_X, split_top_X)
    # Where nothing is visible yet, -inf less -inf would be no number.
    base_X = tl.where(new_top_X == float("-inf"), 0.0, new_top_X)
    old_X, new_X = tl.exp2(top_X - base_X), tl.exp2(split_top_X - base_X)
    total_X = tl.fma(total_X, old_X, split_total_X * new_X)
    sum_XV = tl.fma(sum_XV, old_X[:, None], split_sum_XV * new_X[:, None])
    return new_top_X, total_X, sum_XV


@triton.jit
def _find_tile(count_R, tile, num_segments, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, WIDTH: tl.constexpr):
    """Segment of the tile of this number, and its number in there, where every segment has the tiles that it needs."""
    segment, before, seen = 0, 0, 0
    for base in range(0, num_segments, WIDTH):
        index_X = base + tl.arange(0, WIDTH)
        is_segment_X = index_X < num_segments
        tiles_X = tl.cdiv(tl.load(count_R + index_X, mask=is_segment_X, other=0) * GROUP, BLOCK_M)
        is_before_X = is_segment_X & (seen + tl.cumsum(tiles_X, 0) <= tile)
        segment += tl.sum(is_before_X.to(tl.int32), 0)
        before += tl.sum(tl.where(is_before_X, tiles_X, 0), 0)
        seen += tl.sum(tiles_X, 0)
    return segment, tile - before


# What changes from call to call is not specialized on: one binary for all, or equal bits would be a matter of luck.
@triton.jit(
    do_not_specialize=[
        "query_token_stride",
        "query_head_stride",
        "table_stride",
        "num_segments",
        "tiles_per_segment",
        "num_shares",
        "num_splits",
    ],
    do_not_specialize_on_alignment=[
        "top_MQP",
        "total_MQP",
        "query_MQD",
        "first_R",
        "count_R",
        "start_R",
        "table_RW",
    ],
)
def attend_kernel(
    out_MQV,
    sum_MQPV,
    top_MQP,
    total_MQP,
    query_MQD,
    key_NSHD,
    value_NSHV,
    first_R,
    count_R,
    start_R,
    table_RW,
    query_token_stride,
    query_head_stride,
    key_page_stride,
    key_slot_stride,
    key_head_stride,
    value_page_stride,
    value_slot_stride,
    value_head_stride,
    table_stride,
    num_segments,
    tiles_per_segment,
    num_shares,
    num_splits,
    Q: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    PAGE: tl.constexpr,
    SCALING: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WIDTH: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_FP8: tl.constexpr,
):
    """Splits of one tile and key-value head: all of them into ``out``, or each p-th of p programs into the partials.

    Grid (tiles, key-value heads, num_shares). tiles_per_segment 0: the tiles are counted off over the segments.
    WINDOW 0: none; SOFTCAP 0: none. num_splits: of a token's partials; split s lies at s % num_splits.
    """
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    if tiles_per_segment > 0:
        segment = tile // tiles_per_segment
        tile = tile % tiles_per_segment
    else:
        segment, tile = _find_tile(count_R, tile, num_segments, GROUP, BLOCK_M, WIDTH)
    if segment >= num_segments:
        return
    count = tl.load(count_R + segment)
    if tile * BLOCK_M >= count * GROUP:
        return
    start = tl.load(start_R + segment)
    # Keys of the tile: from the first that its first query sees to the last that its last query sees.
    end = start + tl.minimum(count, (tile * BLOCK_M + BLOCK_M - 1) // GROUP + 1)
    lowest = 0
    if WINDOW > 0:
        lowest = tl.maximum(start + tile * BLOCK_M // GROUP - WINDOW + 1, 0)
    # There are as many shares as the longest row wants. The merge reads nothing that one without splits would write.
    first_split = lowest // SPLIT + tl.program_id(2)
    if first_split >= tl.cdiv(end, SPLIT):
        return
    row_X = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    query_X = row_X // GROUP
    is_row_X = query_X < count
    token_X = (tl.load(first_R + segment) + query_X).to(tl.int64)
    head_X = kv_head * GROUP + row_X % GROUP
    position_X = start + query_X
    lowest_X = position_X * 0
    if WINDOW > 0:
        lowest_X = tl.maximum(position_X - WINDOW + 1, 0)
    d_D, v_V = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    query_XD = tl.load(
        query_MQD + token_X[:, None] * query_token_stride + head_X[:, None] * query_head_stride + d_D[None, :],
        mask=is_row_X[:, None] & (d_D < D)[None, :],
        other=0.0,
    )
    key_base = key_NSHD + kv_head.to(tl.int64) * key_head_stride
    value_base = value_NSHV + kv_head.to(tl.int64) * value_head_stride
    table_row = table_RW + segment.to(tl.int64) * table_stride

    top_X = tl.full([BLOCK_M], float("-inf"), SUMS)
    total_X = tl.zeros([BLOCK_M], SUMS)
    sum_XV = tl.zeros([BLOCK_M, BLOCK_V], SUMS)
    for split in range(first_split, tl.cdiv(end, SPLIT), num_shares):
        split_top_X = tl.full([BLOCK_M], float("-inf"), SUMS)
        split_total_X = tl.zeros([BLOCK_M], SUMS)
        split_sum_XV = tl.zeros([BLOCK_M, BLOCK_V], SUMS)
        begin = tl.maximum(lowest // BLOCK_N * BLOCK_N, split * SPLIT)
        for base in range(begin, tl.minimum(end, split * SPLIT + SPLIT), BLOCK_N):
            key_K = base + tl.arange(0, BLOCK_N)
            # What no query of the tile sees is not read: it may be stale, another row's by now, or no number at all.
            is_read_K = (key_K >= lowest) & (key_K < end)
            page_K = tl.load(table_row + key_K // PAGE, mask=is_read_K, other=0).to(tl.int64)
            slot_K = key_K % PAGE
            key_KD = tl.load(
                key_base + (page_K * key_page_stride + slot_K * key_slot_stride)[:, None] + d_D[None, :],
                mask=is_read_K[:, None] & (d_D < D)[None, :],
                other=0.0,
            )
            value_KV = tl.load(
                value_base + (page_K * value_page_stride + slot_K * value_slot_stride)[:, None] + v_V[None, :],
                mask=is_read_K[:, None] & (v_V < V)[None, :],
                other=0.0,
            )
            if IS_FP8:  # float16 holds all of its numbers, and is what the device converts it to
                key_KD, value_KV = key_KD.to(tl.float16), value_KV.to(tl.float16)
            key_KD, value_KV = key_KD.to(query_XD.dtype), value_KV.to(query_XD.dtype)
            score_XK = tl.dot(query_XD, tl.trans(key_KD), input_precision=PRECISION, out_dtype=SUMS)
            if SOFTCAP > 0:
                # tanh(x) = 1 - 2 / (exp(2x) + 1), which has its limits at both infinities
                power_XK = tl.exp2(score_XK * tl.full([1, 1], SCALING / SOFTCAP * 2 * 1.4426950408889634, SUMS))
                score_XK = (1.0 - 2.0 / (power_XK + 1.0)) * tl.full([1, 1], SOFTCAP * 1.4426950408889634, SUMS)
            else:
                score_XK = score_XK * tl.full([1, 1], SCALING * 1.4426950408889634, SUMS)
            is_seen_XK = (key_K[None, :] <= position_X[:, None]) & (key_K[None, :] >= lowest_X[:, None])
            score_XK = tl.where(is_seen_XK, score_XK, float("-inf"))
            new_top_X = tl.maximum(split_top_X, tl.max(score_XK, 1))
            base_X = tl.where(new_top_X == float("-inf"), 0.0, new_top_X)
            weight_XK = tl.exp2(score_XK - base_X[:, None])
            old_X = tl.exp2(split_top_X - base_X)
            split_total_X = tl.fma(split_total_X, old_X, tl.sum(weight_XK, 1))
            split_sum_XV = tl.dot(
                weight_XK.to(query_XD.dtype),
                value_KV,
                acc=split_sum_XV * old_X[:, None],
                input_precision=PRECISION,
                out_dtype=SUMS,
            )
            split_top_X = new_top_X
        if num_shares == 1:
            top_X, total_X, sum_XV = _fold(top_X, total_X, sum_XV, split_top_X, split_total_X, split_sum_XV)
        else:
            is_own_X = is_row_X & (split >= lowest_X // SPLIT) & (split <= position_X // SPLIT)
            place_X = (token_X * Q + head_X) * num_splits + split % num_splits
            tl.store(top_MQP + place_X, split_top_X, mask=is_own_X)
            tl.store(total_MQP + place_X, split_total_X, mask=is_own_X)
            sum_pointers = sum_MQPV + place_X[:, None] * V + v_V[None, :]
            tl.store(sum_pointers, split_sum_XV, mask=is_own_X[:, None] & (v_V < V)[None, :])
    if num_shares == 1:
        tl.store(
            out_MQV + (token_X * Q + head_X)[:, None] * V + v_V[None, :],
            (sum_XV / tl.where(is_row_X, total_X, 1.0)[:, None]).to(out_MQV.dtype.element_ty),
            mask=is_row_X[:, None] & (v_V < V)[None, :],
        )


@triton.jit(
    do_not_specialize=["max_count", "num_splits"],
    do_not_specialize_on_alignment=["top_MQP", "total_MQP", "first_R", "count_R", "start_R"],
)
def merge_kernel(
    out_MQV,
    sum_MQPV,
    top_MQP,
    total_MQP,
    first_R,
    count_R,
    start_R,
    max_count,
    num_splits,
    Q: tl.constexpr,
    V: tl.constexpr,
    BLOCK_V: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOW: tl.constexpr,
    HEADS: tl.constexpr,
    UNROLL: tl.constexpr,
    SUMS: tl.constexpr,
):
    """Fold the partials of HEADS query heads of one token, in the order of its splits.

    Grid (segments * max_count, heads / HEADS). UNROLL splits are loaded before the first of them is folded.
    """
    segment = tl.program_id(0) // max_count
    query = tl.program_id(0) % max_count
    if query >= tl.load(count_R + segment):
        return
    position = tl.load(start_R + segment) + query
    lowest = 0
    if WINDOW > 0:
        lowest = tl.maximum(position - WINDOW + 1, 0)
    head_X = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    v_V = tl.arange(0, BLOCK_V)
    token_head_X = (tl.load(first_R + segment) + query).to(tl.int64) * Q + head_X
    top_X = tl.full([HEADS], float("-inf"), SUMS)
    total_X = tl.zeros([HEADS], SUMS)
    sum_XV = tl.zeros([HEADS, BLOCK_V], SUMS)
    last = position // SPLIT
    for base in range(lowest // SPLIT, last + 1, UNROLL):
        for step in tl.static_range(UNROLL):
            split = base + step
            place_X = token_head_X * num_splits + split % num_splits
            is_there_X = head_X < tl.where(split <= last, Q, 0)
            is_there_XV = is_there_X[:, None] & (v_V < V)[None, :]
            split_top_X = tl.load(top_MQP + place_X, mask=is_there_X, other=float("-inf"))
            split_total_X = tl.load(total_MQP + place_X, mask=is_there_X, other=0.0)
            split_sum_XV = tl.load(sum_MQPV + place_X[:, None] * V + v_V[None, :], mask=is_there_XV, other=0.0)
            top_X, total_X, sum_XV = _fold(top_X, total_X, sum_XV, split_top_X, split_total_X, split_sum_XV)
    out_XV = (sum_XV / tl.where(head_X < Q, total_X, 1.0)[:, None]).to(out_MQV.dtype.element_ty)
    tl.store(
        out_MQV + token_head_X[:, None] * V + v_V[None, :], out_XV, mask=(head_X < Q)[:, None] & (v_V < V)[None, :]
    )
