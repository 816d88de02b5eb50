"""Keyed noise: equal to the slow twin bit for bit, and of the right law."""

from __future__ import annotations

import math

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


def test_law_of_rare_tokens_in_a_large_vocabulary() -> None:
    """Over 150,000 equally likely tokens each must win as often as any other.

    4,000 draws; the number of winners in the first half of the vocabulary is binomial with deviation 32, and the number
    of distinct winners is close to 3,947. False-alarm rate below 1e-6 for both bounds (5 deviations).
    """
    vocab, draws = 150_000, 4_000
    token_V = torch.arange(vocab)
    winners = []
    for start in range(0, draws, 100):
        index_N = torch.arange(start, start + 100)
        bits_NV = noise.hash_tokens(noise.keys(torch.full((100,), 42), index_N), token_V)
        winners.append(noise.gumbel_fast(bits_NV).argmax(dim=-1))
    winner = torch.cat(winners)
    assert abs(int((winner < vocab // 2).sum()) - draws // 2) < 5 * 32
    assert len(winner.unique()) > 3_947 - 5 * 8
