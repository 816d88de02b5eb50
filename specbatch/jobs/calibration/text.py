"""What ``calibrate`` prints: acceptance, the table of speeds, and in plain words the worth of the draft. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.planning.scan_text import forecast_lines
from specbatch.jobs.profiles.table import CALM_SCATTER, Cell, Verdict, cells, describe_doubt, judge, scatter, survival

if TYPE_CHECKING:
    from specbatch.jobs.calibration.calibrate import Calibration
    from specbatch.jobs.profiles.store import Profile

CALIBRATION_FORMAT = "specbatch/calibration/1"
_WIDTH = 9


def render_calibration(found: Calibration, format: str) -> str:
    """A calibration as text (``human``) or ``json``."""
    if format == "json":
        return json.dumps(calibration_document(found), indent=2, ensure_ascii=False) + "\n"
    profile = found.profile
    here = profile.circumstances
    threads = "" if here.num_threads is None else f", {fmt.plural(here.num_threads, 'thread')}"
    draft = "no draft" if profile.draft is None else fmt.clean(profile.draft)
    sections = [
        [
            f"pair         {fmt.clean(profile.target)} with {draft}, {here.dtype}",
            f"machine      {here.device}, {fmt.clean(here.device_name)}{threads}",
            f"rows         {fmt.count(found.num_rows)} drawn from {fmt.count(found.prompts.num_rows)}",
        ],
        _acceptance_lines(profile),
        _table_lines(profile) + _scatter_lines(profile),
        [
            f"verdict      {line}" if place == 0 else f"             {line}"
            for place, line in enumerate(verdict_lines(profile))
        ],
        forecast_lines(found.expected),
        [f"saved        {fmt.clean(path)}" for path in found.saved],
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def verdict_lines(profile: Profile) -> list[str]:
    """Does this draft know this target, and is it worth its memory: the answer in words, with its numbers."""
    verdict, doubt = judge(profile), describe_doubt(profile)
    plain = f"batch {verdict.plain.batch_size} without it: {fmt.rate(verdict.plain.tokens_per_second)} tokens/s"
    if verdict.best is None:
        return [
            f"no draft was measured; the fastest is batch {verdict.plain.batch_size}: "
            f"{fmt.rate(verdict.plain.tokens_per_second)} tokens/s"
        ]
    agrees = "no draft was judged"
    if verdict.first_agreement is not None:
        agrees = f"the draft agrees on {100 * verdict.first_agreement:.0f} % of first tokens"
    memory = fmt.size(profile.draft_bytes)
    return [
        *(() if doubt is None else (f"in doubt: {doubt}",)),
        f"{agrees}; {_gain_text(verdict)}",
        f"fastest with the draft: {_cell_text(verdict.best)}; {plain}",
        f"worth its {memory}" if verdict.is_worth else f"not worth its {memory}: use --draft none",
    ]


def calibration_document(found: Calibration) -> dict[str, Any]:
    """A calibration as JSON values: the profile as it is saved, and what follows from it."""
    profile = found.profile
    verdict = judge(profile)
    return {
        "format": CALIBRATION_FORMAT,
        "key": profile.key,
        "profile": profile.model_dump(mode="json"),
        "acceptance": [round(chance, 6) for chance in survival(profile.acceptance)],
        "table": [_cell_document(cell) for cell in cells(profile.steps, profile.acceptance)],
        "scatter": round(scatter(profile.steps), 4),
        "verdict": {
            "is_worth": verdict.is_worth,
            "first_agreement": verdict.first_agreement,
            "best": None if verdict.best is None else _cell_document(verdict.best),
            "plain": _cell_document(verdict.plain),
            "text": verdict_lines(profile),
        },
        "forecast": found.expected.document(),
        "rows": found.num_rows,
        "saved": [str(path) for path in found.saved],
    }


def _gain_text(verdict: Verdict) -> str:
    if verdict.widest is None:
        return "its gain could not be measured"
    cell, gain = verdict.widest
    if gain < 1:
        return f"at its best, batch {cell.batch_size}, it gives {gain:.2f} of the speed without it"
    return f"with it {gain:.1f} times faster than without at batch {cell.batch_size}"


def _cell_text(cell: Cell) -> str:
    return f"batch {cell.batch_size} with K {cell.draft_length}: {fmt.rate(cell.tokens_per_second)} tokens/s"


def _cell_document(cell: Cell) -> dict[str, Any]:
    return {
        "batch_size": cell.batch_size,
        "draft_length": cell.draft_length,
        "tokens_per_second": round(cell.tokens_per_second, 3),
        "relative_error": round(cell.error, 4),
    }


def _acceptance_lines(profile: Profile) -> list[str]:
    if not profile.acceptance:
        return []
    lines = ["acceptance   position      judged    accepted      rate   all so far"]
    for place, (record, chance) in enumerate(zip(profile.acceptance, survival(profile.acceptance), strict=False), 1):
        lines.append(
            f"             {place:>8}{fmt.count(record.reached):>12}{fmt.count(record.accepted):>12}"
            f"{fmt.percent(record.accepted / record.reached):>10}{fmt.percent(chance):>13}"
        )
    return lines


def _table_lines(profile: Profile) -> list[str]:
    """Tokens per second, then milliseconds of a round, a line for each batch size and a column for each K."""
    lengths = sorted({step.draft_length for step in profile.steps})
    speeds = {(c.batch_size, c.draft_length): c.tokens_per_second for c in cells(profile.steps, profile.acceptance)}
    times = {(step.batch_size, step.draft_length): 1000 * step.seconds for step in profile.steps}
    sizes = sorted({step.batch_size for step in profile.steps})
    best = max(speeds, key=lambda key: speeds[key])
    lines = ["tokens/s" + _row("batch", [f"K {length}" for length in lengths], 5)]
    lines += [_row(size, [_number(speeds.get((size, k)), (size, k) == best) for k in lengths]) for size in sizes]
    lines += ["ms a round" + _row("batch", [f"K {length}" for length in lengths], 3)]
    lines += [_row(size, [_number(times.get((size, k)), False) for k in lengths]) for size in sizes]
    return lines


def _scatter_lines(profile: Profile) -> list[str]:
    found = scatter(profile.steps)
    if found <= CALM_SCATTER:
        return []
    return [
        f"  note       rounds of one size differ by {fmt.percent(found)}: the machine is not quiet; "
        "calibrate again with more --seconds when it is idle"
    ]


def _row(name: object, values: Sequence[str], indent: int = 13) -> str:
    return f"{' ' * indent}{name!s:>5} " + "".join(f"{value:>{_WIDTH}}" for value in values)


def _number(value: float | None, is_best: bool) -> str:
    return "-" if value is None else f"{'*' if is_best else ''}{fmt.rate(value)}"
