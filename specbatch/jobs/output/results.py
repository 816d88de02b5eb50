"""Reading result rows back: all of a finished job with its amendments applied, and the failed ones.

Parts are read in batches, and amendments beside them in the same order, so that no job is too large to be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import pyarrow as pa

from specbatch.jobs.output.amended import amendment_key, read_amendments
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import Manifest
from specbatch.schemas.rows import ResultForm
from specbatch.storage.footer import NotParquet, open_parquet, read_footer
from specbatch.storage.parts import result_schema
from specbatch.storage.store import NotFound, Store

Pair = tuple[int, int]
"""(row_id, sample_index)."""

_BATCH_ROWS = 1024
_BATCH_BYTES = 16 << 20


def result_prefix(fields: Mapping[str, Any]) -> str:
    """What stands before the names of the result columns, by the fields of a job's identity."""
    return str(fields.get("output", {}).get("prefix", ""))


def read_results(store: Store, manifest: Manifest, columns: Sequence[str] | None = None) -> pa.Table:
    """All results of a finished job in the order of ``row_id`` and sample, amendments applied.

    Args:
        columns: only these, in this order; all if None.

    Raises:
        SpecbatchError: JOB_INTEGRITY, a part is missing or cannot be read; JOB_COLUMN_MISSING.
    """
    tables = list(iter_results(store, manifest, columns))
    return pa.concat_tables(tables) if tables else results_schema(store, manifest, columns).empty_table()


def results_schema(store: Store, manifest: Manifest, columns: Sequence[str] | None = None) -> pa.Schema:
    """The columns of a job's results, by its first part.

    A job of no rows has no part, and nothing in its output says what columns its dataset had: of all columns it has
    those that every result has, and one that is asked for by another name is of the type null.

    Raises:
        SpecbatchError: as ``read_results``.
    """
    keys = _keys(manifest)
    if not keys:
        return _schema_without_parts(manifest.identity.fields, columns)
    with _PartReader(store, keys[0]) as part:
        return _chosen(part.schema, columns)


