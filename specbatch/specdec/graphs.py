"""Work that is captured once as a CUDA graph and then launched as one; elsewhere it just runs.

A captured graph is bound to the addresses of everything that it touches. Work given to a book therefore reads and
writes static tensors only, and the book is emptied when any of them moves.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_WARM_UPS = 2
"""Runs before capture: kernels are compiled, and libraries take their workspace, outside of the graph."""


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: Any
    result: Tensor | None


class GraphBook:
    """Captured work by key; off CUDA everything runs as it stands, the twin of what is captured."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_capturing = device.type == "cuda"
        self._held: dict[Hashable, _Captured] = {}
        self._pool: Any = None

    @property
    def num_graphs(self) -> int:
        """Graphs held."""
        return len(self._held)

    def run(self, key: Hashable, work: Callable[[], Tensor | None]) -> Tensor | None:
        """Do some work, captured the first time that its key is met.

        Args:
            work: must give the same result when it is run again on the same static tensors, since it runs several
                times before it is captured; nothing in it may wait for the device.

        Returns:
            the work's result, which the next run of any key may overwrite.
        """
        if not self._is_capturing:
            return work()
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = self._capture(work)
        held.graph.replay()
        return held.result

    def clear(self) -> None:
        """Forget all graphs; their memory is given back."""
        if self._held:
            torch.cuda.synchronize(self._device)
        self._held.clear()
        self._pool = None

    def _capture(self, work: Callable[[], Tensor | None]) -> _Captured:
        aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                work()
        torch.cuda.current_stream(self._device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # One pool for all: they never run at the same time, so their temporaries may share memory.
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._pool):
            result = work()
        return _Captured(graph, result)
