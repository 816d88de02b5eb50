"""The deep part of ``verify``: against the dataset and the target themselves, not only against what was written down.

Every column that passes through is compared with the dataset, seeds and marks of duplicates are made anew, and some
rows, drawn by the manifest's digest, are decoded again by the target alone, one at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from specbatch.jobs.verify.again import Drawn, Duplicates, draw, regenerate
from specbatch.jobs.verify.files import (
    Absent,
    RemoteSource,
    Source,
    Unsound,
    map_file,
    open_regular,
    parse_json,
    read_bounded,
)
from specbatch.jobs.verify.parquet import open_untrusted
from specbatch.jobs.verify.plan import PlannedShard
from specbatch.jobs.verify.seeds import SeedRules, check_seeds, new_names, seed_rules
from specbatch.jobs.verify.verification import Verification
from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.rows import reserved_columns

_MAX_PLAN_BYTES = 256 << 20
_AMENDS = "amends"
_COPY_KEY = b"specbatch:source"
_PART_KEY = b"specbatch"


@dataclass(frozen=True, slots=True)
class DeepCheck:
    """What was found, and what was done or could not be."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Passing:
    """Which columns of the dataset pass through.

    Attributes:
        kept: names in the dataset, None for all but bookkeeping.
        renamed: name in the dataset -> name in the parts.
        added: names in the parts of the columns that specbatch adds.
    """

    kept: tuple[str, ...] | None = None
    renamed: tuple[tuple[str, str], ...] = ()
    added: frozenset[str] = reserved_columns()

    @staticmethod
    def of(fields: dict[str, Any]) -> Passing:
        """What the identity says of it."""
        output = fields.get("output")
        output = output if isinstance(output, dict) else {}
        kept = output.get("keep_columns")
        return Passing(
            None if kept is None else tuple(map(str, kept)),
            tuple(new_names(output).items()),
            reserved_columns(str(output.get("prefix", ""))),
        )

    def names(self, dataset: Sequence[str], bookkeeping: frozenset[str]) -> dict[str, str]:
        """Name in the parts -> name in the dataset.

        Args:
            bookkeeping: columns of an earlier job, whose output the dataset is.
        """
        new = dict(self.renamed)
        kept = self.kept
        if kept is None:
            kept = tuple(name for name in dataset if name not in bookkeeping or name in new)
        return {new.get(name, name): name for name in kept}


@dataclass(frozen=True, slots=True)
class InputRows:
    """Rows of the dataset, and which of their columns an earlier job added."""

    table: pa.Table
    bookkeeping: frozenset[str] = frozenset()


def check_deep(job: Verification) -> DeepCheck:
    """Compare a sound output, or amendment, with its dataset, and decode a few of its rows again."""
    source = job.source
    problems: list[str] = []
    notes: list[str] = []
    fields = job.job["identity"]["fields"]
    passing, seeds = Passing.of(fields), seed_rules(fields)
    prefix = str(fields.get("output", {}).get("prefix", ""))
    duplicates = Duplicates(job.job, prefix) if _AMENDS not in fields else None
    drawn: list[Drawn] = []
    try:
        paths = _segment_paths(source, job.job["identity"]["P"])
        num_results = 0
        for shard in job.shards:
            with source.open(f"data/{shard.name}") as file, map_file(file) as data:
                part = _read(open_untrusted(data, shard.name), shard.name)
            num_results += part.num_rows
            rows = input_rows(paths[shard.index])
            problems += compare(part, shard, rows, passing, prefix)
            if seeds is not None:
                problems += _check_seeds(part, shard, rows.table, seeds, prefix)
            if duplicates is not None:
                problems += duplicates.check(part, shard, rows.table)
            drawn = draw(drawn, part, aligned(part, shard, rows.table, prefix), job.manifest_sha256 or "", prefix)
        notes.append(f"compared {num_results:,} results with the rows of the dataset, every column of theirs")
    except Absent as finding:
        notes.append(f"not compared with the dataset: {finding} is not there")
    except (Unsound, SpecbatchError) as finding:
        problems.append(f"the dataset: {finding}")
    if duplicates is not None and duplicates.note is not None:
        notes.append(duplicates.note)
    if not problems and drawn:
        regenerate(drawn, job.job, problems, notes)
    return DeepCheck(tuple(problems), tuple(notes))


