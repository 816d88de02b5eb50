"""The report of one job as a page: verdict, key figures, time lines, then the sections that every form has. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.reports import page, svg
from specbatch.jobs.reports.model import Figure, Report, Section, Table
from specbatch.jobs.reports.verdict import forecast_seconds
from specbatch.schemas.manifest import Manifest, Observed

MAX_DATA_ROWS = 40
_MAX_MARKS = 60
_SHORT = {"result": "Result", "time": "Time", "lengths": "Lengths", "machine": "Machine", "identity": "Identity"}


def render_page(report: Report, manifest: Manifest) -> str:
    """The whole HTML file of one job."""
    if report.is_complete:
        return page.page(f"{report.name}: specbatch report", _body(report, manifest))
    source = "from what lies in the output; the job is not complete"
    return page.page(f"{report.name}, not complete: specbatch report", _body(report, manifest), source)


def _body(report: Report, manifest: Manifest) -> Iterator[str]:
    timeline = manifest.observed.timeline
    entries = [("timeline", "Over time")] if timeline else []
    entries += [(section.key, _SHORT.get(section.key, section.title)) for section in report.sections]
    kicker = "specbatch report" if report.is_complete else "specbatch report of a job that is not complete"
    span = f'<p class="span">{escape(report.span)}</p>' if report.span else ""
    yield (
        f'<header><p class="kicker">{kicker}</p><h1>{escape(report.name)}</h1>'
        f'<p class="path">{escape(report.output)}</p>{span}{page.verdict(report.verdict, report.next_command)}'
        f"{_figures(report.figures)}{page.navigation(entries)}</header>"
    )
    if timeline:
        yield page.section("timeline", "Over time", _over_time(manifest.observed))
    for section in report.sections:
        yield page.section(section.key, section.title, _section(section, manifest))


def _figures(figures: Sequence[Figure]) -> str:
    items = "".join(
        f'<div><dt>{escape(figure.label)}</dt><dd class="value">{escape(figure.value)}</dd>'
        f'<dd class="note">{escape(figure.note)}</dd></div>'
        for figure in figures
    )
    return f'<dl class="figures">{items}</dl>'


def _section(section: Section, manifest: Manifest) -> Iterator[str]:
    if section.key == "speculation":
        yield _speedup(manifest)
    if section.key == "forecast":
        yield _forecast(manifest)
    if section.key == "reproduce":
        command = [fact for fact in section.facts if fact.label == "command"]
        yield page.facts(command, "command digest")
        yield page.facts([fact for fact in section.facts if fact.label != "command"])
        return
    yield page.facts(section.facts, "digest" if section.key == "identity" else "")
    drawn = [page.table(table, hides_title=table.title == section.title) for table in section.tables if table.bars]
    if drawn:
        yield f'<div class="grid">{"".join(drawn)}</div>'
    yield from (
        page.table(table, hides_title=table.title == section.title) for table in section.tables if not table.bars
    )


def _over_time(observed: Observed) -> Iterator[str]:
    timeline = observed.timeline
    end = float(timeline[-1]["seconds"])
    unit, few = "h:mm" if end >= 3600 else "m:ss", [_since(end * share, end) for share in (0, 0.5, 1)]
    across = [_since(end * share, end) for share in (0, 0.25, 0.5, 0.75, 1)]
    hints = svg.hints([_hint(bucket) for bucket in timeline])
    speeds = [float(bucket["tokens_per_second"]) for bucket in timeline]
    axis = svg.axis_to(max(speeds), fmt.rate)
    lost, restarts = _places(observed, end)
    keys = []
    if lost:
        keys.append(("lost", "a worker died or a device was taken out of service"))
    if restarts:
        keys.append(("restart", "a new run"))
    shapes = (
        svg.grid(axis),
        svg.steps(speeds, axis, filled=True),
        svg.marks(restarts, "restart"),
        svg.marks(lost, "lost"),
        hints,
    )
    told = f"{fmt.rate(max(speeds))} tokens per second at most, over {fmt.clock(end)}; losses of workers: {len(lost)}."
    drawing = svg.figure("Output tokens per second over time", told, shapes, "plot tall")
    title = f"Output tokens per second; time since the start in {unit}"
    yield page.chart(title, axis, drawing, across, keys=page.legend(keys))
    charts = [*_acceptance(timeline, few, hints), *_draft_lengths(timeline, few, hints)]
    charts += _workers(timeline, few, hints)
    if charts:
        yield f'<div class="grid">{"".join(charts)}</div>'
    yield page.folded("The numbers behind these figures", page.table(_data(timeline), hides_title=True))


def _since(seconds: float, end: float) -> str:
    """A time below a figure: hours and minutes where the whole takes hours."""
    text = fmt.clock(seconds)
    return (
        text.rpartition(":")[0]
        if end >= 3600 and text.count(":") == 2
        else text
        if end < 3600
        else f"0:{text[:-3]:0>2}"
    )


def _hint(bucket: Mapping[str, Any]) -> str:
    parts = [f"{fmt.clock(bucket['seconds'])}: {fmt.rate(bucket['tokens_per_second'])} tokens/s"]
    if bucket.get("acceptance") is not None:
        parts.append(f"acceptance {fmt.percent(bucket['acceptance'])}")
    if bucket.get("k_share"):
        parts.append(f"mean K {_mean_k(bucket['k_share']):.1f}")
    if bucket.get("workers") is not None:
        parts.append(fmt.plural(int(bucket["workers"]), "worker"))
    return ", ".join(parts)


def _mean_k(shares: Sequence[float]) -> float:
    return sum(k * share for k, share in enumerate(shares))


def _places(observed: Observed, end: float) -> tuple[list[float], list[float]]:
    """Shares of the width at which workers were lost, and at which runs began."""
    offsets, offset = {}, 0.0
    for run in observed.history:
        offsets[run.epoch] = offset
        offset += run.total_seconds
    lost = [
        (offsets[event.epoch] + event.at_seconds) / end
        for event in observed.events
        if event.epoch in offsets and (" died: " in event.text or "no worker there gets work" in event.text)
    ]
    starts = [start / end for start in offsets.values() if start > 0]
    return [share for share in lost[:_MAX_MARKS] if share <= 1], [share for share in starts if share < 1]


def _acceptance(timeline: Sequence[Mapping[str, Any]], across: Sequence[str], hints: str) -> Iterator[str]:
    values = [bucket.get("acceptance") for bucket in timeline]
    known = [value for value in values if value is not None]
    if not known:
        return
    axis = svg.Axis(0, 1, ("100 %", "50 %", "0 %"))
    told = f"Between {fmt.percent(min(known))} and {fmt.percent(max(known))} of the draft tokens were accepted."
    drawing = svg.figure("Acceptance over time", told, (svg.grid(axis), svg.steps(values, axis), hints))
    yield page.chart("Acceptance: accepted of the draft tokens", axis, drawing, across)


def _draft_lengths(timeline: Sequence[Mapping[str, Any]], across: Sequence[str], hints: str) -> Iterator[str]:
    longest = max((len(bucket.get("k_share") or ()) for bucket in timeline), default=0)
    shares = [_merged(bucket.get("k_share")) for bucket in timeline]
    size = max((len(bucket) for bucket in shares if bucket), default=0)
    if size < 2:
        return
    used = [k for k in range(size) if any(bucket and len(bucket) > k and bucket[k] > 0 for bucket in shares)]
    axis = svg.Axis(0, 1, ("100 %", "50 %", "0 %"))
    told = "Share of the rows' turns by the number of drafts that they proposed, from 0 at the bottom upwards."
    drawing = svg.figure("Drafts proposed in a round over time", told, (svg.layers(shares), svg.grid(axis), hints))
    last = svg.MAX_LAYERS - 1
    keys = [
        (f"k{k}", f"K = {k}{' or more' if k == last and longest > svg.MAX_LAYERS else ''}{' (plain)' if not k else ''}")
        for k in used
    ]
    yield page.chart("K: drafts that a row proposed in a round", axis, drawing, across, keys=page.legend(keys))


def _merged(shares: Sequence[float] | None) -> list[float] | None:
    if not shares:
        return None
    last = svg.MAX_LAYERS - 1
    return [*shares[:last], sum(shares[last:])] if len(shares) > last else list(shares)


def _workers(timeline: Sequence[Mapping[str, Any]], across: Sequence[str], hints: str) -> Iterator[str]:
    values = [bucket.get("workers") for bucket in timeline]
    known = [float(value) for value in values if value is not None]
    if not known or max(known) <= 1:
        return
    axis = svg.axis_to(max(known), lambda value: f"{value:g}")
    told = f"Between {min(known):.0f} and {max(known):.0f} workers decoded."
    shapes = (svg.grid(axis), svg.steps(values, axis, filled=True), hints)
    yield page.chart("Workers that decoded", axis, svg.figure("Workers over time", told, shapes), across)


def _data(timeline: Sequence[Mapping[str, Any]]) -> Table:
    """Every bucket, or every n-th of many."""
    every = -(-len(timeline) // MAX_DATA_ROWS)
    rows = tuple(
        (
            fmt.clock(bucket["seconds"]),
            fmt.rate(bucket["tokens_per_second"]),
            fmt.percent(bucket.get("acceptance")),
            f"{_mean_k(bucket['k_share']):.2f}" if bucket.get("k_share") else "-",
            "-" if bucket.get("workers") is None else str(bucket["workers"]),
        )
        for bucket in timeline[every - 1 :: every]
    )
    return Table("The numbers behind these figures", ("until", "tokens/s", "acceptance", "mean K", "workers"), rows)


def _speedup(manifest: Manifest) -> str:
    speedup = manifest.observed.speedup
    if speedup.ratio is None:
        return ""
    values = [value for value in (speedup.ratio, speedup.low, speedup.high, 1.0) if value is not None]
    axis = svg.axis_around(values, lambda value: f"{value:.2f}x")
    told = f"{speedup.ratio:.2f} times the speed of {fmt.clean(speedup.baseline)}"
    if speedup.low is not None and speedup.high is not None:
        told += f", 95 % interval {speedup.low:.2f} to {speedup.high:.2f}"
    shapes = svg.interval(axis, speedup.low, speedup.high, speedup.ratio, [(1.0, "one")])
    drawing = svg.figure("Measured speed-up", f"{told}.", [shapes], "plot flat")
    keys = page.legend([("one", f"1x: {fmt.clean(speedup.baseline)}"), ("range", "measured, with its 95 % interval")])
    return page.level_chart("Measured speed-up", drawing, axis.ticks[::-1], keys)


def _forecast(manifest: Manifest) -> str:
    forecast, actual = manifest.observed.forecast, manifest.observed.throughput.total_seconds
    expected = forecast_seconds(forecast, "wall_seconds")
    if expected is None:
        return ""
    low, high = forecast_seconds(forecast, "low"), forecast_seconds(forecast, "high")
    values = [value for value in (expected, low, high, actual) if value is not None]
    axis = svg.axis_around([0.0, *values], lambda value: fmt.duration(value) if value else "0", svg.round_up_seconds)
    told = f"Forecast {fmt.duration(expected)}, actual {fmt.duration(actual)}."
    shapes = svg.interval(axis, low, high, expected, [(actual, "actual")])
    drawing = svg.figure("Wall time: forecast and actual", told, [shapes], "plot flat")
    keys = page.legend([("range", "forecast with its interval"), ("actual", "actual")])
    return page.level_chart("Wall time: forecast and actual", drawing, axis.ticks[::-1], keys)
