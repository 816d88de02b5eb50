"""Whether every row of a dataset has an id of its own: what ``--seed-by id`` rests on.

Two rows of one id would be drawn with the same noise, which nobody would see in the results. So the column is read
before the job begins, and a job with such rows is refused: an error row for the second one would depend on the order of
the rows, which is just what seeds by id are to be free of. It costs one column and 16 bytes a row.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress

import numpy as np
import pyarrow as pa

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import InputFile
from specbatch.storage.footer import open_parquet, read_footer
from specbatch.storage.footer_facts import NotParquet
from specbatch.storage.input_file import changed, open_input
from specbatch.storage.input_pins import fits_pin
from specbatch.workers.prompts import column_values, id_text
from specbatch.workers.rendering import RowError

_BATCH_ROWS = 1 << 16
_HALF = np.dtype("<u8")


def check_unique_ids(files: Iterable[InputFile], num_rows: int, column: str) -> None:
    """Refuse a dataset in which two rows have the same id. Rows without an id are error rows later on.

    Args:
        files: in the order that numbers the rows.
        num_rows: of the job; the rows behind them do not count.

    Raises:
        SpecbatchError: JOB_ID_DUPLICATE with the numbers of two such rows; JOB_INPUT_CHANGED, JOB_INPUT_CORRUPT.
    """
    rows = array("q")
    digests = bytearray()
    for row, text in _ids(files, num_rows, column):
        rows.append(row)
        digests += hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    halves = np.frombuffer(bytes(digests), dtype=_HALF).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    ordered = halves[order]
    places = np.flatnonzero((ordered[1:] == ordered[:-1]).all(axis=1))
    if len(places):
        one, other = sorted((rows[order[places[0]]], rows[order[places[0] + 1]]))
        more = f", and {len(places) - 1} more such rows" if len(places) > 1 else ""
        raise SpecbatchError(
            ErrorCode.JOB_ID_DUPLICATE,
            f"rows {one} and {other} have the same id in column {column!r}{more}; --seed-by id needs an id of its own "
            "for every row: make them unique, or use --seed-by row",
        )


def _ids(files: Iterable[InputFile], num_rows: int, column: str) -> Iterator[tuple[int, str]]:
    row = 0
    for file in files:
        for chunk in _chunks(file, column):
            for value in column_values(pa.chunked_array([chunk])):
                if row == num_rows:
                    return
                with suppress(RowError):  # an error row, which nothing is drawn for
                    yield row, id_text(value)
                row += 1


def _chunks(file: InputFile, column: str) -> Iterator[pa.Array]:
    with open_input(file.path) as data:
        try:
            footer = read_footer(data)
        except NotParquet as error:  # it was Parquet when it was pinned
            raise changed(file.path) from error
        if not fits_pin(file.path, footer, file.size_bytes, file.footer_sha256):
            raise changed(file.path)
        parquet = open_parquet(data, footer)
        try:
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=[column], use_threads=False):
                yield batch.column(batch.schema.get_field_index(column))
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise SpecbatchError(
                ErrorCode.JOB_INPUT_CORRUPT,
                f"{file.path} cannot be read in its column {column!r} ({reason}); write the file again",
            ) from error
