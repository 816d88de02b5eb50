"""What a worker asks of its node: resources, labels, a kind of accelerator. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from specbatch.schemas.spec import ExecutionSpec
from specbatch.schemas.units import parse_size

ACCELERATOR_RESOURCE = "accelerator_type:"
"""Ray announces the kind of a node's accelerators as a resource of this name."""
_ALMOST = 1e-6
_HARDLY = 0.001
"""Ray takes no bundle of nothing; a rank on CPU that reserves no cores reserves so much of one."""


@dataclass(frozen=True, slots=True)
class Node:
    """A live node with the resources that it offers in all.

    Attributes:
        memory_bytes: what tasks and actors may reserve.
        labels: Ray's own (``ray.io/…``) and those that its starter gave.
        accelerators: kinds of accelerators, by Ray's names.
        host: for messages.
    """

    node_id: str
    num_cpus: float
    num_gpus: float
    memory_bytes: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    accelerators: frozenset[str] = frozenset()
    host: str = ""


@dataclass(frozen=True, slots=True)
class Free:
    """What of a node's resources nobody has reserved at this moment."""

    num_cpus: float
    num_gpus: float
    memory_bytes: float


@dataclass(frozen=True, slots=True)
class WorkerNeed:
    """What every worker of a job asks for.

    Attributes:
        device: ``cpu`` or ``cuda``.
        gpus: share of one GPU, from 0.01 to 1; not looked at on CPU.
        num_ranks: devices of the node that one worker takes, each with a process.
        cpus: cores that it reserves; None reserves none.
        memory_bytes: that it reserves; 0 reserves none.
        labels: pairs (key, value) that its node must have; ``!value`` is one that it must not have.
        accelerator_type: by Ray's name for it; None takes any.
    """

    device: str
    gpus: float = 1.0
    cpus: int | None = None
    memory_bytes: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    accelerator_type: str | None = None
    num_ranks: int = 1

    @classmethod
    def of(cls, spec: ExecutionSpec, device: str, num_ranks: int = 1) -> WorkerNeed:
        """What the workers of a job ask for on a device."""
        memory = spec.memory_per_worker
        pairs = (label.partition("=") for label in spec.node_labels)
        return cls(
            device=device,
            gpus=spec.gpus_per_worker,
            cpus=spec.cpus_per_worker,
            memory_bytes=0 if memory is None else parse_size(memory),
            labels=tuple((key, value) for key, _, value in pairs),
            accelerator_type=spec.accelerator_type,
            num_ranks=num_ranks,
        )

    @property
    def reserves(self) -> bool:
        """Whether it asks for a number of something, so that a node has room for a number of workers."""
        return self.device == "cuda" or self.cpus is not None or self.memory_bytes > 0

    def fits(self, node: Node) -> bool:
        """Whether a node is of the kind asked for and has room for one worker at least."""
        return self.slots(node) > 0

    def slots(self, node: Node) -> int:
        """Workers that a node has room for when it is empty; 1 where none of its resources is asked for."""
        kind_is_there = self.accelerator_type is None or self.accelerator_type in node.accelerators
        if not kind_is_there or not all(_has_label(node, key, value) for key, value in self.labels):
            return 0
        if self.device != "cuda" and node.num_cpus <= 0:
            return 0
        slots = [1] if not self.reserves else []
        if self.device == "cuda":
            # None sits on two, but for ranks, which have one each.
            slots.append(math.floor(1 / self.gpus + _ALMOST) * (math.floor(node.num_gpus) // self.num_ranks))
        if self.cpus is not None:
            slots.append(math.floor(node.num_cpus / self.cpus))
        if self.memory_bytes:
            slots.append(math.floor(node.memory_bytes / self.memory_bytes))
        return min(slots)

    def fits_beside(self, free: Free, num_starting: int) -> bool:
        """Whether what is free suffices for one more worker.

        Args:
            num_starting: workers of ours that were started there and may not have been counted yet.
        """
        num = num_starting + 1
        return (
            (self.device != "cuda" or free.num_gpus + _ALMOST >= num * self.gpus * self.num_ranks)
            and free.num_cpus + _ALMOST >= num * (self.cpus or 0)
            and free.memory_bytes + _ALMOST >= num * self.memory_bytes
        )

    def actor_options(self) -> dict[str, Any]:
        """The options of Ray's actors that ask for it. Without ``cpus`` none is reserved."""
        options: dict[str, Any] = {
            "num_cpus": self.cpus or 0,
            "num_gpus": self.gpus if self.device == "cuda" else 0,
        }
        if self.memory_bytes:
            options["memory"] = self.memory_bytes
        if self.accelerator_type is not None:
            options["accelerator_type"] = self.accelerator_type
        if self.labels:
            options["label_selector"] = dict(self.labels)
        return options

    def bundles(self) -> list[dict[str, float]]:
        """What each rank reserves, the worker itself first; its cores and memory are for all of them."""
        each = {"GPU": self.gpus} if self.device == "cuda" else {"CPU": _HARDLY}
        first: dict[str, float] = {**each, "memory": self.memory_bytes} if self.memory_bytes else dict(each)
        if self.cpus is not None:
            first["CPU"] = self.cpus
        return [first, *(dict(each) for _ in range(self.num_ranks - 1))]

    def __str__(self) -> str:
        """In words, for messages: ``0.5 GPUs, 24 GiB, zone=a``."""
        words = [f"{self.gpus * self.num_ranks:g} GPU"] if self.device == "cuda" else []
        words += [f"{self.cpus} CPUs"] if self.cpus is not None else []
        words += [f"{self.memory_bytes / 2**30:.3g} GiB of memory"] if self.memory_bytes else []
        words += [f"accelerator {self.accelerator_type}"] if self.accelerator_type is not None else []
        words += [f"label {key}={value}" for key, value in self.labels]
        return ", ".join(words) or "cores"


def _has_label(node: Node, key: str, value: str) -> bool:
    found = node.labels.get(key)
    return found != value.removeprefix("!") if value.startswith("!") else found == value
