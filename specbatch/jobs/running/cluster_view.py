"""What a job sees of the Ray cluster that it has joined: nodes, notices of their end, and whether the head answers.

A thread of its own asks, because questions to a head that has gone may hang; the run only reads the last answer.
"""

from __future__ import annotations

import importlib
import math
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

LOOK_SECONDS = 2.0
_ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Node:
    """A live node with the resources that it offers in all."""

    node_id: str
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The live nodes of a cluster.

    Attributes:
        draining: nodes that will go, with the wall-clock second of their end (infinity where Ray names none). They
            take no new worker.
    """

    nodes: tuple[Node, ...]
    draining: Mapping[str, float] = field(default_factory=dict)

    def is_alive(self, node_id: str) -> bool:
        """Whether a node is there."""
        return any(node.node_id == node_id for node in self.nodes)

    def usable(self) -> tuple[Node, ...]:
        """Nodes that may get new workers."""
        return tuple(node for node in self.nodes if node.node_id not in self.draining)


def count_slots(view: ClusterView, device: str, num_wanted: int = 0) -> int:
    """Workers that the cluster has room for: one per GPU; on CPU one per node that offers cores.

    Args:
        num_wanted: workers that the user asked for; on CPU they share the nodes where they are more.
    """
    if device == "cuda":
        return sum(math.floor(node.num_gpus) for node in view.usable())
    num_nodes = sum(node.num_cpus > 0 for node in view.usable())
    return max(num_nodes, num_wanted) if num_nodes else 0


def choose_node(
    view: ClusterView, num_workers: Mapping[str, int], avoid: Collection[str] = (), num_wanted: int = 0
) -> str | None:
    """The node with cores that has the fewest workers of ours; None where each has its even share.

    Workers reserve no CPU, so Ray alone would put them on a head that offers none, or all on one node.

    Args:
        num_workers: of ours, by node.
        avoid: nodes that could not take one a moment ago.
        num_wanted: as for ``count_slots``.
    """
    nodes = [node.node_id for node in view.usable() if node.num_cpus > 0]
    share = max(math.ceil(num_wanted / max(len(nodes), 1)), 1)
    open_nodes = [node for node in nodes if node not in avoid and num_workers.get(node, 0) < share]
    return min(open_nodes, key=lambda node: num_workers.get(node, 0)) if open_nodes else None


def read_view() -> ClusterView:
    """Ask Ray. May block for long where the head has gone.

    ``get_draining_nodes`` is what Ray's own libraries use; it has no public name. A Ray without it gives no notice.
    """
    import ray

    nodes = tuple(
        Node(entry["NodeID"], entry["Resources"].get("CPU", 0.0), entry["Resources"].get("GPU", 0.0))
        for entry in ray.nodes()
        if entry["Alive"]
    )
    state: Any = importlib.import_module("ray._private.state").state
    draining = state.get_draining_nodes() if hasattr(state, "get_draining_nodes") else {}
    return ClusterView(nodes, {node: deadline / 1000 if deadline else math.inf for node, deadline in draining.items()})


class ClusterWatch:
    """Looks at the cluster every few seconds, from ``start`` to ``stop``."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._head: Any = None
        self._ends = threading.Event()
        self._answered_at = time.monotonic()
        self._view: ClusterView | None = None
        self._thread = threading.Thread(target=self._look, name="specbatch-cluster", daemon=True)

    @property
    def view(self) -> ClusterView | None:
        """The last that was seen."""
        return self._view

    @property
    def silent_seconds(self) -> float:
        """How long the head has not answered."""
        return time.monotonic() - self._answered_at

    def start(self) -> None:
        """Look once, so that there is a view, and go on in the background."""
        raylet: Any = importlib.import_module("ray._raylet")
        self._head = raylet.GcsClient(address=self._address)
        self._view = read_view()
        self._answered_at = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Look no more. A question under way is not waited for longer than an answer may take."""
        self._ends.set()
        self._thread.join(_ANSWER_SECONDS)

    def _look(self) -> None:
        while not self._ends.wait(LOOK_SECONDS):
            try:
                self._head.check_alive([], timeout=_ANSWER_SECONDS)
                self._answered_at = time.monotonic()
                self._view = read_view()
            except Exception:  # whatever Ray says here: silence is what counts, and it is being measured
                continue
