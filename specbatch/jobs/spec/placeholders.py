"""``{date}``, ``{hour}`` and ``{job}`` in the places of a job: where it reads from and where its results go.

They come from the logical date, the night that a run is for, never from the moment at which it starts: a run that
begins late, or again, reads and writes where it would have on time. They are filled in once, before anything is looked
at; what is stored holds the places themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from specbatch.jobs.spec.settings import Settings
from specbatch.schemas.errors import ErrorCode, SpecbatchError

PLACEHOLDERS = ("date", "hour", "job")

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d)?")
_EPOCH = re.compile(r"@\d{1,11}")
_MAX_ZONE_CHARACTERS = 64
_DOUBLED = str.maketrans({"{": "{{", "}": "}}"})


@dataclass(frozen=True, slots=True)
class LogicalDate:
    """The night that a run is for.

    Attributes:
        text: as it is stored: a day, or a time to the second with its offset where it has one.
        hour: two digits; None where only a day was given.
    """

    text: str
    date: str
    hour: str | None


def parse_zone(name: str, where: str = "--timezone") -> ZoneInfo:
    """The time zone of an IANA name such as ``Europe/Berlin``.

    Raises:
        SpecbatchError: JOB_CONFIG, there is none of this name.
    """
    try:
        if len(name) > _MAX_ZONE_CHARACTERS:
            raise ValueError
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # a name may be a path, a folder, or nothing that there is
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"{where} {name[:_MAX_ZONE_CHARACTERS]!r}: no such time zone; write it as Europe/Berlin",
        ) from None


def parse_logical_date(text: str, zone: ZoneInfo | None, where: str = "--logical-date") -> LogicalDate:
    """A logical date as users and schedulers write it.

    Args:
        text: ``2026-11-24``; ``2026-11-24T01:15`` with or without an offset; ``@`` and seconds since 1970.
        zone: that a time with an offset is read in; as it is written if None (``@``: in UTC).

    Raises:
        SpecbatchError: JOB_CONFIG, it is none of these.
    """
    refused = SpecbatchError(
        ErrorCode.JOB_CONFIG,
        f"{where} {text[:40]!r}: write it as 2026-11-24, 2026-11-24T01:15, 2026-11-24T01:15+01:00 or @SECONDS",
    )
    try:
        if _DATE.fullmatch(text):
            day = date.fromisoformat(text)
            return LogicalDate(day.isoformat(), day.isoformat(), None)
        if _EPOCH.fullmatch(text):
            moment = datetime.fromtimestamp(int(text[1:]), UTC)
        elif _TIME.fullmatch(text):
            moment = datetime.fromisoformat(text)
        else:
            raise refused
        if zone is not None:
            moment = moment.replace(tzinfo=zone) if moment.tzinfo is None else moment.astimezone(zone)
    except (ValueError, OverflowError, OSError):
        raise refused from None
    moment = moment.replace(microsecond=0)
    return LogicalDate(moment.isoformat(), moment.date().isoformat(), f"{moment.hour:02}")


def find_placeholders(text: str, where: str) -> frozenset[str]:
    """Which placeholders a text has.

    Raises:
        SpecbatchError: JOB_CONFIG for another name in braces, and for a single brace.
    """
    found = set()
    for match in _PIECE.finditer(text):
        piece, name = match.group(0), match.group(1)
        if piece in ("{{", "}}"):
            continue
        if name not in PLACEHOLDERS:
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG,
                f"{where}: {piece} in {text[:120]!r} is none of {{date}}, {{hour}} and {{job}}; "
                "write {{ and }} for braces that are meant as such",
            )
        found.add(name)
    return frozenset(found)


def fill(text: str, values: Mapping[str, str | None], where: str) -> str:
    """A text with its placeholders filled in and doubled braces made single.

    Args:
        values: of the placeholders; None or missing where there is none.
        where: the setting, for messages.

    Raises:
        SpecbatchError: JOB_CONFIG, as ``find_placeholders``, and where a value is missing.
    """
    for name in sorted(find_placeholders(text, where)):
        if values.get(name) is None:
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"{where}: {{{name}}} in {text[:120]!r} {_MISSING[name]}")

    def value(match: re.Match[str]) -> str:
        piece = match.group(0)
        return piece[0] if piece in ("{{", "}}") else str(values[match.group(1)])

    return _PIECE.sub(value, text)


def doubled(text: str) -> str:
    """A text that ``fill`` gives back as it is."""
    return text.translate(_DOUBLED)


def with_logical_date(settings: Settings, job_file: Path | None = None) -> Settings:
    """The settings of a job with its places filled in: datasets, output and partitions.

    Args:
        job_file: what ``--config`` named; its name without the ending is ``{job}``.

    Raises:
        SpecbatchError: JOB_CONFIG for unknown placeholders, and for those whose value is not known.
    """
    spec = settings.spec
    execution = spec.execution
    zone = None if execution.timezone is None else parse_zone(execution.timezone)
    logical = None if execution.logical_date is None else parse_logical_date(execution.logical_date, zone)
    values: dict[str, str | None] = {
        "date": None if logical is None else logical.date,
        "hour": None if logical is None else logical.hour,
        "job": None if job_file is None else job_file.stem,
    }
    places = fill_places(
        {
            "input.datasets": spec.input.datasets,
            "output": spec.output,
            "results.partitions": spec.results.partitions,
        },
        values,
    )
    update: dict[str, Any] = {
        "input": spec.input.model_copy(update={"datasets": places["input.datasets"]}),
        "output": places["output"],
        "results": spec.results.model_copy(update={"partitions": places["results.partitions"]}),
    }
    if logical is not None:
        update["execution"] = execution.model_copy(update={"logical_date": logical.text})
    return replace(settings, spec=spec.model_copy(update=update))


def fill_places(places: Mapping[str, Any], values: Mapping[str, str | None]) -> dict[str, Any]:
    """The settings that name places, with placeholders filled in; texts, lists of texts, or None."""

    def filled(path: str, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, str):
            return fill(value, values, path)
        return tuple(fill(each, values, path) for each in value)

    return {path: filled(path, value) for path, value in places.items()}


_MISSING = {
    "date": "needs the night that the run is for: give it with --logical-date 2026-11-24",
    "hour": "needs a time of day: give it with --logical-date 2026-11-24T01:15",
    "job": "is the name of the job file: give the settings in one, with --config",
}
