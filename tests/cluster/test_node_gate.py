"""Which nodes may take part: those with our code, one set of libraries, and the same files under the same names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle

from specbatch._version import __version__
from specbatch.jobs.running.cluster_view import ClusterView
from specbatch.jobs.running.need import Node, WorkerNeed
from specbatch.jobs.running.node_gate import AGAIN_SECONDS, OPEN_SECONDS, NodeGate, mark_output
from specbatch.jobs.running.node_probe import TEXT_LIBRARIES, NodeFacts, judge, make_probe
from specbatch.schemas.errors import SpecbatchError

LIBRARIES: dict[str, str | None] = dict.fromkeys(TEXT_LIBRARIES, "1.0")
HERE = NodeFacts("here", {"specbatch": __version__, **LIBRARIES}, {"/mnt/x": "5:abc"})
HEAD, FIRST, SECOND = Node("head", 0, 0), Node("a", 4, 0), Node("b", 4, 0)


def with_version(name: str, version: str | None) -> NodeFacts:
    return replace(HERE, host="there", versions={**HERE.versions, name: version})


def test_equal_nodes_may_take_part() -> None:
    assert judge(replace(HERE, host="there"), HERE, HERE) is None
    assert judge(HERE, HERE, None) is None


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (with_version("specbatch", "0.0.9"), f"node there has specbatch 0.0.9, this job runs {__version__}; install"),
        (with_version("specbatch", None), f"node there has no specbatch, this job runs {__version__}"),
        (with_version("torch", None), "node there has no torch"),
        (with_version("torch", "2.0"), "node there has torch 2.0, node here has 1.0: the text would depend"),
    ],
)
def test_other_versions_are_told_in_one_line(facts: NodeFacts, line: str) -> None:
    problem = judge(facts, HERE, HERE)
    assert problem is not None
    assert problem.code == "JOB_VERSION_SKEW"
    assert problem.text.startswith(line)
    assert "\n" not in problem.text


def test_the_driver_may_have_other_libraries_than_the_nodes() -> None:
    """It decodes nothing: a CPU build of torch there and a CUDA build on the nodes are how clusters are."""
    assert judge(with_version("torch", "2.13.0+cu130"), HERE, None) is None


@pytest.mark.parametrize(("seen", "verb"), [(None, "does not see"), ("6:abc", "sees another file at")])
def test_files_have_to_be_the_same(seen: str | None, verb: str) -> None:
    problem = judge(replace(HERE, host="there", files={"/mnt/x": seen}), HERE, HERE)
    assert problem is not None
    assert problem.code == "JOB_PATH_NOT_SHARED"
    assert problem.text.startswith(f"node there {verb} /mnt/x; ")


def test_what_is_asked_tells_files_apart(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"1" * 200_000)
    answer = make_probe()(["torch", "no-such-thing"], [str(path), str(tmp_path / "gone")])
    assert answer["versions"]["specbatch"] == __version__
    assert answer["versions"]["no-such-thing"] is None
    assert answer["files"][str(tmp_path / "gone")] is None
    before = answer["files"][str(path)]
    path.write_bytes(b"1" * 199_999 + b"2")
    assert make_probe()([], [str(path)])["files"][str(path)] != before


_ANSWER = """
import json
import sys
from ray import cloudpickle

