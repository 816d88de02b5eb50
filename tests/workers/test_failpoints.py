"""Failpoints: what each action does to a process, and which time, row and process it is for."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from specbatch.schemas import failpoints
from specbatch.schemas.failpoints import failpoint


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_reached", failpoints.Counter())


def run(spec: str, body: str = "failpoint('a:before')") -> subprocess.Popen[bytes]:
    code = f"from specbatch.schemas.failpoints import failpoint\n{body}\nprint('alive', flush=True)"
    environment = {**os.environ, "SPECBATCH_FAILPOINT": spec}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)


@pytest.mark.parametrize(("action", "status"), [("kill", -signal.SIGKILL), ("exit", 1), ("delay-1", 0)])
def test_what_ends_a_process(action: str, status: int) -> None:
    process = run(f"a:before:1:{action}")
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (status, b"alive\n" if status == 0 else b"")


def test_a_stopped_process_goes_on_when_it_is_woken() -> None:
    process = run("a:before:1:stop")
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=30)[0] == b"alive\n"


def test_a_thread_that_hangs_leaves_the_others_alone() -> None:
    body = "import threading; threading.Thread(target=failpoint, args=('a:before',), daemon=True).start()"
    assert run("a:before:1:hang", body).communicate(timeout=30)[0] == b"alive\n"
    process = run("a:before:1:hang")
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=1)
    process.kill()
    process.communicate()


@pytest.mark.parametrize(("action", "kind"), [("error", RuntimeError), ("oom", MemoryError), ("enospc", OSError)])
def test_what_is_raised(action: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECBATCH_FAILPOINT", f"a:after:2:{action}")
    failpoint("a:after")
    failpoint("a:before")
    with pytest.raises(kind) as caught:
        failpoint("a:after")
    failpoint("a:after")
    assert getattr(caught.value, "errno", errno.ENOSPC) == errno.ENOSPC


def test_count_zero_is_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECBATCH_FAILPOINT", "a:before:0:delay-20")
    started = time.monotonic()
    for _ in range(3):
        failpoint("a:before")
    assert time.monotonic() - started >= 0.06


def test_one_process_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECBATCH_FAILPOINT", f"a:before:0:error@{tmp_path / 'once'}")
    with pytest.raises(RuntimeError):
        failpoint("a:before")
    failpoint("a:before")


def test_one_row_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECBATCH_FAILPOINT", "a:before:0:error")
    monkeypatch.setenv("SPECBATCH_FAILPOINT_ROW", "17")
    failpoint("a:before", 16)
    for row_id in (17, None):  # a point that belongs to no row acts whatever the row
        with pytest.raises(RuntimeError):
            failpoint("a:before", row_id)


@pytest.mark.parametrize("spec", ["kill", "a:before:1:explode", "a:before:x:kill"])
def test_a_spec_that_means_nothing_is_not_passed_over(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECBATCH_FAILPOINT", spec)
    with pytest.raises(ValueError, match=r"."):
        failpoint("a:before")
