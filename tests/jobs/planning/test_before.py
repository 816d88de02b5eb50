"""``preview`` and ``calibrate`` on the bundled pair: a preview's rows are the job's, a profile is used by a job."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from specbatch.jobs.calibration import calibrate as calibrate_module
from specbatch.jobs.calibration.calibrate import Calibration, batch_sizes, calibrate, draft_lengths
from specbatch.jobs.calibration.policies import SweepPolicy
from specbatch.jobs.calibration.text import calibration_document, render_calibration
from specbatch.jobs.cli.before import register
from specbatch.jobs.planning.prepare import PreparedJob, prepare
from specbatch.jobs.planning.preview import preview, render_preview
from specbatch.jobs.planning.scan import scan
from specbatch.jobs.planning.text import render_plan
from specbatch.jobs.profiles.store import read_profile
from specbatch.jobs.spec.settings import flag_layer, resolve
from specbatch.schemas.errors import SpecbatchError

PROMPTS = [
    "def add(a, b):\n",
    None,
    "import os\n\nfor name in ",
    "class Point:\n    def __init__(self",
    "\x1b[2Jif x is None:\n",
    "   ",
    "try:\n    value = int(",
]
OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.7, "seed": 3, "row_errors_ok": True, "workers": 2}
"""Two workers: one thread each."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": PROMPTS, "other": range(len(PROMPTS))}), path)
    return path


def prepared_job(dataset: Path, **options: Any) -> PreparedJob:
    given = {"output": str(dataset.parent / "out"), **OPTIONS, **options}
    return prepare(resolve([flag_layer(given, [str(dataset)])]))


COMPARED = (
    "row_id",
    "sample_index",
    "row_seed",
    "status",
    "completion",
    "completion_token_ids",
    "finish_reason",
    "error_code",
    "error_message",
    "num_prompt_tokens",
    "num_completion_tokens",
)


@pytest.fixture
def short_temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray refuses long names of folders for temporary files, and pytest's are long."""
    folder = tempfile.mkdtemp(prefix="sb", dir="/tmp")
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_a_preview_shows_the_rows_that_the_job_gives(dataset: Path, short_temporary: None) -> None:
    from specbatch import load, submit

    submit(dataset, output=dataset.parent / "out", progress="quiet", num_samples=2, **{**OPTIONS, "workers": 1})
    rows = load(dataset.parent / "out").select(COMPARED).to_pylist()
    shown = preview(prepared_job(dataset, num_samples=2), len(PROMPTS))
    document = json.loads(render_preview(shown, "json"))
    assert [{name: row[name] for name in COMPARED} for row in document["rows"]] == rows


def test_a_preview_does_not_depend_on_how_many_rows_it_shows(dataset: Path) -> None:
    job = prepared_job(dataset)
    three, seven = preview(job, 3), preview(job, 7)

    def text(row: Any) -> tuple[Any, ...]:
        return row.prompt, row.result.completion, row.result.error_code, row.result.row_seed

    assert [text(row) for row in three.rows] == [text(row) for row in seven.rows[:3]]
    assert [row.result.error_code for row in seven.rows] == [
        None, "ROW_PROMPT_NULL", None, None, None, "ROW_PROMPT_EMPTY", None,
    ]  # fmt: skip
    assert len({row.result.row_seed for row in seven.rows}) == 7


def test_what_a_preview_prints_is_safe_and_whole(dataset: Path) -> None:
    found = preview(prepared_job(dataset), 99)
    assert len(found.rows) == len(PROMPTS)
    text = render_preview(found, "human")
    assert "\x1b" not in text
    assert "prompt of row 0" in text
    assert "    | def add(a, b):" in text
    assert "row 1: ROW_PROMPT_NULL: the prompt is null" in text
    assert "    | ?[2Jif x is None:" in render_preview(replace(found, rows=found.rows[4:5]), "human")
    totals = json.loads(render_preview(found, "json"))
    assert totals["completion_tokens"] == sum(row.result.num_completion_tokens for row in found.rows)
    assert 0 <= totals["acceptance_rate"] <= 1
    assert "other completions of the same law" in render_preview(found, "human", is_same_text=False)


def test_a_long_prompt_is_clipped_with_a_note(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.parquet"
    pq.write_table(pa.table({"prompt": ["x = 1\n" * 600]}), path)
    text = render_preview(preview(prepared_job(path, max_new_tokens=2), 1), "human")
    assert "(3,000 of 3,600 characters are shown)" in text


def test_a_dataset_without_rows_shows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.parquet"
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    job = prepared_job(path, allow_empty=True)
    assert preview(job, 5).rows == ()
    assert render_preview(preview(job, 5), "human") == "the dataset has no rows\n"
    plan = render_plan(job, "human", scan(job))
    assert "no shards: there is nothing to decode" in plan
    assert "prompts      none: the dataset has no rows" in plan
    assert json.loads(render_plan(job, "json", scan(job)))["scan"]["rows"] == 0


def calibrated(dataset: Path, **options: Any) -> tuple[PreparedJob, Calibration]:
    """Little of the time is for the table, which takes all that it may; the trial ends with its rows, however slow."""
    job = prepared_job(dataset, profile="none", **{"batch_size": 4, **options})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate_module, "_TABLE_SHARE", 0.03)
        return job, calibrate(job, num_rows=7, seconds=60.0)


