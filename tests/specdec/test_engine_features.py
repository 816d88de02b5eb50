"""What rows may ask of the engine, against the slow twin: the sampling transform, terminators, logprobs, samples."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CONTEXT, NO_MEMORY, PATHS, VOCAB, MixedPolicy, Scarce, engine, longer_than, perturbed, tiny_model
from twin import Rows, full_twin, run, tokens

from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.forward.paging import PAGE_SIZE
from specbatch.specdec.rounds import settling
from specbatch.specdec.rows.prefix import MIN_SHARED_TOKENS
from specbatch.specdec.sampling.tensors import SamplingTensors


def demanding_rows(seed: int, num_rows: int) -> Rows:
    """Every setting of the transform, in all mixtures; each row also has a stop id and some have stop strings."""
    generator = random.Random(seed)

    def some(count: int) -> tuple[int, ...]:
        return tuple(generator.sample(range(VOCAB), count))

    rows: Rows = []
    for _ in range(num_rows):
        params = SamplingParams(
            max_new_tokens=generator.randint(3, 30),
            temperature=generator.choice((0.0, 0.6, 1.2)),
            top_k=generator.choice((0, 12)),
            top_p=generator.choice((1.0, 0.9)),
            min_p=generator.choice((0.0, 0.05)),
            seed=generator.getrandbits(63),
            stop_token_ids=some(2),
            min_new_tokens=generator.choice((0, 2, 3)),
            repetition_penalty=generator.choice((1.0, 1.3, 0.8)),
            presence_penalty=generator.choice((0.0, 0.7, -0.3)),
            frequency_penalty=generator.choice((0.0, 0.4)),
            logit_bias=tuple((token, generator.uniform(-2, 2)) for token in some(4)),
            banned_token_ids=some(generator.choice((0, 3))),
            stop=generator.choice(((), ("7 1", "33"), ("5",))),
            logprobs=generator.random() < 0.5,
        )
        rows.append(([generator.randrange(VOCAB) for _ in range(generator.randint(1, 40))], params))
    return rows


LONG_1 = pytest.param(1, marks=pytest.mark.long)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("k", [0, LONG_1, 4])
def test_the_transform_and_all_terminators_equal_the_twin(target: Any, draft: Any, path: str, k: int) -> None:
    rows = demanding_rows(1, 40)
    expected = full_twin(target, rows, path=path)
    outputs = run(rows, target, draft, k=k, batch=5, path=path)
    assert tokens(outputs) == [(twin.token_ids, twin.finish_reason) for twin in expected]
    assert [output.text for output in outputs] == [twin.text for twin in expected]
    for output, twin, (_, params) in zip(outputs, expected, rows, strict=True):
        assert (output.logprobs is not None) == params.logprobs
        if output.logprobs is not None:
            np.testing.assert_allclose(output.logprobs, twin.logprobs, atol=1e-5)
    if k:
        assert sum(output.stats.num_accepted_draft_tokens for output in outputs) > 0


@pytest.mark.parametrize("path", PATHS)
def test_penalties_see_the_drafts_before_them(target: Any, path: str) -> None:
    """Target as draft: if either model saw another history than the other, some draft would be refused."""
    params = SamplingParams(max_new_tokens=30, temperature=0.9, seed=5, repetition_penalty=1.5, frequency_penalty=0.8)
    (output,) = run([([3, 1, 4, 1, 5], params)], target, target, k=6, path=path)
    assert output.stats.num_accepted_draft_tokens == output.stats.num_draft_tokens


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("offset", range(8))
def test_a_stop_string_at_every_offset_of_a_window(target: Any, path: str, offset: int) -> None:
    prompt, free = [7, 3, 9], SamplingParams(max_new_tokens=24)
    (whole,) = full_twin(target, [(prompt, free)], path=path)
    params = SamplingParams(max_new_tokens=24, stop=(f" {whole.token_ids[offset + 1]} ",))
    (expected,) = full_twin(target, [(prompt, params)], path=path)
    (output,) = run([(prompt, params)], target, target, k=4, path=path)
    assert (output.token_ids, output.text, output.finish_reason) == (expected.token_ids, expected.text, "stop")


@pytest.mark.parametrize("path", PATHS)
def test_forced_and_allowed_tokens(target: Any, draft: Any, path: str) -> None:
    params = SamplingParams(
        max_new_tokens=12, temperature=1.0, seed=4, forced_token_ids=(9, 9, 2), allowed_token_ids=(9, 2, 11, 40)
    )
    (expected,) = full_twin(target, [([1, 2], params)], path=path)
    (output,) = run([([1, 2], params)], target, draft, k=5, path=path)
    assert output.token_ids == expected.token_ids
    assert output.token_ids[:3] == (9, 9, 2)
    assert set(output.token_ids) <= {9, 2, 11, 40}


class Fed:
    """Counts the tokens that a decoder reads."""

    def __init__(self, decoder: Any) -> None:
        self.num_tokens = 0
        self._run = decoder.run
        decoder.run = self.run

    def run(self, feed: Any, keep: Any) -> torch.Tensor:
        self.num_tokens += len(feed.token_M)
        logits: torch.Tensor = self._run(feed, keep)
        return logits


@pytest.mark.parametrize("path", PATHS)
def test_samples_share_one_prefill(target: Any, path: str) -> None:
    prompt = list(range(50))
    params = SamplingParams(max_new_tokens=4, temperature=1.0, seed=8, num_samples=5)
    subject = engine(target, batch=8, path=path)
    fed = Fed(subject._batch.target)
    outputs = subject.generate([prompt], params)
    assert len(outputs) == 5
    assert len({output.token_ids for output in outputs}) > 1
    num_decoded = sum(output.stats.num_plain_steps - 1 for output in outputs)
    num_read = len(prompt) + 4
    if path in ("captured", "ahead"):  # their rounds are not forwards that could be counted here
        assert num_read <= fed.num_tokens <= num_read + num_decoded
    else:
        assert fed.num_tokens == num_read + num_decoded, "one prompt, and its last token once more for each sample"
    alone = engine(target, path=path).generate([prompt], SamplingParams(max_new_tokens=4, temperature=1.0, seed=8))
    assert outputs[0].token_ids == alone[0].token_ids


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("batch", [LONG_1, 4])
def test_a_common_beginning_is_read_once(target: Any, draft: Any, path: str, batch: int) -> None:
    """Also by rows that come much later, in whatever slot the beginning last stood."""
    header = [random.Random(2).randrange(VOCAB) for _ in range(40)]
    rows: Rows = [([*header, n, n + 1], SamplingParams(max_new_tokens=5, temperature=0.7, seed=n)) for n in range(12)]
    subject = engine(target, draft, k=2, batch=batch, path=path)
    fed, drafted = Fed(subject._batch.target), Fed(subject._batch.draft)
    outputs = subject.generate([ids for ids, _ in rows], [params for _, params in rows])
    expected = full_twin(target, rows, path=path)
    assert tokens(outputs) == [(twin.token_ids, twin.finish_reason) for twin in expected]
    num_scored = sum(len(output.token_ids) + output.stats.num_draft_tokens for output in outputs)
    assert fed.num_tokens <= len(header) + 2 * len(rows) + num_scored
    assert drafted.num_tokens <= len(header) + 4 * len(rows) + 2 * num_scored
    assert len(header) > MIN_SHARED_TOKENS


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("k", [0, 3])
def test_rows_make_room_and_come_back_without_changing_a_token(
    target: Any, draft: Any, rows: Rows, path: str, k: int
) -> None:
    """Memory for one long row or several short ones: rows are preempted in the midst of their completions."""
    growing = [
        ([n, 5, 9], SamplingParams(max_new_tokens=50, temperature=n % 2, seed=n, logprobs=True)) for n in range(7)
    ]
    long_rows = [*growing, *rows]
    memory = (
        4 * STEP if path in ("generic", "lean") else 5 * PAGE_SIZE
    )  # pages are not lost to short rows beside long ones
    subject = engine(target, draft, k=k, batch=4, path=path, max_kv_tokens=memory)
    preempted = Counter[Any]()
    preempt = subject._batch.preempt

    def watched(slot: int) -> Any:
        request = preempt(slot)
        preempted[request.key] += len(request.state.token_ids) > 0
        return request

    subject._batch.preempt = watched  # type: ignore[method-assign]
    outputs = subject.generate([ids for ids, _ in long_rows], [params for _, params in long_rows])
    expected = full_twin(target, long_rows, path=path)
    assert tokens(outputs) == [(twin.token_ids, twin.finish_reason) for twin in expected]
    assert sum(preempted.values()) > 0
    logprobs = [output.logprobs for output in outputs[:7]]
    np.testing.assert_allclose(np.concatenate(logprobs), np.concatenate([t.logprobs for t in expected[:7]]), atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_beginnings_are_held_by_the_slots_that_have_them(target: Any, draft: Any, path: str) -> None:
    """Rows end at different times and change their slots; the same prompts come again, in another order."""
    prompts = [[n, *range(20 + n), n] for n in range(9)]
    first = [SamplingParams(max_new_tokens=3 + 5 * (n % 3)) for n in range(9)]
    rows: Rows = [(ids, SamplingParams(max_new_tokens=12, temperature=0.8, seed=n)) for n, ids in enumerate(prompts)]
    subject = engine(target, draft, k=3, batch=4, path=path)
    subject.generate(prompts, first)
    for order in ((8, 1, 6, 3, 0, 5, 2, 7, 4), (0, 4, 8, 3, 7, 2, 6, 1, 5)):
        again = [rows[n] for n in order]
        outputs = subject.generate([ids for ids, _ in again], [params for _, params in again])
        assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, again, path=path)]


STEP = 64


@pytest.fixture(autouse=True)
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots grow in small steps, so that tiny rows make them grow at all."""
    monkeypatch.setattr("specbatch.specdec.rows.admission.POSITIONS_STEP", STEP)


