"""Every supported family, greedy, float32: the tokens of ``transformers`` ``generate``, as target and as draft."""

from __future__ import annotations

import copy
import json
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, PADDED_VOCAB, VARIANTS, VOCAB, WINDOW, context_of, engine, perturbed, runner, tiny_model

from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.forward.runner import load_model
from specbatch.specdec.kernels import attention, packing
from specbatch.specdec.models.families import FAMILIES as LISTED
from specbatch.specdec.models.families import SUPPORTED_MODEL_TYPES, check_supported, kv_bytes_per_token, max_context

NEW_TOKENS = 24
NAMES = [*FAMILIES, *VARIANTS]


def prompts_for(context: int) -> list[list[int]]:
    """One token, few tokens, more than a window, and up to the last one or four positions of the context."""
    long = torch.randint(VOCAB, (context,), generator=torch.Generator().manual_seed(7)).tolist()
    return [[5], [1, 2, 3, 4, 5, 6, 7], [9, 8] * 12, long[: 3 * WINDOW + 1], long[:-1], long[3:-1]]


def stock_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The same weights under the library's plainest attention, so that our own attention function is tested too."""
    model = tiny_model(name, seed=1, dtype=dtype)
    if LISTED[model.config.model_type].attention == "own":
        model.set_attn_implementation("eager")
    return model


@lru_cache
def expected(name: str) -> tuple[tuple[int, ...], ...]:
    """What ``generate`` says to every prompt, alone."""
    model = stock_model(name)
    context = context_of(model)
    completions = []
    for prompt in prompts_for(context):
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=min(NEW_TOKENS, context - len(prompt)),
            pad_token_id=0,
            # The engine cuts logits to the tokenizer's vocabulary; generate is told to leave the padding rows out too.
            suppress_tokens=list(range(VOCAB, PADDED_VOCAB)),
        )
        completions.append(tuple(output[0, len(prompt) :].tolist()))
    return tuple(completions)


def decoded(target: Any, draft: Any = None, k: int = 0) -> tuple[tuple[tuple[int, ...], ...], int]:
    """What the engine says to the same prompts in batches, on packed weights as it loads them, and drafts accepted."""
    target, draft = copy.deepcopy(target), copy.deepcopy(draft)
    for model in (target, draft):
        if model is not None and packing.can_pack(torch.device("cpu"), torch.float32):
            packing.pack_linears(model)
    context = context_of(target)
    outputs = engine(target, draft, k=k, batch=4, context=context).generate(
        prompts_for(context), SamplingParams(max_new_tokens=NEW_TOKENS)
    )
    return tuple(o.token_ids for o in outputs), sum(o.stats.num_accepted_draft_tokens for o in outputs)


def test_the_list_is_what_is_tested() -> None:
    assert sorted(FAMILIES) == list(SUPPORTED_MODEL_TYPES)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_equals_generate(name: str) -> None:
    model = tiny_model(name, seed=1, dtype=torch.float32)
    assert decoded(model)[0] == expected(name)
    tokens, num_accepted = decoded(model, perturbed(model, 0.1), k=4)
    assert tokens == expected(name)
    assert num_accepted > 0


@pytest.mark.long
@pytest.mark.parametrize(("name", "draft"), list(zip(NAMES, NAMES[1:] + NAMES[:1], strict=True)))
def test_a_draft_of_another_family_changes_nothing(name: str, draft: str) -> None:
    model = tiny_model(name, seed=1, dtype=torch.float32)
    assert decoded(model, tiny_model(draft, seed=2, dtype=torch.float32), k=3)[0] == expected(name)


@pytest.mark.parametrize("name", NAMES)
def test_ragged_rows_and_lone_prefixes_have_the_logits_of_the_whole_text(name: str) -> None:
    model, stock = tiny_model(name, seed=1), stock_model(name, dtype=torch.float64)
    length = min(60, context_of(model))
    token_BT = torch.randint(VOCAB, (3, length), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        whole_BTV = stock(input_ids=token_BT, use_cache=False).logits[..., :VOCAB]
    # The library rounds attention weights to float32 in many families; a wrong key moves logits by tenths.
    assert_close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-4)
    under_test = runner(model, 4, length)
    begin = [5, 2 * WINDOW + 1, length - 19]
    position_BT = torch.arange(max(begin)).expand(3, -1)
    logits = under_test.forward(token_BT[:, : max(begin)], position_BT, 1, max(begin), max(begin))
    assert_close(logits, whole_BTV[:, : max(begin)])
    for step in range(0, 18, 3):
        position_BT = torch.tensor([[n + step + t for t in range(3)] for n in begin])
        logits = under_test.forward(token_BT.gather(1, position_BT), position_BT, 1, length, 3)
        wanted = whole_BTV.gather(1, position_BT.unsqueeze(-1).expand(-1, -1, VOCAB))
        assert_close(logits, wanted)
    for n in (1, WINDOW, WINDOW + 1, length):
        assert_close(under_test.canonical_logits(token_BT[1, :n]), whole_BTV[1, n - 1])


