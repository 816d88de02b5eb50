"""The live view: real processes on pseudo-terminals, whose output is drawn by a small terminal of our own."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from terminal import Terminal
from test_live_layout import BUSY_SNAPSHOT, farm

from specbatch.jobs.display import live, live_screen
from specbatch.jobs.display.live import LiveView
from specbatch.jobs.display.live_layout import Snapshot, layout
from specbatch.jobs.display.live_screen import Drawn, coloured

# ---- what is written -------------------------------------------------------------------------------------------------


def test_nothing_is_written_where_nothing_changes() -> None:
    drawn = Drawn(("a", "b"), (80, 24))
    assert live_screen.update(drawn, ["a", "b"], (80, 24)) == ""
    assert live_screen.update(drawn, ["a", "b"], (80, 24), ["said"]) != ""
    assert live_screen.update(drawn, ["a", "b"], (79, 24)) != ""


def test_colours_take_no_room_and_change_no_letter() -> None:
    for line in layout(BUSY_SNAPSHOT, 100, 24):
        terminal = Terminal(120)
        terminal.feed(coloured(line))
        assert terminal.lines == [line]
    assert "\x1b[31m3 errors\x1b[0m" in coloured("3 errors  ROW_A 3")
    assert "\x1b[33msuspect\x1b[0m" in coloured("0  suspect")


_LINE = st.text(st.sampled_from("ab漢字 "), max_size=12)
_STEP = st.tuples(
    st.lists(_LINE, max_size=6), st.lists(_LINE.filter(bool), max_size=4), st.sampled_from([(14, 8), (30, 10), (40, 7)])
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_STEP, min_size=1, max_size=8), st.booleans())
def test_whatever_happens_the_view_stands_below_all_that_was_said(
    steps: list[tuple[list[str], list[str], tuple[int, int]]], has_colour: bool
) -> None:
    terminal = Terminal(*steps[0][2])
    before: Drawn | None = None
    history: list[str] = []
    for lines, said, size in steps:
        fitting = [line[: (size[0] - 1) // 2] for line in lines][: size[1] - 1]
        if size != (terminal.columns, terminal.rows):
            terminal.resize(*size)
        terminal.feed(live_screen.update(before, fitting, size, said, history=history, has_colour=has_colour))
        history += said
        before = Drawn(tuple(fitting), size)
        assert terminal.is_cursor_visible
        assert terminal.column == 0
        shown = terminal.lines + [""] * (terminal.row - len(terminal.lines))
        assert shown[terminal.row - len(fitting) : terminal.row] == [line.rstrip() for line in fitting]
        assert not any(shown[terminal.row :]), "nothing below"
        above = [line for line in shown[: terminal.row - len(fitting)] if line]
        last = [line.rstrip() for line in history if line.strip()]
        assert all(line in "".join(last) or line.rstrip() in last for line in above)


def test_said_lines_scroll_away_whole_and_in_order() -> None:
    terminal, before = Terminal(30, 6), None
    for number in range(20):
        size = (30, 6)
        terminal.feed(live_screen.update(before, ["view 1", f"view {number}"], size, [f"line {number}"]))
        before = Drawn(("view 1", f"view {number}"), size)
    assert terminal.scrolled + terminal.lines == [*(f"line {n}" for n in range(20)), "view 1", "view 19"]
    assert terminal.num_clears == 0


# ---- the view itself -------------------------------------------------------------------------------------------------


class Screen(io.StringIO):
    """A stream that keeps each write apart."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return len(text)


def test_each_drawing_is_one_write_and_time_goes_on() -> None:
    screen, now = Screen(), [100.0]
    view = LiveView(screen, size=lambda: (80, 24), clock=lambda: now[0])
    view.show(BUSY_SNAPSHOT)
    assert len(screen.writes) == 1
    view.draw()
    assert len(screen.writes) == 1, "nothing has changed"
    now[0] += 5
    view.say("worker 3 died")
    view.draw()
    view.close()
    view.close()
    view.draw()
    assert len(screen.writes) == 2
    terminal = Terminal()
    terminal.feed("".join(screen.writes))
    assert terminal.lines[:2] == ["worker 3 died", "/data/out-1a2b3c4d  running  1:02:08"]


def test_at_most_four_drawings_a_second() -> None:
    screen = Screen()
    view = LiveView(screen, size=lambda: (80, 24))
    begun = time.monotonic()
    number = 0
    while time.monotonic() < begun + 1.0:
        view.show(BUSY_SNAPSHOT)
        view.say(f"line {number}")
        number += 1
        time.sleep(0.005)
    view.close()
    most = 2 + int((time.monotonic() - begun) / 0.25)
    assert len(screen.writes) <= most, "one at the start, four a second, one at the end"
    terminal = Terminal()
    terminal.feed("".join(screen.writes))
    assert (terminal.scrolled + terminal.lines)[:number] == [f"line {n}" for n in range(number)]


