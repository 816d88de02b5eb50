"""Ask a running job to stop, from any machine: a file per epoch that the run looks for every few seconds."""

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


def cancel_key(epoch: int) -> str:
    return f"_specbatch/cancel-{epoch}.json"


def cancel_requested(store: Store, epoch: int) -> bool:
    """Whether the run of an epoch was asked to stop; one small request, to be asked every few seconds."""
    try:
        store.size(cancel_key(epoch))
    except NotFound:
        return False
    return True


def request_cancel(store: Store) -> CancelOutcome:
    """Ask the run that holds an output to finish the shards in flight and stop.

    The run may be on another host that is gone: then the request does nothing, and the next run, which has an
    epoch of its own, does not see it.
    """
    from specbatch.jobs.output.ledger import Ledger, now_text

    lease = read_lease(store)
    if lease is None or not may_be_held(lease):
        return CancelOutcome(store.uri, "nothing runs")
    # A run takes the lease before it has an epoch of its own, and writes the epoch into the lease a little later.
    epoch = max(lease.epoch, *Ledger(store).epochs(), 0)
    document = CancelDocument(
        format=CANCEL_FORMAT, epoch=epoch, requested_at=now_text(), host=socket.gethostname(), pid=os.getpid()
    )
    created = store.create(cancel_key(epoch), document.model_dump_json(indent=2).encode() + b"\n")
    return CancelOutcome(store.uri, "asked" if created else "asked before", lease)
