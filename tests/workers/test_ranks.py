"""The ranks beside a leader, as far as it can be told without a Ray: their meeting place, and who may let them go.

Whole groups: ``tests/specdec/test_parallel.py``; in jobs: ``tests/faults/test_tensor_parallel.py``.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from fake_engine import FakeEngine
from shard_helpers import make_config

from specbatch.schemas.messages import WorkerConfig
from specbatch.specdec.ranks.group import GroupLostError
from specbatch.workers import actor as actor_module
from specbatch.workers import worker as worker_module
from specbatch.workers.ranks import Ranks
from specbatch.workers.worker import Worker


@pytest.fixture(autouse=True)
def meeting_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: None)  # as in a process without one
    yield folder
    assert not ray.is_initialized()


def test_ranks_that_cannot_be_started_leave_no_meeting_place(tmp_path: Path, meeting_places: Path) -> None:
    with pytest.raises(AttributeError, match="bundle_specs"):
        Ranks(make_config(tmp_path / "out", num_ranks=2))
    assert list(meeting_places.iterdir()) == []


def test_ranks_whose_leader_never_came_leave_no_meeting_place(tmp_path: Path, meeting_places: Path) -> None:
    """The worker is stopped before it has loaded anything."""
    ranks = Ranks(make_config(tmp_path / "out"))
    assert len(list(meeting_places.iterdir())) == 1
    ranks.close()
    assert list(meeting_places.iterdir()) == []
    ranks.close()


@pytest.mark.parametrize("hangs", [False, True])
def test_only_the_thread_that_decodes_closes_the_group_it_uses(
    hangs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``stop`` comes from a thread of Ray's; where decoding does not end it may but abandon the group.

    It is slow to start here: one whose body runs already is one that ``stop`` knows of.
    """
    monkeypatch.setattr(worker_module, "_JOIN_SECONDS", 0.2)
    start = threading.Thread.start

    def start_slowly(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "specbatch-decode":
            time.sleep(0.2)

    monkeypatch.setattr(threading.Thread, "start", start_slowly)
    calls: list[str] = []
    is_loading, may_load = threading.Event(), threading.Event()

    def load(config: WorkerConfig) -> FakeEngine:
        is_loading.set()
        assert may_load.wait(30)
        return FakeEngine(config)

    class Noted:
        """In place of ``Ranks``, which needs a Ray."""

        on_lost: Any = None
        load_engine = staticmethod(load)

        def __init__(self, config: WorkerConfig) -> None: ...

        def close(self) -> None:
            calls.append("close")

        def abandon(self) -> None:
            calls.append("abandon")

    monkeypatch.setattr("specbatch.workers.ranks.Ranks", Noted)
    subject = actor_module.WorkerActor(make_config(tmp_path / "out", num_ranks=2))
    if hangs:
        starting = threading.Thread(target=subject.ready, daemon=True)
        starting.start()
        assert is_loading.wait(30)
    subject.stop()
    assert calls == ["abandon" if hangs else "close"]
    may_load.set()
    if hangs:
        starting.join(30)
        monkeypatch.setattr(worker_module, "_JOIN_SECONDS", 30.0)
        subject.stop()
        assert calls == ["abandon", "close"], "now it has ended"


def test_a_leader_that_is_abandoned_while_it_waits_for_ranks_gives_up(
    tmp_path: Path, meeting_places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ranks, "_wait", lambda ranks, calls: None)  # this and the next would start a Ray
    monkeypatch.setattr("specbatch.workers.ranks._own_device", lambda seat: None)
    ranks = Ranks(make_config(tmp_path / "out"))
    object.__setattr__(ranks._seat, "num_ranks", 2)  # one that never comes
    errors: list[Exception] = []

    def lead() -> None:
        try:
            ranks._lead()
        except Exception as error:
            errors.append(error)

    decoding = threading.Thread(target=lead, daemon=True)
    decoding.start()
    while ranks._leader is None:
        decoding.join(0.01)
        assert decoding.is_alive() or errors
    ranks.abandon()
    decoding.join(30)
    (error,) = errors
    assert isinstance(error, GroupLostError)
    assert "decode thread did not end" in str(error)
    assert list(meeting_places.iterdir()) == []


def test_a_worker_says_whether_its_engine_is_out_of_use(tmp_path: Path) -> None:
    assert Worker(make_config(tmp_path / "out"), FakeEngine).stop()
    worker = Worker(make_config(tmp_path / "out"), FakeEngine)
    worker.ready()
    assert worker.stop()
