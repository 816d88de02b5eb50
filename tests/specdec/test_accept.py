"""Accept and commit: literal cases, every terminator at every offset, then random rounds and rows against a loop."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from specbatch.specdec import accept as module
from specbatch.specdec.accept import NO_CUT, Commit, accept, commit


@dataclass(frozen=True)
class Round:
    """One row's round: its drafts, what the target says at each position, and what ends the row."""

    drafts: tuple[int, ...]
    target: tuple[int, ...]
    num_remaining: int = 99
    stops: tuple[int, ...] = ()
    cut: int = NO_CUT


@dataclass(frozen=True)
class Result:
    """Fields of ``Commit`` for one row."""

    num_committed: int
    num_accepted: int
    num_proposed: int
    is_stopped: bool = False
    is_cut: bool = False
    is_exhausted: bool = False


def token_by_token(r: Round) -> Result:
    """The naive loop: say the target's tokens one at a time, as long as the drafts have foreseen them."""
    num_committed = num_accepted = 0
    for j, token in enumerate(r.target):
        is_draft = j < len(r.drafts) and r.drafts[j] == token
        num_committed += 1
        num_accepted += is_draft
        num_seen = min(len(r.drafts), num_committed)
        if token in r.stops:
            return Result(num_committed, num_accepted, num_seen, is_stopped=True)
        if num_committed == r.cut:
            return Result(num_committed, num_accepted, num_seen, is_cut=True)
        if num_committed == r.num_remaining:
            return Result(num_committed, num_accepted, num_seen, is_exhausted=True)
        if not is_draft:
            break
    return Result(num_committed, num_accepted, len(r.drafts))


def in_one_batch(rounds: Sequence[Round], functions: Any = module, *, with_cut: bool = True) -> list[Result]:
    """All rows in one padded batch; the padding repeats what would do most harm if it were looked at."""
    B, K = len(rounds), max(len(r.drafts) for r in rounds)
    S = max(len(r.stops) for r in rounds)
    draft_BK, target_BT = np.zeros((B, K), dtype=np.int64), np.zeros((B, K + 1), dtype=np.int64)
    stop_BS = np.full((B, S), -1, dtype=np.int64)
    for b, r in enumerate(rounds):
        tempting = r.stops[0] if r.stops else r.target[-1]
        draft_BK[b] = [*r.drafts, *[tempting] * (K - len(r.drafts))]
        target_BT[b] = [*r.target, *[tempting] * (K + 1 - len(r.target))]
        # A row without drafts behind its last position would be accepted there if its length were not heeded.
        draft_BK[b, len(r.drafts) : len(r.target)] = target_BT[b, len(r.drafts) : min(len(r.target), K)]
        stop_BS[b, : len(r.stops)] = r.stops
    length_B = np.array([len(r.drafts) for r in rounds])
    matched_B = functions.accept(draft_BK, length_B, target_BT)
    cut_B = np.array([r.cut for r in rounds]) if with_cut else None
    remaining_B = np.array([r.num_remaining for r in rounds])
    done = functions.commit(target_BT, matched_B, length_B, remaining_B, stop_BS, cut_B)
    return [result_of(done, b) for b in range(B)]


def result_of(done: Commit, row: int) -> Result:
    result = Result(*(getattr(done, f"{field.name}_B")[row].item() for field in fields(Result)))
    assert done.has_ended_B[row] == (result.is_stopped or result.is_cut or result.is_exhausted)
    return result


def every_offset(max_drafts: int) -> list[Round]:
    """Every K, every number of matches, with stop id, stop string and token limit at every offset and at none."""
    rounds = []
    for K in range(max_drafts + 1):
        target = tuple(range(10, 11 + K))
        offsets = (*range(K + 1), None)
        for num_matched, stop, cut, end in product(range(K + 1), offsets, offsets, offsets):
            drafts = tuple(token if j != num_matched else 7 for j, token in enumerate(target[:K]))
            stops = () if stop is None else (3, target[stop])
            rounds.append(
                Round(drafts, target, 99 if end is None else end + 1, stops, NO_CUT if cut is None else cut + 1)
            )
    return rounds


