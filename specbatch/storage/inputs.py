"""Reading the dataset: pin every file by its footer, check the columns, read runs of rows.

A file is pinned by its size and the digest of its footer, which names every column chunk's place and statistics. A
worker refuses a file whose pin no longer fits; damage inside the pages is caught by their checksums where the
writer made any.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import InputFile, Segment
from specbatch.schemas.rows import RESERVED_COLUMNS
from specbatch.storage.discovery import FoundFile, find_files
from specbatch.storage.footer import Footer, NotParquet, extension_columns, open_parquet, read_footer

_NUM_FOOTER_READERS = 8
_BATCH_ROWS = 4096

T = TypeVar("T")
R = TypeVar("R")


def discover(datasets: Sequence[str]) -> tuple[InputFile, ...]:
    """Find and pin every input file, in the order that numbers the rows.

    Raises:
        SpecbatchError: what ``find_files`` raises, and ``JOB_INPUT_CORRUPT`` or ``JOB_INPUT_EXTENSION``
            for the first file that cannot be used.
    """
    return tuple(_map_in_order(_pin, find_files(datasets)))


def read_schema(files: Sequence[InputFile]) -> pa.Schema:
    """The schema that all files share, with the column order of the first.

    Raises:
        SpecbatchError: ``JOB_SCHEMA_MISMATCH`` naming two files that differ by more than the order of their
            columns, or a file with two columns of one name; ``JOB_INPUT_CHANGED``, ``JOB_INPUT_CORRUPT``.
    """
    schemas = _map_in_order(_schema_of, files)
    names = schemas[0].names
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise SpecbatchError(
            ErrorCode.JOB_SCHEMA_MISMATCH, f"{files[0].path} has two columns named {doubled[0]!r}; rename one of them"
        )
    for file, schema in zip(files, schemas, strict=True):
        if difference := _difference(schemas[0], schema):
            raise SpecbatchError(
                ErrorCode.JOB_SCHEMA_MISMATCH,
                f"{files[0].path} and {file.path} differ: {difference}; give all files the same columns",
            )
    return schemas[0]


def check_columns(schema: pa.Schema, prompt_column: str, id_column: str | None) -> None:
    """Check that the named columns exist, that prompts are text, and that no column has a name of ours.

    Raises:
        SpecbatchError: ``JOB_COLUMN_MISSING``, ``JOB_COLUMN_TYPE``, ``JOB_COLUMN_RESERVED``.
    """
    _require(schema, prompt_column, "--prompt-column")
    if id_column is not None:
        _require(schema, id_column, "--id-column")
    kind = schema.field(prompt_column).type
    if not _is_text(kind):
        raise SpecbatchError(
            ErrorCode.JOB_COLUMN_TYPE, f"prompt column {prompt_column!r} is {kind}, not text; convert it to string"
        )
    if reserved := [name for name in schema.names if name in RESERVED_COLUMNS]:
        name = reserved[0]
        raise SpecbatchError(
            ErrorCode.JOB_COLUMN_RESERVED,
            f"input column {_listed(reserved)} has a name that specbatch writes; rename it in the dataset, "
            f"for example to 'input_{name}'",
        )


def read_segment(segment: Segment) -> pa.Table:
    """The rows of one segment with all columns, in chunks of at most a few thousand rows.

    String values are not checked for valid UTF-8. Row groups before ``row_start`` are not read.

    Raises:
        SpecbatchError: ``JOB_INPUT_MISSING``, ``JOB_INPUT_CHANGED`` (the pin does not fit),
            ``SHARD_INPUT_CORRUPT`` (a page is damaged).
    """
    path = Path(segment.path)
    with _open(path) as file:
        try:
            footer = read_footer(file)
        except NotParquet as error:  # it was Parquet when it was pinned
            raise _changed(path) from error
        _check_pin(path, footer, segment.size_bytes, segment.footer_sha256)
        parquet = _named(path, lambda: open_parquet(file, footer))
        try:
            return _read_rows(parquet, segment.row_start, segment.row_stop)
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise SpecbatchError(
                ErrorCode.SHARD_INPUT_CORRUPT,
                f"{path} cannot be read at rows {segment.row_start} to {segment.row_stop - 1} ({reason}); "
                "write the file again and submit it to a new output",
            ) from error


def _read_rows(parquet: pq.ParquetFile, row_start: int, row_stop: int) -> pa.Table:
    metadata = parquet.metadata
    assert 0 <= row_start <= row_stop <= metadata.num_rows, f"rows {row_start} to {row_stop} of {metadata.num_rows}"
    groups: list[int] = []
    first_row = row_start
    at = 0
    for group in range(metadata.num_row_groups):
        num_rows = metadata.row_group(group).num_rows
        if at < row_stop and at + num_rows > row_start:
            if not groups:
                first_row = at
            groups.append(group)
        at += num_rows
    batches: list[pa.RecordBatch] = []
    at = first_row
    # Batches, not whole row groups: a row group of gigabytes that many shards share is never in memory at once.
    for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=groups, use_threads=False):
        low, high = max(row_start - at, 0), min(row_stop - at, batch.num_rows)
        if low < high:
            batches.append(batch.slice(low, high - low))
        at += batch.num_rows
        if at >= row_stop:
            break
    table = pa.Table.from_batches(batches, parquet.schema_arrow)
    if table.num_rows != row_stop - row_start:
        raise OSError("it holds fewer rows than its footer says")
    return table


def _pin(found: FoundFile) -> InputFile:
    path = found.path
    with _open(path) as file:
        footer, parquet = _open_checked(path, file)
        metadata = parquet.metadata
        rows = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
            raise _corrupt(path, "its row counts contradict each other")
        return InputFile(found.name, str(path), footer.size_bytes, footer.sha256, rows)


def _schema_of(pinned: InputFile) -> pa.Schema:
    path = Path(pinned.path)
    with _open(path) as file:
        footer, parquet = _open_checked(path, file)
        _check_pin(path, footer, pinned.size_bytes, pinned.footer_sha256)
        return parquet.schema_arrow


def _open_checked(path: Path, file: BinaryIO) -> tuple[Footer, pq.ParquetFile]:
    """Open a file that nobody has looked into yet."""
    footer = _named(path, lambda: read_footer(file))
    if extensions := _named(path, lambda: extension_columns(footer)):
        column, extension = extensions[0]
        raise SpecbatchError(
            ErrorCode.JOB_INPUT_EXTENSION,
            f"{path} has the Arrow extension type {extension!r} in column {column!r}, which is not read for safety; "
            "write the column with a plain type",
        )
    return footer, _named(path, lambda: open_parquet(file, footer))


def _check_pin(path: Path, footer: Footer, size_bytes: int, footer_sha256: str) -> None:
    if (footer.size_bytes, footer.sha256) != (size_bytes, footer_sha256):
        raise _changed(path)


def _changed(path: Path) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_INPUT_CHANGED,
        f"{path} is not the file that was planned; restore it, or submit the new one to a new output",
    )


def _open(path: Path) -> BinaryIO:
    try:
        if not path.is_file():
            raise SpecbatchError(ErrorCode.JOB_INPUT_MISSING, f"{path} is not a file; check the path")
        return path.open("rb")
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise SpecbatchError(ErrorCode.JOB_INPUT_MISSING, f"{path} cannot be opened: {reason}") from error


def _named(path: Path, read: Callable[[], T]) -> T:
    """Run a footer function and put the file's name on its complaint."""
    try:
        return read()
    except NotParquet as error:
        raise _corrupt(path, str(error)) from error
    except OSError as error:
        raise _corrupt(path, (error.strerror or type(error).__name__).lower()) from error


