"""What the draw's kernels must do, in Triton's interpreter or on a GPU, against the twin in torch.

``test_kernels.py`` runs this file, each way in a process of its own. By hand: see ``device.py``. A program takes the
interpreter some 30 ms, however little it computes, so rows are few here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from device import DEVICE, IS_GPU
from torch import Tensor

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec import noise
from specbatch.specdec.kernels import draw_kernels
from specbatch.specdec.sampling import draw, untruncated
from specbatch.specdec.sampling.draw import Draw, Positions, SamplingTensors, draw_draft, draw_target
from specbatch.specdec.sampling.winner import Winner, make_scene

VOCAB = draw_kernels.TILE + 77
NOISE_BLOCK = 1024 if IS_GPU else 1 << 17
"""The interpreter pays by the program; a compiler that gives each thread a thousand numbers hardly comes to an end."""


@pytest.fixture(autouse=True)
def _on_device() -> Iterator[None]:
    with torch.device(DEVICE):
        yield


def tensors(params: list[SamplingParams], vocab: int = VOCAB) -> SamplingTensors:
    return SamplingTensors.from_params(params, [()] * len(params), torch.device(DEVICE), vocab)


def mixed_rows(num_rows: int, **settings: Any) -> list[SamplingParams]:
    temperatures = (0.9, 0.0, 0.01, 30.0)
    return [
        SamplingParams(seed=(n * 0x9E37_79B9_7F4A_7C15) % (1 << 63), temperature=temperatures[n % 4], **settings)
        for n in range(num_rows)
    ]


def places(num_rows: int, index: int = 3) -> Positions:
    return Positions(torch.arange(num_rows), torch.arange(num_rows) * 1000 + index)


def logits(num_rows: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Rows of a wider tensor, like those of a head that is larger than the vocabulary."""
    torch.manual_seed(seed)
    return (3 * torch.randn(num_rows, VOCAB + 19)).to(dtype)[:, :VOCAB]


def by_kernel(logits_NV: Tensor, positions: Positions, given: SamplingTensors, epsilon: float) -> Winner:
    return untruncated.draw_by_kernel(logits_NV, positions, given, epsilon)


def by_twin(logits_NV: Tensor, positions: Positions, given: SamplingTensors, epsilon: float) -> Winner:
    return untruncated.draw_among_all(make_scene(logits_NV.to(torch.float32), positions, given, epsilon))


def exactly(logits_NV: Tensor, positions: Positions, given: SamplingTensors) -> Winner:
    return untruncated.draw_among_all(make_scene(logits_NV.to(torch.float64), positions, given, 0.0))


@triton.jit
def hash_kernel(bits_NC, seed_N, index_N, token_C, C: tl.constexpr):
    row = tl.program_id(0)
    key = draw_kernels.key_of(tl.load(seed_N + row), tl.load(index_N + row))
    lane = tl.arange(0, C)
    bits = draw_kernels.hash_of(key, tl.load(token_C + lane))
    tl.store(bits_NC + row * C + lane, bits.to(tl.int32, bitcast=True))


def test_the_bits_are_those_of_the_noise() -> None:
    torch.manual_seed(1)
    seed_N = torch.cat((torch.randint(1 << 62, (30,)), torch.tensor([0, 1, (1 << 63) - 1])))
    index_N = torch.cat((torch.randint(1 << 40, (30,)), torch.tensor([0, 7, 1000])))
    token_C = torch.cat((torch.randint(1 << 31, (60,)), torch.tensor([0, 1, 149_999, 2**31 - 1])))
    token_C = token_C.to(torch.int32)
    bits_NC = torch.zeros(33, 64, dtype=torch.int32)
    hash_kernel[(33,)](bits_NC, seed_N, index_N, token_C, C=64)
    assert torch.equal(bits_NC, noise.hash_tokens(noise.keys(seed_N, index_N), token_C))


@triton.jit
def noise_kernel(noise_X, bits_X, X, BLOCK: tl.constexpr):
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bits = tl.load(bits_X + lane, mask=lane < X, other=0).to(tl.uint32, bitcast=True)
    tl.store(noise_X + lane, draw_kernels.gumbel_of(bits), mask=lane < X)


