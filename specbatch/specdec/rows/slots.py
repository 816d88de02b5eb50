"""The rows in flight: one slot each, their state in host arrays.

State rule. A row with n committed tokens (prompt included) has at most n - 1 of them in the target's cache once it
decodes, and d <= n - 1 in the draft's. A row is *pending* until the target has read its prompt and said its first
token; then it *decodes*. Every round feeds the draft whatever it lacks, and the target the last committed token and the
drafts. What a closed slot held stays readable, so that a later row with the same beginning need not compute it again.

Shape letters: S slots, B rows of a round, P positions, K drafts, T = K + 1, X stop ids, H histogram entries.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specbatch.schemas.sampling import SamplingParams
from specbatch.schemas.stats import SpecCounters
from specbatch.specdec.accept import BoolArray, Commit, IntArray
from specbatch.specdec.rows.stops import StopMatcher

_COUNTED = (
    "margin_S",
    "near_ties_S",
    "plain_steps_S",
    "accepted_SH",
    "proposed_SH",
    "reached_SK",
    "agreed_SK",
)
"""What a row has been through: it survives preemption."""

_PLACED = (
    "token_SP",
    "logprob_SP",
    "length_S",
    "prompt_length_S",
    "target_kv_S",
    "draft_kv_S",
    "end_S",
    "is_begun_S",
    "stop_SX",
    *_COUNTED,
)
"""Everything that moves with a row."""


@dataclass(frozen=True, slots=True)
class RowState:
    """A row that was preempted: what it has said and been through. Its caches are computed again."""

    token_ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    counted: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """A sequence that waits for a slot. ``num_new_tokens`` is already clamped to the context."""

    key: Hashable
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    stop_ids: tuple[int, ...]
    num_new_tokens: int
    matcher: StopMatcher | None = None
    state: RowState | None = None

    @property
    def num_tokens(self) -> int:
        """Positions that the row may come to need."""
        return len(self.prompt_ids) + self.num_new_tokens

    @property
    def num_known_tokens(self) -> int:
        """Tokens that the row has already: its prompt and, after preemption, what it has said."""
        return len(self.prompt_ids) + (0 if self.state is None else len(self.state.token_ids))


class SlotTable:
    """Host arrays of all slots.

    Attributes:
        num_active: the highest slot with a row, plus 1; slots below it may be closed, and ``num_rows`` counts the rows.
        requests: row of each slot, None where there is none. opened: when it came, as a version.
        token_SP: committed ids, prompt first; beyond a row's length they are stale. logprob_SP goes with them.
        length_S: committed tokens, prompt included. end_S: length at which the row has all that it may have.
        target_kv_S, draft_kv_S: tokens in the caches, also of closed slots.
        is_begun_S: the row has said its first token since it was opened.
        reached_SK, agreed_SK: how often the draft model's proposal at position j was judged, and how often it was
            right.
        version: counts changes of who stands where.
    """

    def __init__(self, num_slots: int, max_positions: int, max_draft_length: int) -> None:
        self.num_slots = num_slots
        self.num_active = 0
        self.version = 0
        self.requests: list[Request | None] = [None] * num_slots
        self.opened = [0] * num_slots
        self.token_SP = np.zeros((num_slots, max_positions), dtype=np.int64)
        self.logprob_SP = np.zeros((num_slots, max_positions), dtype=np.float32)
        self.stop_SX = np.full((num_slots, 1), -1, dtype=np.int64)
        self.margin_S = np.full(num_slots, np.inf)
        self.is_begun_S = np.zeros(num_slots, dtype=np.bool_)
        (
            self.length_S,
            self.prompt_length_S,
            self.target_kv_S,
            self.draft_kv_S,
            self.end_S,
            self.near_ties_S,
            self.plain_steps_S,
        ) = np.zeros((7, num_slots), dtype=np.int64)
        self.accepted_SH, self.proposed_SH = np.zeros((2, num_slots, max_draft_length + 1), dtype=np.int64)
        self.reached_SK, self.agreed_SK = np.zeros((2, num_slots, max_draft_length), dtype=np.int64)

    @property
    def max_positions(self) -> int:
        """Positions of a slot."""
        return self.token_SP.shape[1]

    def resize(self, num_slots: int, max_positions: int) -> None:
        """Another number of slots and positions; no row may stand in a slot that goes."""
        assert self.num_active <= num_slots
        for name in _PLACED:
            old = getattr(self, name)
            width = old.shape[1:] if name not in ("token_SP", "logprob_SP") else (max_positions,)
            # Zeros take no memory before they are written, and rows are seldom as long as the longest.
            new = np.zeros((num_slots, *width), dtype=old.dtype)
            if name == "stop_SX":
                new[:] = -1
            common = tuple(slice(min(a, b)) for a, b in zip(old.shape, new.shape, strict=True))
            new[common] = old[common]
            setattr(self, name, new)
        self.requests = (self.requests + [None] * num_slots)[:num_slots]
        self.opened = (self.opened + [0] * num_slots)[:num_slots]
        self.num_slots = num_slots
        self.version += 1

    def open(self, slot: int, request: Request) -> None:
        """Put a request into a slot. What the caches hold of it is for the caller to say."""
        prompt_length = len(request.prompt_ids)
        self.requests[slot] = request
        self.token_SP[slot, :prompt_length] = request.prompt_ids
        self.length_S[slot] = self.prompt_length_S[slot] = prompt_length
        self.end_S[slot] = prompt_length + request.num_new_tokens
        self.is_begun_S[slot] = False
        for name in _COUNTED:
            getattr(self, name)[slot] = np.inf if name == "margin_S" else 0
        if request.state is not None:
            self._restore(slot, request.state)
        if len(request.stop_ids) > self.stop_SX.shape[1]:
            extra = len(request.stop_ids) - self.stop_SX.shape[1]
            self.stop_SX = np.pad(self.stop_SX, ((0, 0), (0, extra)), constant_values=-1)
        self.stop_SX[slot] = -1
        self.stop_SX[slot, : len(request.stop_ids)] = request.stop_ids
        self.num_active = max(self.num_active, slot + 1)
        self.version += 1
        self.opened[slot] = self.version

    def close(self, slot: int) -> None:
        """Forget the row of a slot, not what the caches hold."""
        self.requests[slot] = None
        self.is_begun_S[slot] = False
        while self.num_active and self.requests[self.num_active - 1] is None:
            self.num_active -= 1
        self.version += 1

    def state(self, slot: int) -> RowState:
        """What a row takes along when it must make room."""
        said = slice(int(self.prompt_length_S[slot]), int(self.length_S[slot]))
        counted = tuple(np.copy(getattr(self, name)[slot]) for name in _COUNTED)
        return RowState(self.token_SP[slot, said].copy(), self.logprob_SP[slot, said].copy(), counted)

    def move(self, source: int, destination: int) -> None:
        """Move a row to a closed slot."""
        for name in _PLACED:
            array = getattr(self, name)
            array[destination] = array[source]
        self.requests[destination], self.opened[destination] = self.requests[source], self.opened[source]
        self.close(source)

    def closed_slots(self) -> list[int]:
        """Slots below ``num_active`` without a row."""
        return [slot for slot in range(self.num_active) if self.requests[slot] is None]

    def free_slots(self) -> list[int]:
        """All slots without a row, lowest first."""
        return [slot for slot in range(self.num_slots) if self.requests[slot] is None]

    @property
    def num_rows(self) -> int:
        """Rows in flight."""
        return self.num_active - len(self.closed_slots())

    def rows(self, *, begun: bool) -> IntArray:
        """Slots of the rows that decode, or of those that are pending."""
        found = [s for s in range(self.num_active) if self.requests[s] is not None and self.is_begun_S[s] == begun]
        return np.array(found, dtype=np.int64)

    def request(self, slot: int) -> Request:
        """The row of a slot that has one."""
        request = self.requests[slot]
        assert request is not None
        return request

    def history(self, row_B: IntArray) -> IntArray:
        """Committed tokens of some rows, as wide as the longest of them; beyond a row's length they mean nothing."""
        return self.token_SP[row_B, : self.length_S[row_B].max()]

    def append(
        self, row_B: IntArray, target_BT: IntArray, logprob_BT: NDArray[np.float32] | None, done: Commit
    ) -> None:
        """Commit tokens; all T are written, those beyond the new length are stale."""
        place_BT = self.length_S[row_B, None] + np.arange(target_BT.shape[1])
        self.token_SP[row_B[:, None], place_BT] = target_BT
        if logprob_BT is not None:
            self.logprob_SP[row_B[:, None], place_BT] = logprob_BT
        self.length_S[row_B] += done.num_committed_B
        self.is_begun_S[row_B] = True

    def count(self, row_B: IntArray, draft_length_B: IntArray, done: Commit) -> None:
        """Acceptance bookkeeping of one round."""
        is_spec_B: BoolArray = draft_length_B > 0
        self.plain_steps_S[row_B[~is_spec_B]] += 1
        spec_rows = row_B[is_spec_B]
        self.accepted_SH[spec_rows, done.num_accepted_B[is_spec_B]] += 1
        self.proposed_SH[spec_rows, done.num_proposed_B[is_spec_B]] += 1

    def judge_model(self, row_B: IntArray, proposed_B: IntArray, matched_B: IntArray) -> None:
        """How the draft model did in some rows, by position."""
        position_K = np.arange(self.reached_SK.shape[1])
        self.reached_SK[row_B] += (matched_B[:, None] >= position_K) & (proposed_B[:, None] > position_K)
        self.agreed_SK[row_B] += matched_B[:, None] > position_K

    def counters(self, slot: int) -> SpecCounters:
        """Bookkeeping of one row; every number follows from the two histograms."""
        accepted_H, proposed_H = self.accepted_SH[slot], self.proposed_SH[slot]
        entries = np.arange(len(accepted_H))
        return SpecCounters(
            num_spec_steps=int(accepted_H.sum()),
            num_plain_steps=int(self.plain_steps_S[slot]),
            num_draft_tokens=int((entries * proposed_H).sum()),
            num_accepted_draft_tokens=int((entries * accepted_H).sum()),
            acceptance_histogram=_trim(accepted_H),
            draft_length_histogram=_trim(proposed_H),
        )

    def _restore(self, slot: int, state: RowState) -> None:
        begin, end = int(self.length_S[slot]), int(self.length_S[slot]) + len(state.token_ids)
        self.token_SP[slot, begin:end] = state.token_ids
        self.logprob_SP[slot, begin:end] = state.logprobs
        self.length_S[slot] = end
        for name, value in zip(_COUNTED, state.counted, strict=True):
            getattr(self, name)[slot] = value


def _trim(histogram_H: IntArray) -> tuple[int, ...]:
    """Without zeros at the end."""
    used = np.nonzero(histogram_H)[0]
    return tuple(int(count) for count in histogram_H[: used[-1] + 1]) if len(used) else ()
