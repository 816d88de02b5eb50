"""The columns of a dataset: the same in all of its files, whatever their order."""

from __future__ import annotations

import pyarrow as pa

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.jsonl_types import JSON_KEY


def check_same(first: str, schema: pa.Schema, path: str, other: pa.Schema) -> None:
    """Check that two files have the same columns, in whatever order.

    Raises:
        SpecbatchError: ``JOB_SCHEMA_MISMATCH`` naming both files.
    """
    if difference := _difference(schema, other):
        raise SpecbatchError(
            ErrorCode.JOB_SCHEMA_MISMATCH,
            f"{first} and {path} differ: {difference}; give all files the same columns",
        )


def check_distinct(path: str, schema: pa.Schema) -> pa.Schema:
    """The schema of a file, in which no two columns have one name.

    Raises:
        SpecbatchError: ``JOB_SCHEMA_MISMATCH``.
    """
    names = schema.names
    if len(set(names)) < len(names):
        doubled = min(name for name in names if names.count(name) > 1)
        raise SpecbatchError(
            ErrorCode.JOB_SCHEMA_MISMATCH, f"{path} has two columns named {doubled!r}; rename one of them"
        )
    return schema


def json_reason(field: pa.Field) -> str | None:
    """Why a column of a JSONL file is kept as JSON text; None where it is not."""
    reason = (field.metadata or {}).get(JSON_KEY)
    return None if reason is None else reason.decode("utf-8", "replace")


def _difference(one: pa.Schema, other: pa.Schema) -> str | None:
    """What differs in names, types or nullability; None where only the order (or metadata) does."""
    if one.equals(other, check_metadata=False):
        return None
    for name in (*one.names, *other.names):
        if name not in other.names or name not in one.names:
            return f"only one of them has the column {name!r}"
    if len(one.names) != len(other.names):
        return "one of them has a column twice"
    for left in one:
        right = other.field(left.name)
        if left.type != right.type:
            return f"column {left.name!r} is {left.type} in one and {right.type} in the other"
        if left.nullable != right.nullable:
            return f"column {left.name!r} may be null in one of them only"
    return None
