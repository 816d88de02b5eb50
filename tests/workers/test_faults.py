"""What ends a shard and leaves the worker whole, what ends the worker, and the device that must prove itself."""

from __future__ import annotations

import errno
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_engine import FakeEngine
from shard_helpers import PLAN, cut, make_config, poll_until, run_shards, write_dataset

import specbatch
from specbatch.schemas import failpoints
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.messages import Lease, PartReceipt
from specbatch.schemas.plan import part_name
from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.engine import Engine
from specbatch.specdec.output import SequenceOutput
from specbatch.workers.decoding import ENGINE_FACTORY_VARIABLE, load_engine
from specbatch.workers.faults import shard_failed
from specbatch.workers.shards import FinishedShard
from specbatch.workers.trust import DeviceTrust
from specbatch.workers.worker import Worker

PAIR = Path(specbatch.__file__).parent / "assets" / "code-pair"
PROMPTS = [f"prompt {i}" for i in range(30)]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_reached", failpoints.Counter())


# ---- disk and memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failpoint", "code"),
    [
        ("part_spool:before:2:enospc", "SHARD_DISK_FULL"),
        ("part_spool:after:2:enospc", "SHARD_DISK_FULL"),
        ("part_spool:before:2:oom", "SHARD_OOM"),
        ("shard_read:before:2:oom", "SHARD_OOM"),
        ("shard_read:after:2:oom", "SHARD_OOM"),
    ],
)
def test_faults_9_and_41_the_shard_fails_and_the_worker_goes_on(
    failpoint: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECBATCH_FAILPOINT", failpoint)
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 10)
    news = run_shards(Worker(make_config(tmp_path / "out"), FakeEngine), shards)
    num_rows_done = 10 if failpoint.startswith("part_") else 0
    assert [(failure.shard, failure.code, failure.num_rows_done) for failure in news.failures] == [
        (1, code, num_rows_done)
    ]
    assert sorted(receipt.shard for receipt in news.receipts) == [0, 2]
    assert list((tmp_path / "out/_specbatch/tmp").iterdir()) == []
    assert "prompt" not in news.failures[0].message


LIMITED = """
import json, resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from fake_engine import FakeEngine
from shard_helpers import cut, make_config, run_shards
from specbatch.workers.worker import Worker
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
shards = cut([Path(sys.argv[2])], 5)
news = run_shards(Worker(make_config(Path(sys.argv[3]), batch_size=5), FakeEngine), shards)
print(json.dumps([[r.shard for r in news.receipts], [[f.shard, f.code] for f in news.failures]]))
"""


def test_fault_41_a_real_limit_in_the_middle_of_the_file(tmp_path: Path) -> None:
    noise = random.Random(1)
    large = ["" if i < 5 else noise.randbytes(40_000).hex() for i in range(10)]
    dataset = write_dataset(tmp_path / "in.parquet", PROMPTS[:10], large=large)
    command = [sys.executable, "-c", LIMITED, str(Path(__file__).parent), str(dataset), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[0], [[1, "SHARD_DISK_FULL"]]]
    assert list((tmp_path / "out/_specbatch/tmp").iterdir()) == []


def test_the_cause_behind_an_error_decides(tmp_path: Path) -> None:
    (shard,) = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 30)

    def code_behind(cause: BaseException | None) -> str:
        error = SpecbatchError(ErrorCode.JOB_OUTPUT_UNWRITABLE, "cannot write")
        error.__cause__ = cause
        return shard_failed(Lease(shard, 1), error, 0).code

    assert code_behind(OSError(errno.EDQUOT, "quota")) == "SHARD_DISK_FULL"
    assert code_behind(OSError(errno.EACCES, "denied")) == "JOB_OUTPUT_UNWRITABLE"
    assert code_behind(None) == "JOB_OUTPUT_UNWRITABLE"
    wrapped = ValueError()
    wrapped.__cause__ = MemoryError()
    assert code_behind(wrapped) == "SHARD_OOM"
    failed = shard_failed(Lease(shard, 3), MemoryError(), 0)
    assert (failed.shard, failed.attempt, failed.code) == (0, 3, "SHARD_OOM")


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_the_engine_may_come_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENGINE_FACTORY_VARIABLE, "fake_engine:FakeEngine")
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 10)
    assert len(run_shards(Worker(make_config(tmp_path / "out")), shards).receipts) == 3


@pytest.mark.parametrize("name", ["", "fake_engine", "fake_engine:Missing", "no_such_module:make", ":make"])
def test_a_factory_that_cannot_be_imported_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENGINE_FACTORY_VARIABLE, name)
    with pytest.raises(SpecbatchError, match="JOB_CONFIG: SPECBATCH_ENGINE_FACTORY="):
        load_engine(make_config(tmp_path / "out"))


def test_fault_10_a_load_that_breaks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENGINE_FACTORY_VARIABLE, "fake_engine:FakeEngine")
    monkeypatch.setenv("SPECBATCH_FAILPOINT", "worker_load:before:1:error")
    with pytest.raises(SpecbatchError, match="JOB_MODEL_LOAD"):
        Worker(make_config(tmp_path / "out")).ready()
    Worker(make_config(tmp_path / "out")).ready()


def test_fault_6_an_error_of_the_loop_is_told_once_what_was_finished_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECBATCH_FAILPOINT", "row_submit:before:1:error")
    monkeypatch.setenv("SPECBATCH_FAILPOINT_ROW", "25")
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 10)
    worker = Worker(make_config(tmp_path / "out", batch_size=2), FakeEngine)
    write = worker._writer.write

    def write_late(finished: FinishedShard) -> PartReceipt:
        time.sleep(0.3)  # the loop is dead by now
        return write(finished)

    monkeypatch.setattr(worker._writer, "write", write_late)
    worker.ready()
    for shard in shards:
        worker.assign(Lease(shard, 1))
    news = poll_until(worker, 2)
    assert sorted(receipt.shard for receipt in news.receipts) == [0, 1]
    with pytest.raises(RuntimeError, match="failpoint row_submit:before"):
        worker.poll(10)
    worker.stop()


