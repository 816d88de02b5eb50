"""``specbatch list``: all jobs below a folder or prefix, whatever state they are in, with few requests."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from finished_output import Output, build
from progress_documents import write_progress
from s3_server import S3Server
from stored_output import begin, write_parts

from specbatch.jobs.cli import app as cli
from specbatch.jobs.watching import listing
from specbatch.jobs.watching.listing import JobLine, list_jobs, render_list
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage import folders
from specbatch.storage.folders import Listing, child, list_folder

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def job(path: Path, created_at: str = "2026-11-23T10:00:00+00:00", **options: Any) -> Output:
    output = build(path, **options)
    document = json.loads((path / "_specbatch/job.json").read_text())
    (path / "_specbatch/job.json").write_text(json.dumps({**document, "created_at": created_at}))
    return output


@pytest.fixture
def nights(tmp_path: Path) -> Path:
    """Jobs in every state, at several depths."""
    root = tmp_path / "nights"
    fresh = (NOW - timedelta(seconds=4)).isoformat()
    complete = job(root / "date=2026-11-20/out", "2026-11-20T22:00:00+00:00")
    write_progress(complete, state="complete", updated_at="2026-11-20T23:00:00+00:00")
    running = job(root / "running", "2026-11-23T11:00:00+00:00", num_parts=1)
    write_progress(
        running, host="elsewhere", updated_at=fresh, job_rows_done=15, elapsed_seconds=3600.0, tokens_per_second=99.0
    )
    for state in ("failed", "interrupted"):
        write_progress(job(root / state, "2026-11-22T22:00:00+00:00", num_parts=1), state=state)
    gone = job(root / "gone", "2026-11-21T22:00:00+00:00", num_parts=1)
    write_progress(gone, host="elsewhere", updated_at="2026-11-21T23:00:00+00:00")
    job(root / "begun", "2026-11-19T22:00:00+00:00", num_parts=0)
    (root / "planned/_specbatch").mkdir(parents=True)
    (root / "planned/_specbatch/plan-x.parquet").touch()
    damaged = job(root / "damaged")
    (damaged.root / "_specbatch/job.json").write_bytes(b"{")
    wrong = job(root / "wrong-manifest")
    (wrong.root / "manifest.json").write_bytes(b"[]")
    (root / "notes").mkdir()
    (root / "notes/readme.txt").touch()
    (root / ".hidden").mkdir()
    shutil.copytree(complete.root, root / ".hidden/out")
    shutil.copytree(complete.root, complete.root / "amendments/1")
    return root


def states(root: Path, **options: Any) -> list[tuple[str, str]]:
    jobs = list_jobs(str(root), now=NOW, **options).jobs
    return [(Path(line.output).relative_to(root).as_posix(), line.state) for line in jobs]


def test_every_state_and_the_newest_first(nights: Path) -> None:
    assert states(nights) == [
        ("running", "running"),
        ("failed", "failed"),
        ("interrupted", "interrupted"),
        ("gone", "interrupted"),
        ("date=2026-11-20/out", "complete"),
        ("begun", "incomplete"),
        ("damaged", "unreadable"),
        ("planned", "incomplete"),
        ("wrong-manifest", "unreadable"),
    ]


def test_what_is_known_of_each(nights: Path) -> None:
    by_name = {Path(line.output).name: line for line in list_jobs(str(nights), now=NOW).jobs}
    out = by_name["out"]
    assert (out.num_rows, out.rows_done, out.num_errors) == (20, 20, 1)
    assert (out.started_at, out.finished_at) == ("2026-11-20T22:00:00+00:00", "2026-11-20T23:00:00+00:00")
    assert out.duration_seconds is not None
    assert out.tokens_per_second == pytest.approx(100)
    running = by_name["running"]
    assert (running.num_rows, running.rows_done, running.tokens_per_second) == (20, 15, 99.0)
    assert (running.duration_seconds, running.finished_at) == (3600.0, None)
    assert by_name["interrupted"].rows_done == 12, "what is in parts"
    assert "job.json" in by_name["damaged"].detail
    assert "manifest.json" in by_name["wrong-manifest"].detail


def test_depth_and_number_of_folders_are_bounded(nights: Path) -> None:
    assert ("date=2026-11-20/out", "complete") not in states(nights, max_depth=1)
    assert list_jobs(str(nights), now=NOW).is_whole
    few = list_jobs(str(nights), now=NOW, max_folders=4)
    assert not few.is_whole
    assert len(few.jobs) <= 3


def test_an_output_itself_is_a_list_of_one(nights: Path) -> None:
    assert [line.state for line in list_jobs(str(nights / "running"), now=NOW).jobs] == ["running"]


def test_nothing_there_is_an_error_and_no_jobs_is_none(
    tmp_path: Path, nights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SpecbatchError) as caught:
        list_jobs(str(tmp_path / "nowhere"))
    assert caught.value.code is ErrorCode.JOB_OUTPUT_MISSING
    assert cli.run(["list", str(nights / "notes")]) == 0
    assert capsys.readouterr().out == f"no jobs below {nights / 'notes'}\n"


def test_as_text_and_as_json(nights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list", str(nights), "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["format"], document["is_whole"], len(document["jobs"])) == ("specbatch/list/1", True, 9)
    assert cli.run(["list", str(nights), "--format", "jsonl"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9
    lines = render_list(list_jobs(str(nights), now=NOW), "human").splitlines()
    assert lines[0].split() == ["state", "rows", "errors", "started", "finished", "duration", "tok/s", "output"]
    assert lines[1].split() == [
        "running", "15/20", "1", "2026-11-23", "11:00Z", "-", "1:00:00", "99.0", str(nights / "running"),
    ]  # fmt: skip
    assert any(line.startswith("unreadable") and "damaged (_specbatch/job.json" in line for line in lines)


def test_names_from_storage_are_made_safe() -> None:
    text = render_list(listing.JobList("p", (JobLine("evil\x1b[2J", "unreadable", "a\nb"),), True), "human")
    assert text.splitlines()[1].endswith("evil?[2J (a?b)")


def test_a_folder_with_very_many_names_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        (tmp_path / f"{number}.txt").touch()
    monkeypatch.setattr(folders, "MAX_NAMES", 10)
    assert not list_folder(str(tmp_path)).is_whole
    assert len(list_folder(str(tmp_path)).files) == 10
    monkeypatch.setattr(folders, "MAX_NAMES", 12)
    assert list_folder(str(tmp_path)).is_whole


# ---- on S3 -----------------------------------------------------------------------------------------------------------


def test_on_s3(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3_server.new_bucket()
    for name in ("a/one", "a/two", "b"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        write_parts(begin(folder, uri=f"s3://{bucket}/nightly/{name}"), shards={0, 1})
    assert list_folder(f"s3://{bucket}/nightly") == Listing(("a", "b"), ())
    assert list_folder(f"s3://{bucket}/nightly/b").folders == ("_specbatch", "data")
    listed: list[str] = []
    real = listing.list_folder

    def counting(uri: str) -> Listing:
        listed.append(uri)
        return real(uri)

    monkeypatch.setattr(listing, "list_folder", counting)
    jobs = list_jobs(f"s3://{bucket}/nightly").jobs
    assert sorted(line.output for line in jobs) == [f"s3://{bucket}/nightly/{name}" for name in ("a/one", "a/two", "b")]
    assert {line.state for line in jobs} == {"incomplete"}
    assert len(listed) == 5, "one for each folder: the root, a, b and the two in a"
    assert child("s3://bucket/", "x") == "s3://bucket/x"


@pytest.fixture
def many(tmp_path: Path) -> Path:
    template = job(tmp_path / "template", num_parts=0).root
    root = tmp_path / "many"
    for number in range(300):
        shutil.copytree(template / "_specbatch", root / f"{number:03}/_specbatch")
    return root


def test_very_many_jobs(many: Path) -> None:
    assert len(list_jobs(str(many)).jobs) == 300
