"""Named points at which a test lets this process die, to prove that nothing is lost or doubled there.

``SPECBATCH_FAILPOINT=part_create:before:2:kill`` kills the process with SIGKILL when the point ``part_create:before``
is reached for the second time. Without the variable a point costs one dictionary look-up.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

FAILPOINT_VARIABLE = "SPECBATCH_FAILPOINT"

_reached: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Die here if the environment says so.

    Args:
        name: such as ``"part_create:before"``.

    Raises:
        ValueError: the variable is set to something that is not ``<name>:<side>:<count>:kill``.
    """
    wanted = os.environ.get(FAILPOINT_VARIABLE)
    if wanted is None:
        return
    point, count, action = wanted.rsplit(":", 2)
    if action != "kill":
        raise ValueError(f"{FAILPOINT_VARIABLE}={wanted}: the only action is kill")
    if point == name:
        _reached[name] += 1
        if _reached[name] == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
