"""The report as CSV (for spreadsheets and history files) and as Markdown (for pull requests and tickets)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.reports import facts
from specbatch.jobs.reports.comparison import Comparison
from specbatch.jobs.reports.model import Report, Section, Table
from specbatch.jobs.reports.nights import MARKS, Nights, conclusions, show_change, show_noise, show_value, thresholds
from specbatch.jobs.reports.unfinished import Unfinished
from specbatch.jobs.reports.verdict import forecast_seconds, judge
from specbatch.schemas.manifest import Manifest

CSV_COLUMNS: tuple[str, ...] = (
    "output",
    "job_id",
    "identity_S",
    "plan_P",
    "target",
    "draft",
    "speculation",
    "batch_size",
    "workers",
    "device",
    "rows",
    "results",
    "ok",
    "errors",
    "prompt_tokens",
    "completion_tokens",
    "draft_tokens",
    "accepted_tokens",
    "acceptance_rate",
    "mean_accepted",
    "mean_emitted",
    "near_ties",
    "wall_seconds",
    "total_seconds",
    "output_tokens_per_second",
    "rows_per_second",
    "idle_share",
    "tokens_per_second_vs_first",
    "speedup_baseline",
    "speedup_ratio",
    "speedup_low",
    "speedup_high",
    "num_plain_rounds",
    "num_spec_rounds",
    "propose_seconds",
    "score_seconds",
    "accept_seconds",
    "host_seconds",
    "prefill_seconds",
    "load_seconds",
    "write_seconds",
    "runs",
    "attempts",
    "restarts",
    "started_at",
    "ended_at",
    "verdict",
    "problems",
    "warnings",
    "error_rate",
    "deaths",
    "preemptions",
    "quarantined",
    "skipped_files",
    "draft_given_up",
    "cut_completions",
    "device_hours",
    "price_per_device_hour",
    "cost",
    "cost_per_million_tokens",
    "forecast_wall_seconds",
    "regressions",
    "standing",
    "exit_codes",
    "cause",
    "planned_rows",
    "rows_left",
    "remaining_seconds",
)
"""Header of the CSV form. Columns are only ever added at the end."""


def render_csv(nights: Nights, comparison: Comparison | None, endings: Sequence[Unfinished | None]) -> str:
    """One line per output below a fixed header; an empty field is a value that does not exist."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for index, (output, manifest) in enumerate(nights):
        values = _csv_values(output, manifest, endings[index])
        values["tokens_per_second_vs_first"] = comparison.ratios[index] if comparison else None
        values["regressions"] = _flagged(comparison, index) if comparison else None
        writer.writerow([_csv_field(values[column]) for column in CSV_COLUMNS])
    return text.getvalue()


def _flagged(comparison: Comparison, index: int) -> str:
    """The figures that are worse than those of the first output, apart by spaces."""
    deltas = comparison.deltas[index] if comparison.is_comparable[index] else ()
    return " ".join(delta.metric.key for delta in deltas if delta.standing == "worse")


def render_markdown(report: Report) -> str:
    """One output in full: verdict, then a heading for each section."""
    title = "# specbatch report" if report.is_complete else "# specbatch report: not complete"
    lines = [title, "", f"**{_escape(report.output)}**"]
    if report.span:
        lines += ["", _escape(report.span)]
    lines += ["", f"**{_escape(report.verdict.headline)}**", ""]
    if report.next_command:
        lines += [f"Next: {_code(f'`{report.next_command}`')}", ""]
    for finding in report.verdict.findings:
        detail = f": {_escape(finding.detail)}" if finding.detail else ""
        remedy = f" → {_code(finding.remedy)}" if finding.remedy else ""
        lines.append(f"- {finding.level}: **{_escape(finding.title)}**{detail}.{remedy}")
    for index, section in enumerate(report.sections):
        lines += ["", f"## {_escape(section.title)}", "", *_section(section)]
        if index == 0 and report.pace is not None:
            lines += ["", f"## {_escape(report.pace.title)}", "", *_table(report.pace)]
    return "\n".join(lines) + "\n"


