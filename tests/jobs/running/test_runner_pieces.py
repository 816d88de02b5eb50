"""What the shell says about dead workers, and what a run's tally adds up to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from specbatch.jobs.coordinator.events import WorkerDied
from specbatch.jobs.coordinator.workers import WorkerView
from specbatch.jobs.display.rates import Window
from specbatch.jobs.planning.machine import count_cores, count_cuda_devices, cuda_free_bytes
from specbatch.jobs.running.deaths import describe_death, is_pause, save_worker_log
from specbatch.jobs.running.processes import WorkerProcess
from specbatch.jobs.running.tally import RunTally
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.messages import MemoryReport, PartReceipt, Progress, RoundBlock, WorkerPoll, WorkerReady
from specbatch.schemas.stats import PartStats, SpecCounters

MEMORY = MemoryReport(1, 2, 3, 4, 5)


class WrappedError(Exception):
    """As Ray wraps an error of a worker."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a traceback\nof many lines")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "death"),
    [
        (
            WrappedError(SpecbatchError(ErrorCode.JOB_MODEL_LOAD, "no room")),
            WorkerDied(3, "no room", ErrorCode.JOB_MODEL_LOAD),
        ),
        (WrappedError(MemoryError()), WorkerDied(3, "out of memory")),
        (WrappedError(ValueError("first\nsecond")), WorkerDied(3, "ValueError: first")),
        (RuntimeError(), WorkerDied(3, "RuntimeError")),
        (
            RuntimeError("x Worker exit detail: Worker exits with a connection error code 2. End of file. Some ..."),
            WorkerDied(3, "the process was killed or crashed (a signal, or out of memory)"),
        ),
        (RuntimeError("x Worker exit detail: It fell. Some common causes include: y"), WorkerDied(3, "It fell.")),
        (
            RuntimeError("The actor died because its node has died. Node Id: 77"),
            WorkerDied(3, "its node is gone", cause="lost"),
        ),
        (
            RuntimeError("Worker exit detail: Worker exits unexpectedly. The process receives a SIGTERM."),
            WorkerDied(3, "the process was asked to end (SIGTERM)", cause="preempted"),
        ),
        (
            RuntimeError("Task was killed due to the node running low on memory.\nMemory on the node was 31GB"),
            WorkerDied(3, "Ray ended the process because its node ran low on memory"),
        ),
    ],
)
def test_a_death_is_told_in_one_line(error: Exception, death: WorkerDied) -> None:
    assert describe_death(3, error) == death


def test_what_is_known_of_the_node_goes_before_what_the_error_says() -> None:
    error = RuntimeError("x Worker exit detail: Worker exits with a connection error code 2. End of file.")
    assert describe_death(3, error, "preempted").cause == "preempted"


@pytest.mark.ray
def test_the_errors_of_ray_itself() -> None:
    """Faults 9 and 19: memory is named as the reason, and who is out of reach is not dead."""
    from ray.exceptions import ActorDiedError, ActorUnavailableError, ActorUnschedulableError, OutOfMemoryError

    assert is_pause(ActorUnavailableError("no route", None))
    assert not is_pause(ActorDiedError())
    assert describe_death(0, OutOfMemoryError("used 99 %")).reason.endswith("low on memory")
    assert describe_death(0, ActorUnschedulableError("the node is gone")).cause == "lost"


def test_the_log_of_a_dead_worker_is_found_by_its_process_id(tmp_path: Path) -> None:
    (tmp_path / "worker-abc-01000000-77.err").write_bytes(b"last words \xff")
    (tmp_path / "worker-abc-01000000-78.err").write_bytes(b"another's")
    assert save_worker_log(tmp_path, 77) == "last words \ufffd"
    assert save_worker_log(tmp_path, None) == ""


def test_a_log_that_cannot_be_read_ends_no_job(tmp_path: Path) -> None:
    (tmp_path / "worker-abc-01000000-77.err").symlink_to(tmp_path / "rotated")
    (tmp_path / "worker-abd-01000000-77.err").write_bytes(b"last words")
    assert save_worker_log(tmp_path, 77) == (
        "worker-abc-01000000-77.err cannot be read: No such file or directory\nlast words"
    )


def make_ready(worker: int) -> WorkerReady:
    return WorkerReady(worker, "host", 100 + worker, "cpu", "float32", 1, 2.0, MEMORY, (("torch", "2"),))


def make_poll(rows: int, tokens: int, idle_seconds: float = 0.0) -> WorkerPoll:
    counters = SpecCounters(2, 3, 8, 4, (0, 0, 2), (0, 0, 0, 0, 2))
    progress = Progress(rows, tokens, 1, counters, idle_seconds=idle_seconds)
    return WorkerPoll((), (), (RoundBlock(num_spec_rounds=1),), progress, MEMORY)


