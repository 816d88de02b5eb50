"""The look at the prompts and the forecast as ``plan`` and ``calibrate`` print them."""

from __future__ import annotations

from collections.abc import Sequence

from specbatch.jobs.coordinator.policy import MIN_ROWS_TO_JUDGE
from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.planning.sample import SCAN_SEED
from specbatch.jobs.planning.scan_values import Estimate, Scan
from specbatch.jobs.profiles.forecast import Forecast

_BAR_WIDTH = 30


def scan_lines(found: Scan, *, is_cut: bool, max_error_rate: float) -> list[str]:
    """What the prompts are like, and what would fail.

    Args:
        is_cut: prompts over the context are cut, not refused.
        max_error_rate: share of error rows at which a job gives up.
    """
    if not found.num_rows:
        return ["prompts      none: the dataset has no rows"]
    if found.is_all:
        which = f"all {fmt.plural(found.num_rows, 'row')}" if found.num_rows != 1 else "the one row"
    else:
        which = (
            f"{fmt.count(found.num_scanned)} of {fmt.count(found.num_rows)} rows, drawn by seed {SCAN_SEED} "
            "(--scan all reads every row)"
        )
    lines = [f"prompts      {which}"]
    lengths = found.lengths
    if lengths is not None:
        lines.append(
            f"  tokens     min {fmt.count(lengths.fewest)}   median {fmt.count(lengths.median)}   "
            f"p95 {fmt.count(lengths.p95)}   max {fmt.count(lengths.most)}   context {fmt.count(found.context_length)}"
        )
        lines += _histogram(lengths.bins)
    if found.over_length.seen:
        fate = "are cut to fit" if is_cut else "become error rows (--truncate-prompt cuts them)"
        lines.append(f"  too long   {_estimate(found, found.over_length)}; they {fate}")
    if found.clamped.seen:
        lines.append(f"  clamped    {_estimate(found, found.clamped)}: the context ends before --max-new-tokens")
    bound = "at most" if found.is_all else "at most about"
    lines.append(f"  output     {bound} {fmt.plural(found.max_output_tokens, 'token')} of completions")
    return [*lines, *_failures(found, max_error_rate)]


INTERVAL = "95 %: scatter of lengths and speed, a tenth for other days; no losses, no other load"
"""What the two times behind a forecast hold, and what not."""


def forecast_lines(expected: Forecast, notes: Sequence[str] = ()) -> list[str]:
    """How long a job will take and what it costs."""
    hours = f"{expected.device_hours:,.2f}" if expected.device_hours >= 0.1 else f"{expected.device_hours:.2g}"
    cost = "" if expected.cost is None else f", cost {expected.cost:,.2f}"
    return [
        f"forecast     {fmt.clock(expected.wall_seconds)} ({fmt.clock(expected.low)} to {fmt.clock(expected.high)}), "
        f"{fmt.rate(expected.tokens_per_second)} output tokens/s, {hours} device-hours{cost}",
        f"  interval   {INTERVAL}",
        *(f"  note       {fmt.clean(note)}" for note in notes),
    ]


def _failures(found: Scan, max_error_rate: float) -> list[str]:
    failing = found.all_errors
    if not failing.seen:
        most = "" if found.is_all else f"; of all rows at most {fmt.count(failing.high)} (95 % sure)"
        return [f"would fail   no row that was looked at{most}"]
    lines = [f"would fail   {_estimate(found, failing)}"]
    width = max(len(code) for code, _ in found.errors)
    lines += [f"  {code:<{width}}  {_estimate(found, each)}" for code, each in found.errors]
    share = failing.rows / found.num_rows
    if share > max_error_rate and found.num_rows >= MIN_ROWS_TO_JUDGE:
        lines.append(
            f"  the job would give up: {fmt.percent(share)} are error rows, --max-error-rate is {max_error_rate:g}"
        )
    return lines


def _estimate(found: Scan, value: Estimate) -> str:
    if found.is_all:
        return fmt.plural(value.seen, "row")
    return (
        f"{fmt.count(value.seen)} of {fmt.count(found.num_scanned)}: about {fmt.plural(value.rows, 'row')} of all "
        f"({fmt.count(value.low)} to {fmt.count(value.high)})"
    )


def _histogram(bins: Sequence[tuple[int, int, int]]) -> list[str]:
    labels = [fmt.count(low) if low == high else f"{fmt.count(low)}-{fmt.count(high)}" for low, high, _ in bins]
    counts = [fmt.count(count) for _, _, count in bins]
    most = max(count for _, _, count in bins)
    label_width, count_width = max(map(len, labels)), max(map(len, counts))
    return [
        f"    {label:>{label_width}}  {text:>{count_width}}  {'#' * -(-count * _BAR_WIDTH // most)}".rstrip()
        for label, text, (_, _, count) in zip(labels, counts, bins, strict=True)
    ]
