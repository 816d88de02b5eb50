"""Writing JSONL files, and reading what became of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from specbatch.storage.discovery import FoundFile
from specbatch.storage.jsonl import Wanted, make_rules, survey, write_copy

PLAIN = Wanted()


def pack(data: bytes, compression: str) -> bytes:
    """The data compressed; ``""`` leaves it as it is."""
    if compression == ".gz":
        return gzip.compress(data, mtime=0)
    return bytes(pa.compress(data, codec="zstd", asbytes=True)) if compression == ".zst" else data


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack(b"".join(json.dumps(row).encode() + b"\n" for row in rows), path.suffix))
    return path


def found(path: Path) -> FoundFile:
    return FoundFile(path.name, str(path))


def normalise(path: Path, copy: Path, wanted: Wanted = PLAIN) -> pq.ParquetFile:
    """The copy of one file."""
    source = survey(found(path))
    write_copy(source, make_rules([source], [None], wanted), copy)
    return pq.ParquetFile(copy)


def table_of(path: Path, wanted: Wanted = PLAIN) -> pa.Table:
    return normalise(path, path.with_name(f"{path.name}.copy"), wanted).read()
