from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_engine import FakeEngine
from shard_helpers import PLAN, cut, make_config, poll_until, read_part, run_shards, write_dataset

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.messages import Lease, WorkerConfig
from specbatch.schemas.plan import Segment, Shard, part_name
from specbatch.schemas.prompt import PassThrough
from specbatch.schemas.seeds import row_seed
from specbatch.schemas.spec import GenerationSpec
from specbatch.schemas.stats import PartStats
from specbatch.specdec.output import SequenceOutput
from specbatch.storage.parts import read_part_meta
from specbatch.workers.shards import ShardInFlight
from specbatch.workers.worker import Worker

PROMPTS = [f"prompt {i} " + "x" * (i * 7 % 11) for i in range(50)]


class Bench:
    """A worker whose fake engine the test can reach."""

    def __init__(self, config: WorkerConfig, fail_on: bytes | None = None, step_seconds: float = 0.001) -> None:
        self.engines: list[FakeEngine] = []
        self.fail_on = fail_on
        self.step_seconds = step_seconds
        self.worker = Worker(config, self.make_engine)

    def make_engine(self, config: WorkerConfig) -> FakeEngine:
        engine = FakeEngine(config, step_seconds=self.step_seconds)
        engine.fail_on = self.fail_on
        self.engines.append(engine)
        return engine


def test_every_row_exactly_once_with_its_own_columns(tmp_path: Path) -> None:
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 8)
    bench = Bench(make_config(tmp_path / "out"))
    news = run_shards(bench.worker, shards)
    assert news.failures == []
    assert sorted(receipt.shard for receipt in news.receipts) == list(range(7))
    rows = [row for shard in range(7) for row in read_part(tmp_path / "out", shard)]
    assert [row["row_id"] for row in rows] == [row["n"] for row in rows] == list(range(50))
    assert [row["completion"] for row in rows] == PROMPTS
    assert [row["row_seed"] for row in rows] == [row_seed(0, row_id, 0) for row_id in range(50)]


def test_receipts_say_what_lies_there(tmp_path: Path) -> None:
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 20)
    news = run_shards(Bench(make_config(tmp_path / "out")).worker, shards)
    for receipt in news.receipts:
        path = tmp_path / "out" / receipt.path
        meta = read_part_meta(path)
        assert receipt.path == part_name(receipt.shard, PLAN)
        assert (receipt.created, receipt.token, receipt.stats) == (True, meta.token, meta.stats)
        assert (receipt.num_rows, receipt.num_bytes) == (meta.stats.num_rows, path.stat().st_size)
        assert receipt.sha256 == subprocess.check_output(["sha256sum", path], text=True).split()[0]


def patient_worker(config: WorkerConfig, num_shards: int, kind: type[FakeEngine]) -> tuple[Worker, list[FakeEngine]]:
    """A worker whose rounds wait until its reader has read as far ahead as it means to, however slow it is."""
    num_read = 0
    engines: list[FakeEngine] = []

    class Patient(kind):  # type: ignore[misc, valid-type]
        def step(self) -> list[SequenceOutput]:
            with pipeline.changed:
                has_read = pipeline.changed.wait_for(lambda: num_read == num_shards or not pipeline._needs_rows(), 60)
            assert has_read
            return super().step()  # type: ignore[no-any-return]

    def make(config: WorkerConfig) -> FakeEngine:
        engines.append(Patient(config))
        return engines[0]

    def put(shard: ShardInFlight) -> None:
        nonlocal num_read
        with pipeline.changed:
            put_loaded(shard)
            num_read += 1

    worker = Worker(config, make)
    pipeline = worker._pipeline
    put_loaded, pipeline.put_loaded = pipeline.put_loaded, put  # type: ignore[method-assign]
    return worker, engines


def test_slots_refill_across_shard_borders(tmp_path: Path) -> None:
    """While leases wait, no round runs with a free slot: only the rows of the last few may leave slots empty."""
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 5)
    worker, engines = patient_worker(make_config(tmp_path / "out", batch_size=4), len(shards), FakeEngine)
    for shard in shards:
        worker.assign(Lease(shard, 1))
    worker.ready()
    poll_until(worker, len(shards))
    worker.stop()
    (engine,) = engines
    tail = engine.log[-4:]
    started = [keys for _, keys in engine.starved if not set(keys) <= set(tail)]
    assert started == [], started
    shards_of_first_rounds = {key[0] for key in engine.log[4:8]}  # type: ignore[index]
    assert shards_of_first_rounds == {0, 1}, "rows of two shards decode side by side"


