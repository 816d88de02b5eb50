"""What is written to a terminal so that a few lines at its end change in place while others scroll above. Pure.

Every update is one text: the cursor is hidden at its beginning and shown at its end, so that whatever ends the process
leaves it visible, below the view. Widths are those of the moment; after a change of size nobody knows where the old
lines went (some terminals wrap them anew, some cut them), so the screen is cleared once and drawn from its top.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from specbatch.jobs.display.cells import char_width

_BEGIN = "\x1b[?2026h\x1b[?25l"  # terminals that do not know synchronized output pass over it
_END = "\x1b[?25h\x1b[?2026l"
_CLEAR_LINE, _CLEAR_BELOW, _CLEAR_ALL = "\x1b[K", "\x1b[J", "\x1b[H\x1b[2J"
_NEXT = "\r\n"
_RESET = "\x1b[0m"
_COLOURS = (
    (re.compile("[━╸]+"), "\x1b[36m"),
    (re.compile(r"\b(?:suspect|quarantined|writing part|no sign of life|draining)\b"), "\x1b[33m"),
    (re.compile(r"^\d[\d,]* errors?\b"), "\x1b[31m"),
)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What stands on the terminal: the lines of the view, for a terminal of so many columns and rows."""

    lines: tuple[str, ...]
    size: tuple[int, int]


def update(
    before: Drawn | None,
    lines: Sequence[str],
    size: tuple[int, int],
    said: Sequence[str] = (),
    *,
    history: Sequence[str] = (),
    has_colour: bool = True,
) -> str:
    """The text that brings a terminal from one view to the next; empty where nothing changes.

    Args:
        lines: fewer than the terminal has rows, each narrower than it.
        size: columns and rows.
        said: new lines that go above the view and stay; a wide one takes several rows.
        history: earlier ones, which are shown again after the screen was cleared.
    """
    if before is not None and (before.lines, before.size) == (tuple(lines), size) and not said:
        return ""
    parts = [_BEGIN]
    if before is not None and before.size != size:
        said = _last_that_fit([*history, *said], size[0], size[1] - 1 - len(lines))
        parts.append(_CLEAR_ALL)
    elif before is not None and before.lines:
        parts.append(f"\x1b[{len(before.lines)}A\r")
    if said:
        parts.append(_CLEAR_BELOW)
        parts += [line + _NEXT for line in said]
    parts += [(coloured(line) if has_colour else line) + _CLEAR_LINE + _NEXT for line in lines]
    return "".join([*parts, _CLEAR_BELOW, _END])


def coloured(line: str) -> str:
    """A line with what matters in colour; as wide as before."""
    for pattern, colour in _COLOURS:
        line = pattern.sub(lambda found, colour=colour: f"{colour}{found[0]}{_RESET}", line)  # type: ignore[misc]
    return line


def _last_that_fit(said: Sequence[str], columns: int, rows: int) -> list[str]:
    """The last lines that so many rows have room for."""
    kept: list[str] = []
    for line in reversed(said):
        rows -= max(-(-sum(map(char_width, line)) // max(columns, 1)), 1)
        if rows < 0:
            break
        kept.append(line)
    return kept[::-1]