def test_a_terminal_that_is_gone_does_not_stop_the_job() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    view = LiveView(Gone(), size=lambda: (80, 24))
    view.show(BUSY_SNAPSHOT)
    view.draw()
    view.close()


def test_an_interruption_in_the_first_drawing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Screen):
        def flush(self) -> None:
            if len(self.writes) == 1:
                raise KeyboardInterrupt

    screen = Interrupted()
    monkeypatch.setattr(sys, "stderr", screen)
    view = LiveView(screen, size=lambda: (80, 24))
    with pytest.raises(KeyboardInterrupt):
        view.show(BUSY_SNAPSHOT)
    view.close()
    assert sys.stderr is screen


def test_the_view_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    view = LiveView(Screen(), size=lambda: (80, 24))
    view.show(BUSY_SNAPSHOT)
    view.close()
    assert set(threading.enumerate()) <= before


WAIT_SECONDS = 20.0


def comes_back(work: Callable[[], object]) -> bool:
    """Whether a call returns, in a thread of its own; one that hangs is left behind."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(WAIT_SECONDS)
    return not thread.is_alive()


def test_the_end_waits_for_no_line_that_is_said_in_the_same_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line on its way up holds what takes standard error's place; the end of a view wants that too."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    view = LiveView(screen, size=lambda: (80, 24))
    view.show(BUSY_SNAPSHOT)
    above = view._above
    assert above is not None
    is_saying, is_ending = threading.Event(), threading.Event()
    finish, say = above.finish, above._say

    def say_late(line: str) -> None:
        is_saying.set()
        is_ending.wait(WAIT_SECONDS)
        say(line)

    def finish_meanwhile() -> None:
        is_ending.set()
        finish()

    monkeypatch.setattr(above, "_say", say_late)
    monkeypatch.setattr(above, "finish", finish_meanwhile)
    threading.Thread(target=lambda: above.write("worker 3 died\nand then"), daemon=True).start()
    assert is_saying.wait(WAIT_SECONDS)
    assert comes_back(view.close)
    terminal = Terminal()
    terminal.feed("".join(screen.writes))
    assert terminal.lines[:2] == ["worker 3 died", "and then"]
    assert sys.stderr is screen


def test_a_terminal_that_takes_nothing_stops_neither_the_job_nor_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    is_stuck, released = threading.Event(), threading.Event()

    class Stopped(Screen):
        """After Ctrl-S behind its first drawing."""

        def write(self, text: str) -> int:
            if self.writes:
                is_stuck.set()
                released.wait(WAIT_SECONDS * 4)
            return super().write(text)

    monkeypatch.setattr(live, "CLOSE_SECONDS", 0.1)
    screen = Stopped()
    view = LiveView(screen, size=lambda: (80, 24))
    view.show(BUSY_SNAPSHOT)
    view.say("worker 3 died")
    assert is_stuck.wait(WAIT_SECONDS)
    assert comes_back(lambda: view.show(replace(BUSY_SNAPSHOT, rows_done=1)))
    assert comes_back(lambda: view.say("worker 3 is back"))
    assert comes_back(view.close)
    assert len(screen.writes) == 1
    released.set()
    view._thread.join(WAIT_SECONDS)
    terminal = Terminal()
    terminal.feed("".join(screen.writes))
    assert terminal.lines[:2] == ["worker 3 died", "worker 3 is back"]


# ---- on pseudo-terminals ---------------------------------------------------------------------------------------------

PROGRAM = """
    import os, signal, sys, time, warnings
    from dataclasses import replace
    from test_live_layout import BUSY_SNAPSHOT, farm
    from specbatch.jobs.display.live import LiveView
    view = LiveView(sys.stderr)
    view.show(replace(BUSY_SNAPSHOT, rows_done=1))
    def step(rows, workers=3, **changes):
        view.show(replace(BUSY_SNAPSHOT, rows_done=rows, workers=farm(workers), **changes))
        before = view._drawn
        while view._drawn is before:  # its thread draws it
            time.sleep(0.01)
        with view._lock:  # and has written it
            pass
        print(rows, flush=True)
        sys.stdin.readline()
