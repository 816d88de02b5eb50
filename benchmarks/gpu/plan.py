"""What is measured and in which order: pure, without torch.

A task is one side of one cell (model, batch, context), or a check of the engine. The order is that of what a reader
would miss most, so that whatever ends the run early leaves the best part of the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

PLAIN, AUTO, AUTO_MODEL = "plain", "auto", "auto, draft model alone"
"""``auto`` also drafts from its suffix index, whose acceptance nobody sets; the last has no such index."""
FIXED = ("K=2", "K=4")
GENERATE, STATIC, ASSISTED, GENERATE_BATCH = (
    "generate",
    "generate, static cache, compiled",
    "generate, assistant",
    "generate_batch",
)
PEERS = (GENERATE, STATIC, ASSISTED, GENERATE_BATCH)
UNCAPTURED = ", uncaptured"
"""Behind the name of a side: the same with the engine's switch for captured rounds off, where it has one."""
SIDES = (
    *(PLAIN, AUTO, AUTO_MODEL, GENERATE_BATCH, *FIXED),
    *(PLAIN + UNCAPTURED, AUTO + UNCAPTURED, ASSISTED, GENERATE, STATIC),
)
MAIN_SIDES = (PLAIN, AUTO, AUTO_MODEL, GENERATE_BATCH)

BATCHES = (1, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (512, 2048, 4096, 16384)
CHECKS = ("float32", "float64", "bfloat16")

_FIRST = (
    ("8B", 1, 512), ("8B", 8, 512), ("8B", 32, 512), ("8B", 64, 512), ("8B", 16, 512), ("8B", 8, 2048),
    ("8B", 32, 2048), ("8B", 4, 512), ("1B", 8, 512), ("1B", 1, 512), ("1B", 32, 512), ("1B", 64, 512),
)  # fmt: skip
_COMPILED = (("8B", 1, 512), ("8B", 8, 512))
"""Compiling takes about a minute for each shape, so few shapes are."""
_BEFORE_CHECKS = 3


@dataclass(frozen=True, slots=True)
class Task:
    """One side of one cell, or with ``check`` a check of the engine, which has no cell."""

    model: str = ""
    batch: int = 0
    context: int = 0
    side: str = ""
    check: str = ""

    @property
    def cell(self) -> tuple[str, int, int]:
        """Model, rows in flight, tokens of each prompt."""
        return self.model, self.batch, self.context

    @property
    def name(self) -> str:
        """For a line of progress."""
        return f"check {self.check}" if self.check else f"{self.model} batch {self.batch} x {self.context}: {self.side}"

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def schedule(
    models: Sequence[str], batches: Sequence[int], contexts: Sequence[int], sides: Sequence[str], checks: Sequence[str]
) -> list[Task]:
    """All tasks, the most telling first."""
    cells = [(model, batch, context) for model in models for context in contexts for batch in batches]
    first = [cell for cell in _FIRST if cell in cells]
    others = sorted(set(cells) - set(first), key=lambda cell: cells.index(cell))
    eager = [side for side in sides if side != STATIC]
    tasks = [*_of(first[:_BEFORE_CHECKS], eager)]
    tasks += [Task(check=check) for check in checks]
    main = [side for side in eager if side in MAIN_SIDES]
    rest = [side for side in eager if side not in MAIN_SIDES]
    compiled = [STATIC] if STATIC in sides else []
    tasks += _of(first[_BEFORE_CHECKS:], main)
    tasks += _of([cell for cell in _COMPILED if cell in cells], compiled)
    tasks += _of(others, main)
    tasks += _of([*first[_BEFORE_CHECKS:], *others], rest)
    if not set(_COMPILED) & set(cells):
        tasks += _of(cells[:1], compiled)  # a trial of the program: the smallest cell stands for them
    return tasks


def _of(cells: Iterable[tuple[str, int, int]], sides: Iterable[str]) -> list[Task]:
    """Assisted generation takes one row alone."""
    chosen = list(sides)
    return [Task(*cell, side) for cell in cells for side in chosen if side != ASSISTED or cell[1] == 1]
