"""Leases that are not a whole shard: probes, poison rows, picked samples, and shards that nobody wants any more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake_engine import FakeEngine
from shard_helpers import PLAN, News, cut, make_config, poll_until, read_part, run_leases, run_shards, write_dataset

from specbatch.schemas.messages import Lease, ProbeDone
from specbatch.schemas.plan import Segment, Shard, part_name
from specbatch.schemas.seeds import row_seed
from specbatch.schemas.spec import GenerationSpec
from specbatch.storage.inputs import read_segment
from specbatch.storage.parts import read_part_meta
from specbatch.workers import reading
from specbatch.workers.worker import Worker

PROMPTS = [f"prompt {i} " + "x" * (i * 7 % 11) for i in range(50)]
SAMPLED = GenerationSpec(max_new_tokens=32, temperature=1.0, num_samples=3)


class Bench:
    """A worker whose fake engine the test can reach."""

    def __init__(self, output: Path, step_seconds: float = 0.001, **changes: Any) -> None:
        self.engines: list[FakeEngine] = []
        self._step_seconds = step_seconds
        self.worker = Worker(make_config(output, **changes), self._make_engine)

    def _make_engine(self, config: Any) -> FakeEngine:
        self.engines.append(FakeEngine(config, step_seconds=self._step_seconds))
        return self.engines[-1]

    @property
    def engine(self) -> FakeEngine:
        return self.engines[0]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# ---- probes ----------------------------------------------------------------------------------------------------------


def test_fault_12_a_probe_decodes_its_rows_alone_and_stores_nothing(tmp_path: Path) -> None:
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 20)
    bench = Bench(tmp_path / "out")
    news = run_leases(bench.worker, [Lease(shards[1], 4, probe=(25, 31))])
    assert (news.probes, news.receipts, news.failures) == ([ProbeDone(1, 25, 31)], [], [])
    assert len(bench.engine.log) == 6
    assert not (tmp_path / "out" / "data").exists()
    assert news.last is not None
    assert (news.last.progress.num_rows_done, news.last.progress.num_completion_tokens) == (0, 0)


def test_a_probe_over_two_segments_and_one_without_any_row(tmp_path: Path) -> None:
    one, two = (write_dataset(tmp_path / name, PROMPTS[:10]) for name in ("a.parquet", "b.parquet"))
    (shard,) = cut([one, two], 20)
    bench = Bench(tmp_path / "out")
    probes = [(8, 12), (0, 20), (3, 3)]
    news = run_leases(bench.worker, [Lease(shard, 1, probe=probe) for probe in probes])
    assert set(news.probes) == {ProbeDone(0, *probe) for probe in probes}
    assert len(bench.engine.log) == 24


def test_a_probe_leaves_poison_rows_out(tmp_path: Path) -> None:
    (shard,) = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 50)
    bench = Bench(tmp_path / "out")
    news = run_leases(bench.worker, [Lease(shard, 1, probe=(10, 20), poison=(12, 19, 30))])
    assert news.probes == [ProbeDone(0, 10, 20)]
    assert len(bench.engine.log) == 8


def test_a_probe_whose_input_is_gone_fails(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "in.parquet", PROMPTS)
    (shard,) = cut([path], 50)
    path.unlink()
    news = run_leases(Bench(tmp_path / "out").worker, [Lease(shard, 2, probe=(0, 5))])
    assert [(failure.code, failure.attempt) for failure in news.failures] == [("JOB_INPUT_MISSING", 2)]


# ---- poison ----------------------------------------------------------------------------------------------------------


def test_fault_12_poison_rows_are_error_rows_and_never_reach_the_engine(tmp_path: Path) -> None:
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 25)
    bench = Bench(tmp_path / "out", generation=SAMPLED)
    encoded: list[str] = []
    news = run_leases(_listening(bench, encoded), [Lease(shards[1], 4, poison=(25, 30, 31, 49, 7))])
    assert news.failures == []
    rows = read_part(tmp_path / "out", 1)
    assert [(row["row_id"], row["sample_index"]) for row in rows] == [(i, s) for i in range(25, 50) for s in range(3)]
    poisoned = {25, 30, 31, 49}
    for row in rows:
        assert row["row_seed"] == row_seed(0, row["row_id"], row["sample_index"])
        if row["row_id"] in poisoned:
            assert (row["status"], row["error_code"], row["completion"]) == ("error", "ROW_POISON", None)
            assert "died" in row["error_message"]
            assert "prompt" not in row["error_message"]
        else:
            assert (row["status"], row["completion"]) == ("ok", PROMPTS[row["row_id"]])
    assert len(bench.engine.log) == (25 - 4) * 3
    assert not {PROMPTS[row_id] for row_id in poisoned} & set(encoded), "not even tokenized"
    assert news.receipts[0].stats.errors_by_code == (("ROW_POISON", 12),)
    assert news.last is not None
    assert (news.last.progress.num_rows_done, news.last.progress.num_errors) == (25, 12)


CHILD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from fake_engine import FakeEngine
from shard_helpers import cut, make_config, run_leases
from specbatch.schemas.messages import Lease
from specbatch.workers.worker import Worker
(shard,) = cut([Path(sys.argv[2])], 50)
probe, poison = json.loads(sys.argv[4])
lease = Lease(shard, 1, probe=probe and tuple(probe), poison=tuple(poison))
run_leases(Worker(make_config(Path(sys.argv[3])), FakeEngine), [lease])
"""


