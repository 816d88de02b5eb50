"""The commands before a run that decode: ``preview`` shows a few rows, ``calibrate`` measures the pair."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from specbatch.jobs.cli.job import placed_settings
from specbatch.jobs.cli.options import (
    ASSIGNMENTS,
    CONFIG,
    DATASET,
    FORMAT,
    Format,
    GroupedCommand,
    command,
    job_parameters,
)
from specbatch.jobs.cli.run import talk
from specbatch.jobs.spec.options import OPTIONS

_MOST_PREVIEW_ROWS = 1000
_NOT_CALIBRATED = frozenset({"profile"})
"""Options without meaning where a profile is made."""


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_PREVIEW_ROWS = _parameter(
    "rows",
    5,
    Annotated[
        int,
        typer.Option(
            "--rows", "-n", min=1, max=_MOST_PREVIEW_ROWS, metavar="N", help="Rows to decode: the first ones."
        ),
    ],
)
_CALIBRATE_ROWS = _parameter(
    "rows",
    64,
    Annotated[int, typer.Option("--rows", min=1, max=100_000, metavar="N", help="Rows to draw from the dataset.")],
)
_SECONDS = _parameter(
    "seconds",
    60.0,
    Annotated[
        float,
        typer.Option("--seconds", min=0.1, max=86400, metavar="S", help="How long to measure, loading not counted."),
    ],
)
_SAVE = _parameter(
    "save",
    None,
    Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Keep the profile here too, for --profile FILE.")
    ],
)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("preview", cls=GroupedCommand, help="Decode the first rows here and show them; write nothing.")(preview)
    app.command(
        "calibrate",
        cls=GroupedCommand,
        help="Measure the pair with rows of the dataset: is the draft worth its memory, how long will a job take?",
    )(calibrate)


def _preview(options: dict[str, Any]) -> None:
    from specbatch.jobs.planning.prepare import prepare
    from specbatch.jobs.planning.preview import preview, render_preview

    prepared = prepare(placed_settings(options))
    talk(options["format"])(f"loading {prepared.target.name}")
    found = preview(prepared, options["rows"])
    is_same_text = prepared.spec.generation.coupling == "seed"
    typer.echo(render_preview(found, _document_format(options["format"]), is_same_text=is_same_text), nl=False)


def _calibrate(options: dict[str, Any]) -> None:
    from dataclasses import replace

    from specbatch.jobs.calibration.calibrate import calibrate
    from specbatch.jobs.calibration.text import render_calibration
    from specbatch.jobs.planning.prepare import prepare

    settings = placed_settings(options)
    # What is measured must not rest on what was measured before.
    execution = settings.spec.execution.model_copy(update={"profile": "none"})
    prepared = prepare(replace(settings, spec=settings.spec.model_copy(update={"execution": execution})))
    found = calibrate(
        prepared,
        num_rows=options["rows"],
        seconds=options["seconds"],
        save=options["save"],
        say=talk(options["format"]),
    )
    typer.echo(render_calibration(found, _document_format(options["format"])), nl=False)


def _document_format(format: Format) -> str:
    return "json" if format in (Format.JSON, Format.JSONL) else "human"


preview = command(_preview, (DATASET, *job_parameters(), CONFIG, ASSIGNMENTS, _PREVIEW_ROWS, FORMAT))
calibrate = command(
    _calibrate,
    (
        DATASET,
        *job_parameters(name for name in OPTIONS if name not in _NOT_CALIBRATED),
        CONFIG,
        ASSIGNMENTS,
        _CALIBRATE_ROWS,
        _SECONDS,
        _SAVE,
        FORMAT,
    ),
)
