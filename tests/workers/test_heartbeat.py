"""The heartbeat of the decode loop, by a clock of our own and in a worker that really hangs (fault 5)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from shard_helpers import cut, make_config, poll_until, write_dataset

from specbatch.jobs.coordinator.policy import HUNG_SECONDS
from specbatch.schemas import failpoints
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.messages import Lease, PartReceipt, Progress
from specbatch.specdec.output import SequenceOutput
from specbatch.workers import worker as worker_module
from specbatch.workers.heartbeat import (
    WRITER_SILENCE_SECONDS,
    Heartbeat,
    Writing,
    write_limit_seconds,
    writer_silence_seconds,
)
from specbatch.workers.part_writer import PartWriter
from specbatch.workers.shards import FinishedShard
from specbatch.workers.worker import Worker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_age_and_median() -> None:
    clock = Clock()
    heartbeat = Heartbeat(clock)
    assert (heartbeat.age_seconds, heartbeat.median_step_seconds) == (0, 0)
    for step in (1.0, 1.0, 2.0, 40.0):
        heartbeat.beat()
        clock.now += step
    assert heartbeat.age_seconds == 40
    heartbeat.beat()
    assert (heartbeat.age_seconds, heartbeat.median_step_seconds) == (0, 1.5)
    clock.now += 7
    heartbeat.rest()
    clock.now += 1000
    assert heartbeat.age_seconds == 0
    heartbeat.beat()
    clock.now += 3
    assert (heartbeat.age_seconds, heartbeat.median_step_seconds) == (3, 1.5), "a rest is no step"


def test_old_steps_are_forgotten() -> None:
    clock = Clock()
    heartbeat = Heartbeat(clock)
    for step in [9.0] * 100 + [2.0] * 64:
        heartbeat.beat()
        clock.now += step
    heartbeat.beat()
    assert heartbeat.median_step_seconds == 2


def test_a_worker_that_waits_has_no_age_and_one_that_decodes_a_small_one(tmp_path: Path) -> None:
    worker = Worker(make_config(tmp_path / "out"), lambda config: FakeEngine(config, step_seconds=0.02))
    worker.ready()
    time.sleep(0.3)
    assert worker.poll(0).progress.beat_age_seconds == 0
    (shard,) = cut([write_dataset(tmp_path / "in.parquet", ["x" * 30] * 8)], 8)
    worker.assign(Lease(shard, 1))
    ages = []
    while not (news := worker.poll(0.03)).receipts:
        ages.append(news.progress.beat_age_seconds)
    assert 0 < max(ages) < 1
    assert 0.02 <= news.progress.median_step_seconds < 0.5
    time.sleep(0.1)
    assert worker.poll(0).progress.beat_age_seconds == 0
    worker.stop()


def poll_for(worker: Worker, is_so: Callable[[Progress], bool]) -> Progress:
    """Poll until the worker says so."""
    deadline = time.monotonic() + 30
    while not is_so(progress := worker.poll(0.02).progress):
        assert time.monotonic() < deadline, progress
    return progress


def test_fault_5_a_loop_that_hangs_in_native_code_answers_with_a_growing_age(tmp_path: Path) -> None:
    waiting, waking = os.pipe()
    hangs = threading.Event()

    class HangingEngine(FakeEngine):
        """Its third round lasts, in C, until something comes through the pipe."""

        def step(self) -> list[SequenceOutput]:
            if self._num_rounds == 2:
                hangs.set()
                os.read(waiting, 1)
            return super().step()

    worker = Worker(make_config(tmp_path / "out"), HangingEngine)
    worker.ready()
    (shard,) = cut([write_dataset(tmp_path / "in.parquet", ["x" * 30] * 4)], 4)
    worker.assign(Lease(shard, 1))
    assert hangs.wait(30)
    ages = [worker.poll(0.3).progress.beat_age_seconds for _ in range(4)]
    assert ages == sorted(ages)
    assert ages[-1] > ages[0] + 0.6
    os.write(waking, b".")
    assert len(poll_until(worker, 1).receipts) == 1, "it wakes up and finishes"
    worker.stop()
    os.close(waiting)
    os.close(waking)


def test_fault_5_the_hang_failpoint_shows_in_the_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_reached", failpoints.Counter())
    monkeypatch.setenv("SPECBATCH_FAILPOINT", "decode_step:before:3:hang")
    worker = Worker(make_config(tmp_path / "out"), FakeEngine)
    worker.ready()
    (shard,) = cut([write_dataset(tmp_path / "in.parquet", ["x" * 30] * 4)], 4)
    worker.assign(Lease(shard, 1))
    age = poll_for(worker, lambda progress: progress.beat_age_seconds > 0.8).beat_age_seconds
    assert worker.poll(0.3).progress.beat_age_seconds > age + 0.25


def test_a_part_that_is_being_written_is_named_with_its_time() -> None:
    clock = Clock()
    writing = Writing(clock)
    assert writing.now() == (None, 0)
    writing.begin(12)
    clock.now += 185
    assert writing.now() == (12, 185)
    writing.end()
    assert writing.now() == (None, 0)


def test_the_limit_is_the_patience_of_the_store_and_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECBATCH_STORE_PATIENCE_SECONDS", "300")
    assert write_limit_seconds("s3://bucket/out") == 900
    assert write_limit_seconds("/data/out") == 720


def test_a_writer_falls_silent_so_long_before_the_limit_that_it_is_killed_at_it() -> None:
    limit = write_limit_seconds("/data/out")
    assert WRITER_SILENCE_SECONDS == HUNG_SECONDS
    assert [writer_silence_seconds(seconds, limit) for seconds in (0, 600, 601, 720)] == [0, 0, 1, HUNG_SECONDS]


def test_a_writer_that_never_comes_back_shows_and_in_the_end_counts_as_hung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    write = PartWriter.write

    def hang(writer: PartWriter, finished: FinishedShard) -> PartReceipt:
        released.wait(60)
        return write(writer, finished)

    monkeypatch.setattr(PartWriter, "write", hang)
    monkeypatch.setattr(worker_module, "write_limit_seconds", lambda output: 1e9)
    worker = Worker(make_config(tmp_path / "out"), FakeEngine)
    worker.ready()
    (shard,) = cut([write_dataset(tmp_path / "in.parquet", ["x" * 3] * 4)], 4)
    worker.assign(Lease(shard, 1))
    progress = poll_for(worker, lambda progress: progress.writing_seconds > 0.2)
    assert (progress.writing_shard, progress.beat_age_seconds) == (shard.index, 0), "slow, but no hang yet"
    assert worker._write_limit_seconds == 1e9
    worker._write_limit_seconds = WRITER_SILENCE_SECONDS + 0.1
    progress = worker.poll(0).progress
    assert progress.beat_age_seconds == pytest.approx(progress.writing_seconds - 0.1)
    assert progress.writing_seconds > 0.2
    released.set()
    assert len(poll_until(worker, 1).receipts) == 1
    progress = poll_for(worker, lambda progress: progress.writing_shard is None)
    assert progress.beat_age_seconds == 0
    worker.stop()


@pytest.mark.parametrize("way", ["its own error", "told by its ranks"])
def test_a_worker_that_died_does_not_age_while_its_writer_waits_for_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Else it is killed as one that hangs, and nobody learns what it died of."""
    error = SpecbatchError(ErrorCode.JOB_DEVICE, "it miscounts")
    is_writing, is_stuck, released = threading.Event(), threading.Event(), threading.Event()
    write = PartWriter.write

    def wait(writer: PartWriter, finished: FinishedShard) -> PartReceipt:
        is_writing.set()
        released.wait(20)
        return write(writer, finished)

    class Breaking(FakeEngine):
        def step(self) -> list[SequenceOutput]:
            if not is_writing.is_set():
                return super().step()
            if way == "its own error":
                raise error
            is_stuck.set()
            released.wait(20)
            return []

    monkeypatch.setattr(PartWriter, "write", wait)
    worker = Worker(make_config(tmp_path / "out"), Breaking)
    worker.ready()
    first, second = cut([write_dataset(tmp_path / "in.parquet", ["first", "second"])], 1)
    worker.assign(Lease(first, 1))
    assert is_writing.wait(20)
    worker.assign(Lease(second, 1))
    if way == "its own error":
        decode = next(thread for thread in worker._threads if thread.name == "specbatch-decode")
        decode.join(20)
        assert not decode.is_alive()
    else:
        assert is_stuck.wait(20)
        worker.lose(error)
    time.sleep(0.01)
    progress = worker.poll(0).progress
    assert (progress.writing_shard, progress.beat_age_seconds) == (0, 0)
    released.set()
    worker.stop()
    assert [receipt.shard for receipt in worker.poll(0).receipts] == [0]
    with pytest.raises(SpecbatchError, match="it miscounts"):
        worker.poll(0)
