"""Named points at which a test makes this process fail, to prove that nothing is lost or doubled there.

``SPECBATCH_FAILPOINT=part_create:before:2:kill`` sends this process SIGKILL when the point ``part_create:before`` is
reached for the second time: ``NAME:SIDE:COUNT:ACTION``, and with ``@FILE`` behind it only in the one process that
comes to make FILE, so that the workers that follow live. COUNT 0 is every time. With ``SPECBATCH_FAILPOINT_ROW=17``
points that belong to a row act for row 17 alone. Without the variable a point costs one dictionary look-up.

Points of a worker: ``worker_load``, ``shard_read``, ``row_submit`` (of a row), ``decode_step``, ``part_spool``,
``part_create``; of a rank that is led, ``rank_forward``; of a coordinator: ``plan_create``, ``job_create``,
``manifest_create``, ``success_create``. Each has the sides ``before`` and ``after``, but for ``row_submit`` and
``rank_forward``, which have ``before`` alone.

Actions: ``kill`` (SIGKILL), ``stop`` (SIGSTOP), ``exit`` (exit status 1, nothing is cleaned up), ``hang`` (the thread
sleeps for ever), ``delay-<milliseconds>``, ``error`` (RuntimeError), ``oom`` (MemoryError), ``enospc`` (a full disk).
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter

FAILPOINT_VARIABLE = "SPECBATCH_FAILPOINT"
ROW_VARIABLE = "SPECBATCH_FAILPOINT_ROW"

_DELAY = "delay-"
_FOR_EVER_SECONDS = 3600.0

_reached: Counter[str] = Counter()


def may_fail() -> bool:
    """Whether any failpoint is set: asked before points that are passed for every row."""
    return FAILPOINT_VARIABLE in os.environ


def failpoint(name: str, row_id: int | None = None) -> None:
    """Fail here if the environment says so.

    Args:
        name: such as ``"part_create:before"``.
        row_id: the row that is about to be worked on, at a point that belongs to one.

    Raises:
        ValueError: the variable is not of the form above.
        RuntimeError, MemoryError, OSError: the environment says so.
    """
    wanted = os.environ.get(FAILPOINT_VARIABLE)
    if wanted is None:
        return
    spec, _, once = wanted.partition("@")
    point, count, action = spec.rsplit(":", 2)
    if point != name or _is_spared(row_id):
        return
    _reached[name] += 1
    if int(count) in (0, _reached[name]) and (not once or _is_first(once)):
        _act(name, action)


def _is_spared(row_id: int | None) -> bool:
    row = os.environ.get(ROW_VARIABLE)
    return row is not None and row_id is not None and int(row) != row_id


def _is_first(path: str) -> bool:
    """Whether no process has come here before: of any number one makes the file."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def _act(name: str, action: str) -> None:
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "exit":
            os._exit(1)
        case "hang":
            while True:
                time.sleep(_FOR_EVER_SECONDS)
        case "error":
            raise RuntimeError(f"failpoint {name}")
        case "oom":
            raise MemoryError(f"failpoint {name}")
        case "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case _ if action.startswith(_DELAY):
            time.sleep(int(action.removeprefix(_DELAY)) / 1000)
        case _:
            raise ValueError(f"{FAILPOINT_VARIABLE}: there is no action {action!r}")
