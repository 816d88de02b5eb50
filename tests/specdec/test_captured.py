"""Rounds of fixed shape: equal to the plain loop, fit to be captured, and right when launched ahead."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONTEXT, VARIANTS, VOCAB, MixedPolicy, Scarce, decoder, engine, perturbed, tiny_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from twin import Rows, WholePrefix, full_twin, run, tokens

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec import reference
from specbatch.specdec.accept import accept, commit
from specbatch.specdec.forward import lean_paged
from specbatch.specdec.forward.generic_paged import LOOKS_INTO_TENSORS
from specbatch.specdec.forward.rotary import Rotary
from specbatch.specdec.kernels import interface
from specbatch.specdec.models.families import FAMILIES
from specbatch.specdec.policy.buckets import bucket_of
from specbatch.specdec.policy.controller import AdaptivePolicy, FixedPolicy, RoundMeasure, RoundPlan, RoundView
from specbatch.specdec.rounds import ahead as ahead_module
from specbatch.specdec.rounds import profile, static_round
from specbatch.specdec.rounds.ahead import _HIDDEN, BLIND_ROUNDS, MOST_BLIND_ROUNDS, Ahead, Airborne
from specbatch.specdec.rounds.captured import CapturedRounds
from specbatch.specdec.rounds.graphs import GraphBook
from specbatch.specdec.rounds.static_round import FIRST_PLANNED, Field, StaticRound
from specbatch.specdec.sampling import winner
from specbatch.specdec.sampling.static import StaticSampling
from specbatch.specdec.sampling.tensors import SamplingTensors

PLAIN = SamplingParams(max_new_tokens=4)


@given(st.integers(1, 300))
def test_a_bucket_holds_its_rows_and_wastes_less_than_half(num_rows: int) -> None:
    bucket = bucket_of(num_rows)
    assert num_rows <= bucket < 2 * num_rows or bucket == num_rows == 1
    assert bucket_of(bucket) == bucket


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(0, 4))
@settings(deadline=None)
def test_the_device_accepts_and_commits_as_the_host_does(seed: int, num_rows: int, num_drafts: int) -> None:
    """Random rounds with few different tokens, so that drafts match, stop ids hit and limits bind at every offset."""
    generator = np.random.default_rng(seed)
    B, K = num_rows, num_drafts
    draft_BK, drawn_BT = generator.integers(0, 3, (B, K)), generator.integers(0, 3, (B, K + 1))
    stop_BX = np.where(generator.random((B, 2)) < 0.5, -1, generator.integers(0, 6, (B, 2)))
    length_B = generator.integers(5, 20, B)
    remaining_B = generator.integers(1, K + 4, B)
    draft_length_B = np.minimum(generator.integers(0, K + 1, B), remaining_B - 1)
    draft_kv_B = length_B - generator.integers(1, 3, B)
    is_model_B = generator.integers(0, 2, B)
    previous_B, last_B = generator.integers(10, 20, (2, B))

    field_BC = np.zeros((B, Field.DRAFTS + K), dtype=np.int64)
    known = {
        Field.LENGTH: length_B,
        Field.DRAFT_KV: draft_kv_B,
        Field.END: length_B + remaining_B,
        Field.IS_LIVE: 1,
        Field.PREVIOUS: previous_B,
        Field.LAST: last_B,
        Field.DRAFT_LENGTH: draft_length_B,
        Field.IS_MODEL: is_model_B,
        Field.IS_WANTED: 1,
    }
    for field, values in known.items():
        field_BC[:, field] = values
    field_BC[:, Field.DRAFTS :] = draft_BK
    next_BC = torch.zeros((B, FIRST_PLANNED), dtype=torch.int64)
    static = StaticRound(
        torch.from_numpy(field_BC),
        next_BC,
        torch.from_numpy(stop_BX),
        SamplingTensors.from_params([PLAIN] * B, [()] * B, torch.device("cpu"), VOCAB),
        torch.zeros((1, 1), dtype=torch.int32),
        page_size=32,
        max_keys=32,
        epsilon=0.0,
    )
    counted_B = static.counted_drafts(None)
    committed_B = static._advance(counted_B, torch.from_numpy(draft_BK), torch.from_numpy(drawn_BT)).numpy()

    assert counted_B.tolist() == draft_length_B.tolist()
    matched_B = accept(draft_BK, draft_length_B, drawn_BT)
    verdict = commit(drawn_BT, matched_B, draft_length_B, remaining_B, stop_BX)
    assert committed_B.tolist() == verdict.num_committed_B.tolist()
    said = [[previous_B[b], last_B[b], *drawn_BT[b, : committed_B[b]]] for b in range(B)]
    following = {field: next_BC[:, field].tolist() for field in Field if field < FIRST_PLANNED}
    assert following[Field.LENGTH] == (length_B + committed_B).tolist()
    assert following[Field.PREVIOUS] == [row[-2] for row in said]
    assert following[Field.LAST] == [row[-1] for row in said]
    assert following[Field.IS_LIVE] == (~verdict.has_ended_B).astype(int).tolist()
    kept_B = length_B + np.minimum(draft_length_B - 1, verdict.num_accepted_B)
    expected_B = np.where((is_model_B > 0) & (draft_length_B > 0), kept_B, draft_kv_B)
    assert following[Field.DRAFT_KV] == expected_B.tolist()


# ---- what capturing asks of the work -------------------------------------------------------------------------------


class NoLooking(TorchDispatchMode):
    """Refuses what would wait for a device, make a shape from what is in a tensor, or copy from the host.

    In inference mode, as the engine runs, operations that are made of others arrive whole: ``if tensor`` is another one
    there than elsewhere.

    On a CPU a tensor of the host looks like one of the device. All that is made of Python's numbers, lists or arrays
    passes ``lift_fresh``, and is refused there. What is copied or sent to a device must have been made under the watch,
    or be told to it (``know``), as what stays where it is; any other tensor may be one of the host. Only inference mode
    shows a sending that would do nothing here.
    """

    FORBIDDEN = (
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "one_hot"),
        *("nonzero", "argwhere", "masked_select", "unique", "_unique"),
    )
    COPIES = ("copy_", "_to_copy", "to")
    FORBIDDEN_FORMS = ("aten.where.default", "aten.repeat_interleave.Tensor", "aten.repeat_interleave.self_Tensor")

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, Tensor] = {}
        self._made: dict[int, Tensor] = {}

    def know(self, *tensors: Tensor) -> None:
        """Tensors that lie on the device before the work begins, and stay there."""
        self._known |= {place(tensor): tensor for tensor in tensors}

    def begin(self) -> None:
        """Forget what earlier work has made: by its addresses, which others may have by now."""
        self._made.clear()

    def made(self, result: Any, *of: Any) -> None:
        """Note what an operation gave that was not given to it."""
        given = {place(tensor) for tensor in tree_leaves(of) if isinstance(tensor, Tensor)}
        fresh = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor) and place(tensor) not in given]
        self._made |= {place(tensor): tensor for tensor in fresh}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        assert name != "lift_fresh", "Python's numbers are copied to the device"
        is_sent = name == "copy_" or "device" in (kwargs or {}) or str(func) in ("aten.to.device", "aten.to.other")
        if name in self.COPIES and is_sent:
            source = place(args[1] if name == "copy_" else args[0])
            assert source in self._known or source in self._made, f"{func} copies what may lie on the host"
        assert name not in self.FORBIDDEN, f"{name} looks into a tensor"
        assert str(func) not in self.FORBIDDEN_FORMS, f"{func} looks into a tensor"
        if name.startswith(("index.", "index_put")) or name in ("index", "index_put", "index_put_"):
            masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
            assert not masks, "a mask of bools makes a shape of its contents"
        result = func(*args, **(kwargs or {}))
        self.made(result, args, kwargs)
        return result


def place(tensor: Tensor) -> int:
    """Of the memory that a tensor and its views have in common."""
    return tensor.untyped_storage().data_ptr()


def standing_tensors(value: Any) -> list[Tensor]:
    """Tensors of a round and of its sampling; weights and buffers of a decoder's modules."""
    if is_dataclass(value):
        return [one for field in fields(value) for one in standing_tensors(getattr(value, field.name))]
    if isinstance(value, Tensor):
        return [value]
    parts = vars(value).values() if hasattr(value, "__dict__") else ()
    modules = [part._module if isinstance(part, Rotary) else part for part in parts]
    return [
        tensor
        for module in modules
        if isinstance(module, nn.Module)
        for tensor in (*module.parameters(), *module.buffers())
    ]


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Draws as a device makes them; returns a context in which nothing may look into a tensor but attention's twin."""
    monkeypatch.setattr(winner, "is_on_host", lambda values: False)
    attend, watch = lean_paged.attend, NoLooking()

    def unwatched(*args: Any, **kwargs: Any) -> Tensor:
        with torch.utils._python_dispatch._disable_current_modes():
            result = attend(*args, **kwargs)
            watch.made(result, args, kwargs)
        return result

    for module in (lean_paged, interface):
        monkeypatch.setattr(module, "attend", unwatched)

    def knowing(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: StaticRound, *models_and_numbers: Any) -> Any:
            for value in (self, *models_and_numbers):
                watch.know(*standing_tensors(value))
            return method(self, *models_and_numbers)

        return run

    for half in ("propose", "score"):
        monkeypatch.setattr(StaticRound, half, knowing(getattr(StaticRound, half)))

    @contextmanager
    def watched() -> Iterator[None]:
        watch.begin()
        with watch:
            yield

    return watched


