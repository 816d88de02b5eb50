"""``status`` tells the state of a job from its files alone, and a damaged file never hides the parts that exist."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from finished_output import Output, build
from progress_documents import NOW, write_progress

from specbatch.jobs.watching.status import FRESH_SECONDS, read_status, render_status
from specbatch.schemas.errors import ErrorCode, SpecbatchError


@pytest.fixture
def unfinished(tmp_path: Path) -> Output:
    return build(tmp_path / "out", num_parts=2)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


def test_complete(tmp_path: Path) -> None:
    out = build(tmp_path / "out")
    report = read_status(str(out.root), NOW)
    assert (report.state, report.detail) == ("complete", "the manifest is written")
    assert (report.num_rows, report.rows_done, report.num_parts, report.parts_done) == (20, 20, 4, 4)
    assert report.num_errors == 1
    assert report.next_step == f"specbatch report {out.root}"


def test_complete_without_success_says_how_to_add_it(tmp_path: Path) -> None:
    out = build(tmp_path / "out")
    (out.root / "_SUCCESS").unlink()
    report = read_status(str(out.root), NOW)
    assert report.state == "complete"
    assert report.detail.endswith(f"_SUCCESS is not; to add it: specbatch resume {out.root}")


def test_running_shows_progress_of_the_run(unfinished: Output) -> None:
    write_progress(unfinished)
    report = read_status(str(unfinished.root), NOW)
    assert report.state == "running"
    assert (report.rows_done, report.parts_done, report.num_parts) == (14, 2, 4)
    text = render_status(report, "human")
    assert "run 3" in text
    assert "14 of 20 rows (2 of 4 parts), 1 error" in text
    assert "245 tokens/s, acceptance 0.71, 2.85 tokens per row and round, 2 workers, eta 0:31" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pid": "dead"}, "is gone"),
        ({"updated_at": (NOW - timedelta(seconds=FRESH_SECONDS + 1)).isoformat()}, "is taken for gone"),
        ({"host": "elsewhere", "updated_at": "2026-11-23T09:00:00+00:00"}, "is taken for gone"),
        ({"state": "interrupted"}, "ended: interrupted"),
        ({"state": "failed"}, "ended: failed"),
        ({"state": "complete", "pid": "dead"}, "decoded the last row; it is gone"),
        ({"updated_at": "yesterday"}, "cannot be read"),
        ({"pid": -1}, "is gone"),
    ],
)
def test_interrupted_says_what_it_rests_on(unfinished: Output, changes: dict[str, Any], words: str) -> None:
    if changes.get("pid") == "dead":
        changes = {**changes, "pid": dead_pid()}
    write_progress(unfinished, **changes)
    report = read_status(str(unfinished.root), NOW)
    assert report.state == "interrupted"
    assert words in report.detail
    assert (report.rows_done, report.parts_done, report.eta_seconds) == (12, 2, None)


def test_a_run_on_another_host_is_judged_by_its_age_alone(unfinished: Output) -> None:
    write_progress(unfinished, host="elsewhere", pid=dead_pid())
    assert read_status(str(unfinished.root), NOW).state == "running"


def test_a_killed_process_that_nobody_has_buried_is_gone(unfinished: Output) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        write_progress(unfinished, pid=process.pid)
        assert read_status(str(unfinished.root), NOW).state == "running"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert "is gone" in read_status(str(unfinished.root), NOW).detail
    finally:
        process.communicate()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b'{"eta_seconds": 1e999}', None])
def test_damaged_progress_does_not_hide_the_parts(unfinished: Output, damage: bytes | None) -> None:
    if damage is not None:
        (unfinished.root / "_specbatch/progress.json").write_bytes(damage)
    report = read_status(str(unfinished.root), NOW)
    assert report.state == "interrupted"
    assert (report.num_rows, report.rows_done, report.num_parts, report.parts_done) == (20, 12, 4, 2)


def test_a_damaged_plan_leaves_what_the_progress_knows(unfinished: Output) -> None:
    unfinished.plan_path.write_bytes(b"PAR1")
    write_progress(unfinished, state="failed")
    report = read_status(str(unfinished.root), NOW)
    assert (report.num_rows, report.num_parts) == (20, 4)


def test_the_next_command_goes_on_with_the_job(tmp_path: Path) -> None:
    out = build(tmp_path / "my out", num_parts=2)
    next_step = read_status(str(out.root), NOW).next_step
    assert shlex.split(next_step)[:3] == ["specbatch", "resume", str(out.root)]
    assert "report" not in next_step  # nothing has begun that could have ended
    write_progress(out, state="failed")
    said = read_status(str(out.root), NOW).next_step
    assert said.endswith(f"; specbatch report {shlex.quote(str(out.root))} says why it ended")


@pytest.mark.parametrize("state", ["cancelled", "deadline"])
def test_a_run_that_was_stopped_is_not_running(unfinished: Output, state: str) -> None:
    write_progress(unfinished, state=state)
    report = read_status(str(unfinished.root), NOW)
    assert report.state == "interrupted"
    assert f"ended: {state}" in report.detail


def test_a_foreign_folder_is_not_a_job_and_an_empty_one_is_missing(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/x.txt").touch()
    (tmp_path / "empty").mkdir()
    assert read_status(str(tmp_path / "foreign"), NOW).state == "not a job"
    for name in ("empty", "nowhere"):
        with pytest.raises(SpecbatchError) as caught:
            read_status(str(tmp_path / name), NOW)
        assert caught.value.code is ErrorCode.JOB_OUTPUT_MISSING


@pytest.mark.parametrize("data", [b"", b"[]", b'{"format": "specbatch/job/2"}', b'{"format": "specbatch/job/1"}'])
def test_a_job_of_another_version_is_refused(unfinished: Output, data: bytes) -> None:
    (unfinished.root / "_specbatch/job.json").write_bytes(data)
    with pytest.raises(SpecbatchError) as caught:
        read_status(str(unfinished.root), NOW)
    assert caught.value.code is ErrorCode.JOB_FORMAT
    assert "\n" not in caught.value.message


def test_json_form_is_stable_and_free_of_escapes(unfinished: Output) -> None:
    write_progress(unfinished, state="failed", host="evil\x1b[2J")
    text = render_status(read_status(str(unfinished.root), NOW), "json")
    assert "\x1b" not in text
    assert "\x1b" not in render_status(read_status(str(unfinished.root), NOW), "human")
    assert list(json.loads(text)) == [
        "format",
        "output",
        "state",
        "detail",
        "next_step",
        "job_id",
        "num_rows",
        "rows_done",
        "num_parts",
        "parts_done",
        "num_errors",
        "tokens_per_second",
        "acceptance_rate",
        "mean_emitted",
        "eta_seconds",
        "num_workers",
        "tokens_per_second_overall",
        "mean_accepted",
        "k_shares",
        "errors_by_code",
        "remaining_tokens",
        "elapsed_seconds",
        "epoch",
        "run_state",
        "silence_seconds",
        "workers",
        "notes",
    ]
    (line,) = render_status(read_status(str(unfinished.root), NOW), "jsonl").splitlines()
    assert json.loads(line) == json.loads(text)


def test_what_newer_runs_say_is_shown_and_what_still_newer_ones_say_is_passed_over(unfinished: Output) -> None:
    notes = [{"at": "2026-11-23T09:59:00.000+00:00", "level": "warning", "message": "worker 3 died:\x1b[2J"}]
    write_progress(unfinished, job_rows_done=15, errors_by_code={"ROW_MEMORY": 1}, notes=notes, k_shares={"2": 1.0})
    path = unfinished.root / "_specbatch/progress.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_tomorrow": 1}))
    report = read_status(str(unfinished.root), NOW)
    assert (report.state, report.rows_done, report.k_shares, report.silence_seconds) == (
        "running",
        15,
        {"2": 1.0},
        None,
    )
    text = render_status(report, "human")
    assert "errors: ROW_MEMORY 1\n  09:59:00 worker 3 died:?[2J\n" in text


def test_a_silent_run_says_for_how_long(unfinished: Output) -> None:
    write_progress(unfinished, host="elsewhere", updated_at=(NOW - timedelta(minutes=3)).isoformat())
    assert read_status(str(unfinished.root), NOW).silence_seconds == 180
