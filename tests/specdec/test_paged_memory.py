"""Pages on their way to a device: the table's copy, pages that are copied, memory that grows with its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONTEXT, ROUNDS, VOCAB, NumberTokenizer, context_of, decoder
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from twin import Rows, full_twin, tokens

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.engine import Engine
from specbatch.specdec.forward import feed, paged_memory
from specbatch.specdec.forward.lean_paged import PagedLeanDecoder
from specbatch.specdec.forward.paged_memory import PagedMemory, Pages
from specbatch.specdec.forward.paging import PAGE_SIZE
from specbatch.specdec.policy.controller import FixedPolicy

CPU = torch.device("cpu")
STEP = 32


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's arrays grow in small steps, so that tiny rows make them grow at all."""
    for module in ("admission", "batch"):
        monkeypatch.setattr(f"specbatch.specdec.rows.{module}.POSITIONS_STEP", STEP)


# ---- the device's copy of the table --------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 3), st.integers(0, 200)), max_size=30))
@settings(deadline=None)
def test_the_device_has_the_table_of_the_host(steps: list[tuple[int, int, int, int]]) -> None:
    """Rows grow, share, move, end and lose their slots, in any order; some changes go unsent for a while."""
    pages = Pages(30, 4, 200, CPU)
    for kind, slot, other, size in steps:
        held = int(pages.table.held_S[slot]) * PAGE_SIZE
        if kind == 0:
            pages.table.grow(slot, size)
        elif kind == 1 and slot != other:
            pages.table.share(slot, other, min(size, held))
        elif kind == 2 and slot != other:
            pages.table.move(slot, other)
        elif kind == 3:
            pages.table.release(slot)
        elif kind == 4:
            pages.table.cut(slot, min(size, held))
        if size % 3:
            pages.refresh()
            assert np.array_equal(pages.device_SW.numpy(), pages.table.table_SW)
    pages.resize(3)
    pages.refresh()
    assert np.array_equal(pages.device_SW.numpy(), pages.table.table_SW)


def test_only_entries_that_have_changed_cross_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    send = feed.send

    def noted(arrays: Any, device: torch.device) -> list[Tensor]:
        sent.append(sum(array.nbytes for array in arrays))
        return send(arrays, device)

    monkeypatch.setattr(paged_memory, "send", noted)
    pages = Pages(600, 64, 4096, CPU)
    for slot in range(64):
        pages.table.grow(slot, 8 * PAGE_SIZE)
    pages.refresh()
    pages.refresh()
    pages.table.grow(5, 9 * PAGE_SIZE)
    pages.table.grow(7, 9 * PAGE_SIZE)
    pages.refresh()
    pages.table.cut(3, 8 * PAGE_SIZE)  # a change of the version, of nothing else
    pages.refresh()
    assert sent == [64 * 8 * 16, 2 * 16]


def test_what_crosses_to_a_gpu_is_pinned_first_each_time_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []

    def pin_memory(self: Tensor) -> Tensor:
        pinned.append(self.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking: self)
    array = np.arange(6)[::2]
    first, second = (feed.on_device(array, torch.device("cuda")) for _ in range(2))
    assert first is pinned[0]
    assert second is pinned[1]
    assert feed.send([array, array], torch.device("cuda"))[1].tolist() == [0, 2, 4]
    assert len(pinned) == 3
    feed.on_device(array, CPU)
    assert len(pinned) == 3


# ---- copies of pages -----------------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Counts what a device would have to launch: all but views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name not in ("view", "select", "slice", "detach", "alias"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_a_page_is_copied_in_one_operation_for_all_layers(dtype: torch.dtype) -> None:
    memory = PagedMemory(Pages(4, 2, 64, CPU), 12, (2, 8), dtype, CPU)
    for pool in (*memory.keys, *memory.values):
        pool.view(torch.uint8).random_(0, 100)
    expected = [pool.clone() for pool in (*memory.keys, *memory.values)]
    for pool in expected:
        pool.view(torch.uint8)[3] = pool.view(torch.uint8)[1]
    with Operations() as seen:
        memory.copy_page(1, 3)
    assert seen.names == ["_foreach_copy_"]
    for pool, twin in zip((*memory.keys, *memory.values), expected, strict=True):
        assert torch.equal(pool.view(torch.uint8), twin.view(torch.uint8))


