"""What this machine has: cores, memory, GPUs. Read from the system, since the driver must not import torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_GPU_FOLDER = Path("/proc/driver/nvidia/gpus")
_NVIDIA_SMI_SECONDS = 20
_CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")


def count_cores() -> int:
    """Cores that this process may use: its affinity, and the container's quota rounded up; at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_CPU.read_text().split()
        if quota != "max":
            cores = min(cores, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 here: the affinity is all there is to know
    return max(cores, 1)


def count_cuda_devices(environ: Mapping[str, str] = os.environ) -> int:
    """CUDA devices that workers could use; 0 where the installed torch is a CPU build.

    ``CUDA_VISIBLE_DEVICES`` counts as CUDA reads it: what stands behind a negative number is invisible.
    """
    if "+cpu" in importlib.metadata.version("torch"):
        return 0
    present = len([name for name in _device_names() if re.fullmatch(r"nvidia\d+", name)])
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    shown = 0
    for entry in visible.split(","):
        if not entry.strip() or entry.strip().startswith("-"):
            break
        shown += 1
    return min(shown, present)


def cuda_free_bytes(environ: Mapping[str, str] = os.environ) -> int | None:
    """Free bytes of the fullest CUDA device that workers could use; None where ``nvidia-smi`` does not say."""
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    if visible := environ.get("CUDA_VISIBLE_DEVICES"):
        command += ["-i", visible]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True)
        return min(int(line) for line in done.stdout.split()) << 20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def describe_hardware() -> dict[str, Any]:
    """Cores, memory and model names for the run record."""
    return {
        "cpu": _cpu_name(),
        "cores": count_cores(),
        "memory_bytes": _memory_bytes(),
        "gpus": _gpu_names(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def device_name(device: str) -> str:
    """Model of the CPU, or of the first GPU where ``device`` is ``cuda``."""
    gpus = _gpu_names() if device == "cuda" else []
    return gpus[0] if gpus else _cpu_name()


def _device_names() -> list[str]:
    return [path.name for path in Path("/dev").glob("nvidia*")]


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu_names() -> list[str]:
    names: list[str] = []
    for information in sorted(_GPU_FOLDER.glob("*/information")):
        found = re.search(r"^Model:\s*(.+)$", information.read_text(), re.MULTILINE)
        names.append(found.group(1).strip() if found else "unknown")
    return names