def test_a_tally_keeps_totals_of_every_process_and_all_blocks() -> None:
    tally = RunTally()
    assert (tally.wall_seconds, tally.tokens_per_second) == (0.0, 0.0)
    tally.add_ready(make_ready(0), 5.0)
    tally.add_ready(make_ready(1), 6.0)
    tally.add_poll(0, make_poll(1, 10, 0.5), 7.0)
    tally.add_poll(1, make_poll(2, 20), 9.0)
    tally.add_poll(0, make_poll(4, 40, 1.0), 10.0)
    first, second = tally.worker_records()
    assert (first.rows, first.completion_tokens, first.idle_seconds, first.active_seconds) == (4, 40, 1.0, 4.0)
    assert [block.at_seconds for block in first.blocks] == [7.0, 10.0]
    assert (second.rows, second.pid, len(second.blocks)) == (2, 101, 1)
    assert tally.wall_seconds == 5.0
    assert tally.tokens_per_second == pytest.approx((60 - 10) / 3)
    fields = tally.progress_fields(16, PartStats(num_rows=4, num_results=4, num_ok=3))
    assert (fields["rows_done"], fields["num_errors"], fields["acceptance_rate"]) == (6, 1, 0.5)
    assert fields["mean_emitted"] == 60 / 10
    assert fields["tokens_per_second_overall"] == 60 / 5


def spoken(rows: int, tokens: int, *blocks: RoundBlock, active: int = 0, receipts: int = 0) -> WorkerPoll:
    """News with this many rows and tokens done, of which ``receipts`` rows are in a part that is told of now."""
    stats = PartStats(num_rows=receipts, num_results=receipts, num_ok=receipts)
    told = (PartReceipt(0, "data/x", receipts, 1, "", "", True, stats),) if receipts else ()
    return WorkerPoll(told, (), blocks, Progress(rows, tokens, active), MEMORY)


def test_the_eta_comes_from_tokens_that_remain_at_the_pace_of_now() -> None:
    tally = RunTally()
    tally.add_ready(make_ready(0), 0.0)

    def fields(in_parts: int = 0, found: PartStats | None = None, now: float | None = None) -> dict[str, Any]:
        return tally.progress_fields(100, found or PartStats(), rows_in_parts=in_parts, now_seconds=now)

    assert (fields()["remaining_tokens"], fields()["eta_seconds"]) == (None, None), "no evidence of anything"
    for second in range(1, 31):  # ten tokens a second, none of whose rows has ended
        tally.add_poll(0, spoken(0, 0, RoundBlock(num_spec_tokens=10), active=4), float(second))
    assert fields()["eta_seconds"] is None, "how long a row is, nobody knows"
    assert fields()["tokens_per_second"] == 10
    known = PartStats(num_rows=20, num_results=20, num_ok=20, num_completion_tokens=2000)
    resumed = fields(20, known)
    assert resumed["job_rows_done"] == 20
    assert resumed["remaining_tokens"] == 80 * 100 - 300, "earlier runs say how long a row is; 300 are decoded already"
    assert resumed["eta_seconds"] == (80 * 100 - 300) / 10
    tally.add_poll(0, spoken(4, 300), 31.0)
    assert fields()["remaining_tokens"] == 96 * 75
    tally.add_poll(0, spoken(4, 300, RoundBlock(num_spec_tokens=5000), active=4), 32.0)
    assert fields()["remaining_tokens"] == 92 * 75, "rows in flight that are long say nothing of the others"
    assert fields(now=100.0)["tokens_per_second"] == 0, "nothing came of late"
    assert fields(now=100.0)["eta_seconds"] is None
    assert fields(100)["eta_seconds"] == 0.0


def test_rows_of_a_dead_worker_that_are_in_no_part_count_no_more() -> None:
    tally = RunTally()
    tally.add_ready(make_ready(0), 0.0)
    tally.add_ready(make_ready(1), 0.0)
    tally.add_poll(0, spoken(10, 100, receipts=8), 1.0)
    tally.add_poll(1, spoken(5, 50), 2.0)
    assert tally.progress_fields(100, PartStats(), rows_in_parts=8)["job_rows_done"] == 8 + 2 + 5
    tally.add_death(0)
    fields = tally.progress_fields(100, PartStats(), rows_in_parts=8)
    assert fields["job_rows_done"] == 8 + 5
    assert [line["worker"] for line in fields["workers"]] == [1]
    tally.add_death(7)