def _segment_paths(source: Source, plan: str) -> dict[int, list[tuple[str, str, int, int]]]:
    """(path, digest that pins it, first row, one past the last row) of every segment, by shard."""
    name = f"_specbatch/plan-{plan}.parquet"
    parquet = open_untrusted(read_bounded(source, name, _MAX_PLAN_BYTES), name)
    names = ["shard", "path", "footer_sha256", "row_start", "row_stop"]
    table = parquet.read(columns=names, use_threads=False)
    found: dict[int, list[tuple[str, str, int, int]]] = {}
    for shard, *place in zip(*(table.column(column).to_pylist() for column in names), strict=True):
        found.setdefault(shard, []).append((place[0], place[1], place[2], place[3]))
    return found


def input_rows(segments: list[tuple[str, str, int, int]]) -> InputRows:
    """The rows of a shard as the dataset has them.

    Args:
        segments: (path, digest that pins it, first row, one past the last row).

    Raises:
        Absent: a file is not there. Unsound: it is not the one that was planned, or cannot be read.
    """
    tables = []
    bookkeeping: frozenset[str] = frozenset()
    for path, pinned, start, stop in segments:
        with _open_input(path) as file, map_file(file) as data:
            length = int.from_bytes(data[-8:-4], "little")
            digest = hashlib.sha256(data[len(data) - 8 - length : len(data) - 8]).hexdigest()
            parquet = open_untrusted(data, path)
            stored = parquet.metadata.metadata or {}
            if pinned not in (digest, _copied_from(stored)):
                raise Unsound(f"{path} is not the file that was planned")
            bookkeeping |= _bookkeeping(stored)
            tables.append(_rows(parquet, path, start, stop))
    names = tables[0].schema.names
    return InputRows(pa.concat_tables([table.select(names).cast(tables[0].schema) for table in tables]), bookkeeping)


def _copied_from(stored: dict[bytes, bytes]) -> str | None:
    """The digest of the JSONL file that a Parquet file says it is the copy of."""
    if _COPY_KEY not in stored:
        return None
    return str(parse_json(stored[_COPY_KEY], "the footer of a copy").get("sha256"))


def _bookkeeping(stored: dict[bytes, bytes]) -> frozenset[str]:
    """Columns that an earlier job added to a file, where it is a part of one."""
    if _PART_KEY not in stored:
        return frozenset()
    prefix = parse_json(stored[_PART_KEY], "the footer of a part of an earlier job").get("prefix", "")
    return reserved_columns(str(prefix))


@contextmanager
def _open_input(path: str) -> Iterator[BinaryIO]:
    if path.startswith("s3://"):
        from specbatch.storage.store import open_store

        folder, _, name = path.rpartition("/")
        with RemoteSource(open_store(folder)).open(name) as file:
            yield file
        return
    with open_regular(Path(path).parent.resolve(), Path(path).name) as file:
        yield file


