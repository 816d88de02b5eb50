"""The command line: ``specbatch``. Data on stdout, talk on stderr, documented exit codes, no traceback for bad input.

Only typer is imported here: ``--help`` must be quick and work where nothing heavy is installed.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from specbatch._version import __version__
from specbatch.jobs.cli_job import plan, show_settings, submit
from specbatch.jobs.cli_options import GroupedCommand
from specbatch.jobs.cli_outputs import DocumentFormat, register
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError, VerifyExit

_UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""typer's base of errors in the use of a command; it has no public name for it."""

app = typer.Typer(
    name="specbatch",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Batch generation with speculative decoding: the same text, sooner, and exactly one result per row.",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at settings.")
app.add_typer(config_app, name="config")

app.command("submit", cls=GroupedCommand, help="Run a job: one completion for every row of the dataset.")(submit)
app.command("plan", cls=GroupedCommand, help="Check everything and print settings and plan; start nothing.")(plan)
config_app.command("show", cls=GroupedCommand, help="Print every setting, its value and where it comes from.")(
    show_settings
)


class ReportFormat(StrEnum):
    HUMAN = "human"
    JSON = "json"
    MARKDOWN = "markdown"
    CSV = "csv"


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"specbatch {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (also: SPECBATCH_DEBUG=1).")] = False,
) -> None:
    if debug:
        os.environ["SPECBATCH_DEBUG"] = "1"


@app.command()
def report(
    output: Annotated[list[str], typer.Argument(metavar="OUT...", help="One output, or several to compare.")],
    format: Annotated[ReportFormat, typer.Option("--format", help="How to print it.")] = ReportFormat.HUMAN,
) -> None:
    """Print what finished jobs did: throughput, acceptance, speed-up; several side by side."""
    from specbatch.jobs.report import load_amendments, load_manifest, render

    manifests = [(name, load_manifest(name)) for name in output]
    typer.echo(render(manifests, format.value, [load_amendments(name) for name in output]), nl=False)


@app.command()
def status(
    output: Annotated[str, typer.Argument(metavar="OUT", help="The output of a job.")],
    format: Annotated[DocumentFormat, typer.Option("--format", help="How to print it.")] = DocumentFormat.HUMAN,
) -> None:
    """Print how far a job is, told from its files alone."""
    from specbatch.jobs.status import read_status, render_status

    typer.echo(render_status(read_status(output), format.value), nl=False)


@app.command()
def verify(
    output: Annotated[str, typer.Argument(metavar="OUT", help="The output of a job.")],
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Compare with the dataset too, and decode some rows again with the target alone."),
    ] = False,
) -> None:
    """Check an output: digests, counts, every input row exactly once. Exit 0 sound, 1 incomplete, 7 not sound."""
    from specbatch.jobs.verify import render_verify, verify_output

    verdict = verify_output(output, deep=deep)
    typer.echo(render_verify(verdict), nl=False)
    exits = {"sound": VerifyExit.SOUND, "incomplete": VerifyExit.INCOMPLETE, "not sound": VerifyExit.NOT_SOUND}
    raise typer.Exit(exits[verdict.state])


register(app)


def main() -> None:
    """Entry point of the ``specbatch`` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; every failure has become one line on stderr."""
    try:
        result = app(args=list(arguments), prog_name="specbatch", standalone_mode=False)
    except SpecbatchError as error:
        return _fail(error.code, error.message, error.exit_code, error)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message(), err=True)
            return ExitCode.USAGE
        where = f"{error.ctx.command_path} --help" if error.ctx is not None else "specbatch --help"
        return _fail(ErrorCode.JOB_CONFIG, f"{error.format_message()} (see {where})", ExitCode.USAGE, error)
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted before anything was started")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); Python would complain once more when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except Exception as error:
        message = f"{type(error).__name__}: {error}; please report it with {_write_crash_log(arguments)}"
        return _fail(ErrorCode.JOB_INTERNAL, message, ExitCode.FAILED, error)
    return int(result or 0)


def _fail(code: ErrorCode, message: str, exit_code: int, error: Exception) -> int:
    if os.environ.get("SPECBATCH_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    _say(f"error: {code.value}: {message}")
    return exit_code


def _say(line: str) -> None:
    """One line on stderr, whatever a file name or a value brought into it."""
    from specbatch.jobs.formatting import clean

    typer.echo(clean(line), err=True)


def _write_crash_log(arguments: Sequence[str]) -> Path:
    with tempfile.NamedTemporaryFile("w", prefix="specbatch-crash-", suffix=".txt", delete=False) as file:
        file.write(f"specbatch {__version__}\n{shlex.join(arguments)}\n{traceback.format_exc()}")
    return Path(file.name)
