"""Which rows ``plan`` and ``calibrate`` look at: a seeded sample across the whole dataset that reads little of it.

Parquet can be entered at the beginning of a row group only, so a sample of single rows would read everything. Instead
row groups are drawn, large ones more often, and of each some runs of rows; rows of one run may be alike, and the
interval of what is estimated says so (``interval``). Pure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from specbatch.schemas.plan import InputFile, Segment

SCAN_SEED = 0
"""The same dataset gives the same sample on every machine and every day."""
_LEAST_GROUPS = 16
_FEWEST_GROUPS = 2
_MOST_ROWS_READ = 1_000_000
_MOST_BYTES_READ = 256 << 20
"""Row groups that hold so much together are enough, even where they are fewer than ``_LEAST_GROUPS``."""
_RUNS_OF_A_GROUP = 8
_Z = 1.96
"""Of the normal distribution, for intervals of 95 %."""


def choose_segments(files: Sequence[InputFile], num_rows: int, amount: int | None, seed: int) -> tuple[Segment, ...]:
    """Runs of rows to look at, ascending by row id, none twice.

    Args:
        num_rows: of the job: the first ones of the files.
        amount: rows to choose; None, or as many as there are, for all.
        seed: the same seed chooses the same rows of the same files.
    """
    groups = list(_row_groups(files, num_rows))
    if amount is None or amount >= num_rows:
        return tuple(group for group, _ in groups)
    generator = random.Random(seed)
    chosen = _draw_groups(groups, amount, generator)
    pieces: list[Segment] = []
    remaining = amount
    # Small ones first: what a small row group lacks is made up by the larger ones.
    for left, group in zip(range(len(chosen), 0, -1), sorted(chosen, key=lambda g: g.num_rows), strict=True):
        taken = list(_draw_runs(group, min(group.num_rows, -(-remaining // left)), generator))
        remaining -= sum(piece.num_rows for piece in taken)
        pieces += taken
    return tuple(sorted(pieces, key=lambda piece: piece.first_row_id))


def interval(counts: Sequence[tuple[int, int]], num_rows: int) -> tuple[int, int, int]:
    """Rows of the dataset that have a property: estimate, and the bounds of its interval of 95 %.

    Args:
        counts: (rows with the property, rows) of each run of rows that was looked at.
        num_rows: of the dataset. Where all of them were looked at, the three numbers are the same.

    The interval is Wilson's, for as many rows as the sample is worth: fewer than it has where rows of a run are alike.
    """
    found, seen = sum(have for have, _ in counts), sum(rows for _, rows in counts)
    if seen >= num_rows or seen == 0:
        return found, found, found if seen else num_rows
    share = found / seen
    worth = seen / _likeness(counts, share, seen)
    spread = _Z * math.sqrt(share * (1 - share) / worth + _Z**2 / (4 * worth**2))
    middle, scale = share + _Z**2 / (2 * worth), 1 + _Z**2 / worth
    low, high = (middle - spread) / scale, (middle + spread) / scale
    return (
        round(share * num_rows),
        max(math.floor(low * num_rows), found),
        min(math.ceil(high * num_rows), num_rows - (seen - found)),
    )


def _likeness(counts: Sequence[tuple[int, int]], share: float, seen: int) -> float:
    """How much more the runs scatter than single rows would: 1 where rows of a run are not alike."""
    num_runs = len(counts)
    single = share * (1 - share) / seen
    if num_runs < 2 or single == 0:
        return 1.0
    scatter = sum((have - share * rows) ** 2 for have, rows in counts) * num_runs / (num_runs - 1) / seen**2
    return max(scatter / single, 1.0)


def _row_groups(files: Sequence[InputFile], num_rows: int) -> Iterator[tuple[Segment, int]]:
    """The row groups that hold the first ``num_rows`` rows, the last one cut, and about how many bytes each has."""
    at = 0
    for file in files:
        row = 0
        for group_rows in file.row_group_rows:
            if at >= num_rows:
                return
            taken = min(group_rows, num_rows - at)
            if taken:
                segment = Segment(file.path, file.size_bytes, file.footer_sha256, row, row + taken, at)
                yield segment, file.size_bytes * taken // file.num_rows
            row += group_rows
            at += taken


def _draw_groups(groups: Sequence[tuple[Segment, int]], amount: int, generator: random.Random) -> list[Segment]:
    """Row groups without repetition, each next one with a chance in proportion to its rows."""
    order = sorted(groups, key=lambda group: generator.expovariate(1.0) / group[0].num_rows)
    chosen: list[Segment] = []
    total = total_bytes = 0
    for group, num_bytes in order:
        is_much = total >= _MOST_ROWS_READ or total_bytes >= _MOST_BYTES_READ
        is_wide = len(chosen) >= _LEAST_GROUPS or (len(chosen) >= _FEWEST_GROUPS and is_much)
        if total >= amount and is_wide:
            break
        chosen.append(group)
        total += group.num_rows
        total_bytes += num_bytes
    return chosen


def _draw_runs(group: Segment, amount: int, generator: random.Random) -> Iterator[Segment]:
    """Runs of ``amount`` rows in all, one in each of equal stretches of a row group."""
    if amount == group.num_rows:
        yield group
        return
    num_runs = min(_RUNS_OF_A_GROUP, amount)
    for run in range(num_runs):
        begin, end = (group.num_rows * place // num_runs for place in (run, run + 1))
        length = min(amount * (run + 1) // num_runs - amount * run // num_runs, end - begin)
        at = begin + generator.randrange(end - begin - length + 1)
        yield Segment(
            group.path,
            group.size_bytes,
            group.footer_sha256,
            group.row_start + at,
            group.row_start + at + length,
            group.first_row_id + at,
        )
