"""What the error of a call to a worker means: a pause, or a death with its reason, its cause and last words."""

from __future__ import annotations

import re
from pathlib import Path

from specbatch.jobs.coordinator.events import DeathCause, WorkerDied
from specbatch.schemas.errors import SpecbatchError

_EXIT_DETAIL = "Worker exit detail:"
_ADVICE = "Some common causes include"
_NODE_DIED = re.compile(
    r"node (?:has )?died|node is dead|node was (?:dead|terminated|preempted)|node.{0,80}(?:doesn't|does not) exist",
    re.I,
)
_OUT_OF_MEMORY = re.compile(r"low on memory|memory monitor", re.I)
_SIGTERM = "receives a SIGTERM"


def is_pause(error: Exception) -> bool:
    """Whether the worker may only be out of reach: asked again, it may answer. Replacing it would be too early."""
    return type(error).__name__ == "ActorUnavailableError"


def describe_death(worker: int, error: Exception, cause: DeathCause | None = None) -> WorkerDied:
    """Why a call to a worker failed: an error of ours keeps its code, anything else becomes one line.

    Args:
        cause: what is known from elsewhere; read from the error where it is None.
    """
    inner = getattr(error, "cause", None) or error
    if isinstance(inner, SpecbatchError):
        return WorkerDied(worker, inner.message, inner.code)
    return WorkerDied(worker, _reason(inner), cause=cause or find_cause(error))


def find_cause(error: Exception) -> DeathCause:
    """What Ray itself says about the end of a worker.

    A SIGTERM is how machines that go away tell their processes; Ray's workers end at once on it.
    """
    text = _facts(error)
    if getattr(error, "preempted", False) or _SIGTERM in text:
        return "preempted"
    if type(error).__name__ in ("ActorUnschedulableError", "NodeDiedError") or _NODE_DIED.search(text):
        return "lost"
    return "crash"


def is_out_of_memory(error: Exception) -> bool:
    """Whether the process, or Ray's guard of the node, ended for want of memory."""
    inner = getattr(error, "cause", None) or error
    name = type(inner).__name__
    return isinstance(inner, MemoryError) or name == "OutOfMemoryError" or bool(_OUT_OF_MEMORY.search(_facts(error)))


def save_worker_log(logs: Path, pid: int | None, num_bytes: int = 20_000) -> str:
    """The end of what a dead worker wrote to its standard error; empty where there is nothing.

    A log that cannot be read is named with the reason: it is a comfort, and no cause to end a job.

    Args:
        logs: Ray's folder of logs on this host.
        pid: None where the worker did not run on this host.
    """
    if pid is None:
        return ""
    return "".join(_end_of(path, num_bytes) for path in sorted(logs.glob(f"worker-*-{pid}.err")))


def _end_of(path: Path, num_bytes: int) -> str:
    try:
        return path.read_bytes()[-num_bytes:].decode("utf-8", "replace")
    except OSError as error:  # another user's, or Ray has just rotated it
        return f"{path.name} cannot be read: {error.strerror}\n"


def _facts(error: Exception) -> str:
    """The text of an error without Ray's list of what usually is the matter."""
    return str(error).partition(_ADVICE)[0]


def _reason(error: Exception) -> str:
    text = _facts(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    if is_out_of_memory(error):
        return "Ray ended the process because its node ran low on memory"
    if _SIGTERM in text:
        return "the process was asked to end (SIGTERM)"
    if "connection error code 2" in text:
        return "the process was killed or crashed (a signal, or out of memory)"
    if _NODE_DIED.search(text):
        return "its node is gone"
    if _EXIT_DETAIL in text:
        return text.partition(_EXIT_DETAIL)[2].strip()
    first = (text.strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
