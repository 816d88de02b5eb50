"""The suffix index against its slow twin, and what must hold when its memory runs out."""

from __future__ import annotations

import numpy as np
import pytest
from suffix_twin import NaiveIndex

from specbatch.specdec.drafters.suffix import CONTEXT_LENGTH, NGRAM_LENGTHS, SuffixIndex

SMALL_LOG = 1024


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int64)


def say(index: SuffixIndex, slot: int, tokens: list[int]) -> None:
    """Append tokens to one row."""
    index.append(ids(slot), np.array([tokens], dtype=np.int64).reshape(1, -1), ids(len(tokens)))


def drafts_of(index: SuffixIndex, slot: int, max_drafts: int = 8) -> tuple[list[int], int]:
    """Drafts and match of one row."""
    proposal = index.propose(ids(slot), max_drafts)
    assert proposal.token_BK.shape == (1, max_drafts)
    assert not proposal.token_BK[0, proposal.length_B[0] :].any()
    return proposal.token_BK[0, : proposal.length_B[0]].tolist(), int(proposal.match_B[0])


class Both:
    """The index and its twin, driven by the same random calls."""

    def __init__(self, seed: int, vocab: int, index: SuffixIndex, num_slots: int, lengths: tuple[int, ...]) -> None:
        self.random = np.random.default_rng(seed)
        self.vocab, self.index, self.twin = vocab, index, NaiveIndex(lengths)
        self.open_slots: list[int] = []
        self.num_slots = num_slots

    def tokens(self, count: int) -> list[int]:
        # Half of them follow a fixed cycle, so that long matches occur as well as short ones.
        start = int(self.random.integers(self.vocab))
        if self.random.random() < 0.5:
            return [(start + i) % self.vocab for i in range(count)]
        return self.random.integers(self.vocab, size=count).tolist()

    def step(self, max_new_tokens: int) -> None:
        """Rows end, move, begin and speak, as in an engine's round."""
        for slot in list(self.open_slots):
            if self.random.random() < 0.08:
                self.index.close(slot)
                self.open_slots.remove(slot)
        free = [slot for slot in range(self.num_slots) if slot not in self.open_slots]
        if self.open_slots and free and self.open_slots[-1] > free[0] and self.random.random() < 0.5:
            source = self.open_slots.pop()
            self.index.move(source, free[0])
            self.twin.row_of_slot[free[0]] = self.twin.row_of_slot[source]
            self.open_slots.append(free.pop(0))
        for slot in free:
            if self.random.random() < 0.5:
                prompt = self.tokens(int(self.random.integers(0, 12)))
                self.index.open(slot, np.array(prompt, dtype=np.int32), max_new_tokens)
                self.twin.open(slot, prompt)
                self.open_slots.append(slot)
        if not self.open_slots:
            return
        slots = self.random.permutation(self.open_slots)
        T = int(self.random.integers(1, 6))
        token_BT = np.array([self.tokens(T) for _ in slots])
        num_committed_B = self.random.integers(0, T + 1, size=len(slots))
        self.index.append(slots, token_BT, num_committed_B)
        for slot, tokens, count in zip(slots, token_BT, num_committed_B, strict=True):
            self.twin.append(int(slot), tokens[:count].tolist())
        self.open_slots.sort()


@pytest.mark.parametrize("lengths", [NGRAM_LENGTHS, (3,), (2, 5)])
@pytest.mark.parametrize("vocab", [2, 5, 40])
@pytest.mark.parametrize("seed", range(4))
def test_proposals_equal_the_twin(seed: int, vocab: int, lengths: tuple[int, ...]) -> None:
    """The log is large enough that no two n-grams of these texts want the same entry."""
    both = Both(seed, vocab, SuffixIndex(5, max_log_tokens=1 << 22, ngram_lengths=lengths), 5, lengths)
    num_matches = 0
    for _ in range(25):
        both.step(max_new_tokens=200)
        max_drafts = int(both.random.integers(0, 7))
        slots = np.array(both.open_slots, dtype=np.int64)
        proposal = both.index.propose(slots, max_drafts)
        for row, slot in enumerate(both.open_slots):
            drafts, match, is_own = both.twin.propose(slot, max_drafts)
            assert proposal.token_BK[row, : proposal.length_B[row]].tolist() == drafts
            assert (proposal.match_B[row], proposal.is_own_B[row]) == (match, is_own)
            num_matches += match > 0
    assert num_matches > 0


