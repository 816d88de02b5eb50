"""The rows in flight: one slot each, their state in arrays, packed into slots 0 .. num_active - 1.

State rule. A row with n committed tokens (prompt included) has n - 1 of them in the target's cache and d <= n - 1 in
the draft's. The next round feeds the draft whatever it lacks, and the target the last committed token and the drafts.

Shape letters: S slots, B active rows, P positions, K drafts, T = K + 1, X stop ids, H histogram entries.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specbatch.schemas.sampling import SamplingParams
from specbatch.schemas.stats import SpecCounters
from specbatch.specdec.accept import BoolArray, Commit, IntArray
from specbatch.specdec.sampling import SamplingTensors


@dataclass(frozen=True, slots=True)
class Request:
    """A sequence that waits for a slot. ``num_new_tokens`` is already clamped to the context."""

    key: Hashable
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    stop_ids: tuple[int, ...]
    num_new_tokens: int


class SlotTable:
    """Host arrays of all slots, and the token ids on the device as well.

    Attributes:
        token_SP: committed ids, prompt first; what lies beyond a row's length is stale.
        length_S: committed tokens, prompt included. draft_kv_S: tokens in the draft's cache.
        end_S: length at which the row has all the tokens it may have.
    """

    def __init__(self, num_slots: int, max_positions: int, max_draft_length: int, device: torch.device) -> None:
        self.num_slots = num_slots
        self.num_active = 0
        self.device = device
        self.requests: list[Request | None] = [None] * num_slots
        self.token_SP = np.zeros((num_slots, max_positions), dtype=np.int64)
        self.length_S = np.zeros(num_slots, dtype=np.int64)
        self.prompt_length_S = np.zeros(num_slots, dtype=np.int64)
        self.draft_kv_S = np.zeros(num_slots, dtype=np.int64)
        self.end_S = np.zeros(num_slots, dtype=np.int64)
        self.stop_SX = np.full((num_slots, 1), -1, dtype=np.int64)
        self.margin_S = np.full(num_slots, np.inf)
        self.near_ties_S = np.zeros(num_slots, dtype=np.int64)
        self.plain_steps_S = np.zeros(num_slots, dtype=np.int64)
        self.accepted_SH = np.zeros((num_slots, max_draft_length + 1), dtype=np.int64)
        self.proposed_SH = np.zeros((num_slots, max_draft_length + 1), dtype=np.int64)
        self._sampling: SamplingTensors | None = None

    @property
    def max_positions(self) -> int:
        """Positions of a slot."""
        return self.token_SP.shape[1]

    def grow(self, max_positions: int) -> None:
        """Lengthen every slot."""
        wider = np.zeros((self.num_slots, max_positions), dtype=np.int64)
        wider[:, : self.max_positions] = self.token_SP
        self.token_SP = wider

    def open(self, slot: int, request: Request) -> None:
        """Put a request into a slot; nothing is committed yet but its prompt."""
        prompt_length = len(request.prompt_ids)
        self.requests[slot] = request
        self.token_SP[slot, :prompt_length] = request.prompt_ids
        self.length_S[slot] = self.prompt_length_S[slot] = prompt_length
        self.end_S[slot] = prompt_length + request.num_new_tokens
        self.draft_kv_S[slot] = 0
        self.margin_S[slot] = np.inf
        self.near_ties_S[slot] = self.plain_steps_S[slot] = 0
        self.accepted_SH[slot] = self.proposed_SH[slot] = 0
        if len(request.stop_ids) > self.stop_SX.shape[1]:
            extra = len(request.stop_ids) - self.stop_SX.shape[1]
            self.stop_SX = np.pad(self.stop_SX, ((0, 0), (0, extra)), constant_values=-1)
        self.stop_SX[slot] = -1
        self.stop_SX[slot, : len(request.stop_ids)] = request.stop_ids
        self._sampling = None

    def close(self, slot: int) -> None:
        """Forget the row of a slot."""
        self.requests[slot] = None
        self._sampling = None

    def move(self, source: int, destination: int) -> None:
        """Move a row to a closed slot."""
        for array in (
            self.token_SP,
            self.length_S,
            self.prompt_length_S,
            self.draft_kv_S,
            self.end_S,
            self.stop_SX,
            self.margin_S,
            self.near_ties_S,
            self.plain_steps_S,
            self.accepted_SH,
            self.proposed_SH,
        ):
            array[destination] = array[source]
        self.requests[destination], self.requests[source] = self.requests[source], None
        self._sampling = None

    def closed_slots(self) -> list[int]:
        """Slots among the first ``num_active`` whose row has ended."""
        return [slot for slot in range(self.num_active) if self.requests[slot] is None]

    def sampling(self) -> SamplingTensors:
        """Sampling parameters of the active rows."""
        if self._sampling is None:
            rows = self.requests[: self.num_active]
            self._sampling = SamplingTensors.from_params([row.params for row in rows if row is not None], self.device)
        return self._sampling

    def tensor(self, array: IntArray) -> Tensor:
        """An int64 host array on the device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def append(self, target_BT: IntArray, commit: Commit) -> None:
        """Commit tokens to the active rows; all T are written, those beyond the new length are stale."""
        B, T = target_BT.shape
        rows_B1 = np.arange(B)[:, None]
        self.token_SP[rows_B1, self.length_S[:B, None] + np.arange(T)] = target_BT
        self.length_S[:B] += commit.num_committed_B

    def count(self, draft_length_B: IntArray, commit: Commit) -> None:
        """Acceptance bookkeeping of one round."""
        B = len(draft_length_B)
        is_spec_B: BoolArray = draft_length_B > 0
        self.plain_steps_S[:B] += ~is_spec_B
        spec_rows = np.nonzero(is_spec_B)[0]
        self.accepted_SH[spec_rows, commit.num_accepted_B[spec_rows]] += 1
        self.proposed_SH[spec_rows, commit.num_proposed_B[spec_rows]] += 1

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


def _trim(histogram_H: IntArray) -> tuple[int, ...]:
    """Without zeros at the end."""
    used = np.nonzero(histogram_H)[0]
    return tuple(int(count) for count in histogram_H[: used[-1] + 1]) if len(used) else ()