def one(drafts: list[int], target: list[int], remaining: int = 99, stops: Sequence[int] = (), cut: int = NO_CUT) -> Any:
    return in_one_batch([Round(tuple(drafts), tuple(target), remaining, tuple(stops), cut)])[0]


def test_all_drafts_match_and_the_bonus_follows() -> None:
    assert one([5, 6, 7], [5, 6, 7, 8]) == Result(4, 3, 3)


def test_the_first_mismatch_is_corrected() -> None:
    assert one([5, 9, 7], [5, 6, 7, 8]) == Result(2, 1, 3)


def test_a_match_behind_a_mismatch_does_not_count() -> None:
    assert one([9, 6, 7], [5, 6, 7, 8]) == Result(1, 0, 3)


def test_no_drafts_is_plain_decoding() -> None:
    assert one([], [5]) == Result(1, 0, 0)


def test_a_stop_among_accepted_drafts_cuts_there() -> None:
    assert one([5, 6, 7], [5, 6, 7, 8], stops=[6]) == Result(2, 2, 2, is_stopped=True)


def test_a_stop_as_correction_counts_the_refused_draft() -> None:
    assert one([5, 9, 7], [5, 6, 7, 8], stops=[6]) == Result(2, 1, 2, is_stopped=True)


def test_a_stop_as_bonus() -> None:
    assert one([5, 6], [5, 6, 8], stops=[8, 3]) == Result(3, 2, 2, is_stopped=True)


def test_a_stop_behind_a_mismatch_is_not_seen() -> None:
    assert one([9, 6], [5, 6, 8], stops=[6]) == Result(1, 0, 2)
    assert one([9, 6], [5, 6, 8], cut=2) == Result(1, 0, 2)


def test_the_last_token_exhausts_and_a_stop_there_is_a_stop() -> None:
    assert one([5], [5, 6], remaining=2) == Result(2, 1, 1, is_exhausted=True)
    assert one([5], [5, 6], remaining=2, stops=[6]) == Result(2, 1, 1, is_stopped=True)
    assert one([5], [5, 6], remaining=2, cut=2) == Result(2, 1, 1, is_cut=True)
    assert one([], [6], remaining=1, stops=[6]) == Result(1, 0, 0, is_stopped=True)


def test_a_stop_string_cuts_at_its_token_and_a_stop_id_there_goes_first() -> None:
    assert one([5, 6, 7], [5, 6, 7, 8], cut=2) == Result(2, 2, 2, is_cut=True)
    assert one([5, 6, 7], [5, 6, 7, 8], cut=2, stops=[6]) == Result(2, 2, 2, is_stopped=True)
    assert one([5, 6, 7], [5, 6, 7, 8], cut=2, stops=[7]) == Result(2, 2, 2, is_cut=True)
    assert one([5, 6, 7], [5, 6, 7, 8], cut=3, stops=[6]) == Result(2, 2, 2, is_stopped=True)


def test_drafts_behind_the_token_limit_do_not_count() -> None:
    assert one([5, 6, 7], [5, 6, 7, 8], remaining=2) == Result(2, 2, 2, is_exhausted=True)


def test_every_terminator_at_every_offset_in_one_ragged_batch() -> None:
    rounds = every_offset(5)
    assert in_one_batch(rounds) == [token_by_token(r) for r in rounds]
    uncut = [r for r in rounds if r.cut == NO_CUT]
    assert in_one_batch(uncut, with_cut=False) == [token_by_token(r) for r in uncut]


@st.composite
def any_round(draw: st.DrawFn) -> Round:
    token = st.integers(0, 3)
    target = draw(st.lists(token, min_size=1, max_size=8))
    drafts = [t if draw(st.booleans()) else draw(token) for t in target[:-1]]
    return Round(
        tuple(drafts),
        tuple(target),
        draw(st.integers(1, 10)),
        tuple(draw(st.sets(token, max_size=2))),
        draw(st.integers(1, 10) | st.just(NO_CUT)),
    )


