"""Nights replayed with simulated dates, over real stores and with real processes: weeks, crashes, two daemons."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from replays import Shell, at, make, replay, states
from s3_server import S3Server

from specbatch.jobs.output.lease import acquire
from specbatch.jobs.schedules import night_run
from specbatch.jobs.schedules.book import Book, open_book
from specbatch.jobs.schedules.child import Child, who_holds
from specbatch.jobs.schedules.daemon import Daemon
from specbatch.jobs.schedules.holders import Watcher, this_holder
from specbatch.jobs.schedules.nights import Attempt, Night, stamp
from specbatch.schemas.errors import SpecbatchError

MakeBook = Callable[..., Book]
WAIT_SECONDS = 120.0


@pytest.fixture(params=["local", "s3"])
def make_book(request: pytest.FixtureRequest, tmp_path: Path) -> MakeBook:
    """Makes a store with one schedule, ``nightly``."""
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        uri = f"s3://{server.new_bucket()}/schedules"
    else:
        uri = str(tmp_path / "store")

    def build(**changes: Any) -> Book:
        book = open_book(uri)
        book.add(make(tmp_path, **changes))
        return book

    return build


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


class Background:
    """A replay in a thread of its own; ``join`` waits for its end."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run, args=arguments, kwargs=settings, daemon=True)
        self._thread.start()

    def _run(self, *arguments: Any, **settings: Any) -> None:
        self.code = replay(*arguments, **settings)[0]

    def join(self) -> None:
        self._thread.join(WAIT_SECONDS)
        assert self.code is not None, "the replay failed or hangs"


def test_a_week_with_a_missed_night_an_overlap_a_retry_and_a_failure(make_book: MakeBook, tmp_path: Path) -> None:
    book = make_book()
    gate = tmp_path / "gate"
    shell = Shell(
        tmp_path,
        {
            "2026-11-25": f"while [ ! -e {gate} ]; do sleep 0.02; done",
            "2026-11-28": "exit 2",
            "2026-11-29": f"[ -e {tmp_path}/tried ] || {{ touch {tmp_path}/tried; exit 5; }}",
        },
    )
    assert replay(book, "2026-11-24T01:00+01:00", shell) == (0, [])
    assert replay(book, "2026-11-24T01:15+01:00", shell)[0] == 0
    assert replay(book, "2026-11-24T01:16+01:00", shell) == (0, []), "a night is run once"

    long_night = Background(book, "2026-11-25T01:15+01:00", shell)
    until(lambda: states(book).get("2026-11-25") == "running")
    # Another daemon sees the next night come while it runs.
    code, said = replay(book, "2026-11-26T01:15+01:00", shell)
    assert code == 0
    assert any("skipped, its time came while another night ran" in line for line in said)
    gate.touch()
    long_night.join()

    # Nobody looks on the 27th; the next day it is run for its own date, before that of the 28th, which fails.
    assert replay(book, "2026-11-28T01:15+01:00", shell)[0] == 1
    assert replay(book, "2026-11-29T01:15+01:00", shell)[0] == 0
    assert states(book)["2026-11-29"] == "resumable exit code 5 5"
    assert replay(book, "2026-11-29T01:15:30+01:00", shell)[0] == 0
    assert states(book)["2026-11-29"].startswith("resumable"), "its pause of a minute is not over"
    assert replay(book, "2026-11-29T01:20+01:00", shell)[0] == 0

    assert states(book) == {
        "2026-11-24": "complete 0",
        "2026-11-25": "complete 0",
        "2026-11-26": "skipped overlap",
        "2026-11-27": "complete 0",
        "2026-11-28": "failed exit code 2 2",
        "2026-11-29": "complete 0",
    }
    days = ["2026-11-24", "2026-11-25", "2026-11-27", "2026-11-28", "2026-11-29", "2026-11-29"]
    assert shell.dates() == days
    log = book.store.read("logs/nightly/20261129T0015Z-2.log")
    assert log == b"words of 2026-11-29\n"