def test_phase_seconds_of_the_parts_sum_up_to_the_workers(tmp_path: Path) -> None:
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 8)
    bench = Bench(make_config(tmp_path / "out"))
    news = run_shards(bench.worker, shards)
    (engine,) = bench.engines
    total = sum((receipt.stats for receipt in news.receipts), PartStats())
    assert total.seconds.score == engine.seconds.score > 0
    assert total.seconds.load > 0
    assert all(receipt.stats.seconds.write > 0 for receipt in news.receipts)
    assert news.last is not None
    assert total.seconds.write <= news.last.progress.seconds.write
    assert news.last.progress.seconds.load == pytest.approx(total.seconds.load)


def test_progress_memory_and_blocks(tmp_path: Path) -> None:
    prompts = [*PROMPTS, None, "numeric"]
    shards = cut([write_dataset(tmp_path / "in.parquet", prompts)], 8)
    bench = Bench(make_config(tmp_path / "out"))
    ready = bench.worker.ready()
    assert (ready.pid, ready.device, ready.dtype, ready.memory.target_bytes) == (os.getpid(), "cpu", "float32", 1)
    assert {"python", "torch", "specbatch"} <= dict(ready.versions).keys()
    for shard in shards:
        bench.worker.assign(Lease(shard, 1))
    news = poll_until(bench.worker, len(shards))
    bench.worker.stop()
    assert news.last is not None
    progress = news.last.progress
    assert (progress.num_rows_done, progress.num_errors, progress.num_rows_active) == (52, 2, 0)
    assert progress.num_completion_tokens == sum(map(len, PROMPTS)) == progress.counters.num_plain_steps
    (engine,) = bench.engines
    assert sum(block.num_plain_rounds for block in news.blocks) == engine.seconds.score, (
        "all blocks come before the end"
    )


def test_the_engine_takes_no_step_without_rows(tmp_path: Path) -> None:
    """What such a step gave would be lost. The block of rounds is closed by the step in which the last row ends."""
    idle: list[int] = []
    engines: list[FakeEngine] = []

    class Watched(FakeEngine):
        def step(self) -> list[SequenceOutput]:
            if not self.num_active and not self.num_queued:
                idle.append(self._num_rounds)
            return super().step()

    def make(config: WorkerConfig) -> FakeEngine:
        engines.append(Watched(config))
        return engines[0]

    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS[:6])], 3)
    news = run_shards(Worker(make_config(tmp_path / "out"), make), shards)
    assert idle == []
    assert sum(block.num_plain_rounds for block in news.blocks) == engines[0].seconds.score


def test_error_rows_stand_among_the_others(tmp_path: Path) -> None:
    broken = pa.array([b"fine", b"\xff", None, b" ", b"y" * 64, b"numeric", b"last"], pa.binary()).view(pa.string())
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": broken, "keep": [{"a": [i]} for i in range(7)]}), path)
    news = run_shards(Bench(make_config(tmp_path / "out")).worker, cut([path], 7))
    table = pq.ParquetFile(tmp_path / "out" / part_name(0, PLAN)).read()
    assert table.column("prompt").cast(pa.binary()).to_pylist() == broken.cast(pa.binary()).to_pylist()
    rows = table.drop_columns(["prompt"]).to_pylist()
    codes = [None, "ROW_ENCODING", "ROW_PROMPT_NULL", "ROW_PROMPT_EMPTY", "ROW_TOO_LONG", "ROW_NUMERIC", None]
    assert [row["error_code"] for row in rows] == codes
    assert [row["status"] for row in rows] == ["ok", *["error"] * 5, "ok"]
    assert [row["keep"] for row in rows] == [{"a": [i]} for i in range(7)]
    for row in rows[1:6]:
        assert (row["completion"], row["completion_token_ids"], row["min_margin"]) == (None, None, None)
        assert (row["num_prompt_tokens"], row["num_completion_tokens"], row["num_plain_steps"]) == (0, 0, 0)
    assert news.receipts[0].stats.errors_by_code == tuple(sorted((code, 1) for code in codes if code))


