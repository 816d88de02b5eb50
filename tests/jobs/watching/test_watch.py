"""``status --watch``: a run seen from another machine, by its documents alone."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from finished_output import Output, build, write_manifest
from progress_documents import document, write_progress
from s3_server import S3Server
from stored_output import begin
from terminal import Terminal

from specbatch.jobs.cli import app as cli
from specbatch.jobs.watching import watch as watching
from specbatch.jobs.watching.logs import read_log
from specbatch.jobs.watching.watch import GIVE_UP_SECONDS, Pulse, make_watch_view, watch
from specbatch.schemas.run import ProgressDocument

RUN = "import sys; from specbatch.jobs.cli.app import run; sys.exit(run(sys.argv[1:]))"


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return build(tmp_path / "out", num_parts=2)


def alive(output: Output, **changes: Any) -> None:
    write_progress(
        output, **{"host": "elsewhere", "updated_at": datetime.now(UTC).isoformat(timespec="seconds"), **changes}
    )


class Seen:
    """A view that keeps what it was shown, and changes the output before the next look."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, int, float | None]] = []
        self.is_closed = False

    def update(self, doc: ProgressDocument, silence_seconds: float | None) -> None:
        self.shown.append((doc.state, doc.rows_done, silence_seconds))

    def close(self) -> None:
        self.is_closed = True


def test_it_goes_on_until_the_manifest_is_there(output: Output) -> None:
    alive(output, rows_done=14)
    steps = [
        lambda: alive(output, rows_done=18),
        lambda: alive(output, rows_done=20, state="complete"),
        lambda: None,
        lambda: write_manifest(output, output.manifest),
    ]
    view = Seen()
    report = watch(str(output.root), view, sleep=lambda seconds: steps.pop(0)())
    assert [(state, rows) for state, rows, _ in view.shown] == [
        ("running", 14),
        ("running", 18),
        ("complete", 20),
        ("complete", 20),
    ]
    assert (report.state, steps, view.is_closed) == ("complete", [], True)


@pytest.mark.parametrize(
    "changes", [{"state": "failed"}, {"state": "cancelled"}, {"pid": -1, "host": socket.gethostname()}]
)
def test_it_ends_with_the_run(output: Output, changes: dict[str, Any]) -> None:
    alive(output)
    view = Seen()
    report = watch(str(output.root), view, sleep=lambda seconds: alive(output, **changes))
    assert (len(view.shown), report.state, view.is_closed) == (1, "interrupted", True)


def test_where_nothing_runs_it_ends_at_once(output: Output, tmp_path: Path) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("it waits for nothing")

    assert watch(str(output.root), Seen(), sleep=sleep).state == "interrupted"
    assert watch(str(build(tmp_path / "done").root), Seen(), sleep=sleep).state == "complete"


def test_silence_is_told_and_has_an_end(output: Output) -> None:
    alive(output)
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += 20 if clock[0] < 100 else 1500

    view = Seen()
    assert watch(str(output.root), view, sleep=sleep, clock=lambda: clock[0]).state == "running"
    silences = [silence for _, _, silence in view.shown]
    assert silences[:2] == [None, None]
    assert silences[2] is not None
    assert 40 <= silences[2] < 45
    assert max(silence or 0 for silence in silences) < GIVE_UP_SECONDS


def test_clocks_that_differ_are_believed_at_the_first_look_only() -> None:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    pulse = Pulse()
    behind = document(updated_at=(now - timedelta(minutes=5)).isoformat())
    assert pulse.silence_seconds(behind, now, 1000.0) == 300
    assert pulse.silence_seconds(behind, now, 1010.0) == 310
    later = document(updated_at=(now - timedelta(minutes=4)).isoformat())
    assert pulse.silence_seconds(later, now, 1020.0) == 0
    assert Pulse().silence_seconds(document(updated_at=(now + timedelta(hours=1)).isoformat()), now, 5.0) == 0


