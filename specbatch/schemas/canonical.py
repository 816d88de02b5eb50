"""Canonical JSON and digests: one spelling of a value, so that its SHA-256 names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20


def canonical_json(value: Mapping[str, Any] | list[Any]) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces and no NaN.

    Raises:
        ValueError: a float is not finite.
        TypeError: a value is not a JSON value.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def sha256_hex(data: bytes) -> str:
    """Hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's contents, read in 1 MiB chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sum_histograms(histograms: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Entry-wise sum of ragged histograms; the result is as long as the longest."""
    total: list[int] = []
    for histogram in filter(None, histograms):  # most are empty where rows are decoded plainly
        for index, count in enumerate(histogram):
            if index == len(total):
                total.append(0)
            total[index] += count
    return tuple(total)
