"""Arrow values as JSON: one rule for every type that a column of a dataset may have.

| Arrow | JSON |
|---|---|
| null; not a number and infinities | ``null`` |
| booleans, whole numbers of any size, floating-point numbers | themselves |
| decimals | a string with all their digits |
| text | a string; bytes that are not UTF-8 become U+FFFD |
| binary | a string, base64 |
| dates | ``"2026-01-31"`` |
| timestamps | ``"2026-01-31T23:59:59.000001"``, with ``Z`` and in UTC where the column has a time zone |
| times of day | ``"23:59:59.000001"`` |
| durations | ``"PT1.500S"``, ISO 8601 in seconds |
| lists of any kind | an array |
| structs | an object |
| maps | an array of ``{"key": ..., "value": ...}``: keys need not be text, nor differ |
| dictionary-encoded columns | their values |

Digits of a second are as many as the type has. Lines end with ``\\n`` alone: other characters that some readers take
for the end of a line are escaped.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_NO_TIME = np.iinfo(np.int64).min
_LINE_ENDS = str.maketrans({"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"})


def json_line(value: Any) -> str:
    """One line of JSON, with its end."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_LINE_ENDS) + "\n"


def json_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a small table as JSON values."""
    columns = [json_column(table.column(name)) for name in table.schema.names]
    for cells in zip(*columns, strict=True) if columns else iter([()] * table.num_rows):
        yield dict(zip(table.schema.names, cells, strict=True))


def json_column(column: pa.ChunkedArray) -> list[Any]:
    """The values of one column as JSON values."""
    return [value for chunk in column.chunks for value in _values(chunk)]


def _values(array: pa.Array) -> list[Any]:
    kind = array.type
    if pa.types.is_dictionary(kind):
        distinct = _values(array.dictionary)
        return [None if index is None else distinct[index] for index in array.indices.to_pylist()]
    if pa.types.is_struct(kind):
        return _structs(array)
    if pa.types.is_map(kind):
        pairs = pa.struct([pa.field("key", kind.key_type, nullable=False), pa.field("value", kind.item_type)])
        return _lists(array.cast(pa.list_(pairs)))
    if _is_list(kind):
        return _lists(array)
    for is_kind, convert in _CONVERTERS:
        if is_kind(kind):
            return convert(array)
    values: list[Any] = array.to_pylist()
    return values


def _is_list(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_fixed_size_list,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
        )
    )


def _lists(array: pa.Array) -> list[Any]:
    # flatten() leaves out what null lists may hide, so that the lengths are those of the values here.
    values = _values(array.flatten())
    found: list[Any] = []
    start = 0
    for length in _lengths(array):
        found.append(None if length is None else values[start : start + length])
        start += length or 0
    return found


def _lengths(array: pa.Array) -> list[int | None]:
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        return [size if is_valid else None for is_valid in array.is_valid().to_pylist()]
    lengths: list[int | None] = pc.list_value_length(array).to_pylist()
    return lengths


def _structs(array: pa.StructArray) -> list[Any]:
    names = [array.type.field(index).name for index in range(array.type.num_fields)]
    cells = [_values(array.field(index)) for index in range(array.type.num_fields)]
    rows = zip(*cells, strict=True) if cells else iter([()] * len(array))
    return [
        dict(zip(names, row, strict=True)) if is_valid else None
        for is_valid, row in zip(array.is_valid().to_pylist(), rows, strict=True)
    ]


def _floats(array: pa.Array) -> list[Any]:
    return [value if value is None or math.isfinite(value) else None for value in map(_float, array.to_pylist())]


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _decimals(array: pa.Array) -> list[Any]:
    return [None if value is None else format(value, "f") for value in array.to_pylist()]


def _texts(array: pa.Array) -> list[Any]:
    try:
        texts: list[Any] = array.to_pylist()
    except UnicodeDecodeError:
        return [None if data is None else data.decode("utf-8", "replace") for data in _bytes(array)]
    return texts


def _bytes(array: pa.Array) -> list[bytes | None]:
    if pa.types.is_string_view(array.type):
        kind = pa.binary_view()
    else:
        kind = pa.large_binary() if pa.types.is_large_string(array.type) else pa.binary()
    found: list[bytes | None] = array.cast(kind).to_pylist()
    return found


def _binaries(array: pa.Array) -> list[Any]:
    return [None if data is None else base64.b64encode(data).decode() for data in array.to_pylist()]


def _dates(array: pa.Array) -> list[Any]:
    unit: Any = "D" if pa.types.is_date32(array.type) else "ms"
    times = _integers(array)
    return [None if time is None else str(np.datetime64(time, unit).astype("datetime64[D]")) for time in times]


def _timestamps(array: pa.Array) -> list[Any]:
    unit: Any = array.type.unit
    zone = "Z" if array.type.tz is not None else ""
    # The least number is no date for numpy: "not a time".
    return [None if time in (None, _NO_TIME) else f"{np.datetime64(time, unit)}{zone}" for time in _integers(array)]


def _times(array: pa.Array) -> list[Any]:
    digits = _DIGITS[array.type.unit]
    return [None if time is None else _time_of_day(time, digits) for time in _integers(array)]


def _time_of_day(time: int, digits: int) -> str:
    seconds, rest = divmod(time, 10**digits)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}" + (f".{rest:0{digits}d}" if digits else "")


def _durations(array: pa.Array) -> list[Any]:
    digits = _DIGITS[array.type.unit]
    return [None if time is None else _duration(time, digits) for time in _integers(array)]


def _duration(time: int, digits: int) -> str:
    seconds, rest = divmod(abs(time), 10**digits)
    sign = "-" if time < 0 else ""
    return f"{sign}PT{seconds}" + (f".{rest:0{digits}d}" if digits else "") + "S"


def _integers(array: pa.Array) -> list[int | None]:
    """Dates and times as the numbers that they are stored as: Python's own dates know fewer years."""
    width = array.type.bit_width
    numbers: list[int | None] = array.view(pa.int32() if width == 32 else pa.int64()).to_pylist()
    return numbers


_CONVERTERS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], list[Any]]], ...] = (
    (pa.types.is_floating, _floats),
    (pa.types.is_decimal, _decimals),
    (pa.types.is_string, _texts),
    (pa.types.is_large_string, _texts),
    (pa.types.is_string_view, _texts),
    (pa.types.is_binary, _binaries),
    (pa.types.is_large_binary, _binaries),
    (pa.types.is_fixed_size_binary, _binaries),
    (pa.types.is_binary_view, _binaries),
    (pa.types.is_date, _dates),
    (pa.types.is_timestamp, _timestamps),
    (pa.types.is_time, _times),
    (pa.types.is_duration, _durations),
)