def test_a_week_in_which_late_nights_wait_and_missed_ones_are_left_out(make_book: MakeBook, tmp_path: Path) -> None:
    book = make_book(overlap="wait", missed="skip")
    gate = tmp_path / "gate"
    shell = Shell(tmp_path, {"2026-11-24": f"while [ ! -e {gate} ]; do sleep 0.02; done"})
    first = Background(book, "2026-11-24T01:15+01:00", shell)
    until(lambda: states(book).get("2026-11-24") == "running")
    _, said = replay(book, "2026-11-26T01:20+01:00", shell)
    assert any("runs it" in line for line in said)
    assert states(book) == {
        "2026-11-24": "running",
        "2026-11-25": "waiting overlap",
        "2026-11-26": "waiting overlap",
    }
    gate.touch()
    first.join()  # it goes on with those that wait, the oldest first
    assert replay(book, "2026-11-28T12:00+01:00", shell)[0] == 0
    assert states(book) == {
        "2026-11-24": "complete 0",
        "2026-11-25": "complete 0",
        "2026-11-26": "complete 0",
        "2026-11-27": "skipped missed",
        "2026-11-28": "skipped missed",
    }
    assert shell.dates() == ["2026-11-24", "2026-11-25", "2026-11-26"]


def test_two_daemons_over_one_store_run_every_night_once(make_book: MakeBook, tmp_path: Path) -> None:
    book = make_book()
    shell = Shell(tmp_path)
    daemons = [Background(book, "2026-12-01T01:15+01:00", shell) for _ in range(3)]
    for daemon in daemons:
        daemon.join()
    # One may leave while another runs; whoever runs goes on to the last.
    assert sorted(shell.dates()) == [f"2026-11-{day}" for day in range(24, 31)] + ["2026-12-01"]
    assert set(states(book).values()) == {"complete 0"}


DAEMON = """
import sys
from datetime import datetime
from specbatch.jobs.schedules.book import open_book
from specbatch.jobs.schedules.daemon import Daemon
from specbatch.jobs.schedules.signals import Signals, simulated_now
with Signals() as signals:
    daemon = Daemon(
        open_book(sys.argv[1]), now=simulated_now(datetime.fromisoformat(sys.argv[2])), environment={},
        command_of=lambda schedule, night, job_file: ["/bin/sh", "-c", sys.argv[3]],
        say=lambda line: print(line, flush=True), stop_signal=signals.received, poll_seconds=0.02, renew_seconds=0.1,
    )
    sys.exit(int(daemon.run(once="once" in sys.argv)))
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def run(book: Book, moment: str, script: str, *mode: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DAEMON, book.store.uri, moment, script, *mode]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}  # a killed daemon leaves the folder of its night
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def local_book(tmp_path: Path, **changes: Any) -> Book:
    book = open_book(str(tmp_path / "store"))
    book.add(make(tmp_path, **changes))
    return book


def test_the_night_of_a_killed_daemon_is_resumed_once_its_process_has_ended(tmp_path: Path, start: Any) -> None:
    book, shell = local_book(tmp_path), Shell(tmp_path)
    daemon = start(book, "2026-11-24T01:15+01:00", "echo begun; exec sleep 60", "once")
    log = "logs/nightly/20261124T0015Z-1.log"
    until(lambda: log in book.store.list("logs") and book.store.read(log) == b"begun\n")
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    child = child_of(book)
    assert child is not None
    # The night's process lives on; a second one must not be started beside it.
    assert replay(book, "2026-11-24T02:00+01:00", shell)[1][0].endswith("runs it")
    assert shell.dates() == []
    os.kill(child, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{child}/stat").exists() or "Z" in Path(f"/proc/{child}/stat").read_text())
    assert replay(book, "2026-11-24T02:01+01:00", shell)[0] == 0
    assert states(book) == {"2026-11-24": "complete 0"}
    night = book.find_night("nightly", at("2026-11-24T01:15+01:00"))
    assert night is not None
    first, second = night.night.attempts
    assert (first.ended_at, first.exit_code, second.exit_code) == (None, None, 0)
    assert first.log == log


def child_of(book: Book, name: str = "nightly") -> int | None:
    found = book.find_night(name, at("2026-11-24T01:15+01:00"))
    return None if found is None or found.night.holder is None else found.night.holder.child_pid


class Killed(BaseException):
    """Ends a daemon between two steps, as a signal that nobody can catch does."""


def test_a_daemon_that_is_killed_right_after_it_began_a_night_has_stored_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look that began it goes on to other schedules, for minutes where the store is slow."""
    book = open_book(str(tmp_path / "store"))
    for name in ("first", "second"):
        book.add(make(tmp_path, name=name, spec="output: out/{job}/{date}\n"))

    def command(schedule: Any, night: Any, job_file: Path) -> list[str]:
        if schedule.name == "second":
            raise Killed
        return ["/bin/sleep", "60"]

    gone = this_holder().model_copy(update={"process_started": "0"})
    with monkeypatch.context() as patched:
        patched.setattr(night_run, "this_holder", lambda: gone)
        patched.setattr(tempfile, "tempdir", str(tmp_path))  # it leaves the folder of its night
        with pytest.raises(Killed):
            replay(book, "2026-11-24T01:15+01:00", cast(Any, command))
    child = child_of(book, "first")
    assert child is not None
    try:
        shell = Shell(tmp_path)
        _, said = replay(book, "2026-11-24T01:20+01:00", shell)
        assert any(line.endswith(f"process {child} on {socket.gethostname()} runs it") for line in said)
        assert states(book, "first") == {"2026-11-24": "running"}
        assert len(shell.dates()) == 1, "that of the second schedule"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