def _corrupt(path: Path, reason: str) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_INPUT_CORRUPT, f"{path} cannot be read as Parquet: {reason}; write it again or leave it out"
    )


def _map_in_order(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Map with a few threads; of several failures the one of the earliest item is raised."""
    with ThreadPoolExecutor(_NUM_FOOTER_READERS) as pool:
        return list(pool.map(function, items))


def _difference(one: pa.Schema, other: pa.Schema) -> str | None:
    """What differs in names, types or nullability; None where only the order (or metadata) does."""
    for name in (*one.names, *other.names):
        if name not in other.names or name not in one.names:
            return f"only one of them has the column {name!r}"
    for left in one:
        right = other.field(left.name)
        if left.type != right.type:
            return f"column {left.name!r} is {left.type} in one and {right.type} in the other"
        if left.nullable != right.nullable:
            return f"column {left.name!r} may be null in one of them only"
    return None


def _require(schema: pa.Schema, column: str, option: str) -> None:
    if column in schema.names:
        return
    close = difflib.get_close_matches(column, schema.names, n=1)
    hint = f"did you mean {option} {close[0]}?" if close else f"name one with {option}"
    raise SpecbatchError(
        ErrorCode.JOB_COLUMN_MISSING,
        f"the dataset has no column {column!r}; its columns are {_listed(schema.names)}; {hint}",
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none at all"


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
