"""How a Ray is joined, watched and left, without a Ray."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specbatch.jobs.coordinator.policy import MAX_TICK_GAP_SECONDS
from specbatch.jobs.running import cluster
from specbatch.jobs.running.cluster_joined import JoinedCluster
from specbatch.jobs.running.cluster_view import ClusterView, ClusterWatch
from specbatch.jobs.running.need import Node
from specbatch.schemas.errors import SpecbatchError

HEAD = Node("head", 0, 0)


def test_a_pause_of_everything_is_no_silence_of_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults 21 and 52: after the pause the head has as long to answer as ever."""
    now = [1000.0]
    watch = ClusterWatch("head:6379", lambda: now[0])
    joined = JoinedCluster("head:6379", tmp_path, HEAD.node_id, watch)
    joined.check()
    now[0] += 600
    joined.check()
    assert watch.silent_seconds == MAX_TICK_GAP_SECONDS
    monkeypatch.setattr("specbatch.jobs.running.cluster_view.read_view", lambda: ClusterView((HEAD,)))
    monkeypatch.setattr(watch, "_head", SimpleNamespace(check_alive=lambda nodes, timeout: None))
    watch._ask()
    assert watch.silent_seconds == 0
    for _ in range(20):
        now[0] += 1
        joined.check()
    now[0] += 1
    with pytest.raises(SpecbatchError, match="has not answered for 20 s"):
        joined.check()


def test_a_head_that_goes_while_it_is_joined_is_lost_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 21: whoever runs a job again in this process finds it free."""
    left = threading.Event()

    def no_view() -> ClusterView:
        raise ConnectionError("no route to the head\na trace")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **options: None)
    monkeypatch.setattr("ray.shutdown", left.set)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address="head:6379"))
    monkeypatch.setattr("ray._raylet.GcsClient", lambda address: None)
    monkeypatch.setattr("specbatch.jobs.running.cluster_view.read_view", no_view)
    line = "JOB_CLUSTER_LOST: the Ray cluster head:6379 is not to be reached: no route to the head$"
    with pytest.raises(SpecbatchError, match=line), cluster.open_cluster("head:6379", 0):
        pass
    assert left.is_set()


def test_what_ray_still_writes_to_is_left_for_a_later_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "specbatch-abc"
    logs = folder / "session" / "logs"
    logs.mkdir(parents=True)
    (folder / "owner").write_text("1 in another life")
    rmdir = os.rmdir

    def write_first(path: str, **options: Any) -> None:
        if path == "logs":
            (logs / "agent.log").touch()
        rmdir(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", write_first)
        cluster._sweep(tmp_path)
    assert (logs / "agent.log").exists()
    cluster._sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