def test_fault_12_the_row_that_kills_every_process_is_found_by_probes_and_left_out(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "in.parquet", PROMPTS)

    def run(probe: tuple[int, int] | None, *poison: int) -> int:
        command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(dataset), str(tmp_path / "out")]
        environment = {"SPECBATCH_FAILPOINT": "row_submit:before:1:kill", "SPECBATCH_FAILPOINT_ROW": "17"}
        return subprocess.run(
            [*command, json.dumps([probe, poison])], env={**os.environ, **environment}, timeout=60, check=False
        ).returncode

    assert run(None) == run(None) == -signal.SIGKILL
    assert run((0, 17)) == 0
    assert run((17, 18)) == -signal.SIGKILL
    assert run((18, 50)) == 0
    assert not (tmp_path / "out" / "data").exists()
    assert run(None, 17) == 0
    codes = [row["error_code"] for row in read_part(tmp_path / "out", 0)]
    assert codes == [None] * 17 + ["ROW_POISON"] + [None] * 32


def _listening(bench: Bench, encoded: list[str]) -> Worker:
    make = bench._make_engine

    def listening(config: Any) -> FakeEngine:
        engine = make(config)
        before = engine.tokenizer.encode

        def encode(text: str) -> list[int]:
            encoded.append(text)
            return before(text)

        engine.tokenizer.encode = encode  # type: ignore[method-assign]
        return engine

    bench.worker._engine_factory = listening
    return bench.worker


# ---- amendments: some samples of some rows ---------------------------------------------------------------------------


def picked(segment: Segment, *picks: tuple[int, int, tuple[int, ...] | None]) -> Shard:
    """A shard of runs of rows [start, stop) of one file, each with some samples."""
    return Shard(
        0,
        tuple(
            replace(segment, row_start=start, row_stop=stop, first_row_id=100 + start, samples=samples)
            for start, stop, samples in picks
        ),
    )


def test_only_the_samples_that_the_plan_picks(tmp_path: Path) -> None:
    (whole,) = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 50)
    shard = picked(whole.segments[0], (3, 4, (1,)), (7, 10, (0, 2)), (10, 11, None), (44, 46, (2,)))
    bench = Bench(tmp_path / "out", generation=SAMPLED)
    news = run_shards(bench.worker, [shard])
    expected = [(103, 1), *[(row, s) for row in (107, 108, 109) for s in (0, 2)]]
    expected += [(110, 0), (110, 1), (110, 2), (144, 2), (145, 2)]
    rows = read_part(tmp_path / "out", 0)
    assert [(row["row_id"], row["sample_index"]) for row in rows] == expected
    assert [row["n"] for row in rows] == [row_id - 100 for row_id, _ in expected]
    assert [row["row_seed"] for row in rows] == [row_seed(0, *pair) for pair in expected]
    assert all(row["completion"] == PROMPTS[row["n"]] for row in rows)
    meta = read_part_meta(tmp_path / "out" / part_name(0, PLAN))
    assert (meta.row_start, meta.row_stop, meta.stats.num_rows, meta.stats.num_results) == (103, 146, 7, 12)
    assert (news.receipts[0].num_rows, len(bench.engine.log)) == (7, 12)
    assert news.last is not None
    assert news.last.progress.num_rows_done == 7


