"""``specbatch export``: the results of a finished job in another form, amendments applied, in the order of the rows.

Nothing of the job is changed, and what is written appears whole or not at all. Memory holds a few thousand rows,
however large the job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.output.results import iter_results, result_prefix, results_schema
from specbatch.jobs.reports.report import load_manifest
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import Manifest
from specbatch.schemas.rows import BOOKKEEPING_COLUMNS
from specbatch.schemas.suggest import did_you_mean
from specbatch.storage.store import Store, is_s3, local_path, open_store

Only = Literal["all", "ok", "error"]

_FIRST_LINE_SECONDS = 5.0
_LINE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Selection:
    """What of the results is exported.

    Attributes:
        columns: names, in their order; None for all.
        drop_bookkeeping: without the columns that say how a result came about.
    """

    columns: tuple[str, ...] | None = None
    only: Only = "all"
    drop_bookkeeping: bool = False


@dataclass(slots=True)
class Exported:
    """What was written."""

    place: str
    num_rows: int = 0
    num_files: int = 0
    num_bytes: int = 0
    others: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """The last line that the user sees."""
        files = f" in {fmt.plural(self.num_files, 'file')}" if self.num_files != 1 else ""
        others = f" and {', '.join(self.others)}" if self.others else ""
        return f"wrote {self.place}{others}: {fmt.plural(self.num_rows, 'row')}{files}, {fmt.size(self.num_bytes)}"


class Source:
    """The results of a finished job, to be read once from the first to the last.

    Args:
        say: takes single lines for the user while it goes on.

    Attributes:
        has_parts: whether there is any; else nobody knows the dataset's columns, and the schemas lack them.
        full_schema: of all columns of the results.
        schema: of the chosen ones.

    Raises:
        SpecbatchError: what ``load_manifest`` raises; JOB_COLUMN_MISSING, JOB_CONFIG for the selection.
    """

    def __init__(self, output: str, selection: Selection, say: Callable[[str], None] = lambda line: None) -> None:
        self.manifest: Manifest = load_manifest(output)
        self.store: Store = open_store(output)
        self.prefix = result_prefix(self.fields)
        self._only = selection.only
        self.has_parts = bool(self.manifest.commit.parts)
        self.full_schema: pa.Schema = results_schema(self.store, self.manifest)
        schema = results_schema(self.store, self.manifest, selection.columns)
        names = list(schema.names)
        if len(set(names)) < len(names):
            doubled = next(name for name in names if names.count(name) > 1)
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"--columns {doubled}: it is given twice; give it once")
        if selection.drop_bookkeeping:
            dropped = {self.prefix + name for name in BOOKKEEPING_COLUMNS}
            names = [name for name in names if name not in dropped]
        if not names:
            raise SpecbatchError(ErrorCode.JOB_CONFIG, "no column is left to export; choose others with --columns")
        self.schema: pa.Schema = pa.schema([schema.field(name) for name in names], metadata=schema.metadata)
        self.meter = Meter(self.manifest.commit.counts.results, say)

    @property
    def fields(self) -> dict[str, Any]:
        """The job's identity."""
        return self.manifest.identity.fields

    def column(self, name: str) -> str:
        """The name that a result column has here."""
        return self.prefix + name

    def tables(self, extra: Sequence[str] = ()) -> Iterator[pa.Table]:
        """The chosen rows in small tables: the chosen columns, then ``extra`` ones that are not among them."""
        names = [*self.schema.names, *(name for name in extra if name not in self.schema.names)]
        status = self.column("status")
        wanted = names if self._only == "all" or status in names else [*names, status]
        for table in iter_results(self.store, self.manifest, wanted):
            self.meter.add(table.num_rows)
            chosen = table if self._only == "all" else keep(table, pc.equal(table.column(status), self._only))
            if chosen.num_rows:
                yield chosen.select(names)


def check_place(place: str, output: str) -> None:
    """An export must lie apart from the job: a file more in it would be taken for one of its own.

    Raises:
        SpecbatchError: JOB_URI_OVERLAP, JOB_URI_INVALID.
    """
    if is_s3(place) != is_s3(output):
        return
    if is_s3(place):
        old, new = output.rstrip("/"), place.rstrip("/")
    else:
        old, new = str(local_path(output, "output").resolve()), str(local_path(place, "export").resolve())
    if f"{new}/".startswith(f"{old}/") or f"{old}/".startswith(f"{new}/"):
        raise SpecbatchError(
            ErrorCode.JOB_URI_OVERLAP, f"{place} and {output} lie in each other; name a place apart from the job"
        )


def keep(table: pa.Table, wanted: pa.ChunkedArray) -> pa.Table:
    """The rows of a small table where a column of booleans is true; for every type."""
    try:
        return table.filter(wanted)
    except pa.ArrowNotImplementedError:  # Arrow takes no views out of tables; slices do for every type
        return pick(table, [place for place, is_wanted in enumerate(wanted.to_pylist()) if is_wanted])


def pick(table: pa.Table, places: Sequence[int]) -> pa.Table:
    """The rows of a small table at ascending places; for every type."""
    try:
        return table.take(pa.array(places, pa.int64()))
    except pa.ArrowNotImplementedError:
        pieces = [table.slice(place, 1) for place in places]
        return pa.concat_tables(pieces) if pieces else table.slice(0, 0)


def require_column(name: str, schema: pa.Schema, option: str) -> None:
    """Assert that the results have a column.

    Raises:
        SpecbatchError: JOB_COLUMN_MISSING.
    """
    if name not in schema.names:
        known = did_you_mean(name, schema.names, f"their columns are {', '.join(schema.names)}")
        raise SpecbatchError(ErrorCode.JOB_COLUMN_MISSING, f"{option} {name}: the results have no such column; {known}")


class Meter:
    """A line now and then about a long export."""

    def __init__(self, num_rows: int, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._num_rows, self._say, self._clock = num_rows, say, clock
        self._done = 0
        self._due = clock() + _FIRST_LINE_SECONDS

    def add(self, num_rows: int) -> None:
        """So many more rows were read."""
        self._done += num_rows
        if self._clock() < self._due:
            return
        self._due = self._clock() + _LINE_SECONDS
        share = fmt.percent(self._done / self._num_rows if self._num_rows else None)
        self._say(f"exported {fmt.count(self._done)} of {fmt.plural(self._num_rows, 'row')} ({share})")
