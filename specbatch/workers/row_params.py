"""Sampling that a row sets for itself: columns named like settings override them where they are not null."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.prompt import ROW_PARAM_COLUMNS
from specbatch.schemas.sampling import SamplingParams
from specbatch.schemas.spec import GenerationSpec

_WHOLE_NUMBERS = frozenset({"max_new_tokens", "top_k", "seed"})
_MAX_KEPT = 4096


@dataclass(frozen=True, slots=True)
class RowOverrides:
    """What a row sets; None leaves the job's setting. Its seed has become the seed of its samples already."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None

    def apply(self, params: SamplingParams) -> SamplingParams:
        """The job's sampling with these settings.

        Raises:
            SpecbatchError: JOB_CONFIG naming the field, where they do not fit.
        """
        return _applied(self, params)


@dataclass(frozen=True, slots=True)
class RowParams:
    """The overrides of one row, or what is wrong with them.

    Attributes:
        overrides: None where the row sets nothing but perhaps its seed.
        seed: of sample 0; None where it follows from the job's.
        problem: names the field; no overrides then.
    """

    overrides: RowOverrides | None = None
    seed: int | None = None
    problem: str | None = None


NO_PARAMS = RowParams()


def read_row_params(table: pa.Table, generation: GenerationSpec) -> Iterator[RowParams]:
    """The overrides of every row, in order, from those of ``ROW_PARAM_COLUMNS`` that the table has."""
    names = [name for name in ROW_PARAM_COLUMNS if name in table.column_names]
    params = generation.sampling_params(seed=0)
    columns = [table.column(name).to_pylist() for name in names]
    for values in zip(*columns, strict=True) if columns else [()] * table.num_rows:
        yield _read(names, values, params, generation.num_samples)


def _read(names: Sequence[str], values: Sequence[Any], params: SamplingParams, num_samples: int) -> RowParams:
    given: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        if value is None:
            continue
        try:
            given[name] = _number(name, value)
        except ValueError as error:
            return RowParams(problem=f"{name} is {value!r}; it must be {error}")
    seed = given.pop("seed", None)
    if seed is not None and not 0 <= seed < 1 << 63:
        return RowParams(problem=f"seed is {seed}; it must be from 0 to 2**63 - 1")
    if given.get("temperature") == 0 and num_samples > 1:
        return RowParams(problem=f"temperature is 0, where the {num_samples} samples of the row would be equal")
    overrides = RowOverrides(**given) if given else None
    try:
        if overrides is not None:
            overrides.apply(params)
    except SpecbatchError as error:
        return RowParams(problem=error.message)
    return RowParams(overrides, seed)


def _number(name: str, value: Any) -> int | float:
    """The number that a cell holds. Whole numbers may come as floats: that is how tables with gaps have them."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("a finite number")
    if name not in _WHOLE_NUMBERS:
        return number
    if number != math.floor(number):
        raise ValueError("a whole number")
    return int(value)


@lru_cache(maxsize=_MAX_KEPT)
def _applied(overrides: RowOverrides, params: SamplingParams) -> SamplingParams:
    given = {field.name: getattr(overrides, field.name) for field in fields(overrides)}
    return replace(params, **{name: value for name, value in given.items() if value is not None})


def check_row_param_columns(schema: pa.Schema) -> None:
    """Refuse a job with ``row_params`` whose dataset has no such column, or one that holds no numbers.

    Raises:
        SpecbatchError: JOB_COLUMN_MISSING, JOB_COLUMN_TYPE.
    """
    names = [name for name in ROW_PARAM_COLUMNS if name in schema.names]
    if not names:
        raise SpecbatchError(
            ErrorCode.JOB_COLUMN_MISSING,
            f"--row-params takes the columns {', '.join(ROW_PARAM_COLUMNS)}, and the dataset has none of them; "
            "leave the option out, or name the columns so",
        )
    for name in names:
        kind = schema.field(name).type
        if not (
            pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_decimal(kind)
            or pa.types.is_null(kind)
        ):
            raise SpecbatchError(
                ErrorCode.JOB_COLUMN_TYPE, f"column {name!r} is {kind}; --row-params needs numbers there, or nulls"
            )
