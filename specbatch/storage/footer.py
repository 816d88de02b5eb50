"""Parquet footers as raw bytes: their digest pins a file, and what they announce is checked before Arrow sees it.

Opening a Parquet file with Arrow deserialises every registered extension type that the stored schema names, which
has run code from hostile files before. So the stored schema is found here by a reader of our own, with the
extension keys made unreadable before Arrow sees them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from specbatch.storage.footer_facts import NotParquet as NotParquet
from specbatch.storage.footer_facts import OverLimit, Unsupported, read_facts

_MAGIC = b"PAR1"
_ENCRYPTED_MAGIC = b"PARE"
_TAIL_BYTES = 8
_FIRST_READ_BYTES = 64 << 10
MAX_FOOTER_BYTES = 64 << 20
_BUFFERS_BYTES = 64 << 20
_MIN_BUFFER_BYTES = 64 << 10
_MAX_BUFFER_BYTES = 1 << 20
_SCHEMA_KEY = b"ARROW:schema"
_EXTENSION_KEY = b"ARROW:extension:name"
_MASKED_KEY = b"SPECB:extension:name"


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
    """The footer of an open file, in one read where it is of ordinary size.

    Raises:
        NotParquet: no Parquet file, or cut short. Unsupported: encrypted. OverLimit: a footer of absurd size.
    """
    size_bytes = file.seek(0, 2)
    if size_bytes == 0:
        raise NotParquet("it is empty")
    if size_bytes < len(_MAGIC) + _TAIL_BYTES:
        raise NotParquet("it is not a Parquet file")
    start = max(size_bytes - _FIRST_READ_BYTES, 0)
    file.seek(start)
    end = _read_exactly(file, size_bytes - start)
    length = int.from_bytes(end[-8:-4], "little")
    if end[-4:] != _MAGIC or length > size_bytes - len(_MAGIC) - _TAIL_BYTES:
        raise _not_parquet(file, end[-4:])
    if length > MAX_FOOTER_BYTES:
        raise OverLimit(f"its footer has {length:,} bytes, of which at most {MAX_FOOTER_BYTES:,} are taken")
    if length + _TAIL_BYTES <= len(end):
        return Footer(size_bytes, end[-_TAIL_BYTES - length : -_TAIL_BYTES])
    file.seek(size_bytes - _TAIL_BYTES - length)
    return Footer(size_bytes, _read_exactly(file, length))


def _not_parquet(file: BinaryIO, tail: bytes) -> NotParquet:
    """Why a file without a proper end cannot be read."""
    file.seek(0)
    head = file.read(len(_MAGIC))
    if _ENCRYPTED_MAGIC in (head, tail):
        return Unsupported("it is an encrypted Parquet file")
    return NotParquet("it is a Parquet file cut short" if head == _MAGIC else "it is not a Parquet file")


def _read_exactly(file: BinaryIO, num_bytes: int) -> bytes:
    data = file.read(num_bytes)
    if len(data) != num_bytes:
        raise NotParquet("it became shorter while it was read")
    return data


def open_parquet(file: BinaryIO, footer: Footer) -> pq.ParquetFile:
    """Open a file for reading with page checksums verified and Parquet's own extension types read as plain values.

    The footer is not read again. Columns are read through small buffers: of a large row group no more is fetched than
    what is asked for. Call it only where ``extension_columns`` of this footer was empty.

    Raises:
        NotParquet: Arrow cannot make sense of the footer.
    """
    metadata = _open(_alone(footer)).metadata
    # Every column has a buffer: many columns share what a few have for themselves.
    buffer_bytes = max(min(_BUFFERS_BYTES // max(metadata.num_columns, 1), _MAX_BUFFER_BYTES), _MIN_BUFFER_BYTES)
    return _open(file, metadata, buffer_bytes)


def stored_schema(footer: Footer) -> pa.Schema:
    """The schema of a file, from its footer alone. Call it only where ``extension_columns`` was empty.

    Raises:
        NotParquet: Arrow cannot make sense of the footer.
    """
    return _open(_alone(footer)).schema_arrow


def _alone(footer: Footer) -> pa.NativeFile:
    """A file of nothing but this footer."""
    length = len(footer.metadata).to_bytes(4, "little")
    return pa.BufferReader(b"".join((_MAGIC, footer.metadata, length, _MAGIC)))


def _open(
    source: BinaryIO | pa.NativeFile, metadata: pq.FileMetaData | None = None, buffer_bytes: int = 0
) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(
            source,
            metadata=metadata,
            buffer_size=buffer_bytes,
            pre_buffer=False,
            page_checksum_verification=True,
            arrow_extensions_enabled=False,
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise NotParquet(f"its footer cannot be read ({_first_line(error)})") from error


def extension_columns(footer: Footer) -> list[tuple[str, str]]:
    """Columns with an Arrow extension type as (column path, extension name); nothing is deserialised.

    Raises:
        NotParquet: what ``read_facts`` raises, or the stored Arrow schema is damaged.
    """
    return extensions_in(read_facts(footer.metadata, footer.size_bytes).key_values)


def extensions_in(key_values: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """The same, from the key-value pairs of a footer."""
    found: list[tuple[str, str]] = []
    for key, value in key_values:
        if key != _SCHEMA_KEY:
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