HELD = "another run works on /data/out (host node-2, process 7)"


def test_a_night_whose_output_another_run_holds_is_tried_again_and_says_who_holds_it(tmp_path: Path) -> None:
    book = local_book(tmp_path, tries=3)
    shell = Shell(tmp_path, {"2026-11-24": f"echo 'error: JOB_HELD: {HELD}; wait for it' >&2; exit 6"})
    code, said = replay(book, "2026-11-24T01:15+01:00", shell)
    assert code == 0
    assert states(book)["2026-11-24"] == f"resumable exit code 6: {HELD} 6"
    assert any(f"resumable, exit code 6: {HELD}; again at 2026-11-24T00:16" in line for line in said)
    replay(book, "2026-11-24T01:15:30+01:00", shell)
    assert len(shell.dates()) == 1, "its pause of a minute is not over"
    replay(book, "2026-11-24T01:17+01:00", shell)
    replay(book, "2026-11-24T01:18:30+01:00", shell)
    assert len(shell.dates()) == 2, "nor is the next one, of two"
    assert replay(book, "2026-11-24T01:20+01:00", shell)[0] == 1
    gave_up = f"failed gave up after 3 tries; the last one ended with exit code 6: {HELD} 6"
    assert states(book)["2026-11-24"] == gave_up
    assert replay(book, "2026-11-25T01:15+01:00", shell)[0] == 0
    assert shell.dates() == ["2026-11-24"] * 3 + ["2026-11-25"]


def test_who_holds_an_output_is_read_from_what_the_run_said(tmp_path: Path) -> None:
    store = open_book(str(tmp_path / "out")).store
    lease = acquire(store)

    def rival_waits(seconds: float) -> None:
        assert lease.renew(1)

    with pytest.raises(SpecbatchError) as caught:
        acquire(store, sleep=rival_waits)
    who = f"another run works on {store.uri} (host {socket.gethostname()}, process {os.getpid()})"
    plain = f"rows 1/2\nerror: {caught.value}\n"
    as_json = json.dumps({"level": "error", "message": str(caught.value)}) + "\n"
    assert who_holds(plain.encode()) == who_holds(as_json.encode()) == who
    assert who_holds(b"rows 1/2\nerror: JOB_NO_CAPACITY: no room\n") == ""


def test_nights_that_a_clock_saw_too_early_are_run_when_their_time_comes(tmp_path: Path) -> None:
    """It was ahead until the 30th and ran three of them; those of now must not hide behind these."""
    book = local_book(tmp_path)
    wrong = stamp(at("2026-11-30T01:20+01:00"))
    ran = Attempt(number=1, started_at=wrong, ended_at=wrong, exit_code=0, log="l")
    for day, state in ((27, "complete"), (28, "complete"), (29, "complete"), (30, "waiting")):
        night = Night(
            schedule="nightly",
            planned=f"2026-11-{day}T01:15:00+01:00",
            state=cast(Any, state),
            seen_at=wrong,
            output=f"/o/{day}",
            attempts=(ran,) if state == "complete" else (),
        )
        assert book.create_night(night)
    shell = Shell(tmp_path, {"2026-11-24": f"[ -e {tmp_path}/tried ] || {{ touch {tmp_path}/tried; exit 8; }}"})
    for moment in ("24T01:15", "24T01:20", "25T01:15", "26T01:15", "30T01:15"):
        assert replay(book, f"2026-11-{moment}+01:00", shell)[0] == 0
    assert [date[-2:] for date in shell.dates()] == ["24", "24", "25", "26", "30"]
    assert set(states(book).values()) == {"complete 0"}


def test_a_night_that_brings_its_daemon_down_is_given_up_in_the_end(tmp_path: Path, start: Any) -> None:
    book = local_book(tmp_path, tries=2)
    for _ in range(2):
        daemon = start(book, "2026-11-24T01:15+01:00", "kill -9 $PPID", "once")
        daemon.wait()
        assert daemon.returncode == -signal.SIGKILL
    assert replay(book, "2026-11-24T01:30+01:00", Shell(tmp_path))[0] == 1
    assert states(book)["2026-11-24"].startswith("failed gave up after 2 runs")


