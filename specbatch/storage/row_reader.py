"""Reading runs of rows from one open Parquet file, onwards from where the last run ended.

Parquet can be entered at the beginning of a row group only. Shards are often much smaller than row groups, and a worker
takes them in ascending order: a reader that goes on decodes a row group once, where one that starts anew each time
decodes it as often as it has shards.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from specbatch.storage.store import is_s3

_MAX_BATCH_ROWS = 4096
_BATCH_BYTES = 16 << 20
_MAX_KEPT = 2


class RowReader:
    """An open file and how far it is read. Not for two threads at once."""

    def __init__(self, path: str, file: BinaryIO, parquet: pq.ParquetFile) -> None:
        self._path = path
        self._file = file
        self._parquet = parquet
        self._stamp = None if is_s3(path) else _stamp(os.fstat(file.fileno()))
        metadata = parquet.metadata
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        self._group_starts = list(accumulate((group.num_rows for group in groups), initial=0))
        num_bytes = sum(group.total_byte_size for group in groups)
        self._batch_rows = max(min(_BATCH_BYTES * self._group_starts[-1] // max(num_bytes, 1), _MAX_BATCH_ROWS), 1)
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None
        self._at = -1

    @property
    def is_inside_group(self) -> bool:
        """Whether going on from here saves anything."""
        return self._at not in self._group_starts

    def is_current(self) -> bool:
        """Whether the path still names the file that is open. Reads of an object on S3 check that themselves."""
        try:
            return self._stamp is None or self._stamp == _stamp(os.stat(self._path))  # noqa: PTH116 - a plain text
        except OSError:
            return False

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows [start, stop) in chunks of at most a few thousand.

        Raises:
            OSError, pa.ArrowException: a page is damaged, or there are fewer rows than the footer says.
        """
        num_rows = self._group_starts[-1]
        assert 0 <= start <= stop <= num_rows, f"rows {start} to {stop} of {num_rows}"
        if start != self._at and not (0 <= self._at < start and self._group_of(self._at) == self._group_of(start)):
            self._enter(self._group_of(start))
        taken: list[pa.RecordBatch] = []
        while self._at < stop:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                raise OSError("it holds fewer rows than its footer says")
            low = min(max(start - self._at, 0), batch.num_rows)
            high = min(stop - self._at, batch.num_rows)
            if low < high:
                taken.append(batch.slice(low, high - low))
            self._at += high
            self._rest = batch.slice(high) if high < batch.num_rows else None
        return pa.Table.from_batches(taken, self._parquet.schema_arrow)

    def close(self) -> None:
        """Close the file."""
        self._batches, self._rest = iter(()), None
        self._file.close()

    def _group_of(self, row: int) -> int:
        return bisect_right(self._group_starts, row) - 1

    def _enter(self, group: int) -> None:
        """Go to the first row of a row group."""
        groups = list(range(group, self._parquet.metadata.num_row_groups))
        # Batches, not whole row groups: a row group of gigabytes is never in memory at once.
        self._batches = self._parquet.iter_batches(self._batch_rows, row_groups=groups, use_threads=False)
        self._rest = None
        self._at = self._group_starts[group]


class KeptReaders:
    """The few readers of this process that stopped within a row group, for the shard that goes on there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers: dict[tuple[str, int, str], RowReader] = {}

    def take(self, pin: tuple[str, int, str]) -> RowReader | None:
        """The reader of a pinned file (path, size, digest), which then belongs to the caller; None if there is none."""
        with self._lock:
            reader = self._readers.pop(pin, None)
        if reader is not None and not reader.is_current():
            reader.close()
            return None
        return reader

    def keep(self, pin: tuple[str, int, str], reader: RowReader) -> None:
        """Take a reader back, or close it where nothing is gained by keeping it."""
        surplus = [reader]
        if reader.is_inside_group:
            with self._lock:
                surplus = [self._readers.pop(pin)] if pin in self._readers else []
                self._readers[pin] = reader
                if len(self._readers) > _MAX_KEPT:
                    surplus.append(self._readers.pop(next(iter(self._readers))))
        for other in surplus:
            other.close()


def _stamp(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
