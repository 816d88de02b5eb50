"""Planning: cut the row groups of the inputs into shards. Pure; the plan is a partition of rows 0..N-1 in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from specbatch.schemas.plan import InputFile, Segment, Shard

MIN_AUTO_SHARD_ROWS = 16
MAX_AUTO_SHARD_ROWS = 1024
AUTO_NUM_SHARDS = 16


@dataclass(frozen=True, slots=True)
class _RowGroup:
    """Rows [row_start, row_start + num_rows) of a file."""

    file: InputFile
    row_start: int
    num_rows: int


def choose_shard_rows(num_rows: int, shard_rows: Literal["auto"] | int) -> int:
    """Most rows of one shard: what was asked for, or a sixteenth of the job within [16, 1024]."""
    if shard_rows != "auto":
        return shard_rows
    return min(max(-(-num_rows // AUTO_NUM_SHARDS), MIN_AUTO_SHARD_ROWS), MAX_AUTO_SHARD_ROWS)


def cut_shards(
    files: Sequence[InputFile], shard_rows: Literal["auto"] | int = "auto", limit: int | None = None
) -> tuple[Shard, ...]:
    """Shards of the first ``limit`` rows (None: all) of the files in order.

    Small row groups are merged; a row group larger than a shard is cut into nearly equal pieces. A shard ends at
    a row-group border where it is at least half full there, so that few row groups are read twice.

    Returns:
        Shards numbered from 0, none empty, none above the chosen size; () where there are no rows.
    """
    num_rows = sum(file.num_rows for file in files)
    if limit is not None:
        num_rows = min(num_rows, limit)
    most = choose_shard_rows(num_rows, shard_rows)
    shards: list[Shard] = []
    open_segments: list[Segment] = []
    next_row_id = 0

    def close() -> None:
        if open_segments:
            shards.append(Shard(index=len(shards), segments=tuple(open_segments)))
            open_segments.clear()

    def take(group: _RowGroup, count: int) -> _RowGroup:
        nonlocal next_row_id
        _extend(open_segments, group, count, next_row_id)
        next_row_id += count
        return replace(group, row_start=group.row_start + count, num_rows=group.num_rows - count)

    for group in _row_groups(files, num_rows):
        num_open = sum(segment.num_rows for segment in open_segments)
        if num_open + group.num_rows > most and 2 * num_open >= most:
            close()
            num_open = 0
        pieces = _even_pieces(num_open + group.num_rows, most)
        # What is open is less than half a shard here, and a piece of several is more than half of one.
        assert pieces[0] > num_open
        rest = take(group, pieces[0] - num_open)
        for piece in pieces[1:]:
            close()
            rest = take(rest, piece)
    close()
    return tuple(shards)


def _row_groups(files: Sequence[InputFile], num_rows: int) -> Iterator[_RowGroup]:
    """Row groups in order, empty ones left out, the last one cut at ``num_rows``."""
    left = num_rows
    for file in files:
        row_start = 0
        for group_rows in file.row_group_rows:
            count = min(group_rows, left)
            if count:
                yield _RowGroup(file, row_start, count)
            row_start += group_rows
            left -= count


def _even_pieces(num_rows: int, most: int) -> list[int]:
    """Fewest pieces of at most ``most`` rows, larger ones first, sizes differing by at most one."""
    num_pieces = max(-(-num_rows // most), 1)
    size, num_larger = divmod(num_rows, num_pieces)
    return [size + 1] * num_larger + [size] * (num_pieces - num_larger)


def _extend(segments: list[Segment], group: _RowGroup, count: int, first_row_id: int) -> None:
    """Append ``count`` rows of the group, joined to the last segment where they follow it in the same file."""
    if count == 0:
        return
    stop = group.row_start + count
    last = segments[-1] if segments else None
    if last is not None and last.path == group.file.path and last.row_stop == group.row_start:
        segments[-1] = replace(last, row_stop=stop)
        return
    segments.append(
        Segment(
            path=group.file.path,
            size_bytes=group.file.size_bytes,
            footer_sha256=group.file.footer_sha256,
            row_start=group.row_start,
            row_stop=stop,
            first_row_id=first_row_id,
        )
    )
