"""The file that marks duplicates: for each row of a job the first row with the same prompt, or null."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.input_file import open_input

COLUMN = "duplicate_of"
_SCHEMA = pa.schema([(COLUMN, pa.int64())])
_GROUP_ROWS = 1 << 16


def write_duplicates(first_rows: npt.NDArray[np.int64], path: Path) -> None:
    """Write the marks of rows 0, 1, ...; -1 stands for null. Equal marks give equal bytes.

    Raises:
        OSError: the file cannot be written.
    """
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for start in range(0, len(first_rows), _GROUP_ROWS):
            marks = np.array(first_rows[start : start + _GROUP_ROWS])
            column = pa.array(marks, pa.int64(), mask=marks < 0)
            writer.write_batch(pa.RecordBatch.from_arrays([column], schema=_SCHEMA), row_group_size=_GROUP_ROWS)


def read_duplicates(path: str, ranges: Sequence[tuple[int, int]]) -> pa.ChunkedArray:
    """The marks of rows of a job.

    Args:
        path: local path or URI of the file.
        ranges: (first row, one past the last row), ascending. Row groups that hold none of them are not read.

    Raises:
        SpecbatchError: ``JOB_INTEGRITY``, the file is damaged or has too few rows; what ``open_input`` raises.
    """
    pieces: list[pa.Array] = []
    with open_input(path) as file:
        try:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            at, marks = -1, pa.array([], pa.int64())
            for start, stop in ranges:
                while start < stop:
                    if at != start // _GROUP_ROWS:
                        at = start // _GROUP_ROWS
                        marks = _read_group(parquet, at)
                    end = min(stop, (at + 1) * _GROUP_ROWS)
                    piece = marks.slice(start - at * _GROUP_ROWS, end - start)
                    if len(piece) != end - start:
                        raise _damaged(path)
                    pieces.append(piece)
                    start = end
        except (pa.ArrowException, OSError, KeyError, IndexError, UnicodeDecodeError) as error:
            raise _damaged(path) from error
    return pa.chunked_array(pieces, pa.int64())


def _read_group(parquet: pq.ParquetFile, group: int) -> pa.Array:
    if group >= parquet.metadata.num_row_groups:
        raise IndexError(group)
    column = parquet.read_row_group(group, columns=[COLUMN], use_threads=False).column(COLUMN)
    return column.combine_chunks().cast(pa.int64())


def _damaged(path: str) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_INTEGRITY,
        f"{path} does not hold the duplicates of this job; remove it, and the next run makes it again",
    )
