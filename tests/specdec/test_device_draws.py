"""Draws as a device makes them: without a look at what is in a tensor, in slices, the same beside any other row."""

from __future__ import annotations

import weakref
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from sampling_cases import VOCAB, Case, positions_of, random_case, tensors
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.models import footprint
from specbatch.specdec.models.footprint import BYTES_PER_SLICED_LOGIT
from specbatch.specdec.sampling import draw as draw_module
from specbatch.specdec.sampling import transform, winner
from specbatch.specdec.sampling.coupling import accept_block, propose_token
from specbatch.specdec.sampling.draw import Draw, Positions, draw_draft, draw_target, logprobs_at, transformed_logits
from specbatch.specdec.sampling.tensors import History, SamplingTensors

MIXED = [
    {"temperature": 0.9},
    {"temperature": 0.0},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.7, "top_k": 2},
    {"temperature": 0.8, "top_k": 3, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 100.0},
]


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winner, "is_on_host", lambda values: False)


def rows(num_rows: int) -> tuple[Tensor, list[SamplingParams]]:
    generator = np.random.default_rng(num_rows)
    params = [SamplingParams(seed=n, **MIXED[n % len(MIXED)]) for n in range(num_rows)]  # type: ignore[arg-type]
    return torch.tensor(generator.normal(0, 2, (num_rows, VOCAB))), params


def draw(
    logits_NV: Tensor, params: list[SamplingParams], chosen: list[int], epsilon: float = 0.0, *, is_final: bool = False
) -> Draw:
    positions = Positions(torch.arange(len(chosen)), torch.tensor(chosen))
    few = tensors([params[n] for n in chosen], logits_NV.shape[1])
    return draw_target(logits_NV[chosen], positions, few, epsilon, is_final=is_final)


