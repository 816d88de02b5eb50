"""When memory runs out in mid-job: fewer rows at a time, and the job goes on with the same text.

Rows that must go return to the queue with what they have said. A forward that failed has committed nothing, so nothing
has to be undone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable

import torch

from specbatch.schemas.errors import ErrorCode
from specbatch.specdec.output import SequenceOutput, error_output
from specbatch.specdec.rows.admission import shrink
from specbatch.specdec.rows.batch import Batch
from specbatch.specdec.rows.slots import Request

_MESSAGES = (
    *("can't allocate memory", "not enough memory", "out of memory", "could not create a memory object"),
    "alloc_failed",  # of cuBLAS and its like, which ask for memory of their own
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; on CPU torch says so only in words."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(message in text for message in _MESSAGES)


def relieve(batch: Batch, queue: deque[Request]) -> list[SequenceOutput]:
    """Halve the slots; the row that does not fit even alone becomes an error row, which is returned.

    With one slot left that is the row in it or, where not even its slot could be had, the next one of the queue.
    """
    slots = batch.slots
    refused: list[SequenceOutput] = []
    message = "memory ran out with this row alone in flight; it is too long for this device"
    if slots.num_slots == 1 and slots.num_active:
        refused.append(batch.fail(0, ErrorCode.ROW_MEMORY, message))
    elif slots.num_slots == 1 and queue:
        request = queue.popleft()
        refused.append(error_output(request.key, len(request.prompt_ids), ErrorCode.ROW_MEMORY, message))
    num_slots = max(slots.num_slots // 2, 1)
    shrink(batch, queue, num_slots)
    batch.resize(num_slots, slots.max_positions)
    if batch.device.type == "cuda":
        torch.cuda.empty_cache()
    return refused


def drop_rows(batch: Batch, keys: Collection[Hashable]) -> None:
    """Forget the rows in flight that have these keys."""
    slots = batch.slots
    for slot in range(slots.num_active - 1, -1, -1):
        request = slots.requests[slot]
        if request is not None and request.key in keys:
            batch.preempt(slot)


def drop_all(batch: Batch) -> None:
    """Forget all rows and all that the caches hold: a step that was interrupted may have left them half changed."""
    slots = batch.slots
    for slot in range(slots.num_slots - 1, -1, -1):
        if slots.requests[slot] is not None:
            batch.preempt(slot)
    slots.target_kv_S[:] = slots.draft_kv_S[:] = 0
    if batch.pages is not None:
        batch.pages.release_all()
