"""Schedules from job files: what is refused, and what is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from replays import at, make
from s3_server import S3Server

from specbatch.jobs.cli import app as cli
from specbatch.jobs.schedules.book import open_book
from specbatch.jobs.schedules.schedule import decode_schedule, job_of, job_text, output_of, places_of
from specbatch.jobs.spec.settings import read_job_file
from specbatch.schemas.errors import SpecbatchError

NIGHT = at("2026-11-24T01:15+01:00")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cron": "1 2 3"}, "five fields"),
        ({"timezone": "Mars/Base"}, "no such time zone"),
        ({"name": "a b"}, "a name has"),
        ({"name": "../up"}, "a name has"),
        ({"spec": "outputs: x\n"}, "not a setting; did you mean output"),
        ({"spec": "generation: {max_new_token: 3}\noutput: x/{date}\n"}, "did you mean generation.max_new_tokens"),
        ({"spec": "generation: {max_new_tokens: many}\noutput: x/{date}\n"}, "max_new_tokens is 'many'"),
        ({"spec": "input: {datasets: [a]}\n"}, "output is missing"),
        ({"spec": "output: x\n"}, "would both write to"),
        ({"spec": "output: x/{date}\n", "cron": "0 * * * *"}, "{date} and {hour}"),
        ({"spec": "output: x/{night}\n"}, "{night} in"),
        ({"spec": "output: x/{date}\ninput: {datasets: ['in/{datum}/*']}\n"}, "none of {date}"),
        ({"spec": "output: x/{date}\nexecution: {logical_date: 2026-11-24}\n"}, "comes from the schedule"),
    ],
)
def test_a_schedule_that_is_not_sound_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecbatchError) as caught:
        make(tmp_path, **changes)
    assert caught.value.code == "JOB_CONFIG"
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_places_are_those_of_the_night_in_the_zone_of_the_schedule(tmp_path: Path) -> None:
    spec = "input: {datasets: ['s3://b/{date}/{hour}.parquet']}\noutput: s3://b/{job}\n"
    spec += "results: {partitions: ['night={date}T{hour}']}\n"
    schedule = make(tmp_path, spec=spec, name="n1")
    for moment in (NIGHT, at("2026-11-24T00:15+00:00")):
        assert places_of(schedule, moment)["input.datasets"] == ("s3://b/2026-11-24/01.parquet",)
        assert output_of(schedule, moment) == "s3://b/n1/night=2026-11-24T01"


def test_a_job_file_of_a_night_has_nothing_left_to_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("@ask {{ prompt }}\n")
    (tmp_path / "model").mkdir()
    spec = "input: {datasets: ['in{{1}}.parquet'], template: '@text', limit: 3}\nmodels: {target: model, draft: none}\n"
    schedule = make(tmp_path, spec=spec + "output: out/{date}\n")
    path = tmp_path / "night.yaml"
    path.write_text(job_text(job_of(schedule, NIGHT)))
    values = read_job_file(path).values
    assert values == {
        "input.datasets": [f"{tmp_path}/in{{{{1}}}}.parquet"],
        "input.template": "@ask {{ prompt }}",
        "input.limit": 3,
        "models.target": f"{tmp_path}/model",
        "models.draft": "none",
        "output": f"{tmp_path}/out/2026-11-24",
    }


def test_two_nights_of_an_hour_that_comes_twice_are_no_mistake(tmp_path: Path) -> None:
    make(tmp_path, spec="output: x/{date}/{hour}\n", cron="0 * * * *", now=at("2026-10-24T20:00+02:00"))


def test_adding_twice_changes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    book = open_book(str(tmp_path / "store"))
    assert book.add(make(tmp_path))
    assert not book.add(make(tmp_path, now=at("2026-11-25T12:00+01:00")))
    with pytest.raises(SpecbatchError, match="--replace"):
        book.add(make(tmp_path, overlap="wait"))
    assert book.get("nightly").overlap == "skip"
    assert book.add(make(tmp_path, overlap="wait"), is_replaced=True)
    assert (book.get("nightly").overlap, book.get("nightly").revision) == ("wait", 1)


def test_a_removed_schedule_is_gone_and_can_be_added_again(tmp_path: Path) -> None:
    book = open_book(str(tmp_path / "store"))
    book.add(make(tmp_path))
    book.remove("nightly", "2026-11-25T00:00:00+00:00")
    assert book.schedules() == []
    with pytest.raises(SpecbatchError, match="no schedule 'nightly'"):
        book.get("nightly")
    assert book.add(make(tmp_path))
    with pytest.raises(SpecbatchError, match="did you mean 'nightly'"):
        book.get("nigthly")


def test_a_store_that_lies_holds_no_schedules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    make(tmp_path)
    server = S3Server(racy_seconds=0.05)
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        store = f"s3://{server.new_bucket()}/schedules"
        arguments = ["schedule", "add", str(tmp_path / "nightly.yaml"), "--cron", "15 1 * * *", "--store", store]
        assert cli.run(arguments) == 2
        assert "STORE_NOT_ATOMIC" in capsys.readouterr().err
        assert open_book(store).schedules() == []
    finally:
        server.stop()


def test_a_schedule_of_another_version_is_refused(tmp_path: Path) -> None:
    stored = json.loads(make(tmp_path).model_dump_json())
    for changed in ({**stored, "format": "specbatch/schedule/9"}, {**stored, "colour": "red"}, {"a": 1}):
        with pytest.raises(SpecbatchError, match="cannot be read as a schedule") as caught:
            decode_schedule(json.dumps(changed).encode(), "here")
        assert caught.value.code == "JOB_FORMAT"