def test_samples_of_a_row_are_submitted_one_after_another_and_stand_side_by_side(tmp_path: Path) -> None:
    prompts = [*PROMPTS[:9], None, "numeric"]
    generation = GenerationSpec(max_new_tokens=32, temperature=1.0, num_samples=3, logprobs=True)
    shards = cut([write_dataset(tmp_path / "in.parquet", prompts)], 4)
    bench = Bench(make_config(tmp_path / "out", generation=generation))
    news = run_shards(bench.worker, shards)
    rows = [row for shard in range(3) for row in read_part(tmp_path / "out", shard)]
    assert [(row["row_id"], row["sample_index"]) for row in rows] == [(i, s) for i in range(11) for s in range(3)]
    assert [row["row_seed"] for row in rows] == [row_seed(0, i, s) for i in range(11) for s in range(3)]
    assert [row["prompt"] for row in rows] == [prompt for prompt in prompts for _ in range(3)]
    assert [row["error_code"] for row in rows[27:]] == ["ROW_PROMPT_NULL"] * 3 + ["ROW_NUMERIC"] * 3
    for row in rows[:27]:
        assert row["logprobs"] == [-float(token) for token in row["completion_token_ids"]]
    assert [row["logprobs"] for row in rows[27:]] == [None] * 6
    (engine,) = bench.engines
    submitted = [(0, p) for p in range(12)] + [(1, p) for p in range(12)] + [(2, p) for p in (0, 1, 2, 6, 7, 8)]
    assert engine.log == submitted
    assert {(receipt.num_rows, receipt.stats.num_results) for receipt in news.receipts} == {(4, 12), (3, 9)}
    assert news.last is not None
    assert (news.last.progress.num_rows_done, news.last.progress.num_errors) == (11, 6)


def test_the_engine_says_how_many_rows_it_wants(tmp_path: Path) -> None:
    """A batch that grows while decoding (a draft was given up) is filled; the configured one is only the first."""
    most = 0

    class Growing(FakeEngine):
        def _round(self) -> list[Any]:
            nonlocal most
            most = max(most, self.num_active)
            self.max_batch_size = 24
            return super()._round()

    shards = cut([write_dataset(tmp_path / "in.parquet", ["x"] * 60)], 4)
    worker, _ = patient_worker(make_config(tmp_path / "out", batch_size=2), len(shards), Growing)
    run_shards(worker, shards)
    assert most == 24


def test_a_shard_of_error_rows_only_and_one_without_rows(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "in.parquet", [None] * 5)
    (shard,) = cut([path], 5)
    empty = Shard(1, (replace(shard.segments[0], row_start=5, row_stop=5, first_row_id=5),))
    news = run_shards(Bench(make_config(tmp_path / "out")).worker, [shard, empty])
    assert {receipt.shard: receipt.num_rows for receipt in news.receipts} == {0: 5, 1: 0}
    assert read_part(tmp_path / "out", 1) == []


@pytest.mark.parametrize("columns", [("id", "prompt"), ("prompt", "id"), ()])
def test_a_shard_over_two_files_with_other_column_orders(tmp_path: Path, columns: tuple[str, ...]) -> None:
    one = tmp_path / "a.parquet"
    two = tmp_path / "b.parquet"
    pq.write_table(pa.table({"id": ["a", "b", "c"], "prompt": ["p0", "p1", "p2"]}), one)
    schema = pa.schema([pa.field("prompt", pa.string(), metadata={"x": "y"}), ("id", pa.string())], metadata={"m": "n"})
    pq.write_table(pa.table({"prompt": ["p3", "p4", "p5"], "id": ["d", "e", "f"]}, schema=schema), two)
    shards = cut([one, two], 4)
    assert [len(shard.segments) for shard in shards] == [2, 1]
    passed = PassThrough(tuple((name, name) for name in columns)) if columns else None
    run_shards(Bench(make_config(tmp_path / "out", pass_through=passed)).worker, shards)
    rows = read_part(tmp_path / "out", 0) + read_part(tmp_path / "out", 1)
    assert "".join(row["id"] for row in rows) == "abcdef"
    assert [row["completion"] for row in rows] == [f"p{i}" for i in range(6)]
    # The part that comes from the second file alone has that order, too, unless it was left open.
    names = [pq.ParquetFile(tmp_path / "out" / part_name(shard, PLAN)).schema_arrow.names[:2] for shard in (0, 1)]
    assert names == ([list(columns)] * 2 if columns else [["id", "prompt"], ["prompt", "id"]])


def test_leases_out_of_order(tmp_path: Path) -> None:
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 8)
    news = run_shards(Bench(make_config(tmp_path / "out")).worker, [shards[5], shards[1]])
    assert sorted(receipt.shard for receipt in news.receipts) == [1, 5]
    assert [row["n"] for row in read_part(tmp_path / "out", 5)] == list(range(40, 48))
    assert [row["n"] for row in read_part(tmp_path / "out", 1)] == list(range(8, 16))


