"""Drafts without a model: what followed the row's last tokens when they occurred before.

The text of every row, prompt and committed tokens, is written to one ring log. For each of a few lengths n, a hash
table maps the n tokens in front of a position to that position; the latest occurrence wins. A lookup hashes the row's
last n tokens, reads the position, and compares the log there with the row's own last tokens; only an occurrence that is
really there is used. Tables are never cleaned and need no chains: an entry that was overwritten, that points into text
since overwritten, or that belongs to another n-gram of the same hash costs a proposal, never a wrong one. Only the next
token behind an n-gram makes an entry, so a row never finds the end of its own text.

Each length has two tables: one over all text, and one whose hashes are salted with the row, so that the latest
occurrence in the row itself is found however much the other rows have said since. The longest match wins, the row's own
text among equals. Where a continuation runs into the end of the row itself, it goes on with the drafts just proposed,
as in LZ77 (Ziv and Lempel 1977), so that a loop of two tokens fills any number of drafts.

Log. Rows write to extents of the ring that they alone own: the prompt and room for some tokens, then, if the row
outgrows it, another extent that begins with a copy of its last tokens. Empty places hold -1 and every extent ends with
one, so no match and no continuation crosses from one text into another. The ring hands out ever-growing addresses;
places are those modulo its size. An extent that the ring has lapped is lost to its row, which takes another.

Measured (``benchmarks/bench_suffix.py``, results beside it; code, greedy and at temperature 0.7), which is where the
constants come from. Of the sets of lengths tried, 1, 2, 4 and 8 is the best up to noise; without 1 a round commits 7
to 8 % fewer tokens. The salted tables save 2 to 4 % of the time at 8 rows in flight and up to 7 % at 64; going round
loops saves 2 to 4 % on greedy text, which loops, and nothing where tokens are sampled. What a match is worth depends on
its length and, for short ones, as much on whose text it is: the row's own gives about three times as many accepted
drafts. So a policy has to look at ``match_B``, and gains if it looks at ``is_own_B`` too.

Prompt lookup is due to Saxena ("Prompt lookup decoding", 2023), an index over earlier outputs to SuffixDecoding
(Oliaro et al., arXiv 2411.04975), which keeps trees where this keeps hashes, because a tree is Python work per token.

Shape letters: B rows, S slots, T tokens offered for commit, N committed tokens of all rows together, K drafts,
W context tokens compared, X = W + 1, G n-gram lengths, H longest of them, C = 2 G tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specbatch.specdec.accept import BoolArray, IntArray
from specbatch.specdec.drafters.hashing import UintArray, multipliers, scramble

# By measurement, see above.
NGRAM_LENGTHS = (1, 2, 4, 8)
# Longest match that is told from longer ones. What a match is worth has long stopped growing there.
CONTEXT_LENGTH = 20
# Tokens that a row is given room for at a time: few enough to waste little on rows that stop early.
_EXTENT_TOKENS = 256
# A row's own table serves the rows in flight only, so it needs fewer entries than the one over all text.
_OWN_SHARE = 4
# Tokens of a prompt that are hashed at a time, which bounds the memory that it takes to read a long one.
_BLOCK_TOKENS = 4096
_MIN_LOG_TOKENS = 1024
_NO_TEXT = -1
# Unequal to every token and to what an empty place of the log holds, so that it never matches.
_BEFORE_TEXT = -2


@dataclass(frozen=True, slots=True)
class Proposal:
    """Drafts for some rows.

    Attributes:
        token_BK: int64 [B, K]; 0 beyond a row's length.
        length_B: drafts of each row, int64, 0 to K.
        match_B: tokens of the row's context that the occurrence shares, int64, at most ``CONTEXT_LENGTH``; 0 for none.
        is_own_B: the row's own table gave the occurrence; such drafts are accepted more often.
    """

    token_BK: IntArray
    length_B: IntArray
    match_B: IntArray
    is_own_B: BoolArray


class SuffixIndex:
    """Index over all texts that were opened and appended, as far back as its memory reaches.

    Args:
        num_slots: rows expected to be open at once; slots beyond them are made room for when they are opened.
        max_log_tokens: tokens remembered, rounded down to a power of two. Memory is 4 bytes for each, and 5 for each
            and every n-gram length: 24 MiB by default.
        ngram_lengths: lengths of context that are looked up, each at least 1.

    Raises:
        ValueError: there is no n-gram length between 1 and ``CONTEXT_LENGTH``, or the log is too small to be of use.
    """

    def __init__(
        self, num_slots: int, *, max_log_tokens: int = 1 << 20, ngram_lengths: Sequence[int] = NGRAM_LENGTHS
    ) -> None:
        lengths = sorted(set(ngram_lengths), reverse=True)
        if not lengths or lengths[-1] < 1 or lengths[0] > CONTEXT_LENGTH:
            raise ValueError(f"ngram_lengths: {tuple(ngram_lengths)} are not lengths from 1 to {CONTEXT_LENGTH}")
        if max_log_tokens < _MIN_LOG_TOKENS:
            raise ValueError(f"max_log_tokens: {max_log_tokens} is less than {_MIN_LOG_TOKENS}")
        log_bits = max_log_tokens.bit_length() - 1
        own_bits = log_bits - (_OWN_SHARE.bit_length() - 1)
        G = len(lengths)
        self._mask = (1 << log_bits) - 1
        self._log = np.full(1 << log_bits, _NO_TEXT, dtype=np.int32)
        self._head = 0
        # The rows' own tables come first, and the longest n in each half: where matches tie, the first is taken.
        # ``full`` and not ``zeros``: memory that the system maps at first touch would slow the first rounds.
        self._table = np.full(G * ((1 << own_bits) + (1 << log_bits)), 0, dtype=np.int32)
        bits_C = np.repeat([own_bits, log_bits], G)
        self._shift_C = (64 - bits_C).astype(np.uint64)
        self._base_C = np.concatenate(([0], np.cumsum(1 << bits_C)[:-1]))
        self._n_C = np.array(lengths * 2)
        self._multiplier_HG = multipliers(lengths)
        self._ngram_H = np.arange(lengths[0]) - lengths[0]
        self._back_X = -np.arange(CONTEXT_LENGTH + 1)
        self._num_opened = 0
        self._salt_S: UintArray = np.zeros(num_slots, dtype=np.uint64)
        self._length_S: IntArray = np.zeros(num_slots, dtype=np.int64)
        self._tail_SW = np.full((num_slots, CONTEXT_LENGTH), _BEFORE_TEXT, dtype=np.int64)
        # Addresses of the row's next token and of the end of its extent.
        self._next_S: IntArray = np.zeros(num_slots, dtype=np.int64)
        self._limit_S: IntArray = np.zeros(num_slots, dtype=np.int64)

    @property
    def num_bytes(self) -> int:
        """Memory of all arrays. It does not depend on how much text there is, and little on how many slots."""
        rows = (self._salt_S, self._length_S, self._tail_SW, self._next_S, self._limit_S)
        return self._log.nbytes + self._table.nbytes + sum(array.nbytes for array in rows)

    def open(self, slot: int, prompt_ids: NDArray[np.integer], max_new_tokens: int) -> None:
        """Begin a row. Of a prompt longer than half the log only the end is kept.

        Args:
            prompt_ids: the row's tokens so far, integers [tokens]; none is fine.
            max_new_tokens: how many may still come; a bound to how much room the row takes, not to how much it says.
        """
        if slot >= len(self._salt_S):
            self._grow(slot + 1)
        token_P = np.asarray(prompt_ids, dtype=np.int64)[-(len(self._log) // 2) :]
        P = len(token_P)
        self._num_opened += 1
        self._salt_S[slot] = scramble(self._num_opened)
        self._length_S[slot] = P
        before = np.full(CONTEXT_LENGTH, _BEFORE_TEXT, dtype=np.int64)
        text = np.concatenate((before, token_P))
        self._tail_SW[slot] = text[P:]
        start = self._allocate(P + min(max_new_tokens, self._extent_tokens))
        self._next_S[slot], self._limit_S[slot] = start + P, self._head - 1
        place_P = (start + np.arange(P)) & self._mask
        self._log[place_P] = token_P
        for begin in range(0, P, _BLOCK_TOKENS):
            index_N = np.arange(begin, min(begin + _BLOCK_TOKENS, P))
            last_NH = text[(CONTEXT_LENGTH + index_N)[:, None] + self._ngram_H]
            self._insert(last_NH, np.full(len(index_N), self._salt_S[slot]), place_P[index_N], index_N)

    def append(self, slots_B: IntArray, token_BT: IntArray, num_committed_B: IntArray) -> None:
        """Add tokens to rows.

        Args:
            slots_B: different open slots. token_BT: their tokens, committed ones first.
            num_committed_B: how many of them count, 0 to T.
        """
        B, T = token_BT.shape
        next_B = self._next_S[slots_B]
        is_full_B = (next_B + num_committed_B > self._limit_S[slots_B]) | (next_B < self._floor)
        if is_full_B.any():
            for slot in slots_B[is_full_B]:
                self._extend(int(slot), T)
            next_B = self._next_S[slots_B]
        # If extents of this very call have lapped each other, the lost ones are not written to.
        num_written_B = np.where(next_B < self._floor, 0, num_committed_B)
        row_N, index_N = np.nonzero(np.arange(T) < num_written_B[:, None])
        text_BW = np.concatenate((self._tail_SW[slots_B], token_BT), axis=1)
        place_N = (next_B[row_N] + index_N) & self._mask
        self._log[place_N] = token_BT[row_N, index_N]
        last_NH = text_BW[row_N[:, None], (CONTEXT_LENGTH + index_N)[:, None] + self._ngram_H]
        slot_N = slots_B[row_N]
        self._insert(last_NH, self._salt_S[slot_N], place_N, self._length_S[slot_N] + index_N)
        self._next_S[slots_B] = next_B + num_written_B
        self._length_S[slots_B] += num_committed_B
        self._tail_SW[slots_B] = text_BW[np.arange(B)[:, None], num_committed_B[:, None] + np.arange(CONTEXT_LENGTH)]

    def propose(self, slots_B: IntArray, max_drafts: int) -> Proposal:
        """Continuations of the best earlier occurrence of each row's last tokens."""
        B, K, W = len(slots_B), max_drafts, CONTEXT_LENGTH
        tail_BW = self._tail_SW[slots_B]
        cell_BC = self._cells(tail_BW[:, self._ngram_H], self._salt_S[slots_B])
        place_BC = self._table[cell_BC].astype(np.int64)
        near_BCX = self._log[(place_BC[:, :, None] + self._back_X) & self._mask]
        is_same_BCW = near_BCX[:, :, 1:] == tail_BW[:, None, ::-1]
        match_BC = np.where(is_same_BCW.all(axis=2), W, is_same_BCW.argmin(axis=2))
        match_BC *= (match_BC >= self._n_C) & (near_BCX[:, :, 0] != _NO_TEXT)
        rows_B = np.arange(B)
        best_B = match_BC.argmax(axis=1)
        match_B = match_BC[rows_B, best_B]
        place_B = place_BC[rows_B, best_B]
        position_K = np.arange(K)
        token_BK = self._log[(place_B[:, None] + position_K) & self._mask].astype(np.int64)
        is_text_BK = np.logical_and.accumulate(token_BK != _NO_TEXT, axis=1)
        length_B = is_text_BK.sum(axis=1) * (match_B > 0)
        # The row's own end in sight: go round from there.
        next_B = self._next_S[slots_B]
        is_loop_B = (((place_B + length_B - next_B) & self._mask) == 0) & (length_B > 0) & (next_B >= self._floor)
        period_B = np.where(is_loop_B, length_B, max(K, 1))
        token_BK = token_BK[rows_B[:, None], position_K % period_B[:, None]]
        length_B = np.where(is_loop_B, K, length_B)
        return Proposal(
            token_BK=token_BK * (position_K < length_B[:, None]),
            length_B=length_B,
            match_B=match_B,
            is_own_B=(best_B < len(self._n_C) // 2) & (match_B > 0),
        )

    def move(self, source: int, destination: int) -> None:
        """Move a row to a closed slot; the slot it leaves is closed."""
        for array in (self._salt_S, self._length_S, self._tail_SW, self._next_S, self._limit_S):
            array[destination] = array[source]
        self.close(source)

    def close(self, slot: int) -> None:
        """End a row; its text stays in the index until the ring comes round."""
        self._length_S[slot] = 0
        self._tail_SW[slot] = _BEFORE_TEXT
        self._next_S[slot] = self._limit_S[slot] = -1

    def _grow(self, num_slots: int) -> None:
        """Make room for more slots; a new one is closed."""
        extra = max(num_slots, 2 * len(self._salt_S)) - len(self._salt_S)
        self._salt_S = np.pad(self._salt_S, (0, extra))
        self._length_S, self._next_S, self._limit_S = (
            np.pad(array, (0, extra)) for array in (self._length_S, self._next_S, self._limit_S)
        )
        self._tail_SW = np.pad(self._tail_SW, ((0, extra), (0, 0)), constant_values=_BEFORE_TEXT)

    # ---- the log ---------------------------------------------------------------------------------------------------

    @property
    def _floor(self) -> int:
        """Addresses below it have been handed out again."""
        return self._head - len(self._log)

    @property
    def _extent_tokens(self) -> int:
        return min(_EXTENT_TOKENS, len(self._log) // 8)

    def _allocate(self, num_tokens: int) -> int:
        """Hand out an empty extent and its end mark; returns the address of its beginning."""
        start, self._head = self._head, self._head + num_tokens + 1
        begin, num_places = start & self._mask, num_tokens + 1
        self._log[begin : begin + num_places] = _NO_TEXT
        self._log[: max(begin + num_places - len(self._log), 0)] = _NO_TEXT
        return start

    def _extend(self, slot: int, num_tokens: int) -> None:
        """Another extent for a row, which begins with the last tokens of its text. Once in many rounds for a row."""
        token_W = self._tail_SW[slot]
        token_W = token_W[token_W != _BEFORE_TEXT]
        start = self._allocate(len(token_W) + max(num_tokens, self._extent_tokens))
        self._log[(start + np.arange(len(token_W))) & self._mask] = token_W
        self._next_S[slot], self._limit_S[slot] = start + len(token_W), self._head - 1

    # ---- the tables ------------------------------------------------------------------------------------------------

    def _cells(self, last_NH: IntArray, salt_N: UintArray) -> IntArray:
        """Index [N, C] into the tables for the n-grams at the end of each context."""
        hash_NG = last_NH.astype(np.uint64) @ self._multiplier_HG
        hash_NC = np.concatenate((hash_NG + salt_N[:, None], hash_NG), axis=1)
        cell_NC: IntArray = (hash_NC >> self._shift_C).astype(np.int64) + self._base_C
        return cell_NC

    def _insert(self, last_NH: IntArray, salt_N: UintArray, place_N: IntArray, length_N: IntArray) -> None:
        """Remember that these contexts are followed by the tokens at these places.

        Where two fall into one cell the later one stays: assignment goes by the order of the index.

        Args:
            last_NH: tokens in front of each place. length_N: how many of them, or more, are text.
        """
        cell_NC = self._cells(last_NH, salt_N)
        is_whole_NC = length_N[:, None] >= self._n_C
        place_NC = np.broadcast_to(place_N[:, None], cell_NC.shape)
        self._table[cell_NC[is_whole_NC]] = place_NC[is_whole_NC]
