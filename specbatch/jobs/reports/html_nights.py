"""Several jobs side by side as a page: what is worse, trend lines with their noise, tables of changes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.reports import facts, page, svg
from specbatch.jobs.reports.comparison import METRICS, Comparison, Delta, Metric
from specbatch.jobs.reports.model import Fact, Finding, Table, Verdict
from specbatch.jobs.reports.nights import (
    MARKS,
    Nights,
    conclusions,
    not_complete,
    show_change,
    show_noise,
    show_value,
    thresholds,
)
from specbatch.jobs.reports.unfinished import Unfinished
from specbatch.jobs.reports.verdict import judge

_MAX_LABELS = 8


def render_nights_page(
    nights: Nights, comparison: Comparison, amended: Sequence[str], endings: Sequence[Unfinished | None]
) -> str:
    """The whole HTML file of a comparison.

    Args:
        amended: lines about outputs with amendments.
    """
    source = page.FROM_MANIFESTS if not any(endings) else page.FROM_OUTPUTS
    return page.page(f"{len(nights)} nights: specbatch report", _body(nights, comparison, amended, endings), source)


def _body(
    nights: Nights, comparison: Comparison, amended: Sequence[str], endings: Sequence[Unfinished | None]
) -> Iterator[str]:
    names = [facts.short_name(output) for output, _ in nights]
    entries = [("trends", "Trends"), ("changes", "Changes"), ("nights", "Nights"), ("rules", "Rules")]
    yield (
        f'<header><p class="kicker">specbatch report</p><h1>{len(nights)} nights side by side</h1>'
        f'<p class="path">changes are against [1] {escape(names[0])}</p>'
        f"{page.verdict(_verdict(nights, comparison, endings))}{page.navigation(entries)}</header>"
    )
    charts = [_trend(metric, index, nights, comparison) for index, metric in enumerate(METRICS)]
    yield page.section("trends", "Trends", [f'<div class="grid wide">{"".join(charts)}</div>'])
    yield page.section("changes", "Changes", [_changes(names, comparison)])
    yield page.section("nights", "Nights", _outputs(nights, amended, endings))
    yield page.section("rules", "What is flagged as worse", _lines(thresholds()))


def _outputs(nights: Nights, amended: Sequence[str], endings: Sequence[Unfinished | None]) -> Iterator[str]:
    yield page.table(_nights(nights, endings), hides_title=True)
    yield page.facts([Fact(f"[{index + 1}]", fmt.clean(output)) for index, (output, _) in enumerate(nights)])
    yield from _lines(amended)


def _lines(lines: Sequence[str]) -> list[str]:
    return [f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"] if lines else []


def _verdict(nights: Nights, comparison: Comparison, endings: Sequence[Unfinished | None]) -> Verdict:
    worse, cut = len(comparison.regressions), sum(ending is not None for ending in endings)
    sentences = conclusions(nights, comparison, endings)
    levels = {
        "Slower": "problem",
        "Worse": "problem",
        "Not comparable": "warning",
        "Note": "warning",
    }
    findings = [replace(found, title=f"Not complete: {found.title}") for found in not_complete(nights, endings)]
    for sentence in sentences[cut:]:
        level = next((level for start, level in levels.items() if sentence.startswith(start)), "note")
        findings.append(Finding(level, sentence))  # type: ignore[arg-type]  # the dictionary holds levels only
    findings.sort(key=lambda finding: ("problem", "warning", "note").index(finding.level))
    headline = f"{fmt.plural(worse, 'night')} worse than [1]." if worse else "No night is worse than [1]."
    if cut:
        headline = f"{fmt.plural(cut, 'night')} not complete.{f' {headline}' if worse else ''}"
    return Verdict("problem" if worse or cut else "good", headline, tuple(findings))


def _trend(metric: Metric, place: int, nights: Nights, comparison: Comparison) -> str:
    measured = [metric.measure(manifest) for _, manifest in nights]
    values = [None if item is None else item.value for item in measured]
    noises = [0.0 if item is None else item.noise for item in measured]
    known = [value for value in values if value is not None]
    if not known:
        return ""
    if metric.key.endswith("_rate"):
        axis = svg.Axis(0, 1, ("100 %", "50 %", "0 %")) if max(known) > 0.5 else svg.axis_to(max(known), fmt.percent)
    else:
        highest = max(value + noise for value, noise in zip(known, noises, strict=False))
        axis = svg.axis_to(highest, fmt.rate if metric.key == "output_tokens_per_second" else facts.money)
    flagged = frozenset(
        index
        for index in range(len(nights))
        if comparison.is_comparable[index] and comparison.deltas[index][place].standing == "worse"
    )
    told = ", ".join(f"[{i + 1}] {show_value(metric, value)}" for i, value in enumerate(values))
    hints = svg.hints([f"[{i + 1}] {show_value(metric, value)}" for i, value in enumerate(values)])
    shapes = (svg.grid(axis), svg.points(values, noises, axis, flagged), hints)
    drawing = svg.figure(metric.label, told, shapes)
    across = [f"[{i + 1}]" for i in range(len(nights))] if len(nights) <= _MAX_LABELS else ["[1]", f"[{len(nights)}]"]
    keys = page.legend([("bad", "flagged as worse")]) if flagged else ""
    css = "nights" if len(nights) <= _MAX_LABELS else ""
    return page.chart(metric.label, axis, drawing, across, keys=keys, css=css)


def _changes(names: Sequence[str], comparison: Comparison) -> str:
    header = ["night", *(metric.label for metric in METRICS), "verdict"]
    rows, marks = [], []
    for index, deltas in enumerate(comparison.deltas):
        is_comparable = comparison.is_comparable[index]
        cells, css = [f"[{index + 1}] {names[index]}"], [""]
        for delta in deltas:
            change = f" ({_change(delta)})" if index and delta.change is not None else ""
            cells.append(show_value(delta.metric, delta.value) + change)
            css.append(delta.standing if is_comparable and delta.standing in ("worse", "better") else "")
        cells.append(_standing(index, comparison))
        css.append("worse" if index in comparison.regressions else "faint")
        rows.append(tuple(cells))
        marks.append(css)
    texts = frozenset({0, len(header) - 1})
    return page.table(
        Table("Changes against [1]", tuple(header), tuple(rows), texts=texts), hides_title=True, marks=marks
    )


def _change(delta: Delta) -> str:
    """``+1.2 ± 3.4 %``"""
    number, unit = show_change(delta).split(" ")
    noise = show_noise(delta).removeprefix("+-").partition(" ")[0]
    return f"{number} ± {noise} {unit}" if noise else f"{number} {unit}"


def _standing(index: int, comparison: Comparison) -> str:
    if not index:
        return "base"
    if not comparison.is_comparable[index]:
        return "not comparable"
    found = {delta.standing for delta in comparison.deltas[index]}
    standing = next((word for word in ("worse", "better", "noise") if word in found), "same")
    return MARKS[standing] or "no change"


def _nights(nights: Nights, endings: Sequence[Unfinished | None]) -> Table:
    rows = []
    for index, (output, manifest) in enumerate(nights):
        commit, observed, span = manifest.commit, manifest.observed, facts.span(manifest)
        rows.append(
            (
                f"[{index + 1}] {facts.short_name(output)}",
                span[0] if span else "-",
                judge(manifest, (), endings[index]).headline,
                fmt.count(commit.counts.rows),
                fmt.count(commit.tokens.completion),
                fmt.duration(observed.throughput.total_seconds),
                facts.draft_name(manifest).rsplit("/", 1)[-1],
                facts.describe_speculation(manifest),
                "-" if observed.speedup.ratio is None else f"{observed.speedup.ratio:.2f}x",
            )
        )
    header = ("night", "started", "verdict", "rows", "output tokens", "took", "draft", "K", "speed-up")
    return Table("Nights", header, tuple(rows), texts=frozenset({0, 1, 2, 6, 7}))
