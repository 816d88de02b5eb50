"""``specbatch report``: its options, and what it prints or writes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from specbatch.jobs.cli.options import GroupedCommand
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError


class ReportFormat(StrEnum):
    HUMAN = "human"
    JSON = "json"
    MARKDOWN = "markdown"
    CSV = "csv"
    HTML = "html"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("report", cls=GroupedCommand)(report)


def report(
    output: Annotated[list[str], typer.Argument(metavar="OUT...", help="One output, or several to compare.")],
    format: Annotated[ReportFormat, typer.Option("--format", help="How to print it.")] = ReportFormat.HUMAN,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the HTML page to this file.")
    ] = None,
    fail_on_regression: Annotated[
        bool, typer.Option("--fail-on-regression", help="Exit 1 if an output is worse than the first.")
    ] = False,
) -> None:
    """Print what jobs did: throughput, acceptance, speed-up, errors, cost; several side by side.

    Of a job that is not complete it says why, how far it came and what to do, and ends with exit 1.
    """
    from specbatch.jobs.reports.reading import load_night
    from specbatch.jobs.reports.report import compare_nights, load_amendments, render

    if fail_on_regression and len(output) < 2:
        raise SpecbatchError(ErrorCode.JOB_CONFIG, "--fail-on-regression compares outputs; give two or more")
    found = [load_night(name) for name in output]
    nights = [(name, manifest) for name, (manifest, _) in zip(output, found, strict=True)]
    endings = [ending for _, ending in found]
    amendments = [load_amendments(name) for name in output]
    if html is not None:
        _write(html, render(nights, "html", amendments, endings))
    typer.echo(render(nights, format.value, amendments, endings), nl=False)
    comparison = compare_nights(nights)
    if fail_on_regression and comparison is not None and comparison.regressions:
        worse = ", ".join(output[index] for index in comparison.regressions)
        raise typer.Exit(_say_worse(worse, output[0]))
    if any(endings):
        raise typer.Exit(ExitCode.FAILED)


def _say_worse(worse: str, base: str) -> int:
    from specbatch.jobs.display.formatting import clean

    typer.echo(clean(f"worse than {base}: {worse}"), err=True)
    return ExitCode.FAILED


def _write(path: Path, text: str) -> None:
    from specbatch.jobs.display.formatting import clean

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecbatchError(
            ErrorCode.JOB_OUTPUT_UNWRITABLE,
            f"--html {path}: {error.strerror or error}; give a file that can be written",
        ) from None
    typer.echo(f"wrote {clean(path)}", err=True)