def _rows(parquet: pq.ParquetFile, name: str, start: int, stop: int) -> pa.Table:
    """Rows [start, stop) of a file; row groups that hold none of them are not read."""
    at, first = 0, 0
    groups: list[int] = []
    for group in range(parquet.metadata.num_row_groups):
        num_rows = parquet.metadata.row_group(group).num_rows
        if at < stop and at + num_rows > start:
            first = first if groups else at
            groups.append(group)
        at += num_rows
    try:
        table = parquet.read_row_groups(groups, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise Unsound(f"{name} cannot be read: {str(error).splitlines()[0][:200]}") from error
    return table.slice(start - first, stop - start)


def _read(parquet: pq.ParquetFile, name: str) -> pa.Table:
    try:
        return parquet.read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise Unsound(f"{name} cannot be read: {str(error).splitlines()[0][:200]}") from error


def compare(part: pa.Table, shard: PlannedShard, rows: InputRows, passing: Passing, prefix: str = "") -> Iterator[str]:
    """The columns that pass through must stand in the part as the dataset has them, once for every sample."""
    found_names = [name for name in part.schema.names if name not in passing.added]
    names = passing.names(rows.table.schema.names, rows.bookkeeping)
    if sorted(found_names) != sorted(names) or not set(names.values()) <= set(rows.table.schema.names):
        yield f"{shard.name}: its columns are not those of the dataset"
        return
    expected = aligned(part, shard, rows.table, prefix)
    for name in found_names:
        found, wanted = part.column(name), expected.column(names[name])
        if found.type != wanted.type:
            yield f"{shard.name}: column {name} is {found.type}, in the dataset {wanted.type}"
        elif not _equal(found, wanted):
            yield f"{shard.name}: column {name} does not hold what the dataset does"


def aligned(part: pa.Table, shard: PlannedShard, rows: pa.Table, prefix: str = "") -> pa.Table:
    """The row of the dataset for each result of a part."""
    picks = shard.picks or ((shard.row_start, shard.row_stop, None),)
    row_ids = np.concatenate([np.arange(start, stop) for start, stop, _ in picks])
    places = pc.index_in(part.column(f"{prefix}row_id"), pa.array(row_ids)).combine_chunks()
    try:
        return rows.take(places)
    except pa.ArrowNotImplementedError:  # Arrow takes no views out of tables; slices do for every type
        pieces = [rows.slice(place, 1) for place in places.to_pylist()]
        return pa.concat_tables(pieces) if pieces else rows.slice(0, 0)


def _equal(found: pa.ChunkedArray, wanted: pa.ChunkedArray) -> bool:
    """Equal cells; NaN is equal to itself here, as nobody has changed it."""
    if found.equals(wanted):
        return True
    if pa.types.is_dictionary(found.type):  # whose values may stand in another order
        return bool(_equal(found.cast(found.type.value_type), wanted.cast(wanted.type.value_type)))
    if pa.types.is_floating(found.type) or pa.types.is_nested(found.type):
        return _rows_equal(found, wanted)
    return False


def _rows_equal(found: pa.ChunkedArray, wanted: pa.ChunkedArray) -> bool:
    from specbatch.jobs.verify.again import cell_text

    try:
        pairs = zip(found.to_pylist(), wanted.to_pylist(), strict=True)
    except (ValueError, ArithmeticError):  # values that Python has no form for; equal bytes were not found
        return False
    return all(cell_text(one) == cell_text(other) for one, other in pairs)


def _check_seeds(part: pa.Table, shard: PlannedShard, rows: pa.Table, seeds: SeedRules, prefix: str) -> Iterator[str]:
    """Seeds made of the dataset's ids and of the seeds that its rows name."""
    names = rows.schema.names
    if seeds.id_column is not None and seeds.id_column not in names:
        yield f"{shard.name}: the dataset has no column {seeds.id_column}, which seeds are made of"
        return
    expected = aligned(part, shard, rows, prefix)
    ids = None if seeds.id_column is None else expected.column(seeds.id_column)
    own = None if seeds.own_column not in names else expected.column(seeds.own_column)
    wrong = check_seeds(
        seeds,
        part.column(f"{prefix}row_seed").to_numpy(),
        part.column(f"{prefix}row_id").to_numpy(),
        part.column(f"{prefix}sample_index").to_numpy().astype(np.int64),
        ids=ids,
        own=own,
        codes=part.column(f"{prefix}error_code").to_pylist(),
    )
    if wrong.any():
        first = part.column(f"{prefix}row_id")[int(wrong.argmax())].as_py()
        yield f"{shard.name}: {int(wrong.sum()):,} seeds do not follow from the dataset, the first of row {first}"