def run_thrice(monkeypatch: pytest.MonkeyPatch, as_on_a_device: Any) -> list[Any]:
    """Do what capturing does; returns the keys of what was run, as they come."""
    keys: list[Any] = []

    def run(book: GraphBook, key: Any, work: Callable[[], Tensor | None], **options: Any) -> Tensor | None:
        keys.append(key)
        for _ in range(2):
            with as_on_a_device():
                work()
        return work()

    monkeypatch.setattr(GraphBook, "run", run)
    return keys


@pytest.mark.parametrize("k", [0, 3])
def test_nothing_in_a_round_waits_for_the_device_and_all_may_run_again(
    target: Any, draft: Any, rows: Rows, monkeypatch: pytest.MonkeyPatch, as_on_a_device: Any, k: int
) -> None:
    """What is captured runs three times before the first replay: twice to warm up, once under capture."""
    runs = run_thrice(monkeypatch, as_on_a_device)
    outputs = run(rows, target, draft, k=k, batch=3, path="captured")
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, rows, path="lean")]
    assert runs


_KINDS = {family: family for family in FAMILIES} | {name: kind for name, (kind, _) in VARIANTS.items()}
_OFTEN = ("llama", "gemma2", "gpt2", "opt", "cohere2", "mixtral", "qwen3 with windows")
_PAGED = [
    pytest.param(name, marks=() if name in _OFTEN else pytest.mark.long)
    for name, kind in _KINDS.items()
    if interface.takes_pages({"model_type": kind} | VARIANTS.get(name, (kind, {}))[1])
]


