"""The engine against its slow twin: every token equal, whatever the draft, K, batch, order and mates."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CONTEXT, PATHS, VOCAB, decoder, engine, perturbed, tiny_model
from twin import Rows, run, tokens, twin

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec import reference
from specbatch.specdec.kernels import packing
from specbatch.specdec.policy.controller import AdaptivePolicy, RoundMeasure, RoundPlan, RoundView


@pytest.fixture(scope="module", params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def expected(target: Any, rows: Rows, path: str) -> list[tuple[tuple[int, ...], str]]:
    outputs = twin(target, rows, path=path)
    assert {reason for _, reason in outputs} == {"stop", "length"}, "the rows must end in both ways"
    return outputs


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("k", [0, 1, 2, 3, 5, 8])
def test_equals_the_twin_for_every_k_and_batch(
    target: Any, draft: Any, rows: Rows, expected: Any, path: str, k: int, batch: int
) -> None:
    outputs = run(rows, target, draft, k=k, batch=batch, path=path)
    assert tokens(outputs) == expected
    if k:
        accepted = sum(output.stats.num_accepted_draft_tokens for output in outputs)
        assert 0 < accepted < sum(output.stats.num_draft_tokens for output in outputs)


@pytest.mark.parametrize("seed", [11, 12])
def test_does_not_depend_on_the_draft(target: Any, rows: Rows, expected: Any, path: str, seed: int) -> None:
    stranger = tiny_model(seed=seed, num_hidden_layers=1)
    assert tokens(run(rows, target, stranger, k=4, path=path)) == expected


def test_a_draft_of_another_family(target: Any, rows: Rows, expected: Any, path: str) -> None:
    subject = engine(target, target, k=3, path=path)
    subject._batch.draft = decoder(tiny_model("gpt2", seed=2), 4)
    outputs = subject.generate([ids for ids, _ in rows], [params for _, params in rows])
    assert tokens(outputs) == expected


@pytest.mark.parametrize("shuffle_seed", range(3))
def test_does_not_depend_on_order_or_batch_mates(
    target: Any, draft: Any, rows: Rows, expected: Any, path: str, shuffle_seed: int
) -> None:
    order = list(range(len(rows)))
    random.Random(shuffle_seed).shuffle(order)
    order = order[: 5 + 4 * shuffle_seed]
    outputs = run([rows[i] for i in order], target, draft, k=3, batch=2 + shuffle_seed, path=path)
    assert tokens(outputs) == [expected[i] for i in order]


@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.5])
def test_a_draft_that_is_the_target_is_always_accepted(target: Any, rows: Rows, path: str, temperature: float) -> None:
    rows = [
        (ids, SamplingParams(max_new_tokens=p.max_new_tokens, temperature=temperature, seed=p.seed)) for ids, p in rows
    ]
    for output in run(rows, target, target, k=4, path=path):
        assert output.stats.num_accepted_draft_tokens == output.stats.num_draft_tokens


@pytest.mark.parametrize("offset", range(9))
def test_a_stop_id_at_every_offset_of_a_window(target: Any, offset: int) -> None:
    """With the target as its own draft a window holds K drafts and the bonus; the stop falls on each in turn."""
    prompt = [7, 3, 9]
    free = reference.generate(
        target, prompt, SamplingParams(max_new_tokens=24), vocab_size=VOCAB, context_length=CONTEXT
    )
    stop = free.token_ids[offset]
    params = SamplingParams(max_new_tokens=24, stop_token_ids=(stop,))
    (output,) = run([(prompt, params)], target, target, k=4)
    cut = free.token_ids.index(stop) + 1
    assert output.token_ids == free.token_ids[:cut]
    assert output.finish_reason == "stop"
    assert output.text == " ".join(str(t) for t in free.token_ids[: cut - 1])


def test_eos_ends_a_row_unless_it_is_ignored(target: Any, draft: Any) -> None:
    prompt = [7, 3, 9]
    free = reference.generate(
        target, prompt, SamplingParams(max_new_tokens=12), vocab_size=VOCAB, context_length=CONTEXT
    )
    eos = (free.token_ids[5],)
    params = SamplingParams(max_new_tokens=12)
    ignoring = SamplingParams(max_new_tokens=12, ignore_eos=True)
    ended, went_on = run([(prompt, params), (prompt, ignoring)], target, draft, k=3, eos=eos)
    assert ended.finish_reason == "stop"
    assert ended.token_ids == free.token_ids[: free.token_ids.index(eos[0]) + 1]
    assert went_on.token_ids == free.token_ids


@pytest.mark.parametrize("k", [0, 3])
def test_near_ties_are_decided_by_the_row_alone(
    target: Any, draft: Any, rows: Rows, expected: Any, path: str, k: int
) -> None:
    """With a huge epsilon every token is a near tie: the canonical evaluation alone must give the twin's text."""
    subject = engine(target, draft, k=k, batch=5, path=path)
    subject._batch.epsilon = 1e6
    outputs = subject.generate([ids for ids, _ in rows], [params for _, params in rows])
    assert tokens(outputs) == expected
    assert all(output.num_near_ties == len(output.token_ids) for output in outputs)


