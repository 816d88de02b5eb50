"""The options of a job that are about a Ray cluster; part of the table in ``options``.

Names are those of Ray where Ray has one. Nothing is imported here: ``--help`` must be quick.
"""

from __future__ import annotations

from specbatch.jobs.spec.option_types import Group, Option

_C = Group.CLUSTER

CLUSTER_OPTIONS: tuple[Option, ...] = (
    Option(
        "address",
        "execution.address",
        _C,
        "text",
        "A running Ray cluster: its head (or auto), which this machine has to be a node of; or http://HEAD:8265, its "
        "Ray Jobs, which run the whole job there. [local: a Ray of its own on this machine]",
        "HOST:PORT|URL",
        is_free=True,
    ),
    Option(
        "wait",
        "execution.wait",
        _C,
        "flag",
        "With Ray Jobs: stay until the job has ended and exit as it did; --no-wait returns at once. [--wait]",
        is_free=True,
    ),
    Option(
        "cpus_per_worker",
        "execution.cpus_per_worker",
        _C,
        "int",
        "Cores that a worker reserves, and computes with on CPU. [none reserved: a node's workers share its cores]",
        "N",
        is_free=True,
    ),
    Option(
        "memory_per_worker",
        "execution.memory_per_worker",
        _C,
        "text",
        "Memory of its node that a worker reserves, such as 24GiB. [none]",
        "SIZE",
        is_free=True,
    ),
    Option(
        "node_labels",
        "execution.node_labels",
        _C,
        "scalars",
        "Only nodes with this label; KEY=!VALUE for all others; may repeat.",
        "KEY=VALUE",
        is_free=True,
    ),
    Option(
        "accelerator_type",
        "execution.accelerator_type",
        _C,
        "text",
        "Only nodes with this kind of accelerator, by Ray's name for it, such as H100.",
        "NAME",
        is_free=True,
    ),
    Option(
        "entrypoint_num_cpus",
        "execution.entrypoint_num_cpus",
        _C,
        "float",
        "With Ray Jobs: cores that the driver reserves; with 0 it runs on the head. [0]",
        "X",
        is_free=True,
    ),
    Option(
        "entrypoint_memory",
        "execution.entrypoint_memory",
        _C,
        "text",
        "With Ray Jobs: memory that the driver reserves, such as 4GiB. [none]",
        "SIZE",
        is_free=True,
    ),
)
