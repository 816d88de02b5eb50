"""Reads the code blocks of a Markdown page, with what HTML comments right above them say about running them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[a-z]*)\s*$")
_NOTE = re.compile(r"^\s*<!-- (?P<key>not run|file|exit): (?P<value>.+?) -->\s*$")
_COMMAND = re.compile(r"^\s*(?:[A-Z_]+=\S+ )*specbatch +[a-z-]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    Attributes:
        not_run: why it is not run; None where it is.
        file: the file that it shows; it is written for the blocks below.
        exit_code: what it ends with.
    """

    language: str
    text: str
    line: int
    not_run: str | None = None
    file: str | None = None
    exit_code: int = 0

    @property
    def has_commands(self) -> bool:
        """Whether a line of it is a command of ours."""
        return _COMMAND.search(self.text) is not None


def blocks(path: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    notes: dict[str, str] = {}
    opened: tuple[int, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened, lines = (number, fence["language"], fence["indent"]), []
        elif opened is not None and line.strip() == "```":
            text = "\n".join(each.removeprefix(opened[2]) for each in lines) + "\n"
            exit_code = int(notes.get("exit", "0"))
            yield Block(opened[1], text, opened[0], notes.get("not run"), notes.get("file"), exit_code)
            opened, notes = None, {}
        elif opened is not None:
            lines.append(line)
        elif note := _NOTE.match(line):
            notes[note["key"]] = note["value"]
        elif line.strip():
            notes = {}
    assert opened is None, f"{path.name}: the block of line {opened} is not closed"