def test_a_calibration_measures_saves_and_is_used_by_the_next_job(dataset: Path, cache: Path) -> None:
    job, found = calibrated(dataset, price_per_device_hour=3.0)
    profile = found.profile
    assert {step.batch_size for step in profile.steps} >= {1, 4}
    assert {step.draft_length for step in profile.steps} >= {0, 1, 2, 3}
    assert all(step.num_rounds >= 2 and step.seconds > 0 for step in profile.steps)
    first = profile.acceptance[0]
    assert first.reached > 50
    assert 0.3 < first.accepted / first.reached <= 1  # the bundled draft knows its target
    assert [record.reached for record in profile.acceptance] == sorted(
        (record.reached for record in profile.acceptance), reverse=True
    )
    assert profile.draft_bytes > 1_000_000
    assert len(profile.trial.lengths) == 5  # rows that can be decoded
    assert profile.trial.num_completion_tokens == sum(length for length, _ in profile.trial.lengths)
    assert found.expected.cost == pytest.approx(3 * found.expected.device_hours)
    assert found.expected.low < found.expected.wall_seconds < found.expected.high
    assert found.saved == (cache / "specbatch" / "profiles" / f"{profile.key}.json",)
    assert read_profile(found.saved[0]) == profile

    text = render_calibration(found, "human")
    assert "the draft agrees on" in text
    assert "worth its" in text
    document = json.loads(render_calibration(found, "json"))
    assert document == calibration_document(found)
    assert document["verdict"]["first_agreement"] == first.accepted / first.reached

    later = prepared_job(dataset)
    assert later.execution.profile is not None
    assert later.execution.profile.profile == profile
    assert later.execution_document()["profile"]["key"] == profile.key
    assert later.identity == job.identity
    plan = render_plan(later, "human")
    assert f"profile      {profile.key}" in plan
    assert "output tokens/s" in plan
    assert "workers on one CPU share its memory" in plan
    assert json.loads(render_plan(later, "json"))["forecast"]["wall_seconds"] > 0
    others = prepared_job(dataset, max_new_tokens=13)
    assert "other settings: max_new_tokens" in render_plan(others, "human")
    assert prepared_job(dataset, profile="none").execution.profile is None
    with pytest.raises(SpecbatchError, match=r"draft: .* there, none here"):
        prepared_job(dataset, profile=str(found.saved[0]), draft="none")


def test_without_a_draft_the_target_alone_is_measured(dataset: Path) -> None:
    _, found = calibrated(dataset, speculation="off", batch_size=1)
    assert {step.draft_length for step in found.profile.steps} == {0}
    assert found.profile.acceptance == ()
    assert found.profile.draft is None
    assert "no draft was measured" in render_calibration(found, "human")


def test_a_dataset_of_which_nothing_can_be_decoded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nulls.parquet"
    pq.write_table(pa.table({"prompt": pa.array([None, None], pa.string())}), path)
    with pytest.raises(SpecbatchError, match="specbatch plan shows"):
        calibrate(prepared_job(path), num_rows=2, seconds=1.0)


def test_what_is_measured_fits_and_holds_what_was_asked_for(dataset: Path) -> None:
    job = prepared_job(dataset)
    assert batch_sizes(job, 32)[:2] == (1, 4)
    assert max(batch_sizes(job, 32)) <= 32
    assert batch_sizes(prepared_job(dataset, batch_size=48), 32) == (1, 4, 8, 16, 32, 48)
    assert batch_sizes(prepared_job(dataset, batch_size=6), 32) == (1, 4, 6)
    assert draft_lengths("auto", has_draft=True) == (0, 1, 2, 3, 4, 6, 8)
    assert 12 in draft_lengths(12, has_draft=True)
    assert draft_lengths("auto", has_draft=False) == (0,)


def test_the_sweep_goes_through_every_k_about_as_often() -> None:
    import numpy as np

    from specbatch.specdec.policy.types import RoundMeasure, RoundView

    policy = SweepPolicy((0, 1, 4), batch_size=2)
    zeros_BK, room_B = np.zeros((2, 4), dtype=np.int64), np.full(2, 100)
    none_B = np.zeros(2, dtype=np.int64)
    for _ in range(120):
        plan = policy.plan(RoundView(room_B, room_B, none_B, zeros_BK, zeros_BK, none_B, none_B, num_waiting=0))
        drafts = int(plan.draft_length_B.sum())
        policy.observe(
            RoundMeasure(
                num_scored=2 + drafts,
                num_draft_steps=drafts // 2,
                propose_seconds=0.0,
                score_seconds=0.01,
                other_seconds=0.0,
                catch_up_seconds=0.0,
                num_catch_up_tokens=0,
                draft_length_B=plan.draft_length_B,
                matched_B=np.minimum(plan.draft_length_B, [0, 1]),
                is_model_B=plan.is_model_B,
                match_B=none_B,
            )
        )
    counts = {length: len(rounds) for length, rounds in policy.rounds.items()}
    assert sum(counts.values()) == 90  # the first round of every four is not counted
    assert all(27 <= count <= 33 for count in counts.values())
    first, second = policy.acceptance
    assert first.accepted * 2 == first.reached
    assert second.accepted == 0
    assert 32 <= second.reached <= 44


def run_command(*arguments: str) -> int:
    app = typer.Typer()
    register(app)
    return int(app(args=list(arguments), standalone_mode=False) or 0)


def test_the_commands_take_the_options_of_a_job(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--max-new-tokens", "4", "--output", str(tmp_path / "out"), "--format", "json"]
    assert run_command("preview", str(dataset), "-n", "1", *options) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 1
    saved = tmp_path / "saved.json"
    measured = ["--batch-size", "1", "--workers", "2", "--rows", "2", "--seconds", "0.5", "--save", str(saved)]
    assert run_command("calibrate", str(dataset), *options, *measured) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["key"] == read_profile(saved).key
    assert "measuring batch 1" in captured.err
    assert not (tmp_path / "out").exists()
