"""Nights that ended without a manifest: the first line says what happened, why and how far it came, in every form."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from finished_output import Output, build, make_run

from specbatch.jobs.cli import app as cli
from specbatch.jobs.output.ledger import Ledger
from specbatch.jobs.reports.reading import load_night
from specbatch.jobs.reports.report import render
from specbatch.jobs.reports.unfinished import Unfinished
from specbatch.jobs.running.run_log import Fact, RunLog
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.log_lines import LogSettings
from specbatch.schemas.run import ProgressDocument, RunRecord
from specbatch.schemas.stats import PartStats
from specbatch.storage.store import open_store

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
BUDGET = "429 of 1000 finished rows are errors, above --max-error-rate 0.05; the parts are kept: run again"


def cut(tmp_path: Path, *, num_parts: int = 3, facts: Sequence[Fact] = (), **changes: Any) -> Output:
    """Three of four parts, and one run that ended as ``changes`` say; its log holds ``facts``."""
    output = build(tmp_path / "out put", num_parts=num_parts)
    ledger = Ledger(open_store(str(output.root)))
    stats = sum((part.stats for part in output.parts), PartStats())
    ledger.write_run(make_run(1, stats, k=4, tokens_per_second=20.0, **changes))
    log = RunLog(lambda: "2026-11-23T10:00:09.000+00:00")
    log.begin("job", 1, LogSettings())
    for fact in facts:
        log.add(fact)
    log.flush(lambda name, text: ledger.write_log(1, name, text))
    return output


def progress(output: Output, **changes: Any) -> None:
    document = {
        "format": "specbatch/progress/1", "epoch": 1, "host": socket.gethostname(), "pid": os.getpid(),
        "updated_at": "2026-11-23T11:59:58+00:00", "state": "running", "num_rows": 20, "num_parts": 4, "parts_done": 3,
        "rows_in_parts": 18, "rows_done": 19, "job_rows_done": 19, "num_errors": 1, "completion_tokens": 1,
        "tokens_per_second": 1.0, "acceptance_rate": None, "mean_emitted": None, "eta_seconds": 7.0, "workers": [],
    }  # fmt: skip
    path = output.root / "_specbatch/progress.json"
    path.write_text(ProgressDocument.model_validate({**document, **changes}).model_dump_json())


def ending(output: Output) -> Unfinished:
    _, unfinished = load_night(str(output.root), NOW)
    assert unfinished is not None
    return unfinished


def first_lines(output: Output) -> str:
    """What the first paragraph of the terminal report says, as one line."""
    manifest, unfinished = load_night(str(output.root), NOW)
    text = render([(str(output.root), manifest)], "human", endings=[unfinished])
    return " ".join(text.split("\n\n")[0].split())


def failed(code: ErrorCode, words: str) -> Fact:
    return Fact("error", "job_failed", f"{code.value}: {words}", code=code.value)


def test_a_night_over_its_error_budget(tmp_path: Path) -> None:
    output = cut(tmp_path, outcome="failed", facts=[failed(ErrorCode.JOB_ERROR_RATE, BUDGET)])
    assert first_lines(output) == (
        "NOT COMPLETE (exit 4): 429 of 1000 finished rows are errors, above --max-error-rate 0.05, 1 of them "
        "ROW_PROMPT_NULL. 18 of 20 rows are done (90.0 %). "
        f"Next: specbatch resume '{output.root}' --max-error-rate 1"
    )
    found = ending(output)
    assert (found.standing, found.code, found.exit_codes) == ("failed", ErrorCode.JOB_ERROR_RATE, (4,))
    assert found.error_rows == {"ROW_PROMPT_NULL": (3,)}
    assert [line.level for line in found.log] == ["error"]


ENDINGS = {
    "deadline": ({"outcome": "deadline"}, (), "(exit 5): the deadline came in run 1.", "--deadline 10m"),
    "interrupted": ({"outcome": "interrupted"}, (), "(exit 130 or 143): a signal stopped run 1.", "put'"),
    "cancelled": ({"outcome": "cancelled"}, (), "(exit 143): run 1 was asked to stop.", "put'"),
    "cluster lost": (
        {"outcome": "failed"},
        [failed(ErrorCode.JOB_CLUSTER_LOST, "workers keep dying, the last one with: out of memory; finished parts …")],
        "(exit 8): workers keep dying, the last one with: out of memory.",
        "put'",
    ),
    "crash": (
        {"outcome": "failed"},
        [Fact("error", "crash", "an error of specbatch itself: KeyError")],
        "(exit 1): an error of specbatch itself: KeyError.",
        "put'",
    ),
    "not sound": (
        {"outcome": "failed"},
        [failed(ErrorCode.JOB_INTEGRITY, "a part is not the one that was planned; see verify")],
        "(exit 7): a part is not the one that was planned.",
        "Next: specbatch verify",
    ),
    "killed": (
        {"outcome": "running", "host": "elsewhere"},
        (),
        "NOT COMPLETE: run 1 ended without a word, last seen 2026-11-23T10:",
        "put'",
    ),
    "the store was lost": (
        {"outcome": "running", "host": "elsewhere"},
        [failed(ErrorCode.JOB_STORE_LOST, "s3://b/out does not answer; run again")],
        "(exit 8): s3://b/out does not answer.",
        "put'",
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_every_ending_has_its_cause_in_the_first_line(tmp_path: Path, name: str) -> None:
    changes, facts, words, last = ENDINGS[name]
    line = first_lines(cut(tmp_path, facts=facts, **changes))
    assert words in line
    assert "18 of 20 rows are done (90.0 %)" in line
    assert last in line.split(" rows are done ")[1]


def test_a_running_job_is_told_as_one(tmp_path: Path) -> None:
    output = cut(tmp_path, outcome="running")
    progress(output)
    line = first_lines(output)
    assert line.startswith("Not complete yet: run 1 is at work (process 4300 on node-1). 18 of 20 rows are done")
    assert ", about 7.00 s to go. Next: specbatch status" in line
    progress(output, updated_at="2026-11-23T11:50:00+00:00")
    assert first_lines(output).startswith("NOT COMPLETE: run 1 ended without a word, last seen 2026-11-23T11:50:00Z.")


def test_a_run_that_has_only_begun_is_running(tmp_path: Path) -> None:
    output = build(tmp_path / "out", num_parts=0)
    assert ending(output).standing == "never begun"
    record = make_run(1, PartStats(), k=4, outcome="running", workers=[], host="elsewhere")
    Ledger(open_store(str(output.root))).write_run(record)
    for started_at, standing in (("2026-11-23T11:59:00+00:00", "running"), ("2026-11-23T10:00:00+00:00", "lost")):
        changed = record.model_copy(update={"started_at": started_at})
        Ledger(open_store(str(output.root))).write_run(changed)
        assert ending(output).standing == standing


def test_all_parts_without_a_manifest_need_only_the_manifest(tmp_path: Path) -> None:
    output = cut(tmp_path, num_parts=4, outcome="complete")
    assert "run 1 decoded every row and ended before it wrote the manifest. 20 of 20 rows" in first_lines(output)
    assert ending(output).remaining_seconds is None


def test_what_is_left_is_told_by_the_pace_so_far(tmp_path: Path) -> None:
    """18 rows of t seconds and a start of 4 s: two rows more take 4 + 2 t / 18."""
    output = cut(tmp_path, outcome="interrupted")
    record = RunRecord.model_validate_json((output.root / "_specbatch/runs/1.json").read_text())
    expected = 4.0 + 2 * record.wall_seconds / 18
    assert ending(output).remaining_seconds == pytest.approx(expected, rel=1e-3)
    assert ending(output).num_rows_left == 2


def test_without_a_pace_the_forecast_tells_and_without_one_nothing(tmp_path: Path) -> None:
    output = build(tmp_path / "out", num_parts=3)
    ledger = Ledger(open_store(str(output.root)))
    record = make_run(1, PartStats(), k=4, outcome="deadline", workers=[])
    ledger.write_run(record)
    assert ending(output).remaining_seconds is None
    ledger.write_run(record.model_copy(update={"forecast": {"wall_seconds": 50.0}}))
    assert ending(output).remaining_seconds == pytest.approx(5.0)


def test_errors_of_rows_whose_part_was_never_written_count(tmp_path: Path) -> None:
    output = cut(tmp_path, outcome="failed")
    progress(output, state="failed", errors_by_code={"ROW_PROMPT_NULL": 1, "ROW_TOO_LONG": 1}, num_errors=2)
    found = ending(output)
    assert found.errors_by_code == {"ROW_PROMPT_NULL": 1, "ROW_TOO_LONG": 1}
    assert (found.num_judged, found.rows_in_flight) == (19, 1)
    manifest, _ = load_night(str(output.root), NOW)
    text = render([("out", manifest)], "human", endings=[found])
    assert "5.3 % of the results (row 3): the prompt is null" in " ".join(text.split())


def test_deaths_and_pace_are_in_every_form(tmp_path: Path) -> None:
    events = [[2.0, "worker 0 died: out of memory"], [3.0, "worker 1 died: out of memory"]]
    output = cut(tmp_path, outcome="failed", crashes=2, restarts=1, events=events)
    manifest, found = load_night(str(output.root), NOW)
    nights = [(str(output.root), manifest)]
    for format in ("human", "markdown", "html"):
        text = " ".join(render(nights, format, endings=[found]).split())
        assert "2 x out of memory" in text
        assert "worker 0 died: out of memory" in text
        assert "specbatch resume" in text[text.find("<main>") + 1 :][:1500]
        assert "manifest alone" not in text
    assert "\nPace\n    until" in render(nights, "human", endings=[found])
    row = next(csv.DictReader(io.StringIO(render(nights, "csv", endings=[found]))))
    assert (row["standing"], row["rows_left"], row["planned_rows"], row["deaths"]) == ("failed", "2", "20", "2")


def test_the_command_prints_it_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = cut(tmp_path, outcome="deadline")
    whole = build(tmp_path / "whole")
    assert cli.run(["report", str(whole.root)]) == 0
    assert cli.run(["report", str(output.root)]) == 1
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "NOT COMPLETE (exit 5)" in shown.out
    assert cli.run(["report", str(output.root), "--format", "json"]) == 1
    document = json.loads(capsys.readouterr().out)["outputs"][0]
    assert document["unfinished"]["num_rows_left"] == 2
    assert document["paths"]["manifest"] is None
    assert not (output.root / "manifest.json").exists()
    assert cli.run(["report", str(tmp_path / "nowhere")]) == 2
    assert "JOB_OUTPUT_MISSING" in capsys.readouterr().err
    assert cli.run(["report", str(tmp_path)]) == 2
    assert f"or look below it with: specbatch list {tmp_path}" in capsys.readouterr().err


def test_a_comparison_names_the_night_that_is_not_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = cut(tmp_path, outcome="deadline")
    whole = build(tmp_path / "whole")
    assert cli.run(["report", str(whole.root), str(output.root)]) == 1
    text = capsys.readouterr().out
    assert text.startswith("Not complete: [2] out put (exit 5): the deadline came in run 1; 18 of 20 rows")
    assert cli.run(["report", str(whole.root), str(output.root), "--format", "html"]) == 1
    assert "1 night not complete." in capsys.readouterr().out


def test_a_damaged_part_is_refused_in_one_line(tmp_path: Path) -> None:
    output = cut(tmp_path, outcome="failed")
    path = next((output.root / "data").iterdir())
    path.unlink()
    path.write_bytes(b"PAR1")
    with pytest.raises(SpecbatchError) as caught:
        load_night(str(output.root))
    assert caught.value.code is ErrorCode.JOB_INTEGRITY
