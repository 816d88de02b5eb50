"""The same bits whatever the batch, K and order; keys and values in 8 bits."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from tiny import CONTEXT, VOCAB, NumberTokenizer, context_of, perturbed, tiny_model
from twin import Rows, WholePrefix, tokens

from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec import reference
from specbatch.specdec.engine import Engine
from specbatch.specdec.forward.lean_paged import PagedLeanDecoder
from specbatch.specdec.forward.paged_memory import Pages
from specbatch.specdec.models.arithmetic import check_arithmetic
from specbatch.specdec.output import SequenceOutput
from specbatch.specdec.policy.controller import FixedPolicy
from specbatch.specdec.rounds import prefill

CPU = torch.device("cpu")


def decoder(model: Any, pages: Pages, *, bitwise: bool = False, is_fp8: bool = False) -> PagedLeanDecoder:
    return PagedLeanDecoder(
        copy.deepcopy(model),
        pages=pages,
        context_length=context_of(model),
        vocab_size=VOCAB,
        kv_dtype=torch.float8_e4m3fn if is_fp8 else None,
        is_invariant=bitwise,
    )


def decode(rows: Rows, target: Any, draft: Any, k: int, batch: int, **settings: Any) -> list[SequenceOutput]:
    pages = Pages(200, batch, CONTEXT + 1, CPU)
    engine = Engine(
        decoder(target, pages, **settings),
        decoder(draft, pages, is_fp8=settings.get("is_fp8", False)) if k else None,
        NumberTokenizer(),  # type: ignore[arg-type]
        eos_ids=(),
        policy=FixedPolicy(k),
        max_batch_size=batch,
        max_sequence_tokens=CONTEXT,
    )
    return engine.generate([ids for ids, _ in rows], [params for _, params in rows])


def sampled_rows(num_rows: int) -> Rows:
    generator = random.Random(4)
    return [
        (
            [generator.randrange(VOCAB) for _ in range(generator.randint(1, 40))],
            SamplingParams(
                max_new_tokens=20,
                temperature=generator.choice((0.0, 0.8)),
                top_p=generator.choice((1.0, 0.9)),
                seed=generator.getrandbits(63),
                logprobs=True,
            ),
        )
        for _ in range(num_rows)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_fp8", [False, True])
def test_bits_depend_on_nothing_around_a_row(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, is_fp8: bool) -> None:
    """Log-probabilities are compared as numbers, without a tolerance; in half precision nothing settles near ties."""
    target = tiny_model(seed=3, dtype=dtype)
    draft = perturbed(target, 0.15)
    rows = sampled_rows(8)
    outputs = decode(rows, target, draft, k=0, batch=1, bitwise=True, is_fp8=is_fp8)
    expected = [(output.token_ids, output.logprobs, output.min_margin) for output in outputs]
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    for k, batch, chunk in ((0, 8, 512), (3, 3, 7), (5, 5, 16)):
        monkeypatch.setattr(prefill, "CHUNK_TOKENS", chunk)
        found = decode([rows[i] for i in order], target, draft, k=k, batch=batch, bitwise=True, is_fp8=is_fp8)
        assert [(o.token_ids, o.logprobs, o.min_margin) for o in found] == [expected[i] for i in order]
        assert k == 0 or sum(output.stats.num_accepted_draft_tokens for output in found) > 0


def test_without_it_bits_do_depend_on_the_batch() -> None:
    """What the test above rests on: in half precision these rows have other log-probabilities in another batch."""
    target = tiny_model(seed=3, dtype=torch.bfloat16)
    rows = sampled_rows(8)
    alone, together = (decode(rows, target, target, k=k, batch=batch) for k, batch in ((0, 1), (3, 8)))
    assert [output.logprobs for output in alone] != [output.logprobs for output in together]


@pytest.mark.parametrize("k", [0, 3])
def test_keys_and_values_in_8_bits_are_those_of_the_twin(k: int) -> None:
    """In float64 no rounding to 8 bits hangs on a last bit, so that the tokens of the twin are met exactly."""
    target = tiny_model(seed=3)
    rows = sampled_rows(8)
    outputs = decode(rows, target, perturbed(target, 0.15), k=k, batch=3, is_fp8=True)
    subject = WholePrefix(decoder(target, Pages(2, 1, CONTEXT + 1, CPU), is_fp8=True))
    expected = [
        reference.generate(subject, ids, params, vocab_size=VOCAB, context_length=CONTEXT) for ids, params in rows
    ]
    assert tokens(outputs) == [(twin.token_ids, twin.finish_reason) for twin in expected]
    full = decode(rows, target, target, k=0, batch=3)
    assert tokens(outputs) != tokens(full), "8 bits change the text of some row, or nothing was tested"
    assert all(output.num_near_ties == 0 for output in outputs)


@pytest.mark.parametrize(
    ("path", "settings", "said"),
    [
        ("generic", {"bitwise": True}, "--bitwise is for dense models of the families llama"),
        ("generic", {"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8 is for dense models"),
        ("lean", {"bitwise": True, "num_ranks": 2}, "--tensor-parallel-size"),
        ("lean", {"bitwise": True, "coupling": "distribution"}, "--coupling distribution"),
    ],
)
def test_what_cannot_be_had_is_refused(path: str, settings: dict[str, Any], said: str) -> None:
    given = {"kv_cache_dtype": "auto", "bitwise": False, "coupling": "seed"} | settings
    with pytest.raises(SpecbatchError, match=said) as refused:
        check_arithmetic("some/model", path, **given)
    assert refused.value.code == "JOB_CONFIG"


def test_the_bundled_pair_decodes_bit_for_bit_on_this_machine() -> None:
    """Through the same door as a job: float32, where without it near ties would have to be settled."""
    prompts = ["def add(a, b):\n", "import os\nimport ", "class Queue:\n    def __init__(self"]
    params = SamplingParams(max_new_tokens=12, temperature=0.7, seed=3, logprobs=True)
    seen = []
    for speculation, batch in (("off", 1), (3, 3)):
        engine = Engine.from_pretrained(
            "code-pair/target",
            "code-pair/draft-taught",
            max_batch_size=batch,
            speculation=speculation,  # type: ignore[arg-type]
            kv_cache_dtype="fp8",
            bitwise=True,
            device="cpu",
        )
        seen.append([(output.token_ids, output.logprobs) for output in engine.generate(prompts, params)])
    assert seen[0] == seen[1]
