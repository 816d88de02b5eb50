"""From input rows to prompts: token ids, a seed and the sampling of each sample, or the error row that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.prompt import PromptSpec
from specbatch.schemas.rows import RowResult
from specbatch.schemas.seeds import prompt_seed, row_seed, row_seeds
from specbatch.schemas.spec import GenerationSpec
from specbatch.workers.rendering import Renderer, RowError, Unreadable
from specbatch.workers.row_params import NO_PARAMS, RowOverrides, RowParams, read_row_params

Encode = Callable[[str], list[int]]


@dataclass(slots=True)
class PreparedRow:
    """A sample of a row that can be decoded. Never changed; like ``RowResult`` not frozen for its price.

    Attributes:
        params: what the row sets for itself; None where the job's settings hold.
    """

    row_id: int
    prompt_ids: tuple[int, ...]
    seed: int
    sample_index: int = 0
    params: RowOverrides | None = None


@dataclass(frozen=True, slots=True)
class RowSampling:
    """The seeds of one row and what it sets for itself.

    Attributes:
        key: what its seeds are made of: its position, or its id.
        error: why it cannot be decoded.
    """

    job_seed: int
    key: int | str
    params: RowParams
    error: RowError | None = None

    def seed(self, sample: int) -> int:
        """The seed of a sample. A row's own seed is that of sample 0; those of the others are derived from it."""
        if self.params.seed is not None:
            return prompt_seed(self.params.seed, sample)
        return row_seed(self.job_seed, self.key, sample)


_SampledRow = tuple[int, RowOverrides | None, RowError | None, RowSampling | None]
"""Of one row: the seed of sample 0, what the row sets, why it cannot be decoded, and what its other seeds come from."""


def prepare_rows(
    table: pa.Table,
    first_row_id: int,
    *,
    prompt: PromptSpec,
    generation: GenerationSpec,
    renderer: Renderer,
    encode: Encode,
    context_length: int,
    num_samples: int = 1,
) -> list[PreparedRow | RowResult]:
    """``num_samples`` entries per row of ``table``, in order; a row that cannot be decoded has its error rows already.

    Args:
        first_row_id: ``row_id`` of the first row.
        renderer: of this prompt; it says which columns it reads.
        encode: text to token ids.
        context_length: most tokens of prompt and completion together.
        num_samples: samples 0 .. ``num_samples`` - 1 of every row; not necessarily all that the job makes.
    """
    rows: list[PreparedRow | RowResult] = []
    frame = () if prompt.truncate == "error" else tuple(encode(""))
    render = renderer.render
    for row_id, (seed, overrides, problem, sampling), values in zip(
        range(first_row_id, first_row_id + table.num_rows),
        _sampled(table, first_row_id, prompt, generation),
        prompt_values(table, renderer),
        strict=True,
    ):
        first: PreparedRow | RowResult
        try:
            if problem is not None:
                raise problem
            ids = tuple(encode(render(values)))
            if not ids:
                raise RowError(ErrorCode.ROW_PROMPT_EMPTY, "the prompt has no tokens")
            max_new_tokens = (overrides and overrides.max_new_tokens) or generation.max_new_tokens
            ids = _fitted(ids, prompt, context_length, max_new_tokens, frame)
            first = PreparedRow(row_id, ids, seed, 0, overrides)
        except RowError as error:
            first = error_row(row_id, seed, error.code, error.message)
        rows.append(first)
        if num_samples > 1:
            of_row = sampling or RowSampling(generation.seed, row_id, NO_PARAMS)
            rows.extend(_sample(first, of_row.seed(sample), sample) for sample in range(1, num_samples))
    return rows


def _sampled(
    table: pa.Table, first_row_id: int, prompt: PromptSpec, generation: GenerationSpec
) -> Iterator[_SampledRow]:
    """Of every row, in order. Most jobs let rows set nothing: then only the seeds have to be made."""
    if prompt.seed_by == "row" and not prompt.row_params:
        for seed in row_seeds(generation.seed, first_row_id, table.num_rows):
            yield seed, None, None, None
        return
    for found in row_sampling(table, first_row_id, prompt, generation):
        yield found.seed(0), found.params.overrides, found.error, found


