"""What workers ask of a node, and who gets room where: fractions of GPUs, cores, memory, labels, late nodes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from specbatch.jobs.coordinator.events import CapacityChanged
from specbatch.jobs.output.identity import identity_fields
from specbatch.jobs.planning import execution
from specbatch.jobs.planning.execution import _resolve_device
from specbatch.jobs.planning.execution_checks import check_needs, refuse_ranks
from specbatch.jobs.running.cluster_view import ClusterView, choose_node, count_slots, read_node
from specbatch.jobs.running.need import Free, Node, WorkerNeed
from specbatch.jobs.running.placing import Placing
from specbatch.jobs.running.processes import WorkerProcess
from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.messages import WorkerConfig
from specbatch.schemas.prompt import PromptSpec
from specbatch.schemas.spec import ExecutionSpec, GenerationSpec, JobSpec, ModelSpec
from specbatch.schemas.units import parse_size
from specbatch.workers.decoding import shared_fraction

GIB = 1 << 30
BIG = Node("big", 16, 2, 64 * GIB, {"zone": "a"}, frozenset({"H100"}))
SMALL = Node("small", 4, 1, 16 * GIB, {"zone": "b"}, frozenset({"A10G"}))
VIEW = ClusterView((Node("head", 0, 0), BIG, SMALL))


@pytest.mark.parametrize(
    ("need", "slots"),
    [
        (WorkerNeed("cuda"), (2, 1)),
        (WorkerNeed("cuda", gpus=0.5), (4, 2)),
        (WorkerNeed("cuda", gpus=0.4), (4, 2)),  # none sits on two GPUs
        (WorkerNeed("cuda", gpus=0.1), (20, 10)),
        (WorkerNeed("cuda", gpus=0.25, cpus=4), (4, 1)),
        (WorkerNeed("cuda", memory_bytes=24 * GIB), (2, 0)),
        (WorkerNeed("cpu"), (1, 1)),
        (WorkerNeed("cpu", cpus=4), (4, 1)),
        (WorkerNeed("cpu", cpus=5), (3, 0)),
        (WorkerNeed("cpu", memory_bytes=16 * GIB), (4, 1)),
        (WorkerNeed("cuda", labels=(("zone", "a"),)), (2, 0)),
        (WorkerNeed("cuda", labels=(("zone", "!a"),)), (0, 1)),
        (WorkerNeed("cuda", labels=(("rack", "!7"),)), (2, 1)),
        (WorkerNeed("cuda", accelerator_type="A10G"), (0, 1)),
        (WorkerNeed("cuda", num_ranks=2), (1, 0)),
        (WorkerNeed("cpu", cpus=4, num_ranks=2), (4, 1)),
    ],
    ids=str,
)
def test_room_on_a_node(need: WorkerNeed, slots: tuple[int, int]) -> None:
    assert (need.slots(BIG), need.slots(SMALL)) == slots
    assert count_slots(VIEW, need) == sum(slots)
    assert need.slots(Node("head", 0, 0)) == 0


def test_what_others_hold_is_no_room() -> None:
    """Also what our own workers took a moment ago, which the cluster may not have counted yet."""
    half = WorkerNeed("cuda", gpus=0.5)
    view = replace(VIEW, free={"big": Free(16, 1.0, 64 * GIB), "small": Free(4, 0.0, 16 * GIB)})
    assert choose_node(view, half, {}) == "big"
    assert choose_node(view, half, {"big": 1}, num_starting={"big": 1}) == "big"
    assert choose_node(view, half, {"big": 2}, num_starting={"big": 2}) is None
    assert choose_node(VIEW, half, {"big": 4, "small": 1}) == "small"
    assert choose_node(VIEW, half, {"big": 4, "small": 2}) is None


def test_what_ray_is_asked_for() -> None:
    spec = ExecutionSpec(
        gpus_per_worker=0.5, cpus_per_worker=3, memory_per_worker="24GiB", node_labels=("zone=a", "spot=!yes"),
        accelerator_type="H100",
    )  # fmt: skip
    need = WorkerNeed.of(spec, "cuda")
    assert need.actor_options() == {
        "num_cpus": 3, "num_gpus": 0.5, "memory": 24 * GIB, "accelerator_type": "H100",
        "label_selector": {"zone": "a", "spot": "!yes"},
    }  # fmt: skip
    assert str(need) == "0.5 GPU, 3 CPUs, 24 GiB of memory, accelerator H100, label zone=a, label spot=!yes"
    assert WorkerNeed("cpu").actor_options() == {"num_cpus": 0, "num_gpus": 0}


def test_ranks_have_a_device_each_and_share_the_rest() -> None:
    need = WorkerNeed("cuda", cpus=3, memory_bytes=24 * GIB, num_ranks=3)
    assert need.bundles() == [{"GPU": 1.0, "CPU": 3, "memory": 24 * GIB}, {"GPU": 1.0}, {"GPU": 1.0}]
    assert WorkerNeed("cpu", num_ranks=2).bundles() == [{"CPU": 0.001}] * 2, "Ray takes no empty bundle"
    assert not need.fits_beside(Free(16, 2.0, 64 * GIB), 0)
    assert need.fits_beside(Free(16, 3.0, 64 * GIB), 0)
    assert str(need) == "3 GPU, 3 CPUs, 24 GiB of memory"


def test_nodes_as_ray_lists_them() -> None:
    entry = {
        "NodeID": "n", "Alive": True, "NodeManagerHostname": "host7", "Labels": {"zone": "a"},
        "Resources": {"CPU": 8.0, "GPU": 2.0, "memory": 1.0 * GIB, "accelerator_type:H100": 1.0},
    }  # fmt: skip
    assert read_node(entry) == Node("n", 8.0, 2.0, 1.0 * GIB, {"zone": "a"}, frozenset({"H100"}), "host7")


def make_config(device: str = "cpu") -> WorkerConfig:
    return WorkerConfig(0, "out", "p" * 16, "t", None, "auto", device, "off", 4, 2, PromptSpec(), GenerationSpec())


def make_placing(need: WorkerNeed, views: list[ClusterView], monkeypatch: pytest.MonkeyPatch, num: int = 0) -> Placing:
    placing = Placing(make_config(need.device), lambda: views[-1], num, need)
    monkeypatch.setattr(placing, "_start_actor", lambda worker, node: node)
    return placing


def test_workers_start_as_nodes_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fractions: four on two GPUs; then a node joins, and two more start."""
    need = WorkerNeed("cuda", gpus=0.5)
    views = [ClusterView((BIG,))]
    placing = make_placing(need, views, monkeypatch)
    assert placing.news([]) == [CapacityChanged(4)]
    for worker in range(6):
        placing.add(worker)
    running: list[WorkerProcess] = placing.start([])
    assert [process.node_id for process in running] == ["big"] * 4
    views.append(ClusterView((BIG, SMALL)))
    assert CapacityChanged(6) in placing.news(running)
    running += placing.start(running)
    assert Counter(process.node_id for process in running) == {"big": 4, "small": 2}


