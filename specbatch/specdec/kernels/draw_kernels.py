"""The draw among all tokens as two Triton programs, with their launcher: one look at every logit.

What the twin does in some forty operations over [N, V] happens here in registers: noise from the row's key, the score,
the two best of a tile. The hash gives the same bits as ``noise``; the noise itself is right to
``noise.GUMBEL_FLOAT32_ERROR``, as the twin's is, but not the same in its last bits. ``tl.log`` is the device library's
logarithm, right to a unit in the last place, and not the hardware's fast one: a test looks into the compiled code.

A program sees a tile of one position. Tiles are cut by token id, so that neither the number of positions nor their
places shape anything. Nothing is read from the device: the launcher may stand in a CUDA graph.

Shape letters: N positions, B rows, V vocabulary, T tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specbatch.specdec import noise

TILE = 2048
"""Tokens of a program. Part of no result: the best of tiles are the best of all, however they are cut."""
NUM_WARPS = 4

_DOMAIN = tl.constexpr(noise.DOMAIN_GUMBEL % (1 << 64))
_GOLDEN_64 = tl.constexpr(noise.GOLDEN_64 % (1 << 64))
_MIX_1 = tl.constexpr(noise.MIX_1 % (1 << 64))
_MIX_2 = tl.constexpr(noise.MIX_2 % (1 << 64))
_TOKEN_STRIDE = tl.constexpr(noise.TOKEN_STRIDE % (1 << 32))
_LOW_1 = tl.constexpr(noise.LOW_1)
_LOW_2 = tl.constexpr(noise.LOW_2 % (1 << 32))
_NO_TOKEN = tl.constexpr(0x7FFF_FFFF)


@triton.jit
def _mix64(x):
    """``noise._mix64`` on uint64."""
    x = (x ^ (x >> 30)) * _MIX_1
    x = (x ^ (x >> 27)) * _MIX_2
    return x ^ (x >> 31)


@triton.jit
def _finalise32(x):
    """``noise._finalise32_`` on uint32."""
    x = (x ^ (x >> 16)) * _LOW_1
    x = (x ^ (x >> 15)) * _LOW_2
    return x ^ (x >> 16)


@triton.jit
def key_of(seed, index):
    """uint64, ``noise.keys`` of one int64 row seed and index."""
    return _mix64(_mix64(seed.to(tl.uint64, bitcast=True) + _DOMAIN) + index.to(tl.uint64, bitcast=True) * _GOLDEN_64)


@triton.jit
def hash_of(key, token_X):
    """uint32, the bits of ``noise.hash_tokens``."""
    low = (key & 0xFFFFFFFF).to(tl.uint32)
    high = (key >> 32).to(tl.uint32)
    x = _finalise32((token_X.to(tl.uint32) * _TOKEN_STRIDE) ^ low)
    return _finalise32(x ^ high)


@triton.jit
def gumbel_of(bits_X):
    """float32 Gumbel noise of uint32 bits, within ``noise.GUMBEL_FLOAT32_ERROR``.

    As in ``noise.gumbel_float32``, m is the distance of the uniform from the nearer end of (0, 1). Near 0 its logarithm
    is taken, near 1 log(1 - m). There y = 1 - m is rounded, but log(y) / (1 - y) hardly changes with y, so that m times
    it keeps m's relative accuracy. One logarithm serves both ends.
    """
    # As a signed number the uniform's upper half is not negative.
    is_near_one = bits_X < 0x80000000
    distance_X = tl.where(is_near_one, 0x7FFFFFFF - bits_X, bits_X ^ 0x80000000).to(tl.int32, bitcast=True)
    m_X = (distance_X.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    y_X = 1.0 - m_X
    log_X = tl.log(tl.where(is_near_one, y_X, m_X))
    gap_X = 1.0 - y_X
    # Where y rounds to 1, the ratio is 1.
    ratio_X = tl.where(gap_X == 0.0, 1.0, -log_X / tl.where(gap_X == 0.0, 1.0, gap_X))
    minus_log_uniform_X = tl.where(is_near_one, m_X * ratio_X, -log_X)
    return -tl.log(minus_log_uniform_X)


@triton.jit
def _two_best(value_X, token_X, second_X):
    """The best value, the lowest token that has it, and the best of the rest; the best is NaN where any value is.

    Args: second_X: what stands behind each value, no larger than it.
    """
    is_nan_X = value_X != value_X
    known_X = tl.where(is_nan_X, float("inf"), value_X)
    best = tl.max(known_X, 0)
    token = tl.min(tl.where(known_X == best, token_X, _NO_TOKEN), 0)
    second = tl.max(tl.where(token_X == token, second_X, known_X), 0)
    has_nan = tl.max(is_nan_X.to(tl.int32), 0) > 0
    return tl.where(has_nan, float("nan"), best), token, second


# The vectors of rows may be parts of others, which begin anywhere: without this, an odd number of rows in the middle of
# a job would be compiled for.
@triton.jit(
    do_not_specialize=["num_tiles"],
    do_not_specialize_on_alignment=["row_N", "index_N", "seed_B", "temperature_B"],
)
def draw_tiles_kernel(
    best_NT,
    second_NT,
    token_NT,
    logits_NV,
    row_N,
    index_N,
    seed_B,
    temperature_B,
    logits_stride,
    num_tokens,
    num_tiles,
    IS_RANDOM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (N, T). IS_RANDOM False: no row has a temperature, the score is the logit."""
    position = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    token_X = tile * BLOCK + tl.arange(0, BLOCK)
    is_inside_X = token_X < num_tokens
    score_X = tl.load(logits_NV + position * logits_stride + token_X, mask=is_inside_X, other=float("-inf"))
    score_X = score_X.to(tl.float32)
    if IS_RANDOM:
        row = tl.load(row_N + position)
        temperature = tl.load(temperature_B + row).to(tl.float32)
        key = key_of(tl.load(seed_B + row), tl.load(index_N + position))
        score_X = score_X + gumbel_of(hash_of(key, token_X)) * temperature
    # Lanes behind the vocabulary hold -inf and the highest ids of the tile: they never come before a token.
    best, token, second = _two_best(score_X, token_X, tl.full([BLOCK], float("-inf"), tl.float32))
    place = position * num_tiles + tile
    tl.store(best_NT + place, best)
    tl.store(second_NT + place, second)
    tl.store(token_NT + place, token)


