"""The draw against the slow twin at every setting and history, its law, and the test for near ties."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sampling_cases import CASES, STOPS, VOCAB, Case, draw_all, positions_of, random_case, tensors

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec import noise, reference
from specbatch.specdec.sampling.draw import Positions, draw_draft, draw_target, transformed_logits


def plain_positions(index: list[int]) -> Positions:
    return Positions(torch.arange(len(index)), torch.tensor(index))


@given(case=CASES)
@settings(max_examples=400, deadline=None)
def test_draw_equals_the_twin(case: Case) -> None:
    assert draw_all([case]).token_N.tolist() == [case.twin()]


def test_a_batch_of_different_rows_equals_the_twin() -> None:
    """Truncated, untruncated and greedy rows side by side, each with its own history; target and draft."""
    generator = np.random.default_rng(7)
    for _ in range(20):
        cases = [random_case(generator) for _ in range(24)]
        wanted = [case.twin() for case in cases]
        assert draw_all(cases).token_N.tolist() == wanted
        logits_NV = torch.tensor(np.stack([case.logits for case in cases]))
        drafted_N = draw_draft(logits_NV, positions_of(cases), tensors([case.params for case in cases]))
        assert drafted_N.tolist() == wanted, "equal logits draw equal tokens"


@pytest.mark.parametrize(
    "settings_",
    [
        {"repetition_penalty": 1.7},
        {"presence_penalty": 1.1},
        {"frequency_penalty": 0.9},
        {"repetition_penalty": 0.6, "presence_penalty": -0.5, "frequency_penalty": 0.4, "logit_bias": ((2, 3.0),)},
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_each_position_of_a_window_sees_the_drafts_before_it(settings_: dict[str, object], temperature: float) -> None:
    """All positions of a ragged window, flat, two rows with windows of 5 and 3, drafts that repeat the history."""
    generator = np.random.default_rng(3)
    params = [SamplingParams(temperature=temperature, seed=seed, **settings_) for seed in (1, 2)]  # type: ignore[arg-type]
    for _ in range(30):
        rows = [(generator.integers(0, 8, 4).tolist(), generator.integers(0, 8, 5).tolist(), 4) for _ in range(2)]
        rows[1] = (rows[1][0], rows[1][1], 2)
        drafts = [generator.integers(0, 8, num_drafts).tolist() for _, _, num_drafts in rows]
        cases = [
            Case(params[row], generator.normal(0, 0.7, VOCAB), prompt, [*completion, *drafts[row][:j]], j)
            for row, (prompt, completion, num_drafts) in enumerate(rows)
            for j in range(num_drafts + 1)
        ]
        single = positions_of(cases)
        assert single.history is not None
        first = [0, rows[0][2] + 1]
        history = replace(
            single.history,
            token_BP=single.history.token_BP[first],
            length_B=single.history.length_B[first],
            prompt_length_B=single.history.prompt_length_B[first],
        )
        row_N = torch.tensor([row for row, (_, _, num_drafts) in enumerate(rows) for _ in range(num_drafts + 1)])
        draw = draw_target(
            torch.tensor(np.stack([case.logits for case in cases])),
            Positions(row_N, single.index_N, history),
            tensors(params),
            0.0,
        )
        assert draw.token_N.tolist() == [case.twin() for case in cases]


def test_penalties_without_a_history_are_a_bug_of_the_caller() -> None:
    sampling = tensors([SamplingParams(presence_penalty=1.0)])
    assert sampling.needs_history
    with pytest.raises(ValueError, match="history"):
        draw_target(torch.zeros(1, VOCAB), plain_positions([0]), sampling, 0.0)


@given(case=CASES)
@settings(max_examples=400, deadline=None)
def test_a_stable_draw_withstands_every_small_perturbation(case: Case) -> None:
    """The promise of the near-tie test, at an epsilon so large that it is often refused, in both precisions.

    Half of epsilon each way: two logits then move by at most epsilon against each other.
    """
    epsilon, generator = 0.2, np.random.default_rng(case.params.seed)
    for dtype, numpy_dtype in ((torch.float64, np.float64), (torch.float32, np.float32)):
        draw = draw_all([case], epsilon, dtype)
        if not bool(draw.is_stable_N):
            continue
        for number in range(5):
            step = generator.choice((-1.0, 1.0), VOCAB) if number % 2 else generator.uniform(-1, 1, VOCAB)
            moved = case.logits.astype(numpy_dtype) + step * epsilon / 2.001
            assert case.twin(moved.astype(np.float64)) == int(draw.token_N)


def test_the_fast_way_calls_nothing_stable_that_the_exact_way_decides_otherwise() -> None:
    """float32 logits at the epsilon of float32, with hardly any spread, so that near ties abound."""
    generator = np.random.default_rng(11)
    num_stable = 0
    for _ in range(20):
        cases = [random_case(generator, spread=1e-3) for _ in range(50)]
        fast, exact = draw_all(cases, 1e-5, torch.float32), draw_all(cases, 0.0, torch.float32)
        num_stable += int(fast.is_stable_N.sum())
        assert bool((fast.token_N == exact.token_N)[fast.is_stable_N].all())
        assert exact.token_N.tolist() == [
            case.twin(case.logits.astype(np.float32).astype(np.float64)) for case in cases
        ]
    assert num_stable > 300


@pytest.mark.parametrize("temperature", [0.01, 0.7, 100.0])
def test_rounding_in_float32_never_makes_a_draw_stable(temperature: float) -> None:
    """Logits that cancel the noise: all scores of a position lie within a few units in the last place."""
    n, vocab, generator = 4000, 6, np.random.default_rng(12)
    params = [SamplingParams(temperature=temperature, seed=seed) for seed in range(n)]
    bits_NV = noise.hash_tokens(noise.keys(torch.arange(n), torch.zeros(n, dtype=torch.int64)), torch.arange(vocab))
    level_N1 = torch.tensor(generator.choice((0.0, 1.0, 30.0), (n, 1)))
    logits_NV = (level_N1 - temperature * noise.gumbel(bits_NV)).to(torch.float32)
    check_fast_against_exact(logits_NV, params)


def test_rounding_of_changed_logits_never_makes_a_draw_stable() -> None:
    """Biases that cancel greedy logits."""
    n, vocab, generator = 300, 6, np.random.default_rng(13)
    logits_NV = torch.tensor(generator.normal(0, 5, (n, vocab)), dtype=torch.float32)
    bias_NV = 10 - logits_NV.to(torch.float64) + torch.tensor(generator.uniform(0, 3e-6, (n, vocab)))
    check_fast_against_exact(logits_NV, [SamplingParams(logit_bias=enumerate(row)) for row in bias_NV.tolist()])  # type: ignore[arg-type]


def check_fast_against_exact(logits_NV: torch.Tensor, params: list[SamplingParams]) -> None:
    sampling, positions = tensors(params, logits_NV.shape[1]), plain_positions([0] * len(params))
    exact = draw_target(logits_NV, positions, sampling, 0.0)
    for epsilon in (1e-9, 1e-6):
        fast = draw_target(logits_NV, positions, sampling, epsilon)
        is_right_N = (fast.token_N == exact.token_N) & (exact.margin_N >= epsilon)
        assert not bool((fast.is_stable_N & ~is_right_N).any())
        assert not bool(is_right_N.all()), "the case is too easy"


def test_truncation_borders_under_the_worst_perturbations() -> None:
    """Small vocabularies in which most draws lie near a border, moved up and down around the winner and each rank."""
    epsilon, generator = 0.2, np.random.default_rng(14)
    n, vocab = 1500, 7
    params = [
        SamplingParams(
            temperature=float(generator.choice((0.7, 2.0))),
            top_k=int(generator.choice((0, 0, 2, 3))),
            top_p=float(generator.choice((1.0, 0.3, 0.6, 0.8))),
            min_p=float(generator.choice((0.0, 0.0, 0.3, 0.6))),
            seed=seed,
        )
        for seed in range(n)
    ]
    logits = generator.normal(0, 1, (n, vocab)) + 2 * (generator.random((n, vocab)) < 0.2)
    logits[::2] = np.round(logits[::2])  # ties with the borders, which perturbations break
    draw = draw_target(torch.tensor(logits), plain_positions([0] * n), tensors(params, vocab), epsilon)
    assert int(draw.is_stable_N.sum()) > n // 4
    for number in np.flatnonzero(draw.is_stable_N.numpy()):
        token, row = int(draw.token_N[number]), logits[number]
        steps = [np.where(row >= border, 1.0, -1.0) for border in row]
        steps += [np.where(np.arange(vocab) == other, 1.0, -1.0) for other in range(vocab)]
        for step in steps + [-step for step in steps]:
            step[token] = -1.0
            moved = row + step * epsilon / 2.001
            assert reference.draw(moved, params[number], 0) == token
            step[token] = 1.0
            assert reference.draw(row + step * epsilon / 2.001, params[number], 0) == token


@pytest.mark.parametrize(("third", "moved_third", "top_p"), [(0.0, 0.05, 0.5), (0.1, 0.0, 0.3)])
def test_ties_at_the_top_k_border_that_break_or_arise(third: float, moved_third: float, top_p: float) -> None:
    """Top-p is over what top-k left: three tokens, or with the ties of the third all thirty."""
    n, before = 400, np.array([1.5, 1.0, third, *[0.0] * 27])
    after = np.array([1.5, 1.0, moved_third, *[0.0] * 27])
    params = [SamplingParams(temperature=1.0, top_k=3, top_p=top_p, seed=seed) for seed in range(n)]
    draw = draw_target(torch.tensor(before).expand(n, -1), plain_positions([0] * n), tensors(params, 30), 0.2)
    moved = [reference.draw(after, row, 0) for row in params]
    assert [reference.draw(before, row, 0) for row in params] == draw.token_N.tolist()
    assert draw.token_N.tolist() != moved
    assert bool((draw.token_N == torch.tensor(moved))[draw.is_stable_N].all())
    assert bool(draw.is_stable_N.any())


def test_ties_with_the_kth_token_behind_the_prefix_count_in_the_norm() -> None:
    logits = np.array([3.0, *[2.0] * 10, *[1.0] * 500, *[-5.0] * 100])
    params = [SamplingParams(temperature=1.0, top_k=20, top_p=0.03, seed=seed) for seed in range(50)]
    draw = draw_target(torch.tensor(logits).expand(50, -1), plain_positions([0] * 50), tensors(params, 611), 0.0)
    assert draw.token_N.tolist() == [reference.draw(logits, row, 0) for row in params]


def test_most_draws_are_stable_at_the_epsilon_of_float32() -> None:
    generator = np.random.default_rng(1)
    params = [SamplingParams(temperature=0.8, top_p=0.95, top_k=20, min_p=0.01, seed=s) for s in range(2000)]
    logits_NV = torch.tensor(generator.normal(0, 3, (2000, 300)), dtype=torch.float32)
    draw = draw_target(logits_NV, plain_positions([0] * 2000), tensors(params, 300), 1e-4)
    assert int((~draw.is_stable_N).sum()) < 20


@pytest.mark.parametrize("top_k", [600, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_wide_sets_over_a_large_vocabulary_equal_the_twin(dtype: torch.dtype, top_k: int) -> None:
    """Kept sets behind the first and the second prefix, beside narrow ones and untruncated rows."""
    generator = np.random.default_rng(2)
    spreads = [0.3, 3.0, 8.0, 0.3, 8.0, 0.01]
    params = [
        SamplingParams(temperature=1.0, top_p=0.97, seed=8),
        SamplingParams(temperature=0.7, top_p=0.95, min_p=1e-3, seed=9),
        SamplingParams(temperature=1.0, top_p=0.9, top_k=top_k, seed=10),
        SamplingParams(temperature=1.0, top_k=20, banned_token_ids=tuple(range(2990)), seed=11),
        SamplingParams(temperature=1.3, seed=12),
        SamplingParams(temperature=0.5, min_p=0.9, seed=13),
    ]
    for index in range(4):
        logits_NV = torch.tensor(np.stack([generator.normal(0, spread, 3000) for spread in spreads])).to(dtype)
        logits_NV[2] = (logits_NV[2] / 4).round()  # hundreds of tokens tie with the k-th
        draw = draw_target(logits_NV, plain_positions([index] * 6), tensors(params, 3000), 0.0)
        wanted = [reference.draw(row.numpy(), params[n], index) for n, row in enumerate(logits_NV.to(torch.float64))]
        assert draw.token_N.tolist() == wanted


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.8, 0.0), (6, 0.9, 0.1)])
def test_draws_follow_the_law(top_k: int, top_p: float, min_p: float) -> None:
    """20,000 draws with different row seeds against the exact law; chi-square, false-alarm rate below 1e-6."""
    logits = np.random.default_rng(4).normal(0, 1.5, 12)
    n = 20_000
    params = [SamplingParams(temperature=0.9, top_k=top_k, top_p=top_p, min_p=min_p, seed=s) for s in range(n)]
    kept = reference.kept_tokens(logits, params[0])
    weights = np.exp(logits[kept] / 0.9)
    law = dict(zip(kept, weights / weights.sum(), strict=True))
    logits_NV = torch.tensor(logits, dtype=torch.float32).expand(n, -1)
    count = Counter(draw_target(logits_NV, plain_positions([0] * n), tensors(params, 12), 1e-4).token_N.tolist())
    assert set(count) <= set(law)
    chi2 = sum((count[token] - n * p) ** 2 / (n * p) for token, p in law.items())
    freedom = max(len(law) - 1, 1)
    # Laurent and Massart (2000): P(chi2 > f + 2 sqrt(f x) + 2 x) <= exp(-x), here with x = 14.
    assert chi2 < freedom + 2 * math.sqrt(freedom * 14) + 28


def test_law_of_rare_tokens_in_a_large_vocabulary() -> None:
    """One token of probability 1/2 and 149,999 equally rare ones: 1,200 draws of the fast way.

    Bounds at 6 deviations, and for the repeated winners (Poisson with mean 1.2) at 14: false-alarm rate below 1e-6.
    """
    vocab, draws, width = 150_000, 1200, 100
    logits_V = torch.zeros(vocab)
    logits_V[70_000] = math.log(vocab - 1)
    sampling = tensors([SamplingParams(temperature=1.0, seed=42)], vocab)
    winners: list[int] = []
    for start in range(0, draws, width):
        positions = Positions(torch.zeros(width, dtype=torch.int64), torch.arange(start, start + width))
        winners += draw_target(logits_V.expand(width, -1), positions, sampling, 1e-4).token_N.tolist()
    rare = [token for token in winners if token != 70_000]
    assert abs(len(rare) - draws / 2) < 6 * math.sqrt(draws / 4)
    assert len(rare) - len(set(rare)) < 14
    for quarter in range(4):
        count = sum(vocab * quarter <= 4 * token < vocab * (quarter + 1) for token in rare)
        assert abs(count - len(rare) / 4) < 6 * math.sqrt(len(rare) * 3 / 16)


@given(case=CASES)
@settings(max_examples=200, deadline=None)
def test_transformed_logits_are_the_law_of_the_draw(case: Case) -> None:
    logits_NV = torch.tensor(case.logits).unsqueeze(0)
    transformed = transformed_logits(logits_NV, positions_of([case]), tensors([case.params]))[0].numpy()
    changed = reference.changed_logits(
        case.logits, case.params, len(case.completion),
        prompt_ids=case.prompt, completion_ids=case.completion, stop_ids=STOPS,
    )  # fmt: skip
    if case.params.temperature == 0:
        assert np.flatnonzero(np.isfinite(transformed)).tolist() == [int(np.argmax(changed))]
        return
    kept = reference.kept_tokens(changed, case.params)
    assert np.flatnonzero(np.isfinite(transformed)).tolist() == kept
    assert transformed[kept] == pytest.approx(changed[kept] / case.params.temperature, rel=1e-12)


def test_logprobs_are_those_of_the_raw_logits() -> None:
    generator = np.random.default_rng(6)
    cases = [random_case(generator, logprobs=True) for _ in range(50)]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        draw = draw_all(cases, 0.0, dtype)
        assert draw.logprob_N is not None
        wanted = [
            reference.logprob(case.logits, token) for case, token in zip(cases, draw.token_N.tolist(), strict=True)
        ]
        assert draw.logprob_N.tolist() == pytest.approx(wanted, abs=tolerance)
    silent = [replace(case, params=replace(case.params, logprobs=False)) for case in cases]
    assert draw_all(silent).logprob_N is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_equal", [2, 30])
def test_greedy_takes_the_lowest_of_equal_tokens(dtype: torch.dtype, num_equal: int) -> None:
    logits_NV = torch.zeros(2, VOCAB, dtype=dtype)
    logits_NV[:, 4 : 4 + num_equal] = 5.0
    for params in (SamplingParams(), SamplingParams(temperature=1.0)):  # alone, and beside a random row
        draw = draw_target(logits_NV, plain_positions([0, 0]), tensors([SamplingParams(), params]), 0.0)
        assert int(draw.token_N[0]) == 4
        assert float(draw.margin_N[0]) == 0.0
        assert not bool(draw.is_stable_N[0])


def test_greedy_rows_make_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("noise was made")

    for name in ("keys", "hash_tokens"):
        monkeypatch.setattr(f"specbatch.specdec.noise.{name}", refuse)
    sampling = tensors([SamplingParams(top_p=0.5, top_k=3)] * 2)
    logits_NV = torch.arange(2.0 * VOCAB).view(2, VOCAB)
    before_NV = logits_NV.clone()
    assert draw_target(logits_NV, plain_positions([0, 1]), sampling, 1e-4).token_N.tolist() == [VOCAB - 1] * 2
    assert draw_draft(logits_NV, plain_positions([0, 1]), sampling).tolist() == [VOCAB - 1] * 2
    assert torch.equal(logits_NV, before_NV), "the caller's logits are read only"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.0, top_k=2),
        SamplingParams(temperature=1.0, top_p=0.5, presence_penalty=1.0),
    ],
)
def test_broken_logits_are_noticed_and_their_neighbours_unharmed(
    bad: float, dtype: torch.dtype, params: SamplingParams
) -> None:
    good = np.linspace(0, 3, VOCAB)
    broken = good.copy()
    broken[7] = bad
    cases = [Case(params, logits, [1], [2], 0) for logits in (good, broken, good)]
    draw = draw_all(cases, 1e-4, dtype)
    assert draw.is_finite_N.tolist() == [True, False, True]
    assert draw.token_N[0] == draw.token_N[2]
