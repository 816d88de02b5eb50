"""``specbatch schedule render``: what other schedulers install."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbatch.schemas.errors import ErrorCode, SpecbatchError

if TYPE_CHECKING:
    from specbatch.jobs.schedules.rendered import Rendered
    from specbatch.jobs.schedules.schedule import Schedule


class Overlap(StrEnum):
    SKIP = "skip"
    WAIT = "wait"


class Missed(StrEnum):
    RUN = "run"
    SKIP = "skip"


class Target(StrEnum):
    KUBERAY = "kuberay"
    K8S_CRONJOB = "k8s-cronjob"
    CRON = "cron"
    SYSTEMD = "systemd"
    AIRFLOW = "airflow"


def render(
    spec: Annotated[str, typer.Argument(metavar="SPEC|NAME", help="A job file, or a schedule of --store.")],
    to: Annotated[Target, typer.Option("--to", help="What is to run it.")],
    store: Annotated[
        str | None, typer.Option("--store", metavar="URI", help="That a schedule's NAME is looked up in.")
    ] = None,
    cron: Annotated[str | None, typer.Option("--cron", metavar="LINE", help="With SPEC: five fields.")] = None,
    timezone: Annotated[str | None, typer.Option("--timezone", metavar="ZONE", help="With SPEC. [UTC]")] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="With SPEC. [the file's]")] = None,
    overlap: Annotated[Overlap | None, typer.Option("--overlap", help="With SPEC. [skip]")] = None,
    missed: Annotated[Missed | None, typer.Option("--missed", help="With SPEC. [run]")] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="IMAGE", help="Container with specbatch, for Kubernetes.")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", metavar="NAME", help="For Kubernetes. [that of kubectl]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FOLDER", help="Write the files here instead of printing them.")
    ] = None,
) -> None:
    """Print what cron, systemd, Airflow or Kubernetes need to run a schedule, each night for its planned time."""
    from specbatch.jobs.schedules.rendered import render_schedule

    given = {"--cron": cron, "--timezone": timezone, "--name": name, "--overlap": overlap, "--missed": missed}
    schedule, job_file = _schedule_to_render(
        spec, store, given, is_local=to not in (Target.KUBERAY, Target.K8S_CRONJOB)
    )
    rendered = render_schedule(schedule, to.value, job_file=job_file, image=image, namespace=namespace, folder=output)
    _put(rendered, output)


def _put(rendered: Rendered, output: Path | None) -> None:
    from specbatch.jobs.display.formatting import clean
    from specbatch.jobs.schedules.rendered import as_text, write_files

    for note in rendered.notes:
        typer.echo(clean(note), err=True)
    if output is None:
        typer.echo(as_text(rendered), nl=False)
        return
    for path in write_files(rendered, output):
        typer.echo(str(path))


def _schedule_to_render(
    spec: str, store: str | None, given: dict[str, str | None], *, is_local: bool
) -> tuple[Schedule, Path | None]:
    """The schedule, and the job file where it comes from one."""
    from specbatch.jobs.schedules.book import open_book
    from specbatch.jobs.schedules.schedule import make_schedule

    if store is not None:
        for flag, value in given.items():
            if value is not None:
                raise SpecbatchError(
                    ErrorCode.JOB_CONFIG, f"{flag} is part of the schedule {spec!r} in --store; leave it out"
                )
        return open_book(store).get(spec), None
    if given["--cron"] is None:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG, f"{spec}: give --cron with a job file, or --store with a schedule's name"
        )
    path = Path(spec)
    schedule = make_schedule(
        path,
        name=given["--name"],
        cron=given["--cron"],
        timezone=given["--timezone"] or "UTC",
        overlap=Overlap(given["--overlap"] or Overlap.SKIP).value,
        missed=Missed(given["--missed"] or Missed.RUN).value,
        now=datetime.now(UTC),
        is_absolute=is_local,
    )
    return schedule, path.absolute()
