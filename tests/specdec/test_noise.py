"""Keyed noise: equal to the slow twin bit for bit, and of the right law."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specbatch.specdec import noise, reference

SEEDS = st.integers(0, (1 << 63) - 1)
GOLDEN_BITS = [
    [-2109967672, -1521958734, 295343554],
    [480580976, 408203127, 1176089155],
    [1943436846, -2036958229, -1960444734],
]
GOLDEN_GUMBEL = ["-0x1.8e5e6d516a711p+0", "-0x1.4fbfe707e66fcp-1", "0x1.24f62ed7affb0p-1"]


@given(seed=SEEDS, index=st.integers(0, 1 << 20), token=st.integers(0, 200_000))
@settings(max_examples=200, deadline=None)
def test_bits_and_noise_equal_the_twin(seed: int, index: int, token: int) -> None:
    key_N = noise.keys(torch.tensor([seed]), torch.tensor([index]))
    assert int(key_N[0]) & ((1 << 64) - 1) == reference.noise_key(seed, index)
    bits_NC = noise.hash_tokens(key_N, torch.tensor([token]))
    unsigned = int(bits_NC[0, 0]) & ((1 << 32) - 1)
    assert unsigned == reference.token_bits(reference.noise_key(seed, index), token)
    assert float(noise.gumbel(bits_NC)[0, 0]) == pytest.approx(reference.gumbel(unsigned), rel=1e-13, abs=1e-13)


def test_golden_bits_never_change() -> None:
    """These values are part of the contract: another hash would change the text of every sampled job."""
    key_N = noise.keys(torch.tensor([0, 1, (1 << 63) - 1]), torch.tensor([0, 7, 1000]))
    bits = noise.hash_tokens(key_N, torch.tensor([0, 1, 149_999]))
    assert bits.tolist() == GOLDEN_BITS
    assert [value.hex() for value in noise.gumbel(bits[0]).tolist()] == GOLDEN_GUMBEL


@given(st.floats(min_value=2.3e-308, max_value=1.7e308))
@settings(max_examples=500, deadline=None)
def test_log64_is_the_logarithm(x: float) -> None:
    assert float(noise.log64(torch.tensor([x], dtype=torch.float64))) == pytest.approx(
        math.log(x), rel=1e-15, abs=1e-18
    )


def test_extreme_bits_give_finite_noise() -> None:
    ends = torch.tensor([-(1 << 31), (1 << 31) - 1], dtype=torch.int32)
    low, high = noise.gumbel(ends).tolist()
    assert -3.2 < low < -3.1
    assert 22.8 < high < 22.9
    assert noise.gumbel_fast(ends).tolist() == pytest.approx([low, high], abs=1e-12)


def test_bits_are_uniform_over_tokens_positions_and_seeds() -> None:
    """Chi-square over 256 buckets along each axis of the key. False-alarm rate: 3 tests at 1e-6 each."""
    n, buckets = 1 << 17, 256
    axis = torch.arange(n)
    zero = torch.zeros(n, dtype=torch.int64)
    samples = (
        noise.hash_tokens(noise.keys(zero[:1], zero[:1]), axis)[0],
        noise.hash_tokens(noise.keys(zero, axis), zero[:1])[:, 0],
        noise.hash_tokens(noise.keys(axis, zero), zero[:1])[:, 0],
    )
    for bits in samples:
        for shift in (0, 24):
            count = torch.bincount((bits >> shift) & 255, minlength=buckets).double()
            chi2 = float(((count - n / buckets) ** 2 / (n / buckets)).sum())
            assert chi2 < 255 + 5.2 * math.sqrt(2 * 255), "mean 255, deviation 22.6"


@pytest.mark.parametrize("make", [noise.gumbel_fast, noise.gumbel_float32])
def test_the_upper_tail_of_single_tokens_has_its_law(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """In a vocabulary of 150,000 a rare token wins when its own noise is in the last 1/150,000 of the Gumbel law.

    2**20 keys for each of 8 tail tokens: 7 such events are expected of each (Poisson: at most 26 but for 1 in 1e8), 56
    of all together (6 deviations). False-alarm rate below 1e-6.
    """
    border = -math.log(-math.log1p(-1 / 150_000))
    key_N = noise.keys(torch.tensor([9]), torch.arange(1 << 20))
    tokens = torch.tensor([149_999, 149_998, 131_072, 65_536, 100_003, 32_768, 17, 0])
    count = torch.cat([(make(noise.hash_tokens(key_N, token.view(1))) > border).sum(dim=0) for token in tokens])
    assert int(count.max()) <= 26
    assert abs(int(count.sum()) - 8 * (1 << 20) / 150_000) < 6 * math.sqrt(56)


def test_noise_in_float32_is_within_its_bound() -> None:
    """At both ends, around every power of two from either end, and at 2**20 numbers between."""
    near = [torch.arange(1 << e, (1 << e) + 2000) for e in range(31)]
    distance = torch.cat([*near, torch.arange(0, 1 << 31, 1 << 11)]).clamp(max=(1 << 31) - 1)
    bits = torch.cat((distance - (1 << 31), (1 << 31) - 1 - distance)).to(torch.int32)
    error = (noise.gumbel_float32(bits).to(torch.float64) - noise.gumbel_fast(bits)).abs()
    assert float(error.max()) < noise.GUMBEL_FLOAT32_ERROR / 2
    assert not torch.equal(noise.gumbel_float32(bits[:8]), noise.gumbel_float32(bits[8:16])), "the input is read only"
