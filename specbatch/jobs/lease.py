"""The lease: which live run works on an output. It saves compute and is never needed for correctness.

The holder renews it; a rival that sees it renewed gives way. Clocks are not compared: "renewed" means that the
counter moved while the rival watched.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.store import NotFound, Store

LEASE_KEY = "_specbatch/lease.json"
LEASE_FORMAT = "specbatch/lease/1"
TTL_SECONDS = 30.0
RENEW_SECONDS = 5.0
_WATCH_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class LeaseDocument:
    """Who holds the output.

    Attributes:
        process_started: start time of the process in units of the host: with ``pid`` it names a process for good.
        token: random name of this holding.
        renewals: goes up with every renewal.
        released: the holder has ended in good order.
    """

    format: str
    host: str
    boot_id: str
    pid: int
    process_started: str
    epoch: int
    token: str
    renewals: int
    renewed_at: float
    ttl_seconds: float
    released: bool


Verdict = Literal["free", "dead", "watch"]


def judge(
    found: LeaseDocument | None, *, host: str, boot_id: str, process_started: Callable[[int], str | None]
) -> Verdict:
    """What a rival may do at once: take a free or dead holder's lease, or watch whether it is renewed.

    Args:
        process_started: start time of a process of this host, None where there is no such process.
    """
    if found is None or found.released:
        return "free"
    if found.host != host:
        return "watch"
    if found.boot_id != boot_id or process_started(found.pid) != found.process_started:
        return "dead"
    return "watch"


class HeldLease:
    """A lease of this process; ``renew`` keeps it, ``release`` ends it."""

    def __init__(self, store: Store, document: LeaseDocument) -> None:
        self._store = store
        self._document = document

    def renew(self, epoch: int) -> bool:
        """Renew it. False: another run has taken it, stop handing out work."""
        if not self._is_ours():
            return False
        self._document = replace(
            self._document, epoch=epoch, renewals=self._document.renewals + 1, renewed_at=time.time()
        )
        _write(self._store, self._document)
        return True

    def release(self) -> None:
        """Say that this run has ended, unless another has taken the lease meanwhile."""
        if self._is_ours():
            _write(self._store, replace(self._document, released=True))

    def _is_ours(self) -> bool:
        found = read_lease(self._store)
        return found is not None and found.token == self._document.token


def acquire(
    store: Store,
    *,
    ttl_seconds: float = TTL_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    on_wait: Callable[[LeaseDocument], None] = lambda found: None,
) -> HeldLease:
    """Take the lease of an output, waiting at most one time-to-live for a holder that may be gone.

    Args:
        on_wait: called once, with the holder that has to be watched.

    Raises:
        SpecbatchError: JOB_HELD, the holder renewed the lease meanwhile.
    """
    host, boot_id = socket.gethostname(), read_boot_id()
    first = read_lease(store)
    if judge(first, host=host, boot_id=boot_id, process_started=process_started) == "watch":
        assert first is not None
        on_wait(first)
        _watch(store, first, ttl_seconds, sleep)
    document = LeaseDocument(
        format=LEASE_FORMAT,
        host=host,
        boot_id=boot_id,
        pid=os.getpid(),
        process_started=process_started(os.getpid()) or "",
        epoch=first.epoch if first is not None else 0,
        token=secrets.token_hex(8),
        renewals=0,
        renewed_at=time.time(),
        ttl_seconds=ttl_seconds,
        released=False,
    )
    _write(store, document)
    return HeldLease(store, document)


def _watch(store: Store, first: LeaseDocument, ttl_seconds: float, sleep: Callable[[float], None]) -> None:
    """Return once the lease may be taken: its holder released it, died, or let one time-to-live pass."""
    waited_seconds = 0.0
    while waited_seconds < ttl_seconds:
        sleep(_WATCH_SECONDS)
        waited_seconds += _WATCH_SECONDS
        now = read_lease(store)
        if judge(now, host=socket.gethostname(), boot_id=read_boot_id(), process_started=process_started) != "watch":
            return
        assert now is not None
        if (now.token, now.renewals) != (first.token, first.renewals):
            raise SpecbatchError(
                ErrorCode.JOB_HELD,
                f"another run works on {store.uri} (host {now.host}, process {now.pid}); "
                "wait for it, or stop it and run this again",
            )


def read_lease(store: Store) -> LeaseDocument | None:
    """The lease as it stands; None where there is none, or none that can be read: it only saves compute."""
    try:
        return LeaseDocument(**json.loads(store.read(LEASE_KEY)))
    except (NotFound, ValueError, TypeError):
        return None


def _write(store: Store, document: LeaseDocument) -> None:
    store.replace(LEASE_KEY, json.dumps(asdict(document), indent=2).encode() + b"\n")


@cache
def read_boot_id() -> str:
    """A name of this boot of this host; empty where the system gives none."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def process_started(pid: int) -> str | None:
    """When a process of this host started, None where it does not run (a zombie does not)."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in ("Z", "X") else fields[19]
    listing = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return listing.stdout.strip() or None
