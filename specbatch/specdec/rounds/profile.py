"""The micro-profile at start: what a forward of the target and a step of the draft cost on this machine, by size.

The controller begins with these and replaces them by what the job's own rounds cost. The forwards run on free slots,
whose contents mean nothing yet.

Shape letters: B rows, M tokens of the forward.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from specbatch.specdec.accept import IntArray
from specbatch.specdec.forward.feed import GROUP_WIDTH, Decoder
from specbatch.specdec.models.memory import AUTO_DRAFT_LENGTH
from specbatch.specdec.rounds.captured import CapturedRounds
from specbatch.specdec.rows.batch import Batch
from specbatch.specdec.rows.overload import is_out_of_memory

_BUDGET_SECONDS = 0.25
_CAPTURED_BUDGET_SECONDS = 3.0
"""A short job must not spend its time on looking forward to it; sizes that come too late are left out."""
_TYPICAL_CONTEXT = 64
_LARGEST_WINDOW = AUTO_DRAFT_LENGTH + 1


def profile(batch: Batch, max_rows: int) -> tuple[dict[int, float], dict[int, float]]:
    """Seconds of target forwards by tokens scored, and of draft steps by rows.

    Args:
        max_rows: rows that may be in flight.
    """
    deadline = time.perf_counter() + _BUDGET_SECONDS
    steps: dict[int, float] = {}
    if batch.draft is not None:
        for num_rows in sorted({max_rows, 1}, reverse=True):
            steps[num_rows] = _seconds(batch, batch.draft, num_rows, 1)
    score: dict[int, float] = {}
    for num_rows, window in _shapes(max_rows):
        if time.perf_counter() > deadline:
            break
        score[num_rows * window] = _seconds(batch, batch.target, num_rows, window)
    batch.slots.target_kv_S[:] = batch.slots.draft_kv_S[:] = 0
    return score, steps


def profile_captured(
    rounds: CapturedRounds, max_rows: int, *, most_drafts: int, has_draft: bool
) -> tuple[dict[int, float], dict[int, float]]:
    """The same of captured rounds: launched one by one, their kernels would cost far more.

    Where memory does not suffice for the largest, what was measured before is all there is. No graph is kept: rows that
    are longer or drawn otherwise have graphs of their own, and their number is bounded.

    Args:
        most_drafts: the largest K of a round.
        has_draft: a draft model proposes.
    """
    steps: dict[int, float] = {}
    score: dict[int, float] = {}
    try:
        # The largest shape first: what it takes is there for all smaller ones. It compiles kernels too, out of budget.
        num_steps = most_drafts if has_draft else 0
        score[max_rows * (most_drafts + 1)] = rounds.seconds_of(max_rows, most_drafts, num_steps)[1]
        deadline = time.perf_counter() + _CAPTURED_BUDGET_SECONDS
        for num_rows in sorted({max_rows, 1}, reverse=True) if has_draft else ():
            steps[num_rows] = rounds.seconds_of(num_rows, 1, 1)[0]
        for num_rows, window in _shapes(max_rows):
            if time.perf_counter() > deadline:
                break
            score[num_rows * window] = rounds.seconds_of(num_rows, window - 1, 0)[1]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise  # else the job will find out how many rows there is room for
    rounds.clear()
    return score, steps


def _shapes(max_rows: int) -> list[tuple[int, int]]:
    """(rows, tokens of each), the most telling first: all rows plainly, then with drafts, then few rows."""
    windows = [(max_rows, 1), (max_rows, 2), (max_rows, 4)]
    alone = [(1, 1), (1, _LARGEST_WINDOW), (1, 3), (max_rows, 3), (max_rows, 6)]
    return list(dict.fromkeys(windows + [shape for shape in alone if shape not in windows]))


def _seconds(batch: Batch, decoder: Decoder, num_rows: int, window: int) -> float:
    """Best of two forwards: the first of a size may set something up, and a disturbance only ever makes one slower."""
    room = min(decoder.context_length, decoder.cache.max_positions) - 2 * GROUP_WIDTH
    context = min(_TYPICAL_CONTEXT, room)
    row_B: IntArray = np.arange(num_rows)
    layout = batch.layout(row_B, np.full(num_rows, max(context, 0)), np.full(num_rows, window))
    token_M = torch.zeros(layout.num_tokens, dtype=torch.int64, device=batch.device)
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        decoder.run(layout.feed(token_M), None)[:1].cpu()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
