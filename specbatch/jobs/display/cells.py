"""Text by the columns that it takes on a terminal: Chinese, Japanese and Korean characters take two. Pure."""

from __future__ import annotations

import unicodedata

ELLIPSIS = "…"

_JAMO = range(0x1160, 0x1200)
"""Vowels and finals that join the syllable before them; Unicode does not call them combining."""


def char_width(char: str) -> int:
    """Columns of one printable character: 0, 1 or 2."""
    if char < "\u0300":
        return 1
    if unicodedata.category(char) in ("Mn", "Me", "Cf") or ord(char) in _JAMO:
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def text_width(text: str) -> int:
    """Columns of a line without control characters."""
    return len(text) if text.isascii() else sum(map(char_width, text))


def head(text: str, width: int) -> str:
    """The text, or as much of its beginning as fits with ``…`` behind it; never wider than ``width``."""
    return text if text_width(text) <= width else _cut(text, width - 1) + ELLIPSIS[: max(width, 0)]


def tail(text: str, width: int) -> str:
    """The text, or as much of its end as fits with ``…`` before it: paths differ at their ends."""
    if text_width(text) <= width:
        return text
    kept = _cut(text[::-1], width - 1)[::-1]
    while kept and char_width(kept[0]) == 0:  # it belonged to a character that is gone
        kept = kept[1:]
    return ELLIPSIS[: max(width, 0)] + kept


def left(text: str, width: int) -> str:
    """The text cut and filled up to exactly ``width`` columns."""
    text = head(text, width)
    return text + " " * (width - text_width(text))


def right(text: str, width: int) -> str:
    """As ``left``, set to the right."""
    text = head(text, width)
    return " " * (width - text_width(text)) + text


def _cut(text: str, width: int) -> str:
    """The longest beginning of at most ``width`` columns."""
    used = 0
    for index, char in enumerate(text):
        used += char_width(char)
        if used > width:
            return text[:index]
    return text
