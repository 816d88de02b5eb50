"""What a report says of one job, before it has a form: every form (terminal, HTML, Markdown) is made from this.

Text here is printable and on one line, whatever a file brought into it; escaping is the business of each form.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["good", "note", "warning", "problem"]
"""How bad something is: ``problem``, somebody should act; ``warning``, worth a look; ``note``, good to know."""

LEVELS: tuple[Level, ...] = ("good", "note", "warning", "problem")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the night that is not as it should be.

    ``remedy`` says what to do, with code between backquotes; empty where there is nothing to do.
    """

    level: Level
    title: str
    detail: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The first thing to read. ``level`` is that of the worst finding; findings stand worst first."""

    level: Level
    headline: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A key figure: what it is, its value, and a note on how to take it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Fact:
    """A line ``label   value``."""

    label: str
    value: str


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text. ``bars`` holds pairs (column, shares): one of 0 to 1 for each row, drawn where there is room.

    ``texts`` names columns that hold words and not numbers; ``codes`` those that hold code between backquotes.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bars: tuple[tuple[int, tuple[float, ...]], ...] = ()
    texts: frozenset[int] = frozenset({0})
    codes: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report. ``key`` names it in links and for the figures that stand in it."""

    key: str
    title: str
    facts: tuple[Fact, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All that is said of one job.

    Attributes:
        output: as the user named it. name: its last part.
        span: when the job began and ended, in words; empty where that is not known.
        is_complete: there is a manifest; else all figures are of what is there so far.
        next_command: what to type next; empty where there is nothing to do.
        pace: throughput in few steps, for forms that draw no charts; None where too little is known.
    """

    output: str
    name: str
    span: str
    verdict: Verdict
    figures: tuple[Figure, ...]
    sections: tuple[Section, ...] = field(default=())
    is_complete: bool = True
    next_command: str = ""
    pace: Table | None = None

    def section(self, key: str) -> Section | None:
        """The section of this key, if the job has anything to say there."""
        return next((section for section in self.sections if section.key == key), None)

    def texts(self) -> Iterator[str]:
        """Every statement, for those who check that a form says all of them."""
        yield from (self.output, self.verdict.headline, self.next_command)
        for finding in self.verdict.findings:
            yield from (finding.title, finding.detail, finding.remedy)
        for figure in self.figures:
            yield from (figure.label, figure.value, figure.note)
        for section in self.sections:
            yield section.title
            yield from (text for fact in section.facts for text in (fact.label, fact.value))
            yield from (cell for table in section.tables for row in table.rows for cell in row)