def test_float32_equals_the_twin(rows: Rows, path: str) -> None:
    """Where two scores nearly tie, the canonical evaluation is the twin's own arithmetic, so equality is exact."""
    model = tiny_model(seed=3, dtype=torch.float32)
    assert tokens(run(rows, model, perturbed(model, 0.15), k=4, batch=6, path=path)) == twin(model, rows, path=path)


def test_one_params_for_many_prompts_derives_seeds(target: Any) -> None:
    params = SamplingParams(max_new_tokens=16, temperature=1.0, seed=9)
    together = engine(target, batch=2).generate([[5, 6]] * 3, params)
    alone = engine(target).generate([[5, 6]], params)
    assert together[0].token_ids == alone[0].token_ids
    assert len({output.token_ids for output in together}) == 3, "collides with probability below 1e-9"


def test_a_broken_row_leaves_the_others_and_its_slot_unharmed(target: Any, rows: Rows, expected: Any) -> None:
    """A token whose embedding is NaN breaks the rows that hold it; whoever uses the slot next must not notice."""
    broken_token = VOCAB
    broken = perturbed(target, 0.0)
    with torch.no_grad():
        broken.get_input_embeddings().weight[broken_token] = torch.nan
    subject = engine(broken, broken, k=3, batch=2)
    subject.tokenizer.vocab_size = VOCAB + 1  # type: ignore[misc]
    bad = ([3, broken_token, 4], SamplingParams(max_new_tokens=9))
    mixed = [bad, *rows[:4], bad, *rows[4:8]]
    outputs = subject.generate([ids for ids, _ in mixed], [params for _, params in mixed])
    assert [output.error_code for output in outputs] == ["ROW_NUMERIC", *[None] * 4, "ROW_NUMERIC", *[None] * 4]
    assert tokens([output for output in outputs if output.error_code is None]) == expected[:8]


def test_slots_are_reused_and_empty_at_the_end(target: Any, draft: Any, rows: Rows) -> None:
    subject = engine(target, draft, k=2, batch=3)
    for number, (ids, params) in enumerate(rows):
        subject.submit(number, ids, params)
    seen = []
    while subject.num_queued or subject.num_active:
        assert subject.num_active <= 3
        ended = subject.step()
        seen += [output.key for output in ended]
        if subject.num_queued:
            assert subject.num_active + len(ended) >= 3, "free slots are filled while rows wait"
    assert sorted(seen) == list(range(len(rows)))
    assert subject.step() == []
    assert subject.num_active == 0


def test_a_draft_with_a_shorter_context_only_stops_proposing(target: Any, rows: Rows, expected: Any) -> None:
    """The text is the target's, up to the target's own context, whatever the draft can hold."""
    short = tiny_model(seed=3, max_position_embeddings=40)
    subject = engine(target, short, k=4)
    assert subject._batch.draft is not None
    subject._batch.draft.context_length = 40
    outputs = subject.generate([ids for ids, _ in rows], [params for _, params in rows])
    assert tokens(outputs) == expected
    assert sum(output.stats.num_draft_tokens for output in outputs) > 0