def test_the_same_rows_whatever_the_batch_and_the_order(tmp_path: Path) -> None:
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 8)
    run_shards(Bench(make_config(tmp_path / "one", batch_size=1)).worker, shards)
    run_shards(Bench(make_config(tmp_path / "many", batch_size=16)).worker, shards[::-1])
    for shard in shards:
        assert read_part(tmp_path / "one", shard.index) == read_part(tmp_path / "many", shard.index)


def test_drain_finishes_what_has_begun_and_forgets_the_rest(tmp_path: Path) -> None:
    has_begun, is_drained = threading.Event(), threading.Event()

    class Held(FakeEngine):
        def step(self) -> list[SequenceOutput]:
            outputs = super().step()
            has_begun.set()
            assert is_drained.wait(60)
            return outputs

    shards = cut([write_dataset(tmp_path / "in.parquet", ["x" * 30] * 50)], 10)
    worker = Worker(make_config(tmp_path / "out", batch_size=2), Held)
    worker.ready()
    for shard in shards:
        worker.assign(Lease(shard, 1))
    assert has_begun.wait(60)
    worker.drain()
    worker.assign(Lease(shards[4], 1))
    is_drained.set()
    news = poll_until(worker, 1)
    time.sleep(0.2)
    news.poll(worker, 0)
    assert [receipt.shard for receipt in news.receipts] == [0]
    assert news.last is not None
    assert (news.last.progress.num_rows_active, news.last.progress.num_rows_done) == (0, 10)
    worker.stop()


def test_stop_ends_at_once(tmp_path: Path) -> None:
    shards = cut([write_dataset(tmp_path / "in.parquet", ["x" * 30] * 50)], 50)
    bench = Bench(make_config(tmp_path / "out", batch_size=1), step_seconds=0.01)
    bench.worker.ready()
    bench.worker.assign(Lease(shards[0], 1))
    time.sleep(0.05)
    started = time.monotonic()
    bench.worker.stop()
    assert time.monotonic() - started < 5
    assert not (tmp_path / "out" / "data").exists()


# ---- a part that is there already -----------------------------------------------------------


def test_a_part_of_another_attempt_is_taken_as_it_is(tmp_path: Path) -> None:
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 25)
    first = run_shards(Bench(make_config(tmp_path / "out")).worker, shards)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out/data").iterdir()}
    second = run_shards(Bench(make_config(tmp_path / "out")).worker, shards)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/data").iterdir()} == before
    assert [receipt.created for receipt in second.receipts] == [False, False]
    assert [replace(receipt, created=True) for receipt in second.receipts] == first.receipts
    assert list((tmp_path / "out/_specbatch/tmp").iterdir()) == []


@pytest.mark.parametrize("damage", ["text", "another shard", "another plan", "cut"])
def test_something_else_in_the_way_is_an_integrity_failure(tmp_path: Path, damage: str) -> None:
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 25)
    run_shards(Bench(make_config(tmp_path / "out")).worker, shards)
    run_shards(Bench(make_config(tmp_path / "out", plan="0" * 16)).worker, shards)
    part = tmp_path / "out" / part_name(0, PLAN)
    if damage == "text":
        part.write_text("surprise")
    elif damage == "cut":
        part.write_bytes(part.read_bytes()[:-100])
    else:
        source = part_name(1, PLAN) if damage == "another shard" else part_name(0, "0" * 16)
        shutil.copy(tmp_path / "out" / source, part)
    news = run_shards(Bench(make_config(tmp_path / "out")).worker, shards)
    (failure,) = news.failures
    assert (failure.shard, failure.attempt, failure.code) == (0, 1, "JOB_INTEGRITY")
    assert str(part) in failure.message
    assert [receipt.shard for receipt in news.receipts] == [1], "the worker goes on"


# ---- what goes wrong -----------------------------------------------------------


def test_input_that_changed_fails_its_shard_and_not_the_worker(tmp_path: Path) -> None:
    good = write_dataset(tmp_path / "good.parquet", PROMPTS[:10])
    bad = write_dataset(tmp_path / "bad.parquet", PROMPTS[:10])
    shards = cut([good, bad], 10)
    write_dataset(bad, PROMPTS[10:20])
    news = run_shards(Bench(make_config(tmp_path / "out")).worker, [shards[1], shards[0]])
    assert [(failure.shard, failure.code) for failure in news.failures] == [(1, "JOB_INPUT_CHANGED")]
    assert [receipt.shard for receipt in news.receipts] == [0]


