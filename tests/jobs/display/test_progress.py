"""Which progress view is shown where, and the plain lines, by a clock of the test's own."""

from __future__ import annotations

import io
import os
from datetime import UTC, datetime, timedelta

import pytest
from progress_documents import BUSY, document

from specbatch.jobs.display.live import LiveView
from specbatch.jobs.display.progress import BarView, LinesView, QuietView, RowCount, make_view
from specbatch.schemas.errors import ErrorCode, SpecbatchError


class FakeClock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def wall(self) -> datetime:
        return datetime(2026, 11, 23, 12, 1, 31, tzinfo=UTC) + timedelta(seconds=self.seconds)


def test_lines_come_after_two_seconds_and_then_every_thirty() -> None:
    clock, stream = FakeClock(), io.StringIO()
    view = LinesView(stream, clock, clock.wall)
    for tick in range(141):
        clock.seconds = tick / 2
        view.update(document(rows_done=min(tick, 256), **BUSY))
    assert stream.getvalue().splitlines() == [
        "2026-11-23T12:01:33+00:00  running  rows 4/256  245 tok/s  acceptance 0.71  eta 0:31  2 workers",
        "2026-11-23T12:02:03+00:00  running  rows 64/256  245 tok/s  acceptance 0.71  eta 0:31  2 workers",
        "2026-11-23T12:02:33+00:00  running  rows 124/256  245 tok/s  acceptance 0.71  eta 0:31  2 workers",
    ]
    view.close()
    assert stream.getvalue().splitlines()[3].startswith("2026-11-23T12:02:41+00:00  running  rows 140/256  ")
    view.close()
    assert len(stream.getvalue().splitlines()) == 4


def test_every_change_of_state_has_a_line() -> None:
    clock, stream = FakeClock(), io.StringIO()
    view = LinesView(stream, clock, clock.wall)
    for seconds, state in ((0, "starting"), (1, "starting"), (5, "running"), (6, "running"), (9, "draining")):
        clock.seconds = seconds
        view.update(document(state=state))
    view.update(document(state="interrupted"))
    view.close()
    assert [line.split("  ")[0][14:19] + " " + line.split("  ")[1] for line in stream.getvalue().splitlines()] == [
        "01:36 running",
        "01:40 draining",
        "01:40 interrupted",
    ]


def test_a_job_shorter_than_two_seconds_still_says_one_line() -> None:
    clock, stream = FakeClock(), io.StringIO()
    view = LinesView(stream, clock, clock.wall)
    view.update(document(rows_done=256))
    view.close()
    assert stream.getvalue() == "2026-11-23T12:01:31+00:00  running  rows 256/256\n"


def test_a_view_that_never_saw_anything_says_nothing() -> None:
    stream = io.StringIO()
    for view in (LinesView(stream), BarView(LiveView(stream)), QuietView()):
        view.close()
    assert stream.getvalue() == ""


def test_rows_of_earlier_runs_count() -> None:
    rows = RowCount()
    assert rows(document(rows_in_parts=100)) == 100
    assert rows(document(rows_in_parts=116, rows_done=20)) == 120
    assert RowCount()(document(rows_in_parts=116, rows_done=250, job_rows_done=131)) == 131, "as newer ones say it"


def test_errors_are_told_by_code_and_an_eta_only_with_evidence() -> None:
    clock, stream = FakeClock(), io.StringIO()
    view = LinesView(stream, clock, clock.wall)
    view.update(document(num_errors=3, errors_by_code={"ROW_MEMORY": 1, "ROW_TOO_LONG": 2}, tokens_per_second=3.0))
    view.close()
    line = stream.getvalue().rstrip()
    assert line.endswith("rows 0/256  3.00 tok/s  eta unknown  3 errors (ROW_MEMORY 1, ROW_TOO_LONG 2)")


def test_control_characters_never_reach_the_stream() -> None:
    clock, stream = FakeClock(), io.StringIO()
    view = LinesView(stream, clock, clock.wall)
    view.update(document(state="\x1b[2J\r\nevil\u202e"))
    view.close()
    assert stream.getvalue() == "2026-11-23T12:01:31+00:00  ?[2J??evil?  rows 0/256\n"


def test_auto_is_lines_without_a_terminal_and_unknown_modes_are_refused() -> None:
    assert isinstance(make_view("auto", io.StringIO()), LinesView)
    assert isinstance(make_view("quiet"), QuietView)
    with pytest.raises(SpecbatchError) as caught:
        make_view("loud")  # type: ignore[arg-type]
    assert caught.value.code is ErrorCode.JOB_CONFIG


@pytest.mark.parametrize(
    ("environment", "encoding", "kind"),
    [
        ({"TERM": "xterm-256color"}, "utf-8", BarView),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, "utf-8", BarView),
        ({"TERM": "dumb"}, "utf-8", LinesView),
        ({"TERM": ""}, "utf-8", LinesView),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "utf-8", LinesView),
        ({"TERM": "xterm-256color"}, "ascii", LinesView),
        ({"TERM": "xterm-256color"}, "latin-1", LinesView),
    ],
)
def test_auto_is_the_live_view_on_a_terminal_that_can_show_it(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], encoding: str, kind: type
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    controller, terminal = os.openpty()
    with os.fdopen(controller, "rb"), os.fdopen(terminal, "w", encoding=encoding) as stream:
        assert isinstance(make_view("auto", stream), kind)
        assert isinstance(make_view("bar", stream), BarView), "who asks for it gets it"
