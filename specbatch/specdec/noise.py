"""Keyed noise: the same bits for (row seed, index in the completion, token id) on every device.

The draw of a token is ``argmax over v of logit[v] + temperature * g[v]`` with Gumbel noise g (the Gumbel-max trick).
Because g is a pure function of its key, the draw does not depend on batch, draft, K, worker or restart.

Integer arithmetic wraps, so it is exact everywhere. Floating-point steps that decide are done in ``log64``, a fixed
sequence of IEEE-754 additions, multiplications and divisions; library logarithms, which differ between devices in
the last bit, only select the candidates that are then scored exactly.

Shape letters: N any number of (row, position) pairs, V vocabulary, C candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

DOMAIN_GUMBEL = 0x5350_4543_4755_4D31 - (1 << 63)
"""Keeps this stream apart from any other that may be keyed by the same seed."""

# Unsigned constants, written as the signed integers that torch multiplies with.
GOLDEN_64 = 0x9E37_79B9_7F4A_7C15 - (1 << 64)
MIX_1 = 0xBF58_476D_1CE4_E5B9 - (1 << 64)
MIX_2 = 0x94D0_49BB_1331_11EB - (1 << 64)
TOKEN_STRIDE = 0x9E37_79B1 - (1 << 32)
LOW_1 = 0x7FEB_352D
LOW_2 = 0x846C_A68B - (1 << 32)

_SQRT_2 = 1.4142135623730951
_LN2_HIGH = 0.6931471803691238
_LN2_LOW = 1.9082149292705877e-10
_MANTISSA_MASK = (1 << 52) - 1
_ONE_BITS = 1023 << 52
_HALF_RANGE = 2147483648.5
_LARGEST_31 = 0x7FFF_FFFF
_TWO_POW_MINUS_32 = 2.0**-32

GUMBEL_FLOAT32_ERROR = 3e-6
"""Bound on the error of ``gumbel_float32`` where logarithms are right to a unit in the last place: 1.9e-6 of the outer
one above 16, and the relative error of the inner one, which in the kernel of ``kernels.draw`` is below 6e-7."""


def keys(seed_N: Tensor, index_N: Tensor) -> Tensor:
    """64-bit keys of (row seed, index in the completion).

    Args:
        seed_N: int64 row seeds.
        index_N: int64 positions in the completion, 0 for its first token.

    Returns:
        int64 [N]; two rounds of the splitmix64 finaliser, one per field.
    """
    return _mix64(_mix64(seed_N + DOMAIN_GUMBEL) + index_N * GOLDEN_64)


def hash_tokens(key_N: Tensor, token_C: Tensor) -> Tensor:
    """32 random bits for each (key, token id).

    Two rounds of a 32-bit finaliser (constants of the "lowbias32" search by C. Wellons), each keyed by one half of
    the 64-bit key, so that two keys that share a half still give unrelated streams.

    Args:
        key_N: int64 keys.
        token_C: token ids, int64 [C] shared by all keys or [N, C].

    Returns:
        int32 [N, C].
    """
    low_N1 = key_N.to(torch.int32).unsqueeze(-1)
    high_N1 = (key_N >> 32).to(torch.int32).unsqueeze(-1)
    x = (token_C.to(torch.int32) * TOKEN_STRIDE) ^ low_N1
    x = _finalise32_(x)
    x ^= high_N1
    return _finalise32_(x)


def uniform(bits: Tensor) -> Tensor:
    """float64 strictly between 0 and 1 from int32 bits: (bits + 2**31 + 1/2) / 2**32, exact."""
    return (bits.to(torch.float64) + _HALF_RANGE) * _TWO_POW_MINUS_32


def gumbel(bits: Tensor) -> Tensor:
    """float64 Gumbel noise from int32 bits, bit-identical on every device; between -3.2 and 22.9."""
    return -log64(-log64(uniform(bits)))


def gumbel_fast(bits: Tensor) -> Tensor:
    """The same noise through the device's own logarithm: equal to ``gumbel`` within 1e-12, for choosing candidates."""
    return uniform(bits).log_().neg_().log_().neg_()


def gumbel_float32(bits: Tensor) -> Tensor:
    """The same noise in float32, for speed: within ``GUMBEL_FLOAT32_ERROR`` of ``gumbel`` over all 2**32 inputs.

    With m the distance of the uniform from the nearer end of (0, 1), exact in integers, -log(u) is taken as -log(m)
    near 0 and as -log1p(-m) near 1, so that both tails keep their relative accuracy. The two are blended by bits: a
    select by a mask of bools costs more than both logarithms.
    """
    sign = bits >> 31
    m = ((bits ^ sign) ^ _LARGEST_31).to(torch.float32).add_(0.5).mul_(_TWO_POW_MINUS_32)
    near_one = m.neg().log1p_().view(torch.int32)
    near_zero = m.log_().view(torch.int32)
    log_uniform = near_zero.bitwise_xor_(near_one).bitwise_and_(sign).bitwise_xor_(near_one).view(torch.float32)
    return log_uniform.neg_().log_().neg_()


def log64(x: Tensor) -> Tensor:
    """Natural logarithm of positive normal float64 numbers as a fixed sequence of IEEE operations.

    log(2**e * m) = e*ln2 + 2*atanh(s) with s = (m-1)/(m+1) and m in [sqrt(1/2), sqrt(2)); the series in s*s is cut
    where its terms fall below 2**-54. Relative error below 1e-15.
    """
    bits = x.view(torch.int64)
    exponent = (bits >> 52) - 1023
    m = ((bits & _MANTISSA_MASK) | _ONE_BITS).view(torch.float64)
    is_large = m > _SQRT_2
    m = torch.where(is_large, m * 0.5, m)
    e = (exponent + is_large.to(torch.int64)).to(torch.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = z * (1.0 / 21.0)
    for denominator in (19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0):
        series.add_(1.0 / denominator).mul_(z)
    series.add_(1.0 / 3.0)
    tail = s * z
    tail = tail * series
    tail = (tail + s) * 2.0
    low = e * _LN2_LOW
    return e * _LN2_HIGH + (tail + low)


def _mix64(x: Tensor) -> Tensor:
    """Finaliser of splitmix64 (Steele, Lea, Flood 2014) in wrapping int64 arithmetic."""
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, count: int) -> Tensor:
    """Logical right shift of int64; torch's own is arithmetic."""
    return (x >> count) & ((1 << (64 - count)) - 1)


def _finalise32_(x: Tensor) -> Tensor:
    """Finaliser on int32, in place; masks turn arithmetic shifts into logical ones."""
    shifted = (x >> 16).bitwise_and_(0xFFFF)
    x ^= shifted
    x *= LOW_1
    x ^= torch.bitwise_right_shift(x, 15, out=shifted).bitwise_and_(0x1FFFF)
    x *= LOW_2
    x ^= torch.bitwise_right_shift(x, 16, out=shifted).bitwise_and_(0xFFFF)
    return x
