"""Beginnings that rows share: what is found, what becomes of it, and how much of the host's table is read for it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny import VOCAB, engine
from twin import Rows, full_twin, tokens

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.rounds import prefill
from specbatch.specdec.rows import batch as batch_module
from specbatch.specdec.rows.prefix import MIN_SHARED_TOKENS, common_prefix

IntArray = NDArray[np.int64]
WIDE = 8192
"""Positions of a slot, far more than the rows have: as where the context is long."""


def common_prefix_twin(row: list[int], known: int, prompt: list[int]) -> int:
    count = 0
    while count < min(known, len(prompt), len(row)) and row[count] == prompt[count]:
        count += 1
    return count


@given(st.data())
def test_common_beginnings_are_those_that_are_found_token_by_token(data: st.DataObject) -> None:
    """Rows of the prompt itself with one token changed somewhere, or none, known up to anywhere."""
    width = data.draw(st.integers(1, 150))
    prompt = data.draw(st.lists(st.integers(0, 1), min_size=0, max_size=160))
    rows = []
    for _ in range(data.draw(st.integers(1, 5))):
        row = [*prompt, *[0] * width][:width]
        if data.draw(st.booleans()):
            row[data.draw(st.integers(0, width - 1))] = 2
        rows.append(row)
    known = data.draw(st.lists(st.integers(0, width), min_size=len(rows), max_size=len(rows)))
    expected = [common_prefix_twin(row, k, prompt) for row, k in zip(rows, known, strict=True)]
    tables = np.array(rows), np.array(known), np.array(prompt, dtype=np.int64)
    assert common_prefix(*tables).tolist() == expected
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), unique=True))
    assert common_prefix(*tables, np.array(chosen, dtype=np.int64)).tolist() == [expected[slot] for slot in chosen]


class Counted(np.ndarray):  # type: ignore[type-arg]
    """An array that notes the bytes of every copy that is taken of it; views cost nothing."""

    copies: list[int]

    def __array_finalize__(self, source: Any) -> None:
        self.copies = getattr(source, "copies", [])

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if isinstance(found, Counted) and not np.may_share_memory(found, self):
            self.copies.append(found.nbytes)
        return np.asarray(found)


def watched(subject: Any) -> list[int]:
    """Copies taken of a slot table from now on."""
    slots = subject._batch.slots
    slots.token_SP = slots.token_SP.view(Counted)
    copies: list[int] = slots.token_SP.copies
    return copies


def test_planning_looks_at_no_more_rows_than_a_chunk_takes(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 rows are pending and 2 of them fit; nothing is copied that is as wide as the table."""
    monkeypatch.setattr(prefill, "CHUNK_TOKENS", 50)
    planned: list[int] = []
    plan_sharing = prefill.plan_sharing

    def noted(slot: int, *args: Any) -> Any:
        planned.append(slot)
        return plan_sharing(slot, *args)

    monkeypatch.setattr(prefill, "plan_sharing", noted)
    subject = engine(target, batch=64, path="lean")
    subject._batch.resize(64, WIDE)
    generator = random.Random(3)
    for number in range(64):
        prompt = [generator.randrange(VOCAB) for _ in range(30)]
        subject.submit(number, prompt, SamplingParams(max_new_tokens=2))
    subject._stepper._admit()
    copies = watched(subject)
    chunk = prefill.plan_chunk(subject._batch)
    assert chunk is not None
    assert chunk.count_B.tolist() == [30, 20]
    assert planned == [0, 1]
    assert 0 < sum(copies) <= 2 * 2 * 64 * 30 * 8


def test_a_request_looks_once_for_the_slot_that_begins_like_it(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("lean", "paged"):
        subject = engine(target, batch=16, path=path)
        subject.generate([[n, 1, 2] for n in range(16)], SamplingParams(max_new_tokens=1))
        calls: list[int] = []

        def counted(*args: Any, calls: list[int] = calls) -> Any:
            calls.append(len(args[3]))
            return common_prefix(*args)

        monkeypatch.setattr(batch_module, "common_prefix", counted)
        for n in (7, 3, 11):
            subject.submit(n, [n, 1, 2, 5], SamplingParams(max_new_tokens=1))
        with torch.inference_mode():
            subject._stepper._admit()
        assert len(calls) <= 2 * 3, "once to choose a slot, once to open it"
        assert max(calls) == 16
        slots = subject._batch.slots
        assert slots.target_kv_S[slots.rows(begun=False)].tolist() == [3, 3, 3]


@pytest.mark.parametrize("path", ["lean", "ahead"])
def test_rows_behind_a_full_chunk_share_when_their_turn_comes(
    target: Any, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Three headers in turn, many rows, chunks that take a few of them: headers are read once, but for their ends."""
    monkeypatch.setattr(prefill, "CHUNK_TOKENS", 24)
    generator = random.Random(9)
    headers = [[generator.randrange(VOCAB) for _ in range(40)] for _ in range(3)]
    rows: Rows = [([*headers[n % 3], n, n + 1], SamplingParams(max_new_tokens=8, seed=n)) for n in range(18)]
    subject = engine(target, batch=18, path=path)
    num_read = 0
    follow = prefill.follow_chunk

    def counted(batch: Any, chunk: Any) -> None:
        nonlocal num_read
        num_read += chunk.num_tokens
        follow(batch, chunk)

    monkeypatch.setattr(prefill, "follow_chunk", counted)
    monkeypatch.setattr("specbatch.specdec.rounds.decoding.follow_chunk", counted)
    outputs = subject.generate([ids for ids, _ in rows], [params for _, params in rows])
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, rows, path="lean")]
    assert 0 <= num_read - (3 * 40 + 2 * len(rows)) < MIN_SHARED_TOKENS


@pytest.mark.parametrize("k", [0, 3])
def test_penalties_copy_histories_and_not_the_table(target: Any, draft: Any, k: int) -> None:
    subject = engine(target, draft if k else None, k=k, batch=3, path="lean")
    subject._batch.resize(3, WIDE)
    copies = watched(subject)
    rows: Rows = [([n, 5, 9], SamplingParams(max_new_tokens=12, repetition_penalty=1.4)) for n in range(3)]
    outputs = subject.generate([ids for ids, _ in rows], [params for _, params in rows])
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, rows, path="lean")]
    assert 0 < max(copies) <= 3 * 15 * 8
