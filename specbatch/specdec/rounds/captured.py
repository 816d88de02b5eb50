"""Rounds whose shapes are fixed, launched as captured graphs: the host says what is wanted and later takes the draws.

A round is two launches, the draft's steps and the target's scoring with acceptance, between which the device notes the
time. One small copy brings the draws to the host. What a round needs of the host crosses in one copy too: where the
rows stand, and their plan. A round that follows another on the same rows needs only the plan: the device knows where
they stand before the host does.

Whatever does not fit (penalties, biases, prompts in the same forward, modules that look into tensors) is decoded by the
loop in ``decoding``, which is also the oracle: the tokens are the same.

Shape letters: B rows, K drafts, T = K + 1, C fields, X stop ids.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.accept import BoolArray, IntArray
from specbatch.specdec.drafters.suffix import Proposal
from specbatch.specdec.forward.feed import Decoder
from specbatch.specdec.forward.generic_paged import PagedGenericDecoder
from specbatch.specdec.forward.lean_paged import PagedLeanDecoder
from specbatch.specdec.forward.paged_memory import Pages
from specbatch.specdec.models.memory import AUTO_DRAFT_LENGTH
from specbatch.specdec.policy.buckets import bucket_of
from specbatch.specdec.policy.controller import STEADY_LACK, RoundPlan
from specbatch.specdec.rounds.graphs import GraphBook
from specbatch.specdec.rounds.settling import Draws, Proposals, is_open
from specbatch.specdec.rounds.static_round import StaticRound
from specbatch.specdec.rounds.tensors import MAX_STOP_IDS, RoundTensors, planned_fields, standing_fields
from specbatch.specdec.rows.batch import Batch
from specbatch.specdec.sampling.static import StaticSampling, kind_of
from specbatch.specdec.sampling.tensors import SamplingTensors

_LEAST_KEYS = 512


@dataclass(frozen=True, slots=True)
class Flight:
    """A round that was launched.

    Attributes:
        row_B, opened_B: its slots, and when the rows in them came, which tells a row from a later one in its slot.
        plan: what was asked for. sampling: of the rows. host: where the draws will be.
        events: begin, between the models, end, and copied; None off a device. is_usual: launched as graphs that were
            there; else its seconds say nothing.
    """

    row_B: IntArray
    opened_B: IntArray
    plan: RoundPlan
    num_drafts: int
    sampling: SamplingTensors
    host: Tensor
    events: tuple[Any, ...] | None
    is_usual: bool


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
        max_rows: rows in flight.
    """

    def __init__(self, batch: Batch, max_rows: int) -> None:
        assert batch.pages is not None
        self._batch = batch
        self._pages: Pages = batch.pages
        self._book = GraphBook(batch.device)
        self._addresses: tuple[int, ...] = ()
        most_drafts = max(batch.policy.max_draft_length, AUTO_DRAFT_LENGTH)  # the profile tries all that auto may
        self._tensors = RoundTensors(max_rows, most_drafts, batch.device)

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
            and (lacking_B[uses_model_B] <= STEADY_LACK).all()
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
        self._prepare(bucket)
        wanted_B = np.ones(B, dtype=np.bool_) if is_wanted_B is None else is_wanted_B
        field_BC = planned_fields(plan, looked_up, wanted_B, bucket)
        if follows is None:
            self._tensors.begin(*standing_fields(batch.slots, row_B, field_BC))
        else:
            self._tensors.go_on(field_BC)
        sampling = batch.sampling(row_B) if follows is None else follows.sampling
        num_tokens = min(bucket_of(int((plan.draft_length_B + 1)[wanted_B].sum())), bucket * (K + 1))
        num_unusual, events = self._book.num_unusual, self._events()
        max_keys = self._max_keys(row_B[wanted_B])
        result = self._run(bucket, K, plan.num_draft_steps, num_tokens, max_keys, sampling, events)
        host = self._tensors.bring(result[:B])
        _record(events, 3)
        opened_B = np.array([batch.slots.opened[int(slot)] for slot in row_B]) if follows is None else follows.opened_B
        return Flight(row_B, opened_B, plan, K, sampling, host, events, self._book.num_unusual == num_unusual)

    def seconds_of(
        self, num_rows: int, num_drafts: int, num_steps: int, *, temperature: float = 0.0
    ) -> tuple[float, float]:
        """Seconds of the draft's steps and of scoring, for a round without rows: its attention reads nothing.

        For the policy to begin with; the best of two, once the round has been captured.

        Args:
            num_drafts: that are scored in each row. num_steps: of the draft model; 0 leaves it out.
            temperature: of all rows; above 0 another kernel draws.
        """
        bucket = bucket_of(num_rows)
        self._prepare(bucket)
        none = SamplingParams(max_new_tokens=1, temperature=temperature)
        batch = self._batch
        sampling = SamplingTensors.from_params([none] * bucket, [()] * bucket, batch.device, batch.target.vocab_size)
        num_tokens = min(bucket_of(num_rows * (num_drafts + 1)), bucket * (num_drafts + 1))
        self._tensors.begin_none(bucket)
        max_keys = self._max_keys(np.zeros(0, dtype=np.int64))
        found = []
        for _ in range(3):
            events, started = self._events(), time.perf_counter()
            self._run(bucket, num_drafts, num_steps, num_tokens, max_keys, sampling, events, at_once=True)
            if events is None:
                found.append((0.0, time.perf_counter() - started))
                continue
            events[2].synchronize()
            found.append((events[0].elapsed_time(events[1]) / 1e3, events[1].elapsed_time(events[2]) / 1e3))
        return min(one[0] for one in found[1:]), min(one[1] for one in found[1:])

    def _prepare(self, num_rows: int) -> None:
        """Everything that graphs touch is where they know it, or they are made anew."""
        if self._tensors.reserve(num_rows):
            self.clear()
        memories = [memory for memory in self._pages.memories if memory.keys]
        # Pools and the page table move when the draft is given up or the slots change.
        addresses = (self._pages.device_SW.data_ptr(), *(memory.keys[0].data_ptr() for memory in memories))
        if addresses != self._addresses:
            self.clear()
            self._addresses = addresses
        self._pages.refresh()

    def _run(
        self,
        num_rows: int,
        num_drafts: int,
        num_steps: int,
        num_tokens: int,
        max_keys: int,
        sampling: SamplingTensors,
        events: tuple[Any, ...] | None,
        *,
        at_once: bool = False,
    ) -> Tensor:
        """Launch the two halves of a round on the static tensors; returns what ``StaticRound.score`` does.

        Args:
            num_drafts: K of the round. num_steps: of the draft model, whose rows may have fewer drafts than those of
                others that were looked up. at_once: capture what is met for the first time.
        """
        batch, tensors = self._batch, self._tensors
        static = StaticRound(
            field_BC=tensors.field_BC[:num_rows],
            next_BC=tensors.next_BC[:num_rows],
            stop_BX=tensors.stop_BX[:num_rows],
            sampling=tensors.load(sampling, num_rows),
            table_SW=self._pages.device_SW[:, : self._pages.table.pages_for(max_keys)],
            page_size=self._pages.table.page_size,
            max_keys=max_keys,
            epsilon=batch.epsilon,
            is_final=batch.target.is_invariant,
        )
        kind = kind_of(sampling)
        target: Any = batch.target  # ``fits`` has seen what they are
        draft: Any = batch.draft
        if num_steps:
            propose = ("propose", num_rows, num_steps, max_keys, kind)
            self._book.run(propose, lambda: static.propose(draft, num_steps), at_once=at_once)
        _record(events, 1)
        score = ("score", num_rows, num_drafts, num_tokens, max_keys, kind)
        result = self._book.run(score, lambda: static.score(target, draft, num_drafts, num_tokens), at_once=at_once)
        assert result is not None
        _record(events, 2)
        return result

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

    def _max_keys(self, row_B: IntArray) -> int:
        """The power of two that no row's keys exceed, also in the round behind one that the host has not seen."""
        ahead = 2 * (self._batch.policy.max_draft_length + 1)
        longest = int(self._batch.slots.length_S[row_B].max(initial=0)) + ahead
        table = self._pages.table
        return int(min(1 << (max(longest, _LEAST_KEYS) - 1).bit_length(), table.table_SW.shape[1] * table.page_size))

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
