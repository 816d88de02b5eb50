"""The lease: taken at once from the dead, after watching from the silent, never from the living."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specbatch.jobs.output.lease import (
    LEASE_FORMAT,
    LEASE_KEY,
    LeaseDocument,
    acquire,
    find_holder,
    judge,
    may_be_held,
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


@pytest.mark.parametrize(
    ("boot_id", "verdict"),
    [("boot pid:[1]", "dead"), ("boot pid:[2]", "watch"), ("boot", "watch"), ("earlier pid:[1]", "dead")],
    ids=["counted here", "in another container", "by an earlier version", "before the last boot"],
)
def test_a_number_of_a_process_says_nothing_where_others_are_counted(boot_id: str, verdict: str) -> None:
    document = replace(OTHER, host="here", boot_id=boot_id)
    assert judge(document, host="here", boot_id="boot pid:[1]", process_started=lambda pid: None) == verdict


def test_a_holder_in_another_container_of_this_host_is_watched(store: Store) -> None:
    here, _, namespace = read_boot_id().partition(" ")
    assert namespace == str(Path("/proc/self/ns/pid").readlink())
    other = replace(OTHER, host=socket.gethostname(), boot_id=f"{here} pid:[7]", pid=2**22 + 1)
    write(store, other)
    assert may_be_held(other)
    assert find_holder(store, sleep=Sleeper()) == ("silent", other)
    assert find_holder(store, sleep=Sleeper(2, lambda: write(store, replace(other, renewals=6)))) == ("live", other)
    with pytest.raises(SpecbatchError, match="JOB_HELD"):
        acquire(store, sleep=Sleeper(2, lambda: write(store, replace(other, renewals=7))))


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


def test_a_lease_whose_name_could_be_no_part_of_a_key_is_none(store: Store) -> None:
    write(store, replace(OTHER, token="../../theirs"))
    assert read_lease(store) is None


def test_start_times_tell_processes_apart() -> None:
    assert process_started(os.getpid()) is not None
    assert process_started(os.getpid()) != process_started(1)
    assert process_started(2**22 + 1) is None


class Meddler:
    """A store in which something happens just before, or instead of the reply to, a swap."""

    def __init__(self, store: Store, *, before: Callable[[], None] = lambda: None, lose_reply: bool = False) -> None:
        self._store = store
        self._before = before
        self.lose_reply = lose_reply

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def swap(self, key: str, data: bytes, expected: str | None) -> str | None:
        before, self._before = self._before, lambda: None
        before()
        version = self._store.swap(key, data, expected)
        return None if self.lose_reply else version


@pytest.mark.parametrize("found", [None, replace(OTHER, released=True)])
def test_of_two_that_find_it_free_one_gets_it(store: Store, found: LeaseDocument | None) -> None:
    if found is not None:
        write(store, found)
    quicker = []
    meddler: Any = Meddler(store, before=lambda: quicker.append(acquire(store)))

    def renew(seconds: float) -> None:
        assert quicker[0].renew(1)

    with pytest.raises(SpecbatchError, match="JOB_HELD") as caught:
        acquire(meddler, sleep=renew)
    assert f"specbatch cancel {store.uri}" in caught.value.message
    assert quicker[0].renew(2), "the loser has changed nothing"


def test_a_rival_that_dies_between_is_followed(store: Store) -> None:
    meddler: Any = Meddler(store, before=lambda: acquire(store).release())
    lease = acquire(meddler, sleep=Sleeper())
    assert lease.renew(1)


def test_a_renewal_whose_reply_was_lost_is_recognised_as_ours(store: Store) -> None:
    """Fault 28, of a swap."""
    meddler: Any = Meddler(store)
    lease = acquire(meddler)
    meddler.lose_reply = True
    lease.renew(1)
    meddler.lose_reply = False
    assert lease.renew(2)
    found = read_lease(store)
    assert found is not None
    assert found.epoch == 2


def test_a_holder_that_was_paused_notices_when_it_wakes(store: Store) -> None:
    """Fault 43."""
    paused = acquire(store)
    found = read_lease(store)
    assert found is not None
    write(store, replace(found, host="elsewhere"))
    thief = acquire(store, sleep=Sleeper())
    assert not paused.renew(1)
    paused.release()
    assert thief.renew(2)


def test_a_release_does_not_hide_how_the_run_ended(store: Store) -> None:
    def fail() -> None:
        raise SpecbatchError(ErrorCode.JOB_STORE_LOST, "gone")

    lease = acquire(store)
    lease._store = Meddler(store, before=fail)  # type: ignore[assignment]
    lease.release()


def test_the_holder_is_found_without_taking_anything(store: Store) -> None:
    sleeper = Sleeper()
    assert find_holder(store, sleep=sleeper) == ("none", None)
    write(store, replace(OTHER, released=True))
    assert find_holder(store, sleep=sleeper) == ("none", None)
    lease = acquire(store)
    held = read_lease(store)
    assert find_holder(store, sleep=sleeper) == ("live", held), "its process is alive: no need to wait"
    assert may_be_held(held)
    lease.release()
    assert not may_be_held(read_lease(store))
    assert sleeper.seconds == 0
    write(store, OTHER)
    assert find_holder(store, sleep=sleeper) == ("silent", OTHER)
    assert sleeper.seconds == 30
    assert find_holder(store, sleep=Sleeper(2, lambda: write(store, replace(OTHER, renewals=6)))) == ("live", OTHER)
    write(store, OTHER)
    assert find_holder(store, sleep=Sleeper(2, lambda: write(store, replace(OTHER, released=True)))) == ("none", None)
    assert read_lease(store) == replace(OTHER, released=True)
