"""Handing a job to Ray Jobs: once whatever is lost on the way, without secrets, and told by the output from then on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs_server import JobsServer
from stored_output import begin, finish, write_dataset

from specbatch import submit
from specbatch._version import __version__
from specbatch.jobs.output.submissions import end_submission, find_waiting, last_submission
from specbatch.jobs.planning.prepare import PreparedJob, prepare
from specbatch.jobs.running.job import JobOutcome
from specbatch.jobs.spec.address import check_address, is_jobs_endpoint
from specbatch.jobs.spec.settings import flag_layer, resolve
from specbatch.jobs.submission import driver
from specbatch.jobs.submission.client import JobsClient
from specbatch.jobs.submission.follow import SILENT_SECONDS, Ending, follow
from specbatch.jobs.submission.package import staged_package
from specbatch.jobs.submission.submit import Submitted, submit_job
from specbatch.jobs.upkeep.cancel import cancel_output
from specbatch.jobs.upkeep.resume import open_output
from specbatch.jobs.watching.logs import read_log
from specbatch.jobs.watching.status import read_status
from specbatch.jobs.watching.watch import watch
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError
from specbatch.storage.store import Store, open_store

SPECBATCH = str(Path(sys.executable).parent / "specbatch")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobsServer]:
    for name in list(os.environ):
        if name.startswith(("RAY_", "SPECBATCH_")):
            monkeypatch.delenv(name)
    found = JobsServer()
    yield found
    found.close()


@pytest.fixture
def job(tmp_path: Path, server: JobsServer) -> Callable[..., PreparedJob]:
    dataset = write_dataset(tmp_path)

    def make(**options: Any) -> PreparedJob:
        given = {"output": str(tmp_path / "out"), "address": server.address, "shard_rows": 5, "device": "cpu"}
        return prepare(resolve([flag_layer({**given, **options}, [str(dataset)])]))

    return make


def hand_over(prepared: PreparedJob, said: list[str] | None = None, **settings: Any) -> Submitted:
    client = JobsClient(str(prepared.spec.execution.address), sleep=lambda seconds: None)
    found = submit_job(prepared, (said if said is not None else []).append, client=client, **settings)
    assert not isinstance(found, JobOutcome)
    return found[0]


def test_addresses() -> None:
    assert not is_jobs_endpoint(None)
    assert not is_jobs_endpoint("auto")
    assert not is_jobs_endpoint("head:6379")
    assert is_jobs_endpoint("https://ray.example/jobs")
    assert check_address("https://ray.example/jobs/") == "https://ray.example/jobs"
    for bad in ("ray://head:10001", "http://", "http://user:secret@head:8265", "http://head:8265/?token=secret"):
        with pytest.raises(SpecbatchError, match="JOB_CONFIG: --address") as caught:
            check_address(bad)
        assert "secret" not in str(caught.value)


def test_what_is_handed_over(job: Callable[..., PreparedJob], server: JobsServer) -> None:
    """Once: a second submit finds the job under way, whatever the first was told."""
    prepared, said = job(entrypoint_num_cpus=2, entrypoint_memory="1GiB", node_labels="zone=a", workers=4), []
    submitted = hand_over(prepared, said)
    assert not submitted.was_there
    (request,) = server.requests
    name = submitted.record.submission_id
    assert name.startswith(f"specbatch-{prepared.identity.S[:12]}-")
    assert name.endswith("-1")
    assert request["submission_id"] == name
    assert request["entrypoint"] == f"python -P -m specbatch.jobs.submission.driver {prepared.output} 1"
    assert (request["entrypoint_num_cpus"], request["entrypoint_memory"]) == (2, 1 << 30)
    assert request["metadata"]["specbatch_output"] == prepared.output
    assert request["metadata"]["specbatch_version"] == __version__
    (package,) = server.packages
    assert request["runtime_env"]["py_modules"] == [f"gcs://{package}"]
    assert b"specbatch/jobs/submission/driver.py" in server.packages[package]
    assert any("asks for no token" in line for line in said)
    again = hand_over(prepared)
    assert again.was_there
    assert again.record == submitted.record
    assert len(server.requests) == 1


def test_equal_code_is_uploaded_once(job: Callable[..., PreparedJob], server: JobsServer, tmp_path: Path) -> None:
    hand_over(job())
    hand_over(job(output=str(tmp_path / "other")))
    assert (len(server.requests), server.num_uploads) == (2, 1)
    with staged_package() as package:
        names = {path.name for path in package.rglob("*")}
        assert {"py.typed", "_version.py", "model.safetensors", "report.css"} <= names
        assert "__pycache__" not in names


@pytest.mark.parametrize("lost", ["num_lost_replies", "num_lost_requests"])
def test_a_lost_reply_starts_nothing_twice(job: Callable[..., PreparedJob], server: JobsServer, lost: str) -> None:
    """Row 49 of the fault matrix."""
    setattr(server, lost, 1)
    submitted = hand_over(job())
    assert list(server.jobs) == [submitted.record.submission_id]
    assert len(server.requests) == 1


def test_a_submit_that_died_before_its_request_is_made_good(
    job: Callable[..., PreparedJob], server: JobsServer
) -> None:
    server.num_lost_requests = 3
    with pytest.raises(SpecbatchError, match="JOB_CLUSTER_LOST"):
        hand_over(job())
    first = hand_over(job())
    assert (first.record.number, first.was_there, len(server.jobs)) == (1, False, 1)


def test_another_run_has_another_number(job: Callable[..., PreparedJob], server: JobsServer) -> None:
    first = hand_over(job()).record
    server.finish(first.submission_id, "FAILED", 1)
    second = hand_over(job()).record
    end_submission(open_store(job().output), 2, 0)
    third = hand_over(job(workers=2)).record
    assert [record.number for record in (first, second, third)] == [1, 2, 3]
    assert len(server.jobs) == 3
    server.jobs.clear()  # a new cluster under the old address; other settings are another submission
    assert hand_over(job(workers=3)).record.number == 4


def test_no_secret_leaves_this_machine(
    job: Callable[..., PreparedJob], server: JobsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only the token, in the header that is for it. Settings of the environment go along in the record."""
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "canary-aws",
        "HF_TOKEN": "canary-hub",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "canary-ray-0123456789",
        "SPECBATCH_WORKERS": "3",
        "SPECBATCH_LOG_LEVEL": "warning",
    }
    run_in_child = {**os.environ, **secrets}
    server.token = "canary-ray-0123456789"
    done = subprocess.run(
        [SPECBATCH, "submit", str(tmp_path / "prompts.parquet"), "--output", str(tmp_path / "out"), "--no-wait",
         "--address", server.address, "--device", "cpu"],
        env=run_in_child, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (request,) = server.requests
    kept = "".join(path.read_text() for path in (tmp_path / "out/_specbatch").rglob("*.json"))
    told = json.dumps(request) + kept + done.stdout + done.stderr + "".join(map(str, server.packages))
    assert "canary" not in told
    assert request["runtime_env"]["env_vars"] == {"SPECBATCH_LOG_LEVEL": "warning"}
    assert all(headers["authorization"] == f"Bearer {server.token}" for headers in server.headers)
    record = last_submission(open_store(str(tmp_path / "out")))
    assert record is not None
    assert record.spec["execution"]["workers"] == 3
    assert "asks for no token" not in done.stderr
    assert done.stdout.splitlines()[0] == record.submission_id
    assert f"specbatch logs -f {tmp_path / 'out'}" in done.stdout


def test_a_token_that_is_missing_is_told(job: Callable[..., PreparedJob], server: JobsServer) -> None:
    server.token = "secret"
    with pytest.raises(SpecbatchError, match=r"JOB_CLUSTER_DENIED: Ray Jobs at http.* RAY_AUTH_TOKEN_PATH"):
        hand_over(job())
    assert not Path(job().output).exists(), "nothing is begun where nobody will take it"


def test_an_endpoint_that_does_not_answer(job: Callable[..., PreparedJob]) -> None:
    with pytest.raises(SpecbatchError, match=r"JOB_CLUSTER_LOST: Ray Jobs at http://127.0.0.1:9 are not to be reached"):
        hand_over(job(address="http://127.0.0.1:9"))


def test_other_addresses_of_the_environment_do_not_count(
    job: Callable[..., PreparedJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's client would take ``RAY_ADDRESS`` over the address that it is given."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    hand_over(job())
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:9"


def test_a_complete_job_is_not_submitted(job: Callable[..., PreparedJob], server: JobsServer, tmp_path: Path) -> None:
    finish(begin(tmp_path, address=server.address, seed=0))
    client = JobsClient(server.address)
    found = submit_job(job(seed=0), lambda line: None, client=client)
    assert isinstance(found, JobOutcome)
    assert found.was_complete
    assert server.requests == []


def test_the_device_is_what_the_cluster_has(server: JobsServer) -> None:
    assert not JobsClient(server.address).has_gpus()
    node = {"node_id": "a", "node_ip": "", "is_head_node": False, "state": "ALIVE", "state_message": None}
    node |= {"node_name": "", "labels": {}, "start_time_ms": 0, "end_time_ms": 0, "resources_total": {"GPU": 2.0}}
    server.nodes.append(node)
    assert JobsClient(server.address).has_gpus()
    client = JobsClient(server.address)
    server.fails_to_list = True
    with pytest.raises(SpecbatchError, match="JOB_CLUSTER_LOST: Ray Jobs at"):
        client.has_gpus()


def test_from_python(job: Callable[..., PreparedJob], server: JobsServer, tmp_path: Path) -> None:
    """The same way, to its end; there is nothing to return of a job that is not waited for."""
    given: dict[str, Any] = {
        "output": tmp_path / "out",
        "address": server.address,
        "shard_rows": 5,
        "progress": "quiet",
    }
    with pytest.raises(SpecbatchError, match="JOB_CONFIG: wait=False"):
        submit(tmp_path / "prompts.parquet", wait=False, **given)
    hand_over(job())
    server.finish(next(iter(server.jobs)), "STOPPED")
    end_submission(open_store(str(tmp_path / "out")), 1, 4, "JOB_ERROR_RATE", "too many")
    with pytest.raises(SpecbatchError, match="JOB_CLUSTER_LOST"):  # number 2, of which the server forgets all
        Forgetful(server).watch(lambda: submit(tmp_path / "prompts.parquet", **given))
    assert len(server.requests) == 2


class Forgetful:
    """Lets a server forget every job as soon as it has taken one more."""

    def __init__(self, server: JobsServer) -> None:
        self._server = server

    def watch(self, action: Callable[[], object]) -> None:
        before = self._server.handle

        def handle(method: str, path: str, body: bytes) -> tuple[int, Any] | None:
            found = before(method, path, body)
            if (method, path) == ("POST", "/api/jobs/"):
                self._server.jobs.clear()
            return found

        self._server.handle = handle  # type: ignore[method-assign]
        try:
            action()
        finally:
            self._server.handle = before  # type: ignore[method-assign]


# ---- what the output tells before the driver has begun ---------------------------------------------------------------


def test_status_logs_and_cancel_before_the_driver(job: Callable[..., PreparedJob], tmp_path: Path) -> None:
    submitted = hand_over(job())
    output, name = submitted.output, submitted.record.submission_id
    report = read_status(output)
    assert report.state == "submitted"
    assert name in report.detail
    assert "has not begun" in report.detail
    assert "specbatch cancel" in report.next_step
    said: list[str] = []
    assert list(read_log(output, say=said.append)) == []
    said.clear()

    def ends(seconds: float) -> None:
        end_submission(open_store(output), 1, 143)

    assert list(read_log(output, follow=True, say=said.append, sleep=ends)) == []
    assert name in said[0]
    (tmp_path / "out/_specbatch/submissions/1-end.json").unlink()
    assert watch(output, SilentWatch(), sleep=ends).state == "interrupted"
    end_path = tmp_path / "out/_specbatch/submissions/1-end.json"
    end_path.unlink()
    assert f"{name}, which waits" in cancel_output(output)
    assert "asked so before" in cancel_output(output)
    assert "asked not to begin" in read_status(output).detail
    assert driver.drive(output, 1) == ExitCode.TERMINATED
    assert find_waiting(open_store(output)) is None
    assert read_status(output).state == "interrupted"


def test_the_driver_tells_what_its_node_does_not_see(
    job: Callable[..., PreparedJob], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted = hand_over(job())
    assert driver.drive(str(tmp_path / "elsewhere"), 1) == ExitCode.USAGE
    assert driver.drive(submitted.output, 7) == ExitCode.USAGE
    assert capsys.readouterr().err.count("error: JOB_PATH_NOT_SHARED: node ") == 2
    (tmp_path / "prompts.parquet").rename(tmp_path / "gone.parquet")
    assert driver.drive(submitted.output, 1) == ExitCode.USAGE
    (tmp_path / "gone.parquet").rename(tmp_path / "prompts.parquet")
    store = open_store(submitted.output)
    ending = follow_to_the_end(submitted, store)
    assert ending.code == ErrorCode.JOB_PATH_NOT_SHARED
    assert "does not find what was there on" in ending.message


def test_the_driver_has_the_settings_of_the_submit(
    job: Callable[..., PreparedJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of its node; and at the cluster's own address."""
    submitted = hand_over(job(workers=4, speculation=2, entrypoint_num_cpus=1, memory_per_worker="1GiB"))
    monkeypatch.setenv("SPECBATCH_WORKERS", "9")
    settings = driver._settings(open_output(submitted.output), submitted.record)
    execution = settings.spec.execution
    assert (execution.workers, execution.speculation, execution.address) == (4, 2, "auto")
    assert (execution.entrypoint_num_cpus, execution.memory_per_worker) == (0, "1GiB")


class SilentWatch:
    def update(self, doc: Any, silence_seconds: float | None) -> None:
        raise AssertionError("nothing has begun")

    def close(self) -> None:
        pass


# ---- following -------------------------------------------------------------------------------------------------------


class Silent:
    def update(self, doc: Any) -> None:
        pass

    def close(self) -> None:
        pass


def follow_to_the_end(submitted: Submitted, store: Store, **settings: Any) -> Ending:
    client = JobsClient(submitted.record.address)
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    return follow(
        submitted, client, store, Silent(), lambda line: None,
        **{"sleep": sleep, "clock": lambda: now[0], **settings},
    )  # fmt: skip


def test_ends_of_a_driver(job: Callable[..., PreparedJob], server: JobsServer, tmp_path: Path) -> None:
    """Its own word first; then what Ray knows of it."""
    submitted = hand_over(job())
    name, store = submitted.record.submission_id, open_store(submitted.output)
    server.finish(name, "FAILED", 2)
    server.logs = "starting\nerror: JOB_MODEL_MISSING: no model at x\nbye\n"
    assert follow_to_the_end(submitted, store) == Ending(2, ErrorCode.JOB_MODEL_MISSING, "no model at x")
    server.logs = ""
    server.finish(name, "FAILED", None, "The driver was killed")
    ending = follow_to_the_end(submitted, store)
    assert (ending.exit_code, ending.code) == (8, ErrorCode.JOB_CLUSTER_LOST)
    assert "The driver was killed" in ending.message
    server.finish(name, "STOPPED")
    assert follow_to_the_end(submitted, store) == Ending(143)
    kept = server.jobs.pop(name)
    assert "no longer know" in follow_to_the_end(submitted, store).message
    server.jobs[name] = kept
    end_submission(store, 1, 4, "JOB_ERROR_RATE", "too many")
    server.finish(name, "SUCCEEDED", 0)
    assert follow_to_the_end(submitted, store) == Ending(4, ErrorCode.JOB_ERROR_RATE, "too many")


def test_an_endpoint_that_falls_silent_is_given_up_after_a_while(
    job: Callable[..., PreparedJob], server: JobsServer
) -> None:
    submitted = hand_over(job())
    client = JobsClient(submitted.record.address)
    server.close()
    naps: list[float] = []
    with pytest.raises(SpecbatchError, match="JOB_CLUSTER_LOST") as caught:
        follow(
            submitted, client, open_store(submitted.output), Silent(), print,
            sleep=naps.append, clock=lambda: sum(naps),
        )  # fmt: skip
    assert f"{submitted.record.submission_id} may go on: specbatch status" in str(caught.value)
    assert SILENT_SECONDS <= sum(naps) <= SILENT_SECONDS + 5


def test_ctrl_c_ends_the_waiting_and_not_the_job(tmp_path: Path, server: JobsServer) -> None:
    write_dataset(tmp_path)
    process = subprocess.Popen(
        [SPECBATCH, "submit", str(tmp_path / "prompts.parquet"), "--output", str(tmp_path / "out"),
         "--address", server.address, "--device", "cpu"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    lines: list[str] = []
    assert process.stderr is not None
    while time.monotonic() < deadline and not any("waits for its driver" in line for line in lines):
        lines.append(process.stderr.readline())
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "not waiting any longer; the job goes on:" in rest
    assert f"specbatch cancel {tmp_path / 'out'}" in rest
    (state,) = server.jobs.values()
    assert state["status"] == "PENDING"
