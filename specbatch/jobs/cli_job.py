"""The commands that take a whole job: ``submit``, ``plan`` and ``config show``, on the options of ``cli_options``."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import typer

from specbatch.jobs.cli_options import Format, job_options
from specbatch.jobs.cli_run import run_prepared

if TYPE_CHECKING:
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
    from specbatch.jobs.prepare import prepare

    run_prepared(prepare(settings), options["format"], started)


def _plan(options: dict[str, Any]) -> None:
    _print_plan(_settings(options), options["format"])


def _show_settings(options: dict[str, Any]) -> None:
    from specbatch.jobs.plan_text import render_settings

    typer.echo(render_settings(_settings(options), _document_format(options["format"])), nl=False)


submit = _command(_submit)
plan = _command(_plan, "dry_run")
show_settings = _command(_show_settings, "dry_run")


def _print_plan(settings: Settings, format: Format) -> None:
    from specbatch.jobs.plan_text import render_plan
    from specbatch.jobs.prepare import prepare

    typer.echo(render_plan(prepare(settings), _document_format(format)), nl=False)


def _document_format(format: Format) -> str:
    return "json" if format in (Format.JSON, Format.JSONL) else "human"
