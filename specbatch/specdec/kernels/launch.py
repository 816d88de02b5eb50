"""How paged attention is launched: all of it follows from host integers, and none of it needs Triton.

The number of shares never changes a bit of the result (see ``paged_kernels``). The shape of a tile may, because another
matrix instruction is used; ``is_invariant`` holds it fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SPLIT = 256
"""Keys of a split. Part of the meaning of "the same bits": another number rounds differently."""

MAX_PARTIAL_BYTES = 2**30
"""Partial results that would take more are not made. The memory ledger keeps as much free (``models/footprint.py``)."""

MAX_SPLITS_OF_A_SHARE = 16
"""A row of 16,384 keys has 64 splits. One program would still walk them when those of short rows are long done."""

MAX_COUNTED_MERGES = 4096
"""Where tiles are counted off, merging launches programs for segments times the longest of them, most with no work."""

_PROGRAMS_PER_PROCESSOR = 4
_INVARIANT_ROWS = 64


@dataclass(frozen=True, slots=True)
class Launch:
    """Shape of a launch.

    Attributes:
        rows: of a tile. num_tiles: programs per key-value head and share. tiles_per_segment: 0 where the tiles are
            counted off over the segments. num_shares: of a row's splits. num_splits: that a token may have.
    """

    rows: int
    num_tiles: int
    tiles_per_segment: int
    num_shares: int
    num_splits: int


def tile_rows(
    dtype: torch.dtype, width: int, *, num_rows: int, num_segments: int, max_rows: int, is_invariant: bool
) -> int:
    """Rows of a tile for segments of at most ``max_rows`` rows, ``num_rows`` in all; a row is a query's head.

    Wide types have no matrix instruction that is exact: their tiles are small, always the same, and computed by fma.
    """
    if dtype.itemsize > 2:
        return 16
    if is_invariant:
        return _INVARIANT_ROWS
    if width <= 128:  # the sums of wider values do not fit the registers
        is_long = num_rows >= 128 * num_segments
        # Two tiles of 64 would read all keys twice. Not where most segments are short: they would fill a quarter.
        is_one_tile = 64 < max_rows <= 128 and num_rows > 32 * num_segments
        if is_long or is_one_tile:
            return 128
    return next((rows for rows in (16, 32) if max_rows <= rows), 64)


def tile_options(dtype: torch.dtype, width: int, rows: int) -> dict[str, object]:
    """Compile options of the tile: they follow from the types and the shape, so that equal shapes give equal bits."""
    block: dict[str, object]
    if dtype.itemsize > 2:
        block = {"BLOCK_N": 32 if dtype == torch.float32 else 16, "num_stages": 2, "PRECISION": "ieee"}
    else:
        block = {"BLOCK_N": 64 if width <= 128 else 32, "num_stages": 4 if rows < 64 else 3, "PRECISION": "tf32"}
    num_warps = 8 if rows > 64 or (rows == 64 and width > 128) else 4
    # Multiply-adds only where they are written: not where a compiler finds some, in one program and not in the next.
    return block | {"BLOCK_M": rows, "num_warps": num_warps, "enable_fp_fusion": False}


def plan_launch(
    *,
    num_tokens: int,
    num_segments: int,
    max_count: int,
    max_keys: int,
    heads: tuple[int, int],
    window: int | None,
    rows: int,
    partial_bytes: int,
    num_processors: int,
    num_shares: int | None = None,
) -> Launch:
    """Decide the shape of the launch.

    Args:
        heads: key-value heads and their group. partial_bytes: of one split of all tokens.
        num_shares: of a row's splits; decided here if None.
    """
    H, group = heads
    tiles_per_segment = -(-max_count * group // rows)
    num_tiles = num_segments * tiles_per_segment
    # A segment's last tile is not full, so counting off needs at most one tile more for each.
    counted = num_tokens * group // rows + num_segments
    # Tiles without work end at once; counting off costs every tile a search, and so must save many of them.
    is_counted = 2 * counted <= num_tiles
    num_tiles = counted if is_counted else num_tiles
    num_splits = -(-max(max_keys, 1) // SPLIT)
    if window is not None:  # the splits of a token lie side by side, so that these places are enough
        num_splits = min(num_splits, (window + SPLIT - 2) // SPLIT + 1)
    if num_shares is None:
        is_cheap = num_splits * partial_bytes <= MAX_PARTIAL_BYTES
        if is_counted:
            is_cheap &= num_segments * max_count <= MAX_COUNTED_MERGES
        is_full = num_tokens * group >= 128 * num_segments
        num_shares = _num_shares(num_tiles * H, num_splits, num_processors, is_full=is_full) if is_cheap else 1
    return Launch(
        rows=rows,
        num_tiles=num_tiles,
        tiles_per_segment=0 if is_counted else tiles_per_segment,
        num_shares=num_shares,
        num_splits=num_splits,
    )


def _num_shares(num_programs: int, num_splits: int, num_processors: int, *, is_full: bool) -> int:
    """Shares where one share would be so many programs.

    Args:
        is_full: segments have 128 rows and more, as chunks of prompts have. Their partial results weigh as much as the
            keys that they read, so they are shared only to give idle processors work.
    """
    if is_full:
        wanted = num_processors // num_programs
    else:
        to_fill = -(-_PROGRAMS_PER_PROCESSOR * num_processors // num_programs)
        wanted = max(to_fill, -(-num_splits // MAX_SPLITS_OF_A_SHARE))
    return max(1, min(wanted, num_splits))
