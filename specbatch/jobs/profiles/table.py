"""What a profile amounts to: expected speed by batch size and K, the best of them, the worth of the draft. Pure.

The speed of a cell is what its rounds commit by the measured acceptance over what they take by the measured times:
acceptance is the same at every batch size and is known from all rounds together, times are known cell by cell.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from specbatch.jobs.profiles.store import PositionRecord, Profile, StepRecord

BATCH_MARGIN = 1.05
"""Another batch size must be so much faster than the usual one: less may be noise, and the usual one is never wrong."""
CALM_SCATTER = 0.15
"""Where rounds of one size lie further apart, something else was at work on the machine."""
WORTH_MARGIN = 1.03
"""A draft is worth its memory where the pair is so much faster than the target at its own best batch size."""

MOST_APART = 2.0
"""Where table and trial differ by more than this factor, the machine was not the same while they were measured."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One batch size and K with its expected speed, and the relative standard error of it."""

    batch_size: int
    draft_length: int
    tokens_per_second: float
    error: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the draft is worth its memory.

    Attributes:
        first_agreement: share of first drafts that the target takes. None: no draft was measured.
        best, plain: the fastest cell with the draft, and without it.
        widest: the cell at which the draft gains most over the same batch size without it, and how many times.
        is_worth: the pair is clearly faster than the target alone at any batch size.
    """

    first_agreement: float | None
    best: Cell | None
    plain: Cell
    widest: tuple[Cell, float] | None
    is_worth: bool


def survival(positions: Sequence[PositionRecord]) -> tuple[float, ...]:
    """Probability that all drafts up to a position are accepted; positions that were never judged are left out."""
    rates = []
    chance = 1.0
    for position in positions:
        if position.reached == 0:
            break
        chance *= position.accepted / position.reached
        rates.append(chance)
    return tuple(rates)


def tokens_per_row(draft_length: int, positions: Sequence[PositionRecord]) -> float:
    """Tokens that a row is expected to commit in a round of K drafts, the target's own among them."""
    return 1.0 + sum(survival(positions)[:draft_length])


def cells(steps: Sequence[StepRecord], positions: Sequence[PositionRecord]) -> tuple[Cell, ...]:
    """The whole table, in the order of the steps: ascending by batch size and K."""
    return tuple(_cell(step, positions) for step in steps)


def best_by_batch(table: Sequence[Cell], speculation: int | str) -> dict[int, Cell]:
    """For each batch size the cell that a setting comes to: the best K for ``auto``, none for ``off``, or the K given.

    Where a given K was not measured the next one below stands for it.
    """
    chosen: dict[int, Cell] = {}
    for cell in table:
        if speculation == "off" and cell.draft_length:
            continue
        if isinstance(speculation, int):
            is_better = cell.draft_length <= speculation  # ascending, so that the last one is the nearest
        else:
            found = chosen.get(cell.batch_size)
            is_better = found is None or cell.tokens_per_second > found.tokens_per_second
        if is_better:
            chosen[cell.batch_size] = cell
    return chosen


def speeds_of(table: Sequence[Cell], speculation: int | str) -> list[tuple[int, float]]:
    """(rows in flight, tokens per second) of a setting, ascending; plain decoding where it was not measured at all."""
    chosen = best_by_batch(table, speculation) or best_by_batch(table, "off")
    return [(size, cell.tokens_per_second) for size, cell in sorted(chosen.items())]


def best_batch(table: Sequence[Cell], speculation: int | str, usual: int, most: int) -> int:
    """The batch size to use: the usual one, unless another one is clearly faster.

    Args:
        usual: what would be taken without a profile. most: rows that fit.
    """
    by_batch = {size: cell for size, cell in best_by_batch(table, speculation).items() if size <= most}
    if not by_batch:
        return usual
    speeds = [(size, cell.tokens_per_second) for size, cell in sorted(by_batch.items())]
    fastest = max(by_batch.values(), key=lambda cell: cell.tokens_per_second)
    # Two standard errors of each: what scatters so much that it may be chance changes nothing.
    error = by_batch[usual].error if usual in by_batch else max(cell.error for cell in by_batch.values())
    least = fastest.tokens_per_second / (1 + 2 * fastest.error)
    is_clear = least >= BATCH_MARGIN * speed_at(speeds, usual) * (1 + 2 * error)
    return fastest.batch_size if is_clear else usual


