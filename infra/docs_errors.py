"""``docs/errors.md``, from the list of codes in ``specbatch.schemas``."""

from __future__ import annotations

from specbatch.schemas.error_texts import EXIT_TEXTS, EXPLANATIONS
from specbatch.schemas.errors import ErrorCode, SpecbatchError

_BEGIN = """\
# Error codes

Every failure has a stable code, one line that says what, where and what to do, and an exit code. Finished parts are
always kept: run the same command again to go on. `specbatch explain CODE` prints a row of this page, for the number of
an exit code too.

## Exit codes

| code | meaning | what to do |
|---|---|---|
"""
_JOBS = """
`specbatch verify`: 0 sound, 7 not sound, 1 incomplete. `specbatch doctor`: 0 fit, 2 not.

## Codes of jobs

| code | exit | what happened | what to do |
|---|---|---|---|
"""
_ROWS = """
## Codes of rows

An error row stands in its part like any other row, with `status` `error`, its code, and no completion. The other rows
are decoded, and the job ends with exit 3.

| code | what happened | what to do |
|---|---|---|
"""


def page() -> str:
    """The whole page."""
    lines = [_BEGIN]
    lines += [f"| {int(code)} | {text.meaning} | {text.remedy} |\n" for code, text in EXIT_TEXTS.items()]
    lines.append(_JOBS)
    for code in ErrorCode:
        text = EXPLANATIONS[code]
        if not code.value.startswith("ROW_"):
            number = int(SpecbatchError(code, "").exit_code)
            lines.append(f"| `{code.value}` | {number} | {text.meaning} | {text.remedy} |\n")
    lines.append(_ROWS)
    for code in ErrorCode:
        text = EXPLANATIONS[code]
        if code.value.startswith("ROW_"):
            lines.append(f"| `{code.value}` | {text.meaning} | {text.remedy} |\n")
    return "".join(lines)
