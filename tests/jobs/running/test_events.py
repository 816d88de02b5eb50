"""``--format jsonl``: the events of a run on standard output, whose form programs rely on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from progress_documents import BUSY, DOCUMENT, document

from specbatch.jobs.cli.options import Format
from specbatch.jobs.cli.run import talk
from specbatch.jobs.running.events import EventWriter
from specbatch.schemas.run import ProgressDocument


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def written(*states: tuple[float, str]) -> list[dict[str, Any]]:
    lines: list[str] = []
    clock = Clock()
    writer = EventWriter(lines.append, clock)
    for seconds, state in states:
        clock.seconds = 100.0 + seconds
        writer.update(document(state=state, **BUSY))
    writer.close()
    return [json.loads(line) for line in lines]


def test_progress_comes_every_two_seconds_and_with_every_change_of_state() -> None:
    ticks = [(tick / 2, "starting" if tick < 3 else "running") for tick in range(12)]
    events = written(*ticks, (5.6, "draining"), (5.7, "complete"), (9.0, "complete"))
    assert [event["state"] for event in events] == [
        "starting",
        "running",
        "running",
        "running",
        "draining",
        "complete",
    ]
    assert {event["event"] for event in events} == {"progress"}
    assert all("T" in event["time"] for event in events)


def test_the_first_row_is_told_at_once() -> None:
    lines: list[str] = []
    clock = Clock()
    writer = EventWriter(lines.append, clock)
    for rows_done in (0, 0, 1, 2, 3):
        clock.seconds += 0.5
        writer.update(document(state="running", **{**BUSY, "rows_done": rows_done}))
    assert [json.loads(line)["rows_done"] for line in lines] == [0, 1]


def test_the_fields_of_progress_are_those_of_the_document() -> None:
    (event,) = written((0.0, "running"))
    assert {"event", "time", *DOCUMENT} <= event.keys()
    assert event.keys() - {"event", "time"} == ProgressDocument.model_fields.keys()


def test_notes_and_the_end() -> None:
    lines: list[str] = []
    writer = EventWriter(lines.append)
    writer.note("worker 3 died\x1b[2J")
    writer.end({"exit_code": 0, "output": "out"})
    note, end = map(json.loads, lines)
    assert (note["event"], note["message"]) == ("note", "worker 3 died?[2J")
    assert (end["event"], end["exit_code"], end["output"]) == ("end", 0, "out")


@pytest.mark.parametrize(("format", "out", "err"), [(Format.JSONL, 1, 1), (Format.AUTO, 0, 1), (Format.QUIET, 0, 0)])
def test_where_lines_for_the_user_go(format: Format, out: int, err: int, capsys: pytest.CaptureFixture[str]) -> None:
    talk(format)("worker 3 died")
    printed = capsys.readouterr()
    assert (len(printed.out.splitlines()), len(printed.err.splitlines())) == (out, err)
