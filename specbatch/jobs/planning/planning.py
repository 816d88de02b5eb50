"""Planning: cut the row groups of the inputs into shards. Pure; the plan is a partition of rows 0..N-1 in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import InputFile, Segment, Shard

MIN_AUTO_SHARD_ROWS = 16
MAX_AUTO_SHARD_ROWS = 1024
AUTO_NUM_SHARDS = 16
AUTO_SHARD_BYTES = 32 << 20
"""Most bytes of input, as stored, of a shard of ``auto``: a part holds them too, and is to stay below 64 MiB."""

TAIL_FRACTION = 10
TAIL_SHRINK = 4
MAX_TAIL_ROWS = 1 << 16

MAX_SHARDS = 1_000_000
"""Part names have six digits."""

_RowGroup = tuple[InputFile, int, int]
"""A file, and rows [start, stop) of it."""


def choose_shard_rows(num_rows: int, shard_rows: Literal["auto"] | int, num_bytes: int = 0) -> int:
    """Most rows of one shard: what was asked for, or a sixteenth of the job within [16, 1024].

    Args:
        num_rows: of the job.
        num_bytes: of these rows as stored; ``auto`` keeps shards of long rows below ``AUTO_SHARD_BYTES``.
    """
    if shard_rows != "auto":
        return shard_rows
    most = min(max(-(-num_rows // AUTO_NUM_SHARDS), MIN_AUTO_SHARD_ROWS), MAX_AUTO_SHARD_ROWS)
    return max(min(most, AUTO_SHARD_BYTES * num_rows // num_bytes), 1) if num_bytes else most


def cut_shards(
    files: Sequence[InputFile], shard_rows: Literal["auto"] | int = "auto", limit: int | None = None
) -> tuple[Shard, ...]:
    """Shards of the first ``limit`` rows (None: all) of the files in order.

    Small row groups are merged; a row group larger than a shard is cut into nearly equal pieces. A shard ends at
    a row-group border where it is at least half full there, so that few row groups are read twice. Under ``auto`` the
    last tenth of the rows (at most ``MAX_TAIL_ROWS``) is cut into shards of a quarter of the size.

    Returns:
        Shards numbered from 0, none empty, none above the chosen size; () where there are no rows.

    Raises:
        SpecbatchError: ``JOB_INPUT_LIMIT`` where there would be more than ``MAX_SHARDS``.
    """
    all_rows = sum(file.num_rows for file in files)
    num_rows = all_rows if limit is None else min(all_rows, limit)
    num_bytes = sum(file.size_bytes for file in files if file.num_rows) * num_rows // max(all_rows, 1)
    most = choose_shard_rows(num_rows, shard_rows, num_bytes)
    cutter = _Cutter()
    if num_rows > most * MAX_SHARDS:
        raise cutter.too_many()
    tail_start = num_rows
    if shard_rows == "auto" and most // TAIL_SHRINK >= MIN_AUTO_SHARD_ROWS:
        tail_start -= min(num_rows // TAIL_FRACTION, MAX_TAIL_ROWS)
    cutter.cut(_row_groups(files, 0, tail_start), most)
    cutter.cut(_row_groups(files, tail_start, num_rows), most // TAIL_SHRINK)
    return tuple(cutter.shards)


class _Cutter:
    """Shards as they come about, from the first row of the job on."""

    def __init__(self) -> None:
        self.shards: list[Shard] = []
        self._segments: list[Segment] = []
        self._num_open = 0
        self._next_row_id = 0

    def cut(self, groups: Iterator[_RowGroup], most: int) -> None:
        """Cut the next row groups into shards of at most ``most`` rows each."""
        for file, start, stop in groups:
            if self._num_open + stop - start > most and 2 * self._num_open >= most:
                self._close()
            first, *others = _even_pieces(self._num_open + stop - start, most)
            # What is open is less than half a shard here, and a piece of several is more than half of one.
            assert first > self._num_open
            at = start + first - self._num_open
            self._take(file, start, at)
            for piece in others:
                self._close()
                self._take(file, at, at + piece)
                at += piece
        self._close()

    def _take(self, file: InputFile, start: int, stop: int) -> None:
        """Add rows [start, stop) to the open shard, to its last segment where they follow it in the same file."""
        first_row_id = self._next_row_id
        self._next_row_id += stop - start
        self._num_open += stop - start
        last = self._segments[-1] if self._segments else None
        if last is not None and last.path == file.path and last.row_stop == start:
            self._segments.pop()
            start, first_row_id = last.row_start, last.first_row_id
        self._segments.append(Segment(file.path, file.size_bytes, file.footer_sha256, start, stop, first_row_id))

    def _close(self) -> None:
        if not self._segments:
            return
        if len(self.shards) == MAX_SHARDS:
            raise self.too_many()
        self.shards.append(Shard(len(self.shards), tuple(self._segments)))
        self._segments = []
        self._num_open = 0

    @staticmethod
    def too_many() -> SpecbatchError:
        return SpecbatchError(
            ErrorCode.JOB_INPUT_LIMIT,
            f"the plan would have more than {MAX_SHARDS:,} shards; raise --shard-rows, or submit the dataset in pieces",
        )


def _row_groups(files: Sequence[InputFile], start: int, stop: int) -> Iterator[_RowGroup]:
    """What row groups have of rows [start, stop) of the job, in order; empty pieces are left out."""
    at = 0
    for file in files:
        if at >= stop:
            return
        if at + file.num_rows <= start:
            at += file.num_rows
            continue
        row = 0
        for group_rows in file.row_group_rows:
            low, high = max(start - at, 0), min(stop - at, group_rows)
            if low < high:
                yield file, row + low, row + high
            row += group_rows
            at += group_rows


def _even_pieces(num_rows: int, most: int) -> list[int]:
    """Fewest pieces of at most ``most`` rows, larger ones first, sizes differing by at most one."""
    num_pieces = max(-(-num_rows // most), 1)
    size, num_larger = divmod(num_rows, num_pieces)
    return [size + 1] * num_larger + [size] * (num_pieces - num_larger)
