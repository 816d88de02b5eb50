"""The report for people: plain text that fits 80 columns, without colour and without terminal escapes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.reports.comparison import METRICS, Comparison
from specbatch.jobs.reports.facts import describe_speculation, describe_speedup, draft_name, short_name
from specbatch.jobs.reports.model import Report, Section, Table, Verdict
from specbatch.jobs.reports.nights import NAME_WIDTH, Nights, conclusions, show_change, thresholds
from specbatch.jobs.reports.unfinished import Unfinished
from specbatch.schemas.manifest import Manifest

WIDTH = 80
_SUMMARY = ("result", "speculation")
_LABEL_WIDTH = 20
_BAR_WIDTH = 24
_DRAFT_WIDTH = 14
_LEVEL_WIDTH = 11


def render_report(report: Report) -> str:
    """One output in full. Of a job that is not complete the first line says so, and why."""
    verdict = _verdict(report.verdict)
    title = [f"specbatch report  {report.output}", *([report.span] if report.span else [])]
    lines = [*title, "", *verdict]
    if not report.is_complete:
        head = [*_wrap(report.verdict.headline), f"Next: {report.next_command}"]  # in one piece, to be copied
        lines = [*head, "", *title, "", *_findings(report.verdict)]
    for index, section in enumerate(report.sections):
        lines += ["", *_section(section)]
        if index == 0 and report.pace is not None:
            lines += ["", report.pace.title, *_table(report.pace)]
    return "\n".join(lines) + "\n"


def render_summary(report: Report) -> str:
    """What the end of a run says of it: the verdict, the result, how speculation did. The report has the rest."""
    shown = [replace(section, tables=()) for section in report.sections if section.key in _SUMMARY]
    return render_report(replace(report, sections=tuple(shown), pace=None))


def render_nights(nights: Nights, comparison: Comparison, endings: Sequence[Unfinished | None]) -> str:
    """Several outputs as a table with what follows from it; what is not complete is said before it."""
    sentences = conclusions(nights, comparison, endings)
    num_unfinished = sum(ending is not None for ending in endings)
    first = [line for text in sentences[:num_unfinished] for line in _wrap(text)]
    lines = [*first, *([""] if first else []), *_side_by_side(nights, comparison, sentences[num_unfinished:], endings)]
    return "\n".join(lines) + "\n"


def _verdict(verdict: Verdict) -> list[str]:
    return [*_wrap(verdict.headline), *_findings(verdict)]


def _findings(verdict: Verdict) -> list[str]:
    lines: list[str] = []
    for finding in verdict.findings:
        indent = " " * _LEVEL_WIDTH
        lines += _wrap(finding.title, f"  {finding.level}".ljust(_LEVEL_WIDTH), indent)
        if finding.detail:
            lines += _wrap(finding.detail, indent, indent)
        if finding.remedy:
            lines += _wrap(_plain(finding.remedy), f"{indent}> ", f"{indent}  ")
    return lines


def _section(section: Section) -> list[str]:
    lines = [section.title]
    for fact in section.facts:
        lines += _item(fact.label, fact.value)
    for table in section.tables:
        if table.title != section.title:
            lines.append(f"  {table.title}")
        lines += _table(table)
    return lines


def _table(table: Table) -> list[str]:
    """Columns where they fit; else an item for each row."""
    rows = [tuple(_plain(cell) if i in table.codes else cell for i, cell in enumerate(row)) for row in table.rows]
    if len(table.bars) == 1:
        bars = [fmt.bar(share, _BAR_WIDTH) for share in table.bars[0][1]]
        rows = [(row[0], bar, *row[1:]) for row, bar in zip(rows, bars, strict=True)]
        header, texts = (table.header[0], "", *table.header[1:]), {0, 1, *(i + 1 for i in table.texts if i)}
    else:
        header, texts = table.header, set(table.texts)
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    if 4 + sum(widths) + 2 * (len(widths) - 1) > WIDTH:
        return _list(table, rows)
    lines = []
    for row in (header, *rows):
        cells = (
            cell.ljust(width) if i in texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(f"    {'  '.join(cells)}".rstrip())
    return lines


def _list(table: Table, rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = []
    for row in rows:
        numbers = [
            f"> {cell}" if i in table.codes and i + 1 == len(row) else cell if i in table.texts else f"{name} {cell}"
            for i, (name, cell) in enumerate(zip(table.header, row, strict=True))
            if i and cell
        ]
        lines += _wrap("; ".join(numbers), f"    {row[0]}".ljust(8) + "  ", " " * 10)
    return lines


def _plain(text: str) -> str:
    """Words with code between backquotes, without them."""
    return text.replace("`", "")


def _side_by_side(
    nights: Nights, comparison: Comparison, sentences: Sequence[str], endings: Sequence[Unfinished | None]
) -> list[str]:
    names = [short_name(output, NAME_WIDTH) for output, _ in nights]
    header = (
        f"     {'output':<{NAME_WIDTH}} {'draft':<{_DRAFT_WIDTH}} {'K':>4} {'tokens/s':>9} {'vs [1]':>7} {'accept':>7}"
    )
    lines = ["specbatch report  side by side", "", header]
    for index, (_, manifest) in enumerate(nights):
        ratio = comparison.ratios[index]
        draft = draft_name(manifest).rsplit("/", 1)[-1]
        is_slower = index in comparison.regressions and comparison.deltas[index][0].standing == "worse"
        lines.append(
            f"{f'[{index + 1}]':>4} {names[index]:<{NAME_WIDTH}} {fmt.clean(draft, _DRAFT_WIDTH):<{_DRAFT_WIDTH}} "
            f"{describe_speculation(manifest)[:4]:>4} "
            f"{fmt.rate(manifest.observed.throughput.output_tokens_per_second):>9} "
            f"{'-' if ratio is None else f'{ratio:.2f}x':>7} {fmt.percent(manifest.commit.acceptance.rate):>7}"
            f"{'  cut' if endings[index] is not None else '  slower' if is_slower else ''}"
        )
    lines += ["", *_changes(nights, comparison), ""]
    for index, (output, manifest) in enumerate(nights):
        lines += _item(f"[{index + 1}]", fmt.clean(output), width=6)
        lines += _item("", _short_facts(manifest), width=6)
        measured = "" if manifest.observed.speedup.ratio is None else "measured in the job: "
        lines += _item("", f"{measured}{describe_speedup(manifest.observed.speedup)}", width=6)
    lines.append("")
    lines += [line for text in sentences for line in _wrap(text)]
    lines += ["", "Flagged as worse:"]
    return lines + [line for text in thresholds() for line in _wrap(text, "  - ", "    ")]


def _changes(nights: Nights, comparison: Comparison) -> list[str]:
    """The figures of each job against the first; ``!`` marks a regression, ``~`` what is lost in noise."""
    titles = ("tokens/s", "acceptance", "error rate", "cost/M tokens")
    assert len(titles) == len(METRICS)
    lines = [f"     {'against [1]':<11}" + "".join(f"{title:>16}" for title in titles)]
    for index in range(1, len(nights)):
        cells = []
        for delta in comparison.deltas[index]:
            mark = {"worse": "!", "noise": "~"}.get(delta.standing, "") if comparison.is_comparable[index] else ""
            cells.append(f"{show_change(delta)}{mark or ' '}")
        lines.append((f"{f'[{index + 1}]':>4} {'':<11}" + "".join(f"{cell:>16}" for cell in cells)).rstrip())
    return lines


def _short_facts(manifest: Manifest) -> str:
    counts, throughput, acceptance = manifest.commit.counts, manifest.observed.throughput, manifest.commit.acceptance
    emitted = "" if acceptance.mean_emitted is None else f", {acceptance.mean_emitted:.2f} tokens per row and round"
    errors = f", {fmt.plural(counts.errors, 'error')}" if counts.errors else ""
    return (
        f"{fmt.plural(counts.rows, 'row')}{errors}, {fmt.plural(manifest.commit.tokens.completion, 'token')} "
        f"in {fmt.duration(throughput.wall_seconds)}{emitted}"
    )


def _item(label: str, value: str, *, width: int = _LABEL_WIDTH) -> list[str]:
    """``  label   value``, the value wrapped under itself; a long word stays whole, so that paths can be copied."""
    lead = f"  {label}".ljust(width)
    longest = max((len(word) for word in value.split(" ")), default=0)
    if len(label) + 3 > width or longest > WIDTH - width:
        return [lead.rstrip(), *_wrap(value, " " * 4, " " * 4)]
    return _wrap(value, lead, " " * width) or [lead.rstrip()]


def _wrap(text: str, lead: str = "", indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=lead, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
