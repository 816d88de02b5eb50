"""What is measured and in which order: pure, without torch.

A task is one side of one cell (model, batch, context), or a check of the engine. The order is that of what a reader
would miss most, so that whatever ends the run early leaves the best part of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
    *(PLAIN, AUTO, AUTO_MODEL, GENERATE_BATCH, GENERATE, *FIXED),
    *(PLAIN + UNCAPTURED, AUTO + UNCAPTURED, ASSISTED, STATIC),
)
MAIN_SIDES = (PLAIN, AUTO, AUTO_MODEL, GENERATE_BATCH)
BATCHED_PEERS = (GENERATE_BATCH, GENERATE, STATIC)
"""Whichever of them is the best in a cell is what the engine is held against."""
PEER_BATCHES = (8, 64)
"""From and to so many rows in flight there is an aim against the peers, so ``generate`` is among the main sides."""

BROKEN_EXIT = 3
"""Exit code of a process that has told a task's fault and can do no other."""

BATCHES = (1, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (512, 2048, 4096, 16384)
CHECKS = ("float32", "bfloat16", "float64")

_FIRST = (
    ("8B", 1, 512), ("8B", 8, 512), ("8B", 32, 512), ("8B", 64, 512), ("8B", 16, 512), ("8B", 8, 2048),
    ("8B", 32, 2048), ("8B", 4, 512), ("1B", 8, 512), ("1B", 1, 512), ("1B", 32, 512), ("1B", 64, 512),
)  # fmt: skip
_COMPILED = (("8B", 1, 512), ("8B", 8, 512))
"""Compiling takes about a minute for each shape, so few shapes are."""
_BEFORE_CHECKS = 3
_EARLY_CHECKS = ("float32", "bfloat16")
"""Whether the text is right matters more than most cells do; the other checks come behind all telling ones."""


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
    tasks += [Task(check=check) for check in checks if check in _EARLY_CHECKS]
    compiled = [STATIC] if STATIC in sides else []
    tasks += _of(first[_BEFORE_CHECKS:], eager, _is_main)
    tasks += [Task(check=check) for check in checks if check not in _EARLY_CHECKS]
    tasks += _of([cell for cell in _COMPILED if cell in cells], compiled)
    tasks += _of(others, eager, _is_main)
    tasks += _of([*first[_BEFORE_CHECKS:], *others], eager, lambda cell, side: not _is_main(cell, side))
    if not set(_COMPILED) & set(cells):
        tasks += _of(cells[:1], compiled)  # a trial of the program: the smallest cell stands for them
    return tasks


def lost_alike(task: Task, ended: Sequence[tuple[Task, bool]]) -> list[Task]:
    """Two tasks that broke their process and say that this one would; empty where nothing says so.

    They are the last two of the same way of the engine: a model, captured or not, with drafts or without. What breaks
    without drafts breaks with them too. A fresh process with its models takes half a minute, which others can use.

    Args:
        ended: tasks so far, in order, and whether each broke its process.
    """
    way = _way(task)
    if way is None:
        return []
    for one_way in ((*way[:2], True), way):
        last = [(one, is_lost) for one, is_lost in ended if _way(one) == one_way][-2:]
        if len(last) == 2 and all(is_lost for _, is_lost in last):
            return [one for one, _ in last]
    return []


def _way(task: Task) -> tuple[str, bool, bool] | None:
    """Model, whether rounds are not captured, whether there are no drafts; None for what is no side of the engine."""
    if task.check or task.side in PEERS:
        return None
    return task.model, task.side.endswith(UNCAPTURED), task.side.removesuffix(UNCAPTURED) == PLAIN


def _is_main(cell: tuple[str, int, int], side: str) -> bool:
    """Whether a side is measured in every cell before any other side is."""
    return side in MAIN_SIDES or (side == GENERATE and PEER_BATCHES[0] <= cell[1] <= PEER_BATCHES[1])


def _of(
    cells: Iterable[tuple[str, int, int]],
    sides: Iterable[str],
    is_wanted: Callable[[tuple[str, int, int], str], bool] = lambda cell, side: True,
) -> list[Task]:
    """Assisted generation takes one row alone."""
    chosen = list(sides)
    pairs = [(cell, side) for cell in cells for side in chosen if is_wanted(cell, side)]
    return [Task(*cell, side) for cell, side in pairs if side != ASSISTED or cell[1] == 1]
