"""The progress views: plain lines by a clock of the test's own, and the bar on a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
import textwrap
import time
from typing import Any

import pytest

from specbatch.jobs.progress import BarView, LinesView, QuietView, make_view
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.run import ProgressDocument

DOCUMENT: dict[str, Any] = {
    "format": "specbatch/progress/1",
    "epoch": 1,
    "host": "node-1",
    "pid": 1,
    "updated_at": "2026-11-23T10:00:00+00:00",
    "state": "running",
    "num_rows": 256,
    "num_parts": 16,
    "parts_done": 0,
    "rows_in_parts": 0,
    "rows_done": 0,
    "num_errors": 0,
    "completion_tokens": 0,
    "tokens_per_second": 0.0,
    "acceptance_rate": None,
    "mean_emitted": None,
    "eta_seconds": None,
    "workers": [],
}
BUSY: dict[str, Any] = {
    "completion_tokens": 5000,
    "tokens_per_second": 245.2,
    "acceptance_rate": 0.712,
    "mean_emitted": 2.846,
    "eta_seconds": 31.2,
    "workers": [{}, {}],
}


def document(**changes: Any) -> ProgressDocument:
    return ProgressDocument.model_validate({**DOCUMENT, **changes})


class FakeClock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def wall(self) -> time.struct_time:
        return time.gmtime(12 * 3600 + 91 + self.seconds)


def test_lines_come_after_two_seconds_and_then_every_ten() -> None:
    clock, stream = FakeClock(), io.StringIO()
    view = LinesView(stream, clock, clock.wall)
    for tick in range(61):
        clock.seconds = tick / 2
        view.update(document(rows_done=4 * tick, **BUSY))
    assert stream.getvalue().splitlines() == [
        "12:01:33  rows 16/256  245 tok/s  acceptance 0.71  eta 0:31",
        "12:01:43  rows 96/256  245 tok/s  acceptance 0.71  eta 0:31",
        "12:01:53  rows 176/256  245 tok/s  acceptance 0.71  eta 0:31",
    ]
    view.close()
    assert stream.getvalue().splitlines()[3:] == ["12:02:01  rows 240/256  245 tok/s  acceptance 0.71  eta 0:31"]
    view.close()
    assert len(stream.getvalue().splitlines()) == 4


def test_a_job_shorter_than_two_seconds_still_says_one_line() -> None:
    clock, stream = FakeClock(), io.StringIO()
    view = LinesView(stream, clock, clock.wall)
    view.update(document(rows_done=256))
    view.close()
    assert stream.getvalue() == "12:01:31  rows 256/256\n"


def test_a_view_that_never_saw_anything_says_nothing() -> None:
    stream = io.StringIO()
    for view in (LinesView(stream), BarView(stream), QuietView()):
        view.close()
    assert stream.getvalue() == ""


def test_rows_of_earlier_runs_count() -> None:
    clock, stream = FakeClock(), io.StringIO()
    view = LinesView(stream, clock, clock.wall)
    view.update(document(rows_in_parts=100))
    clock.seconds = 2.0
    view.update(document(rows_in_parts=116, rows_done=20, state="draining", num_errors=1))
    assert stream.getvalue() == "12:01:33  rows 120/256  draining  1 error\n"


def test_control_characters_never_reach_the_stream() -> None:
    clock, stream = FakeClock(), io.StringIO()
    view = LinesView(stream, clock, clock.wall)
    view.update(document(state="\x1b[2J\r\nevil\u202e"))
    view.close()
    assert stream.getvalue() == "12:01:31  rows 0/256  ?[2J??evil?\n"


def test_auto_is_lines_without_a_terminal_and_unknown_modes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_view("auto", io.StringIO()), LinesView)
    assert isinstance(make_view("quiet"), QuietView)
    with pytest.raises(SpecbatchError) as caught:
        make_view("loud")  # type: ignore[arg-type]
    assert caught.value.code is ErrorCode.JOB_CONFIG


@pytest.mark.parametrize(("term", "kind"), [("xterm-256color", BarView), ("dumb", LinesView)])
def test_auto_is_the_bar_on_a_terminal_that_can_move_its_cursor(
    monkeypatch: pytest.MonkeyPatch, term: str, kind: type
) -> None:
    monkeypatch.setenv("TERM", term)
    controller, terminal = os.openpty()
    with os.fdopen(controller, "rb"), os.fdopen(terminal, "w") as stream:
        assert isinstance(make_view("auto", stream), kind)


PROGRAM = """
    import sys, time
    from test_progress import BUSY, document
    from specbatch.jobs.progress import make_view
    view = make_view("auto")
    for rows in range(0, 257, 32):
        view.update(document(rows_done=rows, **BUSY))
        time.sleep(0.02)
        if rows == 128:
            print("half", flush=True)
            sys.stdin.readline()
            time.sleep(0.6)
    view.close()
    print("done", flush=True)
"""


def on_terminal(columns: int, then_columns: int, **environment: str) -> tuple[list[str], str]:
    """Runs PROGRAM with standard error on a pseudo-terminal that changes its width half way.

    Returns:
        The lines drawn (escapes left out) and all that was written.
    """
    controller, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    base = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        cwd=os.path.dirname(__file__),  # noqa: PTH120
        env={**base, "TERM": "xterm-256color", **environment},
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "half\n"
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, then_columns, 0, 0))
    process.stdin.write("\n")
    process.stdin.close()
    assert process.stdout.readline() == "done\n"
    process.stdout.close()
    assert process.wait(timeout=20) == 0
    os.close(terminal)
    written = b""
    while True:
        try:
            chunk = os.read(controller, 65536)
        except OSError:
            break
        if not chunk:
            break
        written += chunk
    os.close(controller)
    text = written.decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()], text


def test_the_bar_on_a_wide_terminal_shows_everything() -> None:
    lines, text = on_terminal(120, 120)
    assert lines[0].startswith("rows 0/256  ")
    assert "━" in lines[0]
    for fact in ("rows 128/256", "245 tok/s", "acceptance 0.71", "eta 0:31", "2.85 tok/round", "2 workers"):
        assert any(fact in line for line in lines[:-1])
    assert "rows 256/256" in lines[-1]
    assert "eta" not in lines[-1]
    assert all(len(line.rstrip()) < 120 for line in lines)
    assert "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_the_bar_follows_a_terminal_that_shrinks() -> None:
    lines, _ = on_terminal(100, 44)
    assert max(len(line.rstrip()) for line in lines) > 60
    assert 20 < len(lines[-1].rstrip()) < 44
    assert "rows 256/256" in lines[-1]
    assert "tok/s" in lines[-1]


def test_the_bar_fits_a_very_narrow_terminal() -> None:
    lines, _ = on_terminal(20, 10)
    assert all(len(line) < 20 for line in lines)
    assert len(lines[-1]) < 10


def test_no_color_leaves_out_colours() -> None:
    colour = re.compile(r"\x1b\[[0-9;]*m")
    assert colour.search(on_terminal(80, 80)[1])
    coloured = [
        code for code in colour.findall(on_terminal(80, 80, NO_COLOR="1")[1]) if re.search("3[0-9]|9[0-7]", code)
    ]
    assert coloured == []
