"""Small parts of the engine: layouts, caches, the plain sample, the round log, inflation, the library face."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import decoder, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.messages import RoundBlock
from specbatch.specdec import Engine, SamplingParams, reference
from specbatch.specdec.forward.feed import GROUP_WIDTH, Layout
from specbatch.specdec.forward.lean_memory import LeanMemory
from specbatch.specdec.inflate import (
    Shape,
    check_growth,
    fill_weight,
    inflate,
    inflated_config,
    load_state,
    main,
    shape_of,
)
from specbatch.specdec.models import folders
from specbatch.specdec.rounds.log import ROUNDS_PER_BLOCK, RoundLog, is_plain_sample
from specbatch.specdec.rounds.prefill import CHUNK_TOKENS


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40)), min_size=1, max_size=12), st.data())
def test_a_layout_holds_every_token_once_at_its_place(shapes: list[tuple[int, int]], data: st.DataObject) -> None:
    """Slots with gaps, segments short, long and empty: what attention gathers and scatters must be the flat tokens."""
    gaps = data.draw(st.lists(st.integers(1, 2), min_size=len(shapes), max_size=len(shapes)))
    slot = np.cumsum(gaps) - 1
    start, count = (np.array(column) for column in zip(*shapes, strict=True))
    if not count.any():
        return
    layout = Layout(slot, start, count)
    tokens = [(int(s), int(b) + j) for s, b, c in zip(slot, start, count, strict=True) for j in range(c)]
    assert list(zip(layout.slot_M.tolist(), layout.position_M.tolist(), strict=True)) == tokens
    feed = layout.feed(torch.arange(len(tokens)))
    seen = []
    for group in feed.padded.groups:
        assert group.end > group.begin == len(seen)
        assert group.width <= GROUP_WIDTH or group.num_rows == 1
        padded = feed.token_M[group.begin : group.end][group.gather_BT].flatten()[group.scatter_G].tolist()
        positions = group.position_BT.flatten()[group.scatter_G].tolist()
        slots = (group.scatter_G // group.width + group.first_slot).tolist()
        assert list(zip(slots, positions, strict=True)) == [tokens[token] for token in padded]
        assert group.num_keys == max(positions) + 1
        assert group.is_dense == (group.num_rows * group.width == len(padded))
        seen += padded
    assert seen == list(range(len(tokens)))


@pytest.mark.parametrize("path", ["generic", "lean"])
def test_caches_keep_what_fits_when_they_change_shape(path: str) -> None:
    layout = Layout(np.arange(3), np.zeros(3, dtype=np.int64), np.array([4, 9, 2]))
    decoder_of = decoder(tiny_model(), 3, path)
    decoder_of.run(layout.feed(torch.arange(15)), None)
    subject = decoder_of.cache
    before, num_bytes = held(subject, 1, 9), subject.num_bytes
    subject.resize(5, 20)
    assert subject.num_bytes == num_bytes // (3 * 16) * (5 * 20)
    assert all(torch.equal(a, b) for a, b in zip(held(subject, 1, 9), before, strict=True))
    subject.copy(1, 4, 9)
    assert all(torch.equal(a, b) for a, b in zip(held(subject, 4, 9), before, strict=True))
    subject.clear(1)
    assert not any(memory.any() for memory in held(subject, 1, 20))
    subject.resize(2, 8)
    assert held(subject, 1, 20)[0].shape[0] == 8


def held(cache: Any, slot: int, num_positions: int) -> list[torch.Tensor]:
    """Copies of what a cache of either path holds of a slot."""
    if isinstance(cache, LeanMemory):
        memories = [*cache.keys, *cache.values]
    else:
        memories = [memory for layer in cache.layers for memory in (layer.keys, layer.values)]
    return [memory[slot, :num_positions].clone() for memory in memories]


def test_plain_rounds_are_about_two_percent_and_never_bunched() -> None:
    drawn = [number for number in range(100_000) if is_plain_sample(number)]
    assert 1_800 < len(drawn) < 2_200
    gaps = [b - a for a, b in itertools.pairwise(drawn)]
    assert max(gaps) < 800


def test_round_log_loses_nothing() -> None:
    log = RoundLog()
    lengths, accepted = np.array([0, 4, 4, 2]), np.array([0, 4, 1, 0])
    for number in range(3 * ROUNDS_PER_BLOCK + 5):
        log.add(
            is_plain=number % 7 == 0,
            is_mixed=number % 5 == 0,
            seconds=0.5,
            num_tokens=number,
            draft_length_B=lengths,
            num_accepted_B=accepted,
        )
    first, *others = log.take()
    assert len(others) == 2
    assert first.draft_length_histogram == (ROUNDS_PER_BLOCK, 0, ROUNDS_PER_BLOCK, 0, 2 * ROUNDS_PER_BLOCK)
    assert first.num_accepted_draft_tokens == 5 * ROUNDS_PER_BLOCK
    log.flush()
    (rest,) = log.take()
    assert rest.num_plain_rounds + rest.num_spec_rounds + rest.num_mixed_rounds == 5
    assert (rest.draft_length_histogram, rest.num_accepted_draft_tokens) == ((5, 0, 5, 0, 10), 25)
    assert rest.mixed_seconds == 0.5 * rest.num_mixed_rounds > 0
    log.flush()
    assert log.take() == ()
    assert rest != RoundBlock()


def test_inflation_keeps_the_function(tmp_path: Path) -> None:
    shape = inflate("code-pair/target", tmp_path / "big", 20_000_000)
    assert 15e6 < shape.parameters < 25e6
    big = folders.locate_model(str(tmp_path / "big"))
    assert big.parameters == shape.parameters
    small_folder = folders.locate_model("code-pair/target")
    folders.check_pair(big, small_folder)
    small_model, big_model = (
        AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32).eval() for folder in (small_folder, big)
    )
    ids = torch.randint(3, 4096, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(small_model(ids).logits, big_model(ids).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("source", "goal"),
    [
        ("code-pair/target", Shape(512, 1024, 7, heads=16, kv_heads=4, head_dim=128, vocab=4096)),
        ("code-pair/draft-taught", Shape(256, 512, 3, heads=16, kv_heads=8, head_dim=64, vocab=4096)),
    ],
)
def test_wider_heads_and_larger_groups_keep_the_function(source: str, goal: Shape) -> None:
    folder = folders.locate_model(source)
    base = shape_of(folder.config)
    check_growth(folder.config, base, goal)
    assert goal.group > base.group
    assert goal.head_dim == 2 * base.head_dim
    small = AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32).eval()
    config = AutoConfig.for_model(**inflated_config(folder.config, base, goal))
    big = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    state, generator = load_state(folder.path), torch.Generator().manual_seed(1)
    for name, weight in big.named_parameters():
        fill_weight(name, weight, state, base, goal, generator)
    assert sum(weight.numel() for weight in big.parameters()) == goal.parameters
    ids = torch.randint(3, 4096, (2, 200), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = big(ids).logits, small(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 128}, "hidden must not shrink"),
        ({"heads": 8, "kv_heads": 8}, "group must not shrink"),
        ({"head_dim": 96}, "cannot be widened to 96"),
        ({"vocab": 5000}, "vocab must not change"),
    ],
)
def test_inflation_to_a_shape_that_loses_the_function_is_refused(changes: dict[str, int], message: str) -> None:
    config = folders.locate_model("code-pair/target").config
    base = shape_of(config)
    with pytest.raises(SpecbatchError, match=message):
        check_growth(config, base, replace(base, **changes))


def test_heads_with_scaled_rotary_positions_are_not_widened() -> None:
    config = folders.locate_model("code-pair/target").config
    base = shape_of(config)
    scaled = config | {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}
    check_growth(scaled, base, replace(base, layers=9))
    with pytest.raises(SpecbatchError, match="type 'default'"):
        check_growth(scaled, base, replace(base, head_dim=128))


def test_inflation_takes_the_tokenizer_along_and_no_list_of_old_weights(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(folders.locate_model("code-pair/target").path, source)
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (source / "special_tokens_map.json").write_text("{}")
    (source / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "model-1-of-2"}}')
    inflate(str(source), out, 6_000_000)
    kept = {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"}
    assert {path.name for path in out.iterdir()} == {
        *kept,
        "special_tokens_map.json",
        "config.json",
        "model.safetensors",
    }
    assert all((out / name).read_bytes() == (source / name).read_bytes() for name in kept)


def test_inflation_to_fewer_heads_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Heads that are wider together than the model: common proportions would have fewer of them."""
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(folders.locate_model("code-pair/target").path, source)
    config = json.loads((source / "config.json").read_text())
    for heads, kv_heads, parameters in ((16, 8, 20_000_000), (64, 8, 5_000_000)):
        config |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
        (source / "config.json").write_text(json.dumps(config))
        with pytest.raises(SpecbatchError, match=r"JOB_MODEL_UNSUPPORTED.*kv_heads must not shrink"):
            inflate(str(source), out, parameters)
    assert not out.exists()


