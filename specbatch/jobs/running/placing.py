"""Where workers go: starts their actors, on nodes that have room, and tells what becomes of those nodes."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from specbatch.jobs.coordinator.events import Beat, CapacityChanged, DeathCause, Event, PreemptionNotice
from specbatch.jobs.running.cluster_view import LOOK_SECONDS, ClusterView, choose_node, count_slots, node_share
from specbatch.jobs.running.need import WorkerNeed
from specbatch.jobs.running.processes import WorkerProcess
from specbatch.schemas.messages import WorkerConfig

NODE_LABEL = "ray.io/node-id"
_AVOID_SECONDS = 2 * LOOK_SECONDS + 1


class Placing:
    """Workers that wait for a place, and the nodes of those that have one.

    Args:
        look: the cluster as last seen; None where it is this machine alone, which always has room.
        num_wanted: workers that the user asked for; 0 for as many as there is room.
        need: what each of them asks of its node.
    """

    def __init__(
        self, config: WorkerConfig, look: Callable[[], ClusterView | None], num_wanted: int, need: WorkerNeed
    ) -> None:
        self._config = config
        self._look = look
        self._need = need
        self._num_wanted = num_wanted
        self._view: ClusterView | None = None
        self._waiting: list[int] = []
        self._num_starting: Counter[str] = Counter()
        self._num_slots: int | None = None
        self._notices: set[tuple[int, float]] = set()
        self._drained: set[str] = set()
        self._avoided: dict[str, float] = {}
        self._groups: dict[int, Any] = {}

    def add(self, worker: int) -> None:
        """A worker shall be started."""
        self._waiting.append(worker)

    def remove(self, worker: int) -> bool:
        """A worker need not be started any more; False where it has been."""
        if worker not in self._waiting:
            return False
        self._waiting.remove(worker)
        return True

    def start(self, running: Iterable[WorkerProcess]) -> list[WorkerProcess]:
        """Start those for which there is a node; the others go on waiting."""
        on_node = Counter(process.node_id for process in running if process.node_id is not None)
        now = time.monotonic()
        avoid = {node for node, until in self._avoided.items() if until > now}
        waiting, self._waiting = self._waiting, []
        started: list[WorkerProcess] = []
        for worker in waiting:
            node = None
            if self._view is not None:
                node = choose_node(self._view, self._need, on_node, avoid, self._num_wanted, self._num_starting)
                if node is None:
                    self._waiting.append(worker)
                    continue
                on_node[node] += 1
                self._num_starting[node] += 1
            process = WorkerProcess(worker, self._start_actor(worker, node), node)
            process.group = self._groups.pop(worker, None)
            started.append(process)
        return started

    def _start_actor(self, worker: int, node: str | None) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from specbatch.workers.actor import actor_class

        options = self._need.actor_options()
        if self._need.num_ranks > 1:
            return self._start_leader(worker, node)
        if node is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
            options.pop("label_selector", None)  # Ray takes one or the other; the node was chosen by its labels
        return actor_class().options(**options).remote(self._config_on(worker, node))

    def _start_leader(self, worker: int, node: str | None) -> Any:
        """A worker with a place beside it for every further rank, all on one node; it starts those itself."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        from specbatch.workers.actor import actor_class

        bundles = self._need.bundles()
        # Where there is a choice the node was chosen, by its labels and kind too.
        where = None if node is None else [{NODE_LABEL: node}] * len(bundles)
        group = placement_group(bundles, "STRICT_PACK", bundle_label_selector=where)
        self._groups[worker] = group
        options = {
            "num_cpus": bundles[0].get("CPU", 0),
            "num_gpus": bundles[0].get("GPU", 0),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
        }
        if self._need.memory_bytes:
            options["memory"] = self._need.memory_bytes
        return actor_class().options(**options).remote(self._config_on(worker, node))

    def _config_on(self, worker: int, node: str | None) -> WorkerConfig:
        """What a worker is told; on a node of a cluster it has the cores and the memory of that node, or its share."""
        config = replace(self._config, worker=worker)
        found = next((other for other in self._view.nodes if other.node_id == node), None) if self._view else None
        if found is None or self._view is None:
            return config
        share = self._need.slots(found) if self._need.reserves else node_share(self._view, self._need, self._num_wanted)
        cores = max(math.floor((self._need.cpus or found.num_cpus / share) / self._need.num_ranks), 1)
        fraction = config.memory_fraction / share if config.device == "cpu" else config.memory_fraction
        return replace(config, num_threads=cores, memory_fraction=fraction)

    def news(self, running: Iterable[WorkerProcess]) -> list[Event]:
        """What a look at the cluster tells: room, machines that will go; and that who waits does not hang."""
        view = self._look()
        if view is None:
            return []
        events: list[Event] = []
        if view is not self._view:
            self._view = view
            self._num_starting.clear()
            self._drained.update(view.draining)
            num_slots = count_slots(view, self._need, self._num_wanted)
            if num_slots != self._num_slots:
                self._num_slots = num_slots
                events.append(CapacityChanged(num_slots))
        for process in running:
            if process.whereabouts is None:
                events.append(Beat(process.number, 0.0))
            end = view.draining.get(process.node_id or "")
            if end is not None and (process.number, end) not in self._notices:
                self._notices.add((process.number, end))
                events.append(PreemptionNotice(process.number, max(end - time.time(), 0.0)))
        return events + [Beat(worker, 0.0) for worker in self._waiting]

    def judge(self, process: WorkerProcess) -> DeathCause | None:
        """What the end of a worker's node says about the worker's; None where its node goes on."""
        if process.node_id in self._drained:
            return "preempted"
        if self._view is None or process.node_id is None or self._view.is_alive(process.node_id):
            return None
        return "lost"

    def avoid(self, node: str | None) -> None:
        """Start nothing there for a while: the last looks at the cluster may still have shown it alive."""
        if node is not None:
            self._avoided[node] = time.monotonic() + _AVOID_SECONDS
