"""``--notify`` against real HTTP servers: what is posted, what is refused, and that nothing of it ends a job."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finished_output import build

from specbatch import submit
from specbatch.jobs.cli import app as cli
from specbatch.jobs.reports.report import load_manifest
from specbatch.jobs.running.job import JobOutcome
from specbatch.jobs.running.notify import Notifier, check_notify_url, make_notifier, outcome_notice, post
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError

SECRET = "T0PS3CRET"


class Webhook(http.server.BaseHTTPRequestHandler):
    """Keeps what is posted; answers as the last segment of the path says."""

    got: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.got.append({"path": self.path, "type": self.headers["Content-Type"], "body": body})
        how = self.path.rpartition("/")[2]
        if how == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for _ in range(200):
                try:
                    self.wfile.write(b"X-Slow: 1\r\n")
                    time.sleep(0.05)
                except OSError:
                    return
        self.send_response(int(how) if how.isdigit() else 204)
        if how == "302":
            self.send_header("Location", "/moved")
        self.end_headers()

    def do_GET(self) -> None:
        self.got.append({"path": self.path, "body": None})
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        return None


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    handler = type("Handler", (Webhook,), {"got": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{SECRET}", handler.got
        server.shutdown()
        thread.join()


def finished(folder: Path, **changes: Any) -> JobOutcome:
    root = str(build(folder, **changes).root)
    manifest = load_manifest(root)
    code = ExitCode.ROW_ERRORS if manifest.commit.counts.errors else ExitCode.COMPLETE
    return JobOutcome(root, code, manifest, False, 4, 4)


def test_a_summary_has_counts_and_ratios_and_is_posted_as_json(
    tmp_path: Path, webhook: tuple[str, list[dict[str, Any]]]
) -> None:
    url, got = webhook
    said: list[str] = []
    environment = {"SPECBATCH_NOTIFY_URL": url, "HOME": "/"}
    notifier = make_notifier(None, environment, said.append)
    assert environment == {"HOME": "/"}, "no process that is started may have it"
    notifier.logical_date = "2026-11-24"
    outcome = finished(tmp_path / "out")
    notifier.ended(outcome)
    (request,) = got
    assert (request["path"], request["type"], said) == (f"/{SECRET}", "application/json", [])
    body = request["body"]
    assert outcome.manifest is not None
    commit, observed = outcome.manifest.commit, outcome.manifest.observed
    assert (body["format"], body["state"], body["exit_code"]) == ("specbatch/notice/1", "complete with error rows", 3)
    assert (body["job_id"], body["output"]) == (outcome.manifest.job_id, outcome.output)
    assert (body["logical_date"], body["parts"]) == ("2026-11-24", 4)
    assert body["counts"] == commit.counts.model_dump()
    assert body["counts"]["errors_by_code"]
    assert body["acceptance_rate"] == commit.acceptance.rate
    assert body["throughput"]["rows_per_second"] == observed.throughput.rows_per_second
    assert body["speedup"]["ratio"] == observed.speedup.ratio


def test_states_of_runs_that_did_not_complete(webhook: tuple[str, list[dict[str, Any]]]) -> None:
    url, got = webhook
    notifier = make_notifier(url, {"SPECBATCH_NOTIFY_URL": "https://elsewhere.example/"}, lambda line: None)
    notifier.output = "out"
    notifier.ended(JobOutcome("out", ExitCode.TERMINATED, None, False, 1, 4))
    notifier.stopped(130)
    notifier.failed(SpecbatchError(ErrorCode.JOB_ERROR_RATE, "too many of 'a prompt'"))
    notifier.failed(ValueError("a prompt"))
    found = [(each["body"]["state"], each["body"]["exit_code"], each["body"]["error_code"]) for each in got]
    assert found == [
        ("interrupted", 143, None),
        ("interrupted", 130, None),
        ("failed", 4, "JOB_ERROR_RATE"),
        ("failed", 1, "JOB_INTERNAL"),
    ]
    assert {each["body"]["output"] for each in got} == {"out"}
    assert "a prompt" not in json.dumps(got)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("how", ["500", "302", "closed", "silent"])
def test_a_failure_to_post_is_a_warning_without_the_address(
    webhook: tuple[str, list[dict[str, Any]]], how: str
) -> None:
    url, got = webhook
    said: list[str] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        place = {
            "closed": f"http://127.0.0.1:{closed_port()}/{SECRET}",
            "silent": f"http://127.0.0.1:{listener.getsockname()[1]}/{SECRET}",
        }.get(how, f"{url}/{how}")
        if how == "silent":
            problem = post(place, {}, request_seconds=0.2)
            assert problem == "TimeoutError"
            return
        make_notifier(place, {}, said.append).stopped(130)
    (line,) = said
    expected = {"500": "it answered 500", "302": "it answered 302", "closed": "ConnectionRefusedError"}[how]
    assert line == f"warning: the summary could not be posted to http://127.0.0.1: {expected}"
    assert not any(each["path"] == "/moved" for each in got)


def test_a_webhook_that_answers_byte_by_byte_is_given_up(webhook: tuple[str, list[dict[str, Any]]]) -> None:
    begun = time.monotonic()
    assert post(f"{webhook[0]}/drip", {}, total_seconds=0.5) == "no answer within 0.5 s"
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize(
    "url", ["https://hooks.example/x", "https://[::1]:8/x", "http://localhost:1/", "http://[::1]/"]
)
def test_addresses_that_are_taken(url: str) -> None:
    check_notify_url(url)


@pytest.mark.parametrize(
    "url",
    [
        f"http://hooks.example/{SECRET}",
        f"http://127.0.0.1.hooks.example/{SECRET}",
        f"http://localhost@hooks.example/{SECRET}",
        f"ftp://localhost/{SECRET}",
        f"file:///etc/{SECRET}",
        SECRET,
        f"https:///{SECRET}",
        f"https://h:port/{SECRET}",
        f"https://h/{SECRET}\r\nX: y",
        f"https://h/{SECRET} x",
        f"https://[h/{SECRET}",
    ],
)
def test_addresses_that_are_refused_are_not_repeated(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpecbatchError) as caught:
        check_notify_url(url)
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("SPECBATCH_NOTIFY_URL", url)
    for arguments in (["submit", "gone.parquet"], ["schedule", "run", "--store", "gone", "--once"]):
        os.environ["SPECBATCH_NOTIFY_URL"] = url
        assert cli.run(arguments) == 2
        out, err = capsys.readouterr()
        assert "--notify" in err
        assert SECRET not in out + err


def test_a_job_that_is_refused_is_told_too(
    tmp_path: Path, webhook: tuple[str, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, got = webhook
    assert cli.run(["submit", str(tmp_path / "gone.parquet"), "--notify", url]) == 2
    assert [(each["body"]["state"], each["body"]["error_code"]) for each in got] == [("failed", "JOB_INPUT_MISSING")]
    assert cli.run(["submit", str(tmp_path / "gone.parquet"), "--notify", url, "--dry-run"]) == 2
    assert len(got) == 1, "a dry run is no run"
    assert SECRET not in "".join(capsys.readouterr())


def test_the_python_face_posts_too(tmp_path: Path, webhook: tuple[str, list[dict[str, Any]]]) -> None:
    url, got = webhook
    with pytest.raises(SpecbatchError, match="JOB_INPUT_MISSING"):
        submit(tmp_path / "gone.parquet", notify=url, logical_date="2026-11-24", progress="quiet")
    (body,) = (each["body"] for each in got)
    assert (body["state"], body["exit_code"], body["logical_date"]) == ("failed", 2, "2026-11-24")


def test_the_log_of_a_crash_does_not_hold_the_address(
    webhook: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(*arguments: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("specbatch.jobs.planning.prepare.prepare", crash)
    for given in (["--notify", webhook[0]], [f"--notify={webhook[0]}"]):
        assert cli.run(["submit", "gone.parquet", *given]) == 1
        said = capsys.readouterr().err
        assert SECRET not in said
        path = Path(said.split("report it with ")[1].strip())
        text = path.read_text()
        path.unlink()
        assert "submit gone.parquet" in text
        assert SECRET not in text


def test_the_summary_is_pure_but_for_the_time(tmp_path: Path) -> None:
    outcome = finished(tmp_path / "out")
    first, second = outcome_notice(outcome, None), outcome_notice(outcome, None)
    assert first.model_copy(update={"time": ""}) == second.model_copy(update={"time": ""})


def test_no_summary_is_promised_where_nobody_waits() -> None:
    """The address would have to go to another machine; without one there is nothing to refuse."""
    Notifier(None, print).check_waits(False)
    Notifier("https://hooks.example/secret", print).check_waits(True)
    with pytest.raises(SpecbatchError, match="needs --wait") as refused:
        Notifier("https://hooks.example/secret", print).check_waits(False)
    assert refused.value.code is ErrorCode.JOB_CONFIG
    assert "hooks.example" not in refused.value.message
