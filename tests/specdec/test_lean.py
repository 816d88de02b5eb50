"""The lean path against the unmodified modules: logits of ragged feeds, and the tokens of ``generate``."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CONTEXT, PADDED_VOCAB, VOCAB, WINDOW, decoder, engine, perturbed, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from twin import full_twin, tokens

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.forward import rotary
from specbatch.specdec.forward.feed import Layout
from specbatch.specdec.forward.lean import LeanDecoder
from specbatch.specdec.forward.lean_paged import PagedLeanDecoder
from specbatch.specdec.forward.paged_memory import Pages
from specbatch.specdec.forward.rotary import Rotary
from specbatch.specdec.models.families import LEAN_MODEL_TYPES, model_path
from specbatch.specdec.models.footprint import rotary_bytes

CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in LEAN_MODEL_TYPES),
    ("llama", {"attention_bias": True}),
    ("llama", {"num_key_value_heads": 4}),
    ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0, "attention_bias": True}),
]
NAMES = [f"{family}{number}" for number, (family, _) in enumerate(CASES)]


@pytest.mark.parametrize(("family", "overrides"), CASES, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_equal_those_of_the_module(family: str, overrides: dict[str, Any], dtype: torch.dtype) -> None:
    """Prompts of mixed lengths, then windows of mixed lengths, some slots left out; every kept logit."""
    model = tiny_model(family, seed=1, dtype=dtype, **overrides)
    generic, lean = decoder(copy.deepcopy(model), 4), decoder(model, 4, "lean")
    generator = np.random.default_rng(0)
    for subject in (generic, lean):
        subject.cache.resize(4, CONTEXT + 32)
    steps = [
        ([0, 1, 2, 3], [0, 0, 0, 0], [30, 5, 20, 1], [29, 34, 54, 55]),
        ([0, 1, 2, 3], [30, 5, 60, 1], [1, 3, 0, 17], None),
        ([0, 1, 2, 3], [31, 8, 20, 18], [2, 30, 4, 1], [0, 3, 5, 33, 36]),
    ]
    for slot, start, count, keep in steps:
        layout = Layout(*(np.array(values) for values in (slot, start, count)))
        token_M = torch.from_numpy(generator.integers(0, VOCAB, layout.num_tokens))
        keep_N = None if keep is None else np.array(keep)
        expected = generic.run(layout.feed(token_M), keep_N).float()
        found = lean.run(layout.feed(token_M), keep_N).float()
        assert found.shape == expected.shape
        tolerance = 1e-4 if dtype == torch.float32 else 0.05 * float(expected.abs().max())
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    prefix = torch.from_numpy(generator.integers(0, VOCAB, 25))
    torch.testing.assert_close(
        lean.canonical_logits(prefix).float(), generic.canonical_logits(prefix).float(), atol=tolerance, rtol=0
    )


@pytest.mark.parametrize(("family", "overrides"), CASES, ids=NAMES)
def test_greedy_tokens_equal_generate(family: str, overrides: dict[str, Any]) -> None:
    model = tiny_model(family, seed=1, dtype=torch.float32, **overrides)
    prompts = [[5], [1, 2, 3, 4, 5, 6, 7], [9, 8] * 12, [44, 3, 17, 21] * 15]
    new_tokens = 24
    stock = copy.deepcopy(model)
    stock.set_attn_implementation("sdpa")
    expected = [
        tuple(
            stock.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                do_sample=False,
                max_new_tokens=new_tokens,
                pad_token_id=0,
                suppress_tokens=list(range(VOCAB, model.config.vocab_size)),
            )[0, len(prompt) :].tolist()
        )
        for prompt in prompts
    ]
    for k, draft in ((0, None), (4, perturbed(model, 0.1))):
        outputs = engine(model, draft, k=k, batch=3, path="lean").generate(
            prompts, SamplingParams(max_new_tokens=new_tokens)
        )
        assert [output.token_ids for output in outputs] == expected
    assert sum(output.stats.num_accepted_draft_tokens for output in outputs) > 0


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the lean path does otherwise on a GPU, here."""
    monkeypatch.setattr(LeanDecoder, "is_on_device", property(lambda decoder: True))