probe = cloudpickle.loads(bytes.fromhex(sys.argv[1]))
print(json.dumps(probe(["torch"], [])["versions"]))
"""


@pytest.mark.parametrize(("module", "found"), [('__version__ = "0.0.9"', "0.0.9"), ("raise ImportError", None)])
def test_a_node_with_another_specbatch_can_answer(tmp_path: Path, module: str, found: str | None) -> None:
    """The question is carried as code: nothing of ours has to be there that knows it."""
    (tmp_path / "specbatch").mkdir()
    (tmp_path / "specbatch/__init__.py").touch()
    (tmp_path / "specbatch/_version.py").write_text(module)
    done = subprocess.run(
        [sys.executable, "-c", _ANSWER, cloudpickle.dumps(make_probe()).hex()],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["specbatch"] == found


class Cluster:
    """Nodes that answer when the test lets them."""

    def __init__(self, *nodes: Node) -> None:
        self.view = ClusterView((HEAD, *nodes))
        self.asked: list[str] = []
        self.answers: dict[str, Any] = {}
        self.said: list[str] = []

    def gate(self, paths: Sequence[str] = ()) -> NodeGate:
        return NodeGate(
            WorkerNeed("cpu"), paths, lambda: self.view, self.said.append,
            ask=lambda node, paths: self.asked.append(node) or node, collect=self.collect,
        )  # fmt: skip

    def collect(self, calls: dict[str, Any]) -> dict[str, Any]:
        return {node: self.answers[node] for node in calls if node in self.answers}

    def answer(self, node: str, **versions: str) -> None:
        facts = make_probe()(TEXT_LIBRARIES, ())
        self.answers[node] = {**facts, "host": f"host-{node}", "versions": {**facts["versions"], **versions}}


def nodes_in(gate: NodeGate) -> list[str]:
    view = gate.look()
    assert view is not None
    return [node.node_id for node in view.nodes]


def test_a_job_does_not_begin_beside_a_node_that_may_not_take_part() -> None:
    cluster = Cluster(FIRST, SECOND)
    cluster.answer("a")
    cluster.answer("b", specbatch="0.0.1")
    with pytest.raises(SpecbatchError, match=r"JOB_VERSION_SKEW: node host-b has specbatch 0\.0\.1"):
        cluster.gate().open()
    assert cluster.asked == ["a", "b"], "the head offers nothing, and is not asked"


def test_nodes_that_come_late_are_asked_first() -> None:
    """One that may not take part gets no worker; the job goes on with the others."""
    cluster = Cluster(FIRST)
    cluster.answer("a")
    gate = cluster.gate()
    gate.open()
    assert nodes_in(gate) == ["a"]
    assert gate.look() is gate.look(), "nothing new is the same view, as the runner expects it"
    cluster.view = ClusterView((HEAD, FIRST, SECOND, Node("c", 4, 0)))
    assert nodes_in(gate) == ["a"], "it has not answered yet"
    cluster.answer("b", torch="0.1")
    cluster.answer("c")
    assert nodes_in(gate) == ["a", "c"]
    (line,) = cluster.said
    assert line.startswith("a node gets no worker: JOB_VERSION_SKEW: node host-b has torch 0.1")
    nodes_in(gate)
    assert cluster.asked == ["a", "b", "c"]
    assert len(cluster.said) == 1


def test_a_node_that_cannot_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("specbatch.jobs.running.node_gate.time.monotonic", lambda: now[0])
    cluster = Cluster(FIRST, SECOND)
    cluster.answer("a")
    cluster.answers["b"] = RuntimeError("out of memory")
    gate = cluster.gate()
    gate.open()
    assert nodes_in(gate) == ["a"]
    now[0] = AGAIN_SECONDS
    cluster.answer("b")
    assert nodes_in(gate) == ["a", "b"]
    assert cluster.asked == ["a", "b", "b"]


def test_a_node_that_is_silent_holds_nobody_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("specbatch.jobs.running.node_gate.time.monotonic", lambda: now[0])
    cluster = Cluster(FIRST, SECOND)
    cluster.answer("a")
    gate = cluster.gate()

    def sleep(seconds: float) -> None:
        now[0] += seconds

    gate.open(sleep)
    assert OPEN_SECONDS <= now[0] <= OPEN_SECONDS + 1
    assert nodes_in(gate) == ["a"]


def test_the_mark_of_an_output_is_there_while_it_is_asked_about(tmp_path: Path) -> None:
    with mark_output(str(tmp_path / "out")) as marks:
        (mark,) = map(Path, marks)
        assert mark.is_relative_to(tmp_path / "out/_specbatch/tmp")
        assert mark.read_text()
    assert not mark.exists()
    with mark_output("s3://bucket/out") as marks:
        assert marks == []


def test_a_resume_under_other_versions_is_told() -> None:
    record: Any = SimpleNamespace(workers=[SimpleNamespace(versions={"torch": "2.0", "python": "3.11"})])
    begun: Any = SimpleNamespace(workers=[])
    for version, line in (("2.0", None), ("9.9", "torch 2.0 before, 9.9 now")):
        cluster = Cluster(FIRST)
        cluster.answer("a", torch=version)
        gate = cluster.gate()
        gate.open()
        found = gate.changes_since([record, begun])
        assert found == line if line is None else line in str(found)
        assert gate.changes_since([]) is None
