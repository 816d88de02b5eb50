"""Sizes of rounds whose shapes are fixed: what is decoded is padded to the next of few sizes.

Powers of two, and three quarters of them from 16 on: less than half is padding, from 9 on less than a third.
"""

from __future__ import annotations

import numpy as np

from specbatch.specdec.accept import IntArray

_LEAST_SPLIT = 16


def bucket_of(size: int) -> int:
    """The smallest bucket that holds so much; 1 for nothing."""
    return int(buckets_of(np.array([size]))[0])


def buckets_of(size_n: IntArray) -> IntArray:
    """Int64 [n]: ``bucket_of`` each size."""
    # The exponent of a whole number is its bit length: the next power of two is that of the number before.
    power_n = np.left_shift(1, np.frexp(np.maximum(size_n - 1, 0))[1].astype(np.int64))
    is_split_n = (power_n >= _LEAST_SPLIT) & (size_n <= power_n * 3 // 4)
    return np.where(is_split_n, power_n * 3 // 4, power_n)
