"""Headers of safetensors files: how many weights a file holds, and whether it is whole, without reading a tensor."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from specbatch.schemas.errors import ErrorCode, SpecbatchError

_MAX_HEADER_BYTES = 100 << 20


def count_parameters(path: Path) -> int:
    """Number of weights in one file.

    Raises:
        SpecbatchError: JOB_MODEL_LOAD if the file is damaged or truncated.
    """
    header = read_header(path)
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def read_header(path: Path) -> dict[str, Any]:
    """The header: its length in 8 bytes, then JSON with the place of every tensor; then the tensors, to the end.

    Raises:
        SpecbatchError: JOB_MODEL_LOAD if the file is damaged or truncated.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size_bytes):
            raise SpecbatchError(ErrorCode.JOB_MODEL_LOAD, f"{path.name} is no safetensors file, or a truncated one")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise SpecbatchError(ErrorCode.JOB_MODEL_LOAD, f"the header of {path.name} is damaged") from error
    if size_bytes != 8 + length + end:
        raise SpecbatchError(
            ErrorCode.JOB_MODEL_LOAD,
            f"{path.name} has {size_bytes} bytes and should have {8 + length + end}; fetch the model again",
        )
    return header