def test_inflation_refuses_what_it_cannot_grow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SpecbatchError, match="JOB_MODEL_UNSUPPORTED"):
        shape_of({"model_type": "gpt2"})
    assert main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "JOB_MODEL_MISSING" in capsys.readouterr().err


def test_the_bundled_pair_says_the_same_with_and_without_its_draft() -> None:
    prompts: list[str | list[int]] = ["def add(a, b):\n", "import os\nimport ", [17, 4, 99], "class Queue:\n    def "]
    params = SamplingParams(max_new_tokens=40, temperature=0.7, top_p=0.95, seed=3)
    plain = Engine.from_pretrained("code-pair/target", speculation="off").generate(prompts, params)
    subject = Engine.from_pretrained("code-pair/target", "code-pair/draft-taught", max_batch_size=3, speculation=4)
    spec = subject.generate(prompts, params)
    assert [output.token_ids for output in spec] == [output.token_ids for output in plain]
    assert [output.text for output in spec] == [output.text for output in plain]
    accepted = sum(output.stats.num_accepted_draft_tokens for output in spec)
    assert accepted / sum(output.stats.num_draft_tokens for output in spec) > 0.2
    memory = subject.memory()
    assert memory.target_bytes > 3 * memory.draft_bytes > 0
    assert memory.draft_kv_bytes > 0
    assert memory.process_bytes > memory.target_bytes


