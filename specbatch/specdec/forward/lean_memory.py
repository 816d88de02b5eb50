"""Keys and values of the lean path in fixed slots, written in place and read where they lie.

Shape letters: S slots, P positions, H key-value heads, D head width, M tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LeanMemory:
    """One pair of tensors [S, P, H, D] per layer.

    Zeros, because a masked key has weight 0 and 0 * NaN from fresh memory would still poison the sum.
    """

    def __init__(
        self,
        num_layers: int,
        num_slots: int,
        max_positions: int,
        heads: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.max_positions = max_positions
        shape = (num_slots, max_positions, *heads)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]

    def write(self, layer: int, flat_M: Tensor, key_MHD: Tensor, value_MHD: Tensor) -> None:
        """Write tokens at flat places (slot * P + position)."""
        self.keys[layer].flatten(0, 1).index_copy_(0, flat_M, key_MHD)
        self.values[layer].flatten(0, 1).index_copy_(0, flat_M, value_MHD)

    def read(self, layer: int, first_slot: int, num_rows: int, num_keys: int) -> tuple[Tensor, Tensor]:
        """Views [B, H, P, D] of the first keys and values of consecutive slots."""
        rows = slice(first_slot, first_slot + num_rows)
        keys, values = self.keys[layer][rows, :num_keys], self.values[layer][rows, :num_keys]
        return keys.transpose(1, 2), values.transpose(1, 2)

    def copy(self, source: int, destination: int, num_positions: int) -> None:
        """Copy the first positions of one slot to another."""
        for memory in (*self.keys, *self.values):
            memory[destination, :num_positions] = memory[source, :num_positions]

    def clear(self, slot: int) -> None:
        """Zero a slot that may hold NaN."""
        for memory in (*self.keys, *self.values):
            memory[slot].zero_()

    def resize(self, num_slots: int, max_positions: int) -> None:
        """Give the memory another shape, keeping what fits; layer by layer, so that little is held twice."""
        for memories in (self.keys, self.values):
            for layer, old in enumerate(memories):
                if old.shape[:2] == (num_slots, max_positions):
                    continue
                new = old.new_zeros(num_slots, max_positions, *old.shape[2:])
                slots, positions = min(num_slots, old.shape[0]), min(max_positions, old.shape[1])
                new[:slots, :positions] = old[:slots, :positions]
                memories[layer] = new
        self.max_positions = max_positions

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return sum(memory.nbytes for memory in (*self.keys, *self.values))
