"""Parquet footers as raw bytes: their digest pins a file, and their metadata is searched before Arrow interprets it.

Opening a Parquet file with Arrow deserialises every registered extension type that the stored schema names, which
has run code from hostile files before. So the stored schema is found here by a reader of our own (Thrift's compact
protocol, as far as it is needed), with the extension keys made unreadable before Arrow sees them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

_MAGIC = b"PAR1"
_ENCRYPTED_MAGIC = b"PARE"
_TAIL_BYTES = 8
_EXTENSION_KEY = b"ARROW:extension:name"
_MASKED_KEY = b"SPECB:extension:name"

_KEY_VALUE_FIELD = 5  # FileMetaData.key_value_metadata in parquet.thrift
_BOOL_TRUE, _BOOL_FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = 1, 2, 3, 7, 8, 9, 10, 11, 12, 13
_VARINTS = (4, 5, 6)
_FIXED_BYTES = {_BYTE: 1, _DOUBLE: 8, _UUID: 16}
_MAX_DEPTH = 32


class NotParquet(Exception):  # noqa: N818 - an answer, turned into a coded error by whoever knows the file's name
    """The bytes are no readable Parquet file; the message says why."""


@dataclass(frozen=True, slots=True)
class Footer:
    """The end of one Parquet file.

    Attributes:
        size_bytes: of the whole file.
        metadata: the serialised ``FileMetaData``.
    """

    size_bytes: int
    metadata: bytes

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the metadata bytes."""
        return hashlib.sha256(self.metadata).hexdigest()


def read_footer(file: BinaryIO) -> Footer:
    """The footer of an open file.

    Raises:
        NotParquet: no Parquet file, cut short, or encrypted.
    """
    size_bytes = file.seek(0, 2)
    if size_bytes == 0:
        raise NotParquet("it is empty")
    if size_bytes < len(_MAGIC) + _TAIL_BYTES:
        raise NotParquet("it is not a Parquet file")
    file.seek(0)
    head = file.read(len(_MAGIC))
    file.seek(size_bytes - _TAIL_BYTES)
    tail = file.read(_TAIL_BYTES)
    if _ENCRYPTED_MAGIC in (head, tail[4:]):
        raise NotParquet("it is an encrypted Parquet file")
    if head != _MAGIC:
        raise NotParquet("it is not a Parquet file")
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > size_bytes - len(_MAGIC) - _TAIL_BYTES:
        raise NotParquet("it is a Parquet file cut short")
    file.seek(size_bytes - _TAIL_BYTES - length)
    return Footer(size_bytes, file.read(length))


def open_parquet(file: BinaryIO, footer: Footer) -> pq.ParquetFile:
    """Open a file for reading with page checksums verified and Parquet's own extension types read as plain values.

    Call it only where ``extension_columns`` of this footer was empty.

    Raises:
        NotParquet: Arrow cannot make sense of the footer.
    """
    file.seek(0)
    try:
        return pq.ParquetFile(
            file,
            metadata=None,
            pre_buffer=False,
            page_checksum_verification=True,
            arrow_extensions_enabled=False,
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise NotParquet(f"its footer cannot be read ({_first_line(error)})") from error


def extension_columns(footer: Footer) -> list[tuple[str, str]]:
    """Columns with an Arrow extension type as (column path, extension name); nothing is deserialised.

    Raises:
        NotParquet: the stored Arrow schema is damaged.
    """
    found: list[tuple[str, str]] = []
    for key, value in _key_values(footer.metadata):
        if key != b"ARROW:schema":
            continue
        try:
            message = base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise NotParquet("its stored Arrow schema is damaged") from error
        if _EXTENSION_KEY in message:
            found.extend(_masked_extensions(message))
    return found


def _masked_extensions(message: bytes) -> list[tuple[str, str]]:
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(message.replace(_EXTENSION_KEY, _MASKED_KEY)))
    except (pa.ArrowException, OSError) as error:
        raise NotParquet("its stored Arrow schema is damaged") from error
    named = [
        (path, field.metadata[_MASKED_KEY].decode("utf-8", "replace"))
        for top in schema
        for path, field in _walk(top.name, top)
        if field.metadata and _MASKED_KEY in field.metadata
    ]
    # The key is there but on no field that we know how to reach: refused all the same.
    return named or [("?", "?")]


def _walk(path: str, field: pa.Field) -> Iterator[tuple[str, pa.Field]]:
    yield path, field
    inner = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    for index in range(inner.num_fields):
        child = inner.field(index)
        yield from _walk(f"{path}.{child.name}", child)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _key_values(metadata: bytes) -> list[tuple[bytes, bytes]]:
    """The key-value pairs of a serialised ``FileMetaData``."""
    if b"ARROW:schema" not in metadata:
        return []
    reader = _Compact(metadata)
    pairs: list[tuple[bytes, bytes]] = []
    try:
        for field, kind in reader.struct_fields():
            if field == _KEY_VALUE_FIELD and kind == _LIST:
                count, _ = reader.list_header()
                pairs.extend(reader.key_value() for _ in range(count))
            else:
                reader.skip(kind, 0)
    except (IndexError, ValueError) as error:
        raise NotParquet("its footer is damaged") from error
    return pairs


class _Compact:
    """A cursor over Thrift's compact protocol. Running off the end raises IndexError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def struct_fields(self) -> Iterator[tuple[int, int]]:
        """(field id, type) of each field; the caller consumes the value before asking for the next."""
        field = 0
        while (header := self._byte()) != 0:
            delta, kind = header >> 4, header & 0x0F
            if delta:
                field += delta
            else:
                raw = self._varint()
                field = (raw >> 1) ^ -(raw & 1)
            yield field, kind

    def list_header(self) -> tuple[int, int]:
        header = self._byte()
        count = header >> 4
        return (self._varint() if count == 15 else count), header & 0x0F

    def key_value(self) -> tuple[bytes, bytes]:
        values = {1: b"", 2: b""}
        for field, kind in self.struct_fields():
            if field in values and kind == _BINARY:
                values[field] = self._binary()
            else:
                self.skip(kind, 1)
        return values[1], values[2]

    def skip(self, kind: int, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        if kind in _VARINTS:
            self._varint()
        elif kind == _BINARY:
            self._binary()
        elif kind == _STRUCT:
            for _, inner in self.struct_fields():
                self.skip(inner, depth + 1)
        elif kind in (_LIST, _SET):
            count, inner = self.list_header()
            for _ in range(count):
                self._skip_element(inner, depth + 1)
        elif kind == _MAP:
            count = self._varint()
            kinds = self._byte() if count else 0
            for _ in range(count):
                self._skip_element(kinds >> 4, depth + 1)
                self._skip_element(kinds & 0x0F, depth + 1)
        elif kind in _FIXED_BYTES:
            self._advance(_FIXED_BYTES[kind])
        elif kind not in (_BOOL_TRUE, _BOOL_FALSE):
            raise ValueError(f"unknown type {kind}")

    def _skip_element(self, kind: int, depth: int) -> None:
        """An element of a list, set or map: a boolean takes a byte there, and none as a field of a struct."""
        if kind in (_BOOL_TRUE, _BOOL_FALSE):
            self._advance(1)
        else:
            self.skip(kind, depth)

    def _byte(self) -> int:
        value = self._data[self._at]
        self._at += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def _binary(self) -> bytes:
        length = self._varint()
        start = self._at
        self._advance(length)
        return self._data[start : self._at]

    def _advance(self, num_bytes: int) -> None:
        self._at += num_bytes
        if self._at > len(self._data):
            raise IndexError("the footer ends early")
