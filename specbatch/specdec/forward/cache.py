"""Key-value memory in fixed slots, written in place at explicit positions, under unmodified ``transformers`` models.

Every row owns one slot for life. A forward writes its tokens at the positions it is told and reads the slots' prefixes
as views: nothing is moved or copied when rows differ in length, when drafts are refused, or when a slot changes hands.
What lies beyond a row's length is stale, never read (the mask ends before it) and overwritten later. Layers with a
sliding window keep whole rows too: a window is then a matter of the mask alone, and a refused draft never costs a key
that a ring buffer would have dropped for it. ``models.families.kv_bytes_per_token`` counts them in full.

    slot s:  | committed tokens but the last | this round's tokens | stale ...        |
             0                             n-1                  n-1+T          max_positions

Shape letters: S slots, B rows of a forward, T tokens per row, P positions, H key-value heads, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class WritePlan:
    """Where the next forward writes and what it reads; shared by all layers of one cache."""

    def __init__(self) -> None:
        self.first_slot = 0
        self.num_rows = 0
        self.num_keys = 0
        self.flat_index = torch.empty(0, dtype=torch.int64)


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, [S, P, H, D]; memory is taken at the first forward, when H and D are known."""

    is_sliding = False  # also in layers with a window: the library must not shorten what it reads

    def __init__(self, plan: WritePlan, num_slots: int, max_positions: int) -> None:
        super().__init__()
        self._plan = plan
        self._num_slots = num_slots
        self._max_positions = max_positions

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate zeros: stale entries are masked, but 0 * NaN from fresh memory would still poison a product."""
        shape = (self._num_slots, self._max_positions, key_states.shape[1])
        self.keys = torch.zeros(*shape, key_states.shape[3], dtype=key_states.dtype, device=key_states.device)
        self.values = torch.zeros(*shape, value_states.shape[3], dtype=key_states.dtype, device=key_states.device)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write [B, H, T, D] at the planned positions; return views [B, H, P, D] of the planned slots."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _write(self, memory_SPHD: Tensor, states_BHTD: Tensor) -> Tensor:
        plan = self._plan
        memory_SPHD.flatten(0, 1).index_copy_(0, plan.flat_index, states_BHTD.transpose(1, 2).flatten(0, 1))
        rows = memory_SPHD[plan.first_slot : plan.first_slot + plan.num_rows, : plan.num_keys]
        return rows.transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a forward reads, and their offset."""
        return self._plan.num_keys, 0

    def get_seq_length(self) -> int:
        """Rows differ in length; positions are always passed explicitly, so no single length exists."""
        return 0

    def get_max_length(self) -> int:
        """Positions of a slot."""
        return self._max_positions

    def copy(self, source: int, destination: int, num_positions: int) -> None:
        """Copy the first positions of one slot to another."""
        if self.is_initialized:
            self.keys[destination, :num_positions] = self.keys[source, :num_positions]
            self.values[destination, :num_positions] = self.values[source, :num_positions]

    def clear(self, slot: int) -> None:
        """Zero one slot."""
        if self.is_initialized:
            self.keys[slot].zero_()
            self.values[slot].zero_()

    def resize(self, num_slots: int, max_positions: int) -> None:
        """Give the memory another shape, keeping what fits."""
        if self.is_initialized:
            self.keys = _reshaped(self.keys, num_slots, max_positions)
            self.values = _reshaped(self.values, num_slots, max_positions)
        self._num_slots, self._max_positions = num_slots, max_positions

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return self.keys.nbytes + self.values.nbytes if self.is_initialized else 0


class SlotCache(Cache):  # type: ignore[misc]
    """The cache that is handed to a model as ``past_key_values``."""

    def __init__(self, num_layers: int, num_slots: int, max_positions: int) -> None:
        self.plan = WritePlan()
        self.max_positions = max_positions
        super().__init__(layers=[SlotLayer(self.plan, num_slots, max_positions) for _ in range(num_layers)])

    def begin(self, first_slot: int, position_BT: Tensor, num_keys: int) -> None:
        """Plan the next forward: rows go to slots ``first_slot`` .. ``first_slot + B``, at ``position_BT``."""
        num_rows = position_BT.shape[0]
        slot_B1 = torch.arange(first_slot, first_slot + num_rows, device=position_BT.device).unsqueeze(1)
        self.plan.first_slot = first_slot
        self.plan.num_rows = num_rows
        self.plan.num_keys = num_keys
        self.plan.flat_index = (slot_B1 * self.max_positions + position_BT).flatten()

    def copy(self, source: int, destination: int, num_positions: int) -> None:
        """Copy the beginning of a row to another slot, in all layers."""
        for layer in self.layers:
            layer.copy(source, destination, num_positions)

    def clear(self, slot: int) -> None:
        """Zero a slot that may hold NaN: masked keys have weight 0, and 0 * NaN would poison the slot's next row."""
        for layer in self.layers:
            layer.clear(slot)

    def resize(self, num_slots: int, max_positions: int) -> None:
        """Another number of slots and positions; layer by layer, so that little is held twice."""
        self.max_positions = max_positions
        for layer in self.layers:
            layer.resize(num_slots, max_positions)

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values held."""
        return sum(layer.num_bytes for layer in self.layers)


def _reshaped(memory_SPHD: Tensor, num_slots: int, max_positions: int) -> Tensor:
    if memory_SPHD.shape[:2] == (num_slots, max_positions):
        return memory_SPHD
    reshaped = memory_SPHD.new_zeros(num_slots, max_positions, *memory_SPHD.shape[2:])
    slots, positions = min(num_slots, memory_SPHD.shape[0]), min(max_positions, memory_SPHD.shape[1])
    reshaped[:slots, :positions] = memory_SPHD[:slots, :positions]
    return reshaped
