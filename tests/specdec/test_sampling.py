"""The sampling transform and the draw against the slow twin, the law of the draw, and the test for near ties."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec import reference
from specbatch.specdec.sampling import SamplingTensors, draw_draft, draw_target

VOCAB = 40
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from((0.0, 0.01, 0.5, 1.0, 2.5)),
    top_k=st.sampled_from((0, 1, 3, 39, 40, 500)),
    top_p=st.sampled_from((1.0, 0.95, 0.5, 0.001)),
    seed=st.integers(0, (1 << 63) - 1),
)
LOGITS = st.lists(st.floats(-12, 12, width=32), min_size=VOCAB, max_size=VOCAB)


def draw_one(logits: list[float], params: SamplingParams, index: int, epsilon: float = 0.0) -> tuple[int, float, bool]:
    draw = draw_target(
        torch.tensor([[logits]], dtype=torch.float64),
        torch.tensor([[index]]),
        SamplingTensors.from_params([params], torch.device("cpu")),
        epsilon,
    )
    return int(draw.token_BT), float(draw.margin_BT), bool(draw.is_stable_BT)


@given(logits=LOGITS, params=PARAMS, index=st.integers(0, 5000))
@settings(max_examples=400, deadline=None)
def test_draw_equals_the_twin(logits: list[float], params: SamplingParams, index: int) -> None:
    assert draw_one(logits, params, index)[0] == reference.draw(np.array(logits), params, index)


@given(logits=LOGITS, params=PARAMS, index=st.integers(0, 5000), noise_seed=st.integers(0, 1 << 30))
@settings(max_examples=400, deadline=None)
def test_a_stable_draw_withstands_every_small_perturbation(
    logits: list[float], params: SamplingParams, index: int, noise_seed: int
) -> None:
    """The promise of the near-tie test, at an epsilon so large that it is often refused."""
    epsilon = 0.2
    token, _, is_stable = draw_one(logits, params, index, epsilon)
    if is_stable:
        generator = np.random.default_rng(noise_seed)
        for _ in range(5):
            # Half of epsilon each way: two scores then move by at most epsilon against each other.
            moved = np.array(logits) + generator.uniform(-epsilon / 2.001, epsilon / 2.001, VOCAB)
            assert reference.draw(moved, params, index) == token


def test_most_draws_are_stable_at_the_epsilon_of_float32() -> None:
    generator = np.random.default_rng(1)
    params = [SamplingParams(temperature=0.8, top_p=0.95, top_k=20, seed=s) for s in range(2000)]
    logits = torch.tensor(generator.normal(0, 3, (2000, 1, 300)))
    draw = draw_target(
        logits, torch.zeros(2000, 1, dtype=torch.int64), SamplingTensors.from_params(params, torch.device("cpu")), 1e-4
    )
    assert int((~draw.is_stable_BT).sum()) < 20


def test_a_batch_of_different_rows_equals_single_rows() -> None:
    generator = np.random.default_rng(7)
    params = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0, seed=3),
        SamplingParams(temperature=0.7, top_k=4, seed=4),
        SamplingParams(temperature=1.3, top_p=0.6, seed=5),
    ]
    logits = generator.normal(0, 3, (4, 3, 1000))
    index = torch.tensor([[0, 1, 2], [5, 6, 7], [9, 10, 11], [0, 1, 2]])
    tensors = SamplingTensors.from_params(params, torch.device("cpu"))
    draw = draw_target(torch.tensor(logits), index, tensors, 1e-9)
    for b, row in enumerate(params):
        for t in range(3):
            assert int(draw.token_BT[b, t]) == reference.draw(logits[b, t], row, int(index[b, t]))
    drafted = draw_draft(torch.tensor(logits[:, 0]), index[:, 0], tensors)
    assert drafted.tolist() == draw.token_BT[:, 0].tolist(), "equal logits draw equal tokens"


def test_wide_nucleus_over_a_large_vocabulary_equals_the_twin() -> None:
    """The nucleus holds more tokens than the prefix that is sorted first."""
    logits = np.random.default_rng(2).normal(0, 0.3, 3000)
    params = SamplingParams(temperature=1.0, top_p=0.97, seed=8)
    for index in range(5):
        assert draw_one(list(logits), params, index)[0] == reference.draw(logits, params, index)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.8), (6, 0.9)])
def test_draws_follow_the_law(top_k: int, top_p: float) -> None:
    """20,000 draws with different row seeds against the exact law; chi-square, false-alarm rate below 1e-6."""
    logits = np.random.default_rng(4).normal(0, 1.5, 12)
    n = 20_000
    params = [SamplingParams(temperature=0.9, top_k=top_k, top_p=top_p, seed=s) for s in range(n)]
    kept = reference.kept_tokens(logits, params[0])
    weights = np.exp(logits[kept] / 0.9)
    law = dict(zip(kept, weights / weights.sum(), strict=True))
    draw = draw_target(
        torch.tensor(logits).expand(n, 1, -1),
        torch.zeros(n, 1, dtype=torch.int64),
        SamplingTensors.from_params(params, torch.device("cpu")),
        0.0,
    )
    count = Counter(draw.token_BT.flatten().tolist())
    assert set(count) <= set(law)
    chi2 = sum((count[token] - n * p) ** 2 / (n * p) for token, p in law.items())
    freedom = max(len(law) - 1, 1)
    # Laurent and Massart (2000): P(chi2 > f + 2 sqrt(f x) + 2 x) <= exp(-x), here with x = 14.
    assert chi2 < freedom + 2 * math.sqrt(freedom * 14) + 28


def test_greedy_takes_the_lowest_of_equal_tokens() -> None:
    assert draw_one([1.0, 5.0, 5.0, 2.0], SamplingParams(), 0)[:2] == (1, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.0, top_k=2)])
def test_broken_logits_are_noticed(bad: float, params: SamplingParams) -> None:
    draw = draw_target(
        torch.tensor([[[0.0, bad, 1.0]]]),
        torch.tensor([[0]]),
        SamplingTensors.from_params([params], torch.device("cpu")),
        1e-4,
    )
    assert not bool(draw.is_finite_BT)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0), ("max_new_tokens", 10**9), ("temperature", -1.0), ("temperature", math.nan),
        ("temperature", 0.001), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5), ("top_p", math.nan), ("seed", -1),
        ("seed", 1 << 63), ("stop_token_ids", (-1,)), ("stop_token_ids", tuple(range(100))),
    ],
)  # fmt: skip
def test_bad_parameters_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(SpecbatchError, match=rf"^JOB_CONFIG: {field} is "):
        SamplingParams(**{field: value})  # type: ignore[arg-type]
