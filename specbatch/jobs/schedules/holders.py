"""Who runs a night: is the daemon that holds it alive, or the child that it left?

On this host processes are looked up. A daemon elsewhere, or in a container that counts its own processes, is watched:
one that does not renew for ``SILENT_SECONDS`` is gone. Clocks are not compared.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable

from specbatch.jobs.output.lease import place_of, process_started, read_boot_id
from specbatch.jobs.schedules.deciding import Holding
from specbatch.jobs.schedules.nights import Holder, Night

SILENT_SECONDS = 90.0
RENEW_SECONDS = 15.0


def this_holder() -> Holder:
    """This process as the holder of a night, under a name of its own."""
    return Holder(
        host=socket.gethostname(),
        boot_id=read_boot_id(),
        pid=os.getpid(),
        process_started=process_started(os.getpid()) or "",
        token=secrets.token_hex(8),
    )


class Watcher:
    """Tells who holds a night; what it has seen of holders elsewhere it remembers.

    Args:
        monotonic: seconds of a clock that is never set.
    """

    def __init__(
        self, *, silent_seconds: float = SILENT_SECONDS, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._silent_seconds = silent_seconds
        self._monotonic = monotonic
        self._signs: dict[str, tuple[tuple[str, int], float, bool]] = {}

    def holding(self, night: Night) -> Holding:
        """Who holds a running night."""
        holder = night.holder
        if holder is None:
            return "nobody"
        place = place_of(holder.host, holder.boot_id)
        if place != "elsewhere":
            return "live" if place == "here" and _is_alive(holder) else "nobody"
        key = f"{night.schedule}/{night.id}"
        sign, now = (holder.token, holder.renewals), self._monotonic()
        known = self._signs.get(key)
        if known is None or known[0] != sign:
            has_renewed = known is not None and known[0][0] == holder.token
            self._signs[key] = (sign, now, has_renewed)
            return "live" if has_renewed else "watched"
        _, since, has_renewed = known
        if now - since >= self._silent_seconds:
            return "nobody"
        return "live" if has_renewed else "watched"


def _is_alive(holder: Holder) -> bool:
    """Whether the daemon or its child runs, where their numbers can be looked up."""
    if process_started(holder.pid) == holder.process_started:
        return True
    return holder.child_pid is not None and process_started(holder.child_pid) == holder.child_started
