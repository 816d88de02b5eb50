"""Work that is captured once as a CUDA graph and then launched as one; elsewhere it just runs.

A captured graph is bound to the addresses of everything that it touches. Work given to a book therefore reads and
writes static tensors only, and the book is emptied when any of them moves.
"""

from __future__ import annotations

import contextlib
import gc
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_WARM_UPS = 2
"""Runs before capture: kernels are compiled, and libraries take their workspace, outside of the graph."""
_EAGER_RUNS = 1
"""Runs of a key as it stands before it is captured. A capture waits for the device and takes as long as some rounds;
at the end of a job, or where the longest row crosses a bound, there are shapes that are met only once."""
_MOST_MET = 1024
"""Keys that are remembered as met; behind so many all are forgotten."""
_MOST_GRAPHS = 128
"""A graph holds hundreds of kernels and some megabytes; a job meets a few dozen shapes again and again."""


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: Any
    result: Tensor | None


class GraphBook:
    """Captured work by key; off CUDA everything runs as it stands, the twin of what is captured."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_capturing = device.type == "cuda"
        self._held: OrderedDict[Hashable, _Captured] = OrderedDict()  # the one used last stands last
        self._met: Counter[Hashable] = Counter()
        self._pool: Any = None
        self._aside: Any = None
        self._num_unusual = 0

    @property
    def num_unusual(self) -> int:
        """Runs so far whose seconds say nothing: launched kernel by kernel, or captured first."""
        return self._num_unusual

    def run(self, key: Hashable, work: Callable[[], Tensor | None], *, at_once: bool = False) -> Tensor | None:
        """Do some work: as it stands the first time that its key is met, captured the second time.

        Args:
            work: must give the same result when it is run again on the same static tensors, since it runs several
                times before it is captured; nothing in it may wait for the device.
            at_once: capture it the first time.

        Returns:
            the work's result, which the next run of any key may overwrite.
        """
        if not self._is_capturing:
            return work()
        held = self._held.get(key)
        if held is None:
            self._num_unusual += 1
            if not at_once and self._meet(key) <= _EAGER_RUNS:
                return work()
            self._make_room()
            held = self._held[key] = self._capture(work)
        self._held.move_to_end(key)
        held.graph.replay()
        return held.result

    def clear(self) -> None:
        """Forget all graphs; their memory is given back."""
        has_held = bool(self._held)
        if has_held:
            torch.cuda.synchronize(self._device)
        self._held.clear()
        self._pool = None
        if has_held:
            torch.cuda.empty_cache()  # what a pool has left is not found while another graph is being captured

    def _meet(self, key: Hashable) -> int:
        """How often a key without a graph has been met, this time included."""
        if len(self._met) >= _MOST_MET:
            self._met.clear()
        self._met[key] += 1
        return self._met[key]

    def _make_room(self) -> None:
        """Let the graphs go that were not used for longest; one of them may still be running."""
        if len(self._held) >= _MOST_GRAPHS:
            torch.cuda.synchronize(self._device)
        while len(self._held) >= _MOST_GRAPHS:
            self._held.popitem(last=False)

    def _capture(self, work: Callable[[], Tensor | None]) -> _Captured:
        current = torch.cuda.current_stream(self._device)
        self._aside = aside = self._aside or torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        aside.wait_stream(current)
        try:
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    work()
        finally:  # where it fails, too: what is under way there writes to pages that other rows may be given
            current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # One pool for all: they never run at the same time, so their temporaries may share memory.
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            # Other threads go on meanwhile; what they ask of the device is none of this graph's business.
            with (
                _no_collection(),
                torch.cuda.graph(graph, pool=self._pool, stream=aside, capture_error_mode="thread_local"),
            ):
                result = work()
        finally:
            torch.cuda.set_stream(current)  # where capturing fails, torch stays on the other stream
        return _Captured(graph, result)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Without Python's collector: it might destroy a graph that a cycle still held, which capturing does not bear."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