@pytest.mark.parametrize(("dtype", "epsilon"), [(torch.bfloat16, 0.0), (torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_a_row_that_truncates_nothing_is_known_beside_one_that_does(
    on_a_device: None, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, epsilon: float
) -> None:
    """It looks at four tokens. To leave such a row open means a forward over its whole prefix for every token."""
    monkeypatch.setattr(winner, "DEVICE_PREFIX", 4)
    logits_NV, params = rows(60)
    found = draw(logits_NV.to(dtype), params, list(range(60)), epsilon)
    is_unknown_N = found.certainty == -1
    is_truncated_N = torch.tensor([row.top_p < 1 or row.top_k > 0 for row in params])
    assert bool(is_unknown_N[is_truncated_N].any())
    assert not bool(is_unknown_N[~is_truncated_N].any())
    exact = draw(logits_NV.to(dtype).to(torch.float64), params, list(range(60)))
    is_sure_N = found.certainty > 0
    assert int(is_sure_N.sum()) > 30
    assert torch.equal(found.token_N[is_sure_N], exact.token_N[is_sure_N])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_final_draw_does_not_depend_on_the_rows_beside_it(on_a_device: None, dtype: torch.dtype) -> None:
    """To the bit: another precision of the noise, or another way through it, shows in the margin."""
    logits_NV, params = rows(24)
    together = draw(logits_NV.to(dtype), params, list(range(24)), is_final=True)
    assert together.is_known_N is None
    for n in range(24):
        alone = draw(logits_NV.to(dtype), params, [n], is_final=True)
        for name in ("token_N", "margin_N", "is_stable_N", "is_finite_N"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[n]), (n, name)


def test_sums_do_not_depend_on_their_order() -> None:
    """A device adds in an order that hangs on the number of rows. Here the vocabulary is turned round instead."""
    torch.manual_seed(5)
    logits_NV = 3 * torch.randn(50, 3001)
    temperature_N1 = 0.5 + torch.rand(50, 1, dtype=torch.float64)
    turned_NV, token_N = logits_NV.flip(1), torch.arange(50)
    assert torch.equal(draw_module._logprob(logits_NV, token_N), draw_module._logprob(turned_NV, 3000 - token_N))
    best_N1, num_bits = logits_NV.amax(dim=1, keepdim=True).to(torch.float64), transform.fraction_bits(3001)
    norm_N, turned_N = (transform._norm(way, best_N1, temperature_N1, num_bits) for way in (logits_NV, turned_NV))
    assert torch.equal(norm_N, turned_N)
    wide_NV = ((logits_NV.to(torch.float64) - best_N1) / temperature_N1).exp()
    torch.testing.assert_close(norm_N.to(torch.float64) * 2.0**-num_bits, wide_NV.sum(dim=1), rtol=1e-6, atol=0.0)
    off = torch.full((50,), -torch.inf, dtype=torch.float64)
    limits = transform.Limits(
        temperature_N1[:, 0], torch.full((50,), 2000), torch.full_like(off, 0.9), off, torch.zeros_like(off)
    )
    kept = transform.keep(logits_NV, limits, width=3001, has_top_p=True)
    assert kept.weight_NW.dtype == torch.int64, "floats in a running sum"
    assert torch.equal(kept.tight_norm_N, kept.weight_NW[:, :2000].sum(dim=1).to(torch.float64))


@pytest.mark.parametrize("num_terms", [1, 2, 40, 1 << 17, (1 << 18) - 1])
def test_no_sum_of_whole_numbers_is_too_large(num_terms: int) -> None:
    num_bits = transform.fraction_bits(num_terms)
    one = transform.whole_numbers(torch.ones(1), num_bits)
    assert 1 << 60 <= int(one) * num_terms < 1 << 62


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_slices_are_the_whole(on_a_device: None, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Rows with penalties, drafts and log-probabilities, in slices of 3 that the last one does not fill."""
    generator = np.random.default_rng(9)
    cases = [random_case(generator, logprobs=True) for _ in range(20)]
    whole = everything(cases, dtype)
    monkeypatch.setattr(footprint, "LOGITS_PER_SLICE", 3 * VOCAB + 1)
    assert len(winner.slices(torch.empty(20, VOCAB))) == 7
    parts = everything(cases, dtype)
    assert whole[0].logprob_N is not None
    for field in fields(Draw):
        one, other = getattr(whole[0], field.name), getattr(parts[0], field.name)
        assert one is other is None or torch.equal(one, other), field.name
    for one, other in zip(whole[1:], parts[1:], strict=True):
        assert torch.equal(one, other)


def everything(cases: list[Case], dtype: torch.dtype) -> Any:
    logits_NV = torch.tensor(np.stack([case.logits for case in cases])).to(dtype)
    positions, given = positions_of(cases), tensors([case.params for case in cases])
    law_NV = transformed_logits(logits_NV, positions, given)
    seed_B, index_B = given.seed_B, positions.index_N
    drafted_B = propose_token(law_NV, seed_B, index_B, index_B)
    judged = accept_block(
        law_NV.repeat_interleave(2, dim=0), [law_NV], drafted_B[:, None], torch.ones_like(index_B), seed_B, index_B
    )
    drafts_B = draw_draft(logits_NV, positions, given)
    place_BT = torch.stack((index_B, index_B.flip(0)), dim=1) % len(cases)
    logprob_BT = logprobs_at(logits_NV, place_BT, judged.token_BT.clamp(min=0))
    exact_NV = logits_NV.to(torch.float64).log_softmax(dim=-1)
    expected_BT = exact_NV[place_BT].gather(-1, judged.token_BT.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(logprob_BT, expected_BT, rtol=1e-12, atol=1e-12)
    return (
        draw_target(logits_NV, positions, given, 1e-4), drafts_B, law_NV, drafted_B, judged.token_BT,
        judged.num_accepted_B, logprob_BT,
    )  # fmt: skip


class Held(TorchDispatchMode):
    """The most bytes that results of operations have held at once, views not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, name: int, num_bytes: int) -> None:
        self._seen.discard(name)
        self.now -= num_bytes


@pytest.mark.parametrize("settings", MIXED)
@pytest.mark.parametrize("is_final", [False, True])
def test_the_ledger_counts_what_a_draw_holds(
    on_a_device: None, monkeypatch: pytest.MonkeyPatch, settings: dict[str, float], is_final: bool
) -> None:
    vocab, per_slice, num_rows = 2000, 16, 96
    monkeypatch.setattr(footprint, "LOGITS_PER_SLICE", per_slice * vocab)
    logits_NV = torch.randn(num_rows, vocab).bfloat16()
    params = [SamplingParams(seed=n, logprobs=True, **settings) for n in range(num_rows)]  # type: ignore[arg-type]
    given, places = tensors(params, vocab), torch.arange(num_rows)
    positions = Positions(places, places)
    held = Held()
    with held:
        draw_target(logits_NV, positions, given, 0.0, is_final=is_final)
    # What stands for each row beside its logits is not counted: it has no vocabulary.
    assert 4 * per_slice * vocab < held.most < BYTES_PER_SLICED_LOGIT * per_slice * vocab + 1000 * num_rows


_TRUNCATED: list[dict[str, Any]] = [
    {"temperature": 0.7, "top_k": 128},
    {"temperature": 1.2, "top_k": 50, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.05},
    {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "min_p": 0.01},
    {"temperature": 0.8, "top_k": 20, "frequency_penalty": 0.2, "logit_bias": {3: 1.5}},
]


def large_rows(settings: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, list[SamplingParams]]:
    """Rows over 6,000 tokens that are as steep as those of a model."""
    torch.manual_seed(3)
    return (4 * torch.randn(200, 6000)).to(dtype), [SamplingParams(seed=n, **settings) for n in range(200)]


def drawn(logits_NV: Tensor, params: list[SamplingParams]) -> tuple[Tensor, Tensor]:
    """Drafts, and what the target would draw from the same logits."""
    given, places = tensors(params, logits_NV.shape[1]), torch.arange(len(params))
    history = None
    if given.needs_history:
        token_BP = torch.arange(len(params))[:, None] + torch.arange(5)
        length_B = torch.full_like(places, 5)
        history = History(token_BP, length_B, length_B - 2, torch.empty(len(params), 0, dtype=torch.int64))
    positions = Positions(places, 7 * places, history)
    return draw_draft(logits_NV, positions, given), draw_target(logits_NV, positions, given, 0.0).token_N


@pytest.mark.parametrize("settings", _TRUNCATED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_draft_is_what_the_target_would_draw_and_takes_a_short_prefix(
    on_a_device: None, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    """The same token for every top-k within the prefix; where sets reach beyond it, nearly always."""
    widths: list[int] = []
    keep = transform.keep

    def seen(logits_NV: Tensor, *rest: Any, width: int, **more: Any) -> Any:
        widths.append(width)
        return keep(logits_NV, *rest, width=width, **more)

    monkeypatch.setattr(winner, "keep", seen)
    monkeypatch.setattr(footprint, "LOGITS_PER_SLICE", 50 * 6000)
    draft_N, target_N = drawn(*large_rows(settings, dtype))
    assert widths[0] == winner.DRAFT_PREFIX
    assert widths[1:] == [winner.DEVICE_PREFIX] * 4
    if "top_k" in settings and dtype == torch.float32:
        assert torch.equal(draft_N, target_N)
    else:  # in half precision many tokens tie with the last one that is kept
        assert float((draft_N == target_N).to(torch.float32).mean()) > 0.95


def test_a_draft_beyond_the_prefix_is_the_best_of_the_prefix(on_a_device: None) -> None:
    logits_NV, params = large_rows({"temperature": 2.0, "top_k": 3000}, torch.float32)
    draft_N, target_N = drawn(logits_NV, params)
    is_near_N = (logits_NV.gather(1, target_N[:, None]) >= logits_NV.topk(winner.DRAFT_PREFIX).values[:, -1:])[:, 0]
    assert 0 < int(is_near_N.sum()) < len(params)
    assert torch.equal(draft_N[is_near_N], target_N[is_near_N])


@pytest.mark.parametrize("settings", _TRUNCATED)
def test_the_ledger_counts_what_drafts_hold(on_a_device: None, settings: dict[str, Any]) -> None:
    """One row has at least two positions that are scored, its last token and a draft, at 16 bytes for a logit."""
    logits_NV, params = large_rows(settings, torch.bfloat16)
    given, places = tensors(params, logits_NV.shape[1]), torch.arange(len(params))
    length_B = torch.full_like(places, 5)
    history = History(places[:, None].expand(-1, 5), length_B, length_B, torch.empty(len(params), 0, dtype=torch.int64))
    held = Held()
    with held:
        draw_draft(logits_NV, Positions(places, places, history), given)
    per_row = 60 * winner.DRAFT_PREFIX * 8  # what stands for a prefix has no vocabulary
    assert held.most < 2 * footprint.BYTES_PER_LOGIT["cuda"] * logits_NV.numel() + per_row * len(params)


class Sent(TorchDispatchMode):
    """How many tensors of the host were copied to another device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not result.is_cpu:
            self.count += any(isinstance(value, Tensor) and value.is_cpu for value in args)
        return result


def test_the_sampling_of_a_batch_crosses_in_one_copy_for_each_type() -> None:
    """A device without memory stands for a GPU."""
    plain = [SamplingParams(seed=n, temperature=0.8, top_p=0.9, repetition_penalty=1.1) for n in range(9)]
    tables = SamplingParams(min_new_tokens=2, forced_token_ids=(4,), banned_token_ids=(5,))
    for params, num_copies in ((plain, 3), ([*plain, tables], 6)):
        sent = Sent()
        with sent:
            SamplingTensors.from_params(params, [(1, 2)] * len(params), torch.device("meta"), VOCAB)
        assert sent.count == num_copies