def test_picked_rows_that_lie_close_together_are_read_at_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (write_dataset(tmp_path / name, PROMPTS) for name in ("a.parquet", "b.parquet"))
    read: list[tuple[int, int]] = []

    def counted(segment: Segment) -> Any:
        read.append((segment.row_start, segment.row_stop))
        return read_segment(segment)

    monkeypatch.setattr(reading, "read_segment", counted)
    monkeypatch.setattr(reading, "_MOST_COVERED_ROWS", 20)
    (whole,) = cut([one, two], 100)
    pieces = [(0, 2), (3, 4), (19, 20), (20, 22), (45, 50)]
    segments = tuple(
        replace(segment, row_start=start, row_stop=stop, first_row_id=segment.first_row_id + start, samples=(0,))
        for segment in whole.segments
        for start, stop in pieces
    )
    run_shards(Bench(tmp_path / "out").worker, [Shard(0, segments)])
    assert read == [(0, 20), (20, 22), (45, 50)] * 2
    rows = read_part(tmp_path / "out", 0)
    expected = [base + row for base in (0, 50) for start, stop in pieces for row in range(start, stop)]
    assert [row["row_id"] for row in rows] == expected
    assert [row["n"] for row in rows] == [row_id % 50 for row_id in expected]


def test_error_rows_and_poison_of_picked_samples(tmp_path: Path) -> None:
    (whole,) = cut([write_dataset(tmp_path / "in.parquet", ["a", None, "c", "numeric"])], 4)
    shard = picked(whole.segments[0], (0, 2, (0, 2)), (2, 4, (1,)))
    news = run_leases(Bench(tmp_path / "out", generation=SAMPLED).worker, [Lease(shard, 1, poison=(102,))])
    rows = read_part(tmp_path / "out", 0)
    assert [(row["row_id"], row["sample_index"], row["error_code"]) for row in rows] == [
        (100, 0, None),
        (100, 2, None),
        (101, 0, "ROW_PROMPT_NULL"),
        (101, 2, "ROW_PROMPT_NULL"),
        (102, 1, "ROW_POISON"),
        (103, 1, "ROW_NUMERIC"),
    ]
    assert news.receipts[0].stats.num_errors == 4


def test_another_attempts_part_with_gaps_is_taken_as_it_is(tmp_path: Path) -> None:
    (whole,) = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 50)
    shard = picked(whole.segments[0], (3, 5, (1,)), (9, 10, (0, 2)))
    first = run_shards(Bench(tmp_path / "out", generation=SAMPLED).worker, [shard])
    again = run_shards(Bench(tmp_path / "out", generation=SAMPLED).worker, [shard])
    assert [replace(receipt, created=True) for receipt in again.receipts] == first.receipts
    fewer = picked(whole.segments[0], (3, 5, (1,)), (9, 10, (0,)))
    (failure,) = run_shards(Bench(tmp_path / "out", generation=SAMPLED).worker, [fewer]).failures
    assert failure.code == "JOB_INTEGRITY", "the same first and last row, but other samples"


# ---- dropping --------------------------------------------------------------------------------------------------------


def test_a_shard_that_is_dropped_leaves_no_part_no_receipt_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def noted(segment: Segment) -> Any:
        read.append(segment.row_start)
        return read_segment(segment)

    monkeypatch.setattr(reading, "read_segment", noted)
    shards = cut([write_dataset(tmp_path / "in.parquet", ["x" * 30] * 50)], 10)
    bench = Bench(tmp_path / "out", batch_size=4)
    worker = bench.worker
    worker.ready()
    step, are_dropped = bench.engine.step, threading.Event()

    def held() -> Any:
        outputs = step()
        assert len(bench.engine.log) < 6 or are_dropped.wait(60)
        return outputs

    bench.engine.step = held  # type: ignore[method-assign]
    for shard in shards:
        worker.assign(Lease(shard, 1))
    wait_until(lambda: len(bench.engine.log) >= 6 and len(worker._pipeline._loaded) == 2)
    worker.drop(3)  # still a lease; first, because the reader goes on once another is dropped
    worker.drop(1)  # loaded
    worker.drop(0)  # in flight
    worker.drop(77)  # never heard of
    are_dropped.set()
    news = poll_until(worker, 2)
    time.sleep(0.2)
    news.poll(worker, 0)
    assert sorted(receipt.shard for receipt in news.receipts) == [2, 4]
    assert news.failures == []
    assert sorted(path.name for path in (tmp_path / "out/data").iterdir()) == [
        Path(part_name(n, PLAN)).name for n in (2, 4)
    ]
    assert news.last is not None
    assert (news.last.progress.num_rows_done, news.last.progress.num_rows_active) == (20, 0)
    assert 4 <= len(bench.engine.cancelled) <= 8
    assert 30 not in read, "what nobody wants is not even read"
    assert len(bench.engine.log) == 8 + 20
    worker.stop()


