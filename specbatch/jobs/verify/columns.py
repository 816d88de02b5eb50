"""Columns of a part as arrays of numbers, for the second opinion on its rows.

Part of ``verify``, which shares no code with the writers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from specbatch.jobs.verify.files import Unsound

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_MAX_HISTOGRAM_ENTRIES = 1 << 12


@dataclass(frozen=True, slots=True)
class Lists:
    """A column of integer lists, taken apart: ``moment`` is the sum of index times value."""

    null: Mask
    length: Ints
    sum: Ints
    moment: Ints
    negative: Mask
    values: Ints
    index: Ints

    @staticmethod
    def of(column: pa.ListArray) -> Lists:
        """Take a column apart.

        Raises:
            Unsound: a list has empty entries.
        """
        if column.values.null_count:
            raise Unsound("a list has empty entries")
        length = ints(pc.fill_null(pc.list_value_length(column), 0))
        # flatten() leaves out what null lists may hide, so the lengths above are those of the values here.
        values = ints(column.flatten())
        ends = np.cumsum(length)
        index = np.arange(len(values)) - np.repeat(ends - length, length)
        return Lists(
            null=is_null(column),
            length=length,
            sum=segment_sums(values, ends, length),
            moment=segment_sums(values * index, ends, length),
            negative=segment_sums((values < 0).astype(np.int64), ends, length) > 0,
            values=values,
            index=index,
        )

    def by_entry(self) -> list[int]:
        """Sum of entry i over all lists."""
        if len(self.index) and int(self.index.max()) >= _MAX_HISTOGRAM_ENTRIES:
            raise Unsound(f"a histogram has more than {_MAX_HISTOGRAM_ENTRIES:,} entries")
        sums = np.zeros(int(self.index.max()) + 1 if len(self.index) else 0, dtype=np.int64)
        np.add.at(sums, self.index, self.values)
        return [int(value) for value in sums]


def ints(column: pa.Array) -> Ints:
    """A column without nulls as 64-bit integers."""
    values: Ints = column.to_numpy(zero_copy_only=False).astype(np.int64)
    return values


def is_null(column: pa.Array) -> Mask:
    """Where a column is empty."""
    mask: Mask = column.is_null().to_numpy(zero_copy_only=False)
    return mask


def equals(column: pa.DictionaryArray, text: str) -> Mask:
    """Where a dictionary-encoded column has this text; False where it is empty. Decided once for each distinct text."""
    hits = pc.fill_null(pc.equal(column.dictionary, text), False).to_numpy(zero_copy_only=False)
    indices = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False)
    mask: Mask = np.append(hits, False)[indices]
    return mask


def value_counts(column: pa.DictionaryArray) -> dict[str, int]:
    """How often each text occurs; empty cells do not count."""
    indices = column.indices.drop_null().to_numpy(zero_copy_only=False)
    found: dict[str, int] = {}
    for index, number in zip(*np.unique(indices, return_counts=True), strict=True):
        text = str(column.dictionary[int(index)])
        found[text] = found.get(text, 0) + int(number)
    return found


def segment_sums(values: Ints, ends: Ints, length: Ints) -> Ints:
    """Sums over lists that lie end to end: where each ends, and how long it is."""
    running = np.concatenate(([0], np.cumsum(values)))
    sums: Ints = running[ends] - running[ends - length]
    return sums


def by_digits(lengths: Ints) -> list[int]:
    """Entry i: how many of these lengths have i binary digits."""
    found: list[int] = np.bincount(np.frexp(np.maximum(lengths, 0))[1]).tolist() if len(lengths) else []
    return found
