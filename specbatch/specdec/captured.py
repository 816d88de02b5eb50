"""Rounds whose shapes are fixed, launched as captured graphs: the host says what is wanted and later takes the draws.

A round is two launches, the draft's steps and the target's scoring with acceptance, between which the device notes the
time. One small copy brings the draws to the host. What a round needs of the host crosses in one copy too: where the
rows stand, and their plan. A round that follows another on the same rows needs only the plan: the device knows where
they stand before the host does.

Whatever does not fit (penalties, biases, prompts in the same forward, models of the generic path) is decoded by the
loop in ``decoding``, which is also the oracle: the tokens are the same.

Shape letters: B rows, K drafts, T = K + 1, C fields, X stop ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbatch.specdec.accept import BoolArray, IntArray
from specbatch.specdec.batch import Batch
from specbatch.specdec.controller import RoundPlan
from specbatch.specdec.drafters.suffix import Proposal
from specbatch.specdec.feed import Decoder
from specbatch.specdec.generic_paged import PagedGenericDecoder
from specbatch.specdec.graphs import GraphBook
from specbatch.specdec.lean_paged import PagedLeanDecoder
from specbatch.specdec.paged_memory import Pages
from specbatch.specdec.sampling_tensors import SamplingTensors
from specbatch.specdec.settling import Draws, Proposals, is_open
from specbatch.specdec.static_round import FIRST_PLANNED, Field, StaticRound
from specbatch.specdec.static_sampling import StaticSampling, kind_of

MAX_STOP_IDS = 16
"""Rows with more stop ids than this are decoded by the uncaptured loop."""
_LEAST_KEYS = 512
_STEADY_LACK = 2


def bucket_of(num_rows: int) -> int:
    """Rows of the smallest bucket that holds so many: powers of two, and three quarters of them from 16 on."""
    power = 1 << max(num_rows - 1, 0).bit_length()
    return power * 3 // 4 if power >= 16 and num_rows <= power * 3 // 4 else power


@dataclass(frozen=True, slots=True)
class Flight:
    """A round that was launched.

    Attributes:
        row_B, opened_B: its slots, and when the rows in them came, which tells a row from a later one in its slot.
        plan: what was asked for. sampling: of the rows. host: where the draws will be.
        events: begin, between the models, end, and copied; None off a device.
    """

    row_B: IntArray
    opened_B: IntArray
    plan: RoundPlan
    num_drafts: int
    sampling: SamplingTensors
    host: Tensor
    events: tuple[Any, ...] | None


@dataclass(frozen=True, slots=True)
class Landed:
    """What a round brought: its drafts and draws, and device seconds of the two models (None off a device)."""

    proposals: Proposals
    draws: Draws
    num_committed_B: IntArray
    propose_seconds: float | None
    score_seconds: float | None


class CapturedRounds:
    """The static tensors and graphs of one engine.

    Args:
        max_rows: rows in flight. is_capturing: False runs the same rounds uncaptured.
    """

    def __init__(self, batch: Batch, max_rows: int, *, is_capturing: bool = True) -> None:
        assert batch.pages is not None
        self._batch = batch
        self._pages: Pages = batch.pages
        self._book = GraphBook(batch.device, is_capturing=is_capturing)
        self._max_rows = 0
        self._addresses: tuple[int, ...] = ()
        self._sampling: StaticSampling | None = None
        self._reserve(max_rows)

    @staticmethod
    def fits(batch: Batch) -> bool:
        """Whether both models can be decoded in this way."""
        return not batch.has_ratio_test and all(map(_can_be_captured, batch.decoders))

    def can_launch(self, row_B: IntArray, plan: RoundPlan) -> bool:
        """Whether a round of these rows has a fixed shape."""
        slots = self._batch.slots
        uses_model_B = plan.is_model_B & (plan.draft_length_B > 0)
        lacking_B = slots.length_S[row_B] - slots.draft_kv_S[row_B]
        return bool(
            self.fits(self._batch)
            and StaticSampling.can_hold(self._batch.sampling(row_B))
            and slots.stop_SX.shape[1] <= MAX_STOP_IDS
            and (lacking_B[uses_model_B] <= _STEADY_LACK).all()
        )

    def launch(
        self,
        row_B: IntArray,
        plan: RoundPlan,
        looked_up: Proposal | None,
        follows: Flight | None = None,
        is_wanted_B: BoolArray | None = None,
    ) -> Flight:
        """Launch a round.

        Args:
            row_B: slots, ascending; of a round that follows, those of the round before.
            is_wanted_B: rows that the host has not ended meanwhile; None for all.
            looked_up: drafts of the suffix index, for rows whose plan does not ask the draft model.
            follows: the round before, not yet landed, of the same rows; None where the host knows how they stand.
        """
        batch, K = self._batch, int(plan.draft_length_B.max(initial=0))
        B = len(row_B)
        bucket = bucket_of(B)
        self._reserve(bucket)
        self._watch_addresses()
        self._pages.refresh()
        wanted_B = np.ones(B, dtype=np.bool_) if is_wanted_B is None else is_wanted_B
        self._upload(row_B, plan, looked_up, wanted_B, is_whole=follows is None, num_rows=bucket)
        sampling = batch.sampling(row_B) if follows is None else follows.sampling
        self._sampling = self._sampling or StaticSampling(self._max_rows, sampling)
        max_keys = self._max_keys(row_B[wanted_B], K)
        static = StaticRound(
            field_BC=self._field_BC[:bucket],
            next_BC=self._next_BC[:bucket],
            stop_BX=self._stop_BX[:bucket],
            sampling=self._sampling.load(sampling, bucket),
            table_SW=self._pages.device_SW[:, : self._pages.table.pages_for(max_keys)],
            page_size=self._pages.table.page_size,
            max_keys=max_keys,
            epsilon=batch.epsilon,
            is_final=batch.target.is_invariant,
        )
        num_tokens = int((plan.draft_length_B + 1)[wanted_B].sum())
        num_tokens = min(bucket_of(num_tokens), bucket * (K + 1))
        shape = (bucket, K, max_keys, kind_of(sampling))
        target: Any = batch.target  # ``fits`` has seen what they are
        draft: Any = batch.draft
        events = self._events()
        if (plan.is_model_B & (plan.draft_length_B > 0)).any():
            self._book.run(("propose", *shape), lambda: static.propose(draft, K))
        _record(events, 1)
        result = self._book.run(("score", num_tokens, *shape), lambda: static.score(target, draft, K, num_tokens))
        assert result is not None
        _record(events, 2)
        host = self._bring(result[:B])
        _record(events, 3)
        opened_B = np.array([batch.slots.opened[int(slot)] for slot in row_B]) if follows is None else follows.opened_B
        return Flight(row_B, opened_B, plan, K, sampling, host, events)

    def land(self, flight: Flight) -> Landed:
        """Wait for a round and take its draws."""
        seconds: tuple[float | None, float | None] = (None, None)
        if flight.events is not None:
            began, between, ended, copied = flight.events
            copied.synchronize()
            seconds = (began.elapsed_time(between) / 1e3, between.elapsed_time(ended) / 1e3)
        B, K = len(flight.row_B), flight.num_drafts
        T = K + 1
        values = flight.host.numpy()
        sizes = np.cumsum([1, 1, K, T, T, T, T])
        count, committed, draft, token, margin, certainty, finite, logprob = np.split(values, sizes, axis=1)
        draft_length_B: IntArray = count[:, 0].astype(np.int64)
        draws = Draws(
            target_BT=token.astype(np.int64),
            draft_BK=draft.astype(np.int64),
            margin_BT=margin,
            is_open_BT=is_open(certainty, self._batch.epsilon),
            is_finite_BT=finite != 0,
            logprob_BT=logprob.astype(np.float32) if flight.sampling.wants_logprobs else None,
            num_matched_B=None,
        )
        is_model_B: BoolArray = flight.plan.is_model_B & (draft_length_B > 0)
        none = Proposals.none(B, torch.device("cpu"))
        proposals = Proposals(none.draft_BK, draft_length_B, is_model_B)
        return Landed(proposals, draws, committed[:, 0].astype(np.int64), *seconds)

    def clear(self) -> None:
        """Forget all graphs, because memory ran out or something has moved."""
        self._book.clear()

    # ---- static tensors --------------------------------------------------------------------------------------------

    def _reserve(self, num_rows: int) -> None:
        """Static tensors for so many rows; new ones call for new graphs."""
        if num_rows <= self._max_rows:
            return
        self.clear()
        device = self._batch.device
        num_fields = Field.DRAFTS + self._batch.policy.max_draft_length
        self._max_rows = num_rows
        self._field_BC = torch.zeros((num_rows, num_fields), dtype=torch.int64, device=device)
        self._next_BC = torch.zeros((num_rows, FIRST_PLANNED), dtype=torch.int64, device=device)
        self._stop_BX = torch.full((num_rows, MAX_STOP_IDS), -1, dtype=torch.int64, device=device)
        self._sampling = None

    def _watch_addresses(self) -> None:
        """Pools and the page table move when the draft is given up or the slots change: then graphs are void."""
        memories = [memory for memory in self._pages.memories if memory.keys]
        addresses = (self._pages.device_SW.data_ptr(), *(memory.keys[0].data_ptr() for memory in memories))
        if addresses != self._addresses:
            self.clear()
            self._addresses = addresses

    def _upload(
        self,
        row_B: IntArray,
        plan: RoundPlan,
        looked_up: Proposal | None,
        is_wanted_B: BoolArray,
        *,
        is_whole: bool,
        num_rows: int,
    ) -> None:
        """Bring what the device does not know to it, in one copy."""
        slots, B, K = self._batch.slots, len(row_B), int(plan.draft_length_B.max(initial=0))
        field_BC: IntArray = np.zeros((num_rows, Field.DRAFTS + K), dtype=np.int64)
        field_BC[:B, Field.DRAFT_LENGTH] = plan.draft_length_B
        field_BC[:B, Field.IS_MODEL] = plan.is_model_B
        field_BC[:B, Field.IS_WANTED] = is_wanted_B
        if looked_up is not None:
            field_BC[:B, Field.DRAFTS :] = looked_up.token_BK[:, :K]
        if not is_whole:
            self._field_BC[:num_rows, :FIRST_PLANNED] = self._next_BC[:num_rows]
            planned = self._send(field_BC[:, FIRST_PLANNED:])
            self._field_BC[:num_rows, FIRST_PLANNED : Field.DRAFTS + K] = planned
            return
        length_B = slots.length_S[row_B]
        field_BC[:B, Field.SLOT] = row_B
        field_BC[:B, Field.LENGTH] = length_B
        field_BC[:B, Field.DRAFT_KV] = slots.draft_kv_S[row_B]
        field_BC[:B, Field.PROMPT_LENGTH] = slots.prompt_length_S[row_B]
        field_BC[:B, Field.END] = slots.end_S[row_B]
        field_BC[:B, Field.IS_LIVE] = 1
        field_BC[:B, Field.PREVIOUS] = slots.token_SP[row_B, length_B - 2]
        field_BC[:B, Field.LAST] = slots.token_SP[row_B, length_B - 1]
        stop_BX: IntArray = np.full((num_rows, MAX_STOP_IDS), -1, dtype=np.int64)
        stop_BX[:B, : slots.stop_SX.shape[1]] = slots.stop_SX[row_B]
        sent = self._send(np.concatenate((field_BC, stop_BX), axis=1))
        self._field_BC[:num_rows, : Field.DRAFTS + K] = sent[:, : Field.DRAFTS + K]
        self._stop_BX[:num_rows] = sent[:, Field.DRAFTS + K :]

    def _send(self, array: IntArray) -> Tensor:
        host = torch.from_numpy(np.ascontiguousarray(array))
        if self._batch.device.type == "cuda":
            host = host.pin_memory()
        return host.to(self._batch.device, non_blocking=True)

    def _bring(self, result: Tensor) -> Tensor:
        """Begin the copy of the draws to the host; the next run of the graph writes them anew."""
        if result.device.type != "cuda":
            return result
        host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        return host.copy_(result, non_blocking=True)

    def _max_keys(self, row_B: IntArray, num_drafts: int) -> int:
        """A power of two that no row's keys exceed, also in the round behind one that the host has not seen."""
        longest = int(self._batch.slots.length_S[row_B].max()) + 2 * (num_drafts + 1)
        return int(min(1 << max(longest, _LEAST_KEYS).bit_length(), self._pages.table.table_SW.shape[1] * self._page))

    @property
    def _page(self) -> int:
        return self._pages.table.page_size

    def _events(self) -> tuple[Any, ...] | None:
        if self._batch.device.type != "cuda":
            return None
        events = tuple(torch.cuda.Event(enable_timing=True) for _ in range(4))  # type: ignore[no-untyped-call]
        events[0].record()
        return events


def _can_be_captured(decoder: Decoder) -> bool:
    """Whether a decoder's forward is made of device tensors alone, and waits for none of them."""
    paged: object = decoder
    return isinstance(paged, PagedLeanDecoder | PagedGenericDecoder) and paged.can_be_captured


def _record(events: tuple[Any, ...] | None, number: int) -> None:
    if events is not None:
        events[number].record()
