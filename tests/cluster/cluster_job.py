"""One job on a Ray cluster of several nodes, and what breaks it: a process of its own, started by the tests.

    python cluster_job.py SCENARIO FOLDER

The cluster is real (a head without CPUs and small nodes, all on this machine), the workers are real actors with a fake
engine. What happened is printed as JSON: events, deaths, how it ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "workers")]
NUM_ROWS = 120
SHARD_ROWS = 6
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 4,
}


class Job:
    """The cluster, the job, and a diary of what the coordinator was told."""

    def __init__(self, folder: Path, prompts: list[str]) -> None:
        from shard_helpers import PLAN, cut, make_config, write_dataset

        self.output = folder / "out"
        self.shards = cut([write_dataset(folder / "in.parquet", prompts)], SHARD_ROWS)
        self.config = make_config(self.output, batch_size=4)
        self.plan = PLAN
        self.num_workers: int | None = 2
        self.need: Any = None
        self.nodes: list[Any] = []
        self.ray_cluster: Any = None
        self.runner: Any = None
        self.diary: list[tuple[float, str, dict[str, Any]]] = []
        self.said: list[str] = []
        self.places: dict[int, Any] = {}
        self.num_pauses = 0
        self.started = time.monotonic()

    # ---- the cluster -------------------------------------------------------------------------------------------------

    def build(self, num_nodes: int, **settings: Any) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": {**HEALTH, **settings}}
        self.ray_cluster = Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": 80 << 20})
        for _ in range(num_nodes):
            self.add_node()

    def add_node(self, **settings: Any) -> Any:
        self.nodes.append(self.ray_cluster.add_node(num_cpus=1, object_store_memory=80 << 20, **settings))
        return self.nodes[-1]

    def add_secluded_node(self) -> bool:
        """A node that has another folder where the output is; False where this system does not let us make one."""
        enter = ["unshare", "--mount"]
        if subprocess.run([*enter, "mount", "-t", "tmpfs", "none", self.output], check=False).returncode:
            return False
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1"]
        ray += [f"--address={self.ray_cluster.address}", f"--object-store-memory={80 << 20}", "--disable-usage-stats"]
        hide = 'mount -t tmpfs none "$0" && exec "$@"'
        subprocess.Popen(
            [*enter, "sh", "-c", hide, str(self.output), *ray], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return True

    def remove_node(self, node: Any) -> None:
        self.nodes.remove(node)
        self.ray_cluster.remove_node(node, allow_graceful=False)

    # ---- the run -----------------------------------------------------------------------------------------------------

    def run(self, scenario: Iterator[None]) -> dict[str, Any]:
        from specbatch.jobs.coordinator.coordinator import Coordinator
        from specbatch.jobs.output.ledger import Ledger
        from specbatch.jobs.running import deaths, processes
        from specbatch.jobs.running.cluster import open_cluster
        from specbatch.jobs.running.interrupt import Interrupts
        from specbatch.jobs.running.need import WorkerNeed
        from specbatch.jobs.running.node_gate import NodeGate, mark_output
        from specbatch.jobs.running.runner import Runner
        from specbatch.jobs.running.tally import RunTally
        from specbatch.schemas.errors import SpecbatchError
        from specbatch.storage.store import open_store

        ledger, stored = Ledger(open_store(str(self.output))), SimpleNamespace(shards=self.shards, plan=self.plan)
        found = ledger.find_parts(stored)
        job = self

        class Recorded(Coordinator):
            def handle(self, event: Any) -> Any:
                if type(event).__name__ not in ("Tick", "Beat"):
                    fields = {name: getattr(event, name) for name in event.__dataclass_fields__}
                    job.diary.append((job.now(), type(event).__name__, {k: str(v)[:300] for k, v in fields.items()}))
                commands = super().handle(event)
                for command in commands:
                    if type(command).__name__ in ("StartWorker", "KillWorker", "DropShard", "FinishJob", "FailJob"):
                        job.diary.append((job.now(), type(command).__name__, {"text": str(command)}))
                return commands

        missing = [shard for shard in self.shards if shard.index not in found]
        coordinator = Recorded(missing, num_workers=self.num_workers)
        result: dict[str, Any] = {"found": len(found), "code": None, "message": ""}

        def on_tick() -> bool:
            self.places.update(self.processes())
            next(scenario, None)
            return True

        def is_pause(error: Exception) -> bool:
            self.num_pauses += deaths.is_pause(error)
            return deaths.is_pause(error)

        processes.is_pause = is_pause

        try:
            with (
                open_cluster(self.ray_cluster.address, 0, self.said.append) as cluster,
                mark_output(str(self.output)) as marks,
            ):
                self.cluster = cluster
                need = self.need or WorkerNeed("cpu")
                gate = NodeGate(need, marks, cluster.view, self.said.append)
                gate.open()
                self.runner = Runner(
                    coordinator,
                    self.config,
                    RunTally(),
                    Interrupts(),
                    clock=self.now,
                    check_cluster=cluster.check,
                    on_tick=on_tick,
                    find_parts=lambda shards: list(ledger.find_parts(stored, shards).values()),
                    on_death=lambda worker, pid, reason: None,
                    on_interrupt=lambda: None,
                    on_say=self.said.append,
                    view=gate.look,
                    need=need,
                )
                self.runner.run()
                result["receipts"] = {r.shard: r.created for r in self.runner.receipts.values()}
        except SpecbatchError as error:
            result.update(code=error.code.value, message=error.message)
        result.update(seconds=self.now(), diary=self.diary, said=self.said, num_pauses=self.num_pauses)
        result["nodes"] = {number: place.node_id for number, place in self.places.items()}
        result["head"] = self.ray_cluster.head_node.node_id
        died = {int(entry[2]["worker"]) for entry in self.diary if entry[1] == "WorkerDied"}
        result["survivors"] = [number for number in died if number in self.places and self.places[number].is_here]
        return result

    def now(self) -> float:
        return round(time.monotonic() - self.started, 3)

    # ---- what scenarios look at --------------------------------------------------------------------------------------

    def count(self, name: str) -> int:
        return sum(entry[1] == name for entry in self.diary)

    def processes(self) -> dict[int, Any]:
        """Where the workers are that have joined, by number."""
        return {n: p.whereabouts for n, p in self.runner._processes.items() if p.is_ready}

    def until(self, condition: Callable[[], Any]) -> Iterator[None]:
        while not condition():
            yield

    def under_way(self) -> Iterator[None]:
        """Both workers have joined and something is done."""
        num_workers = self.num_workers or len(self.nodes)
        yield from self.until(lambda: len(self.processes()) >= num_workers and self.count("PartDone") >= 2)

    def hurry(self) -> None:
        """Nothing more is waited for."""
        (self.output.parent / "hurry").touch()

    def node_of(self, whereabouts: Any) -> Any:
        return next(node for node in self.nodes if node.node_id == whereabouts.node_id)


# ---- scenarios -------------------------------------------------------------------------------------------------------


def undisturbed(job: Job) -> Iterator[None]:
    yield


def worker_killed(job: Job) -> Iterator[None]:
    yield from job.under_way()
    os.kill(next(iter(job.processes().values())).pid, signal.SIGKILL)


def worker_terminated(job: Job) -> Iterator[None]:
    yield from job.under_way()
    os.kill(next(iter(job.processes().values())).pid, signal.SIGTERM)


def worker_stopped(job: Job) -> Iterator[None]:
    """Past every patience."""
    yield from job.under_way()
    victim = next(iter(job.processes().values()))
    os.kill(victim.pid, signal.SIGSTOP)
    yield from job.until(lambda: not victim.is_here)
    job.diary.append((job.now(), "VictimGone", {}))
    yield from job.until(lambda: job.count("WorkerDied"))
    job.hurry()


def worker_naps(job: Job) -> Iterator[None]:
    yield from job.under_way()
    victim = next(iter(job.processes().values()))
    os.kill(victim.pid, signal.SIGSTOP)
    ends = time.monotonic() + 2.5
    yield from job.until(lambda: time.monotonic() > ends)
    os.kill(victim.pid, signal.SIGCONT)


def node_removed(job: Job) -> Iterator[None]:
    yield from job.under_way()
    job.remove_node(job.node_of(next(iter(job.processes().values()))))
    yield from job.until(lambda: job.count("WorkerDied"))
    job.hurry()


def nodes_join_late(job: Job) -> Iterator[None]:
    """One that may take part, one with another specbatch, one that does not see the output."""
    yield from job.under_way()
    stub = job.output.parent / "stub" / "specbatch"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    (stub / "_version.py").write_text('__version__ = "0.0.9"')
    other = job.add_node(env_vars={"PYTHONPATH": str(stub.parent)})
    is_secluded = job.add_secluded_node()
    late = job.add_node()
    job.diary.append((job.now(), "Joined", {"late": late.node_id, "other": other.node_id}))
    num_refused = 1 + is_secluded
    yield from job.until(lambda: sum("gets no worker" in line for line in job.said) >= num_refused)
    yield from job.until(lambda: any(place.node_id == late.node_id for place in job.places.values()))
    job.diary.append((job.now(), "Settled", {"is_secluded": str(is_secluded)}))
    job.hurry()


def halves_of_gpus(job: Job) -> Iterator[None]:
    """Two workers on each GPU of the nodes with the label; another one of those joins later."""
    from specbatch.jobs.running.need import WorkerNeed

    job.need = WorkerNeed("cuda", gpus=0.5, labels=(("zone", "a"),), accelerator_type="H100")
    job.config = replace(job.config, device="cuda")
    kind = {"num_gpus": 1, "resources": {"accelerator_type:H100": 1}}
    job.add_node(**kind, labels={"zone": "b"})
    first = job.add_node(**kind, labels={"zone": "a"})
    yield
    yield from job.until(lambda: len(job.processes()) >= 2 and job.count("PartDone") >= 2)
    second = job.add_node(**kind, labels={"zone": "a"})
    job.diary.append((job.now(), "Joined", {"first": first.node_id, "second": second.node_id}))
    yield from job.until(lambda: len(job.processes()) >= 4)
    job.hurry()


def all_nodes_replaced(job: Job) -> Iterator[None]:
    yield from job.under_way()
    for node in list(job.nodes):
        job.remove_node(node)
    yield from job.until(lambda: job.count("WorkerDied") >= 2)
    ends = time.monotonic() + 3.0
    yield from job.until(lambda: time.monotonic() > ends)
    assert not job.runner._processes, "a worker was started where there is no room"
    job.add_node()


def node_falsely_dead(job: Job) -> Iterator[None]:
    """Its raylet is killed; its worker does not notice, and goes on."""
    yield from job.under_way()
    victim = next(iter(job.processes().values()))
    job.node_of(victim).kill_raylet()
    yield from job.until(lambda: job.count("WorkerDied"))
    assert victim.is_here, "the worker went with its node"
    job.diary.append((job.now(), "ZombieAlive", {}))


def node_drained(job: Job) -> Iterator[None]:
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    yield from job.under_way()
    victim = next(iter(job.processes().values()))
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    ends = time.time() + 12.0
    accepted, why = GcsClient(address=job.ray_cluster.address).drain_node(victim.node_id, reason, "", int(ends * 1000))
    assert accepted, why
    node = job.node_of(victim)
    yield from job.until(lambda: time.time() > ends)
    job.remove_node(node)


def head_killed(job: Job) -> Iterator[None]:
    yield from job.under_way()
    job.ray_cluster.head_node.kill_gcs_server()
    job.diary.append((job.now(), "HeadKilled", {}))


FAULTY_CALLS = {
    "requests_lost": {"req_failure_prob": 30},
    "replies_lost": {"resp_failure_prob": 30},
    "calls_fail_in_flight": {"in_flight_failure_prob": 30},
}
HUNG_SECONDS = {"worker_stopped": 5.0, "worker_hangs": 5.0}
STEP_SECONDS = {
    "undisturbed": 0.005,
    "nodes_join_late": 0.6,
    "halves_of_gpus": 0.9,
    "worker_naps": 0.05,
    "node_drained": 0.05,
    "head_killed": 0.2,
}
NUM_QUICK_ROWS = {"worker_stopped": 24, "node_removed": 24}
"""Rows that a worker decodes at that pace; the others take ten times as long until the scenario is in a hurry."""


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    os.environ["SPECBATCH_ENGINE_FACTORY"] = "cluster_engine:make"
    os.environ["CLUSTER_FOLDER"] = str(folder)
    os.environ["CLUSTER_STEP_SECONDS"] = str(STEP_SECONDS.get(name, 0.03))
    os.environ["CLUSTER_NUM_QUICK_ROWS"] = str(NUM_QUICK_ROWS.get(name, 1_000_000))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent / "workers")])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if name in FAULTY_CALLS:
        faults = {"CoreWorkerService.grpc_client.PushTask": {"num_failures": 60, **FAULTY_CALLS[name]}}
        os.environ.update(
            {
                "RAY_testing_rpc_failure": json.dumps(faults),
                "RAY_testing_rpc_failure_avoid_intra_node_failures": "0",
            }
        )
    from specbatch.jobs.coordinator import policy as coordinator_policy

    coordinator_policy.SUSPECT_SECONDS, coordinator_policy.HUNG_SECONDS = 2.0, HUNG_SECONDS.get(name, 60.0)
    prompts = [f"prompt number {row:04}"[: 8 + row % 12] for row in range(NUM_ROWS)]
    if name == "worker_hangs":
        prompts[40] = "hang"
    job = Job(folder, prompts)
    if name in ("nodes_join_late", "halves_of_gpus"):
        job.num_workers = None
    job.build(
        2 if job.num_workers else 1,
        **({"raylet_death_check_interval_milliseconds": 600_000} if name == "node_falsely_dead" else {}),
    )
    job.started = time.monotonic()
    scenario = globals().get(name, undisturbed)
    steps = scenario(job)
    if name == "halves_of_gpus":
        next(steps)  # what the job asks for, before it begins
    result = job.run(steps)
    (folder / "result.json").write_text(json.dumps(result))
    # A cluster that was broken on purpose may not come down in order; the test ends what is left.
    threading.Thread(target=job.ray_cluster.shutdown, daemon=True).start()
    time.sleep(2.0)
    os._exit(0)


if __name__ == "__main__":
    main()
