"""What a part costs in memory while it is made, and what is left of a shard once its part is there."""

from __future__ import annotations

import gc
import time
import weakref
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fake_engine import FakeEngine
from shard_helpers import PLAN, cut, make_config, poll_until, write_dataset

from specbatch.schemas.manifest import PART_FORMAT
from specbatch.schemas.messages import Lease
from specbatch.schemas.rows import RowResult
from specbatch.schemas.stats import PhaseSeconds
from specbatch.storage.parts import PartMeta, part_stats, write_part
from specbatch.workers.worker import Worker


def test_encoding_needs_memory_for_a_row_group_and_not_for_the_part(tmp_path: Path) -> None:
    """Three samples of long rows: the input repeated as a whole would be three times the table."""
    num_rows, num_samples = 8000, 3
    rows = pa.table({"prompt": [f"{row} " * 200 for row in range(num_rows)]})
    results = [
        RowResult(row, sample, 7, "length", 5, "text" * 10, tuple(range(200)))
        for row in range(num_rows)
        for sample in range(num_samples)
    ]
    meta = PartMeta(PART_FORMAT, PLAN, 0, 0, num_rows, "token", part_stats(results, PhaseSeconds()))
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
    pa.set_memory_pool(pool)
    try:
        write_part(tmp_path / "part", rows, results, meta, num_samples=num_samples)
    finally:
        pa.set_memory_pool(before)
    whole = rows.nbytes * num_samples + len(results) * 200 * 4
    assert 0 < pool.max_memory() < whole / 4
    assert pq.ParquetFile(tmp_path / "part").metadata.num_rows == len(results)


def test_nothing_of_a_shard_is_kept_once_it_is_written(tmp_path: Path) -> None:
    shards = cut([write_dataset(tmp_path / "in.parquet", ["x" * 20] * 30)], 10)
    worker = Worker(make_config(tmp_path / "out"), FakeEngine)
    kept: list[weakref.ref[Any]] = []
    write = worker._writer.write

    def noting(finished: Any) -> Any:
        kept.append(weakref.ref(finished.table))
        return write(finished)

    worker._writer.write = noting  # type: ignore[method-assign]
    worker.ready()
    for shard in shards:
        worker.assign(Lease(shard, 1))
    poll_until(worker, 3)
    deadline = time.monotonic() + 10
    while any(table() is not None for table in kept):
        assert time.monotonic() < deadline, "a thread that waits holds on to its last shard"
        gc.collect()
        time.sleep(0.01)
    assert len(kept) == 3
    worker.stop()
