"""Which pages of key-value memory hold which row: pure bookkeeping on the host.

Memory is cut into pages of a few positions when the engine is made, and nothing is allocated afterwards. A slot holds
as many pages as its row has come to need, so a long row costs its neighbours nothing and less than one page of each row
is unused. Slots whose rows begin alike hold the same pages: whole ones by reference, the last one copied where the rows
part. A page is free when no slot holds it.

Both models of a pair have the same positions of the same rows, so one table serves them: page i of the target's pool
and page i of the draft's belong to the same tokens.

Shape letters: S slots, W pages of the longest row, N pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specbatch.specdec.kernels.spans import SCRATCH_PAGE

PAGE_SIZE = 32
"""Positions of a page: at most so many are unused at the end of a row, and whole pages are what rows share."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a slot holds of a beginning: its positions, and the page that must be copied for it, as (from, to)."""

    num_positions: int
    copied: tuple[int, int] | None = None


class PageTable:
    """Pages of all slots.

    Args:
        num_pages: pages of the pool, the scratch page among them.

    Attributes:
        table_SW: int32 pages of each slot, in order; entries behind ``held_S`` are the scratch page.
        held_S: pages that each slot holds.
        version: counts changes of the table.
    """

    def __init__(self, num_pages: int, num_slots: int, max_positions: int, page_size: int = PAGE_SIZE) -> None:
        self.page_size = page_size
        self.version = 0
        self.table_SW = np.full((num_slots, -(-max_positions // page_size)), SCRATCH_PAGE, dtype=np.int32)
        self.held_S = np.zeros(num_slots, dtype=np.int64)
        self._num_users_N = np.zeros(num_pages, dtype=np.int64)
        self._free = list(range(num_pages - 1, SCRATCH_PAGE, -1))

    @property
    def num_pages(self) -> int:
        """Pages of the pool."""
        return len(self._num_users_N)

    @property
    def capacity(self) -> int:
        """Pages that rows may hold."""
        return self.num_pages - 1

    @property
    def num_free(self) -> int:
        """Pages that no slot holds; the tests count pages by it."""
        return len(self._free)

    def pages_for(self, num_positions: int) -> int:
        """Pages that hold so many positions."""
        return -(-num_positions // self.page_size)

    def num_used_by(self, slots: NDArray[np.int64], also_N: NDArray[np.int32] | None = None) -> int:
        """Different pages that some slots hold together, and some other pages."""
        is_used_N = np.zeros(self.num_pages, dtype=np.bool_)
        is_used_N[self.table_SW[slots, : int(self.held_S[slots].max(initial=0))]] = True
        if also_N is not None:
            is_used_N[also_N] = True
        is_used_N[SCRATCH_PAGE] = False  # what stands behind the pages of a slot
        return int(is_used_N.sum())

    def pages_of(self, slot: int) -> NDArray[np.int32]:
        """The pages of one slot, in order."""
        return self.table_SW[slot, : self.held_S[slot]]

    def grow(self, slot: int, num_positions: int) -> bool:
        """Let a slot hold at least so many positions; False, and nothing is taken, where pages lack."""
        held, wanted = int(self.held_S[slot]), self.pages_for(num_positions)
        if wanted <= held:
            return True
        if wanted - held > len(self._free):
            return False
        for place in range(held, wanted):
            self.table_SW[slot, place] = self._take()
        self.held_S[slot] = wanted
        self.version += 1
        return True

    def cut(self, slot: int, num_positions: int) -> Kept:
        """Keep the first positions of a slot and make what comes behind them free to be written.

        A last page that others hold too is replaced by a copy; where no page is free for that it is let go.
        """
        whole = num_positions // self.page_size
        rest = num_positions - whole * self.page_size
        copied = None
        if rest:
            page = int(self.table_SW[slot, whole])
            if self._num_users_N[page] == 1:
                self._let_go(slot, whole + 1)
                return Kept(num_positions)
            self._let_go(slot, whole + 1)
            if self._free:
                copied = (page, self._take())
                self._num_users_N[page] -= 1
                self.table_SW[slot, whole] = copied[1]
                return Kept(num_positions, copied)
        self._let_go(slot, whole)
        return Kept(whole * self.page_size)

    def share(self, source: int, destination: int, num_positions: int) -> Kept:
        """Let a slot begin like another; what it held is let go."""
        whole = num_positions // self.page_size
        rest = num_positions - whole * self.page_size
        pages = self.table_SW[source, :whole].copy()
        partial = int(self.table_SW[source, whole]) if rest else SCRATCH_PAGE
        self._num_users_N[pages] += 1  # before anything is let go: the two may hold pages in common
        self._num_users_N[partial] += bool(rest)
        self._let_go(destination, 0)
        self.table_SW[destination, :whole] = pages
        self.held_S[destination] = whole
        self.version += 1
        if not rest:
            return Kept(num_positions)
        kept = Kept(whole * self.page_size)
        if self._free:
            kept = Kept(num_positions, (partial, self._take()))
            assert kept.copied is not None
            self.table_SW[destination, whole] = kept.copied[1]
            self.held_S[destination] += 1
        self._drop(partial)
        return kept

    def release(self, slot: int) -> None:
        """Let go all that a slot holds."""
        self._let_go(slot, 0)

    def clear(self) -> None:
        """No slot holds anything, whatever the table said before."""
        self.table_SW[:] = SCRATCH_PAGE
        self.held_S[:] = 0
        self._num_users_N[:] = 0
        self._free = list(range(self.num_pages - 1, SCRATCH_PAGE, -1))
        self.version += 1

    def move(self, source: int, destination: int) -> None:
        """A row changes its slot; what the destination held is let go."""
        self._let_go(destination, 0)
        self.table_SW[destination] = self.table_SW[source]
        self.held_S[destination] = self.held_S[source]
        self.table_SW[source] = SCRATCH_PAGE
        self.held_S[source] = 0
        self.version += 1

    def resize(self, num_slots: int, max_positions: int) -> None:
        """Another number of slots, and room in the table for rows of so many positions; what goes is let go."""
        for slot in range(num_slots, len(self.held_S)):
            self._let_go(slot, 0)
        width = max(self.pages_for(max_positions), int(self.held_S[:num_slots].max(initial=0)))
        table_SW = np.full((num_slots, width), SCRATCH_PAGE, dtype=np.int32)
        held_S = np.zeros(num_slots, dtype=np.int64)
        slots, pages = min(num_slots, len(self.held_S)), min(width, self.table_SW.shape[1])
        table_SW[:slots, :pages] = self.table_SW[:slots, :pages]
        held_S[:slots] = self.held_S[:slots]
        self.table_SW, self.held_S = table_SW, held_S
        self.version += 1

    def extend(self, num_pages: int) -> None:
        """The pool has become larger."""
        added = range(num_pages - 1, self.num_pages - 1, -1)
        self._free = [*added, *self._free]
        self._num_users_N = np.concatenate((self._num_users_N, np.zeros(len(added), dtype=np.int64)))

    def _take(self) -> int:
        page = self._free.pop()
        self._num_users_N[page] = 1
        return page

    def _drop(self, page: int) -> None:
        self._num_users_N[page] -= 1
        if self._num_users_N[page] == 0:
            self._free.append(page)

    def _let_go(self, slot: int, num_kept: int) -> None:
        """Keep the first pages of a slot."""
        held = int(self.held_S[slot])
        for page in self.table_SW[slot, num_kept:held].tolist():
            self._drop(page)
        self.table_SW[slot, num_kept:held] = SCRATCH_PAGE
        self.held_S[slot] = min(held, num_kept)
        self.version += 1
