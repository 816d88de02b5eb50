"""Reading the dataset, local or on S3: pin every file by its footer, check the columns, read runs of rows.

A file is pinned by its size and the digest of its footer, which names every column chunk's place and statistics. A
worker refuses a file whose pin no longer fits; damage inside the pages is caught by their checksums where the
writer made any. An open object stays one version: a read of another one is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import pyarrow as pa

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import InputFile, Segment
from specbatch.schemas.rows import RESERVED_COLUMNS
from specbatch.storage.discovery import FoundFile, find_files
from specbatch.storage.footer import extensions_in, open_parquet, read_footer, stored_schema
from specbatch.storage.footer_facts import NotParquet, OverLimit, Unsupported, read_facts
from specbatch.storage.row_reader import KeptReaders, RowReader
from specbatch.storage.store import NotFound, is_s3

_NUM_FOOTER_READERS = 16

_kept = KeptReaders()

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Inputs:
    """A pinned dataset.

    Attributes:
        files: in the order that numbers the rows; files without rows are among them.
        schema: what all files share, with the column order of the first.
    """

    files: tuple[InputFile, ...]
    schema: pa.Schema


def read_inputs(datasets: Sequence[str]) -> Inputs:
    """Find, pin and check every input file. Each footer is read once, many at a time.

    Raises:
        SpecbatchError: what ``find_files`` raises; for the first file that cannot be used ``JOB_INPUT_CORRUPT``,
            ``JOB_INPUT_EXTENSION``, ``JOB_INPUT_UNSUPPORTED`` or ``JOB_INPUT_LIMIT``; ``JOB_SCHEMA_MISMATCH`` naming
            two files that differ by more than the order of their columns, or a file with two columns of one name.
    """
    files: list[InputFile] = []
    schema: pa.Schema | None = None
    # One schema is kept, the others are compared as they come: a hundred thousand of them are gigabytes.
    for file, found in _map_in_order(_pin, find_files(datasets)):
        if schema is None:
            schema = _distinct(file, found)
        elif difference := _difference(schema, found):
            raise SpecbatchError(
                ErrorCode.JOB_SCHEMA_MISMATCH,
                f"{files[0].path} and {file.path} differ: {difference}; give all files the same columns",
            )
        files.append(file)
    assert schema is not None, "find_files finds a file or raises"
    return Inputs(tuple(files), schema)


def discover(datasets: Sequence[str]) -> tuple[InputFile, ...]:
    """The files of ``read_inputs``."""
    return read_inputs(datasets).files


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

    String values are not checked for valid UTF-8. Row groups before ``row_start`` are not read, and of a row group in
    which the last segment ended only what comes behind it. All reads see one version of the file: an object that is
    replaced meanwhile is refused.

    Raises:
        SpecbatchError: ``JOB_INPUT_MISSING``, ``JOB_INPUT_CHANGED`` (the pin does not fit),
            ``SHARD_INPUT_CORRUPT`` (a page is damaged); for S3 also ``JOB_STORE_LOST``, ``JOB_STORE_DENIED``.
    """
    path = segment.path
    pin = (path, segment.size_bytes, segment.footer_sha256)
    reader = _kept.take(pin) or _open_reader(*pin)
    try:
        table = reader.read(segment.row_start, segment.row_stop)
    except BaseException as error:
        reader.close()
        if not isinstance(error, pa.ArrowException | OSError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SpecbatchError(
            ErrorCode.SHARD_INPUT_CORRUPT,
            f"{path} cannot be read at rows {segment.row_start} to {segment.row_stop - 1} ({reason}); "
            "write the file again and submit it to a new output",
        ) from error
    _kept.keep(pin, reader)
    return table


def _open_reader(path: str, size_bytes: int, footer_sha256: str) -> RowReader:
    """A file that must fit its pin."""
    file = _open(path)
    try:
        try:
            footer = read_footer(file)
        except NotParquet as error:  # it was Parquet when it was pinned
            raise _changed(path) from error
        if (footer.size_bytes, footer.sha256) != (size_bytes, footer_sha256):
            raise _changed(path)
        return RowReader(path, file, _named(path, lambda: open_parquet(file, footer)))
    except BaseException:
        file.close()
        raise


def _pin(found: FoundFile) -> tuple[InputFile, pa.Schema]:
    with _open(found.path, found.etag, found.num_bytes) as file:
        footer = _named(found.path, lambda: read_footer(file))
    facts = _named(found.path, lambda: read_facts(footer.metadata, footer.size_bytes))
    if extensions := _named(found.path, lambda: extensions_in(facts.key_values)):
        column, extension = extensions[0]
        raise SpecbatchError(
            ErrorCode.JOB_INPUT_EXTENSION,
            f"{found.path} has the Arrow extension type {extension!r} in column {column!r}, which is not read for "
            "safety; write the column with a plain type",
        )
    schema = _named(found.path, lambda: stored_schema(footer))
    return InputFile(found.name, found.path, footer.size_bytes, footer.sha256, facts.row_group_rows), schema


def _changed(path: str) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_INPUT_CHANGED,
        f"{path} is not the file that was planned; restore it, or submit the new one to a new output",
    )


