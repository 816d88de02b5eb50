"""What every command that runs a job does: show its progress, say how it ended, exit as it ended."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from specbatch.jobs.cli.options import Format
from specbatch.schemas.log_lines import encode_line, now_text, read_log_settings

if TYPE_CHECKING:
    from specbatch.jobs.display.progress import ProgressView
    from specbatch.jobs.planning.prepare import PreparedJob
    from specbatch.jobs.running.job import JobOutcome
    from specbatch.jobs.running.notify import Notifier


def run_prepared(
    prepared: PreparedJob,
    format: Format,
    started: float,
    *,
    go_on: str | None = None,
    whole: str | None = None,
    notifier: Notifier | None = None,
) -> NoReturn:
    """Run a prepared job and exit as it ended.

    Args:
        started: ``time.monotonic()`` at the start of the command.
        go_on: the command that goes on after an interruption; ``resume`` of the output if None.
        whole: the output whose report shows this one too.
        notifier: is told how the run ended, unless it fails.
    """
    from specbatch.jobs.running.interrupt import StopNow
    from specbatch.jobs.running.job import run_job
    from specbatch.jobs.spec.address import is_jobs_endpoint

    go_on = go_on or f"specbatch resume {shlex.quote(prepared.output)}"
    view = progress_view(format)
    if is_jobs_endpoint(prepared.spec.execution.address):
        from specbatch.jobs.cli.remote import run_remote

        run_remote(prepared, view, format, go_on=go_on, whole=whole, notifier=notifier)
    try:
        outcome = run_job(prepared, view, talk(format), started=started)
    except StopNow as stop:
        typer.echo(f"stopped; finished parts are kept, go on with: {go_on}", err=True)
        if notifier is not None:
            notifier.stopped(128 + stop.number)
        raise typer.Exit(128 + stop.number) from None
    end_run(outcome, format, go_on=go_on, whole=whole, notifier=notifier)


def end_run(
    outcome: JobOutcome, format: Format, *, go_on: str, whole: str | None = None, notifier: Notifier | None = None
) -> NoReturn:
    """As ``end``, with the command that goes on where the run was interrupted; ``notifier`` is told first."""
    if outcome.manifest is None:
        progress = f"{outcome.parts_done} of {outcome.num_parts} parts are done"
        typer.echo(f"interrupted: {progress}, go on with: {go_on}", err=True)
    if notifier is not None:
        notifier.ended(outcome)
    end(outcome, format, whole=whole)


def progress_view(format: Format) -> ProgressView:
    """Where the progress of a run is shown."""
    from specbatch.jobs.display.progress import make_view
    from specbatch.jobs.running.events import EventWriter

    if format is Format.JSONL:
        return EventWriter(typer.echo)
    return make_view("quiet" if format is Format.QUIET or read_log_settings().is_json else "auto")


def end(outcome: JobOutcome, format: Format, *, whole: str | None = None) -> NoReturn:
    """Print how a run ended, on stdout, and exit with its code."""
    _print_outcome(outcome, format)
    if whole is not None and outcome.manifest is not None and format in (Format.AUTO, Format.HUMAN):
        typer.echo(f"whole:   specbatch report {shlex.quote(whole)}")
    raise typer.Exit(int(outcome.exit_code))


def talk(format: Format) -> Callable[[str], None]:
    """Where single lines for the user go: nowhere under ``--format quiet``, to both outputs under ``jsonl``."""

    def say(line: str) -> None:
        from specbatch.jobs.display.formatting import clean

        settings = read_log_settings()
        if settings.is_json:
            if settings.shows("info"):
                typer.echo(encode_line(now_text(), "info", "said", line), err=True, nl=False)
            return
        print(clean(line), file=sys.stderr, flush=True)  # noqa: T201 - through sys.stderr, above a live view

    def tell(line: str) -> None:
        from specbatch.jobs.running.events import EventWriter

        EventWriter(typer.echo).note(line)
        say(line)

    return {Format.QUIET: lambda line: None, Format.JSONL: tell}.get(format, say)


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
    from specbatch.jobs.reports.sections import describe
    from specbatch.jobs.reports.text import render_summary
    from specbatch.jobs.running.events import EventWriter

    manifest = outcome.manifest
    if format is Format.JSON:
        typer.echo(json.dumps(outcome_document(outcome), indent=2))
    elif format is Format.JSONL:
        EventWriter(typer.echo).end(outcome_document(outcome))
    elif format is Format.QUIET:
        typer.echo(outcome.output)
    elif manifest is not None:
        if outcome.was_complete:
            typer.echo("this job was finished by an earlier run; nothing was done", err=True)
        typer.echo(render_summary(describe(outcome.output, manifest)))
        typer.echo(f"results: {outcome.output}/data/*.parquet")
        typer.echo(f"report:  specbatch report {shlex.quote(outcome.output)}")
