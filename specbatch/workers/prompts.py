"""From input rows to prompts: token ids and a seed for each sample, or the error row that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.rows import RowResult
from specbatch.schemas.seeds import row_seed

MAX_PROMPT_BYTES = 8 << 20
"""Most bytes of a prompt that is tokenized: more than the longest context holds, and a few seconds' work."""


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """A sample of a row that can be decoded."""

    row_id: int
    prompt_ids: tuple[int, ...]
    seed: int
    sample_index: int = 0


def prepare_rows(
    table: pa.Table,
    first_row_id: int,
    *,
    prompt_column: str,
    job_seed: int,
    encode: Callable[[str], list[int]],
    context_length: int,
    num_samples: int = 1,
) -> list[PreparedRow | RowResult]:
    """``num_samples`` entries per row of ``table``, in order; a row that cannot be decoded has its error rows already.

    Args:
        first_row_id: ``row_id`` of the first row.
        encode: text to token ids.
        context_length: most tokens of prompt and completion together.
    """
    rows: list[PreparedRow | RowResult] = []
    for row_id, data in enumerate(_prompt_bytes(table.column(prompt_column)), start=first_row_id):
        first = _prepare(row_id, data, row_seed(job_seed, row_id, 0), encode, context_length)
        rows.append(first)
        rows.extend(_sample(first, row_seed(job_seed, row_id, index), index) for index in range(1, num_samples))
    return rows


def error_row(row_id: int, seed: int, code: ErrorCode | str, message: str, *, sample_index: int = 0) -> RowResult:
    """The result of a sample that has no completion; the message never repeats the prompt."""
    return RowResult(
        row_id=row_id,
        sample_index=sample_index,
        row_seed=seed,
        finish_reason="error",
        error_code=str(code),
        error_message=message,
    )


def _sample(first: PreparedRow | RowResult, seed: int, index: int) -> PreparedRow | RowResult:
    """Another sample of a row: the same prompt, or the same error, under its own seed."""
    if isinstance(first, PreparedRow):
        return replace(first, seed=seed, sample_index=index)
    return replace(first, row_seed=seed, sample_index=index)


def _prepare(
    row_id: int, data: bytes | None, seed: int, encode: Callable[[str], list[int]], context_length: int
) -> PreparedRow | RowResult:
    if data is None:
        return error_row(row_id, seed, ErrorCode.ROW_PROMPT_NULL, "the prompt is null")
    if len(data) > MAX_PROMPT_BYTES:
        message = f"the prompt has {len(data)} bytes; at most {MAX_PROMPT_BYTES} are tokenized"
        return error_row(row_id, seed, ErrorCode.ROW_TOO_LARGE, message)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"the prompt is not valid UTF-8 at byte {error.start} of {len(data)}"
        return error_row(row_id, seed, ErrorCode.ROW_ENCODING, message)
    if not text.strip():
        return error_row(row_id, seed, ErrorCode.ROW_PROMPT_EMPTY, "the prompt is empty or only white space")
    prompt_ids = tuple(encode(text))
    if not prompt_ids:
        return error_row(row_id, seed, ErrorCode.ROW_PROMPT_EMPTY, "the prompt has no tokens")
    if len(prompt_ids) + 1 > context_length:
        message = f"the prompt has {len(prompt_ids)} tokens; the context of {context_length} must hold one more"
        return error_row(row_id, seed, ErrorCode.ROW_TOO_LONG, message)
    return PreparedRow(row_id, prompt_ids, seed)


def _prompt_bytes(column: pa.ChunkedArray) -> Iterator[bytes | None]:
    """The prompts undecoded: Parquet promises UTF-8 but nobody has checked it."""
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type):
            values = _as_bytes(chunk.dictionary)
            yield from (None if index is None else values[index] for index in chunk.indices.to_pylist())
        else:
            yield from _as_bytes(chunk)


def _as_bytes(strings: pa.Array) -> list[bytes | None]:
    if pa.types.is_string_view(strings.type):
        kind = pa.binary_view()
    elif pa.types.is_large_string(strings.type):
        kind = pa.large_binary()
    else:
        kind = pa.binary()
    data: list[bytes | None] = strings.cast(kind).to_pylist()
    return data
