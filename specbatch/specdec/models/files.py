"""Files of a model folder: what small ones say, and the headers of safetensors, without reading a tensor."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from specbatch.schemas.errors import ErrorCode, SpecbatchError

_MAX_FILE_BYTES = 64 << 20
_MAX_HEADER_BYTES = 100 << 20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        SpecbatchError: JOB_MODEL_LOAD; it cannot be read, is too large, or is no such object.
    """
    try:
        value = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise SpecbatchError(ErrorCode.JOB_MODEL_LOAD, f"{path} is no JSON ({error}); fetch the model again") from error
    if not isinstance(value, dict):
        raise SpecbatchError(ErrorCode.JOB_MODEL_LOAD, f"{path} holds no JSON object; fetch the model again")
    return value


def read_file(path: Path) -> bytes:
    """A small file of a model folder.

    Raises:
        SpecbatchError: JOB_MODEL_LOAD; it cannot be read, or is too large for what it should be.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise SpecbatchError(ErrorCode.JOB_MODEL_LOAD, f"{path} is larger than {_MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SpecbatchError(ErrorCode.JOB_MODEL_LOAD, f"{path} cannot be read: {reason}") from error


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
