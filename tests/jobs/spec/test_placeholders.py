"""Logical dates, and the places of a job that come from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from specbatch.jobs.spec.placeholders import doubled, fill, parse_logical_date, parse_zone, with_logical_date
from specbatch.jobs.spec.settings import Settings, flag_layer, resolve
from specbatch.schemas.errors import SpecbatchError

BERLIN = parse_zone("Europe/Berlin")


def settings(*datasets: str, **options: Any) -> Settings:
    return resolve([flag_layer(options, datasets)])


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2026-11-24", None, ("2026-11-24", "2026-11-24", None)),
        ("2026-11-24", BERLIN, ("2026-11-24", "2026-11-24", None)),
        ("2026-11-24T01:15", None, ("2026-11-24T01:15:00", "2026-11-24", "01")),
        ("2026-11-24T01:15", BERLIN, ("2026-11-24T01:15:00+01:00", "2026-11-24", "01")),
        ("2026-11-23T23:30:00+00:00", BERLIN, ("2026-11-24T00:30:00+01:00", "2026-11-24", "00")),
        ("2026-11-23T23:30Z", None, ("2026-11-23T23:30:00+00:00", "2026-11-23", "23")),
        ("2026-11-24 01:15:07.25-05:00", None, ("2026-11-24T01:15:07-05:00", "2026-11-24", "01")),
        ("@1795479300", BERLIN, ("2026-11-24T01:15:00+01:00", "2026-11-24", "01")),
        ("@1795479300", None, ("2026-11-24T00:15:00+00:00", "2026-11-24", "00")),
    ],
)
def test_logical_dates(text: str, zone: Any, expected: tuple[str, str, str | None]) -> None:
    found = parse_logical_date(text, zone)
    assert (found.text, found.date, found.hour) == expected


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-13-01", "20261124", "2026-W48", "2026-11-24T25:00", "@1e9", "@-1"]
)
def test_what_is_no_logical_date_is_refused(text: str) -> None:
    with pytest.raises(SpecbatchError, match="--logical-date"):
        parse_logical_date(text, None)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("a/{date}/{hour}", "a/D/H"),
        ("{{date}}", "{date}"),
        ("{{{date}}}", "{D}"),
        ("plain", "plain"),
        ("{job}-{job}", "J-J"),
    ],
)
def test_filling(text: str, filled: str) -> None:
    assert fill(text, {"date": "D", "hour": "H", "job": "J"}, "output") == filled
    assert fill(doubled(text), {}, "output") == text


@pytest.mark.parametrize("text", ["{datum}", "{}", "{", "}", "a}b", "{date", "{ date }", "{date!r}", "{date:%Y}"])
def test_other_braces_are_refused(text: str) -> None:
    with pytest.raises(SpecbatchError, match="is none of"):
        fill(text, {"date": "D"}, "output")


def test_places_are_filled_and_the_date_is_stored() -> None:
    given = settings("s3://b/{date}.parquet", output="o/{job}", partition=["night={date}"], logical_date="@1795479300")
    spec = with_logical_date(given, Path("x/nightly.yaml")).spec
    assert spec.input.datasets == ("s3://b/2026-11-24.parquet",)
    assert (spec.output, spec.results.partitions) == ("o/nightly", ("night=2026-11-24",))
    assert spec.execution.logical_date == "2026-11-24T00:15:00+00:00"


def test_without_placeholders_nothing_changes() -> None:
    given = settings("in.parquet", output="out")
    assert with_logical_date(given) == given


@pytest.mark.parametrize(
    ("output", "options", "said"),
    [
        ("{date}", {}, "--logical-date 2026-11-24"),
        ("{hour}", {"logical_date": "2026-11-24"}, "needs a time of day"),
        ("{job}", {}, "--config"),
        ("{date}", {"logical_date": "now"}, "--logical-date"),
        ("o", {"timezone": "Nowhere"}, "no such time zone"),
    ],
)
def test_a_placeholder_without_a_value_is_refused(output: str, options: dict[str, str], said: str) -> None:
    with pytest.raises(SpecbatchError) as caught:
        with_logical_date(settings("in.parquet", output=output, **options))
    assert caught.value.code == "JOB_CONFIG"
    assert said in caught.value.message
