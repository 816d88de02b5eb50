"""What a Parquet footer announces, read by a parser of our own and judged before Arrow is shown the file.

Sizes in a footer are claims; memory and threads are spent on them. So encrypted files, compressions that Arrow here
does not have, chunks that lie outside of the file, and sizes that only a bomb has are refused while planning.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pyarrow as pa

from specbatch.storage import thrift
from specbatch.storage.thrift import CompactReader

MAX_GROUP_ROWS = (1 << 31) - 1
MAX_CHUNK_BYTES = 64 << 30
BOMB_BYTES = 1 << 30
BOMB_RATIO = 1000
MAX_SCHEMA_DEPTH = 64
MAX_COLUMNS = 100_000

_CODECS = {1: "snappy", 2: "gzip", 3: "lzo", 4: "brotli", 5: "lz4", 6: "zstd", 7: "lz4_raw"}
_NOT_IN_ARROW = frozenset({"lzo"})

# Field numbers of parquet.thrift.
_SCHEMA, _NUM_ROWS, _ROW_GROUPS, _KEY_VALUES, _ENCRYPTION = 2, 3, 4, 5, 8
_NUM_CHILDREN = 5
_GROUP_COLUMNS, _GROUP_ROWS = 1, 3
_CHUNK_FILE, _CHUNK_META, _CHUNK_CRYPTO, _CHUNK_ENCRYPTED = 1, 3, 8, 9
_META_PATH, _META_CODEC, _META_UNCOMPRESSED, _META_COMPRESSED, _META_PAGES, _META_DICTIONARY = 3, 4, 6, 7, 9, 11
_META_NUMBERS = frozenset({_META_CODEC, _META_UNCOMPRESSED, _META_COMPRESSED, _META_PAGES, _META_DICTIONARY})


class NotParquet(Exception):  # noqa: N818 - an answer, turned into a coded error by whoever knows the file's name
    """The bytes are no readable Parquet file; the message says why."""


class Unsupported(NotParquet):
    """A Parquet file that cannot be read here: encrypted, in pieces, or compressed in an unknown way."""


class OverLimit(NotParquet):
    """A Parquet file that announces more than is taken; the message says what."""


@dataclass(frozen=True, slots=True)
class FooterFacts:
    """What planning needs of a footer.

    Attributes:
        row_group_rows: rows of each row group, in file order.
        key_values: the stored pairs, each occurrence of a key.
    """

    row_group_rows: tuple[int, ...]
    key_values: list[tuple[bytes, bytes]]


def read_facts(metadata: bytes, size_bytes: int) -> FooterFacts:
    """Parse and judge a serialised ``FileMetaData``.

    Args:
        size_bytes: of the whole file.

    Raises:
        NotParquet: damaged. Unsupported: encrypted, in pieces, or compressed in an unknown way. OverLimit: sizes that
            no honest file has.
    """
    reader = CompactReader(metadata)
    rows: list[int] = []
    pairs: list[tuple[bytes, bytes]] = []
    num_rows = -1
    try:
        for field, kind in reader.fields():
            if field == _ROW_GROUPS and kind == thrift.LIST:
                count, _ = reader.list_header()
                rows.extend(_row_group(reader, size_bytes) for _ in range(count))
            elif field == _KEY_VALUES and kind == thrift.LIST:
                count, _ = reader.list_header()
                pairs.extend(_key_value(reader) for _ in range(count))
            elif field == _SCHEMA and kind == thrift.LIST:
                _check_schema(reader)
            elif field == _NUM_ROWS and kind == thrift.I64:
                num_rows = reader.integer()
            elif field == _ENCRYPTION:
                raise Unsupported("it is an encrypted Parquet file")
            else:
                reader.skip(kind)
    except (IndexError, ValueError) as error:
        raise NotParquet("its footer is damaged") from error
    if min(rows, default=0) < 0 or sum(rows) != num_rows:
        raise NotParquet("its row counts contradict each other")
    return FooterFacts(tuple(rows), pairs)


def _row_group(reader: CompactReader, size_bytes: int) -> int:
    """Rows of a row group."""
    num_rows = -1
    for field, kind in reader.fields():
        if field == _GROUP_COLUMNS and kind == thrift.LIST:
            count, _ = reader.list_header()
            for _ in range(count):
                _check_chunk(reader, size_bytes)
        elif field == _GROUP_ROWS and kind == thrift.I64:
            num_rows = reader.integer()
        else:
            reader.skip(kind)
    if num_rows > MAX_GROUP_ROWS:
        raise OverLimit(f"it announces a row group of {num_rows:,} rows, of which at most {MAX_GROUP_ROWS:,} are taken")
    return num_rows


def _check_chunk(reader: CompactReader, size_bytes: int) -> None:
    for field, kind in reader.fields():
        if field == _CHUNK_META and kind == thrift.STRUCT:
            _check_chunk_meta(reader, size_bytes)
        elif field in (_CHUNK_CRYPTO, _CHUNK_ENCRYPTED):
            raise Unsupported("it is an encrypted Parquet file")
        elif field == _CHUNK_FILE and kind == thrift.BINARY:
            if reader.binary():
                raise Unsupported("it only describes columns that lie in other files")
        else:
            reader.skip(kind)


def _check_chunk_meta(reader: CompactReader, size_bytes: int) -> None:
    path: list[bytes] = []
    numbers = dict.fromkeys(_META_NUMBERS, 0)
    for field, kind in reader.fields():
        if field in numbers and kind in thrift.INTEGERS:
            numbers[field] = reader.integer()
        elif field == _META_PATH and kind == thrift.LIST:
            count, _ = reader.list_header()
            path = [reader.binary() for _ in range(count)]
        else:
            reader.skip(kind)
    uncompressed, compressed = numbers[_META_UNCOMPRESSED], numbers[_META_COMPRESSED]
    start = min(filter(None, (numbers[_META_DICTIONARY], numbers[_META_PAGES])), default=0)
    if min(numbers.values()) < 0 or start + compressed > size_bytes:
        raise NotParquet("its footer points outside of the file")
    if problem := _codec_problem(numbers[_META_CODEC]):
        raise Unsupported(f"column {_shown(path)} is compressed with {problem}")
    if uncompressed > MAX_CHUNK_BYTES or uncompressed > max(BOMB_BYTES, BOMB_RATIO * compressed):
        raise OverLimit(
            f"column {_shown(path)} announces {uncompressed:,} bytes in a row group of {compressed:,} compressed"
        )


@functools.cache
def _codec_problem(codec: int) -> str | None:
    """What to call a compression that cannot be read here; None for one that can."""
    if codec == 0:
        return None
    name = _CODECS.get(codec)
    if name is None:
        return f"an unknown codec (number {codec})"
    return None if name not in _NOT_IN_ARROW and pa.Codec.is_available(name) else name.upper()


def _shown(path: list[bytes]) -> str:
    return repr(b".".join(path).decode("utf-8", "replace"))


def _key_value(reader: CompactReader) -> tuple[bytes, bytes]:
    values = {1: b"", 2: b""}
    for field, kind in reader.fields():
        if field in values and kind == thrift.BINARY:
            values[field] = reader.binary()
        else:
            reader.skip(kind)
    return values[1], values[2]


def _check_schema(reader: CompactReader) -> None:
    """The schema is a tree in prefix order; Arrow walks it by recursion, which a deep one would turn into a crash."""
    count, _ = reader.list_header()
    if count > MAX_COLUMNS:
        raise OverLimit(f"it announces {count:,} columns, of which at most {MAX_COLUMNS:,} are taken")
    missing: list[int] = []
    for _ in range(count):
        num_children = 0
        for field, kind in reader.fields():
            if field == _NUM_CHILDREN and kind == thrift.I32:
                num_children = reader.integer()
            else:
                reader.skip(kind)
        while missing and missing[-1] == 0:
            missing.pop()
        if missing:
            missing[-1] -= 1
        missing.append(num_children)
        if len(missing) > MAX_SCHEMA_DEPTH:
            raise OverLimit(f"its columns are nested more than {MAX_SCHEMA_DEPTH} deep")
