"""The workers in the live view: a table that folds to the room that there is. Pure.

Those that are not well stand before those that are, and those for which there is no room are counted by state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.display.cells import ELLIPSIS, head, left, right, tail, text_width

GAP = "  "
SLOW_WRITE_SECONDS = 60.0
_MAX_PLACE = 30
_STATES = ("suspect", "writing", "quarantined", "ending", "draining", "starting", "ready")
"""By how much they need to be seen."""


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """A worker as it is shown. None where it is not known, as before it is ready."""

    number: int
    state: str
    place: str = ""
    rows_active: int | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None


def worker_line(line: Mapping[str, Any]) -> WorkerLine:
    """A worker of a document, which may be of another version, or damaged."""
    state = fmt.clean(line.get("state", "ready"), 24)
    writing_seconds = _number(line.get("writing_seconds")) or 0.0
    if state in ("ready", "draining", "suspect") and writing_seconds >= SLOW_WRITE_SECONDS:
        state = f"writing part {fmt.clean(line.get('writing_shard'), 12)} for {fmt.clock(writing_seconds)}"
    number, rows = _number(line.get("worker")), _number(line.get("rows_active"))
    memory = _number(line.get("memory_bytes"))
    return WorkerLine(
        number=0 if number is None else int(number),
        state=state,
        place=fmt.clean(line.get("place", ""), 200),
        rows_active=None if rows is None else int(rows),
        tokens_per_second=_number(line.get("tokens_per_second")),
        memory_bytes=None if not memory else int(memory),
    )


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < 1e18 else None


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    cell: Callable[[WorkerLine], str]
    fill: Callable[[str, int], str]
    rank: int


_COLUMNS = (
    _Column("worker", lambda worker: str(worker.number), right, 0),
    _Column("state", lambda worker: worker.state, left, 1),
    _Column("rows", lambda worker: _or_dash(worker.rows_active, str), right, 3),
    _Column("tok/s", lambda worker: _or_dash(worker.tokens_per_second, fmt.rate), right, 2),
    _Column("memory", lambda worker: _or_dash(worker.memory_bytes, fmt.size), right, 4),
    _Column("place", lambda worker: tail(worker.place, _MAX_PLACE), left, 5),
)


def workers_table(workers: Sequence[WorkerLine], width: int, height: int) -> list[str]:
    """The table of workers in so many lines, or in one line only how many there are of each state."""
    if not workers or height < 1:
        return []
    ordered = sorted(workers, key=lambda worker: (_urgency(worker), worker.number))
    if len(workers) + 1 <= height:
        shown, rest = sorted(ordered, key=lambda worker: worker.number), []
    else:
        shown, rest = ordered[: max(height - 2, 0)], ordered[max(height - 2, 0) :]
    if not shown:
        return [head(f"{fmt.plural(len(workers), 'worker')}: {_by_state(workers)}", width)]
    lines = _table(shown, width)
    return [*lines, head(f"{ELLIPSIS} {_by_state(rest, more=True)}", width)] if rest else lines


def _table(workers: Sequence[WorkerLine], width: int) -> list[str]:
    cells = {column.name: [column.cell(worker) for worker in workers] for column in _COLUMNS}
    widths = {name: max(map(text_width, (name, *column))) for name, column in cells.items()}
    kept: set[str] = set()
    for column in sorted(_COLUMNS, key=lambda column: column.rank):
        if sum(widths[name] for name in (*kept, column.name)) + len(GAP) * len(kept) > width:
            break
        kept.add(column.name)
    columns = [column for column in _COLUMNS if column.name in kept]
    if len(columns) < 2:
        return [head(f"{worker.number} {worker.state}", width) for worker in workers]
    rows = [[column.name for column in columns], *zip(*(cells[column.name] for column in columns), strict=True)]
    return [
        GAP.join(column.fill(cell, widths[column.name]) for column, cell in zip(columns, row, strict=True))
        for row in rows
    ]


def _by_state(workers: Sequence[WorkerLine], *, more: bool = False) -> str:
    """``28 more ready, 2 more starting``"""
    counts = Counter(_kind(worker) for worker in workers)
    known = [*_STATES, *sorted(counts.keys() - set(_STATES))]
    return ", ".join(f"{counts[state]} {'more ' if more else ''}{state}" for state in reversed(known) if counts[state])


def _kind(worker: WorkerLine) -> str:
    return "writing" if worker.state.startswith("writing") else worker.state


def _urgency(worker: WorkerLine) -> int:
    kind = _kind(worker)
    return _STATES.index(kind) if kind in _STATES else 0


def _or_dash(value: Any, show: Callable[[Any], str]) -> str:
    return "-" if value is None else show(value)
