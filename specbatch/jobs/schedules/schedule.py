"""A schedule: a job file, when it runs, and by which rules. Pure but for reading the job file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from specbatch.jobs.planning.destination import with_partitions
from specbatch.jobs.schedules.times import check_cron, times_after
from specbatch.jobs.spec.placeholders import doubled, fill_places, parse_zone
from specbatch.jobs.spec.settings import Layer, read_job_file, resolve
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.specdec.models.folders import BUNDLED_PREFIX
from specbatch.storage.store import is_s3, local_path

MAX_TRIES = 100

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_NIGHTS_COMPARED = 60
_PLACES = ("input.datasets", "output", "results.partitions")

Overlap = Literal["skip", "wait"]
"""Whether a night that comes while the former one runs is skipped, or waits for its end."""
Missed = Literal["run", "skip"]
"""Whether a night whose time nobody saw is run for its own date, or skipped."""


class Schedule(BaseModel):
    """What is stored of a schedule.

    Attributes:
        job: a job file as JSON values, with placeholders and with absolute places.
        since: when it was added (UTC); nights before are not its own.
        tries: of one night, when a run ends so that it may be resumed. retry_seconds: before the second of them.
        removed_at: None while it is in use.
        revision: goes up with every change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["specbatch/schedule/1"] = "specbatch/schedule/1"
    name: str
    cron: str
    timezone: str
    overlap: Overlap
    missed: Missed
    tries: Annotated[int, Field(ge=1, le=MAX_TRIES)] = 5
    retry_seconds: Annotated[float, Field(ge=0, le=86400)] = 60.0
    job: dict[str, Any]
    since: str
    removed_at: str | None = None
    revision: int = 0

    @property
    def zone(self) -> ZoneInfo:
        return parse_zone(self.timezone)

    @property
    def since_time(self) -> datetime:
        return datetime.fromisoformat(self.since)


def check_name(name: str, where: str = "--name") -> str:
    """The name of a schedule, which is part of keys, file names and ``{job}``.

    Raises:
        SpecbatchError: JOB_CONFIG.
    """
    if not _NAME.fullmatch(name):
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"{where} {name[:80]!r}: a name has 1 to 63 letters, digits, '.', '_' and '-', with a letter or digit at "
            "both ends",
        )
    return name


def make_schedule(
    job_file: Path,
    *,
    name: str | None,
    cron: str,
    timezone: str,
    overlap: Overlap,
    missed: Missed,
    now: datetime,
    tries: int = 5,
    retry_seconds: float = 60.0,
    is_absolute: bool = True,
) -> Schedule:
    """A schedule of a job file, with all of it checked that can be before a night.

    Args:
        name: the file's, without its ending, if None.
        now: from when on its nights count; with an offset.
        is_absolute: make local places absolute, so that a run finds them from any folder.

    Raises:
        SpecbatchError: JOB_CONFIG, the file, cron line, zone or name is not sound; or two nights would write to one
            place.
    """
    layer = read_job_file(job_file)
    name = check_name(job_file.stem if name is None else name)
    for path in ("execution.logical_date", "execution.timezone"):
        if path in layer.values:
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"{job_file}: {path} comes from the schedule; leave it out")
    values = dict(layer.values)
    if is_absolute:
        values = with_absolute_places(values)
    resolve([Layer(values, layer.origins)])  # refuses what submit would refuse of a night
    schedule = Schedule(
        name=name,
        cron=check_cron(cron),
        timezone=parse_zone(timezone).key,
        overlap=overlap,
        missed=missed,
        tries=tries,
        retry_seconds=retry_seconds,
        job=job_document(values),
        since=now.isoformat(),
    )
    check_places(schedule, str(job_file))
    return schedule


def check_places(schedule: Schedule, where: str) -> None:
    """Refuse a schedule whose nights would write to one place, or that names none.

    Raises:
        SpecbatchError: JOB_CONFIG.
    """
    if not schedule.job.get("output"):
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG, f"{where}: output is missing; a schedule needs one, such as output: answers/{{date}}"
        )
    seen: dict[str, datetime] = {}
    for planned in islice(times_after(schedule.cron, schedule.zone, schedule.since_time), _NIGHTS_COMPARED):
        output = output_of(schedule, planned)
        former = seen.setdefault(output, planned)
        # An hour that comes twice makes two nights of one name; the second finds the work of the first.
        if former.replace(tzinfo=None) != planned.replace(tzinfo=None):
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG,
                f"{where}: the nights of {former:%Y-%m-%d %H:%M} and {planned:%Y-%m-%d %H:%M} would both write to "
                f"{output}; put {'{date} and {hour}' if former.date() == planned.date() else '{date}'} into output or "
                "results.partitions",
            )


