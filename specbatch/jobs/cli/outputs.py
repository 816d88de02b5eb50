"""The commands that work on an existing output, from any machine with its URI alone, and ``doctor``.

Those that run a job take the execution options of ``submit``; what is not given stays as it was.
"""

from __future__ import annotations

import inspect
import json
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specbatch.jobs.cli.options import FORMAT, GroupedCommand, command, given_options, job_parameters
from specbatch.jobs.cli.remote import with_device
from specbatch.jobs.cli.run import end, run_prepared, talk
from specbatch.jobs.spec.options import FREE_OPTIONS
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError, VerifyExit
from specbatch.schemas.suggest import did_you_mean

if TYPE_CHECKING:
    from specbatch.jobs.spec.settings import Layer

_OutArgument = Annotated[
    str, typer.Argument(metavar="OUT", help="The output of a job: a folder or s3://bucket/prefix.")
]
_TargetOption = Annotated[
    str | None,
    typer.Option("--target", metavar="MODEL", help="Where the same target lies now.", rich_help_panel="Models"),
]


class _Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class DocumentFormat(StrEnum):
    HUMAN = "human"
    JSON = "json"


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for name, function, help in (
        (
            "resume",
            _with_execution_options(_resume_options, _resume),
            "Go on with a job: decode what is missing. Options that are not given stay as they were.",
        ),
        (
            "retry-failed",
            _with_execution_options(_retry_options, _retry_failed),
            "Decode the failed results of a finished job again, as an amendment: the job itself is never edited.",
        ),
        (
            "repair",
            _with_execution_options(_repair_options, _repair),
            "Make a sound copy of a damaged output: copy the sound parts, decode the others again.",
        ),
        ("verify", verify, None),
        ("cancel", cancel, None),
        ("gc", gc, None),
        ("doctor", doctor, None),
    ):
        app.command(name, cls=GroupedCommand, help=help or inspect.cleandoc(function.__doc__ or ""))(function)


def _with_execution_options(
    declared: Callable[..., None], function: Callable[[dict[str, Any]], None]
) -> Callable[..., None]:
    """A function for typer with the parameters of ``declared`` and the execution options, given their values."""
    own = inspect.signature(declared, eval_str=True).parameters
    kept = [name for name in FREE_OPTIONS if name not in own]
    return command(function, (*own.values(), *job_parameters(kept), FORMAT))


def _resume_options(output: _OutArgument, target: _TargetOption = None) -> None:
    """Declares what ``resume`` takes besides."""


def _retry_options(
    output: _OutArgument,
    codes: Annotated[
        list[str] | None,
        typer.Option("--codes", metavar="CODES", help="Only these error codes: ROW_X,ROW_Y or repeated. [all]"),
    ] = None,
    target: _TargetOption = None,
) -> None:
    """Declares what ``retry-failed`` takes besides."""


def _repair_options(
    output: _OutArgument,
    new_output: Annotated[str, typer.Option("--output", metavar="NEW", help="Where the sound copy goes; a new place.")],
    target: _TargetOption = None,
) -> None:
    """Declares what ``repair`` takes besides."""


def _overrides(options: dict[str, Any]) -> Layer:
    """The execution settings that a command line changes."""
    from specbatch.jobs.upkeep.resume import free_layer

    return free_layer(given_options(options, FREE_OPTIONS), os.environ)


def _resume(options: dict[str, Any]) -> None:
    started = time.monotonic()
    from specbatch.jobs.upkeep.resume import complete_outcome, open_output, prepare_stored, resume_settings

    overrides = _overrides(options)
    output = open_output(options["output"])
    settings = resume_settings(output.stored, overrides, output=output.uri)
    outcome = complete_outcome(output, settings)
    if outcome is not None and options["target"] is None:
        end(outcome, options["format"])
    run_prepared(prepare_stored(output.stored, with_device(settings)), options["format"], started)


