"""Handing a job to Ray Jobs: once whatever is lost on the way, and without secrets."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handing_over import SPECBATCH, hand_over
from jobs_server import JobsServer
from stored_output import begin, finish

from specbatch import submit
from specbatch._version import __version__
from specbatch.jobs.output.submissions import end_submission, last_submission
from specbatch.jobs.planning.prepare import PreparedJob
from specbatch.jobs.running.job import JobOutcome
from specbatch.jobs.spec.address import check_address, is_jobs_endpoint
from specbatch.jobs.submission.client import JobsClient
from specbatch.jobs.submission.package import staged_package
from specbatch.jobs.submission.submit import submit_job
from specbatch.schemas.errors import SpecbatchError
from specbatch.storage.store import open_store


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
