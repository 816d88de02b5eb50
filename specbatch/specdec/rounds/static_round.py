"""One round as a fixed sequence of operations on tensors that never move: what a CUDA graph is captured from.

The loop in ``decoding`` chooses shapes anew in every round. Here a round of up to B rows, K drafts each and M tokens in
all has the same shapes whoever the rows are: their tokens lie end to end, as in the loop, and what is left of M, or of
B, is computed like the rest, written to the scratch page, and never looked at. Nothing waits for the device.

A round reads *fields* and writes *next fields*, where the row stands behind it: so the device can begin the following
round before the host has seen this one. Acceptance and commit are the array functions of ``accept`` once more, in
torch; the host's own are the oracle and what the books are kept by.

Shape letters: B rows of the bucket, K drafts, T = K + 1, M tokens, C fields, S slots, W pages of a row, X stop ids,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from specbatch.specdec.kernels.spans import Spans
from specbatch.specdec.sampling.draw import Positions, SamplingTensors, draw_draft, draw_target

NO_STOP = 1 << 30
"""More tokens than a round has."""


class Field(IntEnum):
    """Columns of what the device knows of a row; the drafts stand behind them."""

    SLOT = 0
    LENGTH = 1  # committed tokens, prompt included
    DRAFT_KV = 2  # tokens that the draft's cache has
    PROMPT_LENGTH = 3
    END = 4  # length at which the row has all that it may have
    IS_LIVE = 5
    PREVIOUS = 6  # the last committed token but one
    LAST = 7  # the last committed token
    DRAFT_LENGTH = 8  # drafts that the plan gives it; the rest is where the row stands
    IS_MODEL = 9
    IS_WANTED = 10  # the host has not ended the row
    DRAFTS = 11


FIRST_PLANNED = Field.DRAFT_LENGTH


class PagedDecoder(Protocol):
    """A decoder whose forward is made of device tensors alone."""

    context_length: int

    def forward(
        self, token_M: Tensor, position_M: Tensor, place_M: Tensor, spans: Spans, index_N: Tensor | None
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Flat:
    """Where the tokens of rows lie in M flat ones: row b has ``count_B[b]`` of them from ``first_B[b]`` on."""

    first_B: Tensor
    count_B: Tensor
    row_M: Tensor
    column_M: Tensor
    is_used_M: Tensor

    @staticmethod
    def of(count_B: Tensor, first_B: Tensor, num_tokens: int) -> Flat:
        """Args: first_B ascends; between a row's last token and the next row's first there may be tokens of no row."""
        place_M = torch.arange(num_tokens, device=count_B.device)
        row_M = torch.searchsorted(first_B, place_M, right=True) - 1
        column_M = place_M - first_B[row_M]
        return Flat(first_B, count_B, row_M, column_M, column_M < count_B[row_M])


@dataclass(frozen=True, slots=True)
class StaticRound:
    """The tensors that a round of one bucket reads and writes.

    Attributes:
        field_BC: int64, see ``Field``. next_BC: int64, the same behind the round, drafts left out.
        stop_BX: int64 stop ids, padded with -1. sampling: of the rows, on tensors that stay where they are.
        table_SW: int32 page table. page_size: positions of a page.
        max_keys: no row reads beyond this position; host integer.
        epsilon: near-tie threshold of the target's draws. is_final: none of them is left to the host.
    """

    field_BC: Tensor
    next_BC: Tensor
    stop_BX: Tensor
    sampling: SamplingTensors
    table_SW: Tensor
    page_size: int
    max_keys: int
    epsilon: float
    is_final: bool = False

    def propose(self, draft: PagedDecoder, num_steps: int) -> None:
        """Steps of the draft for the rows that ask for it; the drafts go into the fields.

        The first step always feeds the last two committed tokens: one or both are what the draft's cache lacks, and to
        write the other again is cheaper than to ask.
        """
        fields, length_B = self.field_BC, self.field_BC[:, Field.LENGTH]
        B = len(fields)
        row_B = torch.arange(B, device=fields.device)
        draft_length_B = self.counted_drafts(draft)
        index_B = length_B - fields[:, Field.PROMPT_LENGTH]
        for j in range(num_steps):
            is_fed_B = (draft_length_B > j) & (fields[:, Field.IS_MODEL] > 0)
            if j == 0:
                token_BT, start_B = fields[:, Field.PREVIOUS : Field.LAST + 1], length_B - 2
            else:
                token_BT, start_B = fields[:, Field.DRAFTS + j - 1, None], length_B - 1 + j
            T = token_BT.shape[1]
            flat = Flat.of(is_fed_B * T, row_B * T, B * T)
            logits_BV = self._forward(draft, token_BT, start_B, flat, row_B * T + T - 1)
            token_B = draw_draft(logits_BV, Positions(row_B, index_B + j), self.sampling)
            drafts_B = fields[:, Field.DRAFTS + j]
            drafts_B.copy_(torch.where(is_fed_B, token_B, drafts_B))

    def score(self, target: PagedDecoder, draft: PagedDecoder | None, num_drafts: int, num_tokens: int) -> Tensor:
        """The target's draws behind the last token and the drafts of every row, acceptance, and where rows stand then.

        Args:
            num_tokens: M, at least the tokens of all rows together.

        Returns:
            float64 [B, 2 + K + 4 T], or 5 T with logprobs: drafts that counted, tokens committed, the drafts, then for
            every position the draw, its margin, its certainty, whether it is finite, and its logprob. What stands
            behind a row's own drafts repeats its last position.
        """
        fields, K = self.field_BC, num_drafts
        length_B = fields[:, Field.LENGTH]
        draft_length_B = self.counted_drafts(draft)
        draft_BK = fields[:, Field.DRAFTS : Field.DRAFTS + K]
        token_BT = torch.cat((fields[:, Field.LAST, None], draft_BK), dim=1)
        count_B = (draft_length_B + 1) * self._is_live()
        flat = Flat.of(count_B, count_B.cumsum(0) - count_B, num_tokens)
        logits_MV = self._forward(target, token_BT, length_B - 1, flat, None)
        index_B = length_B - fields[:, Field.PROMPT_LENGTH]
        positions = Positions(flat.row_M, index_B[flat.row_M] + flat.column_M)
        draw = draw_target(logits_MV, positions, self.sampling, self.epsilon, is_final=self.is_final)
        column_T = torch.arange(K + 1, device=fields.device)
        place_BT = flat.first_B.unsqueeze(1) + torch.minimum(column_T, draft_length_B.unsqueeze(1))
        place_BT = place_BT.clamp(max=num_tokens - 1)
        drawn_BT = draw.token_N[place_BT]
        num_committed_B = self._advance(draft_length_B, draft_BK, drawn_BT)
        parts = [draw.margin_N, draw.certainty, draw.is_finite_N]
        parts += [] if draw.logprob_N is None else [draw.logprob_N]
        columns = [draft_length_B.unsqueeze(1), num_committed_B.unsqueeze(1), draft_BK, drawn_BT]
        columns += [part[place_BT] for part in parts]
        return torch.cat([column.to(torch.float64) for column in columns], dim=1)

    def counted_drafts(self, draft: PagedDecoder | None) -> Tensor:
        """Drafts that count: what the plan says, as far as the row and the draft's context have room."""
        fields = self.field_BC
        length_B = fields[:, Field.LENGTH]
        room_B = fields[:, Field.END] - length_B - 1
        if draft is not None:
            has_context_B = (draft.context_length - length_B).clamp(min=0)
            room_B = torch.where(fields[:, Field.IS_MODEL] > 0, torch.minimum(room_B, has_context_B), room_B)
        return torch.minimum(fields[:, Field.DRAFT_LENGTH], room_B).clamp(min=0) * self._is_live()

    def _is_live(self) -> Tensor:
        """int64 [B], 1 for rows that go on."""
        return self.field_BC[:, Field.IS_LIVE] * self.field_BC[:, Field.IS_WANTED]

    def _forward(
        self, decoder: PagedDecoder, token_BT: Tensor, start_B: Tensor, flat: Flat, index_N: Tensor | None
    ) -> Tensor:
        """Logits of rows that begin at ``start_B``; tokens of no row go to the scratch page."""
        table_BW = self.table_SW.index_select(0, self.field_BC[:, Field.SLOT])
        # Rows that are none stand before the beginning, tokens of no row perhaps behind the end of the table.
        position_M = (start_B[flat.row_M] + flat.column_M).clamp(0, table_BW.shape[1] * self.page_size - 1)
        page_M = table_BW[flat.row_M, position_M // self.page_size].to(torch.int64)
        place_M = torch.where(flat.is_used_M, page_M * self.page_size, 0) + position_M % self.page_size
        spans = Spans(
            first_R=flat.first_B.to(torch.int32),
            count_R=flat.count_B.to(torch.int32),
            start_R=start_B.clamp(min=0).to(torch.int32),
            table_RW=table_BW,
            max_count=token_BT.shape[1],
            max_keys=self.max_keys,
        )
        token_M = token_BT[flat.row_M, flat.column_M.clamp(0, token_BT.shape[1] - 1)]
        return decoder.forward(token_M, position_M, place_M, spans, index_N)

    def _advance(self, draft_length_B: Tensor, draft_BK: Tensor, drawn_BT: Tensor) -> Tensor:
        """Accept and commit, up to a stop id or the token limit; returns the number of tokens committed."""
        fields, following = self.field_BC, self.next_BC
        K = draft_BK.shape[1]
        length_B, is_live_B = fields[:, Field.LENGTH], self._is_live() > 0
        is_draft_BK = torch.arange(K, device=fields.device) < draft_length_B.unsqueeze(1)
        num_matched_B = ((draft_BK == drawn_BT[:, :K]) & is_draft_BK).to(torch.int64).cumprod(dim=1).sum(dim=1)
        remaining_B = fields[:, Field.END] - length_B
        is_stop_BT = (drawn_BT.unsqueeze(2) == self.stop_BX.unsqueeze(1)).any(dim=2)
        stop_B = torch.where(is_stop_BT.any(dim=1), is_stop_BT.to(torch.int64).argmax(dim=1) + 1, NO_STOP)
        num_committed_B = torch.minimum(torch.minimum(num_matched_B + 1, remaining_B), stop_B) * is_live_B
        num_accepted_B = torch.minimum(num_matched_B, num_committed_B)
        seen_BX = torch.cat((fields[:, Field.PREVIOUS : Field.LAST + 1], drawn_BT), dim=1)
        following.copy_(fields[:, :FIRST_PLANNED])
        following[:, Field.LENGTH] = length_B + num_committed_B
        following[:, Field.PREVIOUS] = seen_BX.gather(1, num_committed_B.unsqueeze(1)).squeeze(1)
        following[:, Field.LAST] = seen_BX.gather(1, num_committed_B.unsqueeze(1) + 1).squeeze(1)
        has_drafted_B = (fields[:, Field.IS_MODEL] > 0) & (draft_length_B > 0)
        draft_kv_B = length_B + torch.minimum(draft_length_B - 1, num_accepted_B)
        following[:, Field.DRAFT_KV] = torch.where(has_drafted_B, draft_kv_B, fields[:, Field.DRAFT_KV])
        has_ended_B = (num_committed_B == remaining_B) | (num_committed_B == stop_B)
        following[:, Field.IS_LIVE] = (is_live_B & ~has_ended_B).to(torch.int64)
        return num_committed_B