# ---- rows that grow ------------------------------------------------------------------------------------------------


def paged_engine(target: Any, draft: Any, path: str, k: int, num_positions: int) -> Engine:
    """Both models over pages of a table that is exactly so wide, or the draft in slots of 16 positions."""
    pages = Pages(100, 3, num_positions, CPU)
    return Engine(
        decoder(target, 3, path, pages),
        draft if draft is None or hasattr(draft, "run") else decoder(draft, 3, path, pages),
        NumberTokenizer(),  # type: ignore[arg-type]
        eos_ids=(),
        policy=FixedPolicy(k),
        max_batch_size=3,
        max_sequence_tokens=CONTEXT,
        rounds=ROUNDS[path],
    )


LONG_ROWS: Rows = [([n, 7], SamplingParams(max_new_tokens=CONTEXT - 2 - n)) for n in range(2)]


@pytest.fixture(scope="module")
def said(target: Any) -> list[tuple[tuple[int, ...], str]]:
    """What the twin says behind ``LONG_ROWS``."""
    return [(twin.token_ids, twin.finish_reason) for twin in full_twin(target, LONG_ROWS, path="lean")]


@pytest.mark.parametrize(("path", "k"), [("paged", 8), ("captured", 8), ("ahead", 8), ("ahead", 0)])
@pytest.mark.usefixtures("short_steps")
def test_rows_come_to_the_end_of_a_context_of_whole_pages(
    target: Any, draft: Any, said: list[tuple[tuple[int, ...], str]], path: str, k: int
) -> None:
    """What a round writes beyond a row's end has room on the host too, also where no row is admitted for long."""
    assert CONTEXT % PAGE_SIZE == CONTEXT % STEP == 0
    rows = LONG_ROWS
    subject = paged_engine(target, draft if k else None, path, k, CONTEXT)
    assert subject._batch.slots.max_positions == STEP, "the host's arrays begin small"
    outputs = subject.generate([ids for ids, _ in rows], [params for _, params in rows])
    assert tokens(outputs) == said
    assert len(rows[0][0]) + len(outputs[0].token_ids) == CONTEXT
    assert CONTEXT < subject._batch.slots.max_positions <= 2 * CONTEXT


@pytest.mark.usefixtures("short_steps")
def test_a_draft_in_slots_grows_with_the_rows_of_a_target_in_pages(
    target: Any, draft: Any, said: list[tuple[tuple[int, ...], str]]
) -> None:
    rows = LONG_ROWS
    in_slots = decoder(draft, 3, "lean")
    assert in_slots.cache.max_positions == 16
    subject = paged_engine(target, in_slots, "paged", 3, 4096)
    outputs = subject.generate([ids for ids, _ in rows], [params for _, params in rows])
    assert tokens(outputs) == said
    assert in_slots.cache.max_positions == subject._batch.slots.max_positions < 4096


def test_a_batch_with_fewer_slots_than_its_pages_makes_the_table_as_small() -> None:
    from tiny import tiny_model

    model = tiny_model(seed=3)
    first = PagedLeanDecoder(model, pages=Pages(9, 8, 64, CPU), context_length=context_of(model), vocab_size=VOCAB)
    subject = Engine(
        first,
        None,
        NumberTokenizer(),  # type: ignore[arg-type]
        eos_ids=(),
        policy=FixedPolicy(0),
        max_batch_size=2,
        max_sequence_tokens=60,
    )
    assert len(first.cache.pages.table.held_S) == subject._batch.slots.num_slots == 2