TRAP = "trap 'echo drained; exit 143' TERM; echo begun; while :; do sleep 0.02; done"


@pytest.mark.parametrize(("mode", "code"), [("once", 143), ("forever", 0)])
def test_sigterm_is_passed_on_once_and_the_night_goes_on_next_time(
    tmp_path: Path, start: Any, mode: str, code: int
) -> None:
    book, shell = local_book(tmp_path), Shell(tmp_path)
    daemon = start(book, "2026-11-24T01:15+01:00", TRAP, mode)
    log = "logs/nightly/20261124T0015Z-1.log"
    until(lambda: log in book.store.list("logs") and book.store.read(log) == b"begun\n")
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(WAIT_SECONDS) == code
    assert book.store.read(log) == b"begun\ndrained\n"
    assert states(book)["2026-11-24"] == "resumable its daemon was asked to end 143"
    assert replay(book, "2026-11-24T01:16+01:00", shell)[0] == 0
    assert (states(book), shell.dates()) == ({"2026-11-24": "complete 0"}, ["2026-11-24"])


def test_signals_are_passed_on_one_by_one_and_as_many_as_come(tmp_path: Path) -> None:
    """Two that were seen in one look, while the store was slow, would be one to the night; a third one counts too."""
    book = local_book(tmp_path)
    passed: list[tuple[int, signal.Signals]] = []
    num_polls = 0

    class Told(Child):
        def poll(self) -> int | None:
            nonlocal num_polls
            num_polls += 1
            code = super().poll()
            if len(passed) == 3 and code is None:
                os.kill(self.pid, signal.SIGKILL)
            return code

        def stop(self, number: signal.Signals) -> None:
            passed.append((num_polls, number))

    def stop_signal() -> tuple[signal.Signals, int] | None:
        return (signal.SIGTERM, 3) if num_polls else None

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(night_run, "Child", Told)
        shell = Shell(tmp_path, {"2026-11-24": "exec sleep 20"})
        code, _ = replay(book, "2026-11-24T01:15+01:00", shell, stop_signal=stop_signal)
    polls, numbers = zip(*passed, strict=True)
    assert numbers == (signal.SIGTERM,) * 3
    assert len(set(polls)) == 3, "the night has had time between them"
    assert code == 143


def test_a_daemon_runs_nights_as_their_time_comes(tmp_path: Path, start: Any) -> None:
    book = local_book(tmp_path)
    start(book, "2026-11-24T01:14:59+01:00", "exit 0", "forever")
    until(lambda: states(book) == {"2026-11-24": "complete 0"})
    found = book.find_night("nightly", at("2026-11-24T01:15+01:00"))
    assert found is not None
    assert found.night.attempts[0].started_at < stamp(at("2026-11-24T01:17+01:00"))


def elsewhere(book: Book) -> None:
    """Make the stored night one of a daemon on another host."""
    found = book.find_night("nightly", at("2026-11-24T01:15+01:00"))
    assert found is not None
    assert found.night.holder is not None
    holder = found.night.holder.model_copy(update={"host": "elsewhere"})
    moved = found.night.model_copy(update={"holder": holder, "revision": found.night.revision + 1})
    assert book.swap_night(moved, found.version) is not None


def test_a_daemon_elsewhere_is_watched_before_its_night_is_taken(tmp_path: Path, start: Any) -> None:
    book, shell = local_book(tmp_path), Shell(tmp_path)
    daemon = start(book, "2026-11-24T01:15+01:00", "exec sleep 60", "once")
    until(lambda: child_of(book) is not None)
    child = child_of(book)
    daemon.kill()
    daemon.wait()
    elsewhere(book)
    ticks = iter(range(1000))
    watcher = Watcher(silent_seconds=20, monotonic=lambda: next(ticks))
    code, said = replay(book, "2026-11-24T02:00+01:00", shell, watcher=watcher, look_seconds=0.01)
    assert (code, states(book)) == (0, {"2026-11-24": "complete 0"})
    assert any("is watched for a sign of life" in line for line in said)
    assert next(ticks) > 20
    assert child is not None
    os.kill(child, signal.SIGKILL)