@pytest.mark.parametrize("max_new_tokens", [0, 3, 10**6])
@pytest.mark.parametrize(("vocab", "num_slots", "seed"), [(3, 4, 0), (30, 4, 1), (2000, 12, 2)])
def test_what_a_full_log_proposes_was_really_said(vocab: int, num_slots: int, seed: int, max_new_tokens: int) -> None:
    """Rows outgrow their room, extents are lapped while in use, tables overflow: every proposal is still real."""
    both = Both(seed, vocab, SuffixIndex(num_slots, max_log_tokens=SMALL_LOG), num_slots, NGRAM_LENGTHS)
    num_bytes, num_matches = both.index.num_bytes, 0
    for step in range(250):
        both.step(max_new_tokens)
        if step % 10:
            continue
        proposal = both.index.propose(np.array(both.open_slots, dtype=np.int64), 6)
        assert ((proposal.match_B > 0) == (proposal.length_B > 0)).all()
        for row, slot in enumerate(both.open_slots):
            match, drafts = int(proposal.match_B[row]), proposal.token_BK[row, : proposal.length_B[row]].tolist()
            assert not match or both.twin.explains(slot, drafts, match)
            num_matches += match > 0
    assert num_matches > 0
    assert sum(len(text) for text in both.twin.texts) > SMALL_LOG
    assert both.index.num_bytes == num_bytes


def test_the_same_calls_give_the_same_proposals() -> None:
    first, second = (Both(7, 9, SuffixIndex(6, max_log_tokens=SMALL_LOG), 6, NGRAM_LENGTHS) for _ in range(2))
    for _ in range(60):
        for both in (first, second):
            both.step(max_new_tokens=20)
        slots = np.array(first.open_slots, dtype=np.int64)
        one, other = first.index.propose(slots, 5), second.index.propose(slots, 5)
        assert np.array_equal(one.token_BK, other.token_BK)
        assert np.array_equal(one.match_B, other.match_B)


def test_looking_up_changes_nothing() -> None:
    index = SuffixIndex(1)
    index.open(0, ids(1, 2, 3, 1, 2), 9)
    assert drafts_of(index, 0) == drafts_of(index, 0) == ([3, 1, 2, 3, 1, 2, 3, 1], 2)


def test_the_row_s_own_text_is_preferred_at_equal_length() -> None:
    index = SuffixIndex(2)
    index.open(0, ids(1, 2, 3, 9, 1, 2), 9)
    index.open(1, ids(7, 1, 2, 4), 9)
    assert drafts_of(index, 0, 1) == ([3], 2)
    index.open(1, ids(9, 1, 2, 4), 9)
    assert drafts_of(index, 0, 1) == ([4], 3), "another row's longer match wins"


def test_text_of_rows_that_ended_is_still_found() -> None:
    index = SuffixIndex(1)
    index.open(0, ids(5, 6), 9)
    say(index, 0, [7, 8])
    index.close(0)
    assert drafts_of(index, 0) == ([], 0)
    index.open(0, ids(5, 6), 9)
    assert drafts_of(index, 0) == ([7, 8], 2)


def test_tokens_beyond_the_committed_ones_are_not_remembered() -> None:
    index = SuffixIndex(2)
    index.open(0, ids(1), 9)
    index.append(ids(0), np.array([[2, 3, 4]]), ids(1))
    index.open(1, ids(1), 9)
    assert drafts_of(index, 1) == ([2], 1)
    index.open(1, ids(3), 9)
    assert drafts_of(index, 1) == ([], 0)