@pytest.mark.parametrize("path", ["lean", "ahead"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_tokens_with_what_a_device_does_otherwise_equal_the_twins(
    monkeypatch: pytest.MonkeyPatch, path: str, family: str
) -> None:
    """The vocabulary ends before the head does; logits behind it are the largest ones. One family has windows."""
    model, draft = (tiny_model(family, seed=seed, dtype=torch.float64, initializer_range=0.2) for seed in (1, 2))
    for each in (model, draft):
        each.get_output_embeddings().weight[VOCAB:] *= 30
    settings: list[dict[str, Any]] = [
        {}, {"temperature": 0.9}, {"temperature": 1.1, "top_p": 0.8},
        {"temperature": 0.8, "top_k": 5, "logprobs": True},
        {"temperature": 0.7, "repetition_penalty": 1.4, "min_p": 0.02}, {"logit_bias": {3: 1.0}},
    ]  # fmt: skip
    rows = [
        ([1 + n, 2, 3] * (1 + 4 * n), SamplingParams(max_new_tokens=14, seed=n, **chosen))
        for n, chosen in enumerate(settings)
    ]
    expected = full_twin(model, rows, path="lean")
    monkeypatch.setattr(LeanDecoder, "is_on_device", property(lambda decoder: True))
    subject = engine(model, draft, k=3, batch=3, path=path)
    head: Any = subject._batch.target
    assert head.head.out_features == PADDED_VOCAB
    outputs = subject.generate([ids for ids, _ in rows], [params for _, params in rows])
    assert tokens(outputs) == [(one.token_ids, one.finish_reason) for one in expected]
    found, wanted = outputs[3].logprobs, expected[3].logprobs
    assert found is not None
    assert wanted is not None
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("is_invariant", [False, True])
def test_on_a_device_rows_of_logits_begin_where_fast_kernels_want_them(on_a_device: None, is_invariant: bool) -> None:
    pages = Pages(20, 1, CONTEXT, torch.device("cpu"))
    model = tiny_model("llama", dtype=torch.bfloat16)
    subject = PagedLeanDecoder(model, pages=pages, context_length=CONTEXT, vocab_size=VOCAB, is_invariant=is_invariant)
    pages.table.grow(0, 5)
    layout = Layout(np.array([0]), np.array([0]), np.array([5]))
    logits_NV = subject.run(layout.feed(torch.arange(5)), None)
    assert logits_NV.shape == (5, VOCAB)
    assert logits_NV.stride() == (PADDED_VOCAB, 1)


class Zeros(TorchDispatchMode):
    """Shapes of the tensors that were filled with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "zero" in func._schema.name:
            self.shapes.append(tuple(result.shape))
        return result


def test_a_forward_zeroes_once_what_all_layers_write_to() -> None:
    """A token in no segment, as rounds of fixed shape have them, gets zeros in every layer."""
    pages = Pages(20, 1, CONTEXT, torch.device("cpu"))
    model = tiny_model("llama", num_hidden_layers=3)
    subject = PagedLeanDecoder(model, pages=pages, context_length=CONTEXT, vocab_size=VOCAB)
    pages.table.grow(0, 5)
    paged = pages.feed(Layout(np.array([0]), np.array([0]), np.array([5])))
    alone = subject.forward(torch.arange(5), paged.position_M, paged.place_M, paged.spans, None)
    seen, more = Zeros(), torch.zeros(2, dtype=torch.int64)
    with seen:
        beside = subject.forward(
            torch.arange(7), torch.cat((paged.position_M, more)), torch.cat((paged.place_M, more)), paged.spans, None
        )
    assert seen.shapes.count((7, 4, 8)) == 1
    torch.testing.assert_close(beside[:5], alone)
    assert beside.isfinite().all()


class Largest(TorchDispatchMode):
    """The most numbers in any result."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.numel())
        return result


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("llama", {"num_key_value_heads": 4}),
        ("mistral", {}),
        ("mistral", {"sliding_window": 150}),  # the last block is shorter
        ("mistral", {"sliding_window": 399}),  # one token is cut
        ("mistral", {"sliding_window": 1000}),
        ("qwen2", {}),
    ],
)
def test_canonical_evaluation_makes_no_mask_of_a_whole_prefix(family: str, overrides: dict[str, Any]) -> None:
    """For 32,000 tokens mask and copies took twelve gigabytes, in every layer. A window needs one as wide as two."""
    num_tokens = 400
    sizes = {"num_hidden_layers": 2, "max_position_embeddings": num_tokens}
    model = tiny_model(family, seed=1, dtype=torch.float32, **(sizes | overrides))
    token_T = torch.from_numpy(np.random.default_rng(2).integers(0, VOCAB, num_tokens))
    with Largest() as seen:
        expected_V = decoder(model, 1, "generic").canonical_logits(token_T)
    window = getattr(model.config, "sliding_window", None)
    if window is not None and window < num_tokens:
        assert seen.most >= num_tokens**2, "the library's modules want one, so this test can see it"
    for path in ("lean", "paged"):
        subject = decoder(model, 1, path)
        with Largest() as seen:
            found_V = subject.canonical_logits(token_T)
        assert seen.most < num_tokens**2
        torch.testing.assert_close(found_V, expected_V, atol=1e-4, rtol=0)