def speed_at(speeds: Sequence[tuple[int, float]], rows: float) -> float:
    """Tokens per second with so many rows in flight.

    Args:
        speeds: (rows, tokens per second), ascending, at least one. Between two of them the speed is a line; below the
            first it goes in proportion to the rows, above the last it stays.
    """
    first_rows, first = speeds[0]
    if rows <= first_rows:
        return first * rows / first_rows
    for (low, low_speed), (high, high_speed) in itertools.pairwise(speeds):
        if rows <= high:
            return low_speed + (high_speed - low_speed) * (rows - low) / (high - low)
    return speeds[-1][1]


def scatter(steps: Sequence[StepRecord]) -> float:
    """How far rounds of one size typically lie apart, as a share of their time: the median over the cells."""
    return _quantile(sorted(step.spread for step in steps), 0.5)


def describe_doubt(profile: Profile) -> str | None:
    """Why the table is not to be trusted, in words; None where the trial of real rows went about as it says."""
    overhead = profile.trial.overhead
    if 1 / MOST_APART <= overhead <= MOST_APART:
        return None
    how = f"{1 / overhead:.1f} times as fast as" if overhead < 1 else f"{overhead:.1f} times as slow as"
    return f"real rows went {how} the table says: other work disturbed the machine; calibrate again when it is idle"


def judge(profile: Profile) -> Verdict:
    """Whether the draft of a profile is worth its memory."""
    table = cells(profile.steps, profile.acceptance)
    plain_by_batch = {cell.batch_size: cell for cell in table if cell.draft_length == 0}
    drafted = [cell for cell in table if cell.draft_length > 0]
    plain = max(plain_by_batch.values(), key=lambda cell: cell.tokens_per_second)
    if not drafted:
        return Verdict(None, None, plain, None, is_worth=False)
    best = max(drafted, key=lambda cell: cell.tokens_per_second)
    gains = [
        (cell, cell.tokens_per_second / plain_by_batch[cell.batch_size].tokens_per_second)
        for cell in drafted
        if cell.batch_size in plain_by_batch
    ]
    rates = survival(profile.acceptance)
    return Verdict(
        first_agreement=rates[0] if rates else None,
        best=best,
        plain=plain,
        widest=max(gains, key=lambda gain: gain[1]) if gains else None,
        is_worth=best.tokens_per_second >= WORTH_MARGIN * plain.tokens_per_second,
    )


def summarise_rounds(batch_size: int, draft_length: int, rounds: Sequence[tuple[int, float]]) -> StepRecord:
    """One cell from its rounds (rows, seconds), at least one: the median, which a hiccup of the machine cannot move."""
    seconds = sorted(each for _, each in rounds)
    middle = _quantile(seconds, 0.5)
    return StepRecord(
        batch_size=batch_size,
        draft_length=draft_length,
        num_rounds=len(rounds),
        rows=sum(rows for rows, _ in rounds) / len(rounds),
        seconds=middle,
        spread=(_quantile(seconds, 0.75) - _quantile(seconds, 0.25)) / 2 / middle,
    )


def _cell(step: StepRecord, positions: Sequence[PositionRecord]) -> Cell:
    tokens = tokens_per_row(step.draft_length, positions)
    # The median of n rounds scatters by about 1.25 standard deviations over the root of n.
    time_error = 1.25 * step.spread / 0.67 / math.sqrt(step.num_rounds)
    return Cell(
        batch_size=step.batch_size,
        draft_length=step.draft_length,
        tokens_per_second=step.rows * tokens / step.seconds,
        error=math.hypot(time_error, _tokens_error(step.draft_length, positions) / tokens),
    )


def _tokens_error(draft_length: int, positions: Sequence[PositionRecord]) -> float:
    """Standard error of the expected tokens: each position's rate moves all survivals from it on."""
    chances = survival(positions)[:draft_length]
    variance = 0.0
    for index, position in enumerate(positions[: len(chances)]):
        rate = position.accepted / position.reached
        if rate > 0:
            variance += (sum(chances[index:]) / rate) ** 2 * rate * (1 - rate) / position.reached
    return math.sqrt(variance)


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
