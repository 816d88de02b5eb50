"""The distribution coupling: exactly the target's law, in one round and over many, and tests that would notice if not.

Two kinds of proof. The rule itself is enumerated: every window of drafts, every outcome of the coins, no chance
involved, equality to 1e-12. The whole with its noise is simulated and compared with the exact law by chi-square, at a
false-alarm rate of 1e-6 for each of the 11 comparisons that must pass (fixed seeds). Every deliberate fault below must
exceed one and a half times the same bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specbatch.specdec.accept import commit
from specbatch.specdec.sampling import coupling

V = 5
LENGTH = 3
ROWS = 120_000
Z_ONE_IN_A_MILLION = 4.7534
INF = math.inf
GOLDEN_COINS = ["0x1.7db8b2f8083f2p-1", "0x1.69fdbad1c2787p-1", "0x1.7e50e5d148570p-1"]
GOLDEN_PROPOSALS = [41420, 23044, 27552]

# Markov chains over five tokens, far apart: row = last token, column = next. TV distance 0.4 to 0.75.
P = torch.tensor(
    [
        [0.50, 0.20, 0.10, 0.15, 0.05],
        [0.10, 0.10, 0.60, 0.10, 0.10],
        [0.05, 0.45, 0.30, 0.10, 0.10],
        [0.25, 0.25, 0.05, 0.25, 0.20],
        [0.10, 0.30, 0.10, 0.05, 0.45],
    ],
    dtype=torch.float64,
)
Q = torch.tensor(
    [
        [0.10, 0.55, 0.10, 0.05, 0.20],
        [0.50, 0.05, 0.15, 0.25, 0.05],
        [0.30, 0.10, 0.05, 0.50, 0.05],
        [0.05, 0.10, 0.60, 0.05, 0.20],
        [0.40, 0.05, 0.30, 0.20, 0.05],
    ],
    dtype=torch.float64,
)

Lengths = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(index of the next token, seeds, drafts of the round before) -> number of drafts of each row."""


def fixed(k: int) -> Lengths:
    return lambda index_B, seed_B, draft_BK: torch.full_like(index_B, k)


def ragged(index_B: Tensor, seed_B: Tensor, draft_BK: Tensor) -> Tensor:
    """0 to 3 drafts, by row and index."""
    return (seed_B + index_B) % 4


def after_discarded(index_B: Tensor, seed_B: Tensor, draft_BK: Tensor) -> Tensor:
    """K hangs on what the round before proposed last, accepted or not: what an adaptive policy may do."""
    return torch.where(draft_BK[:, -1] < 2, 3, 1)


def simulate(lengths: Lengths, k_max: int = 3, with_q: bool = True) -> Tensor:
    """Rounds from token 0 until every row has LENGTH tokens; counts [V ** LENGTH] of the sequences."""
    seed_B = torch.arange(ROWS) * 7919
    done_B = torch.zeros(ROWS, dtype=torch.int64)
    text_BL = torch.zeros(ROWS, LENGTH + k_max + 1, dtype=torch.int64)
    last_B = torch.zeros(ROWS, dtype=torch.int64)
    draft_BK = torch.zeros(ROWS, k_max, dtype=torch.int64)
    row_B = torch.arange(ROWS)
    for _ in range(LENGTH):
        length_B = lengths(done_B, seed_B, draft_BK)
        drafts, q_logits, context_B = [], [], last_B
        for j in range(k_max):
            q_logits.append(Q.log()[context_B])
            if with_q:
                context_B = coupling.propose_token(q_logits[-1], seed_B, done_B, done_B + j)
            else:
                context_B = (context_B * 2 + 1) % V
            drafts.append(context_B)
        draft_BK = torch.stack(drafts, dim=1)
        context_BT = torch.cat((last_B[:, None], draft_BK), dim=1)
        is_scored_BT = torch.arange(k_max + 1) <= length_B[:, None]
        verdict = coupling.accept_block(
            P.log()[context_BT[is_scored_BT]], q_logits if with_q else [], draft_BK, length_B, seed_B, done_B
        )
        assert bool(verdict.is_finite_B.all())
        assert bool((verdict.num_accepted_B <= length_B).all())
        # Rows that are done go on in their last places; nobody looks there.
        for j in range(k_max + 1):
            place_B = (done_B + j).clamp(max=text_BL.shape[1] - 1)
            is_said_B = j <= verdict.num_accepted_B
            text_BL[row_B, place_B] = torch.where(is_said_B, verdict.token_BT[:, j], text_BL[row_B, place_B])
        last_B = verdict.token_BT.gather(-1, verdict.num_accepted_B[:, None]).squeeze(-1)
        done_B = done_B + verdict.num_accepted_B + 1
    code_B = (text_BL[:, :LENGTH] * V ** torch.arange(LENGTH - 1, -1, -1)).sum(dim=1)
    return torch.bincount(code_B, minlength=V**LENGTH)


