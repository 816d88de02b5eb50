"""``specbatch schedule``: jobs that come again every night."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from specbatch.jobs.cli.options import GroupedCommand
from specbatch.jobs.cli.outputs import DocumentFormat
from specbatch.jobs.cli.report import ReportFormat
from specbatch.jobs.cli.schedule_render import Missed, Overlap, render
from specbatch.schemas.errors import ErrorCode, SpecbatchError

_Store = Annotated[
    str, typer.Option("--store", metavar="URI", help="Where schedules lie: a folder or s3://bucket/prefix.")
]
_Cron = Annotated[str, typer.Option("--cron", metavar="LINE", help="Five fields, such as '15 1 * * *'.")]
_Timezone = Annotated[
    str, typer.Option("--timezone", metavar="ZONE", help="That the line is read in, such as Europe/Berlin.")
]
_Overlap = Annotated[
    Overlap, typer.Option("--overlap", help="A night that comes while the former one runs: skip it, or let it wait.")
]
_Missed = Annotated[
    Missed, typer.Option("--missed", help="A night that nobody saw come: run it for its own date, or skip it.")
]
_Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Only these schedules. [all]")]
_Now = Annotated[str | None, typer.Option("--now", metavar="TIME", help="As if it were this time, with its offset.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    schedules = typer.Typer(no_args_is_help=True, help="Jobs that come again every night: each for its own date, once.")
    for name, function in (
        ("add", add),
        ("list", list_),
        ("remove", remove),
        ("run", run),
        ("render", render),
        ("report", report),
        ("times", times),
    ):
        schedules.command(name, cls=GroupedCommand)(function)
    app.add_typer(schedules, name="schedule")


def add(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A job file, as submit --config takes it.")],
    store: _Store,
    cron: _Cron,
    timezone: _Timezone = "UTC",
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of the schedule, and {job}. [the file's]")
    ] = None,
    overlap: _Overlap = Overlap.SKIP,
    missed: _Missed = Missed.RUN,
    tries: Annotated[
        int, typer.Option("--tries", metavar="N", min=1, max=100, help="Runs of a night that can be resumed.")
    ] = 5,
    retry_seconds: Annotated[
        float,
        typer.Option("--retry-seconds", metavar="S", min=0, max=86400, help="Before the second run; then doubled."),
    ] = 60.0,
    replace: Annotated[bool, typer.Option("--replace", help="Change the schedule of this name.")] = False,
    now: _Now = None,
) -> None:
    """Store a schedule. Its nights are those from now on; schedule run runs them."""
    from specbatch.jobs.schedules.book import open_book
    from specbatch.jobs.schedules.schedule import make_schedule
    from specbatch.jobs.schedules.times import next_time

    at = _parse_now(now)
    schedule = make_schedule(
        spec,
        name=name,
        cron=cron,
        timezone=timezone,
        overlap=overlap.value,
        missed=missed.value,
        now=at,
        tries=tries,
        retry_seconds=retry_seconds,
    )
    book = open_book(store, is_written=True)
    is_new = book.add(schedule, is_replaced=replace)
    planned = next_time(schedule.cron, schedule.zone, at)
    coming = f"next: {planned.isoformat()}" if planned is not None else "its time never comes"
    typer.echo(f"{schedule.name}: {'stored' if is_new else 'is there already'} in {book.store.uri}; {coming}")


def list_(
    store: _Store,
    names: _Names = None,
    nights: Annotated[
        int, typer.Option("--nights", metavar="N", min=0, max=10_000, help="So many last nights of each.")
    ] = 7,
    now: _Now = None,
    format: Annotated[DocumentFormat, typer.Option("--format", help="How to print it.")] = DocumentFormat.HUMAN,
) -> None:
    """List schedules with their next time, and their last nights with state, exit code and output."""
    from specbatch.jobs.schedules.book import open_book
    from specbatch.jobs.schedules.listing import list_schedules, render_schedules

    found = list_schedules(open_book(store), names or (), num_nights=nights, now=_parse_now(now))
    typer.echo(render_schedules(found, format.value), nl=False)


def remove(name: Annotated[str, typer.Argument(metavar="NAME", help="Of the schedule.")], store: _Store) -> None:
    """Take a schedule out of use. What its nights have made stays, and a night that runs is not stopped."""
    from specbatch.jobs.schedules.book import open_book
    from specbatch.jobs.schedules.nights import stamp

    book = open_book(store, is_written=True)
    book.remove(name, stamp(datetime.now(UTC)))
    typer.echo(f"{name}: removed from {book.store.uri}; its nights stay")


def run(
    store: _Store,
    names: _Names = None,
    once: Annotated[bool, typer.Option("--once", help="Do what is due at this moment, then exit.")] = False,
    now: _Now = None,
    notify: Annotated[
        str | None,
        typer.Option("--notify", metavar="URL", help="Post a summary of every night here; or SPECBATCH_NOTIFY_URL."),
    ] = None,
) -> None:
    """Run the nights of schedules as they come due, each as a process of its own. SIGTERM ends it in good order."""
    from specbatch.jobs.cli.options import Format
    from specbatch.jobs.cli.run import talk
    from specbatch.jobs.running.notify import NOTIFY_VARIABLE, check_notify_url
    from specbatch.jobs.schedules.book import open_book
    from specbatch.jobs.schedules.daemon import Daemon
    from specbatch.jobs.schedules.signals import Signals, simulated_now

    if now is not None and not once:
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"--now {now}: it needs --once, which replays one moment")
    environment = dict(os.environ)
    if notify is not None:
        environment[NOTIFY_VARIABLE] = notify
    if environment.get(NOTIFY_VARIABLE):
        check_notify_url(environment[NOTIFY_VARIABLE])
    with Signals() as signals:
        daemon = Daemon(
            open_book(store, is_written=True),
            names=names or (),
            now=simulated_now(None if now is None else _parse_now(now)),
            environment=environment,
            say=talk(Format.AUTO),
            stop_signal=signals.received,
        )
        raise typer.Exit(int(daemon.run(once=once)))


def report(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the schedule.")],
    store: _Store,
    nights: Annotated[
        int, typer.Option("--nights", metavar="N", min=1, max=366, help="So many last complete nights.")
    ] = 7,
    format: Annotated[ReportFormat, typer.Option("--format", help="How to print it.")] = ReportFormat.HUMAN,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the HTML page to this file.")
    ] = None,
    fail_on_regression: Annotated[
        bool, typer.Option("--fail-on-regression", help="Exit 1 if a night is worse than the first of them.")
    ] = False,
) -> None:
    """Print the report over the last complete nights of a schedule, side by side."""
    from specbatch.jobs.cli.report import report as report_outputs
    from specbatch.jobs.schedules.book import open_book
    from specbatch.jobs.schedules.listing import last_outputs

    outputs = last_outputs(open_book(store), name, nights)
    if not outputs:
        raise SpecbatchError(
            ErrorCode.JOB_OUTPUT_MISSING, f"no night of {name} is complete; see: specbatch schedule list"
        )
    report_outputs(outputs, format, html, fail_on_regression and len(outputs) > 1)


def times(
    cron: _Cron,
    timezone: _Timezone = "UTC",
    count: Annotated[int, typer.Option("-n", metavar="N", min=1, max=10_000, help="So many coming times.")] = 5,
    last: Annotated[bool, typer.Option("--last", help="The last time that has come, instead.")] = False,
    now: _Now = None,
) -> None:
    """Print the planned times of a cron line; scripts that are started late take the night's own time from it."""
    from itertools import islice

    from specbatch.jobs.schedules.times import check_cron, last_time, times_after
    from specbatch.jobs.spec.placeholders import parse_zone

    line, zone, at = check_cron(cron), parse_zone(timezone), _parse_now(now)
    if not last:
        typer.echo(
            "".join(f"{planned.isoformat()}\n" for planned in islice(times_after(line, zone, at), count)), nl=False
        )
        return
    planned = last_time(line, zone, at)
    if planned is None:
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"--cron {line!r}: its time has not come in 50 years")
    typer.echo(planned.isoformat())


def _parse_now(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG, f"--now {text[:40]!r}: write it with its offset, as 2026-11-24T01:15+01:00"
        )
    return moment
