"""The memory ledger as ``plan`` prints it: with the draft against without it and a larger batch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.planning.execution import Execution
from specbatch.specdec.models.ledger import Ledger

_WIDTH = 14


def memory_lines(execution: Execution) -> list[str]:
    """A table with one column for each ledger; one line where the memory cannot be seen from here."""
    plan = execution.memory
    if plan is None:
        return ["memory       of the GPU cannot be seen from here; its worker decides"]
    ledgers = {"without draft": plan.without_draft}
    if plan.with_draft is not None:
        ledgers = {"with draft": plan.with_draft, **ledgers}
    columns = [_column(ledger) for ledger in ledgers.values()]
    ledger = plan.ledger
    lines = [
        f"memory       {fmt.size(ledger.available_bytes)} are free for each worker, "
        f"{fmt.size(ledger.budget_bytes)} may be used; a row of {fmt.count(ledger.row_tokens)} tokens",
        f"  {'':<22}" + "".join(f"{title:>{_WIDTH}}" for title in ledgers),
    ]
    names = dict.fromkeys(name for column in columns for name in column)
    for name in names:
        cells = "".join(f"{column.get(name, '-'):>{_WIDTH}}" for column in columns)
        lines.append(f"  {name:<22}{cells}")
    if plan.with_draft is not None:
        lines.append(f"  {_draft_text(plan.with_draft, plan.without_draft)}")
    return [*lines, f"  {plan.note}"] if plan.note is not None else lines


def _draft_text(with_draft: Ledger, without_draft: Ledger) -> str:
    """What the draft costs, in a sentence."""
    extra = with_draft.total_bytes - without_draft.total_bytes
    memory = f"takes {fmt.size(extra)} more" if extra > 0 else "takes no more memory"
    capacity = f"{fmt.count(with_draft.row_capacity)} rows fit with it, {fmt.count(without_draft.row_capacity)} without"
    if with_draft.batch_size == without_draft.batch_size:
        return f"with the draft a batch {memory}; {capacity}"
    batches = f"the batch is {fmt.count(with_draft.batch_size)} with it, {fmt.count(without_draft.batch_size)} without"
    return f"with the draft a batch {memory}; {batches}; {capacity}"


def memory_document(execution: Execution) -> dict[str, Any] | None:
    """Both ledgers as JSON values; None where the memory cannot be seen from here."""
    plan = execution.memory
    if plan is None:
        return None
    return {
        "uses_draft": plan.uses_draft,
        "note": plan.note,
        "with_draft": None if plan.with_draft is None else _document(plan.with_draft),
        "without_draft": _document(plan.without_draft),
    }


def _column(ledger: Ledger) -> dict[str, str]:
    return {
        "batch": fmt.count(ledger.batch_size),
        **{entry.name: fmt.size(entry.num_bytes) for entry in ledger.entries},
        "sum": fmt.size(ledger.total_bytes),
        "KV per token": fmt.size(ledger.kv_bytes_per_token),
        "rows that fit": fmt.count(ledger.row_capacity),
        "tokens that fit": fmt.count(ledger.kv_token_budget),
    }


def _document(ledger: Ledger) -> dict[str, Any]:
    return {
        **asdict(ledger),
        "entries": [asdict(entry) for entry in ledger.entries],
        "total_bytes": ledger.total_bytes,
        "row_capacity": ledger.row_capacity,
        "kv_token_budget": ledger.kv_token_budget,
    }
