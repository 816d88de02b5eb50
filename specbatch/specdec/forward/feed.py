"""Ragged tokens for one forward: what both model paths are fed.

A forward takes tokens of several slots at once, a different number from each. Products of weights see one flat row of
tokens, so nothing is paid for padding there. Attention needs rows and columns: segments that are short are padded to a
common width and attend in one call, every long one (a piece of a prompt) attends alone.

Keys and values are read where they lie, so a group covers consecutive slots; a slot in between that is not fed has a
segment of no tokens.

Shape letters: M tokens of the forward, R segments, G tokens of one group, B rows of a group, T its width, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specbatch.specdec.accept import IntArray

GROUP_WIDTH = 16
"""Segments up to this length are padded to one another; it also bounds how far padding stands beyond a row's end."""


@dataclass(frozen=True, slots=True)
class Group:
    """Segments that attend in one call, in consecutive slots.

    Attributes:
        begin, end: the group's range in the flat tokens.
        first_slot, num_rows, width: slots ``first_slot`` .. ``first_slot + B``, T queries each.
        num_keys: keys that are read of every slot.
        gather_BT: int64 flat token of every query; padding repeats a token of the group.
        scatter_G: int64 place in B * T of every token of the group.
        position_BT: int64 position of every query, padding too.
        is_dense: no padding anywhere.
    """

    begin: int
    end: int
    first_slot: int
    num_rows: int
    width: int
    num_keys: int
    gather_BT: Tensor
    scatter_G: Tensor
    position_BT: Tensor
    is_dense: bool


@dataclass(frozen=True, slots=True)
class Padded:
    """A layout on the device as slot memory wants it; ``slot_M`` and ``position_M`` are int64."""

    slot_M: Tensor
    position_M: Tensor
    groups: tuple[Group, ...]


class Feed:
    """One forward: int64 tokens on the model's device, and where they stand.

    What crosses to the device of the layout depends on the memory that keys and values are in: ``padded`` is for slots,
    pages make their own of it (``paged_memory``).
    """

    def __init__(self, token_M: Tensor, layout: Layout) -> None:
        self.token_M = token_M
        self.layout = layout

    @cached_property
    def padded(self) -> Padded:
        """The layout as padded groups, sent when it is first asked for."""
        return self.layout.padded(self.token_M.device)


class KeyValueMemory(Protocol):
    """Keys and values of all slots of one model."""

    @property
    def max_positions(self) -> int: ...
    def copy(self, source: int, destination: int, num_positions: int) -> None: ...
    def clear(self, slot: int) -> None: ...
    def resize(self, num_slots: int, max_positions: int) -> None: ...
    @property
    def num_bytes(self) -> int: ...