def places_of(schedule: Schedule, planned: datetime) -> dict[str, Any]:
    """Datasets, output and partitions of one night, by their paths; None where the job file has none.

    Raises:
        SpecbatchError: JOB_CONFIG, a placeholder that there is not.
    """
    values = values_of(schedule.job)
    local = planned.astimezone(schedule.zone)
    names = {"date": local.date().isoformat(), "hour": f"{local.hour:02}", "job": schedule.name}
    return fill_places({path: values.get(path) for path in _PLACES}, names)


def output_of(schedule: Schedule, planned: datetime) -> str:
    """Where the results of one night go."""
    places = places_of(schedule, planned)
    return with_partitions(str(places["output"]), places["results.partitions"] or (), ())


def job_of(schedule: Schedule, planned: datetime) -> dict[str, Any]:
    """The job file of one night: the schedule's with every placeholder filled in, and nothing left to fill."""
    values = values_of(schedule.job)
    for path, place in places_of(schedule, planned).items():
        if isinstance(place, str):
            values[path] = doubled(place)
        elif place is not None:
            values[path] = [doubled(each) for each in place]
    return job_document(values)


def job_document(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their paths as the values of a job file."""
    document: dict[str, Any] = {}
    for path, value in values.items():
        *sections, key = path.split(".")
        inner = document
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = list(value) if isinstance(value, tuple) else value
    return document


def values_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a job file by their paths; the other way of ``job_document``."""
    values: dict[str, Any] = {}
    for name, content in job.items():
        if isinstance(content, Mapping):
            values |= {f"{name}.{key}": value for key, value in content.items()}
        else:
            values[name] = content
    return values


def job_text(job: Mapping[str, Any]) -> str:
    """A job file that gives these settings; JSON, which is YAML too."""
    values = values_of(job)
    for path in ("input.template", "input.system"):
        text = values.get(path)
        if isinstance(text, str) and text.startswith("@"):
            values[path] = f"@{text}"  # a text that begins with @ would be taken for the name of a file
    return json.dumps(job_document(values), indent=2, ensure_ascii=False) + "\n"


def with_absolute_places(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose local places are found from any working folder; other names stay as they are."""
    changed = dict(values)
    datasets = values.get("input.datasets")
    if isinstance(datasets, list):
        changed["input.datasets"] = [name if "://" in str(name) else _absolute(str(name)) for name in datasets]
    output = values.get("output")
    if isinstance(output, str) and not is_s3(output):
        changed["output"] = str(local_path(output, "output"))
    for path in ("models.target", "models.draft"):
        name = values.get(path)
        if isinstance(name, str) and not name.startswith(BUNDLED_PREFIX) and Path(name).expanduser().is_dir():
            changed[path] = _absolute(name)
    profile = values.get("execution.profile")
    if isinstance(profile, str) and profile not in ("auto", "none"):
        changed["execution.profile"] = _absolute(profile)
    return changed


def local_places(job: Mapping[str, Any]) -> tuple[str, ...]:
    """The places of a job that only this machine has for certain."""
    values = values_of(job)
    datasets = values.get("input.datasets") or []
    named = [str(name) for name in datasets if "://" not in str(name)]
    named += [values[path] for path in ("models.target", "models.draft") if str(values.get(path, "")).startswith("/")]
    output = values.get("output")
    return (*named, *([str(output)] if output and not is_s3(str(output)) else []))


def decode_schedule(data: bytes, where: str) -> Schedule:
    """A stored schedule.

    Raises:
        SpecbatchError: JOB_FORMAT, no schedule of a version that this program reads.
    """
    try:
        return Schedule.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        what = ".".join(str(key) for key in first["loc"]) or "it"
        raise SpecbatchError(
            ErrorCode.JOB_FORMAT,
            f"{where} cannot be read as a schedule by this version ({what}: {first['msg']}); "
            "use the version of specbatch that wrote it",
        ) from None


def _absolute(name: str) -> str:
    return str(Path(name).expanduser().absolute())
