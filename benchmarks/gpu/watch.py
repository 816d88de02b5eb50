"""Every round that an engine settles: its seconds, its tokens, and whether a graph was captured for it.

A round lasts from the end of the one before to its own end, so that the rounds of a window add up to its wall time
whatever runs beside them. One that a capture falls into says nothing about speed, and a job pays for it once: it is
counted with its seconds, and left out of both sums that a speed is made of.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpu.roof import Model, round_bytes
from specbatch.specdec import Engine
from specbatch.specdec.policy.controller import RoundMeasure

STEADY_ROUNDS = 10
"""So many rounds without a capture, and the warm-up may end."""


@dataclass(frozen=True, slots=True)
class Round:
    """One settled round.

    Attributes:
        seconds: since the round before was settled. num_tokens: that it committed.
        has_captured: a graph was captured for it, or since the round before.
        measure: what the policy was told; None where it was told nothing.
    """

    seconds: float
    num_tokens: int
    has_captured: bool
    measure: RoundMeasure | None


class Watch:
    """Listens to an engine from now on. ``rounds`` are those since the last ``begin``."""

    def __init__(self, engine: Engine) -> None:
        self.rounds: list[Round] = []
        self.num_timed = self.num_timed_tokens = 0
        self._last = time.perf_counter()
        self._has_captured = False
        self._measure: RoundMeasure | None = None
        stepper, policy = engine._stepper, engine._batch.policy
        observe, add = policy.observe, stepper.log.add

        def observed(measure: RoundMeasure) -> None:
            self._measure = measure
            observe(measure)

        def added(**what: Any) -> None:
            add(**what)
            self._settled(what["num_tokens"], is_mixed=what["is_mixed"])

        policy.observe = observed  # type: ignore[method-assign]
        stepper.log.add = added  # type: ignore[method-assign]
        if stepper._ahead is not None:
            captured = stepper._ahead.captured
            launch = captured.launch

            def launched(*arguments: Any) -> Any:
                flight = launch(*arguments)
                self._has_captured |= not flight.is_usual
                return flight

            captured.launch = launched  # type: ignore[method-assign]

    def begin(self) -> None:
        """Forget the rounds so far; the next one still lasts from the end of the last of them."""
        self.rounds = []
        self.num_timed = self.num_timed_tokens = 0

    def is_warm(self, least_rounds: int, most_rounds: int) -> bool:
        """Whether so many rounds have passed and the last of them captured nothing, or the most that there may be."""
        if len(self.rounds) < least_rounds:
            return False
        is_steady = not any(each.has_captured for each in self.rounds[-STEADY_ROUNDS:])
        return is_steady or len(self.rounds) >= most_rounds

    def _settled(self, num_tokens: int, *, is_mixed: bool) -> None:
        now = time.perf_counter()
        # A round is launched, and captured, while the one before is still to be settled: both are spoilt.
        has_captured = self._has_captured or self._measure is None or is_mixed
        self.rounds.append(Round(now - self._last, num_tokens, has_captured, self._measure))
        self.num_timed += not has_captured
        self.num_timed_tokens += 0 if has_captured else num_tokens
        self._last, self._has_captured, self._measure = now, False, None


def figures(
    target: Model, draft: Model, rounds: Sequence[Round], num_rows: int, before: int, after: int
) -> dict[str, Any]:
    """What a window of rounds comes to.

    Args:
        num_rows: in flight. before, after: tokens of all rows together, prompts included, at its ends.

    Raises:
        RuntimeError: no round was free of captures.
    """
    timed = [each for each in rounds if not each.has_captured]
    captured = [each for each in rounds if each.has_captured]
    measures = [each.measure for each in timed if each.measure is not None]
    if not measures:
        raise RuntimeError("no time was left for a single round in steady state")
    matched = sum(int(each.matched_B.sum()) for each in measures)
    drafted = sum(int(each.draft_length_B.sum()) for each in measures)
    judged = sum(int(np.minimum(each.matched_B + 1, each.draft_length_B).sum()) for each in measures)
    rows = sum(each.num_rows for each in measures)
    tokens, seconds = sum(each.num_tokens for each in timed), sum(each.seconds for each in timed)
    row_tokens = (before + after) / 2
    steps = sum(each.num_draft_steps for each in measures) / len(timed)
    # A step reads the caches of the rows that still draft in it, so a row is read as often as it has drafts.
    row_steps = sum(int(each.draft_length_B[each.is_model_B].sum()) for each in measures) / len(timed)
    return {
        "tokens": tokens,
        "rounds": len(timed),
        "seconds": seconds,
        "captured_rounds": len(captured),
        "captured_seconds": sum(each.seconds for each in captured),
        "captured_tokens": sum(each.num_tokens for each in captured),
        "tokens_per_second": tokens / seconds,
        "round_seconds": seconds / len(timed),
        "round_bytes": round_bytes(
            target, draft if steps else None, row_tokens, steps, row_steps * row_tokens / num_rows
        ),
        "mean_row_tokens": row_tokens / num_rows,
        "draft_steps_per_round": steps,
        "drafted_per_round": drafted / rows,
        "accepted_per_round": matched / rows,
        "accepted_share": matched / drafted if drafted else None,
        "acceptance": matched / judged if judged else None,
    }
