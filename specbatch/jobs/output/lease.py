"""The lease: which live run works on an output. It saves compute and is never needed for correctness.

The holder renews it; a rival that sees it renewed gives way. Clocks are not compared: "renewed" means that the
counter moved while the rival watched. Every write is a compare-and-swap from the version that was judged, so that of
two rivals who found the same dead holder one gets the lease and the other finds a living one.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
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
_MAX_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class LeaseDocument:
    """Who holds the output.

    Attributes:
        boot_id: as ``read_boot_id`` gives it: where ``pid`` means what it says.
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
Place = Literal["here", "gone", "elsewhere"]
"""Where a process runs: where its number can be looked up; in an earlier boot of this host; where it cannot be seen."""
Liveness = Literal["none", "live", "silent"]
"""Whether a run holds an output: no; yes; or one that cannot be seen from here and was silent while it was watched."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The lease as it was read: None for both where there is none, no document where it cannot be read."""

    document: LeaseDocument | None
    version: str | None


def judge(
    found: LeaseDocument | None, *, host: str, boot_id: str, process_started: Callable[[int], str | None]
) -> Verdict:
    """What a rival may do at once: take a free or dead holder's lease, or watch whether it is renewed.

    Args:
        process_started: start time of a process of this host, None where there is no such process.
    """
    if found is None or found.released:
        return "free"
    place = compare_places(found.host, found.boot_id, host=host, boot_id=boot_id)
    if place == "gone" or (place == "here" and process_started(found.pid) != found.process_started):
        return "dead"
    return "watch"


def compare_places(there_host: str, there_boot_id: str, *, host: str, boot_id: str) -> Place:
    """Where a process that names its place is, seen from a process that names this one.

    Containers that share the name and the kernel of a host may count processes each for itself: a number of the one
    says nothing in the other. Of a name without a namespace, as earlier versions wrote it, nothing is known either.
    """
    if there_host != host:
        return "elsewhere"
    if there_boot_id == boot_id:
        return "here"
    return "elsewhere" if there_boot_id.partition(" ")[0] == boot_id.partition(" ")[0] else "gone"


class HeldLease:
    """A lease of this process; ``renew`` keeps it, ``release`` ends it."""

    def __init__(self, store: Store, document: LeaseDocument, version: str) -> None:
        self._store = store
        self._document = document
        self._version = version

    @property
    def token(self) -> str:
        """The random name of this holding."""
        return self._document.token

    def renew(self, epoch: int | None = None) -> bool:
        """Renew it. False: another run has taken it, stop handing out work.

        Args:
            epoch: of this run; None while it has none, and the lease keeps that of the run before.
        """
        changed = self._document if epoch is None else replace(self._document, epoch=epoch)
        return self._write(replace(changed, renewals=changed.renewals + 1, renewed_at=time.time()))

    def release(self) -> None:
        """Say that this run has ended, unless another has taken the lease meanwhile."""
        # A courtesy to the next run, which else watches for one time-to-live; it must not hide how this one ended.
        with suppress(SpecbatchError):
            self._write(replace(self._document, released=True))

    def _write(self, document: LeaseDocument) -> bool:
        version = _swap(self._store, document, self._version)
        if version is None:
            # A write of ours whose outcome was never learnt leaves our lease there under a version we do not know.
            found = _read(self._store)
            if found.document is None or found.document.token != document.token:
                return False
            version = _swap(self._store, document, found.version)
        if version is None:
            return False
        self._document, self._version = document, version
        return True


