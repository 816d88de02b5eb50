"""Multiply-shift hashing of n-grams, for many contexts and several lengths at once.

The hash of a vector of tokens is the sum of its products with fixed random odd numbers, modulo 2^64, of which a table
takes the highest bits (Dietzfelbinger et al., "A reliable randomized algorithm for the closest-pair problem", 1997).
One integer matrix product hashes all contexts for all lengths.

Shape letters: G n-gram lengths, H longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

UintArray = NDArray[np.uint64]

_WORD = (1 << 64) - 1


def scramble(number: int) -> int:
    """A 64-bit number that looks random, another one for every number below 2^64 (SplitMix64, Steele et al. 2014)."""
    z = (number * 0x9E3779B97F4A7C15) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)


def multipliers(lengths: Sequence[int]) -> UintArray:
    """Uint64 [H, G]: what to multiply the last H tokens with to hash the last n of them; 0 for the tokens before."""
    H = max(lengths)
    multiplier_HG = np.zeros((H, len(lengths)), dtype=np.uint64)
    for column, n in enumerate(lengths):
        # Columns differ, so that a row of equal tokens does not hash alike for every length.
        multiplier_HG[H - n :, column] = [scramble((n << 32) + i) | 1 for i in range(n)]
    return multiplier_HG