def _retry_failed(options: dict[str, Any]) -> None:
    started = time.monotonic()
    from specbatch.jobs.upkeep.amendments import prepare_retry

    codes = [code for text in options["codes"] or () for code in text.split(",") if code]
    for code in codes:
        if code not in ErrorCode.__members__ or not code.startswith("ROW_"):
            known = [name for name in ErrorCode.__members__ if name.startswith("ROW_")]
            suggestion = did_you_mean(code, known, f"those are {', '.join(known)}")
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"--codes {code}: it is no code of a row; {suggestion}")
    say = talk(options["format"])
    retry = prepare_retry(options["output"], _overrides(options), codes=codes, say=say)
    if retry is None:
        raise typer.Exit(ExitCode.COMPLETE)
    go_on = f"specbatch retry-failed {shlex.quote(retry.parent)}"
    run_prepared(retry.prepared, options["format"], started, go_on=go_on, whole=retry.parent)


def _repair(options: dict[str, Any]) -> None:
    started = time.monotonic()
    from specbatch.jobs.upkeep.repair import prepare_repair

    say = talk(options["format"])
    repair = prepare_repair(options["output"], options["new_output"], _overrides(options), say=say)
    run_prepared(repair.prepared, options["format"], started)


def verify(
    output: _OutArgument,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Compare with the dataset too, and decode some rows again with the target alone."),
    ] = False,
    format: Annotated[DocumentFormat, typer.Option("--format", help="How to print it.")] = DocumentFormat.HUMAN,
) -> None:
    """Check an output: digests, counts, every input row exactly once. Exit 0 sound, 1 incomplete, 7 not sound."""
    from specbatch.jobs.verify.verify import render_verify, verify_output

    verdict = verify_output(output, deep=deep)
    typer.echo(render_verify(verdict, format.value), nl=False)
    exits = {"sound": VerifyExit.SOUND, "incomplete": VerifyExit.INCOMPLETE, "not sound": VerifyExit.NOT_SOUND}
    raise typer.Exit(exits[verdict.state])


def cancel(output: _OutArgument) -> None:
    """Ask the run that works on an output to stop: it finishes the shards in flight and keeps what is done."""
    from specbatch.jobs.display.formatting import clean
    from specbatch.jobs.upkeep.cancel import cancel_output

    typer.echo(clean(cancel_output(output)))


def gc(
    output: _OutArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Also remove parts of other plans from data/.")] = False,
    format: Annotated[DocumentFormat, typer.Option("--format", help="How to print it.")] = DocumentFormat.HUMAN,
) -> None:
    """Remove what killed runs left behind; parts of the job are never removed. Refused while a run works on it."""
    from specbatch.jobs.upkeep.gc import collect_garbage, render_gc

    report = collect_garbage(output, remove_foreign=yes)
    if format is DocumentFormat.JSON:
        typer.echo(json.dumps(asdict(report), indent=2))
    else:
        typer.echo(render_gc(report), nl=False)


def doctor(
    output: Annotated[
        str | None, typer.Argument(metavar="[OUT|PREFIX]", help="An output, or a folder or prefix for outputs.")
    ] = None,
    target: Annotated[
        str, typer.Option("--target", metavar="MODEL", help="Bundled name, folder or hub id.")
    ] = "code-pair/target",
    draft: Annotated[
        str | None,
        typer.Option("--draft", metavar="MODEL|none", help="Draft model. Default: the target's bundled one."),
    ] = None,
    device: Annotated[_Device, typer.Option("--device", help="Where to decode.")] = _Device.AUTO,
    single_writer: Annotated[
        bool, typer.Option("--single-writer", help="Accept a store that cannot create objects once only.")
    ] = False,
    format: Annotated[DocumentFormat, typer.Option("--format", help="How to print it.")] = DocumentFormat.HUMAN,
) -> None:
    """Check whether this machine, a store and a pair of models are fit for a job. Exit 0 fit, 2 not."""
    from specbatch.jobs.upkeep.doctor import examine, is_fit, render_findings

    findings = examine(output, target=target, draft=draft, device=device.value, single_writer=single_writer)
    typer.echo(render_findings(findings, format.value), nl=False)
    raise typer.Exit(ExitCode.COMPLETE if is_fit(findings) else ExitCode.USAGE)
