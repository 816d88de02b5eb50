"""Admission and the shape of key-value memory: which rows stand in slots, and how long the slots are.

Slots are as long as the longest row in flight, and they grow with it. Where memory is bounded, longer slots are fewer:
the youngest rows are preempted then and go back to the head of the queue with what they have said. When the long rows
have ended, the slots become short and many again. A row that does not fit alone is an error row. Nothing here can
change a token: a row's text does not depend on its slot, its mates or its interruptions.

Shape letters: S slots.
"""

from __future__ import annotations

from collections import deque

from specbatch.schemas.errors import ErrorCode
from specbatch.specdec.output import SequenceOutput, error_output
from specbatch.specdec.rows.batch import POSITIONS_STEP, SLACK_POSITIONS, Batch
from specbatch.specdec.rows.slots import Request


def admit(batch: Batch, queue: deque[Request], max_rows: int) -> list[SequenceOutput]:
    """Fill slots from the queue, in order, then close the gaps; returns the rows that can never run.

    Args:
        max_rows: rows that may be in flight.
    """
    slots, refused, message = batch.slots, [], too_long(batch.max_kv_tokens)
    while queue and slots.num_rows < max_rows:
        request = queue[0]
        needed = positions_for(request.num_known_tokens + 1)
        if affordable_slots(batch.max_kv_tokens, needed) == 0:
            queue.popleft()
            refused.append(error_output(request.key, len(request.prompt_ids), ErrorCode.ROW_MEMORY, message))
            continue
        _reshape(batch, request, needed, max_rows)
        if not slots.free_slots() or needed > slots.max_positions:
            break  # rows in flight must end first
        queue.popleft()
        batch.open(batch.best_slot(request)[0], request)
    batch.compact()
    return refused


def make_room(batch: Batch, queue: deque[Request]) -> list[SequenceOutput]:
    """Lengthen the slots for the coming round, preempting rows where that costs slots; returns rows that do not fit."""
    slots, refused = batch.slots, []
    while slots.num_active:
        longest = int(slots.length_S[: slots.num_active].argmax())
        needed = positions_for(int(slots.length_S[longest]))
        if needed <= slots.max_positions:
            break
        affordable = affordable_slots(batch.max_kv_tokens, needed)
        if affordable == 0:
            refused.append(batch.fail(longest, ErrorCode.ROW_MEMORY, too_long(batch.max_kv_tokens)))
            batch.compact()
            continue
        keep = slots.num_slots if affordable is None else min(slots.num_slots, affordable)
        shrink(batch, queue, keep)
        batch.resize(keep, needed)
    return refused


def shrink(batch: Batch, queue: deque[Request], num_rows: int) -> None:
    """Preempt the youngest rows until only so many are left, in the first slots."""
    slots = batch.slots
    by_age = sorted((slot for slot in range(slots.num_active) if slots.requests[slot]), key=slots.opened.__getitem__)
    for slot in reversed(by_age[num_rows:]):
        queue.appendleft(batch.preempt(slot))
    batch.compact()


def affordable_slots(max_kv_tokens: int | None, positions: int) -> int | None:
    """Slots of so many positions that memory allows; None is without bound."""
    return None if max_kv_tokens is None else max_kv_tokens // positions


def positions_for(num_tokens: int) -> int:
    """Positions of slots that hold rows of ``num_tokens`` and what is written beyond their ends."""
    return -(-(num_tokens + SLACK_POSITIONS) // POSITIONS_STEP) * POSITIONS_STEP


def too_long(num_tokens: int | None) -> str:
    """Why a row is an error row where memory has so many positions in all."""
    return (
        f"the row does not fit into key-value memory even alone: there is room for {num_tokens} tokens; "
        "use a larger device or memory fraction, or run without the draft"
    )


def _reshape(batch: Batch, request: Request, needed: int, max_rows: int) -> None:
    """Another shape where the request calls for it: longer slots, or more of them now that they may be shorter."""
    slots = batch.slots
    num_rows = slots.num_rows
    if needed > slots.max_positions:
        affordable = affordable_slots(batch.max_kv_tokens, needed)
        if affordable is None or affordable > num_rows:
            batch.compact()
            batch.resize(slots.num_slots if affordable is None else min(slots.num_slots, affordable), needed)
        return
    if slots.num_slots >= max_rows or slots.free_slots():
        return
    # What the rows may come to need at most decides, or slots would soon have to be taken away again.
    ends = [int(slots.end_S[slot]) for slot in range(slots.num_active) if slots.requests[slot] is not None]
    positions = positions_for(max([request.num_tokens, *ends]))
    affordable = affordable_slots(batch.max_kv_tokens, positions)
    num_slots = max_rows if affordable is None else min(max_rows, affordable)
    if num_slots > slots.num_slots:
        batch.compact()
        batch.resize(num_slots, positions)
