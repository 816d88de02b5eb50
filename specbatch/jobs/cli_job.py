"""The commands that take a whole job: ``submit``, ``plan`` and ``config show``, on the options of ``cli_options``."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import typer

from specbatch.jobs.cli_options import (
    ASSIGNMENTS,
    CONFIG,
    DATASET,
    DRY_RUN,
    FORMAT,
    Format,
    command,
    given_options,
    job_parameters,
)
from specbatch.jobs.cli_run import run_prepared
from specbatch.jobs.options import OPTIONS

if TYPE_CHECKING:
    from specbatch.jobs.settings import Settings


def _settings(options: dict[str, Any]) -> Settings:
    """The settings of a command line: flags over ``--set`` over the environment over the file over defaults."""
    from specbatch.jobs.settings import environment_layer, flag_layer, read_job_file, resolve, set_layer

    layers = [
        flag_layer(given_options(options, OPTIONS), options["dataset"] or ()),
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
    from specbatch.jobs.prepare import prepare

    run_prepared(prepare(settings), options["format"], started)


def _plan(options: dict[str, Any]) -> None:
    _print_plan(_settings(options), options["format"])


def _show_settings(options: dict[str, Any]) -> None:
    from specbatch.jobs.plan_text import render_settings

    typer.echo(render_settings(_settings(options), _document_format(options["format"])), nl=False)


_SETTINGS = (DATASET, *job_parameters(), CONFIG, ASSIGNMENTS)

submit = command(_submit, (*_SETTINGS, DRY_RUN, FORMAT))
plan = command(_plan, (*_SETTINGS, FORMAT))
show_settings = command(_show_settings, (*_SETTINGS, FORMAT))


def _print_plan(settings: Settings, format: Format) -> None:
    from specbatch.jobs.plan_text import render_plan
    from specbatch.jobs.prepare import prepare

    typer.echo(render_plan(prepare(settings), _document_format(format)), nl=False)


def _document_format(format: Format) -> str:
    return "json" if format in (Format.JSON, Format.JSONL) else "human"
