"""One step of the engine: rows come in, prompts are read, a round is decoded or landed, what has ended goes out.

What has ended is kept at once, so that nothing is lost if a later part of the step runs out of memory.

Shape letters: B rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable
from typing import Literal

from specbatch.specdec.output import SequenceOutput
from specbatch.specdec.rounds.ahead import Ahead
from specbatch.specdec.rounds.captured import CapturedRounds
from specbatch.specdec.rounds.decoding import decode_round, is_plain_round, may_ride
from specbatch.specdec.rounds.log import RoundLog
from specbatch.specdec.rounds.parts import RoundResult
from specbatch.specdec.rounds.prefill import plan_chunk, read_chunk
from specbatch.specdec.rounds.profile import profile, profile_captured
from specbatch.specdec.rounds.selftest import SelfTest
from specbatch.specdec.rounds.warming import warm
from specbatch.specdec.rows import admission, overload, paged_admission
from specbatch.specdec.rows.batch import Batch
from specbatch.specdec.rows.slots import Request

Rounds = Literal["ahead", "captured", "loop"]
"""How rounds are decoded where keys and values are in pages: of fixed shape and launched before the last one is
settled, each settled first, or by the plain loop, which is the oracle of both and what decodes over slots."""


class Stepper:
    """What happens between two calls of the engine's ``step``.

    Args:
        max_rows: rows that may be in flight. grown_max_rows: the same once the draft has been given up.
    """

    def __init__(
        self, batch: Batch, queue: deque[Request], *, max_rows: int, grown_max_rows: int, rounds: Rounds
    ) -> None:
        self._batch = batch
        self._queue = queue
        self.max_rows = max_rows
        self._grown_max_rows = grown_max_rows
        self.log = RoundLog()
        self.selftest = SelfTest(batch.target)
        self._finished: list[SequenceOutput] = []
        self._round_number = 0
        self._most_rows = max_rows  # fewer than ``max_rows`` where pages were short when rows were last let in
        self._ahead: Ahead | None = None
        if rounds != "loop" and batch.pages is not None and CapturedRounds.fits(batch):
            self._ahead = Ahead(batch, CapturedRounds(batch, max_rows), may_fly=rounds == "ahead")

    def step(self) -> list[SequenceOutput]:
        """One step; returns the rows that ended.

        Raises:
            SpecbatchError: JOB_DEVICE; a row's logits were not finite and the device fails its self-test.
        """
        try:
            self._step()
        except (RuntimeError, MemoryError) as error:
            if not overload.is_out_of_memory(error):
                raise
            if self._ahead is not None:
                self._ahead.forget()
                self._ahead.captured.clear()
            self._finished += overload.relieve(self._batch, self._queue)
            self.max_rows = self._most_rows = self._batch.slots.num_slots
        if self._batch.slots.num_active == 0:
            self.log.flush()
        finished = self.selftest.trusted(self._finished)  # kept where it raises: the next step asks again
        self._finished = []
        return finished

    def drop(self, keys: Collection[Hashable]) -> None:
        """Forget the sequences in slots that have these keys; ``step`` returns none of them any more."""
        overload.drop_rows(self._batch, keys)
        self._finished = [output for output in self._finished if output.key not in keys]
        if self._ahead is not None and self._batch.slots.num_active == 0:
            self._ahead.forget()  # a round without rows would be no measure of one

    def drop_all(self) -> None:
        """Forget every sequence in slots. A round under way is left to itself."""
        overload.drop_all(self._batch)
        self._finished = []
        if self._ahead is not None:
            self._ahead.forget()

    def profile(self, max_rows: int) -> tuple[dict[int, float], dict[int, float]]:
        """What rounds cost before any was decoded, for the policy to begin with; see ``rounds.profile``."""
        if self._ahead is None:
            return profile(self._batch, max_rows)
        batch = self._batch
        most_drafts = batch.policy.max_draft_length
        return profile_captured(
            self._ahead.captured, max_rows, most_drafts=most_drafts, has_draft=batch.draft is not None
        )

    def warm_up(self) -> None:
        """Let the device do now what it must do once; see ``rounds.warming``."""
        warm(self._batch, None if self._ahead is None else self._ahead.captured, self.max_rows)

    @property
    def has_fixed_shapes(self) -> bool:
        """Whether rounds without prompts in them are padded to buckets."""
        return self._ahead is not None

    @property
    def is_flying(self) -> bool:
        """Whether a round is under way that has not been settled."""
        return self._ahead is not None and self._ahead.is_flying

    def _step(self) -> None:
        batch = self._batch
        if self._ahead is not None and self._ahead.is_flying:
            self._follow(self._ahead)
            return
        if self._queue or batch.slots.num_active:
            self._give_up_draft()
        self._admit()
        chunk = plan_chunk(batch)
        if chunk is not None and not may_ride(batch, self._round_number):
            self._finished += read_chunk(batch, chunk)
            chunk = None
        result = decode_round(batch, self._round_number, len(self._queue), chunk, self._ahead)
        self._round_number += result is not None or self.is_flying
        self._book(result)

    def _give_up_draft(self) -> None:
        """Drop a draft that does not pay; its memory makes the batch larger."""
        batch = self._batch
        if batch.draft is None or not batch.policy.is_draft_given_up:
            return
        batch.drop_draft()
        if self._grown_max_rows > self.max_rows:
            self.max_rows = self._grown_max_rows
            batch.compact()
            batch.resize(self.max_rows, batch.slots.max_positions)
        self._most_rows = self.max_rows

    def _admit(self) -> None:
        batch, queue = self._batch, self._queue
        if batch.pages is None:
            self._finished += admission.admit(batch, queue, self.max_rows)
            self._finished += admission.make_room(batch, queue)
            return
        if self._may_admit():
            self._finished += paged_admission.admit(batch, batch.pages, queue, self.max_rows)
            # Pages stay short until rows end, but rows whose prompts are not read yet may come to share theirs.
            is_short = queue and not len(batch.slots.rows(begun=False))
            self._most_rows = batch.slots.num_rows if is_short else self.max_rows
        self._finished += paged_admission.make_room(batch, batch.pages, queue)

    def _may_admit(self) -> bool:
        """Whether there may be room for rows that wait which there was not when it was last tried."""
        if self._ahead is None:
            return bool(self._queue) and self._batch.slots.num_rows < self._most_rows
        return bool(self._queue) and paged_admission.is_time_to_admit(self._batch, self._most_rows)

    def _follow(self, ahead: Ahead) -> None:
        """Settle the round under way, and let the next one begin before where that is possible."""
        batch = self._batch
        assert batch.pages is not None
        is_plain = is_plain_round(batch, self._round_number)
        has_room = paged_admission.has_room_ahead(batch, batch.pages)
        result, surprised = ahead.follow(is_plain, len(self._queue), may_admit=self._may_admit(), has_room=has_room)
        self._book(result)
        ahead.undo(surprised)
        self._round_number += ahead.is_flying

    def _book(self, result: RoundResult | None) -> None:
        if result is None:
            return
        self.log.add(
            is_plain=result.is_plain,
            is_mixed=result.is_mixed,
            seconds=result.seconds,
            num_tokens=result.num_tokens,
            draft_length_B=result.verdict.num_proposed_B,
            num_accepted_B=result.verdict.num_accepted_B,
        )
        self._finished += result.finished
