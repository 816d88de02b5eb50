"""The spool of parts on their way: private, and cleared of what the dead left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage import spool

KEY = "data/part-000000-abc.parquet"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(spool, "_own", spool._Own())
    yield tmp_path
    spool._remove_own()


def test_the_spool_is_private(temporary: Path) -> None:
    path = spool.new_spool_path()
    assert path.parent.parent == temporary
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert spool.new_spool_path() != path


SPOOLING = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from specbatch.storage.spool import new_spool_path
new_spool_path().write_bytes(b"half a part")
print("ready", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_kept(temporary: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SPOOLING, str(temporary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    assert len(list(temporary.iterdir())) == 2
    processes[0].send_signal(signal.SIGKILL)
    processes[0].wait()
    mine = spool.new_spool_path().parent
    assert mine in temporary.iterdir()
    assert len(list(temporary.iterdir())) == 2
    processes[1].communicate("")  # ends in good order, and takes its folder along
    processes[0].communicate()
    assert list(temporary.iterdir()) == [mine]


@pytest.mark.parametrize("moment", ["before it is opened", "before it is locked"])
def test_a_folder_that_another_process_sweeps_before_it_is_ours_is_made_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    place, name = (tempfile, "mkdtemp") if moment == "before it is opened" else (os, "open")
    real, swept = getattr(place, name), []

    def make_and_lose(*arguments: Any, **options: Any) -> Any:
        made = real(*arguments, **options)
        if not swept:
            swept.append(made)
            spool._remove_abandoned(temporary)
        return made

    monkeypatch.setattr(place, name, make_and_lose)
    path = spool.new_spool_path()
    path.write_bytes(b"a part")
    assert len(swept) == 1
    assert list(temporary.iterdir()) == [path.parent]


@pytest.mark.parametrize(
    ("number", "code"),
    [(28, ErrorCode.SHARD_DISK_FULL), (30, ErrorCode.JOB_OUTPUT_UNWRITABLE)],
    ids=["full", "read-only"],
)
def test_a_temporary_folder_that_takes_no_file(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: ErrorCode
) -> None:
    """Fault 41."""

    def fail(**arguments: object) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.mkdtemp", fail)
    with pytest.raises(SpecbatchError, match="set TMPDIR") as caught:
        spool.new_spool_path()
    assert caught.value.code is code
