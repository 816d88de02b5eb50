"""Reading result rows back: all of a finished job with its amendments applied, and the failed ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from specbatch.jobs.amended import amendment_key, read_amendments
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import Manifest
from specbatch.storage.footer import NotParquet, open_parquet, read_footer
from specbatch.storage.store import NotFound, Store

Pair = tuple[int, int]
"""(row_id, sample_index)."""


def read_results(store: Store, manifest: Manifest) -> pa.Table:
    """All results of a finished job in the order of ``row_id`` and sample, amendments applied.

    Raises:
        SpecbatchError: JOB_INTEGRITY, a part is missing or cannot be read.
    """
    amended: dict[Pair, pa.Table] = {}
    for number, amendment in enumerate(read_amendments(store), start=1):
        for part in amendment.commit.parts:
            table = read_part(store, amendment_key(number, part.path))
            amended.update((pair, table.slice(place, 1)) for place, pair in enumerate(_pairs(table)))
    tables = [read_part(store, part.path) for part in manifest.commit.parts]
    return pa.concat_tables([piece for table in tables for piece in _replace(table, amended)])


def read_failures(store: Store, keys: Iterable[str]) -> dict[Pair, str]:
    """The failed results of some parts: (row_id, sample_index) and error code. Reads those columns only.

    Raises:
        SpecbatchError: JOB_INTEGRITY, a part is missing or cannot be read.
    """
    return {pair: code for pair, code in read_outcomes(store, keys) if code is not None}


def read_outcomes(store: Store, keys: Iterable[str]) -> Iterator[tuple[Pair, str | None]]:
    """(row_id, sample_index) of every result of some parts, with its error code, None where it is ok."""
    for key in keys:
        table = read_part(store, key, ["row_id", "sample_index", "status", "error_code"])
        outcomes = zip(table.column("status").to_pylist(), table.column("error_code").to_pylist(), strict=True)
        for pair, (status, code) in zip(_pairs(table), outcomes, strict=True):
            yield pair, None if status == "ok" else code or ErrorCode.JOB_INTERNAL.value


def read_part(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one part, page checksums verified.

    Raises:
        SpecbatchError: JOB_INTEGRITY, it is missing or cannot be read.
    """
    try:
        with store.open(key) as file:
            parquet = open_parquet(file, read_footer(file))
            return parquet.read(columns=None if columns is None else list(columns), use_threads=False)
    except NotFound:
        reason = "is missing"
    except (NotParquet, pa.ArrowException, OSError, KeyError) as error:
        reason = f"cannot be read ({(str(error).splitlines() or [type(error).__name__])[0]})"
    raise SpecbatchError(
        ErrorCode.JOB_INTEGRITY,
        f"{store.uri}/{key} {reason}; specbatch repair {store.uri} --output NEW makes a sound copy",
    )


def _pairs(table: pa.Table) -> Iterator[Pair]:
    return zip(table.column("row_id").to_pylist(), table.column("sample_index").to_pylist(), strict=True)


def _replace(table: pa.Table, amended: dict[Pair, pa.Table]) -> Iterator[pa.Table]:
    """The rows of a part in order, each that was amended by its new row; slices, so that nothing is copied."""
    if not amended:
        yield table
        return
    start = 0
    for place, pair in enumerate(_pairs(table)):
        if pair in amended:
            yield table.slice(start, place - start)
            yield amended[pair]
            start = place + 1
    yield table.slice(start)
