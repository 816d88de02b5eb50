"""Rotary positions: cosine and sine of every token of a forward.

Shape letters: M tokens of the forward, D head width, P positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_POSITIONS_AT_A_TIME = 8192
"""While a table is made: what goes before it is float32, and several times as large."""


class Rotary:
    """Cosine and sine from the module's own code, the sine's first half negated, as the rotation takes it.

    With ``has_table`` all positions are computed once, when the model is loaded, and a forward takes rows: the module
    takes a dozen small launches, in every step of a draft too. Each position is computed by itself on a device, so a
    row has the bits that the module would give it. On a CPU a library may round a number by where it stands, and
    launches cost nothing: there the module computes them anew each time.

    A table is only for frequencies that do not depend on the length of a row: those of all kinds that the lean path
    takes (``models.families.model_path``).

    Args:
        module: of ``transformers``. like: a tensor of the type and device that the results should have.
        num_positions: positions that the model knows; what stands beyond is rotated like the last of them.
    """

    def __init__(self, module: Any, like: Tensor, num_positions: int, *, has_table: bool) -> None:
        self._module = module
        self._last = num_positions - 1
        self._table: tuple[Tensor, Tensor] | None = None
        if has_table:
            starts = range(0, num_positions, _POSITIONS_AT_A_TIME)
            parts = [
                self._computed(
                    like, torch.arange(start, min(start + _POSITIONS_AT_A_TIME, num_positions), device=like.device)
                )
                for start in starts
            ]
            self._table = torch.cat([cos for cos, _ in parts]), torch.cat([sin for _, sin in parts])

    @property
    def num_bytes(self) -> int:
        """Bytes of the table."""
        return 0 if self._table is None else sum(table.nbytes for table in self._table)

    def __call__(self, x_ME: Tensor, position_M: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [M, 1, D] in the type of the states."""
        position_M = position_M.clamp(max=self._last)
        if self._table is None:
            return self._computed(x_ME, position_M)
        cos_P1D, sin_P1D = self._table
        return cos_P1D.index_select(0, position_M), sin_P1D.index_select(0, position_M)

    @torch.inference_mode()
    def _computed(self, x_ME: Tensor, position_M: Tensor) -> tuple[Tensor, Tensor]:
        cos_1MD, sin_1MD = self._module(x_ME, position_M.unsqueeze(0))
        half = cos_1MD.shape[-1] // 2
        sin_MD = torch.cat((-sin_1MD[0, :, :half], sin_1MD[0, :, half:]), dim=-1)
        return cos_1MD[0].unsqueeze(1), sin_MD.unsqueeze(1)
