"""Keys and values in pages: the pools of both models, under one page table.

Shape letters: N pages, S positions of a page, H key-value heads, D head width, M tokens, R segments, W table width,
C entries that have changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specbatch.specdec.accept import IntArray
from specbatch.specdec.forward.feed import Decoder, Layout, send
from specbatch.specdec.forward.paging import PAGE_SIZE, PageTable
from specbatch.specdec.kernels.spans import SCRATCH_PAGE, Spans


@dataclass(frozen=True, slots=True)
class PagedFeed:
    """A layout on the device as pages want it: int64 positions and flat places (page * S + offset), and the spans."""

    position_M: Tensor
    place_M: Tensor
    spans: Spans


class Pages:
    """The page table of an engine, its copy on the device, and the pools of the models that it serves.

    Args:
        num_pages: of every pool, the scratch page among them.
        max_sequence_tokens: positions that a row may come to have; the device's table is as wide from the start, so
            that it stays at one address.

    Attributes:
        device_SW: int32 copy of the table on the device, at one address for a given number of slots.
    """

    def __init__(self, num_pages: int, num_slots: int, max_sequence_tokens: int, device: torch.device) -> None:
        self.table = PageTable(num_pages, num_slots, max_sequence_tokens)
        self.memories: list[PagedMemory] = []
        self._device = device
        self._sent_version, self._sent_width = -1, 0
        self._make_device_table()

    @property
    def capacity_tokens(self) -> int:
        """Positions that all rows together may have."""
        return self.table.capacity * self.table.page_size

    def keep(self, slot: int, num_positions: int) -> int:
        """Keep so many first positions of a slot, the rest may be written; returns how many are kept."""
        kept = self.table.cut(slot, num_positions)
        self._copy(kept.copied)
        return kept.num_positions

    def share(self, source: int, destination: int, num_positions: int) -> int:
        """Let a slot begin like another, with room for as many positions as before; returns in how many it does."""
        room = int(self.table.held_S[destination]) * self.table.page_size
        kept = self.table.share(source, destination, num_positions)
        self._copy(kept.copied)
        # What it held before is free again, and it needs no more than that.
        has_grown = self.table.grow(destination, room)
        assert has_grown
        return kept.num_positions

    def resize(self, num_slots: int) -> None:
        """Another number of slots; rows in those that go must be gone."""
        if num_slots == len(self.table.held_S):
            return
        page_size, width = self.table.page_size, self.table.table_SW.shape[1]
        self.table.resize(num_slots, width * page_size)
        self._make_device_table()

    def release_all(self) -> None:
        """No slot holds anything any more."""
        self.table.clear()

    def drop(self, memory: PagedMemory) -> None:
        """A model has been given up: its pool goes, and what it took makes the others larger."""
        if memory not in self.memories:
            return
        freed = memory.num_bytes
        self.memories.remove(memory)
        memory.free()
        per_page = sum(other.num_bytes for other in self.memories) // self.table.num_pages
        num_pages = self.table.num_pages + freed // max(per_page, 1)
        for other in self.memories:
            other.extend(num_pages)
        self.table.extend(num_pages)

    def refresh(self) -> None:
        """Bring the device's copy of the table up to date; only entries that have changed cross."""
        table = self.table
        if self._sent_version == table.version:
            return
        held = int(table.held_S.max(initial=0))
        width = max(held, self._sent_width)
        slot_C, column_C = np.nonzero(table.table_SW[:, :width] != self._sent_SW[:, :width])
        if len(slot_C):
            page_C = table.table_SW[slot_C, column_C]
            places = slot_C * table.table_SW.shape[1] + column_C
            place_C, sent_C = send([places, page_C.astype(np.int64)], self._device)
            self.device_SW.view(-1).index_copy_(0, place_C, sent_C.to(torch.int32))
            self._sent_SW[slot_C, column_C] = page_C
        self._sent_version, self._sent_width = table.version, held

    def feed(self, layout: Layout) -> PagedFeed:
        """A layout on the device; every position that it writes must be held by its slot."""
        self.refresh()
        table = self.table
        is_fed_R = layout.count_R > 0
        slot_R, count_R = layout.slot_R[is_fed_R], layout.count_R[is_fed_R]
        end_R = layout.start_R[is_fed_R] + count_R
        page_M = table.table_SW[layout.slot_M, layout.position_M // table.page_size].astype(np.int64)
        place_M = page_M * table.page_size + layout.position_M % table.page_size
        small: list[IntArray] = [layout.offset_R[is_fed_R], count_R, layout.start_R[is_fed_R], slot_R]
        position_M, place_sent_M, *rows = send([layout.position_M, place_M, *small], self._device)
        first, count, start = (values.to(torch.int32) for values in rows[:3])
        max_keys = int(end_R.max())
        width = max(int(table.held_S.max(initial=0)), table.pages_for(max_keys))
        spans = Spans(
            first_R=first,
            count_R=count,
            start_R=start,
            table_RW=self.device_SW[:, :width].index_select(0, rows[3]),
            max_count=int(count_R.max()),
            max_keys=max_keys,
        )
        return PagedFeed(position_M, place_sent_M, spans)

    def _make_device_table(self) -> None:
        """The device's copy of a table in which no slot holds anything, and what the host knows of it."""
        shape = self.table.table_SW.shape
        self.device_SW = torch.full(shape, SCRATCH_PAGE, dtype=torch.int32, device=self._device)
        self._sent_SW = np.full(shape, SCRATCH_PAGE, dtype=np.int32)
        self._sent_version, self._sent_width = -1, 0

    def _copy(self, copied: tuple[int, int] | None) -> None:
        if copied is not None:
            for memory in self.memories:
                memory.copy_page(*copied)


class PagedMemory:
    """Keys and values of one model: a pair of pools [N, S, H, D] per layer.

    Zeros, so that nothing is ever read that was not a number; what is behind a row's end is not read at all.
    """

    def __init__(
        self, pages: Pages, num_layers: int, heads: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.pages = pages
        shape = (pages.table.num_pages, PAGE_SIZE, *heads)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        pages.memories.append(self)

    @property
    def max_positions(self) -> int:
        """Positions that a row may have."""
        return self.pages.table.table_SW.shape[1] * self.pages.table.page_size

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return sum(memory.nbytes for memory in (*self.keys, *self.values))

    def copy_page(self, source: int, destination: int) -> None:
        """Copy one page to another, in all layers: one operation, which a device does in a launch or two."""
        pools = [pool.view(torch.uint8) if pool.itemsize == 1 else pool for pool in (*self.keys, *self.values)]
        torch._foreach_copy_([pool[destination] for pool in pools], [pool[source] for pool in pools])

    def extend(self, num_pages: int) -> None:
        """More pages; layer by layer, so that little is held twice."""
        for memories in (self.keys, self.values):
            for layer, old in enumerate(memories):
                new = old.new_zeros(num_pages, *old.shape[1:])
                new[: len(old)] = old
                memories[layer] = new

    def free(self) -> None:
        """Give the memory back."""
        self.keys, self.values = [], []

    # ---- the face that memory in slots has -------------------------------------------------------------------------

    def copy(self, source: int, destination: int, num_positions: int) -> None:
        """Let a slot begin like another."""
        self.pages.share(source, destination, num_positions)

    def clear(self, slot: int) -> None:
        """Let go what a slot holds."""
        self.pages.table.release(slot)

    def resize(self, num_slots: int, max_positions: int) -> None:
        """Another number of slots; how many positions a row may have does not change."""
        self.pages.resize(num_slots)


def pages_of(decoder: Decoder) -> Pages | None:
    """The page table of a decoder whose keys and values are in pages."""
    return decoder.cache.pages if isinstance(decoder.cache, PagedMemory) else None
