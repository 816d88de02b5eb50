"""What the output tells before the driver has begun, what the driver does, and how a job is followed to its end."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handing_over import SPECBATCH, hand_over
from jobs_server import JobsServer
from stored_output import write_dataset

from specbatch.jobs.output.cancel import cancel_requested
from specbatch.jobs.output.lease import acquire
from specbatch.jobs.output.submissions import end_submission, find_waiting, submission_cancelled
from specbatch.jobs.planning.prepare import PreparedJob
from specbatch.jobs.submission import driver
from specbatch.jobs.submission.client import JobsClient
from specbatch.jobs.submission.follow import SILENT_SECONDS, Ending, follow
from specbatch.jobs.submission.submit import Submitted
from specbatch.jobs.upkeep.cancel import cancel_output
from specbatch.jobs.upkeep.resume import open_output
from specbatch.jobs.watching.logs import read_log
from specbatch.jobs.watching.status import read_status
from specbatch.jobs.watching.watch import watch
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError
from specbatch.storage.store import Store, open_store

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


def test_cancel_reaches_a_driver_that_holds_the_output_already_and_one_that_waits_behind_a_dead_run(
    job: Callable[..., PreparedJob],
) -> None:
    submitted = hand_over(job())
    store = open_store(submitted.output)
    lease = acquire(store)
    assert submitted.record.submission_id in cancel_output(submitted.output)
    assert submission_cancelled(store, 1)
    assert cancel_requested(store, 1, lease.token)
    lease.release()


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
