"""Whether a dataset has the columns that a job names, of types that it can use: checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.prompt import PassThrough, PromptSpec, listed, missing_column
from specbatch.schemas.rows import reserved_columns
from specbatch.schemas.spec import JobSpec
from specbatch.schemas.suggest import closest
from specbatch.storage.input_columns import json_reason
from specbatch.workers.row_params import check_row_param_columns


def check_columns(schema: pa.Schema, spec: JobSpec, bookkeeping: Collection[str] = ()) -> PassThrough:
    """Check the columns that a job names, but those of a template, which ``make_renderer`` checks.

    Args:
        bookkeeping: columns of an earlier job, where the dataset is one's output.

    Returns:
        Which columns pass through, and under which names.

    Raises:
        SpecbatchError: JOB_COLUMN_MISSING, JOB_COLUMN_TYPE, JOB_COLUMN_RESERVED; JOB_CONFIG, settings of columns that
            contradict each other.
    """
    prompt = PromptSpec.of(spec)
    if prompt.messages_column is not None:
        _check_messages(schema, prompt.messages_column)
    elif prompt.template is None:
        _check_prompt(schema, prompt.column)
    if prompt.id_column is not None and prompt.id_column not in schema.names:
        raise _missing(prompt.id_column, schema.names, "--id-column")
    if prompt.seed_by == "id":
        _check_id(schema, prompt.id_column)
    if prompt.row_params:
        check_row_param_columns(schema)
    return PassThrough.of(spec.input, schema.names, reserved_columns(spec.results.prefix), bookkeeping)


def _check_prompt(schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        raise _missing(column, schema.names, "--prompt-column", hint=_other_source(schema))
    kind = schema.field(column).type
    if not _is_text(kind):
        hint = f"; is it a chat? use --messages-column {column}" if _is_chat(kind) else ""
        raise SpecbatchError(
            ErrorCode.JOB_COLUMN_TYPE, f"prompt column {column!r} is {kind}, not text; convert it to string{hint}"
        )
    if reason := json_reason(schema.field(column)):
        raise SpecbatchError(
            ErrorCode.JOB_COLUMN_TYPE, f"prompt column {column!r} is not text in all rows: {reason}; correct these rows"
        )


def _check_messages(schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        raise _missing(column, schema.names, "--messages-column")
    kind = schema.field(column).type
    if not _is_text(kind) and not _is_chat(kind):
        raise SpecbatchError(
            ErrorCode.JOB_COLUMN_TYPE,
            f"messages column {column!r} is {kind}; it must be a list of structs with role and content, or text with "
            "the JSON of such a list",
        )


def _check_id(schema: pa.Schema, column: str | None) -> None:
    if column is None:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG, "--seed-by id makes seeds from ids; name their column with --id-column"
        )
    kind = schema.field(column).type
    if not _is_text(kind) and not pa.types.is_integer(kind):
        raise SpecbatchError(
            ErrorCode.JOB_COLUMN_TYPE, f"id column {column!r} is {kind}; --seed-by id needs text or whole numbers there"
        )


def _missing(column: str, names: Sequence[str], option: str, *, hint: str | None = None) -> SpecbatchError:
    near = closest(column, names)
    if near is None and hint is None:
        return missing_column(column, names, option)
    advice = hint if near is None else f"did you mean {option} {near}?"
    return SpecbatchError(
        ErrorCode.JOB_COLUMN_MISSING,
        f"the dataset has no column {column!r}; its columns are {listed(names)}; {advice}",
    )


def _other_source(schema: pa.Schema) -> str:
    chats = [field.name for field in schema if _is_chat(field.type)]
    return (
        f"use --messages-column {chats[0]}, or name one with --prompt-column"
        if chats
        else "name one with --prompt-column"
    )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_chat(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_struct(kind.value_type):
        return False
    names = {kind.value_type.field(index).name for index in range(kind.value_type.num_fields)}
    return {"role", "content"} <= names
