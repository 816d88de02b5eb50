"""Durations and sizes as people write them."""

from __future__ import annotations

import re

_DURATION = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?")
_MAX_DURATION_SECONDS = 365 * 86400
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?", re.I)
_SIZE_UNITS = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for suffix, base in (("b", 1000), ("ib", 1024))
    for power, letter in enumerate("kmgt", 1)
}


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``90s``, ``30m``, ``1h30m`` or ``2d``.

    Raises:
        ValueError: it is none, or 0.
    """
    match = _DURATION.fullmatch(text.strip())
    numbers = [int(number or 0) for number in match.groups()] if match else []
    seconds = sum(number * unit for number, unit in zip(numbers, (86400, 3600, 60, 1), strict=False))
    if not 0 < seconds <= _MAX_DURATION_SECONDS:
        raise ValueError("must be a duration up to 365d, such as 90s, 30m, 1h30m or 2d")
    return float(seconds)


def parse_size(text: str) -> int:
    """Bytes of a size such as ``24GiB``, ``24GB`` or ``512MiB``; a bare number is bytes.

    Raises:
        ValueError: it is none, or less than a byte.
    """
    match = _SIZE.fullmatch(text.strip())
    num_bytes = int(float(match[1]) * _SIZE_UNITS[(match[2] or "").lower()]) if match else 0
    if num_bytes < 1:
        raise ValueError("must be a size such as 24GiB, 24GB or 512MiB")
    return num_bytes
