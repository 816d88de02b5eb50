"""The command line: ``specbatch``. Data on stdout, talk on stderr, documented exit codes, no traceback for bad input.

Only typer is imported here: ``--help`` must be quick and work where nothing heavy is installed. ``cli/help.py`` lists
the commands and the modules that they are in.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from specbatch._version import __version__
from specbatch.jobs.cli.group import COMPLETE_VARIABLE, GroupedRoot, complete_quickly
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError

_UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""typer's base of errors in the use of a command; it has no public name for it."""

app = typer.Typer(
    name="specbatch",
    cls=GroupedRoot,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Batch generation with speculative decoding: the same text, sooner, and exactly one result per row.",
)


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


def main() -> None:
    """Entry point of the ``specbatch`` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; every failure has become one line on stderr."""
    if COMPLETE_VARIABLE in os.environ:
        complete_quickly()
    try:
        result = app(args=list(arguments), prog_name="specbatch", standalone_mode=False)
    except SpecbatchError as error:
        return _fail(error.code, error.message, error.exit_code, error)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message(), err=True)
            return ExitCode.USAGE
        where = f"{error.ctx.command_path} --help" if error.ctx is not None else "specbatch --help"
        return _fail(ErrorCode.JOB_CONFIG, f"{_usage_message(error)} (see {where})", ExitCode.USAGE, error)
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


def _usage_message(error: Any) -> str:
    near = getattr(error, "possibilities", None)
    if not near:
        return _in_plain_words(str(error.format_message()))
    return f"{error.message}; did you mean {' or '.join(near)}?"


def _in_plain_words(message: str) -> str:
    """What the parser says of a value that it cannot read, without the words of its library."""
    for kind, words in (("integer", "a whole number"), ("number", "a number"), ("boolean", "true or false")):
        message = re.sub(rf"Input should be a valid {kind}\b[^;(]*", f"it must be {words}", message)
    return message.replace("Value error, ", "").replace("Input should be ", "it must be ")


def _fail(code: ErrorCode, message: str, exit_code: int, error: Exception) -> int:
    if os.environ.get("SPECBATCH_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    _say(f"error: {code.value}: {message}")
    return exit_code


def _say(line: str) -> None:
    """One line on stderr, whatever a file name or a value brought into it."""
    from specbatch.jobs.display.formatting import clean

    typer.echo(clean(line), err=True)


def _write_crash_log(arguments: Sequence[str]) -> Path:
    with tempfile.NamedTemporaryFile("w", prefix="specbatch-crash-", suffix=".txt", delete=False) as file:
        file.write(f"specbatch {__version__}\n{shlex.join(_without_secrets(arguments))}\n{traceback.format_exc()}")
    return Path(file.name)


def _without_secrets(arguments: Sequence[str]) -> list[str]:
    """A command line without the address of ``--notify``."""
    shown = list(arguments)
    for index, argument in enumerate(shown):
        if argument.startswith("--notify="):
            shown[index] = "--notify=***"
        elif argument == "--notify" and index + 1 < len(shown):
            shown[index + 1] = "***"
    return shown
