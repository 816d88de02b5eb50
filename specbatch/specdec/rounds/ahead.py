"""Captured rounds in the engine's loop: launched ahead where the host has nothing to say, settled when they land.

While the device runs a round, the host settles the one before: commits, detokenizes, retires. That is possible where
the host has nothing to say first: no drafts to look up in text that it has not seen yet, nobody to admit. A row that
the host ends in the meantime (a stop string) is ignored when the round lands; rows that end by a stop id or by their
limit the device has left out itself. Where the host decides a token otherwise than the device (a near tie), the round
under way has gone wrong for that row: it is left to itself, and the next one begins from where the host says.

Shape letters: B rows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from specbatch.specdec.accept import BoolArray, IntArray
from specbatch.specdec.drafters.suffix import Proposal
from specbatch.specdec.policy.buckets import bucket_of
from specbatch.specdec.policy.choice import has_suffix_drafts
from specbatch.specdec.policy.controller import RoundMeasure, RoundPlan
from specbatch.specdec.rounds.captured import CapturedRounds, Flight, Landed
from specbatch.specdec.rounds.parts import RoundResult, kind_of_match, view
from specbatch.specdec.rounds.settling import settle_draws
from specbatch.specdec.rows.batch import Batch


@dataclass(frozen=True, slots=True)
class Airborne:
    """A round under way, and what its measure will need.

    Attributes:
        prepare_seconds: what the host did for it while nothing was under way, looking up and planning.
        num_blind: rounds since drafts were last looked up.
    """

    flight: Flight
    looked_up: Proposal | None
    is_plain: bool
    num_caught_up: int
    catch_up_seconds: float
    launched: float
    prepare_seconds: float = 0.0
    num_blind: int = 0


@dataclass(frozen=True, slots=True)
class Surprised:
    """Rows that the host has settled otherwise than the device, and the lengths that the device believes in."""

    row_B: IntArray
    device_length_B: IntArray


_NOBODY = Surprised(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))

BLIND_ROUNDS, MOST_BLIND_ROUNDS = 4, 64
"""Rounds that may go ahead without a look into the suffix index, which costs a landing: at first, and in the end."""


def num_blind_rounds(num_vain_looks: int) -> int:
    """The same behind so many looks in a row that found nothing worth a draft."""
    return min(BLIND_ROUNDS << min(num_vain_looks, 8), MOST_BLIND_ROUNDS)


_HIDDEN: tuple[Literal["none", "part", "all"], ...] = ("none", "part", "all")
"""How much of the host's part is done while the device runs, by how many ends of the round overlap with another."""