def test_a_store_that_does_not_answer_looks_like_a_silent_run(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    from specbatch.schemas.errors import ErrorCode, SpecbatchError

    alive(output)
    real, calls = watching.read_progress, [0]

    def flaky(store: Any) -> Any:
        calls[0] += 1
        if calls[0] in (2, 3):
            raise SpecbatchError(ErrorCode.JOB_STORE_LOST, "no route")
        return real(store)

    monkeypatch.setattr(watching, "read_progress", flaky)
    steps = [lambda: None, lambda: None, lambda: None, lambda: alive(output, state="failed")]
    view = Seen()
    watch(str(output.root), view, sleep=lambda seconds: steps.pop(0)())
    assert len(view.shown) == 4


def test_lines_where_there_is_no_terminal(output: Output) -> None:
    stream = io.StringIO()
    view = make_watch_view(str(output.root), stream, "human", 30.0)
    view.update(document(rows_done=4), None)
    view.update(document(rows_done=4), 190.0)
    view.update(document(rows_done=4), 200.0)
    view.close()
    lines = [line.split("  ", 1)[1] for line in stream.getvalue().splitlines()]
    assert lines == ["running  no sign of life for 3 min", "running  rows 4/256  eta unknown"]


def test_objects_where_they_are_asked_for(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    alive(output, state="failed")
    assert cli.run(["status", str(output.root), "--watch", "--format", "jsonl"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["state"] == "interrupted"
    assert cli.run(["status", str(output.root), "--format", "jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["run_state"] == "failed"


@pytest.mark.parametrize(
    "arguments", [["--watch"], ["--watch", "5"], ["--watch", "--format", "human"], ["--format", "human", "--watch"]]
)
def test_the_number_behind_watch_may_be_left_out(
    output: Output, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["status", *arguments, str(output.root)]) == 0
    assert cli.run(["status", str(output.root), *arguments]) == 0
    assert capsys.readouterr().out.count(": interrupted") == 2


@pytest.mark.parametrize("arguments", [["--watch", "0"], ["--watch", "nan"], ["--watch", "--format", "json"]])
def test_what_makes_no_sense_is_refused(
    output: Output, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["status", str(output.root), *arguments]) == 2
    assert "error: JOB_CONFIG: --watch" in capsys.readouterr().err


def drain(controller: int, terminal: Terminal) -> None:
    while True:
        try:
            terminal.feed(os.read(controller, 65536).decode())
        except (BlockingIOError, OSError):
            return


@pytest.mark.parametrize("ending", ["job", "ctrl-c"])
def test_the_live_view_of_another_machine(output: Output, ending: str) -> None:
    workers = [{"worker": 0, "state": "ready", "rows_active": 8, "tokens_per_second": 245.0}]
    alive(output, workers=workers)
    controller, terminal_file = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, "status", str(output.root), "--watch", "0.2"],
        stdout=terminal_file,
        stderr=subprocess.PIPE,
        env={**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, "TERM": "xterm", "PYTHONUTF8": "1"},
    )
    os.close(terminal_file)
    os.set_blocking(controller, False)
    terminal = Terminal(80, 24)
    ends = time.monotonic() + 120
    while not any("ready" in line for line in terminal.lines):
        assert time.monotonic() < ends
        alive(output, workers=workers)  # what is half a minute old is shown as silent
        time.sleep(0.05)
        drain(controller, terminal)
    assert any(line.startswith("rows 14/20") for line in terminal.lines)
    if ending == "job":
        alive(output, state="failed")
    else:
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    drain(controller, terminal)
    os.close(controller)
    assert (process.returncode, err) == (0, b"")
    assert terminal.is_cursor_visible
    text = "\n".join(terminal.lines)
    assert ("ended: failed" in text) == (ending == "job")


def test_on_s3(s3_server: S3Server, tmp_path: Path) -> None:
    uri = f"s3://{s3_server.new_bucket()}/nightly/out"
    stored = begin(tmp_path, uri=uri)
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    running = document(host="elsewhere", updated_at=moment, rows_done=4)
    stored.ledger.write_progress(running)
    stored.ledger.write_log(1, "run-0001.jsonl", json.dumps({"event": "note", "message": "one"}) + "\n")
    stored.store.create("_specbatch/runs/1.json", b"{}")
    view = Seen()
    failed = running.model_copy(update={"state": "failed"})
    report = watch(uri, view, sleep=lambda seconds: stored.ledger.write_progress(failed))
    assert [(state, rows) for state, rows, _ in view.shown] == [("running", 4)]
    assert (report.state, report.run_state) == ("interrupted", "failed")
    assert [line["message"] for line in read_log(uri, follow=True)] == ["one"]


@pytest.mark.parametrize("command", ["status {} --watch", "logs {}", "list {}", "list {}/.."])
def test_looking_at_jobs_imports_nothing_that_decodes(output: Output, command: str) -> None:
    script = (
        "import sys\nfrom specbatch.jobs.cli import app as cli\ncode = cli.run(sys.argv[1:])\n"
        "print(code, *(n for n in ('torch', 'transformers', 'ray', 'boto3', 'rich') if n in sys.modules))\n"
    )
    arguments = command.format(output.root).split()
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1:] == ["0"], done.stderr
