"""The commands that take a whole job: ``submit``, ``plan`` and ``config show``, on the options of ``options.py``."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import typer

from specbatch.jobs.cli.options import (
    ASSIGNMENTS,
    CONFIG,
    DATASET,
    DRY_RUN,
    FORMAT,
    NOTIFY,
    ORIGIN,
    SCAN,
    Format,
    GroupedCommand,
    command,
    given_options,
    job_parameters,
)
from specbatch.jobs.cli.remote import with_device
from specbatch.jobs.cli.run import run_prepared, talk
from specbatch.jobs.spec.options import OPTIONS

if TYPE_CHECKING:
    from specbatch.jobs.spec.settings import Settings


def register(app: typer.Typer) -> None:
    """Add ``submit`` and ``plan`` to the command line."""
    app.command("submit", cls=GroupedCommand, help="Run a job: one completion for every row of the dataset.")(submit)
    app.command("plan", cls=GroupedCommand, help="Check everything and print settings and plan; start nothing.")(plan)


def job_settings(options: dict[str, Any]) -> Settings:
    """The settings of a command line: flags over ``--set`` over the environment over the file over defaults."""
    from specbatch.jobs.spec.settings import (
        environment_layer,
        flag_layer,
        read_job_file,
        resolve,
        set_layer,
        with_text_files,
    )

    layers = [
        flag_layer(given_options(options, OPTIONS), options["dataset"] or ()),
        set_layer(options["assignments"] or ()),
        environment_layer(os.environ),
    ]
    layers = [with_text_files(layer) for layer in layers]
    if options["config"] is not None:
        layers.append(read_job_file(options["config"]))
    return resolve(layers)


def placed_settings(options: dict[str, Any]) -> Settings:
    """The settings of a command line that looks for the dataset: with its placeholders filled in."""
    from specbatch.jobs.spec.placeholders import with_logical_date

    return with_logical_date(job_settings(options), options["config"])


def _submit(options: dict[str, Any]) -> None:
    started = time.monotonic()
    if options["dry_run"]:
        _print_plan(with_device(placed_settings(options)), options["format"], SCAN.default)
        return
    from specbatch.jobs.running.notify import make_notifier

    notifier = make_notifier(options["notify"], os.environ, talk(options["format"]))
    try:
        settings = with_device(placed_settings(options))
        notifier.check_waits(settings.spec.execution.wait)
        notifier.logical_date = settings.spec.execution.logical_date
        from specbatch.jobs.planning.prepare import prepare

        prepared = prepare(settings)
        notifier.output = prepared.output
        run_prepared(prepared, options["format"], started, notifier=notifier)
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        notifier.failed(error)
        raise


def _plan(options: dict[str, Any]) -> None:
    _print_plan(with_device(placed_settings(options)), options["format"], options["scan"])


def _show_settings(options: dict[str, Any]) -> None:
    settings, format = job_settings(options), _document_format(options["format"])
    if options["origin"]:
        from specbatch.jobs.planning.text import render_settings

        typer.echo(render_settings(settings, format), nl=False)
    else:
        from specbatch.jobs.spec.jobfile_schema import render_job_file

        typer.echo(render_job_file(settings.spec, format), nl=False)


_SETTINGS = (DATASET, *job_parameters(), CONFIG, ASSIGNMENTS)

submit = command(_submit, (*_SETTINGS, NOTIFY, DRY_RUN, FORMAT))
plan = command(_plan, (*_SETTINGS, SCAN, FORMAT))
show_settings = command(_show_settings, (*_SETTINGS, ORIGIN, FORMAT))


def _print_plan(settings: Settings, format: Format, scan_rows: str) -> None:
    from specbatch.jobs.planning.prepare import prepare
    from specbatch.jobs.planning.scan import parse_scan, scan
    from specbatch.jobs.planning.text import render_plan

    amount = parse_scan(scan_rows)
    prepared = prepare(settings)
    for note in prepared.notes:
        talk(format)(note)
    found = None if amount == 0 else scan(prepared, amount)
    typer.echo(render_plan(prepared, _document_format(format), found), nl=False)


def _document_format(format: Format) -> str:
    return "json" if format in (Format.JSON, Format.JSONL) else "human"