@pytest.mark.parametrize(
    ("need", "num_wanted", "threads", "fraction"),
    [
        (WorkerNeed("cpu"), 0, 16, 0.9),
        (WorkerNeed("cpu"), 4, 8, 0.45),  # two nodes, two workers on each
        (WorkerNeed("cpu", cpus=4), 0, 4, 0.225),
        (WorkerNeed("cuda", gpus=0.5), 0, 4, 0.9),
    ],
    ids=str,
)
def test_a_worker_has_the_cores_and_the_memory_of_its_node(
    need: WorkerNeed, num_wanted: int, threads: int, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of the machine on which the driver runs."""
    placing = make_placing(need, [VIEW], monkeypatch, num_wanted)
    placing.news([])
    config = placing._config_on(7, "big")
    assert (config.worker, config.num_threads) == (7, threads)
    assert config.memory_fraction == pytest.approx(fraction)


def test_a_share_of_a_gpu_is_a_share_of_all_its_memory() -> None:
    """Whoever loads second sees less that is free, and still gets its half."""
    assert shared_fraction(0.9, 0.5, 80, 80) * 80 == pytest.approx(36)
    assert shared_fraction(0.9, 0.5, 44, 80) * 44 == pytest.approx(36)
    assert shared_fraction(0.9, 0.5, 20, 80) == 0.9, "somebody else has taken more; no more than what is free"


def test_sizes() -> None:
    assert (parse_size("24GiB"), parse_size("24 GB"), parse_size("512mib")) == (24 << 30, 24 * 10**9, 512 << 20)
    assert (parse_size("1.5kb"), parse_size("7")) == (1500, 7)
    for bad in ("", "0", "GiB", "-1GiB", "24 gallons", "1e9"):
        with pytest.raises(ValueError, match="such as 24GiB"):
            parse_size(bad)


@pytest.mark.parametrize(
    "given",
    [
        {"memory_per_worker": "1GiB"},
        {"node_labels": ("a=b",)},
        {"accelerator_type": "H100"},
        {"wait": False},
        {"entrypoint_num_cpus": 1.0, "address": "head:6379"},
        {"entrypoint_memory": "1GiB", "address": "head:6379"},
        {"wait": False, "address": "auto"},
    ],
    ids=str,
)
def test_what_means_nothing_here_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SpecbatchError, match=r"JOB_CONFIG: --.* needs --address"):
        check_needs(ExecutionSpec(**given))


def test_workers_of_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = JobSpec(models=ModelSpec(tensor_parallel_size=2))
    monkeypatch.setattr(execution, "count_cuda_devices", lambda: 5)
    assert _resolve_device(spec) == ("cuda", 2)
    four = spec.model_copy(update={"execution": ExecutionSpec(workers=4)})
    with pytest.raises(SpecbatchError, match="there are 5 CUDA devices; each worker needs 2"):
        _resolve_device(four)
    monkeypatch.setattr(execution, "count_cuda_devices", lambda: 1)
    with pytest.raises(SpecbatchError, match=r"JOB_NO_CAPACITY: --tensor-parallel-size 2: this machine has 1 CUDA dev"):
        _resolve_device(spec)
    with pytest.raises(SpecbatchError, match="leave --gpus-per-worker at 1"):
        _resolve_device(spec.model_copy(update={"execution": ExecutionSpec(gpus_per_worker=0.5)}))
    with pytest.raises(SpecbatchError, match="was measured on one device"):
        _resolve_device(spec.model_copy(update={"execution": ExecutionSpec(profile="p.json")}))
    with pytest.raises(SpecbatchError, match="preview decodes on one device"):
        refuse_ranks(spec, "preview")


def test_several_devices_are_identity_and_one_is_not() -> None:
    def model_of(num_ranks: int) -> dict[str, Any]:
        fields = identity_fields(
            JobSpec(models=ModelSpec(tensor_parallel_size=num_ranks)),
            target_files={}, tokenizer_sha256="t", dtype="float32", model_path="generic", inputs=(),
        )  # fmt: skip
        found: dict[str, Any] = fields["model"]
        return found

    assert "tensor_parallel_size" not in model_of(1)
    assert model_of(2) == {**model_of(1), "tensor_parallel_size": 2}


@pytest.mark.parametrize(
    "given", [{"gpus_per_worker": 1.5}, {"gpus_per_worker": 0}, {"node_labels": ("zone",)}, {"memory_per_worker": "x"}]
)
def test_values_that_cannot_be(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        ExecutionSpec(**given)


def test_a_cluster_may_have_what_this_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbatch.jobs.planning.execution.count_cuda_devices", lambda: 0)
    spec = JobSpec(execution=ExecutionSpec(device="cuda", workers=16, address="head:6379"))
    assert _resolve_device(spec) == ("cuda", 16)
    with pytest.raises(SpecbatchError, match="JOB_NO_CAPACITY"):
        _resolve_device(JobSpec(execution=ExecutionSpec(device="cuda", workers=16, address="local")))
    monkeypatch.setattr("specbatch.jobs.planning.execution.count_cuda_devices", lambda: 2)
    assert _resolve_device(JobSpec(execution=ExecutionSpec(gpus_per_worker=0.5))) == ("cuda", 4)
    with pytest.raises(SpecbatchError, match=r"--workers 5: there are 2 CUDA devices; each worker needs 0.5 of one"):
        _resolve_device(JobSpec(execution=ExecutionSpec(gpus_per_worker=0.5, workers=5)))
