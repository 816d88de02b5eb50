"""What is printed for programs, and what is stored, is as its JSON schema says, and every field is named there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from finished_output import build

from specbatch.jobs.cli import app as cli
from specbatch.jobs.cli.schema_documents import PUBLISHED, schemas

ROOT = Path(__file__).resolve().parents[3]
SCHEMAS = schemas()


def strict(schema: Any) -> Any:
    """A schema that also refuses fields that it does not name: those would be undocumented."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


def check(name: str, document: Any) -> None:
    """Hold a document against a schema, strictly."""
    errors = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        for error in jsonschema.Draft202012Validator(strict(SCHEMAS[name])).iter_errors(document)
    ]
    assert not errors, (name, errors)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The JSON document that a command prints."""
    assert cli.run([*arguments, "--format", "json"]) in (0, 1, 2, 7)
    return json.loads(capsys.readouterr().out)


def test_generated_documents_are_current() -> None:
    """``python infra/make_docs.py`` writes them again."""
    command = [sys.executable, str(ROOT / "infra" / "make_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}run: python infra/make_docs.py"


@pytest.mark.parametrize("name", PUBLISHED)
def test_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["title"]
    assert "\n" not in json.dumps(SCHEMAS[name].get("description", ""))
    if PUBLISHED[name].format is not None:
        assert SCHEMAS[name]["properties"]["format"]["const"] == PUBLISHED[name].format


def test_a_field_that_no_schema_names_is_found(tmp_path: Path) -> None:
    document = json.loads((build(tmp_path / "out").root / "manifest.json").read_text())
    check("manifest", document)
    document["commit"]["surprise"] = 1
    with pytest.raises(AssertionError, match="surprise"):
        check("manifest", document)


def test_documents_of_finished_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = build(tmp_path / "one"), build(tmp_path / "other", k=0, errors=frozenset(), num_samples=2)
    for output in (one, other):
        check("manifest", json.loads((output.root / "manifest.json").read_text()))
        check("status", printed(capsys, "status", str(output.root)))
        check("gc", printed(capsys, "gc", str(output.root)))
        check("verify", printed(capsys, "verify", str(output.root)))
        check("report", printed(capsys, "report", str(output.root)))
    check("report", printed(capsys, "report", str(one.root), str(other.root)))
    cut = build(one.root.parent / "cut", num_parts=2)
    check("report", printed(capsys, "report", str(one.root), str(cut.root)))
    check("list", printed(capsys, "list", str(tmp_path)))
    check("export", printed(capsys, "export", str(one.root), "--jsonl", str(tmp_path / "rows.jsonl")))


def test_documents_of_unfinished_and_damaged_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished, damaged = build(tmp_path / "unfinished", num_parts=2), build(tmp_path / "damaged")
    damaged.part_path(0).write_bytes(b"PAR1")
    for output in (unfinished, damaged):
        check("status", printed(capsys, "status", str(output.root)))
        check("verify", printed(capsys, "verify", str(output.root)))


def test_documents_of_jobs_that_are_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = str(ROOT / "examples" / "prompts.parquet")
    output = ["--output", str(tmp_path / "out")]
    check("plan", printed(capsys, "plan", dataset, *output))
    check("plan", printed(capsys, "submit", dataset, *output, "--dry-run", "--draft", "none", "--limit", "3"))
    check("settings", printed(capsys, "config", "show", "--seed", "3"))
    check("doctor", printed(capsys, "doctor", str(tmp_path)))
    check("job", printed(capsys, "config", "show", "--no-origin"))


@pytest.mark.slow
@pytest.mark.long
def test_documents_of_what_is_decoded_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset, saved = str(ROOT / "examples" / "prompts.parquet"), tmp_path / "profile.json"
    common = [dataset, "--output", str(tmp_path / "out"), "--max-new-tokens", "6"]
    check("preview", printed(capsys, "preview", *common, "-n", "2"))
    check("calibration", printed(capsys, "calibrate", *common, "--rows", "4", "--seconds", "1", "--save", str(saved)))
    check("profile", json.loads(saved.read_text()))
    check("plan", printed(capsys, "plan", *common))


@pytest.mark.ray
def test_documents_of_runs(tmp_path: Path) -> None:
    dataset, output = str(ROOT / "examples" / "prompts.parquet"), str(tmp_path / "out")
    command = [sys.executable, "-m", "specbatch", "submit", dataset, "--output", output, "--limit", "6"]
    done = subprocess.run(
        [*command, "--max-new-tokens", "8", "--shard-rows", "2", "--format", "jsonl"],
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] in ("note", "progress")
    assert [event["event"] for event in events[-2:]] == ["progress", "end"]
    for event in events:
        check("event", event)
    check("manifest", json.loads((tmp_path / "out" / "manifest.json").read_text()))
    again = subprocess.run(
        [*command, "--max-new-tokens", "8", "--format", "json"], capture_output=True, text=True, timeout=200, check=True
    )
    check("outcome", json.loads(again.stdout))
