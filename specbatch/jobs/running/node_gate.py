"""Lets only those nodes of a cluster into a job that have been asked and may take part; the others get no worker."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

from specbatch.jobs.planning.prepare import PreparedJob
from specbatch.jobs.running.cluster_view import ClusterView
from specbatch.jobs.running.need import Node, WorkerNeed
from specbatch.jobs.running.node_probe import TEXT_LIBRARIES, NodeFacts, judge, make_probe
from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.run import RunRecord

OPEN_SECONDS = 60.0
"""How long the nodes that are there when a run begins may take to answer: Ray first starts a process on each."""
AGAIN_SECONDS = 30.0
_MOST_DATASET_FILES = 16
_MARK_PREFIX = "_specbatch/tmp/shared-"


@dataclass(slots=True)
class _Asked:
    """A node that has been asked; ``again_at`` is when to ask once more, where it could not answer."""

    call: Any
    again_at: float | None = None


class NodeGate:
    """Asks nodes and remembers what they said.

    Args:
        need: nodes that do not fit are not asked.
        paths: local files that every node has to see as this machine does.
        look: the cluster as last seen.
        say: takes single lines for the user.
        ask: sends the question to a node; ``collect`` takes the answers that have come, by node id, an exception where
            the node could not answer.
    """

    def __init__(
        self,
        need: WorkerNeed,
        paths: Sequence[str],
        look: Callable[[], ClusterView | None],
        say: Callable[[str], None],
        *,
        ask: Callable[[str, Sequence[str]], Any] | None = None,
        collect: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self._need = need
        self._paths = tuple(paths)
        self._look = look
        self._say = say
        self._ask = ask or _ask_node
        self._collect = collect or _collect
        self._here = NodeFacts(**make_probe()(TEXT_LIBRARIES, self._paths))
        self._first: NodeFacts | None = None
        self._asked: dict[str, _Asked] = {}
        self._admitted: frozenset[str] = frozenset()
        self._refused: set[str] = set()
        self._seen: tuple[ClusterView, frozenset[str]] | None = None
        self._shown: ClusterView | None = None

    def open(self, sleep: Callable[[float], object] = time.sleep) -> None:
        """Ask the nodes that are there and wait for their answers, but not for ever.

        Raises:
            SpecbatchError: JOB_VERSION_SKEW, JOB_PATH_NOT_SHARED: one of them may not take part. What the user can
                see to before the job begins is not left to chance.
        """
        deadline = time.monotonic() + OPEN_SECONDS
        while time.monotonic() < deadline:
            view = self._look()
            if view is None or not self._advance(view, is_opening=True):
                return
            sleep(0.2)

    def look(self) -> ClusterView | None:
        """The cluster with those nodes only that may take part."""
        view = self._look()
        if view is None:
            return None
        self._advance(view, is_opening=False)
        if self._seen is None or self._seen[0] is not view or self._seen[1] != self._admitted:
            self._seen = (view, self._admitted)
            self._shown = replace(view, nodes=tuple(node for node in view.nodes if node.node_id in self._admitted))
        return self._shown

    def _advance(self, view: ClusterView, *, is_opening: bool) -> bool:
        """Ask whom nobody has asked, take what has come. Whether answers are still waited for."""
        now = time.monotonic()
        fitting = {node.node_id: node for node in view.usable() if self._need.fits(node)}
        for node_id in fitting:
            asked = self._asked.get(node_id)
            if asked is None or (asked.call is None and asked.again_at is not None and now >= asked.again_at):
                self._asked[node_id] = _Asked(self._ask(node_id, self._paths))
        waiting = {node_id: asked.call for node_id, asked in self._asked.items() if asked.call is not None}
        for node_id, answer in sorted(self._collect(waiting).items()):
            self._asked[node_id].call = None
            if isinstance(answer, Exception):  # gone, or too busy; one that is still there is asked again
                self._asked[node_id].again_at = now + AGAIN_SECONDS
            elif node_id in fitting:
                self._take(fitting[node_id], NodeFacts(**answer), is_opening=is_opening)
            else:
                del self._asked[node_id]
        return any(self._asked[node_id].call is not None for node_id in fitting)

    def _take(self, node: Node, facts: NodeFacts, *, is_opening: bool) -> None:
        problem = judge(facts, self._here, self._first)
        if problem is None:
            self._first = self._first or facts
            self._admitted |= {node.node_id}
        elif is_opening:
            raise SpecbatchError(problem.code, problem.text)
        else:
            self._refused.add(node.node_id)
            self._say(f"a node gets no worker: {problem.code.value}: {problem.text}")

    def changes_since(self, records: Sequence[RunRecord]) -> str | None:
        """What to say where earlier runs, which left parts, had other libraries; None where nothing has changed."""
        before = next((run.workers[0].versions for run in reversed(records) if run.workers), {})
        now = (self._first or self._here).versions
        changed = [name for name in TEXT_LIBRARIES if name in before and before[name] != now[name]]
        if not changed:
            return None
        what = ", ".join(f"{name} {before[name]} before, {now[name]} now" for name in changed)
        return f"this job began under other versions ({what}): rows of the two may differ where scores almost tie"


@contextlib.contextmanager
def admit_nodes(
    prepared: PreparedJob, look: Callable[[], ClusterView | None], need: WorkerNeed, say: Callable[[str], None]
) -> Iterator[NodeGate]:
    """The gate of a run; on this machine alone it is always open."""
    if look() is None:
        yield NodeGate(need, (), look, say)
        return
    with mark_output(prepared.output) as marks:
        yield NodeGate(need, (*marks, *local_files(prepared)), look, say)


def local_files(prepared: PreparedJob) -> list[str]:
    """Local files of a job that workers read: of models all, of the dataset some, spread over all of its files."""
    draft = prepared.execution.draft
    folders = [model for model in (prepared.target, draft) if model is not None and not model.is_bundled]
    files = [str(folder.path / name) for folder in folders for name, _ in folder.files]
    inputs = [file.path for file in prepared.inputs if "://" not in file.path]
    step = max(len(inputs) // _MOST_DATASET_FILES, 1)
    return files + inputs[::step]


@contextlib.contextmanager
def mark_output(output: str) -> Iterator[list[str]]:
    """A file in a local output that nobody else can have, for the length of the block; none in another store."""
    if "://" in output:
        yield []
        return
    mark = Path(output) / f"{_MARK_PREFIX}{token_hex(8)}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(token_hex(16))
    try:
        yield [str(mark)]
    finally:
        mark.unlink(missing_ok=True)


def _ask_node(node_id: str, paths: Sequence[str]) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(make_probe())
    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(
        TEXT_LIBRARIES, paths
    )


def _collect(calls: dict[str, Any]) -> dict[str, Any]:
    import ray

    if not calls:
        return {}
    finished, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=0)
    answers: dict[str, Any] = {}
    for node_id, call in calls.items():
        if call in finished:
            try:
                answers[node_id] = ray.get(call)
            except Exception as error:
                answers[node_id] = error
    return answers
