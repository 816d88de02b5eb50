"""``resume``: the job comes from its output alone, how it runs may change, what it is may not (bad input 43)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored_output import begin, finish, write_parts

import specbatch
from specbatch.jobs.cli import app as cli
from specbatch.jobs.output.ledger import JOB_KEY
from specbatch.jobs.spec.settings import OPTIONS, Layer
from specbatch.jobs.upkeep.resume import FREE_OPTIONS, free_layer, open_output, prepare_resume, resume_settings
from specbatch.schemas.errors import ErrorCode, SpecbatchError

NOTHING = Layer({}, {})
MODELS = Path(specbatch.__file__).parent / "assets" / "code-pair"


def refused(code: ErrorCode, uri: str, **options: Any) -> str:
    with pytest.raises(SpecbatchError) as caught:
        prepare_resume(uri, free_layer(options, {}))
    assert caught.value.code is code
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_job_is_prepared_again_from_its_output_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = begin(tmp_path, temperature=0.5, stop=["x, y"], shard_rows=3)
    monkeypatch.chdir("/")
    prepared = prepare_resume(output.uri, NOTHING)
    assert prepared.identity == output.stored.document.identity
    assert prepared.shards == output.stored.shards
    assert prepared.output == output.uri
    assert (prepared.spec.generation.temperature, prepared.spec.generation.stop) == (0.5, ("x, y",))


def test_relative_paths_are_stored_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(MODELS / "draft-taught", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    output = begin(Path(), target="model", draft="none")
    spec = json.loads(output.store.read(JOB_KEY))["spec"]
    assert spec["input"]["datasets"] == [str(tmp_path / "prompts.parquet")]
    assert (spec["models"]["target"], spec["models"]["draft"]) == (str(tmp_path / "model"), "none")
    monkeypatch.chdir("/")
    assert prepare_resume(output.uri, NOTHING).identity == output.stored.document.identity


def test_execution_may_change(tmp_path: Path) -> None:
    output = begin(tmp_path, workers=2)
    overrides = {
        "workers": 3,
        "batch_size": 5,
        "draft": "none",
        "speculation": "off",
        "max_error_rate": 0.5,
        "deadline": "2h",
        "memory_fraction": 0.5,
        "row_errors_ok": True,
    }
    prepared = prepare_resume(output.uri, free_layer(overrides, {}))
    execution = prepared.spec.execution
    assert (execution.workers, execution.batch_size, execution.speculation) == (3, 5, "off")
    assert (execution.max_error_rate, execution.deadline, execution.memory_fraction) == (0.5, "2h", 0.5)
    assert prepared.execution.draft is None
    assert prepared.identity == output.stored.document.identity


def test_what_is_not_given_stays_as_it_was_and_the_origin_says_so(tmp_path: Path) -> None:
    output = begin(tmp_path, workers=2, max_error_rate=0.25)
    environ = {"SPECBATCH_BATCH_SIZE": "7", "SPECBATCH_SEED": "5", "SPECBATCH_TARGET": "elsewhere"}
    settings = resume_settings(output.stored, free_layer({"workers": 3}, environ), output=output.uri)
    assert (settings.spec.execution.workers, settings.origins["execution.workers"]) == (3, "--workers")
    assert (settings.spec.execution.batch_size, settings.origins["execution.batch_size"]) == (7, "SPECBATCH_BATCH_SIZE")
    assert (settings.spec.execution.max_error_rate, settings.origins["execution.max_error_rate"]) == (0.25, JOB_KEY)
    assert settings.spec.generation.seed == output.stored.document.spec["generation"]["seed"]
    assert settings.spec.models.target == "code-pair/target"


def test_the_arithmetic_is_that_of_the_first_run_whatever_the_device(tmp_path: Path) -> None:
    output = begin(tmp_path)
    assert output.stored.document.spec["models"]["dtype"] == "auto"
    settings = resume_settings(output.stored, NOTHING, output=output.uri)
    assert settings.spec.models.dtype == "float32"


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - set(FREE_OPTIONS)))
def test_anything_else_cannot_be_changed(name: str) -> None:
    with pytest.raises(SpecbatchError, match="cannot be changed") as caught:
        free_layer({name: "1"}, {})
    assert caught.value.code is ErrorCode.JOB_CONFIG


def test_another_target_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    output = begin(tmp_path)
    message = refused(ErrorCode.JOB_SPEC_CHANGED, output.uri, target="code-pair/draft-taught", draft="none")
    assert "model.files.model.safetensors: " in message
    assert "use the target that it began with" in message
    assert "tokenizer" not in message, "both have the same one"


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    shutil.copytree(MODELS / "draft-taught", tmp_path / "model")
    output = begin(tmp_path, target=str(tmp_path / "model"), draft="none")
    path = tmp_path / "model/tokenizer.json"
    path.write_text(path.read_text() + "\n")
    assert "model.tokenizer: " in refused(ErrorCode.JOB_SPEC_CHANGED, output.uri)


def test_the_same_weights_elsewhere_are_the_same_job(tmp_path: Path) -> None:
    shutil.copytree(MODELS / "draft-taught", tmp_path / "model")
    output = begin(tmp_path, target=str(tmp_path / "model"), draft="none")
    (tmp_path / "model").rename(tmp_path / "moved")
    assert "no model at" in refused(ErrorCode.JOB_MODEL_MISSING, output.uri)
    prepared = prepare_resume(output.uri, free_layer({"target": str(tmp_path / "moved")}, {}))
    assert prepared.identity == output.stored.document.identity


def test_another_input_is_refused_by_name(tmp_path: Path) -> None:
    output = begin(tmp_path)
    pq.write_table(pa.table({"prompt": ["other"] * 20, "tag": list(range(20))}), tmp_path / "prompts.parquet")
    message = refused(ErrorCode.JOB_SPEC_CHANGED, output.uri)
    assert "input prompts.parquet: file 1 with 20 rows" in message
    assert "restore the dataset" in message


def test_draft_and_k_are_refused_where_the_text_depends_on_them(tmp_path: Path) -> None:
    output = begin(tmp_path, coupling="distribution", temperature=0.5, speculation=2)
    assert "speculation.K: 2 → 3" in refused(ErrorCode.JOB_SPEC_CHANGED, output.uri, speculation=3)


def test_a_place_without_a_job(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/x").touch()
    for name in ("empty", "foreign", "nowhere"):
        with pytest.raises(SpecbatchError) as caught:
            open_output(str(tmp_path / name))
        assert caught.value.code is ErrorCode.JOB_OUTPUT_MISSING


def test_a_spec_of_another_version_is_refused(tmp_path: Path) -> None:
    """Fault 48: a job that this version cannot understand is left alone."""
    output = begin(tmp_path)
    document = json.loads(output.store.read(JOB_KEY))
    document["spec"]["generation"]["mood"] = "cheerful"
    output.store.replace(JOB_KEY, json.dumps(document).encode())
    assert "generation.mood" in refused(ErrorCode.JOB_FORMAT, output.uri)


def test_a_complete_job_says_so_without_its_dataset_and_completes_its_seal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault 23: only ``_SUCCESS`` was missing."""
    output = begin(tmp_path)
    finish(output)
    (tmp_path / "prompts.parquet").unlink()
    (tmp_path / "out/_SUCCESS").unlink()
    assert cli.run(["resume", output.uri]) == 0
    captured = capsys.readouterr()
    assert "finished by an earlier run" in captured.err
    assert "specbatch report" in captured.out
    assert (tmp_path / "out/_SUCCESS").exists()


def test_a_complete_job_is_not_that_of_another_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = begin(tmp_path)
    finish(output)
    assert cli.run(["resume", output.uri, "--target", "code-pair/draft-taught", "--draft", "none"]) == 2
    assert "JOB_SPEC_CHANGED" in capsys.readouterr().err
    assert cli.run(["resume", output.uri, "--target", "code-pair/target", "--format", "quiet"]) == 0


def test_a_complete_job_with_error_rows_exits_as_the_job_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = begin(tmp_path)
    finish(output, {(3, 0): "ROW_MEMORY"})
    assert cli.run(["resume", output.uri, "--format", "quiet"]) == 3
    assert cli.run(["resume", output.uri, "--format", "quiet", "--row-errors-ok"]) == 0
    assert capsys.readouterr().out == f"{output.uri}\n" * 2


def test_the_command_refuses_what_is_not_execution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = begin(tmp_path)
    write_parts(output, shards={0})
    assert cli.run(["resume", output.uri, "--temperature", "1"]) == 2
    assert "--temperature" in capsys.readouterr().err
    assert cli.run(["resume", output.uri, "--workers", "none"]) == 2
    assert "execution.workers is 'none' (from --workers)" in capsys.readouterr().err