def test_prompts_that_cannot_be_decoded_are_refused_before_anything_runs() -> None:
    subject = Engine.from_pretrained("code-pair/target", speculation="off", max_sequence_tokens=64)
    with pytest.raises(SpecbatchError, match="ROW_TOO_LONG: the prompt has 64 tokens; a context of 64"):
        subject.submit("key", [5] * 64, SamplingParams())
    with pytest.raises(SpecbatchError, match="ROW_PROMPT_EMPTY"):
        subject.submit("key", [], SamplingParams())
    with pytest.raises(SpecbatchError, match="JOB_CONFIG: prompt ids"):
        subject.submit("key", [4096], SamplingParams())
    with pytest.raises(SpecbatchError, match="JOB_CONFIG: 1 SamplingParams for 2 prompts"):
        subject.generate([[5], [6]], [SamplingParams()])
    (clamped,) = subject.generate([[5] * 60], SamplingParams(max_new_tokens=50, ignore_eos=True))
    assert len(clamped.token_ids) == 4
    assert clamped.finish_reason == "length"


def test_a_prompt_longer_than_a_chunk_equals_the_twin() -> None:
    """Prefill in three chunks for target and draft, beside a short row, against whole prefixes without a cache."""
    subject = Engine.from_pretrained("code-pair/target", "code-pair/draft-taught", max_batch_size=2, speculation=3)
    long = subject.tokenizer.encode("def f(x):\n    return x + 1\n\n" * 130)
    assert 2 * CHUNK_TOKENS < len(long) < 2000
    params = SamplingParams(max_new_tokens=12, temperature=0.8, seed=4, ignore_eos=True)
    outputs = subject.generate([long, "import os"], [params, params])
    model = AutoModelForCausalLM.from_pretrained(folders.locate_model("code-pair/target").path, dtype=torch.float32)
    for output, prompt_ids in zip(outputs, (long, subject.tokenizer.encode("import os")), strict=True):
        twin = reference.generate(
            model, prompt_ids, params, vocab_size=subject.tokenizer.vocab_size, context_length=subject.context_length
        )
        assert output.token_ids == twin.token_ids
    assert outputs[0].stats.num_accepted_draft_tokens > 0
