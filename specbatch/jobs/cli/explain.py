"""``specbatch explain``: what an error code or an exit code means, without a network and without the documents."""

from __future__ import annotations

import textwrap

from specbatch.schemas.error_texts import EXIT_TEXTS, EXPLANATIONS
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError
from specbatch.schemas.suggest import did_you_mean

_WIDTH = 100


def explain(name: str) -> str:
    """One code in words; ends with a line break.

    Args:
        name: an error code in any case, or the number of an exit code.

    Raises:
        SpecbatchError: JOB_CONFIG, there is no such code.
    """
    code = name.strip().rstrip(":").upper()
    if code in ErrorCode.__members__:
        text = EXPLANATIONS[ErrorCode(code)]
        return _paragraphs(code, (scope(ErrorCode(code)), text.meaning, text.remedy))
    if code.isdecimal() and code.isascii() and int(code) in {int(exit_code) for exit_code in ExitCode}:
        text = EXIT_TEXTS[ExitCode(int(code))]
        verify = {1: " `specbatch verify`: the job is incomplete.", 7: " `specbatch verify`: the output is not sound."}
        return _paragraphs(f"exit {int(code)}", (None, text.meaning + "." + verify.get(int(code), ""), text.remedy))
    suggestion = did_you_mean(code, ErrorCode.__members__, "specbatch explain lists all")
    raise SpecbatchError(ErrorCode.JOB_CONFIG, f"explain {name}: there is no such code; {suggestion}")


def list_codes() -> str:
    """Every exit code and every error code in a line each; ends with a line break."""
    exits = [(str(int(code)), text.meaning) for code, text in EXIT_TEXTS.items()]
    codes = [(code.value, text.meaning) for code, text in EXPLANATIONS.items()]
    lines = [
        "Exit codes",
        *_rows(exits),
        "",
        "Error codes",
        *_rows(codes),
        "",
        "specbatch explain CODE says what to do.",
    ]
    return "\n".join(lines) + "\n"


def scope(code: ErrorCode) -> str:
    """What a code stops, and with which exit code the command ends."""
    if code.value.startswith("ROW_"):
        return "one row: it becomes an error row with this code; the others are decoded, and the job ends with exit 3"
    number = int(SpecbatchError(code, "").exit_code)
    if code.value.startswith("SHARD_"):
        return f"one shard, on each of its attempts: the job stops with exit {number}; finished parts are kept"
    return f"the command: it ends with exit {number}"


def _paragraphs(title: str, texts: tuple[str | None, str, str]) -> str:
    lines = [title]
    for label, text in zip(("it stops", "it means", "what to do"), texts, strict=True):
        if text is not None:
            begin = f"  {label:<11}"
            lines += textwrap.wrap(text, _WIDTH, initial_indent=begin, subsequent_indent=" " * len(begin))
    return "\n".join(lines) + "\n"


def _rows(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {text}" for name, text in rows]
