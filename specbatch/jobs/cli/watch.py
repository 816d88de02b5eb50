"""The commands that look at jobs from outside: ``status``, ``logs`` and ``list``."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from specbatch.jobs.cli.options import GroupedCommand
from specbatch.schemas.errors import ErrorCode, SpecbatchError

_WATCH_SECONDS = "2"


class TableFormat(StrEnum):
    HUMAN = "human"
    JSON = "json"
    JSONL = "jsonl"


class LogFormat(StrEnum):
    HUMAN = "human"
    JSONL = "jsonl"


class WatchCommand(GroupedCommand):
    """Takes ``--watch`` with or without a number: the parser of options knows only one or the other."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As for every command, with the number put in where it is left out."""
        whole: list[str] = []
        for index, argument in enumerate(args):
            whole.append(argument)
            if argument == "--watch" and not _is_number(args[index + 1] if index + 1 < len(args) else ""):
                whole.append(_WATCH_SECONDS)
        return super().parse_args(ctx, whole)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("status", cls=WatchCommand)(status)
    app.command("logs", cls=GroupedCommand)(logs)
    app.command("list", cls=GroupedCommand)(list_)


def status(
    output: Annotated[str, typer.Argument(metavar="OUT", help="The output of a job: a folder or s3://bucket/prefix.")],
    watch: Annotated[
        float | None,
        typer.Option("--watch", metavar="[SECONDS]", help="Show it live until the job ends; a look every 2 seconds."),
    ] = None,
    format: Annotated[TableFormat, typer.Option("--format", help="How to print it.")] = TableFormat.HUMAN,
) -> None:
    """Print how far a job is, told from its files alone; with --watch, show it live from any machine."""
    from specbatch.jobs.watching.status import read_status, render_status

    if watch is None:
        typer.echo(render_status(read_status(output), format.value), nl=False)
        return
    if not 0.1 <= watch <= 3600:
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"--watch {watch:g}: give seconds from 0.1 to 3600")
    if format is TableFormat.JSON:
        raise SpecbatchError(ErrorCode.JOB_CONFIG, "--watch prints one object after the other: use --format jsonl")
    from specbatch.jobs.watching import watch as watching

    view = watching.make_watch_view(output, sys.stdout, format.value, watch)
    try:
        report = watching.watch(output, view, every_seconds=watch)
    except KeyboardInterrupt:
        return
    typer.echo(render_status(report, format.value), nl=False)


def logs(
    output: Annotated[str, typer.Argument(metavar="OUT", help="The output of a job: a folder or s3://bucket/prefix.")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends, from any machine.")] = False,
    epoch: Annotated[int | None, typer.Option("--epoch", metavar="N", help="Which run. Default: the last.")] = None,
    worker: Annotated[int | None, typer.Option("--worker", metavar="N", help="Only what is about this worker.")] = None,
    format: Annotated[LogFormat, typer.Option("--format", help="How to print it.")] = LogFormat.HUMAN,
) -> None:
    """Print what happened in a run: workers, shards, errors, and the last words of workers that died."""
    from specbatch.jobs.display.formatting import clean
    from specbatch.jobs.watching.logs import read_log, render_line

    lines = read_log(
        output, epoch=epoch, worker=worker, follow=follow, say=lambda line: typer.echo(clean(line), err=True)
    )
    try:
        for line in lines:
            typer.echo(render_line(line, format.value), nl=False)
    except KeyboardInterrupt:
        return


def list_(
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="A folder or s3://bucket/prefix with outputs below.")],
    depth: Annotated[
        int, typer.Option("--depth", metavar="N", min=1, max=16, help="Folders below it to look into.")
    ] = 4,
    format: Annotated[TableFormat, typer.Option("--format", help="How to print it.")] = TableFormat.HUMAN,
) -> None:
    """List the jobs below a folder or prefix, the newest first: state, rows, errors, times and speed."""
    from specbatch.jobs.watching.listing import list_jobs, render_list

    jobs = list_jobs(prefix, max_depth=depth)
    typer.echo(render_list(jobs, format.value), nl=False)
    if not jobs.is_whole:
        typer.echo("there are more folders than are looked into; give a narrower prefix", err=True)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
