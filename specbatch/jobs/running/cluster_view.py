"""What a job sees of the Ray cluster that it has joined: nodes, notices of their end, and whether the head answers.

A thread of its own asks, because questions to a head that has gone may hang; the run only reads the last answer.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from specbatch.jobs.coordinator.policy import WakingClock
from specbatch.jobs.running.need import ACCELERATOR_RESOURCE, Free, Node, WorkerNeed

LOOK_SECONDS = 2.0
_ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The live nodes of a cluster.

    Attributes:
        draining: nodes that will go, with the wall-clock second of their end (infinity where Ray names none). They
            take no new worker.
        free: what nobody has reserved, by node; nodes that are not in it are taken for empty.
    """

    nodes: tuple[Node, ...]
    draining: Mapping[str, float] = field(default_factory=dict)
    free: Mapping[str, Free] = field(default_factory=dict)

    def is_alive(self, node_id: str) -> bool:
        """Whether a node is there."""
        return any(node.node_id == node_id for node in self.nodes)

    def usable(self) -> tuple[Node, ...]:
        """Nodes that may get new workers."""
        return tuple(node for node in self.nodes if node.node_id not in self.draining)


def count_slots(view: ClusterView, need: WorkerNeed, num_wanted: int = 0) -> int:
    """Workers that the cluster has room for, whatever others have reserved there.

    As many as resources allow; where none are asked for, one for each node that offers cores.

    Args:
        num_wanted: workers that the user asked for; those that reserve nothing share the nodes where they are more.
    """
    slots = [need.slots(node) for node in view.usable()]
    if need.reserves:
        return sum(slots)
    num_nodes = sum(slot > 0 for slot in slots)
    return max(num_nodes, num_wanted) if num_nodes else 0


def node_share(view: ClusterView, need: WorkerNeed, num_wanted: int = 0) -> int:
    """Workers that share a node where they reserve nothing; at least 1."""
    num_nodes = sum(need.fits(node) for node in view.usable())
    return max(math.ceil(num_wanted / max(num_nodes, 1)), 1)


def choose_node(
    view: ClusterView,
    need: WorkerNeed,
    num_workers: Mapping[str, int],
    avoid: Collection[str] = (),
    num_wanted: int = 0,
    num_starting: Mapping[str, int] = MappingProxyType({}),
) -> str | None:
    """The node of the right kind that has room and the fewest workers of ours; None where there is no room.

    Ray alone would put workers that reserve nothing on a head that offers nothing, or all on one node.

    Args:
        num_workers: of ours, by node.
        avoid: nodes that could not take one a moment ago.
        num_wanted: as for ``count_slots``.
        num_starting: of ours, by node, that ``view.free`` may not count yet.
    """
    share = node_share(view, need, num_wanted)

    def has_room(node: Node) -> bool:
        most = need.slots(node) if need.reserves else share * need.fits(node)
        free = view.free.get(node.node_id)
        return (
            node.node_id not in avoid
            and num_workers.get(node.node_id, 0) < most
            and (free is None or need.fits_beside(free, num_starting.get(node.node_id, 0)))
        )

    open_nodes = [node.node_id for node in view.usable() if has_room(node)]
    return min(open_nodes, key=lambda node: num_workers.get(node, 0)) if open_nodes else None


def read_view() -> ClusterView:
    """Ask Ray. May block for long where the head has gone.

    ``get_draining_nodes`` and ``available_resources_per_node`` are what Ray's own libraries use; they have no public
    name. A Ray without the first gives no notice, one without the second takes nodes for empty.
    """
    import ray

    nodes = tuple(read_node(entry) for entry in ray.nodes() if entry["Alive"])
    state: Any = importlib.import_module("ray._private.state").state
    draining = state.get_draining_nodes() if hasattr(state, "get_draining_nodes") else {}
    available = state.available_resources_per_node() if hasattr(state, "available_resources_per_node") else {}
    return ClusterView(
        nodes,
        {node: deadline / 1000 if deadline else math.inf for node, deadline in draining.items()},
        {
            node: Free(found.get("CPU", 0.0), found.get("GPU", 0.0), found.get("memory", 0.0))
            for node, found in available.items()
        },
    )


def read_node(entry: Mapping[str, Any]) -> Node:
    """A node as Ray lists it."""
    resources: Mapping[str, float] = entry["Resources"]
    kinds = (name.removeprefix(ACCELERATOR_RESOURCE) for name in resources if name.startswith(ACCELERATOR_RESOURCE))
    return Node(
        entry["NodeID"],
        resources.get("CPU", 0.0),
        resources.get("GPU", 0.0),
        resources.get("memory", 0.0),
        dict(entry.get("Labels") or {}),
        frozenset(kinds),
        entry.get("NodeManagerHostname") or entry.get("NodeManagerAddress") or "",
    )


class ClusterWatch:
    """Looks at the cluster every few seconds, from ``start`` to ``stop``.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = address
        self._clock = clock
        self._waking = WakingClock()
        self._head: Any = None
        self._ends = threading.Event()
        self._num_answers = 0
        self._num_heard = -1
        self._heard_at = 0.0
        self._view: ClusterView | None = None
        self._thread = threading.Thread(target=self._look, name="specbatch-cluster", daemon=True)

    @property
    def view(self) -> ClusterView | None:
        """The last that was seen."""
        return self._view

    @property
    def silent_seconds(self) -> float:
        """How long the head has not answered, as seen by who asks here, once a second or so and in one thread.

        What that one slept is left out: it may be that everything slept, and nobody could ask the head.
        """
        self._waking.tick(self._clock())
        num_answers = self._num_answers
        if num_answers != self._num_heard:
            self._num_heard, self._heard_at = num_answers, self._waking.awake_seconds
        return self._waking.awake_seconds - self._heard_at

    def start(self) -> None:
        """Look once, so that there is a view, and go on in the background."""
        raylet: Any = importlib.import_module("ray._raylet")
        self._head = raylet.GcsClient(address=self._address)
        self._view = read_view()
        self._thread.start()

    def stop(self) -> None:
        """Look no more. A question under way is not waited for longer than an answer may take."""
        self._ends.set()
        self._thread.join(_ANSWER_SECONDS)

    def _look(self) -> None:
        while not self._ends.wait(LOOK_SECONDS):
            with contextlib.suppress(Exception):  # whatever Ray says: silence is what counts, and it is being measured
                self._ask()

    def _ask(self) -> None:
        self._head.check_alive([], timeout=_ANSWER_SECONDS)
        self._num_answers += 1
        self._view = read_view()
