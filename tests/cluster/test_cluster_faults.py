"""Whole jobs on a cluster of several nodes, each broken in one way: every row once, and nobody is blamed without guilt.

Row numbers are those of the fault matrix. Each job runs in a process of its own: Ray's state does not outlive it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("cluster_job.py")
LIMIT_SECONDS = 400.0


class Outcome:
    """What a job printed, and the rows that it left."""

    def __init__(self, folder: Path, result: dict[str, Any]) -> None:
        self.result = result
        self.counts = Counter(entry[1] for entry in result["diary"])
        self.deaths = [entry[2] for entry in result["diary"] if entry[1] == "WorkerDied"]
        self.causes = [death["cause"] for death in self.deaths]
        self.table = pa.concat_tables(pq.read_table(path) for path in sorted((folder / "out/data").glob("*.parquet")))

    def assert_complete(self) -> None:
        """Every row once, with its own text."""
        assert self.result["code"] is None, self.result["message"]
        assert self.table.column("row_id").to_pylist() == list(range(120))
        assert self.table.column("completion").to_pylist() == self.table.column("prompt").to_pylist()

    def moment(self, name: str) -> float:
        """When something happened first."""
        return next(entry[0] for entry in self.result["diary"] if entry[1] == name)


Play = Callable[[str], Outcome]


@pytest.fixture
def play() -> Iterator[Play]:
    folder = Path(tempfile.mkdtemp(prefix="sbc", dir="/tmp"))  # Ray refuses long names, and pytest's are long

    def run(scenario: str) -> Outcome:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPECBATCH_", "RAY_"))}
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), scenario, str(folder)],
            cwd=folder,
            env={**kept, "RAY_TMPDIR": str(folder), "TMPDIR": str(folder), "CLUSTER_MARK": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(timeout=LIMIT_SECONDS)
        finally:
            end_all(str(folder))
        result = folder / "result.json"
        assert result.exists(), out
        return Outcome(folder, json.loads(result.read_text()))

    try:
        yield run
    finally:
        end_all(str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def end_all(mark: str) -> None:
    """Kill every process that inherited the mark in its environment."""
    wanted = f"CLUSTER_MARK={mark}".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in environ.read_bytes().split(b"\0"):
                os.kill(int(environ.parent.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue


@pytest.mark.long
def test_fault_1_a_worker_is_killed(play: Play) -> None:
    """Before that: one worker on each node that offers cores, none on the head."""
    outcome = play("worker_killed")
    outcome.assert_complete()
    assert outcome.causes == ["crash"]
    assert "killed or crashed" in outcome.deaths[0]["reason"]
    assert outcome.counts["StartWorker"] == 3
    nodes = outcome.result["nodes"]
    assert nodes["0"] != nodes["1"]
    assert outcome.result["head"] not in nodes.values()


def test_fault_4_a_worker_is_stopped_for_good(play: Play) -> None:
    outcome = play("worker_stopped")
    outcome.assert_complete()
    assert outcome.causes == ["hung"]
    assert "no sign of life" in outcome.deaths[0]["reason"]
    assert outcome.result["survivors"] == []


@pytest.mark.long
def test_fault_4_a_worker_naps(play: Play) -> None:
    """Suspected, not replaced."""
    outcome = play("worker_naps")
    outcome.assert_complete()
    assert outcome.causes == []
    assert any("no sign of life" in line for line in outcome.result["said"])


@pytest.mark.long
def test_fault_5_a_worker_hangs_in_native_code(play: Play) -> None:
    outcome = play("worker_hangs")
    outcome.assert_complete()
    assert outcome.causes == ["hung"]
    assert outcome.result["survivors"] == []


def test_fault_13_a_node_goes_without_a_word(play: Play) -> None:
    outcome = play("node_removed")
    outcome.assert_complete()
    assert set(outcome.causes) == {"lost"}


@pytest.mark.long
def test_fault_50_nodes_join_late(play: Play) -> None:
    """Workers of their own on those that may take part; the others get none, and are named once."""
    outcome = play("nodes_join_late")
    outcome.assert_complete()
    assert outcome.causes == []
    joined = next(entry[2] for entry in outcome.result["diary"] if entry[1] == "Joined")
    settled = next(entry[2] for entry in outcome.result["diary"] if entry[1] == "Settled")
    places = set(outcome.result["nodes"].values())
    assert joined["late"] in places
    assert joined["other"] not in places
    assert len(places) == 2
    refused = [line for line in outcome.result["said"] if "gets no worker" in line]
    assert sum("JOB_VERSION_SKEW" in line and "specbatch 0.0.9" in line for line in refused) == 1
    if settled["is_secluded"] == "True":
        assert sum("JOB_PATH_NOT_SHARED" in line and "/out/_specbatch/tmp/" in line for line in refused) == 1


@pytest.mark.long
def test_workers_share_gpus_on_nodes_of_the_right_kind(play: Play) -> None:
    outcome = play("halves_of_gpus")
    outcome.assert_complete()
    joined = next(entry[2] for entry in outcome.result["diary"] if entry[1] == "Joined")
    assert Counter(outcome.result["nodes"].values()) == {joined["first"]: 2, joined["second"]: 2}


@pytest.mark.long
def test_fault_14_all_nodes_go_and_another_comes(play: Play) -> None:
    outcome = play("all_nodes_replaced")
    outcome.assert_complete()
    assert len(outcome.causes) >= 2
    assert set(outcome.causes) == {"lost"}
    assert outcome.counts["CapacityChanged"] >= 3


@pytest.mark.long
def test_fault_15_a_node_is_dead_but_its_worker_lives(play: Play) -> None:
    """The zombie and its successor write the same part; one of them is too late."""
    outcome = play("node_falsely_dead")
    outcome.assert_complete()
    assert outcome.counts["ZombieAlive"] == 1
    assert set(outcome.causes) == {"lost"}


@pytest.mark.long
@pytest.mark.parametrize(
    "scenario", ["requests_lost", "replies_lost", "calls_fail_in_flight"], ids=["fault-16", "fault-17", "fault-18"]
)
def test_calls_to_workers_are_lost(play: Play, scenario: str) -> None:
    """Also fault 19: a burst of unreachable workers replaces none of them."""
    outcome = play(scenario)
    outcome.assert_complete()
    assert outcome.result["num_pauses"] >= 5
    assert outcome.counts["StartWorker"] == 2
    assert outcome.causes == []


@pytest.mark.long
def test_fault_20_a_machine_is_preempted(play: Play) -> None:
    outcome = play("node_drained")
    outcome.assert_complete()
    assert outcome.counts["PreemptionNotice"] >= 1
    assert set(outcome.causes) <= {"preempted"}


@pytest.mark.long
def test_fault_20_a_worker_is_asked_to_end(play: Play) -> None:
    """SIGTERM: Ray's worker ends at once, and it is nobody's fault."""
    outcome = play("worker_terminated")
    outcome.assert_complete()
    assert outcome.causes == ["preempted"]


@pytest.mark.long
def test_fault_21_the_head_is_killed(play: Play) -> None:
    outcome = play("head_killed")
    assert outcome.result["code"] == "JOB_CLUSTER_LOST"
    assert outcome.result["seconds"] - outcome.moment("HeadKilled") < 40
    kept = outcome.table.num_rows
    assert kept > 0
    resumed = play("undisturbed")
    resumed.assert_complete()
    assert resumed.result["found"] * 6 >= kept