def acquire(
    store: Store,
    *,
    ttl_seconds: float = TTL_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    on_wait: Callable[[LeaseDocument], None] = lambda found: None,
) -> HeldLease:
    """Take the lease of an output, waiting at most one time-to-live for a holder that may be gone.

    Args:
        on_wait: called with a holder that has to be watched, before the wait.

    Raises:
        SpecbatchError: JOB_HELD, the holder renewed the lease meanwhile.
    """
    for _ in range(_MAX_ROUNDS):
        found = _read(store)
        if found.document is not None and _judge_here(found.document) == "watch":
            on_wait(found.document)
            unchanged = _watch(store, found.document, ttl_seconds, sleep)
            if unchanged is None:
                break
            found = unchanged
        document = LeaseDocument(
            format=LEASE_FORMAT,
            host=socket.gethostname(),
            boot_id=read_boot_id(),
            pid=os.getpid(),
            process_started=process_started(os.getpid()) or "",
            epoch=found.document.epoch if found.document is not None else 0,
            token=secrets.token_hex(8),
            renewals=0,
            renewed_at=time.time(),
            ttl_seconds=ttl_seconds,
            released=False,
        )
        version = _swap(store, document, found.version)
        if version is not None:
            return HeldLease(store, document, version)
        # A rival was quicker; it lives, so that the next round will watch it renew.
    holder = read_lease(store)
    who = f" (host {holder.host}, process {holder.pid})" if holder is not None else ""
    raise SpecbatchError(
        ErrorCode.JOB_HELD,
        f"another run works on {store.uri}{who}; wait for it, or end it with: specbatch cancel {store.uri}",
    )


def find_holder(
    store: Store, *, ttl_seconds: float = TTL_SECONDS, sleep: Callable[[float], None] = time.sleep
) -> tuple[Liveness, LeaseDocument | None]:
    """Whether a run holds an output, and its lease; takes nothing.

    A holder on another host, or in another container, is watched for one time-to-live at most.
    """
    document = read_lease(store)
    if document is None or _judge_here(document) != "watch":
        return "none", None
    if place_of(document.host, document.boot_id) == "here":  # its process exists, though it may sleep
        return "live", document
    unchanged = _watch(store, document, ttl_seconds, sleep)
    if unchanged is None:
        return "live", document
    if unchanged.document is None or _judge_here(unchanged.document) != "watch":
        return "none", None
    return "silent", document


def read_lease(store: Store) -> LeaseDocument | None:
    """The lease as it stands; None where there is none, or none that can be read: it only saves compute."""
    return _read(store).document


def may_be_held(document: LeaseDocument | None) -> bool:
    """Whether a run may hold the output now: the lease is neither free nor of a process that is known to be gone."""
    return document is not None and _judge_here(document) == "watch"


def _watch(store: Store, first: LeaseDocument, ttl_seconds: float, sleep: Callable[[float], None]) -> _Found | None:
    """The lease once it may be taken (released, its holder dead, or silent for a time-to-live); None if it renewed."""
    found = _Found(first, None)
    waited_seconds = 0.0
    while waited_seconds < ttl_seconds:
        sleep(_WATCH_SECONDS)
        waited_seconds += _WATCH_SECONDS
        found = _read(store)
        if found.document is None or _judge_here(found.document) != "watch":
            return found
        if (found.document.token, found.document.renewals) != (first.token, first.renewals):
            return None
    return found


def _judge_here(document: LeaseDocument) -> Verdict:
    return judge(document, host=socket.gethostname(), boot_id=read_boot_id(), process_started=process_started)


def _read(store: Store) -> _Found:
    try:
        data, version = store.read_versioned(LEASE_KEY)
    except NotFound:
        return _Found(None, None)
    try:
        document = LeaseDocument(**json.loads(data))
    except (ValueError, TypeError):
        return _Found(None, version)
    # The token becomes part of a key.
    is_sound = isinstance(document.token, str) and document.token.isascii() and document.token.isalnum()
    return _Found(document if is_sound else None, version)


def _swap(store: Store, document: LeaseDocument, expected: str | None) -> str | None:
    return store.swap(LEASE_KEY, json.dumps(asdict(document), indent=2).encode() + b"\n", expected)


def place_of(host: str, boot_id: str) -> Place:
    """Where a process that names its place is, seen from this one."""
    return compare_places(host, boot_id, host=socket.gethostname(), boot_id=read_boot_id())


@cache
def read_boot_id() -> str:
    """A name of this boot of this host and, behind a space, of the namespace in which processes are counted here.

    Empty where the system gives none.
    """
    path = Path("/proc/sys/kernel/random/boot_id")
    if not path.exists():
        return ""
    try:
        return f"{path.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # a kernel without namespaces
        return path.read_text().strip()


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