@triton.jit(do_not_specialize=["num_tiles"])
def fold_tiles_kernel(
    best_N, second_N, token_N, best_NT, second_NT, token_NT, num_tiles, BLOCK: tl.constexpr
):  # fmt: skip
    """Grid (N): the two best of a position from those of its tiles."""
    position = tl.program_id(0).to(tl.int64)
    tile_X = tl.arange(0, BLOCK)
    is_inside_X = tile_X < num_tiles
    place_X = position * num_tiles + tile_X
    best_X = tl.load(best_NT + place_X, mask=is_inside_X, other=float("-inf"))
    second_X = tl.load(second_NT + place_X, mask=is_inside_X, other=float("-inf"))
    token_X = tl.load(token_NT + place_X, mask=is_inside_X, other=_NO_TOKEN)
    best, token, second = _two_best(best_X, token_X, second_X)
    tl.store(best_N + position, best)
    tl.store(second_N + position, second)
    tl.store(token_N + position, token.to(tl.int64))


def launch_draw(
    logits_NV: Tensor,
    row_N: Tensor,
    index_N: Tensor,
    seed_B: Tensor,
    temperature_B: Tensor,
    *,
    is_random: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``draw.two_best``."""
    N, V = logits_NV.shape
    assert logits_NV.stride(1) == 1, "logits of a position must be dense"
    assert logits_NV.dtype in (torch.float32, torch.bfloat16, torch.float16)
    assert row_N.is_contiguous()
    assert index_N.is_contiguous()
    assert seed_B.is_contiguous()
    assert temperature_B.is_contiguous()
    device = logits_NV.device
    token_N = torch.empty(N, dtype=torch.int64, device=device)
    best_N, second_N = (torch.empty(N, dtype=torch.float32, device=device) for _ in range(2))
    if N == 0:
        return token_N, best_N, second_N
    T = triton.cdiv(V, TILE)
    best_NT, second_NT = (torch.empty((N, T), dtype=torch.float32, device=device) for _ in range(2))
    token_NT = torch.empty((N, T), dtype=torch.int32, device=device)
    draw_tiles_kernel[(N, T)](
        best_NT, second_NT, token_NT, logits_NV, row_N, index_N, seed_B, temperature_B, logits_NV.stride(0), V, T,
        IS_RANDOM=is_random, BLOCK=TILE, num_warps=NUM_WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    fold_tiles_kernel[(N,)](
        best_N, second_N, token_N, best_NT, second_NT, token_NT, T,
        BLOCK=triton.next_power_of_2(T), num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return token_N, best_N, second_N