def test_errors_in_a_part_that_a_dead_worker_did_not_tell_of_count() -> None:
    tally = RunTally()
    tally.add_ready(make_ready(0), 0.0)
    tally.add_death(0)
    stats = PartStats(num_rows=2, num_results=2, num_ok=1, errors_by_code=(("ROW_PROMPT_NULL", 1),))
    tally.add_found(0, [PartReceipt(0, "data/part", 2, 1, "", "token", created=False, stats=stats)])
    assert tally.errors_by_code == {"ROW_PROMPT_NULL": 1}


def test_acceptance_and_k_are_known_before_the_first_row_is_done() -> None:
    tally = RunTally()
    tally.add_ready(make_ready(0), 0.0)
    tally.add_poll(0, spoken(0, 0), 0.0)
    old = RoundBlock(num_spec_tokens=10, draft_length_histogram=(0, 100), num_accepted_draft_tokens=100)
    tally.add_poll(0, spoken(0, 0, old), 1.0)
    new = RoundBlock(num_spec_tokens=10, draft_length_histogram=(1, 0, 3), num_accepted_draft_tokens=3)
    tally.add_poll(0, spoken(0, 0, new), 40.0)
    tally.add_poll(0, spoken(0, 0, new), 41.0)
    fields = tally.progress_fields(16, PartStats())
    assert fields["k_shares"] == {"0": 0.25, "2": 0.75}, "lately: the window begins behind the first block"
    assert fields["acceptance_rate"] == 106 / 112
    assert fields["mean_accepted"] == 106 / 106


def test_every_worker_has_a_line_with_its_state() -> None:
    tally = RunTally()
    tally.add_ready(make_ready(1), 0.0)
    progress = Progress(4, 40, 3, writing_shard=12, writing_seconds=185.04, errors_by_code=(("ROW_A", 2),))
    tally.add_poll(1, WorkerPoll((), (), (), progress, MEMORY), 4.0)
    views = (WorkerView(0, "starting", "", ()), WorkerView(1, "suspect", "host/cpu", (3, 4)))
    fields = tally.progress_fields(16, PartStats(errors_by_code=(("ROW_A", 1), ("ROW_B", 1))), views=views)
    assert fields["errors_by_code"] == {"ROW_A": 3, "ROW_B": 1}
    assert fields["workers"] == [
        {"worker": 0, "state": "starting", "shards": []},
        {
            "worker": 1,
            "state": "suspect",
            "shards": [3, 4],
            "pid": 101,
            "host": "host",
            "place": "host/cpu",
            "rows_done": 4,
            "rows_active": 3,
            "completion_tokens": 40,
            "tokens_per_second": 0.0,
            "memory_bytes": 5,
            "writing_shard": 12,
            "writing_seconds": 185.0,
        },
    ]


def test_a_window_forgets_and_thins_out() -> None:
    window = Window(10.0)
    assert (window.rate(), window.span_seconds) == (0.0, 0.0)
    for step in range(1000):
        window.add(step / 10, (step, 2 * step, 3))
    assert window.rate() == pytest.approx(10)
    assert 10 <= window.span_seconds < 12
    assert window.growth()[1][1] == 2 * window.growth()[1][0]
    assert window.growth()[1][2] == 0
    assert len(window._samples) < 15
    assert window.rate(200.0) == 0


def test_devices_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    from specbatch.jobs.planning import machine

    assert 1 <= count_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(machine, "_device_names", lambda: ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"])
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0")
    counts = [count_cuda_devices({"CUDA_VISIBLE_DEVICES": text}) for text in ("0,1", "1", "", "-1", "0,-1,1", "0,1,2")]
    assert counts == [2, 1, 0, 0, 1, 2]
    assert count_cuda_devices({}) == 2
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0+cpu")
    assert count_cuda_devices({}) == 0


def test_the_fullest_gpu_decides_how_much_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "$@" > "$0.log"\necho 4096\necho 1024\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert cuda_free_bytes({"CUDA_VISIBLE_DEVICES": "1,3"}) == 1 << 30
    assert "-i 1,3" in (tmp_path / "nvidia-smi.log").read_text()
    tool.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert cuda_free_bytes({}) is None
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cuda_free_bytes({}) is None


def test_a_slow_write_is_told_once_and_is_the_reason_of_a_kill() -> None:
    process = WorkerProcess(3, None)
    told = [
        process.watch_writing(Progress(writing_shard=12, writing_seconds=seconds))
        for seconds in (5.0, 119.0, 130.0, 140.0)
    ]
    assert told == [None, None, "worker 3 is slow: it has been writing the part of shard 12 for 130 s", None]
    assert process.slow_write == "it has been writing the part of shard 12 for 140 s"
    assert process.watch_writing(Progress()) is None
    assert process.slow_write is None