def test_a_shard_may_be_leased_again_after_it_was_dropped(tmp_path: Path) -> None:
    shards = cut([write_dataset(tmp_path / "in.parquet", ["x" * 30] * 20)], 10)
    bench = Bench(tmp_path / "out", step_seconds=0.003, batch_size=4)
    worker = bench.worker
    worker.ready()
    for _ in range(3):
        before = len(bench.engine.log)
        worker.assign(Lease(shards[0], 1))
        wait_until(lambda before=before: len(bench.engine.log) >= before + 2)  # type: ignore[misc]
        worker.drop(0)
    worker.assign(Lease(shards[0], 4))
    worker.assign(Lease(shards[1], 1))
    news = poll_until(worker, 2)
    assert [receipt.shard for receipt in news.receipts] == [0, 1]
    assert [row["row_id"] for row in read_part(tmp_path / "out", 0)] == list(range(10))
    assert news.last is not None
    assert news.last.progress.num_rows_done == 20
    worker.stop()


def test_one_shard_twice_at_a_time_gives_two_receipts_and_one_part(tmp_path: Path) -> None:
    (shard,) = cut([write_dataset(tmp_path / "in.parquet", PROMPTS[:10])], 10)
    news = run_leases(Bench(tmp_path / "out").worker, [Lease(shard, 1), Lease(shard, 2)])
    assert [receipt.created for receipt in news.receipts] == [True, False]
    assert len({receipt.token for receipt in news.receipts}) == 1


def test_what_is_dropped_while_it_is_written_is_not_told(tmp_path: Path) -> None:
    (shard,) = cut([write_dataset(tmp_path / "in.parquet", PROMPTS[:10])], 10)
    bench = Bench(tmp_path / "out")
    worker = bench.worker
    write = worker._writer.write

    def write_late(finished: Any) -> Any:
        worker.drop(0)
        return write(finished)

    worker._writer.write = write_late  # type: ignore[method-assign]
    worker.ready()
    worker.assign(Lease(shard, 1))
    wait_until(lambda: (tmp_path / "out" / part_name(0, PLAN)).exists())
    news = News()
    news.poll(worker, 0.3)
    assert (news.receipts, news.failures) == ([], [])
    assert news.last is not None
    assert news.last.progress.num_rows_done == 0, "the twin counts them"
    worker.stop()


def test_a_drop_after_the_last_result_keeps_the_shard_from_being_written(tmp_path: Path) -> None:
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 10)
    bench = Bench(tmp_path / "out")
    worker = bench.worker
    held, write = [], worker._writer.write

    def write_slowly(finished: Any) -> Any:
        held.append(finished.assignment.lease.shard.index)
        wait_until(lambda: len(held) > 1 or bench.engine.num_active + bench.engine.num_queued == 0)
        if len(held) == 1:
            worker.drop(1)
        return write(finished)

    worker._writer.write = write_slowly  # type: ignore[method-assign]
    worker.ready()
    for shard in shards[:2]:
        worker.assign(Lease(shard, 1))
    news = poll_until(worker, 1)
    time.sleep(0.2)
    news.poll(worker, 0)
    assert [receipt.shard for receipt in news.receipts] == [0]
    assert not (tmp_path / "out" / part_name(1, PLAN)).exists()
    worker.stop()


def test_parts_of_many_rows_have_several_row_groups(tmp_path: Path) -> None:
    (shard,) = cut([write_dataset(tmp_path / "in.parquet", ["ab"] * 2500)], 2500)
    run_shards(Bench(tmp_path / "out", step_seconds=0.0, batch_size=64).worker, [shard])
    parquet = pq.ParquetFile(tmp_path / "out" / part_name(0, PLAN))
    assert [parquet.metadata.row_group(group).num_rows for group in range(3)] == [1024, 1024, 452]
    assert parquet.read().column("row_id").to_pylist() == list(range(2500))