def _section(section: Section) -> list[str]:
    lines = [f"- {_escape(fact.label)}: {_escape(fact.value)}" for fact in section.facts]
    for table in section.tables:
        if lines:
            lines.append("")
        if table.title != section.title:
            lines += [f"### {_escape(table.title)}", ""]
        lines += _table(table)
    return lines


def _table(table: Table) -> list[str]:
    rules = ["---" if i in table.texts else "---:" for i in range(len(table.header))]
    rows = [
        "| " + " | ".join(_code(cell) if i in table.codes else _escape(cell) for i, cell in enumerate(row)) + " |"
        for row in table.rows
    ]
    return [_markdown_row(table.header), f"| {' | '.join(rules)} |", *rows]


def render_markdown_nights(nights: Nights, comparison: Comparison, endings: Sequence[Unfinished | None]) -> str:
    """A table with one column per output, the first one the base, changes with their noise, and the conclusions."""
    columns = [_markdown_column(*pair, ratio) for pair, ratio in zip(nights, comparison.ratios, strict=True)]
    header = [f"[{index + 1}]" for index in range(len(columns))]
    lines = ["# specbatch report", "", _markdown_row(["", *header]), _markdown_row(["---"] * (len(columns) + 1))]
    lines += [_markdown_row([label, *(column[label] for column in columns)]) for label in columns[0]]
    lines += ["", *(f"- {_escape(sentence)}" for sentence in conclusions(nights, comparison, endings))]
    lines += ["", "## Changes against \\[1\\]", ""]
    titles = ("output", "figure", "[1]", "here", "change", "noise", "")
    lines += [_markdown_row(titles), _markdown_row(["---"] * len(titles))]
    for index in range(1, len(nights)):
        for delta in comparison.deltas[index]:
            mark = MARKS[delta.standing] if comparison.is_comparable[index] else "not comparable"
            values = (show_value(delta.metric, delta.base), show_value(delta.metric, delta.value))
            cells = (f"[{index + 1}]", delta.metric.label, *values, show_change(delta), show_noise(delta), mark)
            lines.append(_markdown_row(cells))
    lines += ["", "Flagged as worse:", "", *(f"- {_escape(line)}" for line in thresholds())]
    return "\n".join(lines) + "\n"


def _csv_ending(manifest: Manifest, unfinished: Unfinished | None) -> dict[str, Any]:
    if unfinished is None:
        rows = manifest.commit.counts.rows
        return dict(zip(CSV_COLUMNS[-6:], ("complete", None, None, rows, 0, None), strict=True))
    codes = " ".join(str(code) for code in unfinished.exit_codes)
    rows, left = unfinished.num_rows, unfinished.num_rows_left
    values = (unfinished.standing, codes, unfinished.cause, rows, left, unfinished.remaining_seconds)
    return dict(zip(CSV_COLUMNS[-6:], values, strict=True))


