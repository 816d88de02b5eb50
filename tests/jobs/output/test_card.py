"""The dataset card beside the data: readable by hubs, without prompts, and never the reason why a job fails."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from finished_output import build
from stored_output import begin, finish

from specbatch.jobs.cli import export as cli_export
from specbatch.jobs.output.card import CARD_NAME, CardOptions, ensure_card, render_card, write_card
from specbatch.jobs.output.manifest import decode_manifest
from specbatch.jobs.spec.settings import Layer
from specbatch.jobs.upkeep.amendments import prepare_retry
from specbatch.jobs.upkeep.gc import collect_garbage
from specbatch.jobs.upkeep.resume import StoredOutput, open_output
from specbatch.jobs.verify.verify import verify_output
from specbatch.schemas.canonical import sha256_hex
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import Manifest
from specbatch.schemas.rows import RESULT_COLUMNS

SECRET = "the quick brown fox is a secret"


def stored(
    tmp_path: Path, failed: dict[tuple[int, int], str] | None = None, **options: Any
) -> tuple[StoredOutput, Manifest]:
    output = begin(tmp_path, **options)
    return output, finish(output, failed)


def header(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    found = yaml.safe_load(card[4 : card.index("\n---\n", 4)])
    assert isinstance(found, dict)
    return found


def test_a_card_says_what_the_job_was(tmp_path: Path) -> None:
    out = build(tmp_path / "out", errors=frozenset({3, 4}))
    card = render_card(out.manifest, out.job)
    assert header(card) == {
        "license": "unknown",
        "task_categories": ["text-generation"],
        "size_categories": ["n<1K"],
        "tags": ["synthetic", "specbatch"],
        "configs": [{"config_name": "default", "data_files": "data/*.parquet"}],
    }
    assert "20 rows: 18 completions by code-pair/target, 2 errors" in card
    assert "| `ROW_PROMPT_NULL` | 2 |" in card
    assert "1.60 (95 % interval" in card
    assert out.manifest.observed.speedup.baseline in card
    assert f"| acceptance | {100 * (out.manifest.commit.acceptance.rate or 0):.1f} % |" in card
    for name in RESULT_COLUMNS:
        assert f"| `{name}` |" in card
    assert out.manifest.identity.S in card
    data = (out.root / "manifest.json").read_bytes()
    assert sha256_hex(data) in card
    assert "torch 2.13.0" in card


def test_it_is_pure(tmp_path: Path) -> None:
    out = build(tmp_path / "out")
    assert render_card(out.manifest, out.job) == render_card(out.manifest, out.job)


def test_no_prompt_is_in_it(tmp_path: Path) -> None:
    output, manifest = stored(tmp_path, template=f"{SECRET} {{{{ prompt }}}}")
    card = render_card(manifest, output.stored.document)
    assert SECRET not in card
    assert "a template (44 characters, SHA-256" in card
    assert "--template @template.txt" in card
    assert str(tmp_path) not in card, "where things lie is nobody's business"


def test_the_command_makes_the_same_job(tmp_path: Path) -> None:
    output, manifest = stored(
        tmp_path,
        num_samples=2,
        output_prefix="gen_",
        stop=["a b", "c"],
        logit_bias="5:1.5",
        rename=["tag=key"],
        partition=["night=2026-01-01"],
        speculation="off",
    )
    card = render_card(manifest, output.stored.document)
    command = re.search(r"```\n(.*?)```", card, re.DOTALL)
    assert command is not None
    words = command.group(1).replace("\\\n", " ").split()
    assert words[:3] == ["specbatch", "submit", "prompts.parquet"]
    text = " ".join(words)
    for part in (
        "--num-samples 2",
        "--output-prefix gen_",
        "--stop 'a b' --stop c",
        "--logit-bias 5:1.5",
        "--rename tag=key",
        "--partition night=2026-01-01",
        "--temperature 0.5",
    ):
        assert part in text
    assert "--speculation" not in text, "it does not change the text"
    assert "| `gen_completion` |" in card


def test_names_cannot_break_out_of_it(tmp_path: Path) -> None:
    out = build(tmp_path / "out")
    evil = "x`\n---\nlicense: mit\n| a | <script> [l](http://x) \x1b[2J"
    fields = {**out.job.identity.fields, "inputs": [[evil, 1, "a" * 64, 1]], "prompt": {"column": evil}}
    identity = out.job.identity.model_copy(update={"fields": fields})
    models = out.manifest.models.model_copy(
        update={"target": out.manifest.models.target.model_copy(update={"name": evil})}
    )
    manifest = out.manifest.model_copy(update={"identity": identity, "models": models})
    job = out.job.model_copy(update={"identity": identity})
    card = render_card(manifest, job, options=CardOptions(pretty_name=evil, license=evil, tags=(evil,)))
    assert header(card)["license"] == evil
    body = card[card.index("\n---\n", 4) + 5 :]
    assert "\x1b" not in card
    assert "<script>" not in body.replace("\\<script\\>", "")
    assert "\nlicense: mit" not in body


def test_beside_the_data_and_replaced(tmp_path: Path) -> None:
    output, manifest = stored(tmp_path)
    path = Path(output.uri, CARD_NAME)
    assert not path.exists(), "the ledger does not write it"
    assert write_card(output.store, manifest, output.stored.document)
    assert sha256_hex(Path(output.uri, "manifest.json").read_bytes()) in path.read_text()
    path.write_text("mine")
    assert ensure_card(output.store, manifest, output.stored.document)
    assert path.read_text() == "mine", "a card that is there may have been edited"
    path.unlink()
    assert ensure_card(output.store, manifest, output.stored.document)
    assert path.exists()


def test_it_is_foreign_to_nobody(tmp_path: Path) -> None:
    output, manifest = stored(tmp_path)
    write_card(output.store, manifest, output.stored.document)
    report = verify_output(output.uri)
    assert (report.state, report.problems) == ("sound", ())
    assert collect_garbage(output.uri).unknown == []
    assert Path(output.uri, CARD_NAME).exists()


def test_no_job_fails_for_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, manifest = stored(tmp_path)

    def full(self: object, key: str, data: bytes) -> None:
        raise SpecbatchError(ErrorCode.JOB_OUTPUT_UNWRITABLE, "no space")

    monkeypatch.setattr(type(output.store), "replace", full)
    assert not write_card(output.store, manifest, output.stored.document)
    assert not ensure_card(output.store, manifest, output.stored.document)


def amend(parent: StoredOutput) -> StoredOutput:
    found = prepare_retry(parent.uri, Layer({}, {}))
    assert found is not None
    child = open_output(found.prepared.output)
    finish(child)
    return child


def test_amendments_have_none_and_count_in_an_exported_one(tmp_path: Path) -> None:
    output, _ = stored(tmp_path, {(3, 0): "ROW_MEMORY"})
    child = amend(output)
    amended = decode_manifest(Path(child.uri, "manifest.json").read_bytes())
    assert not write_card(child.store, amended, child.stored.document)
    app = typer.Typer()
    cli_export.register(app)
    app.command("other")(lambda: None)
    place = tmp_path / "README.md"
    arguments = [
        "--license",
        "cc-by-4.0",
        "--pretty-name",
        "Night",
        "--language",
        "en",
        "--language",
        "de",
        "--tag",
        "q",
    ]
    app(args=["export", output.uri, "--card", str(place), *arguments], standalone_mode=False)
    card = place.read_text()
    assert header(card)["license"] == "cc-by-4.0"
    assert header(card)["language"] == ["en", "de"]
    assert header(card)["tags"] == ["synthetic", "specbatch", "q"]
    assert "# Night\n" in card
    assert "20 completions" in card
    assert "(1 amendment applied)" in card
    app(
        args=["export", output.uri, "--card", str(place), "--license-name", "my-own", "--overwrite"],
        standalone_mode=False,
    )
    assert header(place.read_text())["license"] == "other"


def test_a_spec_of_another_version_still_has_a_card(tmp_path: Path) -> None:
    out = build(tmp_path / "out")
    job = out.job.model_copy(update={"spec": json.loads('{"input": {"datasets": ["/x/y.parquet"], "novelty": 1}}')})
    card = render_card(out.manifest, job)
    assert "specbatch submit ..." in card
    assert "# Completions of y.parquet" in card