@pytest.mark.parametrize("path", PATHS)
def test_a_row_that_fits_nowhere_is_an_error_row(target: Any, path: str) -> None:
    subject = engine(target, batch=2, path=path, max_kv_tokens=STEP)
    outputs = subject.generate([[1, 2], [3] * 60, [4]], SamplingParams(max_new_tokens=8))
    assert [output.error_code for output in outputs] == [None, "ROW_MEMORY", None]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("starved", ["target", "draft"])
def test_when_memory_runs_out_fewer_rows_go_on(target: Any, draft: Any, rows: Rows, path: str, starved: str) -> None:
    short = [(ids[:6], params) for ids, params in rows]
    subject = engine(target, draft, k=3, batch=8, path=path)
    scarce = Scarce(getattr(subject._batch, starved), longer_than(9))
    outputs = subject.generate([ids for ids, _ in short], [params for _, params in short])
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, short, path=path)]
    assert scarce.num_failures > 0
    assert subject.max_batch_size < 8


@pytest.mark.parametrize("path", PATHS)
def test_a_prompt_is_read_again_where_memory_fails_behind_it(
    target: Any, draft: Any, rows: Rows, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing the first tokens takes memory too, and what they are drawn from is gone when that fails."""
    draw, num_failures = settling.draw_target, 0

    def scarce(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_failures
        if num_failures < 2:
            num_failures += 1
            raise RuntimeError(NO_MEMORY)
        return draw(*args, **kwargs)

    monkeypatch.setattr(settling, "draw_target", scarce)
    outputs = run(rows, target, draft, k=3, batch=8, path=path)
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, rows, path=path)]


@pytest.mark.parametrize("path", PATHS)
def test_memory_that_does_not_do_for_one_row_is_that_rows_error(target: Any, path: str) -> None:
    subject = engine(target, batch=4, path=path)
    Scarce(subject._batch.target, longer_than(20))
    outputs = subject.generate([[1, 2], [3] * 40, [4]], SamplingParams(max_new_tokens=8))
    assert [output.error_code for output in outputs] == [None, "ROW_MEMORY", None]


@pytest.mark.parametrize("path", ["generic", "lean"])  # pages are all there from the start
def test_memory_that_fails_while_slots_grow_leaves_every_layer_as_it_was(target: Any, draft: Any, path: str) -> None:
    """The caches of the target have grown when the draft's cannot: both must come back to one shape."""
    subject = engine(target, draft, k=2, batch=4, path=path)
    cache = subject._batch.draft.cache  # type: ignore[union-attr]
    resize = cache.resize

    def scarce(num_slots: int, max_positions: int) -> None:
        if max_positions > 2 * STEP:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        resize(num_slots, max_positions)

    cache.resize = scarce  # type: ignore[method-assign]
    rows: Rows = [([n, 5], SamplingParams(max_new_tokens=20, temperature=1.0, seed=n)) for n in range(6)]
    mixed = [*rows[:3], ([3] * 90, SamplingParams(max_new_tokens=4)), *rows[3:]]
    outputs = subject.generate([ids for ids, _ in mixed], [params for _, params in mixed])
    assert [output.error_code for output in outputs] == [None] * 3 + ["ROW_MEMORY"] + [None] * 3
    expected = full_twin(target, rows, path=path)
    assert tokens(outputs[:3] + outputs[4:]) == [(twin.token_ids, twin.finish_reason) for twin in expected]


@pytest.mark.parametrize("path", ["lean", "ahead"])
def test_generate_behind_an_interrupted_one_gives_its_own_completions(
    target: Any, draft: Any, rows: Rows, path: str
) -> None:
    """Ctrl-C when the first row has just ended: its output, rows in flight and waiting rows have the next call's keys.

    Some of the prompts come again, and what the slots hold of them was computed by a step that did not come to its end.
    """
    subject = engine(target, draft, k=3, batch=3, path=path)
    stepper = subject._stepper
    book = stepper._book

    def interrupted(result: Any) -> None:
        book(result)
        if stepper._finished:
            raise KeyboardInterrupt

    stepper._book = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        subject.generate([ids for ids, _ in rows], [params for _, params in rows])
    stepper._book = book  # type: ignore[method-assign]
    assert (subject.num_active, subject.num_queued) == (0, 0)
    assert not stepper.is_flying
    other = [rows[5], ([11, 12, 13], SamplingParams(max_new_tokens=9)), rows[0], rows[2], rows[1]]
    outputs = subject.generate([ids for ids, _ in other], [params for _, params in other])
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, other, path=path)]