@pytest.mark.skipif(
    not packing.can_pack(torch.device("cpu"), torch.float32), reason="this torch has no oneDNN to pack weights for"
)
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_packed_weights_give_the_tokens_of_the_unpacked_model(family: str, rows: Rows) -> None:
    """Packing rounds differently, by some 1e-6; on these fixed rows no draw hangs on that, and all must be equal."""
    oracle = tiny_model(family, seed=3, dtype=torch.float32)
    packed = tiny_model(family, seed=3, dtype=torch.float32)
    num_bytes = packing.weight_bytes(packed)
    assert packing.pack_linears(packed) > 8
    is_tied = oracle.lm_head.weight is oracle.get_input_embeddings().weight
    copied = oracle.lm_head.weight.nbytes if is_tied else 0
    assert packing.weight_bytes(packed) == num_bytes + copied
    assert not any(type(module) is torch.nn.Linear for module in packed.modules())
    ids = torch.tensor([rows[3][0], rows[3][0]])
    assert torch.allclose(packed(ids).logits, oracle(ids).logits, atol=1e-4)
    assert tokens(run(rows, packed, packed, k=4, batch=6)) == twin(oracle, rows)


class ErraticPolicy:
    """Another K for every row in every round, stretches of 0 among them, from either drafter: the worst of policies."""

    max_draft_length = 5
    uses_model = True
    samples_plain_rounds = True
    is_draft_given_up = False

    def __init__(self, seed: int, *, uses_suffix: bool = False) -> None:
        self._generator = np.random.default_rng(seed)
        self.uses_suffix = uses_suffix

    @property
    def wants_draft(self) -> bool:
        return bool(self._generator.random() < 0.5)

    def plan(self, view: RoundView) -> RoundPlan:
        B = len(view.room_B)
        is_model_B = self._generator.random(B) < (0.6 if self.uses_suffix else 1.1)
        wanted_B = self._generator.choice((0, 0, 1, 2, 3, 5), size=B)
        if self._generator.random() < 0.3:
            wanted_B[:] = 0
        offered_B = np.where(is_model_B, view.draft_room_B, view.suffix_length_B)
        return RoundPlan(np.minimum(np.minimum(wanted_B, offered_B), view.room_B), is_model_B)

    def observe(self, measure: RoundMeasure) -> None:
        assert measure.num_rows == len(measure.draft_length_B) > 0
        assert measure.num_scored >= measure.num_rows + measure.draft_length_B.sum()
        assert (measure.draft_length_B >= measure.matched_B).all()
        assert (measure.num_model_rows > 0) == (measure.num_draft_steps > 0)

    def learn_times(self, score: Any, draft_step: Any, *, in_buckets: bool = False) -> None:
        raise AssertionError("asked for no profile")


@pytest.mark.parametrize("uses_suffix", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_k_may_change_in_every_row_and_round(
    target: Any, draft: Any, rows: Rows, expected: Any, path: str, seed: int, uses_suffix: bool
) -> None:
    policy = ErraticPolicy(seed, uses_suffix=uses_suffix)
    outputs = run(rows, target, draft, k=policy, batch=3, path=path, has_suffix=uses_suffix)
    assert tokens(outputs) == expected
    assert sum(output.stats.num_accepted_draft_tokens for output in outputs) > 0


def test_the_suffix_index_alone_drafts_where_there_is_no_draft_model(
    target: Any, rows: Rows, expected: Any, path: str
) -> None:
    outputs = run(rows * 2, target, k=4, batch=3, path=path, has_suffix=True)
    assert tokens(outputs) == expected * 2
    assert sum(output.stats.num_accepted_draft_tokens for output in outputs) > 0


def test_the_controller_does_not_change_a_token(target: Any, draft: Any, rows: Rows, expected: Any, path: str) -> None:
    policy = AdaptivePolicy(6, has_draft=True, has_suffix=True)
    assert tokens(run(rows * 3, target, draft, k=policy, batch=4, path=path, has_suffix=True)) == expected * 3


@pytest.mark.parametrize("seed", range(3))
def test_a_draft_that_is_the_target_stays_fully_accepted_after_catching_up(
    target: Any, rows: Rows, path: str, seed: int
) -> None:
    """If the draft's cache held anything wrong after stretches without drafts, some proposal would be refused."""
    for output in run(rows, target, target, k=ErraticPolicy(seed), batch=3, path=path):
        assert output.stats.num_accepted_draft_tokens == output.stats.num_draft_tokens
