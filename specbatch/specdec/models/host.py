"""How much memory this process may still take, read from the kernel and from the limits of its control groups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def host_available_bytes(root: Path = Path("/")) -> int:
    """Bytes that this process could still take: what the kernel calls available, or what its cgroup leaves it.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    return max(min(_kernel_available_bytes(root), *_cgroup_available_bytes(root)), 0)


def _kernel_available_bytes(root: Path) -> int:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass  # not Linux: all physical memory is the best that is known
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_available_bytes(root: Path) -> Iterator[int]:
    """What the limit of each group above this process leaves; nothing where there is no limit.

    Page cache that the kernel would give back at once counts as free, as it does in ``MemAvailable``.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    # Inside a container the group's path is often that of the host, and its own limit lies in the top folder.
    yield from _group_chain(root / "sys/fs/cgroup", _group_path(lines, ""), "memory.max", "memory.current")
    yield from _group_chain(
        root / "sys/fs/cgroup/memory",
        _group_path(lines, "memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
    )
    yield 1 << 62


def _group_path(lines: list[str], controller: str) -> str:
    """The path of this process in the hierarchy of a controller; "" names cgroup v2."""
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.strip("/")
    return ""


def _group_chain(top: Path, path: str, limit_name: str, usage_name: str) -> Iterator[int]:
    folder = top / path
    for group in (folder, *folder.parents):
        if not group.is_relative_to(top):
            return
        try:
            limit = (group / limit_name).read_text().strip()
            usage = int((group / usage_name).read_text())
            reclaimable = _reclaimable_bytes((group / "memory.stat").read_text())
        except (OSError, ValueError):
            continue
        if limit != "max":
            yield int(limit) - usage + reclaimable


def _reclaimable_bytes(stat: str) -> int:
    """Inactive file pages of a group, with those of the groups below it."""
    values = dict(line.split(" ", 1) for line in stat.splitlines() if " " in line)
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))


def resident_bytes() -> int:
    """Resident set of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
