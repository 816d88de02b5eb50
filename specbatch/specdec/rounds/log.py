"""When a round is drawn as a plain one, and the log of rounds that throughput and speed-up are computed from.

In a job that chooses its K, about one round in fifty is decoded plainly, drawn by a hash of the round's number and by
nothing that the job does: so the plain rounds are a fair sample of the same rows at the same batch, and the speed-up in
the report is a measurement. The text does not change: it does not depend on K. Rounds whose forward also reads prompts
cost more for it, as do those in which a graph is captured; they are logged apart. Prompts never ride in a round that is
drawn as plain.

Shape letters: B rows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from specbatch.schemas.messages import RoundBlock
from specbatch.specdec.accept import IntArray

PLAIN_ROUNDS_IN = 50
ROUNDS_PER_BLOCK = 16

_MULTIPLIER = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def is_plain_sample(round_number: int) -> bool:
    """True for about one round number in ``PLAIN_ROUNDS_IN``, by a multiplicative hash."""
    mixed = (round_number + 1) * _MULTIPLIER & _MASK
    mixed = (mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9 & _MASK
    return (mixed >> 33) % PLAIN_ROUNDS_IN == 0


class RoundLog:
    """Sums of consecutive rounds, in blocks."""

    def __init__(self) -> None:
        self._done: list[RoundBlock] = []
        self._open = RoundBlock()
        self._draft_lengths: list[IntArray] = []
        self._num_accepted: list[IntArray] = []

    def add(
        self,
        *,
        is_plain: bool,
        is_mixed: bool,
        seconds: float,
        num_tokens: int,
        draft_length_B: IntArray,
        num_accepted_B: IntArray,
    ) -> None:
        """Log one round with the tokens that it committed.

        Args:
            is_mixed: prompts were read too, or a graph was captured meanwhile: it is compared with nothing.
            draft_length_B: how many drafts each row proposed. num_accepted_B: how many of them were committed.
        """
        self._draft_lengths.append(draft_length_B)  # added up once for each block
        self._num_accepted.append(num_accepted_B)
        block = self._open
        if is_mixed:
            block = replace(
                block,
                num_mixed_rounds=block.num_mixed_rounds + 1,
                mixed_seconds=block.mixed_seconds + seconds,
                num_mixed_tokens=block.num_mixed_tokens + num_tokens,
            )
        elif is_plain:
            block = replace(
                block,
                num_plain_rounds=block.num_plain_rounds + 1,
                plain_seconds=block.plain_seconds + seconds,
                num_plain_tokens=block.num_plain_tokens + num_tokens,
            )
        else:
            block = replace(
                block,
                num_spec_rounds=block.num_spec_rounds + 1,
                spec_seconds=block.spec_seconds + seconds,
                num_spec_tokens=block.num_spec_tokens + num_tokens,
            )
        self._open = block
        if block.num_plain_rounds + block.num_spec_rounds + block.num_mixed_rounds >= ROUNDS_PER_BLOCK:
            self.flush()

    def flush(self) -> None:
        """End the open block, if it holds anything."""
        if self._open != RoundBlock():
            self._done.append(
                replace(
                    self._open,
                    draft_length_histogram=tuple(np.bincount(np.concatenate(self._draft_lengths)).tolist()),
                    num_accepted_draft_tokens=int(np.concatenate(self._num_accepted).sum()),
                )
            )
            self._open = RoundBlock()
            self._draft_lengths.clear()
            self._num_accepted.clear()

    def take(self) -> tuple[RoundBlock, ...]:
        """Finished blocks since the last call."""
        done, self._done = tuple(self._done), []
        return done