def test_an_output_that_cannot_be_written_fails_the_shard(tmp_path: Path) -> None:
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS[:5])], 5)
    (tmp_path / "out").write_text("in the way")
    news = run_shards(Bench(make_config(tmp_path / "out")).worker, shards)
    assert [failure.code for failure in news.failures] == ["JOB_OUTPUT_UNWRITABLE"]


def test_a_fault_in_the_engine_is_told_by_poll(tmp_path: Path) -> None:
    shards = cut([write_dataset(tmp_path / "in.parquet", ["fine", "poison", "fine"])], 3)
    bench = Bench(make_config(tmp_path / "out"), fail_on=b"poison")
    bench.worker.ready()
    bench.worker.assign(Lease(shards[0], 1))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the engine broke"):
            bench.worker.poll(10)
    bench.worker.stop()


def test_models_that_cannot_be_loaded_are_told_by_ready(tmp_path: Path) -> None:
    def broken(config: WorkerConfig) -> FakeEngine:
        raise SpecbatchError(ErrorCode.JOB_MODEL_LOAD, "no")

    with pytest.raises(SpecbatchError, match="JOB_MODEL_LOAD"):
        Worker(make_config(tmp_path / "out"), broken).ready()


def test_poll_waits_no_longer_than_told_and_gives_a_heartbeat(tmp_path: Path) -> None:
    bench = Bench(make_config(tmp_path / "out"))
    bench.worker.ready()
    started = time.monotonic()
    poll = bench.worker.poll(0.3)
    assert 0.25 < time.monotonic() - started < 3
    assert (poll.receipts, poll.failures) == ((), ())
    time.sleep(0.6)
    assert bench.worker.poll(0).progress.idle_seconds > 0.2
    bench.worker.stop()


def test_the_first_row_ends_a_poll_and_the_next_row_does_not(tmp_path: Path) -> None:
    """A user waits for the first; the shard's part is far away."""
    prompts = ["a", "bb", "c" * 60, "d" * 60]
    shards = cut([write_dataset(tmp_path / "in.parquet", prompts)], 4)
    bench = Bench(make_config(tmp_path / "out"), step_seconds=0.05)
    bench.worker.ready()
    bench.worker.assign(Lease(shards[0], 1))
    first = bench.worker.poll(30)
    assert first.progress.num_rows_done > 0
    assert not first.receipts
    started = time.monotonic()
    assert not bench.worker.poll(0.5).receipts
    assert time.monotonic() - started > 0.45
    bench.worker.stop()


# ---- death by SIGKILL -----------------------------------------------------------

CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from fake_engine import FakeEngine
from shard_helpers import cut, make_config, run_shards
from specbatch.workers.shards import ShardInFlight
from specbatch.workers.worker import Worker
config = make_config(Path(sys.argv[3]))
run_shards(Worker(config, FakeEngine), cut([Path(sys.argv[2])], 10))
"""


@pytest.mark.parametrize(
    ("failpoint", "num_parts"), [("part_create:before:1", 0), ("part_create:after:1", 1), ("part_create:before:3", 2)]
)
def test_a_killed_worker_leaves_whole_parts_or_none(tmp_path: Path, failpoint: str, num_parts: int) -> None:
    dataset = write_dataset(tmp_path / "in.parquet", PROMPTS)
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(dataset), str(tmp_path / "out")]
    killed = subprocess.run(command, env={**os.environ, "SPECBATCH_FAILPOINT": f"{failpoint}:kill"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    parts = sorted((tmp_path / "out").glob("data/*"))
    assert len(parts) == num_parts
    for part in parts:
        read_part_meta(part)
    run_shards(Bench(make_config(tmp_path / "whole")).worker, cut([dataset], 10))
    news = run_shards(Bench(make_config(tmp_path / "out")).worker, cut([dataset], 10))
    assert [receipt.created for receipt in news.receipts].count(False) == num_parts
    for shard in range(5):
        assert read_part(tmp_path / "out", shard) == read_part(tmp_path / "whole", shard)


def test_segments_need_not_start_at_row_zero(tmp_path: Path) -> None:
    (shard,) = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 50)
    middle = shard.segments[0]
    segment = Segment(middle.path, middle.size_bytes, middle.footer_sha256, 13, 29, 1013)
    run_shards(Bench(make_config(tmp_path / "out")).worker, [Shard(0, (segment,))])
    rows = read_part(tmp_path / "out", 0)
    assert [(row["row_id"], row["n"]) for row in rows] == [(1000 + n, n) for n in range(13, 29)]