@given(st.lists(any_round(), min_size=1, max_size=6))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_ragged_batch_equals_the_loop_row_by_row(rounds: list[Round]) -> None:
    assert in_one_batch(rounds) == [token_by_token(r) for r in rounds]


@given(st.lists(any_round(), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_cutting_in_a_second_call_only_shortens_the_first(rounds: list[Round]) -> None:
    """The engine asks for stop strings in what the first call commits, so the second must not reach beyond that."""
    for first, second in zip(in_one_batch(rounds, with_cut=False), in_one_batch(rounds), strict=True):
        assert 1 <= second.num_committed <= first.num_committed
        assert second.is_cut or second == first


@given(st.data())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_row_said_in_any_rounds_is_the_same_row_and_its_books_balance(data: st.DataObject) -> None:
    """The target's tokens are given; drafts, K and luck differ from round to round."""
    num_new_tokens = data.draw(st.integers(1, 24))
    text = data.draw(st.lists(st.integers(10, 40), min_size=num_new_tokens + 8, max_size=num_new_tokens + 8))
    stops = tuple(data.draw(st.sets(st.integers(10, 40), max_size=2)))
    string_end = data.draw(st.integers(1, 30) | st.just(NO_CUT))
    generator = random.Random(data.draw(st.integers(0, 2**32)))
    said: list[int] = []
    num_plain = num_spec = num_draft = num_accepted = 0
    is_last_a_draft = False
    while True:
        num_left = num_new_tokens - len(said)
        K = min(generator.choice((0, 0, 1, 2, 5)), num_left - 1)
        foreseen = text[len(said) : len(said) + K + 1]
        drafts = tuple(token if generator.random() < 0.8 else 5 for token in foreseen[:K])
        num_matched = next((j for j in range(K) if drafts[j] != foreseen[j]), K)
        # Behind a refused draft the target answers to another prefix: anything may stand there, a stop id too.
        beyond = [generator.choice((*stops, 5, 11)) for _ in range(K - num_matched)]
        target = (*foreseen[: num_matched + 1], *beyond)
        cut = NO_CUT if string_end == NO_CUT or string_end <= len(said) else string_end - len(said)
        done = in_one_batch([Round(drafts, target, num_left, stops, cut)])[0]
        said += target[: done.num_committed]
        num_plain, num_spec = num_plain + (K == 0), num_spec + (K > 0)
        num_draft, num_accepted = num_draft + done.num_proposed, num_accepted + done.num_accepted
        is_last_a_draft = done.num_accepted == done.num_committed
        if done.is_stopped or done.is_cut or done.is_exhausted:
            break
    ends = [n for n, token in enumerate(text, start=1) if token in stops]
    assert said == text[: min([*ends, string_end, num_new_tokens])]
    assert done.is_stopped == (said[-1] in stops)
    assert done.is_cut == (len(said) == string_end and said[-1] not in stops)
    assert len(said) == num_plain + num_spec + num_accepted - is_last_a_draft
    assert num_accepted <= num_draft


def test_a_draft_that_is_the_target_is_accepted_whole() -> None:
    generator = random.Random(2)
    for K in range(9):
        target = tuple(generator.randrange(50) for _ in range(K + 1))
        assert one(list(target[:K]), list(target)) == Result(K + 1, K, K)


def test_ragged_draft_lengths_ignore_what_lies_behind() -> None:
    draft_BK = np.array([[5, 6], [5, 6], [5, 6]])
    target_BT = np.array([[5, 6, 7]] * 3)
    assert accept(draft_BK, np.array([0, 1, 2]), target_BT).tolist() == [0, 1, 2]


def test_a_batch_without_rows_or_stop_ids_is_no_special_case() -> None:
    none = np.zeros(0, dtype=np.int64)
    matched_B = accept(np.zeros((0, 3), dtype=np.int64), none, np.zeros((0, 4), dtype=np.int64))
    done = commit(np.zeros((0, 4), dtype=np.int64), matched_B, none, none, np.zeros((0, 0), dtype=np.int64))
    assert done.num_committed_B.shape == done.has_ended_B.shape == (0,)
