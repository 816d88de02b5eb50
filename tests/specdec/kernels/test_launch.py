"""What paged attention launches on an H200 for rounds and chunks, long rows among short ones."""

from __future__ import annotations

import pytest
import torch

from specbatch.specdec.kernels.launch import (
    MAX_PARTIAL_BYTES,
    MAX_SPLITS_OF_A_SHARE,
    SPLIT,
    Launch,
    plan_launch,
    tile_rows,
)
from specbatch.specdec.models import footprint

PROCESSORS, H, D = 132, 8, 128


def rows_of(num_tokens: int, segments: int, longest: int, group: int, *, width: int = D, fixed: bool = False) -> int:
    return tile_rows(
        torch.bfloat16, width, num_rows=num_tokens * group, num_segments=segments, max_rows=longest * group,
        is_invariant=fixed,
    )  # fmt: skip


def launched(
    segments: int, longest: int, keys: int, *, num_tokens: int | None = None, group: int = 4, window: int | None = None,
    is_invariant: bool = False,
) -> Launch:  # fmt: skip
    """For segments of up to ``longest`` tokens, all of them so long where ``num_tokens`` does not say less."""
    num_tokens = segments * longest if num_tokens is None else num_tokens
    return plan_launch(
        num_tokens=num_tokens, num_segments=segments, max_count=longest, max_keys=keys, heads=(H, group), window=window,
        rows=rows_of(num_tokens, segments, longest, group, fixed=is_invariant),
        partial_bytes=num_tokens * H * group * (D + 2) * 4, num_processors=PROCESSORS,
    )  # fmt: skip


def splits_of_a_share(launch: Launch) -> int:
    return -(-launch.num_splits // launch.num_shares)


@pytest.mark.parametrize("is_invariant", [False, True])
@pytest.mark.parametrize(
    ("segments", "longest", "group"),
    [(1, 1, 4), (8, 9, 8), (64, 1, 4), (64, 1, 8), (256, 1, 4), (32, 9, 4), (64, 4, 4)],
)
def test_no_program_walks_a_long_row_alone(segments: int, longest: int, group: int, is_invariant: bool) -> None:
    """One row of 16,384 keys among short ones, which the host's bounds do not tell from as many long ones."""
    launch = launched(segments, longest, 16384, group=group, is_invariant=is_invariant)
    assert launch.num_splits == 64
    assert splits_of_a_share(launch) <= MAX_SPLITS_OF_A_SHARE


def test_rows_that_draft_unevenly_are_shared_too() -> None:
    """Eight rows, most of them without drafts; and some with more than the tiles of one segment hold."""
    few = launched(8, 9, 16384, num_tokens=32, group=8, is_invariant=True)
    assert few.tiles_per_segment == 2
    assert splits_of_a_share(few) <= MAX_SPLITS_OF_A_SHARE
    counted = launched(32, 33, 16384, num_tokens=64, group=8)
    assert counted.tiles_per_segment == 0
    assert counted.num_tiles == 64 * 8 // 64 + 32
    assert splits_of_a_share(counted) <= MAX_SPLITS_OF_A_SHARE


def test_short_rows_and_one_window_are_not_shared_where_the_device_is_busy() -> None:
    assert launched(256, 1, 2048).num_shares == 1
    windowed = launched(256, 1, 65536, window=1024)
    assert (windowed.num_shares, windowed.num_splits) == (1, 5)


def test_a_lonely_row_fills_the_device() -> None:
    assert launched(1, 1, 16384).num_shares == 64
    assert launched(1, 1, 300).num_shares == 2


def test_chunks_of_prompts_are_shared_only_for_idle_processors() -> None:
    """Their partial results weigh as much as the keys."""
    assert launched(1, 2048, 2048).num_shares == 1
    assert launched(1, 512, 16384).num_shares == 1
    assert launched(1, 128, 16384).num_shares == 4
    beside = launched(65, 2048, 16384, num_tokens=2048 + 64)
    assert (beside.tiles_per_segment, beside.num_shares) == (0, 1)


def test_partial_results_fit_what_the_ledger_keeps() -> None:
    for segments in (1, 8, 64, 256):
        for longest in (1, 5, 9):
            for keys in (SPLIT, 16384, 131072):
                launch = launched(segments, longest, keys)
                num_bytes = segments * longest * H * 4 * (D + 2) * 4 * launch.num_splits
                assert launch.num_shares == 1 or num_bytes <= MAX_PARTIAL_BYTES
    assert launched(256, 9, 131072).num_shares == 1
    assert footprint._CAPTURED_BYTES["cuda"] >= MAX_PARTIAL_BYTES + 2**29


def test_a_segment_of_up_to_128_rows_reads_its_keys_once() -> None:
    assert rows_of(64 * 9, 64, 9, 8) == 128
    assert rows_of(384, 48, 9, 8) == 128  # 33 rows in a bucket
    assert launched(64, 9, 4096, group=8).tiles_per_segment == 1
    assert rows_of(64 * 9, 64, 9, 8, fixed=True) == 64
    assert rows_of(64 * 9, 64, 9, 8, width=256) == 64
    assert rows_of(64 * 9, 64, 9, 4) == 64
    assert rows_of(64 + 32, 65, 32, 4) == 64  # a short prompt beside rows of one token, which would fill a 32nd
    assert rows_of(64, 64, 1, 4) == 16