@pytest.mark.parametrize("family", _PAGED)
def test_unmodified_modules_over_pages_equal_their_twin_and_can_be_captured(
    family: str, monkeypatch: pytest.MonkeyPatch, as_on_a_device: Any
) -> None:
    """Those that look into tensors (experts) are decoded by the loop, and said to be so."""
    runs = run_thrice(monkeypatch, as_on_a_device)
    target = tiny_model(family, seed=2)
    prompts = [[1, 2, 3] * 9, [5], [7, 8, 9, 10]]
    rows: Rows = [(ids, SamplingParams(max_new_tokens=9, temperature=0.6, seed=len(ids))) for ids in prompts]
    outputs = run(rows, target, perturbed(target, 0.1), k=2, batch=2, path="generic ahead")
    whole = WholePrefix(decoder(target, 1))  # puts on the masks of windows, which a bare module does not have
    expected = [
        reference.generate(whole, ids, params, vocab_size=VOCAB, context_length=CONTEXT) for ids, params in rows
    ]
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in expected]
    assert bool(runs) == (_KINDS[family] not in LOOKS_INTO_TENSORS)


def test_the_watch_sees_a_look_into_a_tensor() -> None:
    """Also as the engine runs, in inference mode, where other operations arrive here."""
    values = torch.arange(3)
    looks: list[Callable[[], Any]] = [
        lambda: values[values > 1],
        lambda: int(values[0]),
        lambda: bool(values.max() > 1),
        lambda: values.nonzero(),
        lambda: torch.where(values > 1),
        lambda: torch.repeat_interleave(values, values),
    ]
    for look in looks:
        for mode in (torch.inference_mode, torch.no_grad):
            with pytest.raises(AssertionError), mode(), NoLooking():
                look()


