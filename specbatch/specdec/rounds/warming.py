"""Everything that a device must do once is done while the engine is made, where nobody waits for a sign of life.

A kernel is compiled when it is first launched, one for each model, type and kind of tile: a minute for all of them
where none is in Triton's cache. Inside of a step that minute would look like a worker that hangs.

Shape letters: B rows, M tokens of a forward.
"""

from __future__ import annotations

import numpy as np

from specbatch.specdec.forward.feed import Decoder
from specbatch.specdec.forward.paged_memory import pages_of
from specbatch.specdec.rounds.captured import CapturedRounds
from specbatch.specdec.rounds.prefill import DEVICE_CHUNK_TOKENS
from specbatch.specdec.rows.batch import Batch
from specbatch.specdec.rows.overload import is_out_of_memory

_TEMPERATURES = (0.0, 1.0)
"""Draws at temperature 0 need no noise: they are another kernel."""


def warm(batch: Batch, captured: CapturedRounds | None, max_rows: int) -> None:
    """Launch every kernel of rounds and prompts once, on the scratch page: no row is there yet, and none is touched.

    Where memory does not suffice for the largest, it is left to the job to find out how much does.

    Args:
        max_rows: rows that may be in flight.
    """
    try:
        for decoder in batch.decoders:
            if pages_of(decoder) is not None:
                for num_rows, count in shapes(max_rows, decoder.cache.max_positions):
                    _run(batch, decoder, num_rows, count)
        if captured is not None:
            most_drafts = batch.policy.max_draft_length
            num_steps = most_drafts if batch.policy.uses_model else 0
            for temperature in _TEMPERATURES:
                captured.seconds_of(max_rows, most_drafts, num_steps, temperature=temperature)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if captured is not None:
        captured.clear()  # rows that are longer have graphs of their own


def shapes(max_rows: int, max_positions: int) -> list[tuple[int, int]]:
    """Rows and tokens of each, powers of two: from one token of every row to a whole chunk of one prompt.

    The shape of a tile follows from the tokens of a row and from how many rows there are, see ``kernels.launch``.
    """
    longest = min(DEVICE_CHUNK_TOKENS, max_positions)
    counts = [1 << power for power in range(longest.bit_length())]
    return [(max(min(max_rows, DEVICE_CHUNK_TOKENS // count), 1), count) for count in counts]


def _run(batch: Batch, decoder: Decoder, num_rows: int, count: int) -> None:
    """A forward of free slots, which hold no page."""
    row_B = np.arange(num_rows)
    layout = batch.layout(row_B, np.zeros_like(row_B), np.full(num_rows, count))
    token_M = batch.tensor(np.zeros(num_rows * count, dtype=np.int64))
    decoder.run(layout.feed(token_M), row_B * count)
