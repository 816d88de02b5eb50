"""Pieces of the HTML report: the page around it, and facts, tables and charts as elements.

One file, no script, nothing fetched: a Content-Security-Policy lets the browser load nothing but the style in the page.
Whatever comes from a manifest is escaped here; there are no style attributes, which that policy forbids.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib import resources

from specbatch._version import __version__
from specbatch.jobs.reports import svg
from specbatch.jobs.reports.model import Fact, Finding, Level, Table, Verdict

_SHORT, _LONG = 26, 60
"""Characters up to which a cell is not broken, and above which it is given room."""
FROM_MANIFESTS = "from manifests alone"
FROM_OUTPUTS = "from what lies in the outputs; not every job is complete"
_SYMBOLS: dict[Level, str] = {"good": "✓", "note": "i", "warning": "!", "problem": "✕"}


@cache
def _style() -> tuple[str, str]:
    """The style sheet and what the policy calls it."""
    text = resources.files("specbatch.jobs.reports").joinpath("report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return text, f"'sha256-{digest}'"


def page(title: str, body: Iterable[str], source: str = FROM_MANIFESTS) -> str:
    """The whole file; ``title`` and ``source`` (what it was made from) are text, ``body`` elements."""
    style, allowed = _style()
    policy = f"default-src 'none'; style-src {allowed}; img-src data:; base-uri 'none'; form-action 'none'"
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f'<meta name="generator" content="specbatch {__version__}">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
    )
    made = f"Made by specbatch {__version__} {source}. Times are UTC."
    foot = f"\n<footer>{made}</footer>\n</main>\n</body>\n</html>\n"
    return head + "\n".join(body) + foot


def verdict(found: Verdict, next_command: str = "") -> str:
    """What to read first, and what to type next."""
    items = "".join(
        f'<li><span class="tag {finding.level}"><span aria-hidden="true">{_SYMBOLS[finding.level]} </span>'
        f'{finding.level}</span><span class="what">{_title(finding)}'
        f"{_detail(finding.detail)}{_remedy(finding.remedy)}</span></li>"
        for finding in found.findings
    )
    symbol = f'<span class="tag {found.level}" aria-hidden="true">{_SYMBOLS[found.level]}</span>'
    listed = f'<ul class="findings">{items}</ul>' if items else ""
    listed = f'<p class="next">Next: <code>{escape(next_command)}</code></p>{listed}' if next_command else listed
    return f'<div class="verdict {found.level}"><p class="headline">{symbol} {escape(found.headline)}</p>{listed}</div>'


def _title(finding: Finding) -> str:
    """Set off where something follows it, or somebody should act."""
    title = escape(finding.title)
    return f"<strong>{title}</strong>" if finding.detail or finding.level == "problem" else title


def _detail(text: str) -> str:
    return f" – {escape(text)}" if text else ""


def _remedy(text: str) -> str:
    return f'<span class="remedy">→ {code_words(text)}</span>' if text else ""


def code_words(text: str) -> str:
    """Words of ours with code between backquotes."""
    return "".join(
        f"<code>{escape(piece)}</code>" if i % 2 else escape(piece) for i, piece in enumerate(text.split("`"))
    )


def section(key: str, title: str, body: Iterable[str]) -> str:
    """A part of the page with its heading."""
    return (
        f'<section id="{key}" aria-labelledby="h-{key}"><h2 id="h-{key}">{escape(title)}</h2>{"".join(body)}</section>'
    )


def navigation(entries: Iterable[tuple[str, str]]) -> str:
    """Links to sections: pairs of key and title."""
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title in entries)
    return f'<nav aria-label="Sections">{links}</nav>'


def facts(items: Sequence[Fact], css: str = "") -> str:
    """Lines ``label   value``; ``css`` is for the values."""
    if not items:
        return ""
    kind = f' class="{css}"' if css else ""
    rows = "".join(f"<dt>{escape(item.label)}</dt><dd{kind}>{escape(item.value)}</dd>" for item in items)
    return f'<dl class="facts">{rows}</dl>'


def table(found: Table, *, hides_title: bool = False, marks: Sequence[Sequence[str]] = ()) -> str:
    """A table that scrolls inside its own box. Shares are bars beside the number that they show.

    Args:
        marks: for each row and column a class, or nothing.
    """
    bars = dict(found.bars)
    head = "".join(
        f'<th scope="col"{_right(found, i)}{_two(i in bars)}>{escape(name)}</th>' for i, name in enumerate(found.header)
    )
    rows = []
    for y, row in enumerate(found.rows):
        cells = []
        for x, cell in enumerate(row):
            css = marks[y][x] if marks else ""
            text = code_words(cell) if x in found.codes else escape(cell)
            if x in bars:
                cells.append(f'<td class="bars">{svg.bar(bars[x][y])}</td>')
            cells.append(_cell(found, x, text, css, is_first=x == 0))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    caption = "" if hides_title else f"<caption>{escape(found.title)}</caption>"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(found.title)}"><table>{caption}'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(found: Table, column: int, text: str, css: str, *, is_first: bool) -> str:
    names = [css] if css else []
    if column not in found.texts:
        names.append("right")
    elif len(text) > _LONG:
        names.append("long")
    elif len(text) <= _SHORT:
        names.append("short")
    kind = f' class="{" ".join(names)}"' if names else ""
    return f'<th scope="row"{kind}>{text}</th>' if is_first else f"<td{kind}>{text}</td>"


def _right(found: Table, column: int) -> str:
    return "" if column in found.texts else ' class="right"'


def _two(has_bar: bool) -> str:
    return ' colspan="2"' if has_bar else ""


def chart(title: str, axis: svg.Axis, drawing: str, across: Sequence[str], *, keys: str = "", css: str = "") -> str:
    """A figure with labels at its left and below it; ``across`` stands at equal distances."""
    ticks = "".join(f"<span>{escape(tick)}</span>" for tick in axis.ticks)
    below = "".join(f"<span>{escape(label)}</span>" for label in across)
    return (
        f'<figure><div class="figure-title">{escape(title)}</div><div class="chart">'
        f'<div class="ticks" aria-hidden="true">{ticks}</div>{drawing}'
        f'<div class="across {css}" aria-hidden="true">{below}</div></div>{keys}</figure>'
    )


def level_chart(title: str, drawing: str, across: Sequence[str], keys: str = "") -> str:
    """A figure along one level axis, labels below it."""
    below = "".join(f"<span>{escape(label)}</span>" for label in across)
    return (
        f'<figure><div class="figure-title">{escape(title)}</div>{drawing}<div class="chart">'
        f'<div class="across" aria-hidden="true">{below}</div></div>{keys}</figure>'
    )


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Pairs of a class and its meaning: an area for ``k0`` to ``k8``, a line for any other."""
    items = "".join(f"<li>{_key(css)}{escape(text)}</li>" for css, text in entries)
    return f'<ul class="keys">{items}</ul>' if items else ""


def _key(css: str) -> str:
    is_area = css.startswith("k") and css[1:].isdigit()
    line = "M6 6h0.01" if css == "bad" else "M6 -1V13"
    shape = f'<rect class="{css}" width="12" height="12"/>' if is_area else f'<path class="{css}" d="{line}"/>'
    return f'<svg class="key" viewBox="0 0 12 12" aria-hidden="true">{shape}</svg>'


def folded(summary: str, body: str) -> str:
    """Something to unfold: the numbers behind a figure."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"