class Ahead:
    """The captured rounds of one engine, of which at most one is under way between two steps.

    Args:
        may_fly: False lands every round at once.
    """

    def __init__(self, batch: Batch, captured: CapturedRounds, *, may_fly: bool = True) -> None:
        self._batch = batch
        self.captured = captured
        self._may_fly = may_fly
        self._airborne: Airborne | None = None
        self._last_landed = 0.0
        self._num_vain_looks = 0
        self._there: tuple[int, IntArray, BoolArray] | None = None

    @property
    def is_flying(self) -> bool:
        """Whether a round is under way."""
        return self._airborne is not None

    def decode(
        self,
        row_B: IntArray,
        plan: RoundPlan,
        looked_up: Proposal | None,
        is_plain: bool,
        caught_up: tuple[int, float],
        prepare_seconds: float,
    ) -> RoundResult | None:
        """A round behind one that has landed; None where it stays under way.

        Args:
            caught_up: tokens that the draft had to read first, and seconds. prepare_seconds: of all else before it.
        """
        if looked_up is not None:
            self._num_vain_looks = 0 if has_suffix_drafts(plan) else self._num_vain_looks + 1
        airborne = replace(
            self._launch(row_B, plan, looked_up, is_plain, caught_up, None), prepare_seconds=prepare_seconds
        )
        if self._may_fly:
            self._airborne = airborne
            return None
        return self._settle(airborne)[0]

    def follow(
        self, is_plain: bool, num_waiting: int, *, may_admit: bool, has_room: bool
    ) -> tuple[RoundResult | None, Surprised]:
        """Land the round under way, the next one launched before if that is possible.

        Args:
            is_plain: the next round is decoded plainly. may_admit: rows that wait could come in first.
            has_room: all rows have pages for two rounds more.

        Returns:
            what the round did, None where all its rows were cancelled meanwhile; and what to ``undo`` once it is kept.
        """
        landing, self._airborne = self._airborne, None
        assert landing is not None
        if not self._is_there(landing.flight).any():
            return None, _NOBODY
        plan = self._plan_behind(landing, is_plain, num_waiting, may_admit=may_admit) if has_room else None
        if plan is not None:
            self._airborne = self._launch(landing.flight.row_B, plan, None, is_plain, (0, 0.0), landing)
        result, surprised = self._settle(landing)
        if self._airborne is not None and not self._is_there(self._airborne.flight).any():
            self._airborne = None  # every row has ended: what is under way is of no use
        return result, surprised

    def undo(self, surprised: Surprised) -> None:
        """Leave the round under way to itself where rows do not stand as it believes; what it spoils is read again.

        It writes behind where the device believed rows to stand, and a row whose token the host has decided may have
        got on further than that. Should memory run out here, such a row is read again like a prompt.
        """
        if self._airborne is None or not len(surprised.row_B):
            return
        self._airborne = None
        batch, row_B, length_B = self._batch, surprised.row_B, surprised.device_length_B
        slots = batch.slots
        slots.draft_kv_S[row_B] = np.minimum(slots.draft_kv_S[row_B], length_B - 1)
        is_further_B = slots.length_S[row_B] > length_B
        if is_further_B.any():
            row_B, start_B = row_B[is_further_B], length_B[is_further_B] - 1
            end_B = slots.length_S[row_B] - 1
            slots.target_kv_S[row_B], slots.is_begun_S[row_B] = start_B, False
            with batch.clock.timed("score"):
                layout = batch.layout(row_B, start_B, end_B - start_B)
                batch.target.run(batch.feed(layout), np.zeros(0, dtype=np.int64))
            slots.target_kv_S[row_B], slots.is_begun_S[row_B] = end_B, True

    def forget(self) -> None:
        """Leave the round under way to itself; the rows stand where they stood before it."""
        self._airborne = None

    def _plan_behind(self, landing: Airborne, is_plain: bool, num_waiting: int, *, may_admit: bool) -> RoundPlan | None:
        """The plan of a round whose rows the host sees as they were one round before; None where it must not be made.

        The device clips drafts to the room that a row really has.
        """
        batch, flight = self._batch, landing.flight
        slots = batch.slots
        is_there_B = self._is_there(flight)
        row_B = flight.row_B[is_there_B]
        is_shrunk = not len(row_B) or bucket_of(len(row_B)) < bucket_of(len(flight.row_B))
        if is_shrunk or slots.num_rows > len(row_B) or may_admit:
            return None
        if batch.policy.uses_suffix and not is_plain and not self._may_be_blind(landing):
            return None
        draft_length_B, is_model_B = np.zeros((2, len(is_there_B)), dtype=np.int64)
        if batch.policy.max_draft_length and not is_plain:
            plan = batch.policy.plan(view(batch, row_B, None, num_waiting, 0))
            draft_length_B[is_there_B], is_model_B[is_there_B] = plan.draft_length_B, plan.is_model_B
        # Only a draft that took part in the round before lacks no more than the first step feeds.
        uses_model_B = (is_model_B > 0) & (draft_length_B > 0)
        is_late_B = uses_model_B & ~(flight.plan.is_model_B & (flight.plan.draft_length_B > 0))
        if is_late_B.any():
            if (is_late_B == uses_model_B).all() or landing.num_blind >= BLIND_ROUNDS:
                return None
            draft_length_B[is_late_B] = 0  # the others do not wait for them; they are fed when the rounds next land
        return RoundPlan(draft_length_B, (is_model_B > 0) & (draft_length_B > 0))

    def _may_be_blind(self, landing: Airborne) -> bool:
        """Whether another round may go without a look into the suffix index, which has not seen all text yet."""
        return not has_suffix_drafts(landing.flight.plan) and landing.num_blind < num_blind_rounds(self._num_vain_looks)

    def _launch(
        self,
        row_B: IntArray,
        plan: RoundPlan,
        looked_up: Proposal | None,
        is_plain: bool,
        caught_up: tuple[int, float],
        follows: Airborne | None,
    ) -> Airborne:
        launched = time.perf_counter()
        if follows is None:
            flight = self.captured.launch(row_B, plan, looked_up)
            return Airborne(flight, looked_up, is_plain, *caught_up, launched)
        before = follows.flight
        flight = self.captured.launch(row_B, plan, looked_up, before, self._is_there(before))
        return Airborne(flight, looked_up, is_plain, *caught_up, launched, num_blind=follows.num_blind + 1)

    def _settle(self, airborne: Airborne) -> tuple[RoundResult, Surprised]:
        """Wait for a round, commit what it brought, and keep the books.

        Returns:
            the result, and the rows that go on otherwise than the device believes.
        """
        batch, flight = self._batch, airborne.flight
        landed = self.captured.land(flight)
        now = time.perf_counter()
        follower = self._airborne
        began = max(airborne.launched, self._last_landed)
        self._last_landed = now
        is_there_B = self._is_there(flight)
        row_B = flight.row_B[is_there_B]
        proposals, draws = landed.proposals.of(is_there_B), landed.draws.of(is_there_B)
        num_committed_B = landed.num_committed_B[is_there_B]
        propose_seconds, score_seconds = _device_seconds(landed, now - began)
        batch.clock.add("propose", propose_seconds)
        batch.clock.add("score", score_seconds)
        drawn_BT, device_length_B = draws.target_BT.copy(), batch.slots.length_S[row_B] + num_committed_B
        settled = settle_draws(batch, row_B, proposals, draws)
        is_other_B = (settled.verdict.num_committed_B != num_committed_B) | (drawn_BT != draws.target_BT).any(axis=1)
        is_other_B &= self._is_there(flight)[is_there_B]
        surprised = Surprised(row_B[is_other_B], device_length_B[is_other_B])
        # Where another round is under way, what the host does here is part of that one's time, and not counted twice.
        verdict, elapsed = settled.verdict, (now if follower is not None else time.perf_counter()) - began
        elapsed += airborne.prepare_seconds
        num_hidden_ends = (airborne.num_blind > 0) + (follower is not None)
        measure = RoundMeasure(
            num_scored=len(row_B) + int(proposals.draft_length_B.sum()),
            # The steps that were launched; rows that turned out to have no room make fewer of use.
            num_draft_steps=flight.plan.num_draft_steps if proposals.is_model_B.any() else 0,
            propose_seconds=propose_seconds,
            score_seconds=score_seconds,
            other_seconds=max(elapsed - propose_seconds - score_seconds, 0.0),
            catch_up_seconds=airborne.catch_up_seconds,
            num_catch_up_tokens=airborne.num_caught_up,
            draft_length_B=verdict.num_proposed_B,
            matched_B=verdict.num_accepted_B,
            is_model_B=proposals.is_model_B,
            match_B=kind_of_match(airborne.looked_up, len(flight.row_B))[is_there_B],
            hidden=_HIDDEN[num_hidden_ends],
        )
        # What is no plain replay takes the host long, the next round's as well; that says nothing about rounds.
        is_usual = flight.is_usual and (follower is None or follower.flight.is_usual)
        batch.policy.observe(measure if is_usual else replace(measure, is_typical=False))
        result = RoundResult(
            finished=settled.finished,
            num_tokens=int(verdict.num_committed_B.sum()),
            is_plain=airborne.is_plain,
            is_mixed=not is_usual,
            seconds=elapsed + airborne.catch_up_seconds,
            verdict=verdict,
        )
        return result, surprised

    def _is_there(self, flight: Flight) -> BoolArray:
        """Rows of a round that still stand where they stood when it was launched.

        Looked up anew only when some row has come, gone or moved: it is asked several times in every round.
        """
        slots = self._batch.slots
        if self._there is not None and self._there[0] == slots.version and self._there[1] is flight.opened_B:
            return self._there[2]
        is_there_B: BoolArray = np.array(
            [
                slots.requests[slot] is not None and slots.opened[slot] == opened
                for slot, opened in zip(flight.row_B.tolist(), flight.opened_B.tolist(), strict=True)
            ],
            dtype=np.bool_,
        )
        self._there = slots.version, flight.opened_B, is_there_B
        return is_there_B


def _device_seconds(landed: Landed, elapsed: float) -> tuple[float, float]:
    """Seconds of the two models; where the device keeps no time, all of it counts as scoring."""
    if landed.propose_seconds is None or landed.score_seconds is None:
        return 0.0, elapsed
    return landed.propose_seconds, landed.score_seconds