class Decoder(Protocol):
    """One resident model: the face that both model paths have.

    Attributes:
        path: ``lean`` or ``generic``.
        context_length: positions that the model knows.
        vocab_size: real vocabulary; logits are cut to it.
        settles_near_ties: whether canonical evaluation is worth its price. It is not where two evaluations have the
            same bits anyway, nor where they differ by more than rounding.
        is_invariant: a token's logits have the same bits whatever is computed beside it.
    """

    path: str
    context_length: int
    vocab_size: int

    @property
    def settles_near_ties(self) -> bool: ...
    @property
    def is_invariant(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def cache(self) -> KeyValueMemory: ...
    @property
    def weight_bytes(self) -> int: ...

    def run(self, feed: Feed, keep_N: IntArray | None) -> Tensor:
        """Logits [N, V] at the flat tokens ``keep_N``, ascending (None: at all), in the model's dtype."""

    def canonical_logits(self, token_T: Tensor) -> Tensor:
        """Logits [V] behind one whole prefix, evaluated alone, so that every run gets the same bits."""


class Layout:
    """Where the tokens of a forward stand: pure, on the host. The order of the flat tokens is that of the segments.

    Args:
        slot_R: ascending slots. start_R: position of each segment's first token. count_R: its tokens; 0 is allowed
            for slots that stand between others.

    Attributes:
        num_tokens: of all segments. slot_M, position_M: where each token stands. offset_R: where segments begin in the
            flat tokens.
    """

    def __init__(self, slot_R: IntArray, start_R: IntArray, count_R: IntArray) -> None:
        self.slot_R, self.start_R, self.count_R = slot_R, start_R, count_R
        self.num_tokens = int(count_R.sum())
        self.offset_R = offset_R = np.cumsum(count_R) - count_R
        self.slot_M = np.repeat(slot_R, count_R)
        self.position_M = np.arange(self.num_tokens) + np.repeat(start_R - offset_R, count_R)

    def feed(self, token_M: Tensor) -> Feed:
        """The layout with its tokens."""
        return Feed(token_M, self)

    def padded(self, device: torch.device) -> Padded:
        """Bring groups and places to the device in one transfer."""
        arrays: list[IntArray] = [self.slot_M, self.position_M]
        shapes = []
        runs = self._split()
        for run in runs:
            gather_BT, scatter_G, position_BT = self._pad(run)
            shapes.append((len(run), gather_BT.shape[1]))
            arrays += [gather_BT.ravel(), scatter_G, position_BT.ravel()]
        sent = iter(send(arrays, device))
        slot_M, position_M = next(sent), next(sent)
        groups = []
        for run, shape in zip(runs, shapes, strict=True):
            gather, scatter, position = next(sent), next(sent), next(sent)
            groups.append(self._group(run, shape, gather.view(shape), scatter, position.view(shape)))
        return Padded(slot_M, position_M, tuple(groups))

    def _split(self) -> list[range]:
        """Runs of segments that attend together: short ones in consecutive slots; a long one alone."""
        runs: list[range] = []
        is_short_R = self.count_R <= GROUP_WIDTH
        for r in range(len(self.slot_R)):
            last = runs[-1].stop - 1 if runs else -1
            if runs and is_short_R[r] and is_short_R[last] and self.slot_R[r] == self.slot_R[last] + 1:
                runs[-1] = range(runs[-1].start, r + 1)
            elif self.count_R[r] > 0:
                runs.append(range(r, r + 1))
        return [_trimmed(run, self.count_R) for run in runs]

    def _pad(self, run: range) -> tuple[IntArray, IntArray, IntArray]:
        rows = slice(run.start, run.stop)
        count_B = self.count_R[rows]
        begin, width = int(self.offset_R[run.start]), int(count_B.max())
        column_T = np.arange(width)
        gather_BT = (self.offset_R[rows] - begin)[:, None] + np.minimum(column_T, np.maximum(count_B - 1, 0)[:, None])
        gather_BT = np.minimum(gather_BT, int(count_B.sum()) - 1)
        position_BT = self.start_R[rows][:, None] + column_T
        scatter_G = np.nonzero((column_T < count_B[:, None]).ravel())[0]
        return gather_BT, scatter_G, position_BT

    def _group(self, run: range, shape: tuple[int, int], gather: Tensor, scatter: Tensor, position: Tensor) -> Group:
        rows = slice(run.start, run.stop)
        count_B, start_B = self.count_R[rows], self.start_R[rows]
        begin = int(self.offset_R[run.start])
        num_tokens = int(count_B.sum())
        return Group(
            begin=begin,
            end=begin + num_tokens,
            first_slot=int(self.slot_R[run.start]),
            num_rows=shape[0],
            width=shape[1],
            num_keys=int((start_B + count_B)[count_B > 0].max()),
            gather_BT=gather,
            scatter_G=scatter,
            position_BT=position,
            is_dense=num_tokens == shape[0] * shape[1],
        )


def _trimmed(run: range, count_R: IntArray) -> range:
    """Without segments of no tokens at the end; a run never begins with one."""
    stop = run.stop
    while count_R[stop - 1] == 0:
        stop -= 1
    return range(run.start, stop)


def send(arrays: Sequence[IntArray], device: torch.device) -> list[Tensor]:
    """Host arrays to the device as views of one tensor: one transfer instead of many."""
    return list(torch.split(on_device(np.concatenate(arrays), device), [len(array) for array in arrays]))


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A host array on the device. On a GPU the host waits neither for the copy nor for what is before it in the queue.

    That takes memory that the device can read by itself, and a buffer that nobody writes to meanwhile: each call takes
    one, and torch hands it out again when its copy is over. What lies elsewhere is staged by the driver, in turn.
    """
    host = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)
