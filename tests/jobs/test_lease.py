"""The lease: taken at once from the dead, after watching from the silent, never from the living."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from specbatch.jobs.lease import (
    LEASE_FORMAT,
    LEASE_KEY,
    LeaseDocument,
    acquire,
    judge,
    process_started,
    read_boot_id,
    read_lease,
)
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError
from specbatch.storage.store import Store, open_store

OTHER = LeaseDocument(LEASE_FORMAT, "elsewhere", "boot", 7, "100", 3, "theirs", 5, 0.0, 30.0, False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "out"))


def write(store: Store, document: LeaseDocument) -> None:
    fields = {name: getattr(document, name) for name in LeaseDocument.__slots__}
    store.replace(LEASE_KEY, json.dumps(fields).encode())


class Sleeper:
    """Counts the seconds that would have been slept, and can act at a given one."""

    def __init__(self, at_seconds: float = -1.0, action: object = None) -> None:
        self.seconds = 0.0
        self._at_seconds = at_seconds
        self._action = action

    def __call__(self, seconds: float) -> None:
        self.seconds += seconds
        if self._action is not None and self.seconds >= self._at_seconds >= 0:
            self._action()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("document", "verdict"),
    [
        (None, "free"),
        (replace(OTHER, released=True), "free"),
        (OTHER, "watch"),
        (replace(OTHER, host="here"), "watch"),
        (replace(OTHER, host="here", boot_id="earlier"), "dead"),
        (replace(OTHER, host="here", process_started="99"), "dead"),
        (replace(OTHER, host="here", pid=8), "dead"),
    ],
)
def test_judge(document: LeaseDocument | None, verdict: str) -> None:
    running = {7: "100"}
    assert judge(document, host="here", boot_id="boot", process_started=running.get) == verdict


def test_a_free_output_is_taken_renewed_and_released(store: Store) -> None:
    sleeper = Sleeper()
    lease = acquire(store, sleep=sleeper)
    assert lease.renew(epoch=4)
    found = read_lease(store)
    assert found is not None
    assert (found.pid, found.host, found.epoch, found.renewals) == (os.getpid(), socket.gethostname(), 4, 1)
    lease.release()
    again = acquire(store, sleep=sleeper)
    assert sleeper.seconds == 0
    assert not lease.renew(epoch=4), "the first lease must notice that another has taken over"
    lease.release()
    assert again.renew(epoch=5), "a release of the lost lease must not end the new one"


def test_a_dead_process_of_this_host_gives_way_at_once(store: Store) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = process_started(process.pid)
    assert started is not None
    holder = replace(OTHER, host=socket.gethostname(), boot_id=read_boot_id(), pid=process.pid, process_started=started)
    write(store, holder)
    with pytest.raises(SpecbatchError, match="JOB_HELD"):
        acquire(store, sleep=Sleeper(1, lambda: write(store, replace(holder, renewals=6))))
    process.communicate()
    sleeper = Sleeper()
    acquire(store, sleep=sleeper)
    assert sleeper.seconds == 0


def test_a_holder_that_renews_is_respected(store: Store) -> None:
    write(store, OTHER)
    told: list[LeaseDocument] = []
    sleeper = Sleeper(3, lambda: write(store, replace(OTHER, renewals=6)))
    with pytest.raises(SpecbatchError) as caught:
        acquire(store, sleep=sleeper, on_wait=told.append)
    assert caught.value.code is ErrorCode.JOB_HELD
    assert caught.value.exit_code is ExitCode.HELD
    assert "elsewhere" in caught.value.message
    assert sleeper.seconds == 3, "it gives way as soon as it knows"
    assert told == [OTHER]


def test_a_silent_holder_is_given_one_time_to_live(store: Store) -> None:
    write(store, OTHER)
    sleeper = Sleeper()
    acquire(store, sleep=sleeper)
    assert sleeper.seconds == 30


def test_a_holder_that_releases_meanwhile_is_not_waited_for(store: Store) -> None:
    write(store, OTHER)
    sleeper = Sleeper(2, lambda: write(store, replace(OTHER, released=True)))
    acquire(store, sleep=sleeper)
    assert sleeper.seconds == 2


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format": 1}'])
def test_a_lease_that_cannot_be_read_is_none(store: Store, data: bytes) -> None:
    store.replace(LEASE_KEY, data)
    assert read_lease(store) is None


def test_start_times_tell_processes_apart() -> None:
    assert process_started(os.getpid()) is not None
    assert process_started(os.getpid()) != process_started(1)
    assert process_started(2**22 + 1) is None