def test_the_watch_sees_a_copy_from_the_host() -> None:
    """Also of a tensor that was there before, which looks here like one of a device."""
    cpu, values, numbers = torch.device("cpu"), torch.arange(6), np.arange(3)
    there, before = torch.zeros(3, dtype=torch.int64), torch.from_numpy(np.arange(3))
    copies: list[Callable[[], Any]] = [
        lambda: torch.tensor([1, 2], device=cpu),
        lambda: torch.tensor(3, device=cpu),
        lambda: torch.as_tensor([1, 2], device=cpu),
        lambda: torch.from_numpy(numbers).to(cpu),
        lambda: values.new_tensor([1, 2]),
        lambda: values[[0, 2]],
        lambda: values[numbers],
        lambda: there.copy_(before),
        lambda: there.copy_(before[:1]),
        lambda: before.to(cpu, torch.float64),
    ]
    only_in_inference_mode: list[Callable[[], Any]] = [lambda: before.to(cpu), lambda: before.to(there)]
    for mode, looks in ((torch.inference_mode, copies + only_in_inference_mode), (torch.no_grad, copies)):
        for look in looks:
            watch = NoLooking()
            watch.know(values, there)
            with pytest.raises(AssertionError, match=r"Python's numbers|may lie on the host"), mode(), watch:
                look()
        with mode(), watch:
            there.copy_(values[:3] + 1)
            there.copy_(torch.arange(3, device=cpu)).copy_(values[3:])
            values.to(torch.float64).to(cpu)


def test_a_round_that_copies_from_the_host_is_seen(
    target: Any, draft: Any, monkeypatch: pytest.MonkeyPatch, as_on_a_device: Any
) -> None:
    run_thrice(monkeypatch, as_on_a_device)
    counted = StaticRound.counted_drafts

    def careless(self: StaticRound, model: Any) -> Tensor:
        return torch.minimum(counted(self, model), torch.tensor(3, device=self.field_BC.device))

    monkeypatch.setattr(StaticRound, "counted_drafts", careless)
    with pytest.raises(AssertionError, match="Python's numbers"):
        run([([5, 6], PLAIN)], target, draft, k=3, batch=1, path="captured")