def test_no_match_crosses_from_one_text_into_the_next() -> None:
    index = SuffixIndex(3)
    index.open(0, ids(1, 2), 0)
    index.open(1, ids(3, 4), 0)
    index.open(2, ids(1), 9)
    assert drafts_of(index, 2) == ([2], 1)
    index.open(2, ids(2), 9)
    assert drafts_of(index, 2) == ([], 0)


def test_a_row_goes_on_in_another_slot() -> None:
    index = SuffixIndex(3)
    index.open(2, ids(1, 2, 3), 9)
    index.move(2, 0)
    say(index, 0, [1, 2])
    assert drafts_of(index, 0, 4) == ([3, 1, 2, 3], 2)
    assert drafts_of(index, 2) == ([], 0)


def test_lapped_text_is_never_proposed() -> None:
    index = SuffixIndex(2, max_log_tokens=SMALL_LOG)
    index.open(0, np.arange(10_000, 10_040), 100)
    index.open(1, ids(10_003), 9)
    assert drafts_of(index, 1, 2) == ([10_004, 10_005], 1)
    for _ in range(9):
        index.open(1, np.arange(100), 50)
    index.open(1, ids(10_003), 9)
    assert drafts_of(index, 1) == ([], 0)
    say(index, 0, [10_003])
    assert drafts_of(index, 0) == ([], 0), "the row's own text is gone as well"
    say(index, 0, [20_000, 20_001, 10_003])
    assert drafts_of(index, 0, 2) == ([20_000, 20_001], 1), "but it goes on in new room"


def test_a_row_may_say_more_than_expected_and_more_than_the_log_holds() -> None:
    index = SuffixIndex(1, max_log_tokens=SMALL_LOG)
    index.open(0, ids(1, 2, 3), 2)
    for token in range(100, 5100):
        say(index, 0, [token])
    say(index, 0, [5000])
    assert drafts_of(index, 0, 3) == ([5001, 5002, 5003], 1)


def test_a_match_reaches_back_beyond_where_the_row_got_new_room() -> None:
    index = SuffixIndex(1, max_log_tokens=1 << 16)
    index.open(0, ids(1, 2, 3), 2)
    for token in range(100, 1100, 5):
        say(index, 0, list(range(token, token + 5)))
    for token in range(100, 1050, 7):
        say(index, 0, list(range(token, token + CONTEXT_LENGTH)))
        drafts, match = drafts_of(index, 0, 3)
        assert match == CONTEXT_LENGTH
        assert drafts[0] == token + CONTEXT_LENGTH