def test_generate_does_not_begin_among_sequences_of_submit(target: Any) -> None:
    subject = engine(target)
    for step in (lambda: None, subject.step):
        subject.submit(0, [1, 2], SamplingParams(max_new_tokens=4))
        step()
        with pytest.raises(SpecbatchError, match=r"JOB_CONFIG.* cancel_all"):
            subject.generate([[5, 6]], SamplingParams(max_new_tokens=4))
        assert subject.num_active + subject.num_queued > 0, "they are as they were"
        subject.cancel_all()
    assert len(subject.generate([[5, 6]], SamplingParams(max_new_tokens=4))[0].token_ids) == 4


def test_what_has_ended_in_a_step_that_failed_can_be_cancelled_too(target: Any) -> None:
    subject = engine(target, batch=2)
    for key, num_tokens in enumerate((1, 1, 9)):
        subject.submit(key, [1, 2, key], SamplingParams(max_new_tokens=num_tokens))
    stepper = subject._stepper
    book = stepper._book

    def broken(result: Any) -> None:
        book(result)
        raise OSError("the step does not come to its end")

    stepper._book = broken  # type: ignore[method-assign]
    with pytest.raises(OSError, match="does not come to its end"):
        subject.step()
    stepper._book = book  # type: ignore[method-assign]
    assert [output.key for output in stepper._finished] == [0, 1]
    subject.cancel([1])
    outputs = [output.key for _ in range(12) for output in subject.step()]
    assert outputs == [0, 2]


