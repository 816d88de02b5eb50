"""Accept and commit: literal cases, then random ones against a loop that does it token by token."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from specbatch.specdec.accept import accept, commit


def one(drafts: list[int], target: list[int], remaining: int = 99, stops: list[int] | None = None) -> tuple[int, ...]:
    """(committed, accepted, proposed, stopped, exhausted) of one row."""
    draft_BK = np.array([drafts], dtype=np.int64).reshape(1, len(drafts))
    length_B, target_BT = np.array([len(drafts)]), np.array([target])
    matched_B = accept(draft_BK, length_B, target_BT)
    done = commit(target_BT, matched_B, length_B, np.array([remaining]), np.array([stops or [-1]]))
    return (
        int(done.num_committed_B[0]),
        int(done.num_accepted_B[0]),
        int(done.num_proposed_B[0]),
        int(done.is_stopped_B[0]),
        int(done.is_exhausted_B[0]),
    )


def test_all_drafts_match_and_the_bonus_follows() -> None:
    assert one([5, 6, 7], [5, 6, 7, 8]) == (4, 3, 3, 0, 0)


def test_the_first_mismatch_is_corrected() -> None:
    assert one([5, 9, 7], [5, 6, 7, 8]) == (2, 1, 3, 0, 0)


def test_a_match_behind_a_mismatch_does_not_count() -> None:
    assert one([9, 6, 7], [5, 6, 7, 8]) == (1, 0, 3, 0, 0)


def test_no_drafts_is_plain_decoding() -> None:
    assert one([], [5]) == (1, 0, 0, 0, 0)


def test_a_stop_among_accepted_drafts_cuts_there() -> None:
    assert one([5, 6, 7], [5, 6, 7, 8], stops=[6]) == (2, 2, 2, 1, 0)


def test_a_stop_as_correction_counts_the_refused_draft() -> None:
    assert one([5, 9, 7], [5, 6, 7, 8], stops=[6]) == (2, 1, 2, 1, 0)


def test_a_stop_as_bonus() -> None:
    assert one([5, 6], [5, 6, 8], stops=[8, 3]) == (3, 2, 2, 1, 0)


def test_a_stop_behind_a_mismatch_is_not_seen() -> None:
    assert one([9, 6], [5, 6, 8], stops=[6]) == (1, 0, 2, 0, 0)


def test_the_last_token_exhausts_and_a_stop_there_is_a_stop() -> None:
    assert one([5], [5, 6], remaining=2) == (2, 1, 1, 0, 1)
    assert one([5], [5, 6], remaining=2, stops=[6]) == (2, 1, 1, 1, 0)
    assert one([], [6], remaining=1, stops=[6]) == (1, 0, 0, 1, 0)


def token_by_token(
    drafts: list[int], target: list[int], remaining: int, stops: set[int]
) -> tuple[int, int, int, int, int]:
    committed = accepted = 0
    for j, token in enumerate(target):
        is_draft = j < len(drafts) and drafts[j] == token
        committed += 1
        accepted += is_draft
        if token in stops:
            return committed, accepted, min(len(drafts), committed), 1, 0
        if committed == remaining:
            return committed, accepted, len(drafts), 0, 1
        if not is_draft:
            break
    return committed, accepted, len(drafts), 0, 0


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_any_round_equals_the_loop(data: st.DataObject) -> None:
    token = st.integers(0, 3)
    target = data.draw(st.lists(token, min_size=1, max_size=6))
    drafts = data.draw(st.lists(token, min_size=len(target) - 1, max_size=len(target) - 1))
    remaining = data.draw(st.integers(len(target), 8))
    stops = data.draw(st.sets(token, max_size=2))
    assert one(drafts, target, remaining, sorted(stops) or None) == token_by_token(drafts, target, remaining, stops)


def test_ragged_draft_lengths_ignore_what_lies_behind() -> None:
    draft_BK = np.array([[5, 6], [5, 6], [5, 6]])
    target_BT = np.array([[5, 6, 7]] * 3)
    assert accept(draft_BK, np.array([0, 1, 2]), target_BT).tolist() == [0, 1, 2]