@pytest.mark.parametrize("num_tokens", [SMALL_LOG // 2, SMALL_LOG - 1, SMALL_LOG, 5 * SMALL_LOG])
def test_of_a_prompt_too_long_for_the_log_the_end_is_kept(num_tokens: int) -> None:
    index = SuffixIndex(2, max_log_tokens=SMALL_LOG)
    index.open(0, np.arange(num_tokens), 10**9)
    index.open(1, ids(num_tokens - 3), 0)
    assert drafts_of(index, 1, 8) == ([num_tokens - 2, num_tokens - 1], 1), "nothing follows the end"
    say(index, 0, [num_tokens, num_tokens - 100])
    assert drafts_of(index, 0, 2) == ([num_tokens - 99, num_tokens - 98], 1)


def test_a_row_that_lost_its_room_does_not_take_another_s_end_for_its_own() -> None:
    index = SuffixIndex(2, max_log_tokens=SMALL_LOG)
    index.open(0, ids(1, 2, 3, 4, 5), 0)
    for num_tokens in (339, 339, 339, 0):
        index.open(1, np.full(num_tokens, 9), 0)
    index.open(1, ids(5, 7), 0)
    assert drafts_of(index, 0) == ([7], 1)


def test_an_n_gram_is_found_whole_or_not_at_all() -> None:
    """Most entries of these tables belong to another n-gram of the same hash."""
    index = SuffixIndex(4, max_log_tokens=SMALL_LOG, ngram_lengths=(8,))
    both = Both(3, 4, index, 4, (8,))
    matches = set()
    for _ in range(300):
        both.step(max_new_tokens=200)
        matches |= set(index.propose(np.array(both.open_slots, dtype=np.int64), 3).match_B.tolist())
    assert {0, 8} <= matches
    assert not matches & set(range(1, 8))


def test_rounds_that_want_more_room_than_there_is() -> None:
    """Thousands of rows in a log of a thousand tokens: extents of one call lap each other."""
    num_slots = 3000
    index, twin = SuffixIndex(num_slots, max_log_tokens=SMALL_LOG), NaiveIndex(NGRAM_LENGTHS)
    slots = np.arange(num_slots)
    for slot in slots.tolist():
        index.open(slot, ids(slot, slot + 1), 4)
        twin.open(slot, [slot, slot + 1])
    for step in range(3):
        token_BT = np.stack((slots + step, slots, slots + 1), axis=1)
        index.append(slots, token_BT, np.full(num_slots, 3))
        for slot, tokens in enumerate(token_BT.tolist()):
            twin.append(slot, tokens)
    proposal = index.propose(slots, 4)
    found = np.flatnonzero(proposal.length_B)
    assert 0 < len(found) < SMALL_LOG
    for slot in found[::5].tolist():
        drafts = proposal.token_BK[slot, : proposal.length_B[slot]].tolist()
        assert twin.explains(slot, drafts, int(proposal.match_B[slot]))


def test_slots_beyond_those_expected() -> None:
    index = SuffixIndex(1)
    index.open(0, ids(1, 2, 3), 9)
    index.open(6, ids(2), 9)
    assert drafts_of(index, 6) == ([3], 1)
    say(index, 0, [1])
    assert drafts_of(index, 0, 2) == ([2, 3], 1)
    assert drafts_of(index, 5) == ([], 0)


def test_a_long_prompt_is_found_everywhere() -> None:
    index = SuffixIndex(2)
    index.open(0, np.arange(10_000), 9)
    for token in range(9900, 1, -97):
        index.open(1, ids(token - 1, token), 9)
        drafts, match = drafts_of(index, 1, 1)
        assert (drafts, match) == ([token + 1], 2)


def test_matches_are_told_apart_up_to_a_bound() -> None:
    index = SuffixIndex(2)
    text = np.arange(50)
    index.open(0, text, 0)
    index.open(1, text[:30], 9)
    assert drafts_of(index, 1, 3) == ([30, 31, 32], CONTEXT_LENGTH)
    index.open(1, text[11:30], 9)
    assert drafts_of(index, 1, 3) == ([30, 31, 32], 19)


def test_edges() -> None:
    index = SuffixIndex(2)
    index.open(0, ids(), 0)
    assert drafts_of(index, 0) == ([], 0)
    say(index, 0, [4, 4])
    assert drafts_of(index, 0, 3) == ([4, 4, 4], 1)
    assert index.propose(ids(0, 1), 0).token_BK.shape == (2, 0)
    assert index.propose(ids(), 3).token_BK.shape == (0, 3)
    index.append(ids(), np.zeros((0, 2), dtype=np.int64), ids())


def test_memory_is_as_documented() -> None:
    assert SuffixIndex(8).num_bytes < 25 * 2**20
    assert SuffixIndex(8, max_log_tokens=(1 << 20) - 1).num_bytes < 13 * 2**20


@pytest.mark.parametrize("lengths", [(), (0, 2), (CONTEXT_LENGTH + 1,)])
def test_lengths_that_make_no_sense(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ngram_lengths"):
        SuffixIndex(1, ngram_lengths=lengths)


def test_a_log_too_small_to_be_of_use() -> None:
    with pytest.raises(ValueError, match="max_log_tokens"):
        SuffixIndex(1, max_log_tokens=SMALL_LOG - 1)
