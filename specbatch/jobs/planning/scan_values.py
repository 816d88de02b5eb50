"""What a look at the prompts says about a dataset: lengths, rows that would fail, bounds. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from specbatch.jobs.planning.sample import SCAN_SEED, interval

_MOST_BINS = 11
_LINEAR_BINS = 8


@dataclass(frozen=True, slots=True)
class Estimate:
    """Rows with a property: seen in the sample, and in the dataset with an interval of 95 %."""

    seen: int
    rows: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """Tokens of prompts as they are tokenized, before any of them is cut or refused.

    Attributes:
        bins: (fewest tokens, most tokens, prompts), ascending and without gaps.
    """

    fewest: int
    median: int
    p95: int
    most: int
    mean: float
    bins: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Scan:
    """What was seen of the prompts and what it says about the dataset.

    Attributes:
        num_rows: of the job. num_scanned: looked at.
        lengths: None where no row has a prompt.
        over_length: rows whose prompt leaves no room in the context: error rows, or cut under ``--truncate-prompt``.
        clamped: rows whose completion must be shorter than was asked, since the context ends.
        errors: error code -> rows that would end with it; all_errors: of any code.
        num_prompt_tokens: expected in the dataset, of the rows that are decoded.
        max_output_tokens: bound for the dataset, all samples of all rows; expected where only a sample was seen.
        num_results: results that are decoded, expected.
    """

    num_rows: int
    num_scanned: int
    context_length: int
    lengths: TokenLengths | None
    over_length: Estimate
    clamped: Estimate
    errors: tuple[tuple[str, Estimate], ...]
    all_errors: Estimate
    num_prompt_tokens: int
    max_output_tokens: int
    num_results: int

    @property
    def is_all(self) -> bool:
        """Whether every row was looked at."""
        return self.num_scanned >= self.num_rows


@dataclass(slots=True)
class Tally:
    """Counts of one run of rows; ``lengths`` are those of ``TokenLengths``."""

    num_rows: int
    lengths: list[int]
    errors: Counter[str]
    num_clamped: int = 0
    num_prompt_tokens: int = 0
    max_output_tokens: int = 0


def summarise(tallies: Sequence[Tally], num_rows: int, context_length: int, num_samples: int) -> Scan:
    """What the counts of some runs of rows say about a dataset of ``num_rows``."""
    num_scanned = sum(tally.num_rows for tally in tallies)
    lengths = sorted(length for tally in tallies for length in tally.lengths)

    def estimate(count: Callable[[Tally], int]) -> Estimate:
        counts = [(count(tally), tally.num_rows) for tally in tallies]
        return Estimate(sum(have for have, _ in counts), *interval(counts, num_rows))

    def whole(count: Callable[[Tally], int]) -> int:
        return round(sum(map(count, tallies)) * num_rows / num_scanned) if num_scanned else 0

    codes = Counter[str]()
    for tally in tallies:
        codes.update(tally.errors)
    all_errors = estimate(lambda tally: tally.errors.total())
    return Scan(
        num_rows=num_rows,
        num_scanned=num_scanned,
        context_length=context_length,
        lengths=describe_lengths(lengths) if lengths else None,
        over_length=estimate(lambda tally: sum(length >= context_length for length in tally.lengths)),
        clamped=estimate(lambda tally: tally.num_clamped),
        errors=tuple((code, estimate(lambda tally, code=code: tally.errors[code])) for code, _ in codes.most_common()),  # type: ignore[misc]
        all_errors=all_errors,
        num_prompt_tokens=whole(lambda tally: tally.num_prompt_tokens),
        max_output_tokens=whole(lambda tally: tally.max_output_tokens),
        num_results=(num_rows - all_errors.rows) * num_samples,
    )


def describe_lengths(lengths: Sequence[int]) -> TokenLengths:
    """Quantiles and histogram of lengths, at least one, ascending."""

    def quantile(share: float) -> int:
        return lengths[max(math.ceil(share * len(lengths)) - 1, 0)]

    edges = bin_edges(lengths[0], lengths[-1])
    counts = [0] * (len(edges) - 1)
    place = 0
    for length in lengths:
        while length >= edges[place + 1]:
            place += 1
        counts[place] += 1
    return TokenLengths(
        fewest=lengths[0],
        median=quantile(0.5),
        p95=quantile(0.95),
        most=lengths[-1],
        mean=sum(lengths) / len(lengths),
        bins=tuple((low, high - 1, count) for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)),
    )


def bin_edges(fewest: int, most: int) -> list[int]:
    """Ascending edges of at most twelve bins [edge, next edge) that hold all lengths from ``fewest`` to ``most``.

    Lengths of prompts spread over orders of magnitude: edges grow by a factor where at least three of them fit.
    """
    for factors in ((2, 3), (2,), (4,)):
        inner = [edge for edge in _round_edges(factors, most) if fewest < edge <= most]
        if 3 <= len(inner) <= _MOST_BINS:
            return [fewest, *inner, most + 1]
    step = -(-(most + 1 - fewest) // _LINEAR_BINS)
    return [*range(fewest, most + 1, step), most + 1]


def scan_document(found: Scan) -> dict[str, Any]:
    """A scan as JSON values."""

    def estimate(value: Estimate) -> dict[str, int]:
        return {"seen": value.seen, "rows": value.rows, "low": value.low, "high": value.high}

    lengths = found.lengths
    return {
        "rows": found.num_rows,
        "scanned": found.num_scanned,
        "is_all": found.is_all,
        "seed": SCAN_SEED,
        "context_length": found.context_length,
        "prompt_tokens": None
        if lengths is None
        else {
            "min": lengths.fewest,
            "median": lengths.median,
            "p95": lengths.p95,
            "max": lengths.most,
            "mean": round(lengths.mean, 2),
            "histogram": [{"from": low, "to": high, "rows": count} for low, high, count in lengths.bins],
        },
        "over_length": estimate(found.over_length),
        "clamped": estimate(found.clamped),
        "errors": {code: estimate(value) for code, value in found.errors},
        "error_rows": estimate(found.all_errors),
        "expected_prompt_tokens": found.num_prompt_tokens,
        "max_output_tokens": found.max_output_tokens,
        "expected_results": found.num_results,
    }


def _round_edges(factors: Sequence[int], most: int) -> list[int]:
    """1 and all powers up to ``most``: of the one factor, or of 2 with half as much again between two of them."""
    if len(factors) == 2:
        return sorted({2**i for i in range(most.bit_length())} | {3 * 2**i for i in range(most.bit_length())})
    return [factors[0] ** i for i in range(most.bit_length())]
