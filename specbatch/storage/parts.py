"""Part files: every row of one shard with its result, and in the footer what the part says about itself.

A part is the evidence that its shard is done. It holds the shard's planned rows in order, each with all its samples,
ok or error; the footer names plan, shard and rows, so that a foreign or half-made file cannot pass for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from specbatch.schemas.canonical import canonical_json
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import PART_FORMAT
from specbatch.schemas.rows import LOGPROBS_COLUMN, RESULT_COLUMNS, RowResult
from specbatch.schemas.stats import PartStats, PhaseSeconds, SpecCounters
from specbatch.storage.footer import NotParquet, extension_columns, open_parquet, read_footer

_META_KEY = "specbatch"
_WRITER_OPTIONS: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}

_INT32_LIST = pa.list_(pa.field("element", pa.int32(), nullable=False))
_RESULT_FIELDS: tuple[pa.Field, ...] = (
    pa.field("row_id", pa.int64(), nullable=False),
    pa.field("sample_index", pa.int32(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("completion", pa.string()),
    pa.field("completion_token_ids", _INT32_LIST),
    pa.field("finish_reason", pa.string(), nullable=False),
    pa.field("error_code", pa.string()),
    pa.field("error_message", pa.string()),
    pa.field("num_prompt_tokens", pa.int32(), nullable=False),
    pa.field("num_completion_tokens", pa.int32(), nullable=False),
    pa.field("row_seed", pa.int64(), nullable=False),
    pa.field("min_margin", pa.float32()),
    pa.field("num_spec_steps", pa.int32(), nullable=False),
    pa.field("num_plain_steps", pa.int32(), nullable=False),
    pa.field("num_draft_tokens", pa.int32(), nullable=False),
    pa.field("num_accepted_draft_tokens", pa.int32(), nullable=False),
    pa.field("acceptance_histogram", _INT32_LIST, nullable=False),
    pa.field("draft_length_histogram", _INT32_LIST, nullable=False),
)
assert tuple(field.name for field in _RESULT_FIELDS) == RESULT_COLUMNS
_LOGPROBS_FIELD = pa.field(LOGPROBS_COLUMN, pa.list_(pa.field("element", pa.float32(), nullable=False)))


@dataclass(frozen=True, slots=True)
class PartMeta:
    """What a part's footer says.

    Attributes:
        plan: plan digest P.
        row_start: first ``row_id`` of the shard.
        row_stop: one past its last ``row_id``.
        token: names the attempt that wrote the part.
    """

    format: str
    plan: str
    shard: int
    row_start: int
    row_stop: int
    token: str
    stats: PartStats


_META = TypeAdapter(PartMeta)


def result_schema(input_schema: pa.Schema, *, with_logprobs: bool = False) -> pa.Schema:
    """The schema of every part: the input's columns as they are, then ``RESULT_COLUMNS``, then any logprobs."""
    metadata = {key: value for key, value in (input_schema.metadata or {}).items() if key != _META_KEY.encode()}
    return pa.schema([*input_schema, *_result_fields(with_logprobs)], metadata=metadata or None)


def part_stats(results: Sequence[RowResult], seconds: PhaseSeconds) -> PartStats:
    """The sums over a part's results."""
    codes = [result.error_code for result in results if result.error_code is not None]
    return PartStats(
        num_rows=sum(result.sample_index == 0 for result in results),
        num_results=len(results),
        num_ok=len(results) - len(codes),
        num_prompt_tokens=sum(result.num_prompt_tokens for result in results),
        num_completion_tokens=sum(result.num_completion_tokens for result in results),
        num_near_ties=sum(result.num_near_ties for result in results),
        errors_by_code=tuple((code, codes.count(code)) for code in sorted(set(codes))),
        counters=SpecCounters.total(result.counters for result in results),
        seconds=seconds,
    )