def iter_results(store: Store, manifest: Manifest, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The results of ``read_results`` in small tables; only a few of them are ever in memory.

    Raises:
        SpecbatchError: as ``read_results``.
    """
    chain = read_amendments(store)
    prefix = result_prefix(manifest.identity.fields)
    keys = _keys(manifest)
    if not keys:
        return
    schema = results_schema(store, manifest, columns)
    wanted = None if columns is None else [*columns, *_pair_names(prefix)]
    amended = [
        _Cursor(
            _batches(store, [amendment_key(number, key) for key in _keys(amendment)], wanted, schema, prefix), prefix
        )
        for number, amendment in enumerate(chain, start=1)
    ]
    for pairs, table in _batches(store, keys, wanted, schema, prefix):
        if not amended or not pairs:
            yield table
            continue
        new: dict[Pair, pa.Table] = {}
        for cursor in amended:  # a later one takes the place of an earlier one
            new.update(cursor.until(pairs[-1]))
        yield pa.concat_tables(_replaced(table, pairs, new)) if new else table


def read_failures(store: Store, keys: Iterable[str], prefix: str = "") -> dict[Pair, str]:
    """The failed results of some parts: (row_id, sample_index) and error code. Reads those columns only.

    Args:
        prefix: of the result columns.

    Raises:
        SpecbatchError: JOB_INTEGRITY, a part is missing or cannot be read.
    """
    return {pair: code for pair, code in read_outcomes(store, keys, prefix) if code is not None}


def read_outcomes(store: Store, keys: Iterable[str], prefix: str = "") -> Iterator[tuple[Pair, str | None]]:
    """(row_id, sample_index) of every result of some parts, with its error code, None where it is ok."""
    status, code = f"{prefix}status", f"{prefix}error_code"
    for key in keys:
        table = read_part(store, key, [*_pair_names(prefix), status, code])
        outcomes = zip(table.column(status).to_pylist(), table.column(code).to_pylist(), strict=True)
        for pair, (state, why) in zip(_pairs(table, prefix), outcomes, strict=True):
            yield pair, None if state == "ok" else why or ErrorCode.JOB_INTERNAL.value


def read_part(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one part, page checksums verified.

    Raises:
        SpecbatchError: JOB_INTEGRITY, it is missing or cannot be read; JOB_COLUMN_MISSING.
    """
    with _PartReader(store, key) as part:
        schema = _chosen(part.schema, columns)
        tables = [part.shaped(table, schema) for table in part.tables(columns)]
        return pa.concat_tables(tables) if tables else schema.empty_table()


class _PartReader:
    """One open part; what is wrong with it is told with its name."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        try:
            self._file = store.open(key)
        except NotFound:
            raise self._bad("is missing") from None
        try:
            self._parquet = open_parquet(self._file, read_footer(self._file))
        except BaseException as error:
            self._file.close()
            self._raise(error)

    def __enter__(self) -> _PartReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @property
    def schema(self) -> pa.Schema:
        """Of all columns."""
        return self._parquet.schema_arrow

    def tables(self, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        """The rows in small tables, with these columns at least: a dot in a name may bring others along."""
        wanted = None if columns is None else list(columns)
        metadata = self._parquet.metadata
        num_bytes = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        batch_rows = max(min(_BATCH_BYTES * metadata.num_rows // max(num_bytes, 1), _BATCH_ROWS), 1)
        try:
            for batch in self._parquet.iter_batches(batch_rows, columns=wanted, use_threads=False):
                yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError) as error:
            self._raise(error)

    def shaped(self, table: pa.Table, schema: pa.Schema) -> pa.Table:
        """The same rows under one schema: parts come from files whose metadata may differ, and only that."""
        try:
            return pa.Table.from_arrays([table.column(name) for name in schema.names], schema=schema)
        except (KeyError, ValueError, TypeError):  # TypeError: a column that should not be null
            raise self._bad("has other columns than it should") from None

    def pairs(self, table: pa.Table, prefix: str) -> list[Pair]:
        """(row_id, sample_index) of some of its rows."""
        try:
            return list(_pairs(table, prefix))
        except KeyError:
            raise self._bad("has other columns than it should") from None

    def _raise(self, error: BaseException) -> NoReturn:
        if not isinstance(error, NotParquet | pa.ArrowException | OSError):
            raise error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise self._bad(f"cannot be read ({reason})") from error

    def _bad(self, reason: str) -> SpecbatchError:
        return SpecbatchError(
            ErrorCode.JOB_INTEGRITY,
            f"{self._store.uri}/{self._key} {reason}; "
            f"specbatch repair {self._store.uri} --output NEW makes a sound copy",
        )


class _Cursor:
    """The results of an amendment, taken in ascending order."""

    def __init__(self, batches: Iterator[tuple[list[Pair], pa.Table]], prefix: str) -> None:
        self._rows = ((pair, table.slice(place, 1)) for pairs, table in batches for place, pair in enumerate(pairs))
        self._next = next(self._rows, None)

    def until(self, last: Pair) -> Iterator[tuple[Pair, pa.Table]]:
        """The next results up to a pair, which is among them."""
        while self._next is not None and self._next[0] <= last:
            yield self._next
            self._next = next(self._rows, None)


def _keys(manifest: Manifest) -> list[str]:
    """Parts in the order of their rows: by number, as a millionth part has a longer name."""
    return sorted((part.path for part in manifest.commit.parts), key=lambda path: (len(path), path))


def _batches(
    store: Store, keys: Sequence[str], wanted: Sequence[str] | None, schema: pa.Schema, prefix: str
) -> Iterator[tuple[list[Pair], pa.Table]]:
    """Pairs and rows of some parts, under one schema."""
    for key in keys:
        with _PartReader(store, key) as part:
            for table in part.tables(wanted):
                yield part.pairs(table, prefix), part.shaped(table, schema)


def _chosen(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    if columns is None:
        return schema
    for name in columns:
        if name not in schema.names:
            from specbatch.schemas.suggest import did_you_mean

            raise SpecbatchError(
                ErrorCode.JOB_COLUMN_MISSING,
                f"the results have no column {name!r}; "
                + did_you_mean(name, schema.names, f"their columns are {', '.join(schema.names)}"),
            )
    return pa.schema([schema.field(name) for name in columns], metadata=schema.metadata)


def _schema_without_parts(fields: Mapping[str, Any], columns: Sequence[str] | None) -> pa.Schema:
    with_logprobs = bool(fields.get("generation", {}).get("logprobs"))
    form = ResultForm(prefix=result_prefix(fields), with_logprobs=with_logprobs)
    schema = result_schema(pa.schema([]), form)
    if columns is None:
        return schema
    return pa.schema([schema.field(name) if name in schema.names else pa.field(name, pa.null()) for name in columns])


def _pair_names(prefix: str) -> tuple[str, str]:
    return f"{prefix}row_id", f"{prefix}sample_index"


def _pairs(table: pa.Table, prefix: str) -> Iterator[Pair]:
    row_id, sample = _pair_names(prefix)
    return zip(table.column(row_id).to_pylist(), table.column(sample).to_pylist(), strict=True)


def _replaced(table: pa.Table, pairs: Sequence[Pair], new: Mapping[Pair, pa.Table]) -> Iterator[pa.Table]:
    """The rows in order, each that was amended by its new row; slices, so that nothing is copied."""
    start = 0
    for place, pair in enumerate(pairs):
        if pair in new:
            yield table.slice(start, place - start)
            yield new[pair]
            start = place + 1
    yield table.slice(start)