_ROTARY: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    ("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}),
    (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    ("qwen3", {}),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("family", "overrides"), _ROTARY)
def test_a_table_of_rotary_positions_has_the_modules_bits(
    monkeypatch: pytest.MonkeyPatch, family: str, overrides: dict[str, Any], dtype: torch.dtype
) -> None:
    """At every position, by itself and among others; beyond the last one like the last, and made in pieces."""
    monkeypatch.setattr(rotary, "_POSITIONS_AT_A_TIME", 100)
    model, num_positions = tiny_model(family, dtype=dtype, max_position_embeddings=256, **overrides), 256
    assert model_path(model.config.to_dict()) == "lean"
    module, x_ME = model.model.rotary_emb, torch.zeros(num_positions, 32, dtype=dtype)
    half = module(x_ME, torch.zeros(1, 1))[0].shape[-1] // 2
    subject = Rotary(module, x_ME[0], num_positions, has_table=True)
    assert subject.num_bytes == 2 * num_positions * 2 * half * dtype.itemsize
    anew = Rotary(module, x_ME[0], num_positions, has_table=False)
    everywhere = torch.arange(num_positions)
    cos_1MD, sin_1MD = module(x_ME, everywhere[None])
    for one in (subject, anew):
        cos_M1D, sin_M1D = one(x_ME, everywhere)
        assert torch.equal(cos_M1D[:, 0], cos_1MD[0])
        assert torch.equal(sin_M1D[:, 0, half:], sin_1MD[0, :, half:])
        assert torch.equal(sin_M1D[:, 0, :half], -sin_1MD[0, :, :half])
    for position in (0, 1, 7, 99, 100, 255, 256, 1000):
        one_M = torch.tensor([position])
        for table, computed in zip(subject(x_ME, one_M), anew(x_ME, one_M), strict=True):
            assert torch.equal(table, computed)


def test_the_ledger_counts_the_table_of_rotary_positions(on_a_device: None) -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    subject: Any = decoder(model, 1, "lean")
    folder: Any = SimpleNamespace(config=model.config.to_dict(), quantization=None)
    assert rotary_bytes(folder, "bfloat16", "cuda") == subject._rotary.num_bytes == 2 * CONTEXT * 8 * 2
    assert rotary_bytes(folder, "bfloat16", "cpu") == 0


def test_what_the_lean_path_does_not_know_takes_the_generic_one() -> None:
    def path(family: str, **overrides: Any) -> str:
        return model_path(tiny_model(family, **overrides).config.to_dict())

    assert {path(family) for family in LEAN_MODEL_TYPES} == {"lean"}
    assert path("gemma2") == "generic"
    assert path("llama", hidden_act="gelu") == "generic"
    assert path("llama", mlp_bias=True) == "generic"
    assert model_path({"model_type": "llama"}) == "lean", "what a config leaves out is the library's default"
    assert model_path({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}) == "generic"
