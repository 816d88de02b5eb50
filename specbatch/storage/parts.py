"""Part files: every row of one shard with its result, and in the footer what the part says about itself.

A part is the evidence that its shard is done. It holds the shard's planned samples, ascending by row and sample, ok or
error; the footer names plan, shard and rows, so that a foreign or half-made file cannot pass for it. Most shards plan
every sample of a run of rows; those of amendments pick rows and samples out.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from specbatch.schemas.canonical import canonical_json
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import PART_FORMAT
from specbatch.schemas.rows import LOGPROBS_COLUMN, RESULT_COLUMNS, ResultForm, RowResult, result_columns
from specbatch.schemas.stats import PartStats, PhaseSeconds, SpecCounters, length_histogram
from specbatch.storage.footer import NotParquet, extension_columns, open_parquet, read_footer
from specbatch.storage.result_table import dictionary_columns, result_arrays, result_fields, row_places, rows_at

_META_KEY = "specbatch"
_GROUP_RESULTS = 1024
"""Results of a row group unless told: encoding needs memory for one group, however large the part."""
_PLAIN_FORM = ResultForm()


@dataclass(frozen=True, slots=True)
class PartMeta:
    """What a part's footer says.

    Attributes:
        plan: plan digest P.
        row_start: first ``row_id`` of the shard.
        row_stop: one past its last ``row_id``; ``stats.num_rows`` is less where rows between them are not planned.
        token: names the attempt that wrote the part.
        prefix: stands before the names of the result columns.
    """

    format: str
    plan: str
    shard: int
    row_start: int
    row_stop: int
    token: str
    stats: PartStats
    prefix: str = ""


_META = TypeAdapter(PartMeta)


def result_schema(input_schema: pa.Schema, form: ResultForm = _PLAIN_FORM) -> pa.Schema:
    """The schema of every part: the input's columns as they are, then ``RESULT_COLUMNS``, then any logprobs."""
    metadata = {key: value for key, value in (input_schema.metadata or {}).items() if key != _META_KEY.encode()}
    added = [field.with_name(form.prefix + field.name) for field in result_fields(form.with_logprobs)]
    return pa.schema([*input_schema, *added], metadata=metadata or None)


def part_stats(results: Sequence[RowResult], seconds: PhaseSeconds) -> PartStats:
    """The sums over a part's results."""
    ok = [result for result in results if result.error_code is None]
    codes = Counter([result.error_code for result in results if result.error_code is not None])
    prompt_lengths = [result.num_prompt_tokens for result in ok]
    completion_lengths = [result.num_completion_tokens for result in ok]
    return PartStats(
        num_rows=len({result.row_id for result in results}),
        num_results=len(results),
        num_ok=len(ok),
        num_prompt_tokens=sum([result.num_prompt_tokens for result in results]),
        num_completion_tokens=sum(completion_lengths),
        num_near_ties=sum([result.num_near_ties for result in results]),
        errors_by_code=tuple(sorted(codes.items())),
        counters=SpecCounters.total([result.counters for result in results]),
        seconds=seconds,
        prompt_lengths=length_histogram(prompt_lengths),
        completion_lengths=length_histogram(completion_lengths),
        num_cut=[result.finish_reason for result in results].count("length"),
    )


def write_part(
    path: Path,
    rows: pa.Table,
    results: Sequence[RowResult],
    meta: PartMeta,
    *,
    num_samples: int = 1,
    planned: Sequence[tuple[int, int]] | None = None,
    form: ResultForm = _PLAIN_FORM,
    clock: Callable[[], float] | None = None,
) -> PartMeta:
    """Write one part to a local file. Equal arguments give equal bytes.

    Args:
        path: the file to make; it must not exist.
        rows: the input rows of the shard, in order, each once.
        results: the planned ones, ascending by row and sample.
        meta: what the footer says; its prefix is taken from ``form``.
        planned: (row id, sample index) of every result; None plans ``num_samples`` for each row that ``meta`` names.
        form: names of the result columns, compression, size of the row groups.
        clock: if given, the seconds that encoding took by this clock are added to ``stats.seconds.write``.

    Returns:
        The meta as it was written.

    Raises:
        OSError: the file cannot be written.
    """
    if planned is None:
        planned = [(row, sample) for row in range(meta.row_start, meta.row_stop) for sample in range(num_samples)]
    made = [(result.row_id, result.sample_index) for result in results]
    assert made == list(planned), "not the planned rows and samples"
    assert all(low < high for low, high in pairwise(planned)), "rows and samples do not ascend"
    place = row_places(results)
    assert rows.num_rows == (place[-1] + 1 if place else 0), f"{rows.num_rows} rows, {len(results)} results"
    assert meta.stats.num_results == len(results), "the statistics are of other rows"
    started = clock() if clock else 0.0
    meta = dataclasses.replace(meta, prefix=form.prefix)
    schema = result_schema(rows.schema, form)
    fields = result_fields(form.with_logprobs)
    size = form.row_group_rows or _GROUP_RESULTS
    options: dict[str, Any] = {
        "compression": form.compression,
        "write_page_checksum": True,
        "use_dictionary": dictionary_columns(schema, form.prefix),
    }
    with path.open("xb") as file, pq.ParquetWriter(file, schema, **options) as writer:
        for start in range(0, max(len(results), 1), size):
            group = slice(start, start + size)
            arrays = result_arrays(results[group], fields)
            table = pa.Table.from_arrays([*rows_at(rows, place[group]).columns, *arrays], schema=schema)
            writer.write_table(table, row_group_size=size)
        if clock:
            seconds = meta.stats.seconds + PhaseSeconds(write=clock() - started)
            meta = dataclasses.replace(meta, stats=dataclasses.replace(meta.stats, seconds=seconds))
        # In the footer only: in the schema's metadata it would follow the table into files that others derive from it.
        writer.add_key_value_metadata({_META_KEY: canonical_json(_document(meta)).decode()})
    return meta


