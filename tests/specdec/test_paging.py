"""The page table: random histories against a model that knows only who holds what."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from specbatch.specdec.forward.paging import PageTable
from specbatch.specdec.kernels.spans import SCRATCH_PAGE

PAGE, PAGES, SLOTS, POSITIONS = 4, 12, 4, 24


class Pool(RuleBasedStateMachine):
    """Slots write tokens into pages as a cache would; what a slot has written must stay what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = PageTable(PAGES, SLOTS, POSITIONS, PAGE)
        self.memory = np.full((PAGES, PAGE), -1)
        self.rows: list[list[int]] = [[] for _ in range(SLOTS)]
        self.next_token = 0

    def write(self, slot: int, position: int, token: int) -> None:
        page = self.table.table_SW[slot, position // PAGE]
        assert page != SCRATCH_PAGE
        self.memory[page, position % PAGE] = token

    def copy(self, copied: tuple[int, int] | None) -> None:
        if copied is not None:
            self.memory[copied[1]] = self.memory[copied[0]]

    @rule(slot=st.integers(0, SLOTS - 1), count=st.integers(1, 9))
    def append(self, slot: int, count: int) -> None:
        wanted = len(self.rows[slot]) + count
        before = self.table.num_free
        if wanted > POSITIONS or not self.table.grow(slot, wanted):
            assert wanted > POSITIONS or self.table.num_free == before
            return
        for _ in range(count):
            self.write(slot, len(self.rows[slot]), self.next_token)
            self.rows[slot].append(self.next_token)
            self.next_token += 1

    @rule(slot=st.integers(0, SLOTS - 1), share=st.floats(0, 1))
    def begin_anew(self, slot: int, share: float) -> None:
        kept = self.table.cut(slot, int(share * len(self.rows[slot])))
        self.copy(kept.copied)
        del self.rows[slot][kept.num_positions :]

    @rule(source=st.integers(0, SLOTS - 1), to=st.integers(0, SLOTS - 1), share=st.floats(0, 1))
    def begin_alike(self, source: int, to: int, share: float) -> None:
        if source == to:
            return
        kept = self.table.share(source, to, int(share * len(self.rows[source])))
        self.copy(kept.copied)
        self.rows[to] = self.rows[source][: kept.num_positions]

    @rule(slot=st.integers(0, SLOTS - 1))
    def release(self, slot: int) -> None:
        self.table.release(slot)
        self.rows[slot] = []

    @rule()
    def clear(self) -> None:
        self.table.clear()
        self.rows = [[] for _ in range(SLOTS)]

    @rule(source=st.integers(0, SLOTS - 1), to=st.integers(0, SLOTS - 1))
    def move(self, source: int, to: int) -> None:
        if source != to:
            self.table.move(source, to)
            self.rows[to], self.rows[source] = self.rows[source], []

    @precondition(lambda self: self.table.num_pages < PAGES + 3)
    @rule()
    def extend(self) -> None:
        self.table.extend(self.table.num_pages + 1)
        self.memory = np.concatenate((self.memory, np.full((1, PAGE), -1)))

    @invariant()
    def reads_what_it_wrote(self) -> None:
        for slot, row in enumerate(self.rows):
            read = self.memory[self.table.pages_of(slot)].ravel()[: len(row)]
            assert read.tolist() == row

    @invariant()
    def every_page_is_free_or_held(self) -> None:
        held = {int(page) for slot in range(SLOTS) for page in self.table.pages_of(slot)}
        assert SCRATCH_PAGE not in held
        assert len(held) + self.table.num_free == self.table.capacity
        behind = [self.table.table_SW[s, self.table.held_S[s] :] for s in range(SLOTS)]
        assert all((entries == SCRATCH_PAGE).all() for entries in behind)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_rows_that_begin_alike_hold_whole_pages_together() -> None:
    table = PageTable(PAGES, SLOTS, POSITIONS, PAGE)
    assert table.grow(0, 11)
    kept = table.share(0, 1, 10)
    assert kept.num_positions == 10
    assert len({*table.pages_of(0).tolist(), *table.pages_of(1).tolist()}) == 4  # two in common, and each its own third
    assert kept.copied == (int(table.table_SW[0, 2]), int(table.table_SW[1, 2]))


def test_a_pool_that_is_full_gives_nothing_and_takes_nothing() -> None:
    table = PageTable(4, 2, POSITIONS, PAGE)
    assert table.grow(0, 3 * PAGE)
    assert not table.grow(1, 1)
    assert table.share(0, 1, 2 * PAGE + 1).num_positions == 2 * PAGE  # no page for the copy
    assert table.cut(1, PAGE + 1).num_positions == PAGE


@pytest.mark.parametrize("num_slots", [1, 5])
def test_another_number_of_slots(num_slots: int) -> None:
    table = PageTable(PAGES, SLOTS, POSITIONS, PAGE)
    assert all(table.grow(slot, PAGE) for slot in range(SLOTS))
    table.resize(num_slots, 2 * POSITIONS)
    assert table.table_SW.shape == (num_slots, 2 * POSITIONS // PAGE)
    assert table.num_free == table.capacity - min(num_slots, SLOTS)
