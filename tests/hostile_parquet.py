"""Parquet files that announce whatever a test wants: a writer of footers that no library would write."""

from __future__ import annotations

from typing import Any


class I32(int):
    """A number of 32 bits; a plain ``int`` is one of 64."""


def encode(value: Any) -> bytes:
    """A value in Thrift's compact protocol; a ``dict`` of field numbers is a struct."""
    if isinstance(value, int):
        return varint((value << 1) ^ (value >> 63))
    if isinstance(value, bytes):
        return varint(len(value)) + value
    if isinstance(value, list):
        head = bytes([0xF0 | _kind(value[0])]) + varint(len(value)) if value else b"\x0c"
        return head + b"".join(map(encode, value))
    fields = sorted(value.items())
    return b"".join(bytes([_kind(item)]) + varint(number << 1) + encode(item) for number, item in fields) + b"\0"


def varint(number: int) -> bytes:
    """A number of any size, seven bits a byte."""
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def column(rows: int = 10, **changes: Any) -> dict[int, Any]:
    """A column chunk of strings; ``changes`` are ``codec``, ``uncompressed``, ``compressed`` and ``pages``."""
    values = {"codec": 0, "uncompressed": 100, "compressed": 100, "pages": 4, **changes}
    return {
        2: 4,
        3: {
            1: I32(6),
            2: [I32(0)],
            3: [b"prompt"],
            4: I32(values["codec"]),
            5: rows,
            6: values["uncompressed"],
            7: values["compressed"],
            9: values["pages"],
        },
    }


def metadata(rows: int = 10, chunk: dict[int, Any] | None = None, **fields: Any) -> dict[int, Any]:
    """The ``FileMetaData`` of one row group with one column ``prompt``; ``fields`` are further ones, as ``f8=...``."""
    leaf = {1: I32(6), 3: I32(1), 4: b"prompt", 6: I32(0)}
    group = {1: [column(rows) if chunk is None else chunk], 2: 100, 3: rows}
    more = {int(name[1:]): value for name, value in fields.items()}
    return {1: I32(1), 2: [{4: b"schema", 5: I32(1)}, leaf], 3: rows, 4: [group], **more}


def parquet_file(footer: dict[int, Any], num_bytes: int = 1000) -> bytes:
    """A file of ``num_bytes`` zeros where its pages should be, and this footer."""
    data = encode(footer)
    return b"PAR1" + bytes(num_bytes) + data + len(data).to_bytes(4, "little") + b"PAR1"


def _kind(value: Any) -> int:
    if isinstance(value, I32):
        return 5
    return {int: 6, bytes: 8, list: 9, dict: 12}[type(value)]