def test_a_daemon_in_another_container_of_this_host_is_watched() -> None:
    """Its number says nothing here: it may be alive, and a night is not begun twice."""
    this = this_holder()
    boot = this.boot_id.partition(" ")[0]
    gone = {"pid": 2**22 + 1, "process_started": "7"}
    places = {"here": this.boot_id, "earlier boot": "another-boot pid:[1]", "container": f"{boot} pid:[1]", "old": boot}
    now, now_at = [0.0], at("2026-11-24T01:15+01:00")
    for name, boot_id in places.items():
        holder = this.model_copy(update={**gone, "boot_id": boot_id})
        watcher = Watcher(silent_seconds=20, monotonic=lambda: now[0])
        night = Night(schedule=name, planned=stamp(now_at), state="running", seen_at="", output="", holder=holder)
        is_seen = name in ("here", "earlier boot")
        assert watcher.holding(night) == ("nobody" if is_seen else "watched"), name
        now[0] += 20
        assert watcher.holding(night) == "nobody", name


def test_a_daemon_that_lost_its_night_stops_its_run(tmp_path: Path) -> None:
    book = local_book(tmp_path)
    trap = f"trap 'touch {tmp_path}/stopped; exit 143' TERM; touch {tmp_path}/begun; while :; do sleep 0.02; done"
    shell = Shell(tmp_path, {"2026-11-24": trap})
    slow = Background(book, "2026-11-24T01:15+01:00", shell, renew_seconds=0.05)
    until(lambda: child_of(book) is not None and (tmp_path / "begun").exists())
    found = book.find_night("nightly", at("2026-11-24T01:15+01:00"))
    assert found is not None
    assert found.night.holder is not None
    for _ in range(100):  # against its renewals
        found = book.find_night("nightly", at("2026-11-24T01:15+01:00"))
        assert found is not None
        assert found.night.holder is not None
        holder = found.night.holder.model_copy(update={"token": "another", "pid": os.getpid()})
        taken = found.night.model_copy(update={"holder": holder, "revision": found.night.revision + 1})
        if book.swap_night(taken, found.version) is not None:
            break
    until(lambda: (tmp_path / "stopped").exists())
    slow.join()
    found = book.find_night("nightly", at("2026-11-24T01:15+01:00"))
    assert found is not None
    assert found.night.holder is not None
    assert found.night.holder.token == "another"


def test_a_store_that_is_away_for_a_while_costs_no_night(
    tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a night is stored when the store is back, and the night is not run again."""
    book = open_book(f"s3://{s3_server.new_bucket()}/x")
    book.add(make(tmp_path))
    shell = Shell(tmp_path)
    swap, failures = Book.swap_night, iter([False, True, True])

    def failing(self: Book, night: Any, version: str) -> str | None:
        if next(failures, False):
            from specbatch.schemas.errors import ErrorCode

            raise SpecbatchError(ErrorCode.JOB_STORE_LOST, "away")
        return swap(self, night, version)

    monkeypatch.setattr(Book, "swap_night", failing)
    code, said = replay(book, "2026-11-24T01:15+01:00", shell)
    assert code == 0
    assert any("away; trying again" in line for line in said)
    assert (states(book), shell.dates()) == ({"2026-11-24": "complete 0"}, ["2026-11-24"])


def test_a_changed_schedule_does_not_change_a_night_that_was_begun(tmp_path: Path) -> None:
    book = local_book(tmp_path)
    shell = Shell(tmp_path, {"2026-11-24": "exit 8"})
    replay(book, "2026-11-24T01:15+01:00", shell)
    book.add(make(tmp_path, spec="output: elsewhere/{date}\n"), is_replaced=True)
    seen: list[dict[str, Any]] = []

    def look(schedule: Any, night: Any, job_file: Path) -> list[str]:
        seen.append(json.loads(job_file.read_text()))
        return ["/bin/true"]

    daemon = Daemon(
        book, now=lambda: at("2026-11-24T02:00+01:00"), command_of=look, environment={}, say=lambda line: None
    )
    assert daemon.run(once=True) == 0
    assert seen[0]["output"].endswith("/out/2026-11-24")
    assert states(book) == {"2026-11-24": "complete 0"}


def test_the_daemon_holds_neither_ray_nor_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom specbatch.jobs.cli import app as cli\nprint(cli.run(sys.argv[1:]))\n"
        "print([name for name in ('ray', 'torch', 'transformers', 'pyarrow', 'boto3') if name in sys.modules])\n"
    )
    empty = ["schedule", "run", "--once", "--store", str(tmp_path / "empty")]
    late = ["schedule", "run", "--once", "--now", "2026-11-24T12:00+01:00", "--store", str(tmp_path / "store")]
    local_book(tmp_path, missed="skip")
    for arguments, said in ((empty, "no schedule is in use in"), (late, "skipped, nobody saw its time")):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.stdout, said in done.stderr) == ("0\n[]\n", True)