def prompt_values(table: pa.Table, renderer: Renderer) -> Iterator[dict[str, Any]]:
    """What ``Renderer.render`` takes, row by row. Texts stay bytes: nobody has checked that they are UTF-8."""
    if not renderer.columns:
        return iter([{}] * table.num_rows)
    if len(renderer.columns) == 1:  # most jobs
        (name,) = renderer.columns
        return ({name: value} for value in column_values(table.column(name)))
    columns = [column_values(table.column(name)) for name in renderer.columns]
    return (dict(zip(renderer.columns, row, strict=True)) for row in zip(*columns, strict=True))


def row_sampling(
    table: pa.Table, first_row_id: int, prompt: PromptSpec, generation: GenerationSpec
) -> Iterator[RowSampling]:
    """Seeds and overrides of every row, in order."""
    num_rows = table.num_rows
    keys: Iterator[Any] = iter(range(first_row_id, first_row_id + num_rows))
    if prompt.seed_by == "id":
        assert prompt.id_column is not None, "checked before the job began"
        keys = column_values(table.column(prompt.id_column))
    params = read_row_params(table, generation) if prompt.row_params else iter([RowParams()] * num_rows)
    for row_id, (value, found) in enumerate(zip(keys, params, strict=True), start=first_row_id):
        error = None if found.problem is None else RowError(ErrorCode.ROW_PARAMS, found.problem)
        key: int | str = row_id
        if prompt.seed_by == "id":
            try:
                key = id_text(value)
            except RowError as problem:
                error = problem
        yield RowSampling(generation.seed, key, found, error)


def id_text(value: Any) -> str:
    """The text of a row's id, from which its seeds are made.

    Raises:
        RowError: ROW_ID_NULL; ROW_ENCODING.
    """
    if value is None:
        raise RowError(ErrorCode.ROW_ID_NULL, "the id is null, and seeds are made from ids")
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        raise RowError(ErrorCode.ROW_ENCODING, "the id is not valid UTF-8") from None


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


def _fitted(
    ids: tuple[int, ...], prompt: PromptSpec, context_length: int, max_new_tokens: int, frame: tuple[int, ...]
) -> tuple[int, ...]:
    """The ids, or what is left of them where prompts are cut.

    A prompt is cut so that ``max_new_tokens`` fit behind it, but never to less than half of the context. One that fits
    with them is left alone; without cutting one is refused only where not even one token fits behind it.

    Args:
        frame: what the tokenizer gives for no text at all. A beginning of it (a BOS token) stays when the left is cut.

    Raises:
        RowError: ROW_TOO_LONG.
    """
    if prompt.truncate == "error":
        if len(ids) + 1 > context_length:
            message = f"the prompt has {len(ids)} tokens; the context of {context_length} must hold one more"
            raise RowError(ErrorCode.ROW_TOO_LONG, message)
        return ids
    most = max(context_length - min(max_new_tokens, context_length // 2), 1)
    if len(ids) <= most:
        return ids
    if prompt.truncate == "right":
        return ids[:most]
    kept = next((size for size in range(min(len(frame), most - 1), 0, -1) if ids[:size] == frame[:size]), 0)
    return ids[:kept] + ids[len(ids) - (most - kept) :]


def column_values(column: pa.ChunkedArray) -> Iterator[Any]:
    """The cells as Python values, texts undecoded; what cannot be such a value is ``Unreadable``."""
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type):
            values = _chunk_values(chunk.dictionary)
            yield from (None if index is None else values[index] for index in chunk.indices.to_pylist())
        else:
            yield from _chunk_values(chunk)


def _chunk_values(chunk: pa.Array) -> list[Any]:
    kind = chunk.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _as_bytes(chunk)
    if pa.types.is_timestamp(kind) and kind.unit == "ns":  # of which Python knows none
        chunk = chunk.cast(pa.timestamp("us", kind.tz), safe=False)
    try:
        values: list[Any] = chunk.to_pylist()
        return values
    except (ValueError, OverflowError, ArithmeticError):
        return [_value(cell) for cell in chunk]


def _value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except (ValueError, OverflowError, ArithmeticError):
        return Unreadable()


def _as_bytes(strings: pa.Array) -> list[Any]:
    if pa.types.is_string_view(strings.type):
        kind = pa.binary_view()
    elif pa.types.is_large_string(strings.type):
        kind = pa.large_binary()
    else:
        kind = pa.binary()
    data: list[Any] = strings.cast(kind).to_pylist()
    return data