def _document(meta: PartMeta) -> dict[str, Any]:
    """The footer's JSON. Without a prefix it is what it was before there were any."""
    document = dataclasses.asdict(meta)
    if not meta.prefix:
        del document["prefix"]
    return document


def read_part_meta(file: BinaryIO | Path) -> PartMeta:
    """What a part says about itself, after checking that it is a whole part.

    Raises:
        SpecbatchError: ``JOB_INTEGRITY`` when it is not a readable part, or holds other rows than it says.
    """
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return read_part_meta(opened)
    try:
        footer = read_footer(file)
        if extension_columns(footer):
            raise NotParquet("it has an extension type")
        parquet = open_parquet(file, footer)
    except NotParquet as error:
        raise _not_sound(str(error)) from error
    stored = (parquet.metadata.metadata or {}).get(_META_KEY.encode())
    if stored is None:
        raise _not_sound("its footer does not say which shard it is")
    _check_format(stored)
    try:
        meta = _META.validate_json(stored, strict=True)
    except ValidationError as error:
        raise _not_sound("its footer is damaged") from error
    _check_counts(meta, parquet.metadata)
    names = tuple(parquet.schema_arrow.names)
    added = names[:-1] if names[-1:] == (meta.prefix + LOGPROBS_COLUMN,) else names
    if added[-len(RESULT_COLUMNS) :] != result_columns(meta.prefix):
        raise _not_sound("it lacks the result columns")
    return meta


def _check_format(stored: bytes) -> None:
    """A part of another version is not damaged, but nothing else can be said of it."""
    try:
        document = json.loads(stored)
    except (ValueError, RecursionError):
        return
    found = document.get("format") if isinstance(document, dict) else None
    if isinstance(found, str) and found.startswith(PART_FORMAT.rpartition("/")[0]) and found != PART_FORMAT:
        raise SpecbatchError(
            ErrorCode.JOB_FORMAT,
            f"the part has format {found[:60]!r}, this version reads {PART_FORMAT!r}; "
            "use the version of specbatch that wrote it",
        )


def _check_counts(meta: PartMeta, stored: pq.FileMetaData) -> None:
    """That the footer fits what is stored: how many results, and of which first and last row."""
    stats = meta.stats
    bounds = (meta.row_start, meta.row_stop - 1) if stats.num_rows else None
    may_be_rows = stats.num_rows <= min(meta.row_stop - meta.row_start, stats.num_results)
    if not (
        stored.num_rows == stats.num_results
        and (stats.num_results > 0) == (stats.num_rows > 0) == (meta.row_stop > meta.row_start)
        and may_be_rows
        and _stored_bounds(stored, meta.prefix + "row_id") == bounds
    ):
        raise _not_sound(
            f"it holds {stored.num_rows} rows; its footer says rows {meta.row_start} to {meta.row_stop - 1} "
            f"and {stats.num_results} results"
        )


def _stored_bounds(stored: pq.FileMetaData, row_id: str) -> tuple[int, int] | None:
    """Least and greatest row id by the statistics that Parquet keeps; None where there is none."""
    # Names, not column objects: those refer to their schema in a cycle, half a gigabyte for ten thousand footers. An
    # input may have a nested field of this name, but all of its columns stand before ours.
    names = list(stored.schema.names)
    columns = [len(names) - 1 - names[::-1].index(row_id)] if row_id in names else []
    found: list[int] = []
    try:
        for group in range(stored.num_row_groups):
            for column in columns:
                statistics = stored.row_group(group).column(column).statistics
                if statistics is not None and statistics.has_min_max:
                    found += [statistics.min, statistics.max]
    except (pa.ArrowException, OSError) as error:
        raise _not_sound("its statistics are damaged") from error
    return (min(found), max(found)) if found else None


def _not_sound(reason: str) -> SpecbatchError:
    return SpecbatchError(ErrorCode.JOB_INTEGRITY, f"it is not a sound part: {reason}")
