"""Numbers, durations, sizes and foreign text as people read them. Pure; no colour, no terminal."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_COUNT_UNITS = ("", " k", " M", " G", " T")


def clean(text: object, max_length: int | None = None) -> str:
    """Text from a file or a user as one printable line.

    Control, format and surrogate characters (terminal escapes, line breaks, bidirectional marks) become ``?``;
    text longer than ``max_length`` keeps its end behind ``...``, since paths and model names differ at their ends.
    """
    line = "".join("?" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") else char for char in str(text))
    if max_length is not None and len(line) > max_length:
        return "..." + line[len(line) - max_length + 3 :]
    return line


def count(value: int) -> str:
    """``12,345``"""
    return f"{value:,}"


def plural(value: int, word: str) -> str:
    """``1 row``, ``2 rows``"""
    return f"{value:,} {word}" if value == 1 else f"{value:,} {word}s"


def parameters(value: int) -> str:
    """``5.4 M`` for 5,400,000."""
    return _scaled(float(value), 1000.0, _COUNT_UNITS).replace("  ", " ")


def size(num_bytes: float) -> str:
    """``21.6 MB``; decimal units."""
    return _scaled(float(num_bytes), 1000.0, tuple(f" {unit}" for unit in _BYTE_UNITS))


def rate(per_second: float) -> str:
    """Three to four significant digits without an exponent: ``0.52``, ``24.5``, ``245``, ``12,345``."""
    if per_second >= 100:
        return f"{per_second:,.0f}"
    return f"{per_second:.1f}" if per_second >= 10 else f"{per_second:.2f}"


def seconds(value: float) -> str:
    """``0.52 s``, ``24.5 s``, ``245 s``."""
    return f"{rate(value)} s"


def clock(value_seconds: float) -> str:
    """``0:31``, ``12:05``, ``3:07:09``, ``2 d 3:07:09``."""
    whole = max(0, round(value_seconds))
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, remaining = divmod(rest, 60)
    text = f"{hours}:{minutes:02d}:{remaining:02d}" if hours or days else f"{minutes}:{remaining:02d}"
    return f"{days} d {text}" if days else text


def duration(value_seconds: float) -> str:
    """``0.52 s``, ``24.5 s``, ``2:05``, ``3:07:09``: a clock from 100 seconds on."""
    return seconds(value_seconds) if value_seconds < 100 else clock(value_seconds)


def iso(text: str) -> str:
    """``2026-11-23T22:00:00Z``; what is no time of day is given back, cleaned."""
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError):
        return clean(text, 40)


def percent(share: float | None) -> str:
    """``71.2 %``; ``-`` for None; what would round to nothing is ``<0.1 %``."""
    if share is not None and 0 < share < 0.0005:
        return "<0.1 %"
    return "-" if share is None else f"{100 * share:.1f} %"


def bar(share: float, width: int) -> str:
    """A bar of ``width`` characters, ``share`` of it filled; plain ASCII, so that every terminal and log shows it."""
    filled = max(0, min(width, round(share * width)))
    return "#" * filled + "." * (width - filled)


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    index = 0
    while value >= base and index < len(units) - 1:
        value /= base
        index += 1
    number = f"{value:.0f}" if index == 0 or value >= 100 else f"{value:.1f}"
    return f"{number}{units[index]}"
