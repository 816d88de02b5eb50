"""Exports as Parquet: one merged file, a folder of several, or a folder for each value of some columns (Hive)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from specbatch.jobs.export.export import Exported, Source, pick, require_column
from specbatch.jobs.export.values import json_column
from specbatch.jobs.planning.destination import hive_escaped
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.sinks import Folder, open_folder, open_sink
from specbatch.storage.spool import new_spool_path

MAX_PARTITIONS = 256
"""Each has an open file."""
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"

_GROUP_BYTES = 32 << 20
_GROUP_ROWS = 1 << 16
_GROUPS_PER_FILE = 8
_BUFFERED_BYTES = 64 << 20
_COLUMN_BYTES, _TEXT_BYTES = 512, 16 << 10
"""What a column of a row group may take of the footer, which is written last: texts have two of theirs there."""

Opener = Callable[[str], AbstractContextManager[BinaryIO]]


def export_parquet(
    source: Source,
    place: str,
    *,
    overwrite: bool = False,
    max_file_bytes: int | None = None,
    partition_by: Sequence[str] = (),
) -> Exported:
    """Write the results as Parquet: a file, or a folder where ``max_file_bytes`` or ``partition_by`` is given.

    Args:
        max_file_bytes: a file ends before its next row group would lead beyond it.
        partition_by: columns that become folders ``COLUMN=VALUE`` and leave the files.

    Raises:
        SpecbatchError: JOB_COLUMN_MISSING, JOB_COLUMN_TYPE, JOB_CONFIG for the columns; what reading and the place
            raise.
    """
    options = _writer_options(source)
    done = Exported(place)
    if max_file_bytes is None and not partition_by:
        with open_sink(place, overwrite=overwrite) as sink:
            with pq.ParquetWriter(sink, source.schema, **options) as writer:
                for group in _row_groups(source.tables(), _group_bytes(None), _group_rows(source)):
                    _write(writer, group)
                    done.num_rows += group.num_rows
            done.num_files, done.num_bytes = 1, sink.tell()
        return done
    with open_folder(place, overwrite=overwrite) as folder:
        if partition_by:
            _Partitions(source, folder, options, max_file_bytes, partition_by, done).write()
        else:
            with _Files(folder.open, source.schema, options, max_file_bytes, done) as files:
                for group in _row_groups(source.tables(), _group_bytes(max_file_bytes), _group_rows(source)):
                    files.write(group)
                if not done.num_rows:
                    files.write(source.schema.empty_table())
    return done


def _writer_options(source: Source) -> dict[str, Any]:
    compression = source.fields.get("output", {}).get("compression", "zstd")
    return {"compression": compression, "write_page_checksum": True}


def _group_rows(source: Source) -> int:
    rows = source.fields.get("output", {}).get("row_group_rows")
    return rows if isinstance(rows, int) else _GROUP_ROWS


def _group_bytes(max_file_bytes: int | None) -> int:
    return _GROUP_BYTES if max_file_bytes is None else max(min(_GROUP_BYTES, max_file_bytes // _GROUPS_PER_FILE), 1)


def _row_groups(tables: Iterable[pa.Table], max_bytes: int, max_rows: int) -> Iterator[pa.Table]:
    """The same rows in larger tables, of about so many bytes in memory and at most so many rows."""
    pending: list[pa.Table] = []
    num_rows = num_bytes = 0
    for table in tables:
        start = 0
        while start < table.num_rows:
            left = table.num_rows - start
            fitting = max((max_bytes - num_bytes) * table.num_rows // max(table.nbytes, 1), 0 if pending else 1)
            piece = table.slice(start, min(left, max_rows - num_rows, fitting))
            if piece.num_rows:
                pending.append(piece)
                start += piece.num_rows
                num_rows += piece.num_rows
                num_bytes += table.nbytes * piece.num_rows // table.num_rows
            if start < table.num_rows or num_rows == max_rows:
                yield pa.concat_tables(pending)
                pending, num_rows, num_bytes = [], 0, 0
    if pending:
        yield pa.concat_tables(pending)


def _write(writer: pq.ParquetWriter, table: pa.Table) -> None:
    writer.write_table(table, row_group_size=max(table.num_rows, 1))


class _Files:
    """Files ``part-00000.parquet`` and so on: the next one begins where this one would become too large."""

    def __init__(
        self, open: Opener, schema: pa.Schema, options: dict[str, Any], max_bytes: int | None, done: Exported
    ) -> None:
        self._open, self._schema, self._options = open, schema, options
        self._max_bytes, self._done = max_bytes, done
        self._stack: ExitStack | None = None
        self._sink: BinaryIO
        self._writer: pq.ParquetWriter
        self._num_files = self._num_groups = 0
        self._footer_bytes = _footer_bytes(schema)

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *exception: Any) -> None:
        if exception[0] is None:
            self.close()
        elif self._stack is not None:  # what is not whole must not be made to look so
            self._stack.__exit__(*exception)
            self._stack = None

    def write(self, table: pa.Table) -> None:
        """Append one row group."""
        if self._max_bytes is not None and self._stack is not None:
            footer_bytes = (self._num_groups + 1) * self._footer_bytes
            if self._sink.tell() + table.nbytes + footer_bytes > self._max_bytes:
                self.close()
        if self._stack is None:
            stack = ExitStack()
            self._sink = stack.enter_context(self._open(f"part-{self._num_files:05d}.parquet"))
            self._writer = stack.enter_context(pq.ParquetWriter(self._sink, self._schema, **self._options))
            self._stack = stack
            self._num_files += 1
            self._num_groups = 0
        _write(self._writer, table)
        self._num_groups += 1
        self._done.num_rows += table.num_rows

    def close(self) -> None:
        """End the file that is open."""
        if self._stack is None:
            return
        self._writer.close()
        self._done.num_files += 1
        self._done.num_bytes += self._sink.tell()
        self._stack.close()
        self._stack = None


def _footer_bytes(schema: pa.Schema) -> int:
    """What one row group may take of the footer."""
    metadata = pq.ParquetFile(pa.BufferReader(_empty_file(schema))).metadata
    columns = [metadata.schema.column(index) for index in range(metadata.num_columns)]
    return sum(_TEXT_BYTES if "BYTE_ARRAY" in column.physical_type else _COLUMN_BYTES for column in columns)


def _empty_file(schema: pa.Schema) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    return sink.getvalue()


class _Partitions:
    """Splits rows by the values of some columns; every value has its files."""

    def __init__(
        self,
        source: Source,
        folder: Folder,
        options: dict[str, Any],
        max_bytes: int | None,
        columns: Sequence[str],
        done: Exported,
    ) -> None:
        self._source, self._folder, self._options = source, folder, options
        self._max_bytes, self._columns, self._done = max_bytes, list(columns), done
        names = [name for name in source.schema.names if name not in columns]
        for name in columns if source.has_parts else ():
            _check_type(name, source.full_schema)
        if len(set(columns)) < len(columns) or not names:
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG, "--partition-by: name each column once, and leave one that is none of them"
            )
        self._schema = pa.schema([source.schema.field(name) for name in names], metadata=source.schema.metadata)
        self._files: dict[str, _Files] = {}
        self._pending: dict[str, list[pa.Table]] = {}
        self._num_pending_bytes = 0

    def write(self) -> None:
        """Write all rows."""
        with ExitStack() as stack:
            for table in self._source.tables(self._columns):
                for place, rows in self._split(table).items():
                    if place not in self._files:
                        self._files[place] = stack.enter_context(self._new_files(place))
                    piece = pick(table.select(self._schema.names), rows)
                    self._pending.setdefault(place, []).append(piece)
                    self._num_pending_bytes += piece.nbytes
                if self._num_pending_bytes > _BUFFERED_BYTES:
                    self._flush()
            self._flush()

    def _split(self, table: pa.Table) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        columns = [json_column(table.column(name)) for name in self._columns]
        for row, values in enumerate(zip(*columns, strict=True)):
            pairs = zip(self._columns, values, strict=True)
            place = "/".join(f"{hive_escaped(name)}={_partition_text(value)}" for name, value in pairs)
            found.setdefault(place, []).append(row)
        return found

    def _new_files(self, place: str) -> _Files:
        if len(self._files) == MAX_PARTITIONS:
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG,
                f"--partition-by {', '.join(self._columns)} gives more than {MAX_PARTITIONS} folders; "
                "choose a column with fewer values",
            )

        def open_file(name: str) -> AbstractContextManager[BinaryIO]:
            path = f"{place}/{name}"
            return self._folder.open(path) if self._folder.is_local else _spooled(self._folder, path)

        return _Files(open_file, self._schema, self._options, self._max_bytes, self._done)

    def _flush(self) -> None:
        for place, pieces in self._pending.items():
            for group in _row_groups(pieces, _group_bytes(self._max_bytes), _group_rows(self._source)):
                self._files[place].write(group)
        self._pending.clear()
        self._num_pending_bytes = 0


@contextmanager
def _spooled(folder: Folder, name: str) -> Iterator[BinaryIO]:
    """A file of a remote folder that lies here until it is whole: of hundreds that are open none takes memory."""
    path = new_spool_path()
    try:
        with path.open("xb") as file:
            yield file
        _send(path, folder, name)
    finally:
        path.unlink(missing_ok=True)


def _send(path: Path, folder: Folder, name: str) -> None:
    with path.open("rb") as file, folder.open(name) as sink:
        shutil.copyfileobj(file, sink, 1 << 20)


def _check_type(name: str, schema: pa.Schema) -> None:
    require_column(name, schema, "--partition-by")
    kind = schema.field(name).type
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    fits = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_integer,
        pa.types.is_boolean,
        pa.types.is_date,
    )
    if not any(is_kind(inner) for is_kind in fits):
        raise SpecbatchError(
            ErrorCode.JOB_COLUMN_TYPE,
            f"--partition-by {name}: a column of type {kind} makes no folders; "
            "text, whole numbers, booleans and dates do",
        )


def _partition_text(value: Any) -> str:
    """A value as a folder's name has it. As Hive does it, an empty text cannot be told from a null."""
    if value is None or value == "":
        return NULL_PARTITION
    if isinstance(value, bool):
        return "true" if value else "false"
    return hive_escaped(str(value))