# ---- rounds that are launched before the last one is settled -------------------------------------------------------


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each round was launched behind one that had not landed."""
    seen: list[bool] = []
    launch = CapturedRounds.launch

    def noted(self: CapturedRounds, row_B: Any, plan: Any, looked_up: Any, *behind: Any) -> Any:
        seen.append(bool(behind))
        return launch(self, row_B, plan, looked_up, *behind)

    monkeypatch.setattr(CapturedRounds, "launch", noted)
    return seen


def test_a_row_that_comes_late_to_the_draft_waits_for_the_next_landing(
    target: Any, draft: Any, launches: list[bool]
) -> None:
    """The draft has to read first what it has missed of that row; the others go on ahead meanwhile, for some rounds."""

    class Late(FixedPolicy):
        num_plans = 0

        def plan(self, view: RoundView) -> RoundPlan:
            self.num_plans += 1
            plan = super().plan(view)
            if self.num_plans == 1:
                plan.draft_length_B[1:] = 0
            return RoundPlan(plan.draft_length_B, plan.draft_length_B > 0)

    rows: Rows = [([n, 7], SamplingParams(max_new_tokens=40, temperature=0.9, seed=n)) for n in range(2)]
    outputs = run(rows, target, draft, k=Late(2), batch=2, path="ahead")
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, rows, path="lean")]
    assert launches[: BLIND_ROUNDS + 2] == [False, *[True] * BLIND_ROUNDS, False]


@pytest.mark.parametrize("k", [0, 2, 5])
def test_most_rounds_are_launched_ahead_and_their_counters_are_those_of_the_loop(
    target: Any, draft: Any, launches: list[bool], k: int
) -> None:
    rows: Rows = [([n, 7], SamplingParams(max_new_tokens=40, temperature=0.8, seed=n)) for n in range(3)]
    ahead = run(rows, target, draft, k=k, batch=3, path="ahead")
    assert sum(launches) > 0.7 * len(launches)
    loop = run(rows, target, draft, k=k, batch=3, path="paged")
    assert [(o.token_ids, o.stats) for o in ahead] == [(o.token_ids, o.stats) for o in loop]


def test_rounds_go_ahead_while_the_suffix_index_has_nothing_to_offer(
    target: Any, draft: Any, launches: list[bool]
) -> None:
    """At a high temperature text hardly repeats; where it does, the drafts that were looked up are used."""
    wild: Rows = [([n, 7], SamplingParams(max_new_tokens=40, temperature=1.5, seed=n)) for n in range(3)]
    policy = AdaptivePolicy(4, has_draft=True, has_suffix=True)
    subject = engine(target, draft, k=policy, batch=3, path="ahead", has_suffix=True)
    outputs = subject.generate([ids for ids, _ in wild], [params for _, params in wild])
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, wild, path="lean")]
    assert 0 < sum(launches) <= MOST_BLIND_ROUNDS * (len(launches) - sum(launches))
    again: Rows = [([5, 6, 7] * 9, SamplingParams(max_new_tokens=60, logit_bias=())) for _ in range(2)]
    outputs = subject.generate([ids for ids, _ in again], [params for _, params in again])
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, again, path="lean")]


def test_looks_into_the_suffix_index_become_rare_while_they_are_in_vain(
    target: Any, draft: Any, launches: list[bool]
) -> None:
    """Each of them lands the rounds."""

    class Vain(FixedPolicy):
        """Asks the index and uses the draft model."""

        uses_suffix = True  # type: ignore[assignment]

    rows: Rows = [([n, 7], SamplingParams(max_new_tokens=90, temperature=1.5, seed=n)) for n in range(2)]
    subject = engine(target, draft, k=Vain(1), batch=2, path="ahead", has_suffix=True)
    subject.generate([ids for ids, _ in rows], [params for _, params in rows])
    landed = np.flatnonzero(~np.array(launches))[:4]
    assert np.diff(landed).tolist() == [2 * BLIND_ROUNDS + 1, 4 * BLIND_ROUNDS + 1, 8 * BLIND_ROUNDS + 1]


def test_the_policy_is_told_which_rounds_hid_what_the_host_did(
    target: Any, draft: Any, launches: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("ahead", "captured", "paged"):
        subject = engine(target, draft, k=1, batch=2, path=path)
        measured: list[Any] = []
        monkeypatch.setattr(subject._batch.policy, "observe", measured.append)
        launches.clear()
        subject.generate([[1, 2], [3, 4]], SamplingParams(max_new_tokens=40))
        hidden = [measure.hidden for measure in measured]
        if path == "ahead":
            ends = [*launches, False]
            assert hidden == [_HIDDEN[before + behind] for before, behind in itertools.pairwise(ends)][: len(hidden)]
            assert hidden.count("all") > len(hidden) / 2
        else:
            assert set(hidden) == {"none"}


def test_a_stop_string_ends_a_row_whose_next_round_is_under_way(
    target: Any, draft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SamplingParams(max_new_tokens=30)
    prompts = [[7, 3, 9], [4, 4], [1, 2, 3]]
    expected = full_twin(target, [(prompt, free) for prompt in prompts], path="lean")
    stop = f" {expected[0].token_ids[8]} "
    rows: Rows = [(prompts[0], SamplingParams(max_new_tokens=30, stop=(stop,))), *((p, free) for p in prompts[1:])]
    ignored = []
    settle = Ahead._settle

    def watched(self: Ahead, airborne: Airborne) -> Any:
        ignored.append(int((~self._is_there(airborne.flight)).sum()))
        return settle(self, airborne)

    monkeypatch.setattr(Ahead, "_settle", watched)
    outputs = run(rows, target, draft, k=2, batch=3, path="ahead")
    twins = full_twin(target, rows, path="lean")
    assert [(o.token_ids, o.text) for o in outputs] == [(t.token_ids, t.text) for t in twins]
    assert sum(ignored) == 1


@pytest.mark.parametrize("k", [0, 3])
def test_where_the_host_decides_otherwise_the_round_under_way_is_left(
    target: Any, draft: Any, monkeypatch: pytest.MonkeyPatch, launches: list[bool], k: int
) -> None:
    """The device sees a prefix of three tokens and guesses; what it does not know the host decides."""
    monkeypatch.setattr(winner, "is_on_host", lambda values: False)
    monkeypatch.setattr(winner, "DEVICE_PREFIX", 3)
    rows: Rows = [
        ([n, 7], SamplingParams(max_new_tokens=25, temperature=0.9, top_p=0.9, min_p=0.01 * n, seed=n, logprobs=True))
        for n in range(6)
    ]
    outputs = run(rows, target, draft, k=k, batch=3, path="ahead")
    assert sum(output.num_near_ties for output in outputs) > 5
    assert sum(launches) > 10
    expected = full_twin(target, rows, path="lean")
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in expected]
    for output, twin in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output.logprobs, twin.logprobs, atol=1e-5)


def test_where_memory_fails_behind_a_settled_round_nothing_is_lost_and_no_key_is_wrong(
    target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fifth token the device gets wrong and the host right, so that rows get on further than the device thinks.

    A forward mends what was written meanwhile. Memory runs out in it once where a row has just ended, and once more.
    """
    draw_target, settle_draws = static_round.draw_target, ahead_module.settle_draws
    has_ended, mends = [False], []

    def drawn_wrongly(logits_NV: Tensor, positions: Any, *args: Any, **kwargs: Any) -> Any:
        draw = draw_target(logits_NV, positions, *args, **kwargs)
        is_wrong_N = positions.index_N % 5 == 2
        wrong_N = torch.where(is_wrong_N, (draw.token_N + 1) % VOCAB, draw.token_N)
        return replace(draw, token_N=wrong_N, is_known_N=~is_wrong_N)

    def settled(*args: Any) -> Any:
        settled = settle_draws(*args)
        has_ended.append(bool(settled.finished))
        return settled

    def fails(feed: Any, keep: Any) -> bool:
        """Nothing else keeps no logits here."""
        if len(keep) or has_ended[-1] in mends:
            return False
        mends.append(has_ended[-1])
        return True

    monkeypatch.setattr(static_round, "draw_target", drawn_wrongly)
    monkeypatch.setattr(ahead_module, "settle_draws", settled)
    subject = engine(target, target, k=3, batch=8, path="ahead")
    Scarce(subject._batch.target, fails)
    rows: Rows = [
        ([n, 7], SamplingParams(max_new_tokens=22 - 2 * n, temperature=0.9, top_p=0.9, seed=n)) for n in range(10)
    ]
    for number, (ids, params) in enumerate(rows):
        subject.submit(number, ids, params)
    outputs = []
    while subject.num_active or subject.num_queued:
        outputs += subject.step()
    assert sorted(mends) == [False, True]
    outputs.sort(key=lambda output: int(str(output.key)))
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, rows, path="lean")]