def _csv_values(output: str, manifest: Manifest, unfinished: Unfinished | None) -> dict[str, Any]:
    commit, observed = manifest.commit, manifest.observed
    verdict, span, cost = judge(manifest, (), unfinished), facts.span(manifest), observed.cost
    levels = [finding.level for finding in verdict.findings]
    return {
        "output": output,
        "job_id": manifest.job_id,
        "identity_S": manifest.identity.S,
        "plan_P": manifest.identity.P,
        "target": manifest.models.target.name,
        "draft": manifest.models.draft.name if manifest.models.draft else "none",
        "speculation": facts.describe_speculation(manifest),
        "batch_size": observed.execution.get("batch_size"),
        "workers": facts.num_workers(manifest),
        "device": ",".join(sorted({str(item.get("device")) for item in observed.throughput.per_worker})),
        "rows": commit.counts.rows,
        "results": commit.counts.results,
        "ok": commit.counts.ok,
        "errors": commit.counts.errors,
        "prompt_tokens": commit.tokens.prompt,
        "completion_tokens": commit.tokens.completion,
        "draft_tokens": commit.tokens.draft,
        "accepted_tokens": commit.tokens.accepted,
        "acceptance_rate": commit.acceptance.rate,
        "mean_accepted": commit.acceptance.mean_accepted,
        "mean_emitted": commit.acceptance.mean_emitted,
        "near_ties": commit.near_ties,
        "wall_seconds": observed.throughput.wall_seconds,
        "total_seconds": observed.throughput.total_seconds,
        "output_tokens_per_second": observed.throughput.output_tokens_per_second,
        "rows_per_second": observed.throughput.rows_per_second,
        "idle_share": observed.throughput.idle_share,
        "speedup_baseline": observed.speedup.baseline,
        "speedup_ratio": observed.speedup.ratio,
        "speedup_low": observed.speedup.low,
        "speedup_high": observed.speedup.high,
        "num_plain_rounds": observed.speedup.num_plain_rounds,
        "num_spec_rounds": observed.speedup.num_spec_rounds,
        **{f"{phase}_seconds": value for phase, value in commit.seconds.model_dump().items()},
        "runs": observed.runs,
        "attempts": observed.attempts,
        "restarts": observed.restarts,
        "started_at": span[0] if span else None,
        "ended_at": span[1] if span else None,
        "verdict": verdict.level,
        "problems": levels.count("problem"),
        "warnings": levels.count("warning"),
        "error_rate": facts.error_rate(manifest),
        "deaths": observed.deaths,
        "preemptions": observed.preemptions,
        "quarantined": len(observed.quarantined),
        "skipped_files": len(facts.skipped_files(manifest)),
        "draft_given_up": observed.draft_given_up.workers if observed.draft_given_up else 0,
        "cut_completions": commit.lengths.num_cut if commit.lengths else None,
        **_csv_ending(manifest, unfinished),
        "device_hours": cost.device_hours if cost else None,
        "price_per_device_hour": cost.price_per_device_hour if cost else None,
        "cost": cost.total if cost else None,
        "cost_per_million_tokens": facts.cost_per_million(manifest),
        "forecast_wall_seconds": forecast_seconds(observed.forecast, "wall_seconds"),
    }


def _csv_field(value: Any) -> str:
    """Six significant digits; text that a spreadsheet would run as a formula gets an apostrophe in front."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = fmt.clean(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _markdown_column(output: str, manifest: Manifest, ratio: float | None) -> dict[str, str]:
    commit, throughput = manifest.commit, manifest.observed.throughput
    acceptance = commit.acceptance
    by_code = ", ".join(f"{code} {count:,}" for code, count in sorted(commit.counts.errors_by_code.items()))
    phases: dict[str, float] = commit.seconds.model_dump()
    return {
        "output": output,
        "target": manifest.models.target.name,
        "draft": facts.draft_name(manifest),
        "K": facts.describe_speculation(manifest),
        "rows": f"{commit.counts.rows:,}",
        "errors": f"{commit.counts.errors:,}" + (f" ({by_code})" if by_code else ""),
        "output tokens": f"{commit.tokens.completion:,}",
        "tokens/s": fmt.rate(throughput.output_tokens_per_second) + (f" ({ratio:.2f}x)" if ratio else ""),
        "wall time": fmt.duration(throughput.wall_seconds),
        "acceptance": fmt.percent(acceptance.rate),
        "verdict": judge(manifest).headline,
        "cost": facts.describe_cost(manifest.observed.cost),
        "tokens per row and round": "-" if acceptance.mean_emitted is None else f"{acceptance.mean_emitted:.2f}",
        "measured speed-up": facts.describe_speedup(manifest.observed.speedup),
        "seconds by phase": ", ".join(f"{name} {fmt.rate(value)}" for name, value in phases.items()),
    }


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_escape(cell) for cell in cells)} |"


def _escape(text: str) -> str:
    cleaned = fmt.clean(text).replace("\\", "\\\\")
    for char in "|<>`*_[]":
        cleaned = cleaned.replace(char, f"\\{char}")
    return cleaned


def _code(text: str) -> str:
    """Words of ours with code between backquotes, which stays as it is."""
    return "".join(
        f"`{piece.replace('|', '')}`" if i % 2 else _escape(piece) for i, piece in enumerate(text.split("`"))
    )
