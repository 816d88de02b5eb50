"""One result row, without Arrow: what the engine and the worker hand to the part writer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from specbatch.schemas.stats import SpecCounters

if TYPE_CHECKING:
    from specbatch.schemas.spec import JobSpec

FinishReason = Literal["stop", "length", "error"]

RESULT_COLUMNS: tuple[str, ...] = (
    "row_id",
    "sample_index",
    "status",
    "completion",
    "completion_token_ids",
    "finish_reason",
    "error_code",
    "error_message",
    "num_prompt_tokens",
    "num_completion_tokens",
    "row_seed",
    "min_margin",
    "num_spec_steps",
    "num_plain_steps",
    "num_draft_tokens",
    "num_accepted_draft_tokens",
    "acceptance_histogram",
    "draft_length_histogram",
)
"""Columns that specbatch adds behind the input's own, in this order."""

LOGPROBS_COLUMN = "logprobs"
"""Stands behind ``RESULT_COLUMNS`` in a job that asked for it."""

DUPLICATE_COLUMN = "duplicate_of"
"""Stands before ``RESULT_COLUMNS``, among the input's columns, in a job that marks duplicates."""

BOOKKEEPING_COLUMNS: tuple[str, ...] = RESULT_COLUMNS[RESULT_COLUMNS.index("min_margin") :]
"""How a result came about, not what it is."""


def result_columns(prefix: str = "", with_logprobs: bool = False) -> tuple[str, ...]:
    """The names of the columns that are added behind the input's own, in their order."""
    names = (*RESULT_COLUMNS, LOGPROBS_COLUMN) if with_logprobs else RESULT_COLUMNS
    return tuple(prefix + name for name in names)


def duplicate_column(prefix: str = "") -> str:
    """The name of the column that marks duplicates."""
    return prefix + DUPLICATE_COLUMN


def reserved_columns(prefix: str = "") -> frozenset[str]:
    """Names that no column which passes through may have."""
    return frozenset((*result_columns(prefix, with_logprobs=True), duplicate_column(prefix)))


RESERVED_COLUMNS: frozenset[str] = reserved_columns()
"""Those of a job without a prefix."""

Compression = Literal["zstd", "snappy", "gzip", "lz4", "none"]


@dataclass(frozen=True, slots=True)
class ResultForm:
    """The form of a job's parts.

    Attributes:
        prefix: stands before the name of every column that is added.
        row_group_rows: most results of a row group; None leaves it to the writer.
        with_logprobs: whether there is a column of logprobs.
    """

    prefix: str = ""
    compression: Compression = "zstd"
    row_group_rows: int | None = None
    with_logprobs: bool = False

    @staticmethod
    def of(spec: JobSpec) -> ResultForm:
        """The form that a job asks for."""
        results = spec.results
        return ResultForm(results.prefix, results.compression, results.row_group_rows, spec.generation.logprobs)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are added behind the input's own, in their order."""
        return result_columns(self.prefix, self.with_logprobs)


@dataclass(slots=True)
class RowResult:
    """The result of one (row, sample): a completion, or a named error.

    Never changed once it is made. It is not frozen, because that triples the price of something made for every row.

    Attributes:
        row_id: position of the row in the pinned input order.
        sample_index: 0-based number among the samples of the row.
        completion: text without the stop id or stop string; None for an error row.
        completion_token_ids: with the stop id or the tokens of the stop string; None for an error row.
        min_margin: smallest gap between the best and second-best noisy score over the committed tokens, in
            logits; None for an error row.
        logprobs: of each committed token, log-softmax of the target's raw logits; None for an error row, and where
            they were not asked for.
        num_near_ties: tokens decided by canonical evaluation (not a column; summed in the part's statistics).
    """

    row_id: int
    sample_index: int
    row_seed: int
    finish_reason: FinishReason
    num_prompt_tokens: int = 0
    completion: str | None = None
    completion_token_ids: tuple[int, ...] | None = None
    error_code: str | None = None
    error_message: str | None = None
    min_margin: float | None = None
    logprobs: tuple[float, ...] | None = None
    num_near_ties: int = 0
    counters: SpecCounters = field(default_factory=SpecCounters)

    @property
    def status(self) -> Literal["ok", "error"]:
        return "ok" if self.error_code is None else "error"

    @property
    def num_completion_tokens(self) -> int:
        return len(self.completion_token_ids or ())