def test_the_draft_takes_no_steps_for_drafts_that_are_looked_up(
    target: Any, draft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are they counted as steps: the policy would think that one costs many times less, or more."""
    subject = engine(target, draft, k=MixedPolicy(6), batch=3, path="captured", has_suffix=True)
    forward, propose = subject._batch.draft.forward, StaticRound.propose  # type: ignore[union-attr]
    num_forwards, proposed, rounds = 0, [], []

    def forward_counted(*args: Any) -> Tensor:
        nonlocal num_forwards
        num_forwards += 1
        logits: Tensor = forward(*args)
        return logits

    def propose_counted(self: StaticRound, *args: Any) -> None:
        before = num_forwards
        propose(self, *args)
        proposed.append(num_forwards - before)

    def observed(measure: RoundMeasure) -> None:
        if proposed:  # by a round of fixed shape
            rounds.append((proposed.pop(), measure.num_draft_steps, int(measure.draft_length_B.max())))

    monkeypatch.setattr(subject._batch.draft, "forward", forward_counted)
    monkeypatch.setattr(StaticRound, "propose", propose_counted)
    monkeypatch.setattr(subject._batch.policy, "observe", observed)
    subject.generate([[5, 6, 7] * 6, [1, 2], [3]], SamplingParams(max_new_tokens=40))
    assert any(longest > 1 for _, _, longest in rounds), "some row must have more drafts, looked up, beside the draft's"
    assert {(taken, counted) for taken, counted, _ in rounds} == {(1, 1)}


def test_a_round_whose_rows_were_all_cancelled_is_not_measured(
    target: Any, draft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = engine(target, draft, k=2, batch=2, path="ahead")
    measured: list[RoundMeasure] = []
    logged: list[int] = []
    monkeypatch.setattr(subject._batch.policy, "observe", measured.append)
    monkeypatch.setattr(subject._stepper.log, "add", lambda **what: logged.append(what["num_tokens"]))
    subject.submit(0, [1, 2], SamplingParams(max_new_tokens=40))
    for _ in range(4):
        subject.step()
    assert subject._stepper.is_flying
    subject.cancel_all()
    subject.submit(1, [9, 9], PLAIN)
    outputs = []
    while subject.num_active or subject.num_queued:
        outputs += subject.step()
    assert tokens(outputs) == [
        (t.token_ids, t.finish_reason) for t in full_twin(target, [([9, 9], PLAIN)], path="lean")
    ]
    assert len(measured) == len(logged) > 2
    assert min(logged) > 0
    assert all(len(measure.draft_length_B) == 1 for measure in measured)


def test_rows_may_be_cancelled_while_a_round_is_under_way(target: Any, draft: Any) -> None:
    subject = engine(target, draft, k=3, batch=4, path="ahead")
    rows: Rows = [([n, 5], SamplingParams(max_new_tokens=25, temperature=0.7, seed=n)) for n in range(4)]
    for number, (ids, params) in enumerate(rows):
        subject.submit(number, ids, params)
    outputs = [output for _ in range(4) for output in subject.step()]
    assert subject._stepper.is_flying
    subject.cancel([1, 2])
    subject.submit(9, [9, 9], PLAIN)
    while subject.num_active or subject.num_queued:
        outputs += subject.step()
    expected = full_twin(target, [rows[0], rows[3], ([9, 9], PLAIN)], path="lean")
    by_key = {output.key: output.token_ids for output in outputs}
    assert by_key == {0: expected[0].token_ids, 3: expected[1].token_ids, 9: expected[2].token_ids}


def test_all_rows_may_be_cancelled_while_a_round_is_under_way(target: Any, draft: Any) -> None:
    subject = engine(target, draft, k=AdaptivePolicy(4, has_draft=True), batch=4, path="ahead")
    for number in range(3):
        subject.submit(number, [number, 5], SamplingParams(max_new_tokens=25))
    for _ in range(12):
        subject.step()
        if subject._stepper.is_flying:
            break
    assert subject._stepper.is_flying
    subject.cancel([0, 1, 2])
    (output,) = subject.generate([[9, 9]], PLAIN)
    assert output.token_ids == full_twin(target, [([9, 9], PLAIN)], path="lean")[0].token_ids


def test_who_is_still_there_is_looked_up_only_when_rows_have_come_or_gone(
    target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counted(list[int]):
        reads = 0

        def __getitem__(self, slot: Any) -> Any:
            Counted.reads += 1
            return super().__getitem__(slot)

    subject = engine(target, batch=2, path="ahead")
    for number in range(2):
        subject.submit(number, [number, 3], SamplingParams(max_new_tokens=60))
    while not subject._stepper.is_flying:
        subject.step()
    slots = subject._batch.slots
    slots.opened = Counted(slots.opened)
    for _ in range(20):
        subject.step()
    assert 0 < Counted.reads <= 2
    subject.cancel([1])
    subject.step()
    assert 2 < Counted.reads <= 6


def test_what_does_not_fit_a_fixed_shape_goes_through_the_loop(target: Any, launches: list[bool]) -> None:
    params = SamplingParams(max_new_tokens=9, repetition_penalty=1.3)
    (output,) = run([([1, 2], params)], target, path="ahead")
    assert not launches
    assert output.token_ids == full_twin(target, [([1, 2], params)], path="lean")[0].token_ids


def test_a_random_history_of_rows_equals_the_twin(target: Any, draft: Any) -> None:
    """Rows come and go while rounds are under way; some are long, some say one token, some end in stop ids."""
    generator = random.Random(8)
    rows: Rows = [
        (
            [generator.randrange(VOCAB) for _ in range(generator.randint(1, 30))],
            SamplingParams(
                max_new_tokens=generator.choice((1, 2, 5, 30)),
                temperature=generator.choice((0.0, 0.9)),
                top_p=generator.choice((1.0, 0.8)),
                seed=generator.getrandbits(63),
                stop_token_ids=tuple(generator.sample(range(VOCAB), 2)),
                logprobs=generator.random() < 0.3,
            ),
        )
        for _ in range(40)
    ]
    subject = engine(target, draft, k=3, batch=6, path="ahead")
    outputs, waiting = [], list(enumerate(rows))
    while waiting or subject.num_active or subject.num_queued:
        for _ in range(generator.choice((0, 0, 1, 4))):
            if waiting:
                number, (ids, params) = waiting.pop(0)
                subject.submit(number, ids, params)
        outputs += subject.step()
    outputs.sort(key=lambda output: int(str(output.key)))
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, rows, path="lean")]


def test_a_draft_in_slots_beside_a_target_in_pages_is_decoded_by_the_loop(target: Any, draft: Any) -> None:
    subject = engine(target, target, k=2, path="ahead")
    subject._batch.draft = decoder(draft, 4)
    (output,) = subject.generate([[1, 2, 3]], SamplingParams(max_new_tokens=12))
    (expected,) = full_twin(target, [([1, 2, 3], SamplingParams(max_new_tokens=12))], path="lean")
    assert output.token_ids == expected.token_ids


@pytest.mark.parametrize("has_draft", [False, True])
def test_the_profile_of_captured_rounds_leaves_nothing_behind(
    target: Any, draft: Any, has_draft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "_CAPTURED_BUDGET_SECONDS", 300.0)
    rows: Rows = [([n, 7], SamplingParams(max_new_tokens=9, temperature=0.8, seed=n)) for n in range(3)]
    subject = engine(target, draft if has_draft else None, k=3 if has_draft else 0, batch=3, path="ahead")
    score, steps = subject._stepper.profile(3)
    assert {3, 6, 12, 1} <= score.keys()
    assert all(seconds > 0 for seconds in score.values())
    assert steps.keys() == ({1, 3} if has_draft else set())
    outputs = subject.generate([ids for ids, _ in rows], [params for _, params in rows])
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, rows, path="lean")]


def test_the_profile_keeps_no_graphs(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are of short rows, drawn greedily; the places are for what the job decodes."""
    seen: list[str] = []
    for owner, name in ((GraphBook, "run"), (GraphBook, "clear")):
        original = getattr(owner, name)

        def noted(*args: Any, _original: Any = original, _name: str = name, **options: Any) -> Any:
            seen.append(_name)
            return _original(*args, **options)

        monkeypatch.setattr(owner, name, noted)
    engine(target, batch=3, path="ahead")._stepper.profile(3)
    assert "run" in seen
    assert seen[-1] == "clear"


def test_a_round_that_was_no_plain_replay_says_nothing_about_speed(
    target: Any, draft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device when a key is first met: the clock of that round is not to be believed, what it accepted is."""
    keys: set[Any] = set()
    run_twin = GraphBook.run

    def run_noted(book: GraphBook, key: Any, work: Callable[[], Tensor | None], **options: Any) -> Tensor | None:
        keys.add(key)
        return run_twin(book, key, work, **options)

    monkeypatch.setattr(GraphBook, "run", run_noted)
    monkeypatch.setattr(GraphBook, "num_unusual", property(lambda book: len(keys)))
    subject = engine(target, draft, k=2, batch=2, path="ahead")
    measured = []
    monkeypatch.setattr(subject._batch.policy, "observe", measured.append)
    subject.generate([[1, 2], [3]], SamplingParams(max_new_tokens=30))
    blocks = subject.take_blocks()
    num_unusual = sum(block.num_mixed_rounds for block in blocks)
    assert 0 < num_unusual <= len(keys)
    num_typical = sum(measure.is_typical for measure in measured)
    assert num_typical == sum(block.num_spec_rounds + block.num_plain_rounds for block in blocks) > 0
    assert len(measured) == num_typical + num_unusual


def test_rows_behind_those_that_were_loaded_are_drawn_greedily() -> None:
    """What stood there before may not go with the new ones: a top_k beyond the prefix that they are sorted by."""
    wild = SamplingParams(max_new_tokens=4, temperature=1.0, top_k=9)
    tame = SamplingParams(max_new_tokens=4, temperature=0.5, top_k=2)
    many, one = (
        SamplingTensors.from_params([params] * num_rows, [()] * num_rows, torch.device("cpu"), 61)
        for params, num_rows in ((wild, 4), (tame, 1))
    )
    held = StaticSampling(4, many)
    assert held.load(many, 4).top_k_B.tolist() == [9] * 4
    loaded = held.load(one, 4)
    for name in ("top_k_B", "temperature_B", "is_truncated_B"):
        assert getattr(loaded, name).tolist() == [*getattr(one, name).tolist(), 0, 0, 0]


def test_time_is_counted_once_though_rounds_overlap(
    target: Any, draft: Any, monkeypatch: pytest.MonkeyPatch, launches: list[bool]
) -> None:
    """What the host does while another round is under way is part of that one's time."""
    settle = ahead_module.settle_draws

    def settle_slowly(*args: Any) -> Any:
        time.sleep(0.005)
        return settle(*args)

    monkeypatch.setattr(ahead_module, "settle_draws", settle_slowly)
    subject = engine(target, draft, k=2, batch=2, path="ahead")
    started = time.perf_counter()
    subject.generate([[1, 2], [3]], SamplingParams(max_new_tokens=40))
    elapsed = time.perf_counter() - started
    assert sum(launches) > len(launches) / 2
    blocks = subject.take_blocks()
    assert 0 < sum(block.spec_seconds + block.plain_seconds + block.mixed_seconds for block in blocks) <= elapsed