def test_the_noise_is_within_its_bound() -> None:
    """At both ends, around every power of two from either end, and at numbers between; see ``test_noise.py``."""
    near = [torch.arange(1 << e, (1 << e) + 1000) for e in range(31)]
    distance = torch.cat([torch.tensor([0]), *near, torch.arange(0, 1 << 31, 1 << 13)]).clamp(max=(1 << 31) - 1)
    bits = torch.cat((distance - (1 << 31), (1 << 31) - 1 - distance)).to(torch.int32)
    found = torch.full(bits.shape, math.nan)
    noise_kernel[(triton.cdiv(len(bits), NOISE_BLOCK),)](found, bits, len(bits), BLOCK=NOISE_BLOCK)
    error = (found.to(torch.float64) - noise.gumbel_fast(bits)).abs()
    assert float(error.max()) < noise.GUMBEL_FLOAT32_ERROR


@pytest.mark.parametrize(
    ("dtype", "epsilon"), [(torch.float32, 1e-4), (torch.float32, 0.0), (torch.bfloat16, 0.0), (torch.float16, 0.0)]
)
def test_draws_are_the_twin_s(dtype: torch.dtype, epsilon: float) -> None:
    given, positions, logits_NV = tensors(mixed_rows(4)), places(4), logits(4, dtype)
    ours, theirs = (draw(logits_NV, positions, given, epsilon) for draw in (by_kernel, by_twin))
    exact = exactly(logits_NV, positions, given)
    temperature_N = given.temperature_B
    bound_N = temperature_N * untruncated._NOISE_ROUNDING + 2.0**-22 * exact.best_N.abs()
    for name in ("best_N", "margin_N"):
        assert bool(((getattr(ours, name) - getattr(exact, name)).abs() <= bound_N).all()), name
    is_greedy_N = temperature_N == 0
    for field in fields(Winner):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        assert one is other is None or torch.equal(one[is_greedy_N], other[is_greedy_N])
    assert ours.is_stable_N.tolist() == theirs.is_stable_N.tolist() == [True] * 4
    assert ours.token_N.tolist() == theirs.token_N.tolist() == exact.token_N.tolist()
    assert len(set(ours.token_N.tolist())) == 4


