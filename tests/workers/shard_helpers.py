"""Datasets, plans and polling loops for the worker tests."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from specbatch.schemas.messages import (
    Lease,
    PartReceipt,
    ProbeDone,
    RoundBlock,
    ShardFailed,
    WorkerConfig,
    WorkerPoll,
)
from specbatch.schemas.plan import Segment, Shard, part_name
from specbatch.schemas.prompt import PromptSpec
from specbatch.schemas.spec import GenerationSpec
from specbatch.storage.inputs import discover
from specbatch.workers.worker import Worker

PLAN = "feedc0de12345678"


def write_dataset(path: Path, prompts: Sequence[str | None], **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"prompt": pa.array(prompts, pa.string()), "n": list(range(len(prompts))), **columns})
    pq.write_table(table, path, row_group_size=7)
    return path


def cut(datasets: Sequence[Path], shard_rows: int) -> list[Shard]:
    """Shards of ``shard_rows`` rows over all files; a shard may span files."""
    shards: list[list[Segment]] = [[]]
    row_id = 0
    for file in discover([str(path) for path in datasets]):
        start = 0
        while start < file.num_rows:
            if sum(segment.num_rows for segment in shards[-1]) == shard_rows:
                shards.append([])
            room = shard_rows - sum(segment.num_rows for segment in shards[-1])
            stop = min(file.num_rows, start + room)
            shards[-1].append(Segment(file.path, file.size_bytes, file.footer_sha256, start, stop, row_id))
            row_id += stop - start
            start = stop
    return [Shard(index, tuple(segments)) for index, segments in enumerate(shards)]


def make_config(output: Path, **changes: Any) -> WorkerConfig:
    values: dict[str, Any] = {
        "worker": 0,
        "output": str(output),
        "plan": PLAN,
        "target_path": "target",
        "draft_path": None,
        "dtype": "auto",
        "device": "cpu",
        "speculation": "off",
        "batch_size": 4,
        "num_threads": 1,
        "prompt": PromptSpec(),
        "generation": GenerationSpec(max_new_tokens=32),
    }
    return WorkerConfig(**{**values, **changes})


class News:
    """Everything that a worker has told."""

    def __init__(self) -> None:
        self.receipts: list[PartReceipt] = []
        self.failures: list[ShardFailed] = []
        self.blocks: list[RoundBlock] = []
        self.probes: list[ProbeDone] = []
        self.last: WorkerPoll | None = None

    def poll(self, worker: Worker, timeout_seconds: float = 5.0) -> None:
        self.last = worker.poll(timeout_seconds)
        self.receipts.extend(self.last.receipts)
        self.failures.extend(self.last.failures)
        self.blocks.extend(self.last.blocks)
        self.probes.extend(self.last.probes)


def poll_until(worker: Worker, num_shards: int, limit_seconds: float = 200.0) -> News:
    """Poll until so many shards or probes have ended."""
    news = News()
    deadline = time.monotonic() + limit_seconds
    while len(news.receipts) + len(news.failures) + len(news.probes) < num_shards:
        assert time.monotonic() < deadline, f"only {news.receipts} and {news.failures}"
        news.poll(worker)
    return news


def run_shards(worker: Worker, shards: Sequence[Shard]) -> News:
    """A whole life: ready, all shards, stop."""
    return run_leases(worker, [Lease(shard, attempt=1) for shard in shards])


def run_leases(worker: Worker, leases: Sequence[Lease]) -> News:
    """A whole life: ready, all leases, stop."""
    worker.ready()
    try:
        for lease in leases:
            worker.assign(lease)
        return poll_until(worker, len(leases))
    finally:
        worker.stop()


def read_part(output: Path, shard: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.ParquetFile(output / part_name(shard, PLAN)).read().to_pylist()
    return rows