def exact_law(chain: Tensor) -> Tensor:
    """[V ** LENGTH] probabilities of the sequences from token 0."""
    law = chain[0]
    for _ in range(LENGTH - 1):
        law = (law.view(-1, V, 1) * chain).flatten()
    return law


def chi_square(count: Tensor) -> float:
    expected = exact_law(P) * count.sum()
    assert float(expected.min()) > 5
    return float(((count - expected) ** 2 / expected).sum())


def bound(freedom: int) -> float:
    """Chi-square that a true law exceeds once in a million (Wilson and Hilferty)."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + Z_ONE_IN_A_MILLION * math.sqrt(spread)) ** 3


BOUND = bound(V**LENGTH - 1)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


# --- the law -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_law_over_several_rounds(k: int) -> None:
    assert chi_square(simulate(fixed(k), max(k, 1))) < BOUND


def test_law_with_a_length_of_its_own_in_every_row() -> None:
    assert chi_square(simulate(ragged)) < BOUND


def test_law_when_k_hangs_on_discarded_drafts() -> None:
    assert chi_square(simulate(after_discarded)) < BOUND


@pytest.mark.parametrize("k", [1, 2, 3])
def test_law_with_drafts_that_were_looked_up(k: int) -> None:
    assert chi_square(simulate(fixed(k), k, with_q=False)) < BOUND


def same_stream_for_proposals_and_next_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coupling, "_NEXT_STREAM", coupling._PROPOSAL_STREAM)


def one_noise_for_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = coupling._keys
    monkeypatch.setattr(coupling, "_keys", lambda stream, seed, start, index: keys(stream, seed, 0 * start, index))


def coin_from_the_proposal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coin is the uniform that decided the draft's own noise."""

    def coins(seed_B: Tensor, start_B: Tensor, index_B: Tensor) -> Tensor:
        key_B = coupling._keys(coupling._PROPOSAL_STREAM, seed_B, start_B, index_B)
        return coupling.noise.uniform(coupling.noise.hash_tokens(key_B, torch.tensor([0])))[:, 0]

    monkeypatch.setattr(coupling, "_coins", coins)