def write_part(
    path: Path,
    rows: pa.Table,
    results: Sequence[RowResult],
    meta: PartMeta,
    *,
    num_samples: int = 1,
    with_logprobs: bool = False,
    clock: Callable[[], float] | None = None,
) -> PartMeta:
    """Write one part to a local file. Equal arguments give equal bytes.

    Args:
        path: the file to make; it must not exist.
        rows: the input rows of the shard, in order.
        results: ``num_samples`` results for each row, in the order of rows and, within a row, of samples.
        meta: what the footer says.
        with_logprobs: add the column of logprobs.
        clock: if given, the seconds that encoding took by this clock are added to ``stats.seconds.write``.

    Returns:
        The meta as it was written.

    Raises:
        OSError: the file cannot be written.
    """
    planned = [(row, sample) for row in range(meta.row_start, meta.row_stop) for sample in range(num_samples)]
    assert [(result.row_id, result.sample_index) for result in results] == planned, "not the planned rows and samples"
    assert rows.num_rows * num_samples == len(results), f"{rows.num_rows} rows, {len(results)} results"
    assert meta.stats.num_results == len(results), "the statistics are of other rows"
    started = clock() if clock else 0.0
    schema = result_schema(rows.schema, with_logprobs=with_logprobs)
    arrays = _result_arrays(results, _result_fields(with_logprobs))
    table = pa.Table.from_arrays([*_repeated(rows, num_samples).columns, *arrays], schema=schema)
    with path.open("xb") as file, pq.ParquetWriter(file, schema, **_WRITER_OPTIONS) as writer:
        writer.write_table(table, row_group_size=max(table.num_rows, 1))
        if clock:
            seconds = meta.stats.seconds + PhaseSeconds(write=clock() - started)
            meta = dataclasses.replace(meta, stats=dataclasses.replace(meta.stats, seconds=seconds))
        # In the footer only: in the schema's metadata it would follow the table into files that others derive from it.
        writer.add_key_value_metadata({_META_KEY: canonical_json(dataclasses.asdict(meta)).decode()})
    return meta


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
    try:
        meta = _META.validate_json(stored, strict=True)
    except ValidationError as error:
        raise _not_sound("its footer is damaged") from error
    if meta.format != PART_FORMAT:
        raise _not_sound(f"its format is {meta.format!r}, not {PART_FORMAT!r}")
    _check_counts(meta, parquet.metadata.num_rows)
    names = tuple(parquet.schema_arrow.names)
    added = names[:-1] if names[-1:] == (LOGPROBS_COLUMN,) else names
    if added[-len(RESULT_COLUMNS) :] != RESULT_COLUMNS:
        raise _not_sound("it lacks the result columns")
    return meta


def _check_counts(meta: PartMeta, num_stored: int) -> None:
    stats = meta.stats
    num_rows = meta.row_stop - meta.row_start
    has_samples = num_stored % num_rows == 0 and num_stored >= num_rows if num_rows else num_stored == 0
    if not (num_stored == stats.num_results and num_rows == stats.num_rows and has_samples):
        raise _not_sound(
            f"it holds {num_stored} rows; its footer says rows {meta.row_start} to {meta.row_stop - 1} "
            f"and {stats.num_results} results"
        )


def _not_sound(reason: str) -> SpecbatchError:
    return SpecbatchError(ErrorCode.JOB_INTEGRITY, f"it is not a sound part: {reason}")


def _result_fields(with_logprobs: bool) -> tuple[pa.Field, ...]:
    return (*_RESULT_FIELDS, _LOGPROBS_FIELD) if with_logprobs else _RESULT_FIELDS


def _repeated(rows: pa.Table, num_samples: int) -> pa.Table:
    """Every row so many times, side by side."""
    if num_samples == 1:
        return rows
    try:
        return rows.take(pa.array([row for row in range(rows.num_rows) for _ in range(num_samples)], pa.int64()))
    except pa.ArrowNotImplementedError:  # Arrow takes no views; slices of one row do for every type
        slices = [rows.slice(row, 1) for row in range(rows.num_rows) for _ in range(num_samples)]
        return pa.concat_tables(slices) if slices else rows


def _result_arrays(results: Sequence[RowResult], fields: Sequence[pa.Field]) -> list[pa.Array]:
    columns: dict[str, list[Any]] = {
        "row_id": [result.row_id for result in results],
        "sample_index": [result.sample_index for result in results],
        "status": [result.status for result in results],
        "completion": [result.completion for result in results],
        "completion_token_ids": [result.completion_token_ids for result in results],
        "finish_reason": [result.finish_reason for result in results],
        "error_code": [result.error_code for result in results],
        "error_message": [result.error_message for result in results],
        "num_prompt_tokens": [result.num_prompt_tokens for result in results],
        "num_completion_tokens": [result.num_completion_tokens for result in results],
        "row_seed": [result.row_seed for result in results],
        "min_margin": [result.min_margin for result in results],
        "num_spec_steps": [result.counters.num_spec_steps for result in results],
        "num_plain_steps": [result.counters.num_plain_steps for result in results],
        "num_draft_tokens": [result.counters.num_draft_tokens for result in results],
        "num_accepted_draft_tokens": [result.counters.num_accepted_draft_tokens for result in results],
        "acceptance_histogram": [result.counters.acceptance_histogram for result in results],
        "draft_length_histogram": [result.counters.draft_length_histogram for result in results],
        LOGPROBS_COLUMN: [result.logprobs for result in results],
    }
    return [pa.array(columns[field.name], field.type) for field in fields]
