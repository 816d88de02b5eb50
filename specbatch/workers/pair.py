"""The engine as a worker drives it: rows of a shard that nobody wants any more leave it, and it is asked for proof."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable

import torch

from specbatch.specdec.engine import Engine


class PairEngine(Engine):
    """An engine whose single rows can be cancelled; ``note`` is what the user should know about how it was loaded."""

    note: str | None = None

    def cancel(self, keys: Collection[Hashable]) -> None:
        """Forget some sequences, queued or in flight; ``step`` returns none of them any more."""
        self._queue = deque(request for request in self._queue if request.key not in keys)
        slots = self._batch.slots
        for slot in range(slots.num_active - 1, -1, -1):
            request = slots.requests[slot]
            if request is not None and request.key in keys:
                self._batch.preempt(slot)

    @torch.inference_mode()
    def check_device(self) -> None:
        """Evaluate a short fixed prefix again.

        Raises:
            SpecbatchError: JOB_DEVICE; the answer is not the one that was given when the engine was made.
        """
        self._selftest.check()
