"""Results as Arrow columns, to stand beside the input's own."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from specbatch.schemas.rows import LOGPROBS_COLUMN, RESULT_COLUMNS, RowResult

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

_HARDLY_REPEATED = frozenset({"row_id", "completion", "row_seed", "min_margin"})
"""A dictionary of these would be built to be given up, or hold every value once: dearer and larger than the values."""
_MAX_SCHEMAS = 8


def result_fields(with_logprobs: bool) -> tuple[pa.Field, ...]:
    """The columns of every part behind the input's, without a prefix."""
    return (*_RESULT_FIELDS, _LOGPROBS_FIELD) if with_logprobs else _RESULT_FIELDS


@lru_cache(maxsize=_MAX_SCHEMAS)
def dictionary_columns(schema: pa.Schema, prefix: str) -> tuple[str, ...]:
    """Parquet's paths of the columns that get a dictionary: the input's, and those results that repeat.

    Args:
        schema: of a part.
        prefix: of the result columns, which stand last.
    """
    empty = io.BytesIO()  # the library alone knows how it names what is inside lists, maps and structs
    pq.write_table(schema.empty_table(), empty)
    paths = pq.ParquetFile(empty).schema
    plain = {prefix + name for name in _HARDLY_REPEATED} | {f"{prefix}{LOGPROBS_COLUMN}.list.element"}
    every = [paths.column(index).path for index in range(len(paths))]
    return tuple(path for path in every if path not in plain)


def row_places(results: Sequence[RowResult]) -> list[int]:
    """Which of the input rows each result belongs to; results of one row stand side by side."""
    places: list[int] = []
    before: RowResult | None = None
    for result in results:
        is_same = before is not None and before.row_id == result.row_id
        places.append((places[-1] if places else -1) + (not is_same))
        before = result
    return places


def rows_at(rows: pa.Table, places: Sequence[int]) -> pa.Table:
    """Rows by ascending place; one may be wanted several times, side by side."""
    if not places:
        return rows.slice(0, 0)
    run = rows.slice(places[0], places[-1] - places[0] + 1)
    if len(places) == run.num_rows:
        return run
    wanted = [place - places[0] for place in places]
    try:
        return run.take(pa.array(wanted, pa.int64()))
    except pa.ArrowNotImplementedError:  # Arrow takes no views; slices of one row do for every type
        return pa.concat_tables(run.slice(place, 1) for place in wanted)


def result_arrays(results: Sequence[RowResult], fields: Sequence[pa.Field]) -> list[pa.Array]:
    """One array for each of ``result_fields``."""
    counters = [result.counters for result in results]
    token_ids = [result.completion_token_ids for result in results]
    codes = [result.error_code for result in results]
    columns: dict[str, list[Any]] = {
        "row_id": [result.row_id for result in results],
        "sample_index": [result.sample_index for result in results],
        "status": ["ok" if code is None else "error" for code in codes],
        "completion": [result.completion for result in results],
        "completion_token_ids": token_ids,
        "finish_reason": [result.finish_reason for result in results],
        "error_code": codes,
        "error_message": [result.error_message for result in results],
        "num_prompt_tokens": [result.num_prompt_tokens for result in results],
        "num_completion_tokens": [len(ids) if ids else 0 for ids in token_ids],
        "row_seed": [result.row_seed for result in results],
        "min_margin": [result.min_margin for result in results],
        "num_spec_steps": [counter.num_spec_steps for counter in counters],
        "num_plain_steps": [counter.num_plain_steps for counter in counters],
        "num_draft_tokens": [counter.num_draft_tokens for counter in counters],
        "num_accepted_draft_tokens": [counter.num_accepted_draft_tokens for counter in counters],
        "acceptance_histogram": [counter.acceptance_histogram for counter in counters],
        "draft_length_histogram": [counter.draft_length_histogram for counter in counters],
        LOGPROBS_COLUMN: [result.logprobs for result in results],
    }
    return [pa.array(columns[field.name], field.type) for field in fields]