def test_several_samples_need_several_keys(target: Any) -> None:
    with pytest.raises(SpecbatchError, match="num_samples"):
        engine(target).submit(0, [1], SamplingParams(temperature=1.0, num_samples=2))


def test_other_errors_are_not_taken_for_want_of_memory(target: Any) -> None:
    subject = engine(target)

    def broken(feed: Any, keep: Any) -> torch.Tensor:
        raise RuntimeError("shape mismatch")

    subject._batch.target.run = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shape mismatch"):
        subject.generate([[1, 2]], SamplingParams(max_new_tokens=8))


@pytest.mark.parametrize("path", PATHS)
def test_a_draft_may_be_given_up_in_mid_job(target: Any, draft: Any, rows: Rows, path: str) -> None:
    subject = engine(target, draft, k=3, batch=2, path=path, grown_batch_size=5)
    for number, (ids, params) in enumerate(rows):
        subject.submit(number, ids, params)
    outputs = [output for _ in range(6) for output in subject.step()]
    held = subject.memory()
    type(subject._batch.policy).is_draft_given_up = property(lambda policy: True)  # type: ignore[method-assign, assignment]
    try:
        subject._batch.policy.uses_model = False
        while subject.num_active or subject.num_queued:
            outputs += subject.step()
    finally:
        type(subject._batch.policy).is_draft_given_up = property(lambda policy: False)  # type: ignore[method-assign, assignment]
    outputs.sort(key=lambda output: int(str(output.key)))
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, rows, path=path)]
    assert held.draft_bytes > 0 == subject.memory().draft_bytes
    assert subject.max_batch_size == 5


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("k", [0, LONG_1, 4])
def test_the_distribution_coupling_is_greedy_where_the_row_is(
    target: Any, draft: Any, rows: Rows, path: str, k: int
) -> None:
    greedy = [
        (ids, SamplingParams(max_new_tokens=p.max_new_tokens, stop_token_ids=p.stop_token_ids)) for ids, p in rows
    ]
    outputs = run(greedy, target, draft, k=k, batch=3, path=path, coupling="distribution")
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, greedy, path=path)]


