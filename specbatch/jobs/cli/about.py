"""The commands about the tool itself: ``explain`` and ``config``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from specbatch.jobs.cli.job import show_settings
from specbatch.jobs.cli.options import GroupedCommand


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    config_app = typer.Typer(no_args_is_help=True, help="Look at settings, and at the form of job files.")
    config_app.command("show", cls=GroupedCommand, help="Print every setting, its value and where it comes from.")(
        show_settings
    )
    config_app.command("schema", cls=GroupedCommand)(print_schema)
    app.add_typer(config_app, name="config")
    app.command("explain", cls=GroupedCommand)(explain)


def print_schema() -> None:
    """Print the JSON schema of job files, for an editor that checks and completes them."""
    from specbatch.jobs.spec.jobfile_schema import job_schema

    typer.echo(json.dumps(job_schema(), indent=2))


def _codes(incomplete: str) -> list[str]:
    from specbatch.schemas.errors import ErrorCode

    return [code for code in ErrorCode.__members__ if code.startswith(incomplete.upper())]


def explain(
    code: Annotated[
        str | None,
        typer.Argument(metavar="[CODE]", help="An error code or the number of an exit code.", autocompletion=_codes),
    ] = None,
) -> None:
    """Say what an error code or an exit code means and what to do; all of them in a line each without CODE."""
    from specbatch.jobs.cli import explain as explanations

    typer.echo(explanations.list_codes() if code is None else explanations.explain(code), nl=False)