def test_rounding_never_makes_a_draw_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that cancel the noise: all scores of a position lie within a few units in the last place."""
    n, vocab, generator = 72, 6, np.random.default_rng(12)
    params = [SamplingParams(temperature=(0.01, 0.7, 100.0)[seed % 3], seed=seed) for seed in range(n)]
    given = tensors(params, vocab)
    positions = Positions(torch.arange(n), torch.zeros(n, dtype=torch.int64))
    bits_NV = noise.hash_tokens(noise.keys(given.seed_B, positions.index_N), torch.arange(vocab))
    level_N1 = torch.tensor(generator.choice((0.0, 1.0, 30.0), (n, 1)))
    logits_NV = (level_N1 - given.temperature_B.unsqueeze(1) * noise.gumbel(bits_NV)).to(torch.float32)
    exact = exactly(logits_NV, positions, given)
    found = untruncated.two_best(
        logits_NV, positions.row_N, positions.index_N, given.seed_B, given.temperature_B, is_random=True
    )
    monkeypatch.setattr(untruncated, "two_best", lambda *_, **__: found)  # once is enough
    is_wrong_N = found[0] != exact.token_N
    for epsilon in (1e-9, 1e-6):
        ours = by_kernel(logits_NV, positions, given, epsilon)
        is_right_N = (ours.token_N == exact.token_N) & (exact.margin_N >= epsilon)
        assert not bool((ours.is_stable_N & ~is_right_N).any())
    assert bool(is_wrong_N.any()), "the case is too easy"


def test_a_position_is_alone() -> None:
    given, logits_NV = tensors(mixed_rows(4)), logits(4, torch.bfloat16, seed=4)
    row_N, index_N = torch.tensor([3, 0, 3, 1]), torch.arange(4)
    together = by_kernel(logits_NV[row_N], Positions(row_N, index_N), given, 1e-4)
    for n in range(4):
        alone = by_kernel(logits_NV[row_N[n : n + 1]], Positions(row_N[n : n + 1], index_N[n : n + 1]), given, 1e-4)
        for name in ("token_N", "margin_N", "best_N", "is_stable_N"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[n])


@pytest.mark.parametrize("is_random", [False, True])
def test_equal_tokens_strange_numbers_and_no_rows(is_random: bool) -> None:
    tile = draw_kernels.TILE
    logits_NV = torch.full((6, VOCAB), -1.0)
    logits_NV[0, [tile - 9, tile - 1, tile + 3]] = 2.0  # the best thrice, in two tiles
    logits_NV[1, VOCAB - 1] = 2.0
    logits_NV[2, 7], logits_NV[2, tile] = math.nan, 5.0
    logits_NV[3] = -math.inf
    logits_NV[4, [9, tile + 9]] = math.inf
    logits_NV[5] = -math.inf
    logits_NV[5, tile + 8] = -3.0
    rows = [SamplingParams()] * 6 + [SamplingParams(temperature=1.0)] * is_random
    found = by_kernel(logits_NV, places(6), tensors(rows), 0.0)
    assert found.token_N[[0, 1, 3, 4, 5]].tolist() == [tile - 9, VOCAB - 1, 0, 9, tile + 8]
    assert 0 <= int(found.token_N[2]) < VOCAB
    assert found.margin_N[[0, 1]].tolist() == [0.0, 3.0]
    assert found.best_N.isfinite().tolist() == [True, True, False, False, False, True]
    assert bool(found.best_N[2].isnan())
    assert not found.is_stable_N[[0, 2, 3, 4]].any()
    none = by_kernel(logits_NV[:0], places(0), tensors(rows), 0.0)
    assert none.token_N.shape == none.margin_N.shape == (0,)


@pytest.mark.parametrize(("dtype", "epsilon"), [(torch.float32, 1e-4), (torch.bfloat16, 0.0)])
def test_draws_through_the_door_that_a_gpu_takes(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, epsilon: float
) -> None:
    """Untruncated, truncated and greedy rows, changed logits, log-probabilities; each against the way of torch."""
    logits_NV = logits(4, dtype, seed=2)
    cut = [SamplingParams(temperature=0.8, top_p=0.9, seed=9, logprobs=True)]
    batches = {
        "untruncated": mixed_rows(4),
        "greedy": [SamplingParams(logprobs=True)] * 4,
        "mixed": [*mixed_rows(3, logprobs=True), *cut],
        "changed": mixed_rows(4, logit_bias=((5, 8.5), (VOCAB - 1, 9.0)), banned_token_ids=(77,)),
    }
    two_best, calls = untruncated.two_best, list[torch.dtype]()

    def counted(values_NV: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(values_NV.dtype)
        return two_best(values_NV, *args, **kwargs)

    monkeypatch.setattr(untruncated, "two_best", counted)
    for name, params in batches.items():
        given, positions = tensors(params), places(4)
        with monkeypatch.context() as patched:
            patched.setattr(draw, "is_drawn_by_kernel", lambda values: False)
            expected = draw_target(logits_NV, positions, given, epsilon)
            drafted_N = draw_draft(logits_NV, positions, given)
        with monkeypatch.context() as patched:
            patched.setattr(draw, "is_drawn_by_kernel", lambda values: values.dtype != torch.float64)
            found = draw_target(logits_NV, positions, given, epsilon)
            if name == "untruncated":
                assert torch.equal(draw_draft(logits_NV, positions, given), drafted_N)
        is_read_once = name in ("untruncated", "greedy")
        assert calls == [dtype if is_read_once else torch.float32] * (1 + (name == "untruncated"))
        calls.clear()
        for field in fields(Draw):
            one, other = getattr(found, field.name), getattr(expected, field.name)
            if one is None or field.name not in ("margin_N", "logprob_N"):
                assert one is other is None or torch.equal(one, other), (name, field.name)
            else:
                torch.testing.assert_close(one, other, rtol=1e-6, atol=3e-4)