@pytest.mark.parametrize("path", PATHS)
def test_drafts_that_were_looked_up_may_be_more_than_those_that_were_drawn(target: Any, draft: Any, path: str) -> None:
    """In one round of the distribution coupling: one draft for some rows, many from the suffix index for others."""
    prompts = [[5, 6, 7] * 6, *([n, 3] for n in range(9))]
    greedy: Rows = [(ids, SamplingParams(max_new_tokens=24)) for ids in prompts]
    policy = MixedPolicy(6)
    outputs = run(greedy, target, draft, k=policy, batch=10, path=path, has_suffix=True, coupling="distribution")
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, greedy, path=path)]
    longest = [len(output.stats.draft_length_histogram) - 1 for output in outputs]
    assert max(longest) > 1
    assert sum(output.stats.num_accepted_draft_tokens for output in outputs) > 0


def test_the_distribution_coupling_accepts_all_of_a_draft_that_is_the_target(target: Any, rows: Rows) -> None:
    for output in run(rows, target, target, k=4, path="lean", coupling="distribution"):
        assert output.stats.num_accepted_draft_tokens == output.stats.num_draft_tokens


def test_margins_belong_to_the_seed_coupling(target: Any, draft: Any, rows: Rows) -> None:
    """The ratio test has no second-best score to be close to; a margin there would be made up."""
    under_seed = run(rows, target, draft, k=2, path="lean")
    under_distribution = run(rows, target, draft, k=2, path="lean", coupling="distribution")
    assert any(output.min_margin is not None for output in under_seed)
    assert all(output.min_margin is None for output in under_distribution)


def test_the_distribution_coupling_has_the_law_of_the_target(target: Any) -> None:
    """Second token of a completion, over 4,000 rows, against the exact law; with a draft that is often refused.

    Chi-square with the bins below 5 expected rows pooled; the false-alarm rate is below 1e-6, and the seeds are fixed.
    """
    stranger = tiny_model(seed=11)
    num_rows, prompt = 4000, [7, 3, 9]
    params = SamplingParams(max_new_tokens=3, temperature=1.5)
    rows: Rows = [(prompt, SamplingParams(**(as_dict(params) | {"seed": seed}))) for seed in range(num_rows)]
    outputs = run(rows, target, stranger, k=2, batch=64, path="lean", coupling="distribution")
    seen = Counter(output.token_ids[1] for output in outputs)
    law = second_token_law(target, prompt, 1.5)
    expected = {token: num_rows * float(law[token]) for token in range(VOCAB)}
    small = [token for token in expected if expected[token] < 5]
    bins = [(seen[token], expected[token]) for token in expected if token not in small]
    bins.append((sum(seen[token] for token in small), sum(expected[token] for token in small)))
    statistic = sum((count - mean) ** 2 / mean for count, mean in bins if mean > 0)
    degrees = len(bins) - 1
    assert statistic < degrees + 7 * (2 * degrees) ** 0.5
    assert sum(output.stats.num_accepted_draft_tokens for output in outputs) > 0


def as_dict(params: SamplingParams) -> dict[str, Any]:
    return {"max_new_tokens": params.max_new_tokens, "temperature": params.temperature}


