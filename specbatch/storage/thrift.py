"""A cursor over Thrift's compact protocol, as far as a Parquet footer needs it. Built for bytes nobody vouches for.

Every loop consumes at least a byte or ends in an error, so that the time is bounded by the number of bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

BOOL_TRUE, BOOL_FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT, UUID = range(1, 14)
INTEGERS = (I16, I32, I64)

_FIXED_BYTES = {BYTE: 1, DOUBLE: 8, UUID: 16}
_MAX_DEPTH = 32
_MAX_INTEGER_BYTES = 10


class CompactReader:
    """Reads values one after another. What is no Thrift raises ValueError, running off the end IndexError."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """(field id, type) of each field of a struct; the caller consumes the value before asking for the next."""
        field = 0
        while header := self._byte():
            if header > 0x0F:
                field += header >> 4
            else:
                field = self.integer()
            yield field, header & 0x0F

    def list_header(self) -> tuple[int, int]:
        """(number of elements, type of each) of a list or set."""
        header = self._byte()
        count = header >> 4
        return (self._varint() if count == 15 else count), header & 0x0F

    def integer(self) -> int:
        """A signed integer of 16, 32 or 64 bits."""
        raw = self._varint()
        return (raw >> 1) ^ -(raw & 1)

    def binary(self) -> bytes:
        """A string or other bytes."""
        length = self._varint()
        start = self._at
        self._advance(length)
        return self._data[start : self._at]

    def skip(self, kind: int, depth: int = 0) -> None:
        """Pass over the value of a field."""
        if kind in INTEGERS:
            self._varint()
        elif kind == BINARY:
            self._advance(self._varint())
        elif kind == STRUCT:
            if depth > _MAX_DEPTH:
                raise ValueError("nested too deeply")
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        elif kind in (LIST, SET):
            if depth > _MAX_DEPTH:
                raise ValueError("nested too deeply")
            count, inner = self.list_header()
            for _ in range(count):
                self._skip_element(inner, depth + 1)
        elif kind == MAP:
            self._skip_map(depth)
        elif kind in _FIXED_BYTES:
            self._advance(_FIXED_BYTES[kind])
        elif kind not in (BOOL_TRUE, BOOL_FALSE):
            raise ValueError(f"unknown type {kind}")

    def _skip_map(self, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        count = self._varint()
        kinds = self._byte() if count else 0
        for _ in range(count):
            self._skip_element(kinds >> 4, depth + 1)
            self._skip_element(kinds & 0x0F, depth + 1)

    def _skip_element(self, kind: int, depth: int) -> None:
        """An element of a list, set or map: a boolean takes a byte there, and none as a field of a struct."""
        if kind in (BOOL_TRUE, BOOL_FALSE):
            self._advance(1)
        else:
            self.skip(kind, depth)

    def _byte(self) -> int:
        value = self._data[self._at]
        self._at += 1
        return value

    def _varint(self) -> int:
        data, at = self._data, self._at
        byte = data[at]
        value, shift = byte & 0x7F, 7
        while byte >= 0x80:
            at += 1
            if at - self._at >= _MAX_INTEGER_BYTES:
                raise ValueError("a number of more than 64 bits")
            byte = data[at]
            value |= (byte & 0x7F) << shift
            shift += 7
        self._at = at + 1
        return value

    def _advance(self, num_bytes: int) -> None:
        self._at += num_bytes
        if self._at > len(self._data):
            raise IndexError("the bytes end early")
