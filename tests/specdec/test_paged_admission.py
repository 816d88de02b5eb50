"""Admission over pages: how often the engine asks for room, what asking costs, and that rounds fly meanwhile."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from tiny import engine
from twin import Rows, full_twin, tokens

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.engine import Engine
from specbatch.specdec.forward.paging import PAGE_SIZE, PageTable
from specbatch.specdec.rounds.captured import CapturedRounds
from specbatch.specdec.rows import overload, paged_admission
from specbatch.specdec.rows.batch import Batch

SLOTS = 16


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the dear parts are called, and rounds are launched: behind one under way, or behind one that landed."""
    seen: Counter[str] = Counter()
    for owner, name in ((PageTable, "num_used_by"), (PageTable, "grow"), (Batch, "best_slot")):
        original = getattr(owner, name)

        def noted(*args: Any, _original: Any = original, _name: str = name, **settings: Any) -> Any:
            seen[_name] += 1
            return _original(*args, **settings)

        monkeypatch.setattr(owner, name, noted)
    launch = CapturedRounds.launch

    def launched(self: CapturedRounds, row_B: Any, plan: Any, looked_up: Any, *behind: Any) -> Any:
        seen["flown" if behind else "landed"] += 1
        return launch(self, row_B, plan, looked_up, *behind)

    monkeypatch.setattr(CapturedRounds, "launch", launched)
    return seen


def rows_of(num_rows: int, num_tokens: int = 30) -> Rows:
    return [([n, 7], SamplingParams(max_new_tokens=num_tokens, temperature=0.8, seed=n)) for n in range(num_rows)]


def generate(subject: Engine, rows: Rows) -> Any:
    return tokens(subject.generate([ids for ids, _ in rows], [params for _, params in rows]))


def expected_of(target: Any, rows: Rows) -> Any:
    return [(twin.token_ids, twin.finish_reason) for twin in full_twin(target, rows, path="lean")]


@pytest.mark.parametrize(("path", "memory"), [("ahead", 12 * PAGE_SIZE), ("paged", 12 * PAGE_SIZE)])
def test_where_pages_are_short_room_is_asked_for_again_only_when_rows_have_ended(
    target: Any, calls: Counter[str], path: str, memory: int
) -> None:
    """Six rows of sixteen have room, and more than an eighth of the slots is free for ever."""
    rows = rows_of(20)
    subject = engine(target, batch=SLOTS, path=path, max_kv_tokens=memory)
    assert generate(subject, rows) == expected_of(target, rows)
    assert calls["best_slot"] <= 4 * len(rows), "not in every round"
    if path == "ahead":
        assert calls["flown"] > 2 * calls["landed"] > 0


def test_rows_that_share_their_beginnings_make_room_for_others_before_any_ends(target: Any) -> None:
    """A row is given pages for its whole prompt and lets go what it shares when it is read."""
    prompt = [5, 6, 7, 8] * 16
    rows: Rows = [([*prompt, n], SamplingParams(max_new_tokens=20)) for n in range(8)]
    subject = engine(target, batch=8, path="ahead", max_kv_tokens=11 * PAGE_SIZE)
    for number, (ids, params) in enumerate(rows):
        subject.submit(number, ids, params)
    outputs, most_rows = [], []
    while subject.num_active or subject.num_queued:
        outputs += subject.step()
        if not outputs:
            most_rows.append(subject.num_active)
    assert max(most_rows) >= 4 > most_rows[0]
    outputs.sort(key=lambda output: int(str(output.key)))
    assert tokens(outputs) == expected_of(target, rows)


def test_while_pages_are_free_nobody_counts_those_that_are_not(target: Any, calls: Counter[str]) -> None:
    rows = rows_of(SLOTS, 6)
    assert generate(engine(target, batch=SLOTS, path="ahead"), rows) == expected_of(target, rows)
    assert calls["num_used_by"] == 0


def test_only_rows_that_need_pages_ask_for_them(
    target: Any, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of 60 tokens needs two pages more in its life; 60 rounds do not ask 16 rows each."""
    lengthened: list[int] = []
    lengthen = paged_admission._lengthen
    monkeypatch.setattr(
        paged_admission, "_lengthen", lambda batch, needed: lengthened.append(needed) or lengthen(batch, needed)
    )
    rows = rows_of(SLOTS, 60)
    subject = engine(target, batch=SLOTS, path="paged")
    num_steps = 0
    for number, (ids, params) in enumerate(rows):
        subject.submit(number, ids, params)
    while subject.num_active or subject.num_queued:
        subject.step()
        num_steps += 1
    assert calls["grow"] <= 4 * SLOTS
    assert len(lengthened) <= num_steps + SLOTS


def test_used_pages_are_counted_once_however_many_hold_them() -> None:
    table = PageTable(20, 3, 8 * PAGE_SIZE)
    assert table.grow(0, 4 * PAGE_SIZE)
    table.share(0, 1, 3 * PAGE_SIZE)
    table.grow(1, 5 * PAGE_SIZE)
    table.grow(2, PAGE_SIZE)
    assert table.num_used_by(np.array([0, 1])) == 6
    assert table.num_used_by(np.array([0, 1]), also_N=table.pages_of(2)) == 7
    assert table.num_used_by(np.array([0]), also_N=table.pages_of(1)[:3]) == 4
    assert table.num_used_by(np.array([], dtype=np.int64)) == 0


@pytest.mark.parametrize(
    ("text", "is_memory"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_libraries_that_find_no_memory_of_their_own_say_so_in_other_words(text: str, is_memory: bool) -> None:
    assert overload.is_out_of_memory(RuntimeError(text)) is is_memory