def nothing_subtracted(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = coupling.judge_prefix
    monkeypatch.setattr(coupling, "judge_prefix", lambda weight, p, q: (judge(weight, p, q)[0], p))


def weight_not_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    extend = coupling.extend_weight
    monkeypatch.setattr(
        coupling, "extend_weight", lambda weight, p, q, token: extend(torch.ones_like(weight), p, q, token)
    )


def coin_of_the_ratio_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight itself as the chance inside a window: right at its end only."""
    judge = coupling.judge_prefix
    monkeypatch.setattr(coupling, "judge_prefix", lambda weight, p, q: (weight, judge(weight, p, q)[1]))


FAULTS = [
    (same_stream_for_proposals_and_next_token, fixed(1), 1),
    (coin_from_the_proposal, fixed(1), 1),
    (nothing_subtracted, fixed(1), 1),
    (one_noise_for_all_rounds, fixed(2), 2),
    (one_noise_for_all_rounds, after_discarded, 3),
    (weight_not_carried, fixed(2), 2),
    (coin_of_the_ratio_test, fixed(2), 2),
]


@pytest.mark.parametrize(("fault", "lengths", "k_max"), FAULTS)
def test_faults_are_noticed(
    fault: Callable[[pytest.MonkeyPatch], None], lengths: Lengths, k_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a wide margin."""
    fault(monkeypatch)
    assert chi_square(simulate(lengths, k_max)) > 1.5 * BOUND


def enumerated(p: Tensor, q: Tensor, k: int) -> Tensor:
    """Exact law [V ** (k + 1)] of the first k + 1 tokens when one window of k drafts is judged and p goes on."""
    size = p.shape[0]
    law = torch.zeros((size,) * (k + 1), dtype=torch.float64)
    nothing = torch.zeros(1, size, dtype=torch.float64)
    for drafts in itertools.product(range(size), repeat=k):
        context = (0, *drafts)
        chance_q = math.prod(float(q[a, b]) for a, b in itertools.pairwise(context))
        weight, judged = torch.ones(1, dtype=torch.float64), []
        for j in range(k + 1):
            p_1V, q_1V = p[context[j]][None], q[context[j]][None] if j < k else nothing
            judged.append(coupling.judge_prefix(weight, p_1V, q_1V))
            if j < k:
                weight = coupling.extend_weight(weight, p_1V, q_1V, torch.tensor([drafts[j]]))
        none_longer = chance_q
        for j in range(k, -1, -1):
            good, residual = judged[j]
            accepted = none_longer * (float(good) if j > 0 else 1.0)
            none_longer -= accepted
            tail = residual[0] / residual.sum()
            for _ in range(k - j):
                tail = tail.unsqueeze(-1) * p
            law[drafts[:j]] += accepted * tail
    return law


laws = st.lists(st.sampled_from([0.0, 0.0, 0.1, 0.3, 1.0, 2.7]), min_size=9, max_size=9)


@given(p=laws, q=laws, k=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_rule_has_the_law_of_the_target_exactly(p: list[float], q: list[float], k: int) -> None:
    """All windows and all coins, for chains with zeros, equal rows and one-hot rows."""

    def chain(values: list[float]) -> Tensor:
        rows = torch.tensor(values, dtype=torch.float64).view(3, 3)
        rows = torch.where(rows.sum(-1, keepdim=True) > 0, rows, torch.eye(3, dtype=torch.float64))
        return rows / rows.sum(-1, keepdim=True)

    p_chain, q_chain = chain(p), chain(q)
    expected = p_chain[0]
    for _ in range(k):
        expected = expected.unsqueeze(-1) * p_chain
    torch.testing.assert_close(enumerated(p_chain, q_chain, k), expected, rtol=0, atol=1e-12)


# --- how much is accepted ----------------------------------------------------------------------------------------


def one_round(p_KV: Tensor, q_KV: Tensor, k: int, seed_B: Tensor, start: int = 0) -> tuple[Tensor, coupling.Verdict]:
    """Rows with the same laws at position j, p_KV[j] and q_KV[j]; logits, k + 1 and k of them."""
    B = len(seed_B)
    start_B = torch.full((B,), start)
    q_logits = [q_KV[j].expand(B, -1) for j in range(k)]
    draft_BK = torch.stack([coupling.propose_token(q_logits[j], seed_B, start_B, start_B + j) for j in range(k)], dim=1)
    p_NV = p_KV[: k + 1].repeat(B, 1)
    return draft_BK, coupling.accept_block(p_NV, q_logits, draft_BK, torch.full((B,), k), seed_B, start_B)


def test_equal_laws_accept_everything() -> None:
    generator = torch.Generator().manual_seed(1)
    logits_KV = 3 * torch.randn(7, 300, generator=generator)
    draft_BK, verdict = one_round(logits_KV, logits_KV, 6, torch.arange(5_000))
    assert bool((verdict.num_accepted_B == 6).all())
    assert torch.equal(verdict.token_BT[:, :6], draft_BK)


def test_disjoint_supports_accept_nothing() -> None:
    p_KV = torch.tensor([[0.3, 1.0, -INF, -INF]]).repeat(4, 1)
    q_KV = torch.tensor([[-INF, -INF, 0.2, -1.0]]).repeat(3, 1)
    _, verdict = one_round(p_KV, q_KV, 3, torch.arange(5_000))
    assert bool((verdict.num_accepted_B == 0).all())
    assert bool((verdict.token_BT[:, 0] < 2).all())


def test_one_draft_is_accepted_as_often_as_the_laws_overlap() -> None:
    """sum of min(p, q), as in the ratio test; binomial, false-alarm rate 1e-6."""
    accepted = float((one_round(P.log(), Q.log(), 1, torch.arange(ROWS))[1].num_accepted_B == 1).double().mean())
    overlap = float(torch.minimum(P[0], Q[0]).sum())
    assert abs(accepted - overlap) < 4.9 * math.sqrt(overlap * (1 - overlap) / ROWS)


def test_a_window_accepts_more_than_the_ratio_test() -> None:
    """Same p and q at both places: the ratio test accepts overlap + overlap ** 2; the block more (6 deviations)."""
    overlap = float(torch.minimum(P[0], Q[0]).sum())
    _, verdict = one_round(P[[0, 0, 0]].log(), Q[[0, 0]].log(), 2, torch.arange(ROWS))
    num_accepted = verdict.num_accepted_B.double()
    assert float(num_accepted.mean()) - overlap - overlap**2 > 6 * float(num_accepted.std()) / math.sqrt(ROWS)


def test_greedy_rows_accept_exactly_the_matching_prefix() -> None:
    """Temperature 0: one-hot p and q; all outcomes of a window of 3, and no chance in any."""
    target, size = (2, 0, 3, 1), 4
    for start, drafts in enumerate(itertools.product(range(size), repeat=3)):
        p_NV = torch.full((4, size), -INF).scatter(1, torch.tensor(target)[:, None], 7.5)
        q_logits = [torch.full((1, size), -INF).index_fill(1, torch.tensor([x]), -2.5) for x in drafts]
        seed_B, start_B = torch.tensor([99]), torch.tensor([start])
        assert [int(coupling.propose_token(q, seed_B, start_B, start_B + j)) for j, q in enumerate(q_logits)] == [
            *drafts
        ]
        expected = next((j for j in range(3) if drafts[j] != target[j]), 3)
        for q in (q_logits, []):
            verdict = coupling.accept_block(p_NV, q, torch.tensor([drafts]), torch.tensor([3]), seed_B, start_B)
            assert verdict.num_accepted_B.tolist() == [expected]
            assert verdict.token_BT.tolist() == [[*target[: expected + 1]] + [-1] * (3 - expected)]


# --- layout, keys and bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [4, 1, 0])
def test_a_row_does_not_depend_on_its_mates_or_on_padding(num_steps: int) -> None:
    """Ragged lengths, drawn and looked-up drafts side by side, garbage in the padding, against each row alone.

    Rows whose drafts were looked up may have more of them than the draft model took steps.
    """
    generator = torch.Generator().manual_seed(5)
    B, K, size = 64, 4, 50
    has_q_B = torch.arange(B) % 3 != 0
    length_B = torch.where(has_q_B, torch.arange(B) % (num_steps + 1), torch.arange(B) % (K + 1))
    seed_B = torch.randint(1 << 62, (B,), generator=generator)
    start_B = torch.randint(1000, (B,), generator=generator)
    q_KBV = 2 * torch.randn(K, B, size, generator=generator)
    p_BTV = 2 * torch.randn(B, K + 1, size, generator=generator)
    p_BTV[:, :K] += 2 * q_KBV.transpose(0, 1)
    draft_BK = torch.stack([coupling.propose_token(q_KBV[j], seed_B, start_B, start_B + j) for j in range(K)], dim=1)
    liked_BK1 = torch.where(has_q_B, 0.0, 6.0)[:, None, None].expand(B, K, 1)  # or hardly two would be accepted
    p_BTV[:, :K] = p_BTV[:, :K].scatter_add(2, draft_BK[:, :, None], liked_BK1)
    is_padding_BK = torch.arange(K) >= length_B[:, None]
    is_scored_BT = torch.arange(K + 1) <= length_B[:, None]
    noisy_KBV = torch.where(is_padding_BK.T[..., None], math.nan, q_KBV)
    together = coupling.accept_block(
        p_BTV[is_scored_BT],
        list(noisy_KBV[:num_steps]),
        draft_BK.masked_fill(is_padding_BK, -1),
        length_B,
        seed_B,
        start_B,
        has_q_B,
    )
    assert bool(together.is_finite_B.all())
    assert len(set(together.num_accepted_B.tolist())) == K + 1
    for b in range(B):
        k = int(length_B[b])
        q_logits = [q_KBV[j, b : b + 1] for j in range(k)] if has_q_B[b] else []
        alone = coupling.accept_block(
            p_BTV[b, : k + 1],
            q_logits,
            draft_BK[b : b + 1, :k],
            length_B[b : b + 1],
            seed_B[b : b + 1],
            start_B[b : b + 1],
        )
        assert alone.num_accepted_B[0] == together.num_accepted_B[b]
        assert alone.token_BT[0].tolist() + [-1] * (K - k) == together.token_BT[b].tolist()


def test_commit_cuts_the_result_like_the_draws_of_the_target() -> None:
    _, verdict = one_round(P[[0, 1, 2, 3]].log(), Q[[0, 1, 2]].log(), 3, torch.arange(500))
    tokens, accepted = verdict.token_BT.numpy(), verdict.num_accepted_B.numpy()
    cut = commit(tokens, accepted, np.full(500, 3), np.full(500, 3), np.full((500, 1), 4))
    for b in range(500):
        said = tokens[b, : min(accepted[b] + 1, 3)].tolist()
        assert cut.num_committed_B[b] == (said.index(4) + 1 if 4 in said else len(said))


def test_keys_of_streams_rounds_indices_and_rows_are_apart() -> None:
    grid = torch.cartesian_prod(torch.arange(40), torch.arange(40), torch.arange(40))
    streams = (coupling._PROPOSAL_STREAM, coupling._COIN_STREAM, coupling._NEXT_STREAM)
    found = [coupling._keys(stream, *grid.unbind(1)) for stream in streams]
    found.append(coupling.noise.keys(grid[:1600, 1], grid[:1600, 2]))
    assert len(torch.cat(found).unique()) == 3 * 40**3 + 1600


def test_golden_coins_and_proposals_never_change() -> None:
    """The noise is part of a job's text under this coupling."""
    seed_B, start_B = torch.tensor([0, 1, (1 << 63) - 1]), torch.tensor([0, 3, 500])
    assert [c.hex() for c in coupling._coins(seed_B, start_B, start_B + 2).tolist()] == GOLDEN_COINS
    assert coupling.propose_token(torch.zeros(3, 50_000), seed_B, start_B, start_B + 1).tolist() == GOLDEN_PROPOSALS


def test_coins_are_half_open(monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.tensor([0])
    for key, coin in ((0, 0.0), (-1, 1 - 2.0**-53)):
        monkeypatch.setattr(coupling, "_keys", lambda *_, key=key: torch.tensor([key]))
        assert coupling._coins(one, one, one).tolist() == [coin]


@pytest.mark.parametrize(("coin", "drafts", "expected"), [(0.0, (1, 1), 0), (1 - 2.0**-53, (0, 0), 2)])
def test_what_is_certain_withstands_every_coin(
    coin: float, drafts: tuple[int, int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target says 0 for sure: drafts of 1 are refused by the lowest coin, drafts of 0 accepted by the highest."""
    monkeypatch.setattr(coupling, "_coins", lambda seed, *_: torch.full_like(seed, coin, dtype=torch.float64))
    p_NV = torch.tensor([[1.0, -INF]]).repeat(3, 1)
    zero_B = torch.zeros(1, dtype=torch.int64)
    verdict = coupling.accept_block(p_NV, [], torch.tensor([drafts]), zero_B + 2, zero_B, zero_B)
    assert verdict.num_accepted_B.tolist() == [expected]


def test_target_that_is_not_finite_is_reported_for_its_row_only() -> None:
    p_NV = torch.zeros(6, 4)
    p_NV[2, 1], p_NV[5, 0] = math.nan, INF
    draft_BK, length_B = torch.tensor([[1], [2], [3]]), torch.tensor([1, 1, 1])
    zero_B = torch.zeros(3, dtype=torch.int64)
    verdict = coupling.accept_block(p_NV, [torch.zeros(3, 4)], draft_BK, length_B, zero_B, zero_B)
    assert verdict.is_finite_B.tolist() == [True, False, False]
    assert bool((verdict.token_BT[:, 0] >= 0).all())


def test_a_draft_without_a_finite_law_is_no_draft() -> None:
    """Position 1 has NaN: it is refused, and what follows is drawn from p itself, not from a residual."""
    B = 20_000
    p_KV, q_KV = P[[0, 0, 0]].log(), Q[[0, 0]].log()
    q_KV[1, 2] = math.nan
    zero_B, seed_B = torch.zeros(B, dtype=torch.int64), torch.arange(B)
    draft_BK = torch.tensor([[0, 2]]).repeat(B, 1)
    q_KV[0] = torch.tensor([0.0, -INF, -INF, -INF, -INF])
    verdict = coupling.accept_block(
        p_KV.repeat(B, 1), [q.expand(B, -1) for q in q_KV], draft_BK, zero_B + 2, seed_B, zero_B
    )
    is_accepted_B = verdict.num_accepted_B == 1
    assert bool((verdict.num_accepted_B <= 1).all())
    count = torch.bincount(verdict.token_BT[is_accepted_B, 1], minlength=V)
    expected = P[0] * is_accepted_B.sum()
    assert float(((count - expected) ** 2 / expected).sum()) < bound(V - 1)
