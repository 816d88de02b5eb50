"""Reading the dataset, local or on S3: pin every file by its footer, check the columns, read runs of rows.

A file is pinned by its size and the digest of its footer, which names every column chunk's place and statistics. A
worker refuses a file whose pin no longer fits; damage inside the pages is caught by their checksums where the
writer made any. An open object stays one version: a read of another one is refused.

JSONL is read from copies in Parquet (``jsonl``). A copy's pin is size and digest of the contents of its original, which
its footer names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import pyarrow as pa

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import InputFile, Segment
from specbatch.storage.discovery import FoundFile, find_files
from specbatch.storage.footer import open_parquet, read_footer, stored_schema
from specbatch.storage.footer_facts import NotParquet, read_facts
from specbatch.storage.input_columns import check_distinct, check_same
from specbatch.storage.input_file import changed, open_input
from specbatch.storage.input_pins import fits_pin, named, pin_file
from specbatch.storage.jsonl import Source, find_source, observe, survey
from specbatch.storage.jsonl_types import Shape
from specbatch.storage.row_reader import KeptReaders, RowReader

_NUM_FOOTER_READERS = 16

_kept = KeptReaders()

T = TypeVar("T")
R = TypeVar("R")


_BAD_FILE = frozenset(
    {
        ErrorCode.JOB_INPUT_CORRUPT,
        ErrorCode.JOB_INPUT_EXTENSION,
        ErrorCode.JOB_INPUT_UNSUPPORTED,
        ErrorCode.JOB_INPUT_LIMIT,
    }
)
"""Codes of files that cannot be read, whatever else there is."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that is left out since it cannot be read.

    Attributes:
        reason: in words; what was known when the job began has only the code.
    """

    name: str
    path: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Inputs:
    """A pinned dataset.

    Attributes:
        files: in the order that numbers the rows; files without rows are among them.
        schema: what all files share, with the column order of the first. Of JSONL it is known once there are copies
            (``with_copies``); until then it is that of the other files, or empty.
        sources: the files that are JSONL, by their place in ``files``, whose entries are their originals until there
            are copies.
        shapes: what was seen of their rows, where they had to be read already.
        skipped: files that are left out.
        bookkeeping: columns that specbatch added to the rows of a dataset that is an output of it.
        notes: what the user should know.
    """

    files: tuple[InputFile, ...]
    schema: pa.Schema
    sources: Mapping[int, Source] = field(default_factory=dict)
    shapes: Mapping[int, Shape] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    bookkeeping: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return sum(file.num_rows for file in self.files)


@dataclass(frozen=True, slots=True)
class _Read:
    """What is known of one file that was found: pinned with its schema, or why it cannot be."""

    file: InputFile | None = None
    schema: pa.Schema | None = None
    source: Source | None = None
    shape: Shape | None = None
    skipped: Skipped | None = None


def read_inputs(
    datasets: Sequence[str],
    *,
    on_bad_file: Literal["fail", "quarantine"] = "fail",
    allow_empty: bool = False,
    known_bad: Mapping[str, str] | None = None,
) -> Inputs:
    """Find, pin and check every input file. Each footer is read once, many at a time; JSONL is read through.

    Args:
        on_bad_file: ``quarantine`` leaves files out that cannot be read.
        allow_empty: that nothing is found is no error.
        known_bad: name -> code of files that are left out without a look: a job goes on with the files it began with.

    Raises:
        SpecbatchError: what ``find_files`` raises; for the first file that cannot be used ``JOB_INPUT_CORRUPT``,
            ``JOB_INPUT_EXTENSION``, ``JOB_INPUT_UNSUPPORTED`` or ``JOB_INPUT_LIMIT``; ``JOB_SCHEMA_MISMATCH`` naming
            two files that differ by more than the order of their columns, or a file with two columns of one name.
    """
    known = known_bad or {}
    found_files = find_files(datasets, allow_empty=allow_empty)
    files: list[InputFile] = []
    sources: dict[int, Source] = {}
    shapes: dict[int, Shape] = {}
    skipped: list[Skipped] = []
    schema: pa.Schema | None = None
    first = ""
    # One schema is kept, the others are compared as they come: a hundred thousand of them are gigabytes.
    for read in _map_in_order(lambda found: _read(found, on_bad_file, known), found_files):
        if read.skipped is not None:
            skipped.append(read.skipped)
            continue
        assert read.file is not None
        if read.source is not None:
            sources[len(files)] = read.source
            if read.shape is not None:
                shapes[len(files)] = read.shape
        else:
            assert read.schema is not None
            if schema is None:
                schema, first = check_distinct(read.file.path, read.schema), read.file.path
            else:
                check_same(first, schema, read.file.path, read.schema)
        files.append(read.file)
    if skipped and not files:
        one = skipped[0]
        raise SpecbatchError(
            ErrorCode.JOB_INPUT_CORRUPT, f"no file of the dataset can be read; the first one: {one.reason}"
        )
    _check_kinds(list(sources.values()))
    return Inputs(
        tuple(files),
        schema if schema is not None else pa.schema([]),
        sources,
        shapes,
        tuple(skipped),
        frozenset().union(*(found.bookkeeping for found in found_files)),
        tuple(found.note for found in found_files if found.note is not None),
    )


def with_copies(inputs: Inputs, paths: Mapping[int, str]) -> Inputs:
    """A dataset whose JSONL files have their copies.

    Args:
        paths: where the copies lie, by place of the file. Files without rows need none.

    Raises:
        SpecbatchError: ``JOB_INPUT_CHANGED``, a copy is not one of its original; ``JOB_SCHEMA_MISMATCH``.
    """
    files = list(inputs.files)
    schema = inputs.schema
    first = next((file.path for place, file in enumerate(files) if place not in inputs.sources), "")
    for place, path in paths.items():
        source = inputs.sources[place]
        with open_input(path) as file:
            footer = named(path, lambda: read_footer(file))
        facts = named(path, lambda: read_facts(footer.metadata, footer.size_bytes))  # noqa: B023
        if find_source(facts.key_values) != (source.size_bytes, source.sha256):
            raise changed(path)
        found = named(path, lambda: stored_schema(footer))  # noqa: B023
        if first:
            check_same(first, schema, source.found.path, found)
        else:
            schema, first = found, source.found.path
        files[place] = replace(files[place], path=path, row_group_rows=facts.row_group_rows)
    return replace(inputs, files=tuple(files), schema=schema)


def discover(datasets: Sequence[str]) -> tuple[InputFile, ...]:
    """The files of ``read_inputs``."""
    return read_inputs(datasets).files


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
    file = open_input(path)
    try:
        try:
            footer = read_footer(file)
        except NotParquet as error:  # it was Parquet when it was pinned
            raise changed(path) from error
        if not fits_pin(path, footer, size_bytes, footer_sha256):
            raise changed(path)
        return RowReader(path, file, named(path, lambda: open_parquet(file, footer)))
    except BaseException:
        file.close()
        raise


def _read(found: FoundFile, on_bad_file: str, known_bad: Mapping[str, str]) -> _Read:
    if code := known_bad.get(found.name):
        reason = f"{found.path} was left out when the job began ({code})"
        return _Read(skipped=Skipped(found.name, found.path, code, reason))
    try:
        if not found.is_jsonl:
            return _Read(*pin_file(found))
        source = survey(found)
        # A file must be known to be good before it is counted: a bad line shows only when it is parsed.
        shape = observe(source) if on_bad_file == "quarantine" else None
        file = InputFile(found.name, found.path, source.size_bytes, source.sha256, _as_one_group(source.num_rows))
        return _Read(file, source=source, shape=shape)
    except SpecbatchError as error:
        if on_bad_file != "quarantine" or error.code not in _BAD_FILE:
            raise
        return _Read(skipped=Skipped(found.name, found.path, error.code.value, error.message))


def _as_one_group(num_rows: int) -> tuple[int, ...]:
    return (num_rows,) if num_rows else ()


def _check_kinds(sources: Sequence[Source]) -> None:
    """JSONL files of one dataset are all rows, or all requests of one kind."""
    kinds = {source.kind: source for source in sources if source.num_rows}
    if len(kinds) > 1:
        (kind, one), (other_kind, other) = list(kinds.items())[:2]
        names = {"rows": "plain rows", "chat": "OpenAI chat requests", "completions": "OpenAI completion requests"}
        raise SpecbatchError(
            ErrorCode.JOB_SCHEMA_MISMATCH,
            f"{one.found.path} holds {names[kind]} and {other.found.path} {names[other_kind]}; submit them apart",
        )


def _map_in_order(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Map with some threads; of several failures the one of the earliest item is raised."""
    with ThreadPoolExecutor(_NUM_FOOTER_READERS) as pool:
        try:
            yield from pool.map(function, items)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
