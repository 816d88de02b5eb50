"""The static tensors of captured rounds, and what crosses between them and the host.

Shape letters: B rows, K drafts, C fields, X stop ids, S slots.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from specbatch.specdec.accept import BoolArray, IntArray
from specbatch.specdec.drafters.suffix import Proposal
from specbatch.specdec.forward.feed import on_device
from specbatch.specdec.policy.controller import RoundPlan
from specbatch.specdec.rounds.static_round import FIRST_PLANNED, Field
from specbatch.specdec.rows.slots import SlotTable
from specbatch.specdec.sampling.static import StaticSampling
from specbatch.specdec.sampling.tensors import SamplingTensors

MAX_STOP_IDS = 16
"""Rows with more stop ids than this are decoded by the uncaptured loop."""


def planned_fields(plan: RoundPlan, looked_up: Proposal | None, is_wanted_B: BoolArray, num_rows: int) -> IntArray:
    """int64 [num_rows, C] with what the host has decided for a round; where the rows stand is left at 0."""
    B, K = len(is_wanted_B), int(plan.draft_length_B.max(initial=0))
    field_BC: IntArray = np.zeros((num_rows, Field.DRAFTS + K), dtype=np.int64)
    field_BC[:B, Field.DRAFT_LENGTH] = plan.draft_length_B
    field_BC[:B, Field.IS_MODEL] = plan.is_model_B
    field_BC[:B, Field.IS_WANTED] = is_wanted_B
    if looked_up is not None:
        field_BC[:B, Field.DRAFTS :] = looked_up.token_BK[:, :K]
    return field_BC


def standing_fields(slots: SlotTable, row_B: IntArray, field_BC: IntArray) -> tuple[IntArray, IntArray]:
    """The same with where the rows stand, and their stop ids [num_rows, X], padded with -1."""
    B, length_B = len(row_B), slots.length_S[row_B]
    field_BC[:B, Field.SLOT] = row_B
    field_BC[:B, Field.LENGTH] = length_B
    field_BC[:B, Field.DRAFT_KV] = slots.draft_kv_S[row_B]
    field_BC[:B, Field.PROMPT_LENGTH] = slots.prompt_length_S[row_B]
    field_BC[:B, Field.END] = slots.end_S[row_B]
    field_BC[:B, Field.IS_LIVE] = 1
    field_BC[:B, Field.PREVIOUS] = slots.token_SP[row_B, length_B - 2]
    field_BC[:B, Field.LAST] = slots.token_SP[row_B, length_B - 1]
    stop_BX: IntArray = np.full((len(field_BC), MAX_STOP_IDS), -1, dtype=np.int64)
    stop_BX[:B, : slots.stop_SX.shape[1]] = slots.stop_SX[row_B]
    return field_BC, stop_BX


class RoundTensors:
    """Tensors that stay where they are until there are more rows than ever before.

    Attributes:
        field_BC, next_BC, stop_BX: see ``static_round.StaticRound``.
    """

    field_BC: Tensor
    next_BC: Tensor
    stop_BX: Tensor

    def __init__(self, num_rows: int, max_draft_length: int, device: torch.device) -> None:
        self._num_rows = 0
        self._num_fields = Field.DRAFTS + max_draft_length
        self._device = device
        self._sampling: StaticSampling | None = None
        self.reserve(num_rows)

    def reserve(self, num_rows: int) -> bool:
        """Tensors for so many rows; True where they are new ones."""
        if num_rows <= self._num_rows:
            return False
        self._num_rows = num_rows
        self.field_BC = torch.zeros((num_rows, self._num_fields), dtype=torch.int64, device=self._device)
        self.next_BC = torch.zeros((num_rows, FIRST_PLANNED), dtype=torch.int64, device=self._device)
        self.stop_BX = torch.full((num_rows, MAX_STOP_IDS), -1, dtype=torch.int64, device=self._device)
        self._sampling = None
        return True

    def begin(self, field_BC: IntArray, stop_BX: IntArray) -> None:
        """Bring a round to the device, in one copy."""
        num_rows, width = field_BC.shape
        sent = self._send(np.concatenate((field_BC, stop_BX), axis=1))
        self.field_BC[:num_rows, :width] = sent[:, :width]
        self.stop_BX[:num_rows] = sent[:, width:]

    def begin_none(self, num_rows: int) -> None:
        """A round in which no row stands."""
        self.field_BC[:num_rows] = 0

    def go_on(self, field_BC: IntArray) -> None:
        """Rows stand where the round before has left them; only the plan crosses."""
        num_rows, width = field_BC.shape
        self.field_BC[:num_rows, :FIRST_PLANNED] = self.next_BC[:num_rows]
        self.field_BC[:num_rows, FIRST_PLANNED:width] = self._send(field_BC[:, FIRST_PLANNED:])

    def load(self, sampling: SamplingTensors, num_rows: int) -> SamplingTensors:
        """The sampling of some rows on static tensors, for ``num_rows`` rows."""
        self._sampling = self._sampling or StaticSampling(self._num_rows, sampling)
        return self._sampling.load(sampling, num_rows)

    def bring(self, result: Tensor) -> Tensor:
        """Begin the copy of the draws to the host; the next run of the graph writes them anew."""
        if result.device.type != "cuda":
            return result
        host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        return host.copy_(result, non_blocking=True)

    def _send(self, array: IntArray) -> Tensor:
        return on_device(array, self._device)