def _open(path: str, etag: str | None = None, num_bytes: int | None = None) -> BinaryIO:
    if is_s3(path):
        from specbatch.storage.s3_client import bucket_of
        from specbatch.storage.s3_file import open_object

        bucket, key = bucket_of(path, "input")
        try:
            return open_object(bucket, key, etag, num_bytes)
        except NotFound as error:
            raise SpecbatchError(
                ErrorCode.JOB_INPUT_MISSING, f"{bucket.uri(key)} is no longer there; restore it"
            ) from error
    try:
        if not Path(path).is_file():
            raise SpecbatchError(ErrorCode.JOB_INPUT_MISSING, f"{path} is not a file; check the path")
        return Path(path).open("rb")
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise SpecbatchError(ErrorCode.JOB_INPUT_MISSING, f"{path} cannot be opened: {reason}") from error


def _named(path: str, read: Callable[[], T]) -> T:
    """Run a footer function and put the file's name on its complaint."""
    try:
        return read()
    except Unsupported as error:
        text = f"{path} cannot be read here: {error}; write it again, plain or with zstd"
        raise SpecbatchError(ErrorCode.JOB_INPUT_UNSUPPORTED, text) from error
    except OverLimit as error:
        text = f"{path} is refused: {error}; write it again with smaller row groups"
        raise SpecbatchError(ErrorCode.JOB_INPUT_LIMIT, text) from error
    except NotParquet as error:
        raise _corrupt(path, str(error)) from error
    except OSError as error:
        raise _corrupt(path, (error.strerror or type(error).__name__).lower()) from error


def _corrupt(path: str, reason: str) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_INPUT_CORRUPT, f"{path} cannot be read as Parquet: {reason}; write it again or leave it out"
    )


def _map_in_order(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Map with some threads; of several failures the one of the earliest item is raised."""
    with ThreadPoolExecutor(_NUM_FOOTER_READERS) as pool:
        try:
            yield from pool.map(function, items)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _distinct(file: InputFile, schema: pa.Schema) -> pa.Schema:
    names = schema.names
    if len(set(names)) < len(names):
        doubled = min(name for name in names if names.count(name) > 1)
        raise SpecbatchError(
            ErrorCode.JOB_SCHEMA_MISMATCH, f"{file.path} has two columns named {doubled!r}; rename one of them"
        )
    return schema


def _difference(one: pa.Schema, other: pa.Schema) -> str | None:
    """What differs in names, types or nullability; None where only the order (or metadata) does."""
    if one.equals(other, check_metadata=False):
        return None
    for name in (*one.names, *other.names):
        if name not in other.names or name not in one.names:
            return f"only one of them has the column {name!r}"
    if len(one.names) != len(other.names):
        return "one of them has a column twice"
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