def second_token_law(model: Any, prompt: list[int], temperature: float) -> torch.Tensor:
    def law(ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[:, -1, :VOCAB]
        return (logits / temperature).softmax(-1)

    with torch.inference_mode():
        first = law(torch.tensor([prompt]))[0]
        second = law(torch.tensor([[*prompt, token] for token in range(VOCAB)]))
        return first @ second


@pytest.fixture
def broken(target: Any) -> Any:
    """A target whose rows with the token 20 have logits that are not finite."""
    model = perturbed(target, 0.0)
    with torch.no_grad():
        model.get_input_embeddings().weight[20] = torch.nan
    return model


@pytest.mark.parametrize("path", PATHS)
def test_behind_a_broken_row_the_device_must_prove_itself(broken: Any, path: str) -> None:
    """Damaged weights break their own rows only; a device that computes otherwise than at start ends the engine."""
    subject = engine(broken, batch=2, path=path)
    outputs = subject.generate([[3, 20], [3, 4]], SamplingParams(max_new_tokens=3, banned_token_ids=(20,)))
    assert [output.error_code for output in outputs] == ["ROW_NUMERIC", None]
    decoder = subject._batch.target
    honest = decoder.canonical_logits
    decoder.canonical_logits = lambda token_T: honest(token_T) * (1 + 1e-12)  # type: ignore[method-assign]
    with pytest.raises(SpecbatchError, match="JOB_DEVICE"):
        subject.generate([[3, 20]], SamplingParams(max_new_tokens=3))


@pytest.mark.parametrize("path", PATHS)
def test_rows_whose_proof_fails_for_want_of_memory_are_not_lost(broken: Any, path: str) -> None:
    """The step raises; the next one asks the device again and gives them out."""
    subject = engine(broken, batch=2, path=path)
    decoder = subject._batch.target
    honest = decoder.canonical_logits

    def fails(token_T: torch.Tensor) -> torch.Tensor:
        if len(token_T) == 8:  # the proof's; those of rows are shorter
            raise RuntimeError(NO_MEMORY)
        return honest(token_T)

    decoder.canonical_logits = fails  # type: ignore[method-assign]
    subject.submit("broken", [3, 20], SamplingParams(max_new_tokens=3))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        [subject.step() for _ in range(9)]
    decoder.canonical_logits = honest  # type: ignore[method-assign]
    assert [(output.key, output.error_code) for output in subject.step()] == [("broken", "ROW_NUMERIC")]


def test_ids_outside_the_vocabulary_are_refused_by_name(target: Any) -> None:
    with pytest.raises(SpecbatchError, match="banned_token_ids"):
        engine(target).submit(0, [1], SamplingParams(banned_token_ids=(VOCAB,)))


def test_the_profile_leaves_no_trace(target: Any, draft: Any, rows: Rows) -> None:
    from specbatch.specdec.policy.controller import AdaptivePolicy

    policy = AdaptivePolicy(4, has_draft=True, has_suffix=False)
    outputs = run(rows, target, perturbed(target, 0.1), k=policy, batch=3, path="lean", has_profile=True)
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, rows, path="lean")]


def test_prompts_of_many_chunks_do_not_hold_up_rows_that_decode(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbatch.specdec.rounds.prefill.CHUNK_TOKENS", 8)
    subject = engine(target, batch=2, path="lean")
    subject.submit("short", [1, 2], SamplingParams(max_new_tokens=6))
    subject.submit("long", [3] * (CONTEXT - 4), SamplingParams(max_new_tokens=2))
    ended = [(step, output.key) for step in range(30) for output in subject.step()]
    assert [key for _, key in ended] == ["short", "long"]
    assert ended[0][0] <= 6, "a token in every step but the one in which its prompt was read"


def test_a_round_in_which_prompts_end_makes_no_sampling_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for the rows that decoded before and for all of them, and so may the next one."""
    made: list[int] = []
    from_params = SamplingTensors.from_params

    def counted(params: Any, *rest: Any) -> SamplingTensors:
        made.append(len(params))
        return from_params(params, *rest)

    subject = engine(tiny_model(), batch=3)
    for row in range(3):
        subject.submit(row, [1 + row, 2, 3], SamplingParams(max_new_tokens=9))
    subject.step()
    monkeypatch.setattr(SamplingTensors, "from_params", staticmethod(counted))
    before, both = np.array([0, 1]), np.array([0, 1, 2])
    batch = subject._batch
    asked = [batch.sampling(rows) for rows in (before, both, before, both)]
    assert asked[0] is asked[2]
    assert asked[1] is asked[3]
    assert made.count(2) == 1
    made.clear()
    batch.slots.version += 1
    assert batch.sampling(both) is not asked[1], "other rows may stand there now"
    assert made == [3]
