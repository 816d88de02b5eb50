"""The commands that take a whole job: ``submit``, ``plan`` and ``config show``, on the options of ``cli_options``."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import typer

from specbatch.jobs.cli_options import Format, job_options

if TYPE_CHECKING:
    from specbatch.jobs.job import JobOutcome
    from specbatch.jobs.settings import Settings


_NOT_SETTINGS = frozenset({"dataset", "config", "assignments", "dry_run", "format"})


def _command(function: Callable[[dict[str, Any]], None], *without: str) -> Callable[..., None]:
    """A function for typer with the options of ``job_options`` but those of ``without``, given their values."""

    def command(**options: Any) -> None:
        function(options)

    signature = inspect.signature(job_options, eval_str=True)
    kept = [parameter for name, parameter in signature.parameters.items() if name not in without]
    command.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in kept}
    return command


def _settings(options: dict[str, Any]) -> Settings:
    """The settings of a command line: flags over ``--set`` over the environment over the file over defaults."""
    from specbatch.jobs.settings import environment_layer, flag_layer, read_job_file, resolve, set_layer

    flags = {
        name: str(value) if isinstance(value, StrEnum) else value
        for name, value in options.items()
        if name not in _NOT_SETTINGS and value not in (None, [])
    }
    for name in ("stop_token_ids", "logit_bias"):
        if name in flags:
            flags[name] = ",".join(flags[name])
    layers = [
        flag_layer(flags, options["dataset"] or ()),
        set_layer(options["assignments"] or ()),
        environment_layer(os.environ),
    ]
    if options["config"] is not None:
        layers.append(read_job_file(options["config"]))
    return resolve(layers)


def _submit(options: dict[str, Any]) -> None:
    started = time.monotonic()
    settings = _settings(options)
    if options["dry_run"]:
        _print_plan(settings, options["format"])
        return
    from specbatch.jobs.interrupt import StopNow
    from specbatch.jobs.job import run_job
    from specbatch.jobs.prepare import prepare
    from specbatch.jobs.progress import make_view

    format = options["format"]
    prepared = prepare(settings)
    view = JsonLinesView() if format is Format.JSONL else make_view("quiet" if format is Format.QUIET else "auto")
    resume = shlex.join(["specbatch", *sys.argv[1:]])
    try:
        outcome = run_job(prepared, view, _talk(format), started=started)
    except StopNow as stop:
        typer.echo(f"stopped; finished parts are kept, go on with: {resume}", err=True)
        raise typer.Exit(128 + stop.number) from None
    if outcome.manifest is None:
        progress = f"{outcome.parts_done} of {outcome.num_parts} parts are done"
        typer.echo(f"interrupted: {progress}, go on with: {resume}", err=True)
    _print_outcome(outcome, format)
    raise typer.Exit(int(outcome.exit_code))


def _plan(options: dict[str, Any]) -> None:
    _print_plan(_settings(options), options["format"])


def _show_settings(options: dict[str, Any]) -> None:
    from specbatch.jobs.plan_text import render_settings

    typer.echo(render_settings(_settings(options), _document_format(options["format"])), nl=False)


submit = _command(_submit)
plan = _command(_plan, "dry_run")
show_settings = _command(_show_settings, "dry_run")


class JsonLinesView:
    """Progress as one JSON object a line on stdout, at most one every two seconds."""

    def __init__(self) -> None:
        self._due = 0.0

    def update(self, doc: Any) -> None:
        """Print the document unless another one was printed just before."""
        if time.monotonic() >= self._due or doc.state != "running":
            self._due = time.monotonic() + 2.0
            typer.echo(json.dumps({"type": "progress", **doc.model_dump(mode="json")}))

    def close(self) -> None:
        """Nothing is left open."""


def outcome_document(outcome: JobOutcome) -> dict[str, Any]:
    """A run's end as JSON values."""
    manifest = outcome.manifest
    return {
        "output": outcome.output,
        "data": f"{outcome.output}/data/*.parquet",
        "exit_code": int(outcome.exit_code),
        "parts_done": outcome.parts_done,
        "parts": outcome.num_parts,
        "was_complete": outcome.was_complete,
        "job_id": manifest.job_id if manifest is not None else None,
        "manifest": f"{outcome.output}/manifest.json" if manifest is not None else None,
        "counts": manifest.commit.counts.model_dump() if manifest is not None else None,
        "throughput": manifest.observed.throughput.model_dump() if manifest is not None else None,
    }


def _print_outcome(outcome: JobOutcome, format: Format) -> None:
    from specbatch.jobs.report import render

    manifest = outcome.manifest
    if format is Format.JSON:
        typer.echo(json.dumps(outcome_document(outcome), indent=2))
    elif format is Format.JSONL:
        typer.echo(json.dumps({"type": "outcome", **outcome_document(outcome)}))
    elif format is Format.QUIET:
        typer.echo(outcome.output)
    elif manifest is not None:
        if outcome.was_complete:
            typer.echo("this job was finished by an earlier run; nothing was done", err=True)
        typer.echo(render([(outcome.output, manifest)], "human"))
        typer.echo(f"results: {outcome.output}/data/*.parquet")
        typer.echo(f"report:  specbatch report {shlex.quote(outcome.output)}")


def _print_plan(settings: Settings, format: Format) -> None:
    from specbatch.jobs.plan_text import render_plan
    from specbatch.jobs.prepare import prepare

    typer.echo(render_plan(prepare(settings), _document_format(format)), nl=False)


def _document_format(format: Format) -> str:
    return "json" if format in (Format.JSON, Format.JSONL) else "human"


def _talk(format: Format) -> Callable[[str], None]:
    """Where single lines for the user go: nowhere under ``--format quiet``."""

    def say(line: str) -> None:
        from specbatch.jobs.formatting import clean

        print(clean(line), file=sys.stderr, flush=True)  # noqa: T201 - through sys.stderr, above a live bar

    return (lambda line: None) if format is Format.QUIET else say
