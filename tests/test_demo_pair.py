"""The bundled demo pair: its files, what its drafts know, and the scripts that made it and its prompts."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
PAIR = ROOT / "specbatch" / "assets" / "code-pair"
MODELS = ("target", "draft-taught", "draft-stranger")
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def run_script(script: str, *arguments: str | Path) -> str:
    """Run one of the demo pair's scripts as a user would; it must not reach for a model hub."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, str(EXAMPLES / "demo_pair" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def load_make_prompts() -> ModuleType:
    """Import `examples/make_prompts.py`, which is a script and not part of a package."""
    spec = importlib.util.spec_from_file_location("make_prompts", EXAMPLES / "make_prompts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_draft(file: Path) -> dict[str, float]:
    """Agreement at temperature 0 out of a figures file."""
    figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {line["draft"]: line["agreement"] for line in figures["agreement"] if line["temperature"] == 0}


def test_assets_are_small_and_hold_no_code() -> None:
    files = [path for path in PAIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 24e6
    assert {path.relative_to(PAIR).as_posix() for path in files} == {
        "MODEL_CARD.md",
        *(f"{model}/{name}" for model in MODELS for name in FILES),
    }


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_one_tokenizer_for_all(name: str) -> None:
    assert len({(PAIR / model / name).read_bytes() for model in MODELS}) == 1


@pytest.mark.parametrize("model", MODELS)
def test_weights_are_float16_and_fit_their_config(model: str) -> None:
    config = json.loads((PAIR / model / "config.json").read_text(encoding="utf-8"))
    with safe_open(PAIR / model / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"F16"}  # noqa: SIM118
        shape = weights.get_slice("model.embed_tokens.weight").get_shape()
    assert shape == [config["vocab_size"], config["hidden_size"]]
    assert config["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.slow
def test_taught_draft_knows_the_target_and_the_stranger_does_not(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    prompts = EXAMPLES / "prompts.parquet"
    options = ["--count", "16", "--tokens", "48", "--temperatures", "0", "--no-loss"]
    run_script("measure.py", PAIR, "--prompts", prompts, "--json", figures, *options)
    agreement = by_draft(figures)
    assert agreement["draft-stranger"] < 0.2
    assert agreement["draft-taught"] > 0.6


@pytest.mark.slow
@pytest.mark.timeout(600)  # half a minute on two idle cores, minutes on busy ones
@pytest.mark.long
def test_build_runs_all_stages_and_resumes(tmp_path: Path) -> None:
    pair = tmp_path / "pair"
    output = run_script("build_pair.py", "--out", pair, "--scale", "0.001", "--threads", "2")
    assert "skipped" not in output
    for model in MODELS:
        assert {path.name for path in (pair / model).iterdir()} == FILES
    assert len({(pair / model / "tokenizer.json").read_bytes() for model in MODELS}) == 1
    assert set(by_draft(pair / "measured.json")) == {"draft-taught", "draft-stranger"}

    before = (pair / "target" / "model.safetensors").stat().st_mtime_ns
    (pair / "draft-stranger").rename(pair / "draft-stranger.partial")  # as if the run had been cut off there
    output = run_script("build_pair.py", "--out", pair, "--scale", "0.001", "--threads", "2")
    assert output.count("skipped") == 3
    assert {path.name for path in pair.iterdir()} == {*MODELS, "tokenizer.json", "measured.json"}
    assert (pair / "target" / "model.safetensors").stat().st_mtime_ns == before


def test_prompts_are_what_the_script_writes() -> None:
    written = pq.ParquetFile(EXAMPLES / "prompts.parquet")
    assert written.read().equals(load_make_prompts().make_table())
    groups = [written.metadata.row_group(index).num_rows for index in range(written.num_row_groups)]
    assert len(groups) >= 4
    assert set(groups) == {64}


def test_prompts_are_many_and_all_different() -> None:
    table = pq.read_table(EXAMPLES / "prompts.parquet")
    assert table.column_names == ["id", "prompt", "category"]
    prompts = table.column("prompt").to_pylist()
    assert len(prompts) >= 256
    assert len(set(prompts)) == len(prompts) == len(set(table.column("id").to_pylist()))
    assert all(prompt and prompt == prompt.rstrip() for prompt in prompts)