@pytest.mark.parametrize(
    "name", ["llama with dynamic frequencies", "phi3 with frequencies by length", "mixtral", "gpt2"]
)
def test_a_row_does_not_feel_its_mates(name: str) -> None:
    model = tiny_model(name, seed=1)
    # Drafts beyond the context are scored and ignored, but must not move the frequencies of any row.
    far = context_of(model) + 8
    token_BT = torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(4))
    position_BT = torch.stack([torch.arange(12), torch.arange(far - 12, far)])
    logits = []
    for num_rows in (1, 2, 1):
        logits.append(runner(model, 2, far).forward(token_BT[:num_rows], position_BT[:num_rows], 0, far, 12)[0])
    torch.testing.assert_close(logits[0], logits[1], rtol=0.0, atol=1e-9)
    assert torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("name", NAMES)
def test_a_forward_reads_nothing_back(name: str) -> None:
    """On the meta device tensors have no values, so whatever would wait for a GPU's answer fails here."""
    under_test = runner(tiny_model(name, dtype=torch.bfloat16).to("meta"), 2)
    token_BT, position_BT = (torch.zeros(2, 3, dtype=torch.int64, device="meta") for _ in range(2))
    assert under_test.forward(token_BT, position_BT, 0, 14, 3).shape == (2, 3, VOCAB)


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_is_as_large_as_the_ledger_says(name: str) -> None:
    model = tiny_model(name, dtype=torch.float32)
    under_test = runner(model, 3)
    assert under_test.cache.num_bytes == 0
    under_test.forward(torch.tensor([[1, 2]]), torch.tensor([[0, 1]]), 0, 2, 1)
    assert under_test.cache.num_bytes == 3 * 16 * kv_bytes_per_token(model.config.to_dict(), 4)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_taken_and_loads_with_the_same_logits(name: str, tmp_path: Path) -> None:
    model = tiny_model(name, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes())
    check_supported("the model", config)
    assert max_context(config) == context_of(model)
    assert kv_bytes_per_token(config, 4) == kv_bytes_per_token(model.config.to_dict(), 4)
    loaded = load_model(tmp_path, torch.float32, torch.device("cpu"))
    token_T = torch.arange(2 * WINDOW)
    logits = [runner(m, 1).canonical_logits(token_T) for m in (model, loaded)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "linears"), [("llama", 15), ("gpt2", 9), ("falcon", 9), ("mixtral", 9)])
def test_every_linear_layer_is_packed(name: str, linears: int) -> None:
    model = tiny_model(name, dtype=torch.float32)
    token_BT = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.inference_mode():
        plain = model(input_ids=token_BT).logits
        assert packing.pack_linears(model) == linears
        torch.testing.assert_close(model(input_ids=token_BT).logits, plain, rtol=1e-4, atol=1e-4)


def attention_inputs(num_queries: int, num_keys: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = ((2, 6, num_queries, 4), (2, 3, num_keys, 4), (2, 3, num_keys, 4))
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return query, key, value


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("num_queries", [1, 5, 40])
def test_attention_is_the_textbook_formula(num_queries: int, window: int | None, softcap: float | None) -> None:
    num_keys = num_queries + 7
    query, key, value = attention_inputs(num_queries, num_keys)
    position_BT = torch.stack([torch.arange(num_queries), torch.arange(num_queries) + 7])
    mask = attention.visibility_mask(position_BT, num_keys, torch.float64, window)
    out, _ = attention.grouped_attention(
        torch.nn.Identity(), query, key, value, mask, scaling=0.7, softcap=softcap, sliding_window=window
    )
    for row, head, t in ((0, 0, 0), (0, 5, num_queries - 1), (1, 2, num_queries // 2), (1, 3, num_queries - 1)):
        p = int(position_BT[row, t])
        first = 0 if window is None else max(0, p - window + 1)
        scores = 0.7 * key[row, head // 2, first : p + 1] @ query[row, head, t]
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        wanted = torch.softmax(scores, dim=0) @ value[row, head // 2, first : p + 1]
        torch.testing.assert_close(out[row, t, head], wanted)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_attention_without_a_mask_is_causal(softcap: float | None) -> None:
    query, key, value = attention_inputs(9, 9)
    mask = attention.visibility_mask(torch.arange(9).expand(2, -1), 9, torch.float64)
    with_mask, without = (
        attention.grouped_attention(torch.nn.Identity(), query, key, value, m, softcap=softcap)[0] for m in (mask, None)
    )
    torch.testing.assert_close(with_mask, without)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"s_aux": torch.zeros(6)}, "s_aux"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"sliding_window": 3}, "window of 3"),
        ({"dropout": 0.1}, "dropout"),
        ({"is_causal": False}, "later tokens"),
    ],
)
def test_attention_ignores_no_argument(arguments: dict[str, Any], named: str) -> None:
    query, key, value = attention_inputs(9, 9)
    for mask in (None, attention.visibility_mask(torch.arange(9).expand(2, -1), 9, torch.float64, window=4)):
        with pytest.raises(SpecbatchError, match=f"JOB_MODEL_UNSUPPORTED.*{named}"):
            attention.grouped_attention(torch.nn.Identity(), query, key, value, mask, **arguments)