"""


class Program:
    """A program with standard error on a pseudo-terminal; ``terminal`` shows what it has drawn."""

    def __init__(self, body: str, columns: int, rows: int) -> None:
        self.terminal = Terminal(columns, rows)
        self._controller, terminal = os.openpty()
        self._set_size(columns, rows)
        base = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM) + textwrap.dedent(body)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=terminal,
            text=True,
            cwd=Path(__file__).parent,
            env={
                **base,
                "TERM": "xterm-256color",
                "PYTHONUTF8": "1",
                "PYTHONPATH": os.pathsep.join(
                    [str(Path(__file__).parents[1]), *filter(None, [base.get("PYTHONPATH")])]
                ),
            },
        )
        os.close(terminal)
        os.set_blocking(self._controller, False)

    def wait_for(self, word: str) -> Terminal:
        """Until the program says this on its standard output."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{word}\n"
        return self.look()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def resize(self, columns: int, rows: int) -> None:
        self.look()
        self.terminal.resize(columns, rows)
        self._set_size(columns, rows)

    def end(self) -> Terminal:
        self.process.communicate(timeout=120)
        return self.look()

    def look(self) -> Terminal:
        written = b""
        while True:
            try:
                chunk = os.read(self._controller, 65536)
            except (BlockingIOError, OSError):
                break
            if not chunk:
                break
            written += chunk
        self.terminal.feed(written.decode())
        return self.terminal

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        os.close(self._controller)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._controller, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    started: list[Program] = []
    yield started
    for program in started:
        program.close()


def start(programs: list[Program], body: str, columns: int = 100, rows: int = 24) -> Program:
    programs.append(Program(body, columns, rows))
    return programs[-1]


def test_a_run_on_a_terminal_and_lines_above_it(programs: list[Program]) -> None:
    program = start(
        programs,
        """
        step(32)
        print("worker 1 died: out of memory", file=sys.stderr)
        sys.stderr.write("half a ")
        sys.stderr.write("line\\n")
        step(64)
        view.close()
        print("after it", file=sys.stderr)
        """,
    )
    terminal = program.wait_for("32")
    assert terminal.lines[0].startswith("/data/out-1a2b3c4d  running  1:02:0")
    assert terminal.lines[1].startswith("rows 32/256  ━━━━━")
    assert terminal.lines[-1] == "     2  ready     8    123  640 MB  node-2/cuda:0"
    program.go_on()
    terminal = program.wait_for("64")
    assert terminal.lines[:2] == ["worker 1 died: out of memory", "half a line"]
    assert terminal.lines[3].startswith("rows 64/256")
    program.go_on()
    terminal = program.end()
    assert terminal.lines[-1] == "after it"
    assert terminal.lines.count("worker 1 died: out of memory") == 1
    assert [line for line in terminal.lines if line.startswith("rows ")] == [terminal.lines[3]]
    assert (terminal.is_cursor_visible, terminal.num_clears, terminal.num_wraps) == (True, 0, 0)
    assert program.process.returncode == 0


@pytest.mark.parametrize("size", [(44, 24), (160, 50), (20, 10), (100, 8), (8, 3), (1, 1)])
def test_it_fits_the_terminal_after_a_change_of_size(programs: list[Program], size: tuple[int, int]) -> None:
    program = start(
        programs,
        """
        print("said before", file=sys.stderr)
        step(32, 40)
        step(64, 40)
        step(96, 2)
        view.close()
        """,
    )
    assert program.wait_for("32").lines[-1].endswith("more ready")
    program.resize(*size)
    program.go_on()
    program.wait_for("64")
    program.go_on()
    terminal = program.wait_for("96")
    program.go_on()
    expected = layout(farm_snapshot(2), size[0] - 1, size[1] - 1)
    shown = terminal.lines[-len(expected) :] if expected else []
    assert shown[1:] == expected[1:], "exactly the view, nothing of the older ones"
    assert terminal.num_wraps == 0 or size[0] < 12, "what was said may wrap, the view may not"
    if size[0] >= 20 and len(layout(farm_snapshot(40), size[0] - 1, size[1] - 1)) < size[1] - 1:
        assert terminal.lines[0] == "said before"
    assert program.end().is_cursor_visible


def farm_snapshot(workers: int) -> Snapshot:
    return replace(BUSY_SNAPSHOT, rows_done=96, workers=farm(workers))


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("raise RuntimeError('broken')", 1),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(5)", None),
        ("sys.exit(3)", 3),
    ],
)
def test_the_cursor_comes_back_however_the_process_ends(programs: list[Program], ending: str, code: int | None) -> None:
    program = start(programs, f"step(32)\n{ending}\n")
    program.wait_for("32")
    program.go_on()
    terminal = program.end()
    assert program.process.returncode in ((code,) if code is not None else (-signal.SIGINT, 130))
    assert terminal.is_cursor_visible
    assert terminal.column == 0, "what comes next begins a line of its own"
    if "broken" in ending:
        assert "RuntimeError: broken" in "\n".join(terminal.lines)
