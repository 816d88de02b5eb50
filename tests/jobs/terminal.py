"""A small terminal for the tests: a screen of cells with a cursor, wrapping, scrolling and the escapes that views use.

Whatever it does not know is an error: a view must not rely on more.
"""

from __future__ import annotations

import re
import unicodedata

_ESCAPE = re.compile(r"\x1b\[(\??)([0-9;]*)([A-Za-z])")


class Terminal:
    """Feed it text, look at its lines.

    Attributes:
        scrolled: lines that have left at the top.
        is_cursor_visible: as last told.
        num_clears: how often the whole screen was cleared.
        num_wraps: how often text went over the last column.
    """

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.columns, self.rows = columns, rows
        self.scrolled: list[str] = []
        self.is_cursor_visible = True
        self.num_clears = 0
        self.num_wraps = 0
        self.row = self.column = 0
        self._cells = [self._blank() for _ in range(rows)]

    @property
    def lines(self) -> list[str]:
        """The screen without trailing spaces, down to the last line with anything on it."""
        lines = ["".join(row).rstrip() for row in self._cells]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def resize(self, columns: int, rows: int) -> None:
        """Cut or fill lines at the right and at the bottom, as terminals do that do not wrap anew."""
        self._cells = [(row + [" "] * columns)[:columns] for row in self._cells]
        while len(self._cells) > rows and self.row < len(self._cells) - 1:
            self._cells.pop()
        while len(self._cells) > rows:
            self.scrolled.append("".join(self._cells.pop(0)).rstrip())
            self.row -= 1
        self.columns, self.rows = columns, rows
        self._cells += [self._blank() for _ in range(rows - len(self._cells))]
        self.row, self.column = max(min(self.row, rows - 1), 0), min(self.column, columns)

    def feed(self, text: str) -> None:
        """Take what a program writes."""
        position = 0
        while position < len(text):
            char = text[position]
            if char == "\x1b":
                found = _ESCAPE.match(text, position)
                assert found, f"unknown escape {text[position : position + 12]!r}"
                self._escape(found[1], found[2], found[3])
                position = found.end()
                continue
            if char == "\r":
                self.column = 0
            elif char == "\n":
                self._down()
            else:
                assert char.isprintable() or unicodedata.combining(char), f"unknown control {char!r}"
                self._put(char)
            position += 1

    def _put(self, char: str) -> None:
        if unicodedata.combining(char):
            return
        width = 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if self.column + width > self.columns:
            self.num_wraps += 1
            self.column = 0
            self._down()
        self._cells[self.row][self.column] = char
        if width == 2:
            self._cells[self.row][self.column + 1] = ""
        self.column += width

    def _down(self) -> None:
        if self.row < self.rows - 1:
            self.row += 1
            return
        self.scrolled.append("".join(self._cells.pop(0)).rstrip())
        self._cells.append(self._blank())

    def _escape(self, private: str, numbers: str, name: str) -> None:
        number = int(numbers.split(";")[0] or 0) if numbers else 0
        if private:
            assert numbers in ("25", "2026"), numbers
            if numbers == "25":
                self.is_cursor_visible = name == "h"
        elif name == "A":
            self.row = max(self.row - max(number, 1), 0)
        elif name == "H":
            assert not numbers
            self.row = self.column = 0
        elif name == "K":
            assert not numbers
            self._cells[self.row][self.column :] = [" "] * (self.columns - self.column)
        elif name == "J" and number == 2:
            self.num_clears += 1
            self._cells = [self._blank() for _ in range(self.rows)]
        elif name == "J":
            self._cells[self.row][self.column :] = [" "] * (self.columns - self.column)
            self._cells[self.row + 1 :] = [self._blank() for _ in range(self.rows - self.row - 1)]
        else:
            assert name == "m", f"unknown escape {private}{numbers}{name}"

    def _blank(self) -> list[str]:
        return [" "] * self.columns
