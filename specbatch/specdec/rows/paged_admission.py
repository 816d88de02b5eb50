"""Admission where keys and values are in pages: rows come in while pages for them are free.

A row is given pages for what it knows when it comes, and more as it grows. Slots without rows keep theirs, because a
later row may begin alike, until pages are short: then they are let go, the oldest first. When that is not enough the
youngest rows are preempted and go back to the head of the queue with what they have said. A row that does not fit alone
is an error row. Nothing here can change a token.

Shape letters: S slots.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from specbatch.schemas.errors import ErrorCode
from specbatch.specdec.accept import IntArray
from specbatch.specdec.forward.paged_memory import Pages, pages_of
from specbatch.specdec.output import SequenceOutput, error_output
from specbatch.specdec.rows.admission import positions_for, too_long
from specbatch.specdec.rows.batch import Batch
from specbatch.specdec.rows.slots import Request

ROUNDS_AHEAD = 2
"""Rounds that a row's pages last for: the one that is decided, and one that may be under way before it is known."""

GATHERED = 8
"""Rows come in when this share of what there is room for is free, one eighth."""

_HOST_GROWTH = 2


def is_time_to_admit(batch: Batch, most_rows: int) -> bool:
    """Whether so many rows have room that it is worth while to interrupt the rounds of fixed shape.

    Prompts are read in rounds of the plain loop, which cost more launches: a few rows come in together, while at most
    an eighth of the slots waits.

    Args:
        most_rows: rows that there was room for when it was last tried.
    """
    return most_rows - batch.slots.num_rows >= max(most_rows // GATHERED, 1)


def admit(batch: Batch, pages: Pages, queue: deque[Request], max_rows: int) -> list[SequenceOutput]:
    """Fill slots from the queue, in order; returns the rows that can never run.

    Args:
        max_rows: rows that may be in flight.
    """
    slots = batch.slots
    refused: list[SequenceOutput] = []
    if slots.num_slots < max_rows:
        batch.resize(max_rows, slots.max_positions)
    while queue and slots.num_rows < max_rows:
        request = queue[0]
        needed = int(_needed(batch, np.array(request.num_known_tokens), np.array(request.num_tokens)))
        if pages.table.pages_for(needed) > pages.table.capacity:
            queue.popleft()
            message = too_long(pages.capacity_tokens)
            refused.append(error_output(request.key, len(request.prompt_ids), ErrorCode.ROW_MEMORY, message))
            continue
        slot, num_held = batch.best_slot(request)
        if not _has_room(batch, pages, slot, num_held, needed):
            break  # rows in flight must end first
        queue.popleft()
        _lengthen(batch, needed)
        batch.open(slot, request)
        _grow(batch, pages, slot, needed)
    batch.compact()
    return refused


def make_room(batch: Batch, pages: Pages, queue: deque[Request]) -> list[SequenceOutput]:
    """Pages for the coming rounds, preempting the youngest rows where they lack; returns rows that do not fit."""
    slots, refused = batch.slots, []
    rows, needed_of = _rows(batch), _growing(batch, pages)
    for slot in sorted(needed_of, key=slots.opened.__getitem__):
        request = slots.requests[slot]
        if request is None:  # preempted for an older one
            continue
        while not _grow(batch, pages, slot, needed_of[slot]):
            rivals = [other for other in rows if slots.requests[other] is not None and other != slot]
            youngest = max([*rivals, slot], key=slots.opened.__getitem__)
            if not rivals:
                refused.append(batch.fail(slot, ErrorCode.ROW_MEMORY, too_long(pages.capacity_tokens)))
                break
            queue.appendleft(batch.preempt(youngest))
            if youngest == slot:
                break
    batch.compact()
    return refused


def has_room_ahead(batch: Batch, pages: Pages) -> bool:
    """Pages for the round behind the one under way, where they can be had without taking any from a row.

    The host's arrays grow with them: it will write there what the rounds bring.
    """
    return all(_grow(batch, pages, slot, needed) for slot, needed in _growing(batch, pages).items())


def _growing(batch: Batch, pages: Pages) -> dict[int, int]:
    """Positions that each row needs for the coming rounds, of the rows that do not hold them yet: few in any round.

    The host's arrays become as long.
    """
    slots, table = batch.slots, pages.table
    row_B = np.array(_rows(batch), dtype=np.int64)
    needed_B = _needed(batch, slots.length_S[row_B], slots.end_S[row_B])
    _lengthen(batch, int(needed_B.max(initial=0)))
    is_short_B = needed_B > table.held_S[row_B] * table.page_size
    return dict(zip(row_B[is_short_B].tolist(), needed_B[is_short_B].tolist(), strict=True))


def _rows(batch: Batch) -> list[int]:
    """Slots with rows in them."""
    requests = batch.slots.requests
    return [slot for slot in range(batch.slots.num_active) if requests[slot] is not None]


def _needed(batch: Batch, num_known: IntArray, num_tokens: IntArray) -> IntArray:
    """Positions that rows of so many tokens may write before they are asked again."""
    ahead = ROUNDS_AHEAD * (batch.policy.max_draft_length + 1)
    needed: IntArray = np.maximum(np.minimum(num_known + ahead, num_tokens), num_known)
    return needed


def _has_room(batch: Batch, pages: Pages, slot: int, num_held: int, needed: int) -> bool:
    """Whether pages for one more row are free or can be made so, with one to spare for every row."""
    table, active = pages.table, _rows(batch)
    num_kept = num_held // table.page_size
    wanted = table.pages_for(needed) - num_kept + len(active)
    if table.num_free >= wanted:  # what slots without rows hold is not asked for; counting all of it is dear
        return True
    num_used = table.num_used_by(np.array(active, dtype=np.int64), also_N=table.pages_of(slot)[:num_kept])
    return table.capacity - num_used >= wanted or (not active and table.pages_for(needed) <= table.capacity)


def _grow(batch: Batch, pages: Pages, slot: int, needed: int) -> bool:
    """Let a row hold so many positions, at the cost of what slots without rows hold."""
    slots, table = batch.slots, pages.table
    while not table.grow(slot, needed):
        idle = [s for s in range(slots.num_slots) if slots.requests[s] is None and table.held_S[s]]
        if not idle:
            return False
        oldest = min(idle, key=slots.opened.__getitem__)
        table.release(oldest)
        slots.target_kv_S[oldest] = slots.draft_kv_S[oldest] = 0
    return True


def _lengthen(batch: Batch, needed: int) -> None:
    """Longer host arrays where a row has come to need them; what decoders keep in slots grows with them.

    Where nothing is in slots only the host pays, and longer steps let it copy its arrays less often.
    """
    in_slots = [decoder.cache.max_positions for decoder in batch.decoders if pages_of(decoder) is None]
    positions, held = positions_for(needed), min([batch.slots.max_positions, *in_slots])
    if positions <= held:
        return
    if not in_slots:
        longest = positions_for(batch.target.cache.max_positions)
        positions = max(positions, min(_HOST_GROWTH * held, longest))
    batch.resize(batch.slots.num_slots, positions)
