"""What a command that runs a job does where Ray Jobs run it: hand it over, wait or not, exit as it ended."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, NoReturn

import typer

from specbatch.jobs.cli.options import Format
from specbatch.jobs.cli.run import end_run, talk
from specbatch.schemas.errors import ExitCode

if TYPE_CHECKING:
    from specbatch.jobs.display.progress import ProgressView
    from specbatch.jobs.planning.prepare import PreparedJob
    from specbatch.jobs.running.notify import Notifier
    from specbatch.jobs.spec.settings import Settings
    from specbatch.jobs.submission.submit import Submitted


def run_remote(
    prepared: PreparedJob,
    view: ProgressView,
    format: Format,
    *,
    go_on: str,
    whole: str | None = None,
    notifier: Notifier | None = None,
) -> NoReturn:
    """Hand a prepared job to Ray Jobs; under ``--wait`` stay until it has ended.

    A signal while it waits ends the waiting, never the job: that may be what a closed laptop means too.
    """
    from specbatch.jobs.running.job import JobOutcome
    from specbatch.jobs.submission.follow import Detached, detaching, wait_for_outcome
    from specbatch.jobs.submission.submit import submit_job

    say = talk(format)
    submitted: Submitted | None = None
    try:
        with detaching():
            found = submit_job(prepared, say)
            if isinstance(found, JobOutcome):
                end_run(found, format, go_on=go_on, whole=whole, notifier=notifier)
            submitted, client = found
            say(describe(submitted))
            if not prepared.spec.execution.wait:
                _print_submitted(submitted, format)
                raise typer.Exit(ExitCode.COMPLETE)
            outcome = wait_for_outcome(submitted, client, prepared, view, say)
    except Detached as signal:
        view.close()
        typer.echo(_let_go(prepared.output, submitted), err=True)
        raise typer.Exit(128 + signal.number) from None
    end_run(outcome, format, go_on=go_on, whole=whole, notifier=notifier)


def describe(submitted: Submitted) -> str:
    """That a job is with Ray Jobs, under which name."""
    how = "was submitted before and has not ended" if submitted.was_there else "is submitted"
    return f"{submitted.record.submission_id} {how}, to Ray Jobs at {submitted.record.address}"


def _let_go(output: str, submitted: Submitted | None) -> str:
    """What to say to somebody who does not wait any longer."""
    if submitted is not None:
        return f"not waiting any longer; the job goes on:\n{next_lines(submitted)}"
    return (
        f"stopped while the job was being handed over; specbatch status {shlex.quote(output)} tells whether it was; "
        "the same command goes on from there"
    )


def with_device(settings: Settings) -> Settings:
    """Settings with ``--device auto`` settled by the cluster where Ray Jobs run the job; else as they are."""
    from specbatch.jobs.spec.address import is_jobs_endpoint

    if not is_jobs_endpoint(settings.spec.execution.address):
        return settings
    from specbatch.jobs.submission.run import with_device

    return with_device(settings)


def next_lines(submitted: Submitted) -> str:
    """The next commands, a line each."""
    commands = submitted.next_commands()
    width = max(len(command) for command, _ in commands)
    return "\n".join(f"  {command:<{width}}  {what}" for command, what in commands)


def _print_submitted(submitted: Submitted, format: Format) -> None:
    record = submitted.record
    if format in (Format.JSON, Format.JSONL):
        document = {
            "output": submitted.output,
            "submission_id": record.submission_id,
            "address": record.address,
            "was_there": submitted.was_there,
            "next": [command for command, _ in submitted.next_commands()],
        }
        typer.echo(json.dumps(document, indent=2 if format is Format.JSON else None))
    elif format is Format.QUIET:
        typer.echo(submitted.output)
    else:
        typer.echo(f"{record.submission_id}\n{next_lines(submitted)}")
