"""Ask a running job to stop, from any machine: files named after the run that it looks for every few seconds.

A run is known by its epoch. While it starts it has none yet but holds the lease, so the name of that counts too.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Literal

from specbatch.jobs.output.lease import LeaseDocument, may_be_held, read_lease
from specbatch.schemas.manifest import CANCEL_FORMAT, CancelDocument
from specbatch.storage.store import NotFound, Store


@dataclass(frozen=True, slots=True)
class CancelOutcome:
    """What a request came to.

    Attributes:
        state: ``asked``; ``asked before``, the same run had been asked already; ``nothing runs``.
        holder: the lease of the run that was asked.
    """

    output: str
    state: Literal["asked", "asked before", "nothing runs"]
    holder: LeaseDocument | None = None


def cancel_key(run: int | str) -> str:
    """The key of a request.

    Args:
        run: its epoch, or the token of its lease.
    """
    return f"_specbatch/cancel-{run}.json"


def cancel_requested(store: Store, epoch: int, token: str | None = None) -> bool:
    """Whether a run was asked to stop; two small requests, to be asked every few seconds.

    Args:
        token: of its lease; taken from the lease that is there if None.
    """
    if token is None and (lease := read_lease(store)) is not None and lease.epoch == epoch:
        token = lease.token
    return _is_there(store, cancel_key(epoch)) or (token is not None and _is_there(store, cancel_key(token)))


def _is_there(store: Store, key: str) -> bool:
    try:
        store.size(key)
    except NotFound:
        return False
    return True


def request_cancel(store: Store) -> CancelOutcome:
    """Ask the run that holds an output to finish the shards in flight and stop.

    The run may be on another host that is gone: then the request does nothing, and the next run, which has a lease
    and an epoch of its own, does not see it.
    """
    from specbatch.jobs.output.ledger import Ledger, now_text

    lease = read_lease(store)
    if lease is None or not may_be_held(lease):
        return CancelOutcome(store.uri, "nothing runs")
    # A run takes the lease before it has an epoch of its own, and writes the epoch into the lease a little later. Under
    # the token it is told in any case; under the epoch for a run of a version that looks for nothing else.
    epoch = max(lease.epoch, *Ledger(store).epochs(), 0)
    document = CancelDocument(
        format=CANCEL_FORMAT,
        epoch=epoch,
        token=lease.token,
        requested_at=now_text(),
        host=socket.gethostname(),
        pid=os.getpid(),
    )
    data = document.model_dump_json(indent=2).encode() + b"\n"
    created = store.create(cancel_key(lease.token), data)
    store.create(cancel_key(epoch), data)
    return CancelOutcome(store.uri, "asked" if created else "asked before", lease)
