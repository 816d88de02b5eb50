"""Pieces of the dataset card: Markdown that foreign text cannot break out of, and what the columns mean."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from specbatch.jobs.display import formatting as fmt
from specbatch.schemas.manifest import JobDocument
from specbatch.schemas.rows import LOGPROBS_COLUMN, RESULT_COLUMNS, duplicate_column

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$])")
_MEANINGS: Mapping[str, str] = {
    "row_id": "position of the row in the input",
    "sample_index": "number of the sample among those of its row, from 0",
    "status": "`ok` or `error`",
    "completion": "the generated text; null for an error",
    "completion_token_ids": "its tokens, with the one that ended it",
    "finish_reason": "`stop`, `length` or `error`",
    "error_code": "why there is no completion; null where there is one",
    "error_message": "the same in words",
    "num_prompt_tokens": "tokens of the prompt",
    "num_completion_tokens": "tokens of the completion",
    "row_seed": "seed of this sample: with it the target alone makes the same text",
    "min_margin": "smallest gap between the best and the second-best token, in logits",
    "num_spec_steps": "rounds that checked draft tokens",
    "num_plain_steps": "rounds without draft tokens",
    "num_draft_tokens": "draft tokens that were proposed",
    "num_accepted_draft_tokens": "draft tokens that the target would have said too",
    "acceptance_histogram": "entry i counts the rounds that accepted i draft tokens",
    "draft_length_histogram": "entry k counts the rounds that proposed k draft tokens",
    LOGPROBS_COLUMN: "log-probability of each token under the target",
}


def columns(document: JobDocument) -> str:
    """The table of columns: those of the input in one line, each that was added with its meaning."""
    output = document.identity.fields.get("output", {})
    generation = document.identity.fields.get("generation", {})
    prefix = str(output.get("prefix", ""))
    kept = output.get("keep_columns")
    passed = "all columns of the input" if kept is None else "of the input: " + ", ".join(map(str, kept))
    renamed = f"; renamed: {', '.join(map(str, output['rename']))}" if output.get("rename") else ""
    rows = [("input", text(passed + renamed))]
    if output.get("dedupe") == "mark":
        rows.append(
            (f"`{code(duplicate_column(prefix))}`", "the first row with the same prompt; null where it is itself")
        )
    names = (*RESULT_COLUMNS, LOGPROBS_COLUMN) if generation.get("logprobs") is True else RESULT_COLUMNS
    rows += [(f"`{code(prefix + name)}`", _MEANINGS[name]) for name in names]
    return table(("column", "meaning"), rows)


def last(name: str) -> str:
    """The last part of a path: where things lie on the machine of whoever made them is nobody's business."""
    return name.rstrip("/").rpartition("/")[2]


def place(name: str) -> str:
    """A model or dataset as others may see it: a name or URI as it is, of a local path the last part."""
    return last(name) if name.startswith(("/", "~")) else name


def table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    """A table of two columns; the cells are Markdown already."""
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)


def text(value: object) -> str:
    """Foreign text as one line of Markdown that means nothing but itself."""
    return _MARKDOWN.sub(r"\\\1", fmt.clean(value, 500))


def code(value: object) -> str:
    """Foreign text between backticks, in a cell of a table."""
    return fmt.clean(value, 200).replace("`", "'").replace("|", "\\|")


def short(value: Any) -> str:
    """A setting; of a long one only its length."""
    shown = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
    return shown if len(shown) <= 80 else f"({len(shown)} characters)"


def number(value: float | None) -> str:
    """Two digits behind the point; ``-`` for None."""
    return "-" if value is None else f"{value:.2f}"