@pytest.mark.parametrize("name", ["reader", "writer"])
def test_a_thread_that_cannot_start_ends_the_worker(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a limit of the system is reached; nobody waits for the parts of a writer that there never was."""
    start = threading.Thread.start

    def start_most(thread: threading.Thread) -> None:
        if thread.name == f"specbatch-{name}":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_most)
    worker = Worker(make_config(tmp_path / "out"), FakeEngine)
    worker.ready()
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        worker.poll(20)
    assert time.monotonic() - started < 10
    worker.stop()


def test_nothing_is_passed_to_a_writer_that_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that dies meanwhile would be told before its parts."""
    monkeypatch.setenv("SPECBATCH_FAILPOINT", "row_submit:before:1:error")
    monkeypatch.setenv("SPECBATCH_FAILPOINT_ROW", "25")
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 10)
    worker = Worker(make_config(tmp_path / "out", batch_size=2), FakeEngine)
    write = worker._write

    def begin_late() -> None:
        time.sleep(0.5)
        write()

    monkeypatch.setattr(worker, "_write", begin_late)
    worker.ready()
    for shard in shards:
        worker.assign(Lease(shard, 1))
    news = poll_until(worker, 2)
    assert sorted(receipt.shard for receipt in news.receipts) == [0, 1]
    with pytest.raises(RuntimeError, match="failpoint row_submit:before"):
        worker.poll(10)
    worker.stop()


# ---- the device must prove itself ------------------------------------------------------------------------------------


def test_asking_takes_a_hundredth_of_the_time_at_most(tmp_path: Path) -> None:
    class SlowToProve(FakeEngine):
        def check_device(self) -> None:
            nonlocal now
            super().check_device()
            now += 0.05

    now = 1000.0
    engine = SlowToProve(make_config(tmp_path / "out"))
    trust = DeviceTrust(lambda: now)
    asked = []
    for _ in range(200):
        trust.check(engine)
        asked.append(engine.num_checks)
        now += 0.2
    assert asked[0] == 1, "before the first part in any case"
    assert engine.num_checks == 8, "every five seconds of forty"


def test_fault_7_nothing_is_committed_once_the_device_lies(tmp_path: Path) -> None:
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 10)
    engines: list[FakeEngine] = []

    def make(config: Any) -> FakeEngine:
        engines.append(FakeEngine(config))
        return engines[0]

    worker = Worker(make_config(tmp_path / "out"), make)
    worker.ready()
    worker.assign(Lease(shards[0], 1))
    assert len(poll_until(worker, 1).receipts) == 1
    engines[0].is_lying = True
    worker.assign(Lease(shards[1], 1))
    with pytest.raises(SpecbatchError, match="JOB_DEVICE"):
        poll_until(worker, 1)
    worker.stop()
    assert list((tmp_path / "out/data").iterdir()) == [tmp_path / "out" / part_name(0, PLAN)]


def pair_config(output: Path, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "target_path": str(PAIR / "target"),
        "draft_path": str(PAIR / "draft-taught"),
        "dtype": "float32",
        "speculation": 3,
        "batch_size": 3,
    }
    return make_config(output, **{**values, **changes})


def test_fault_7_a_weight_that_changes_is_found_before_the_part(tmp_path: Path) -> None:
    """Fluent garbage: the logits stay finite, so no row is an error row."""
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 10)
    engines: list[Engine] = []

    def make(config: Any) -> Any:
        engines.append(load_engine(config))  # type: ignore[arg-type]
        return engines[0]

    worker = Worker(pair_config(tmp_path / "out"), make)
    worker.ready()
    worker._trust = DeviceTrust(lambda: 0.0)  # asking costs nothing, so it asks before every part
    worker.assign(Lease(shards[0], 1))
    assert len(poll_until(worker, 1, limit_seconds=100).receipts) == 1
    with torch.inference_mode():
        engines[0]._batch.target.embedding.mul_(1.01)  # type: ignore[attr-defined]
    worker.assign(Lease(shards[1], 1))
    with pytest.raises(SpecbatchError, match="JOB_DEVICE"):
        poll_until(worker, 1)
    worker.stop()
    assert list((tmp_path / "out/data").iterdir()) == [tmp_path / "out" / part_name(0, PLAN)]


def test_cancelled_rows_leave_the_engine_and_change_nothing_for_the_others(tmp_path: Path) -> None:
    params = [SamplingParams(max_new_tokens=24, temperature=0.8, seed=seed) for seed in range(8)]

    def decode(cancelled: set[int], rounds: int) -> dict[Any, SequenceOutput]:
        engine = load_engine(pair_config(tmp_path / "out"))
        for key in range(8):
            engine.submit(key, engine.tokenizer.encode(f"def f{key}(x):\n    return"), params[key])
        outputs = {output.key: output for _ in range(rounds) for output in engine.step()}
        cancelled = cancelled - outputs.keys()
        engine.cancel(cancelled)
        while engine.num_active or engine.num_queued:
            outputs.update((output.key, output) for output in engine.step())
        engine.check_device()
        assert not cancelled & outputs.keys()
        return outputs

    whole = decode(set(), 0)
    for rounds in (0, 2, 5):
        left = decode({0, 2, 5}, rounds)
        assert {1, 3, 4, 6, 7} <= left.keys() < whole.keys()
        assert all(left[key].token_ids == whole[key].token_ids for key in left)
