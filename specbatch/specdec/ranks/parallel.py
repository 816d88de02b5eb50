"""A target that several ranks share, behind the face of one decoder.

The leader's engine sees a ``ParallelDecoder``. Every call of it is told to the followers and then done by all ranks,
each on its share of the weights and with its own key-value slots; the logits come together on the leader. Draft,
sampling and everything that decides are the leader's alone.

Two kinds of calls. Those on the slots (copy, clear, resize) meet no other rank on the way: each rank says how it went,
and an error of any of them is the leader's error too. All have done the same or can be told to do less, so a rank that
runs out of memory while slots grow is overload like any other. A forward meets the others in every layer: a rank that
fails there leaves them waiting, and cannot take it back. Its failure is the end of the group.

Shape letters: M tokens of a forward, N kept tokens, R segments, T tokens of a whole prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from specbatch.schemas.failpoints import failpoint
from specbatch.specdec.accept import IntArray
from specbatch.specdec.forward.cache import SlotCache
from specbatch.specdec.forward.feed import Feed, Layout
from specbatch.specdec.forward.generic import GenericDecoder
from specbatch.specdec.forward.runner import ModelRunner, give_back_memory, load_model
from specbatch.specdec.ranks.group import Follower, Leader


@dataclass(frozen=True, slots=True)
class Load:
    """Load a target and make its slots; the arguments are those of ``load_share``."""

    path: Path
    dtype: str
    num_slots: int
    max_positions: int
    context_length: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class SlotCall:
    """Call a method of the slots."""

    method: str
    arguments: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """A forward of a layout, see ``feed.Layout``; its tokens follow in one broadcast."""

    slot_R: IntArray
    start_R: IntArray
    count_R: IntArray
    keep_N: IntArray | None

    @property
    def num_tokens(self) -> int:
        """Of all segments."""
        return int(self.count_R.sum())


@dataclass(frozen=True, slots=True)
class Canonical:
    """A canonical evaluation of so many tokens, which follow in one broadcast."""

    num_tokens: int


class ParallelSlots:
    """The slots of all ranks, seen from the leader."""

    def __init__(self, leader: Leader, own: SlotCache) -> None:
        self._leader, self._own = leader, own
        self.max_positions = own.max_positions

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values on the leader's device."""
        return self._own.num_bytes

    def copy(self, source: int, destination: int, num_positions: int) -> None:
        """See ``feed.KeyValueMemory``."""
        self._call("copy", source, destination, num_positions)

    def clear(self, slot: int) -> None:
        """See ``feed.KeyValueMemory``."""
        self._call("clear", slot)

    def resize(self, num_slots: int, max_positions: int) -> None:
        """See ``feed.KeyValueMemory``."""
        self.max_positions = max_positions
        self._call("resize", num_slots, max_positions)

    def _call(self, method: str, *arguments: int) -> None:
        self._leader.tell(SlotCall(method, arguments))
        try:
            getattr(self._own, method)(*arguments)
        finally:
            self._leader.answers()  # read them whatever happened here: the ranks stay in step


class ParallelDecoder:
    """The leader's decoder of a target that all ranks have loaded."""

    path = "generic"
    settles_near_ties = True
    is_invariant = False

    def __init__(self, leader: Leader, own: GenericDecoder) -> None:
        self._leader, self._own = leader, own
        self.context_length = own.context_length
        self.vocab_size = own.vocab_size
        self._slots = ParallelSlots(leader, own.cache)

    @property
    def cache(self) -> ParallelSlots:
        return self._slots

    @property
    def device(self) -> torch.device:
        return self._own.device

    @property
    def dtype(self) -> torch.dtype:
        return self._own.dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on the leader's device."""
        return self._own.weight_bytes

    def run(self, feed: Feed, keep_N: IntArray | None) -> Tensor:
        """See ``feed.Decoder``."""
        layout = feed.layout
        message = Run(layout.slot_R, layout.start_R, layout.count_R, keep_N)
        return self._together(message, feed.token_M, lambda: self._own.run(feed, keep_N))

    def canonical_logits(self, token_T: Tensor) -> Tensor:
        """See ``feed.Decoder``. The sums are split among the ranks as in every other run of so many."""
        return self._together(Canonical(len(token_T)), token_T, lambda: self._own.canonical_logits(token_T))

    def _together(self, message: object, token_M: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        self._leader.tell(message)
        try:
            dist.broadcast(token_M.contiguous(), src=0)
            return compute()
        except Exception as error:
            ending = self._leader.fail(error)
            raise ending from (None if ending is error else error)


def load_parallel(
    leader: Leader,
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    num_slots: int,
    max_positions: int,
    context_length: int,
    vocab_size: int,
) -> ParallelDecoder:
    """Load a target on all ranks, each its share.

    Raises:
        SpecbatchError: JOB_MODEL_LOAD, from whichever rank. GroupLostError.
    """
    load = Load(path, str(dtype).removeprefix("torch."), num_slots, max_positions, context_length, vocab_size)
    leader.tell(load)
    try:
        own = load_share(load, device, leader.num_ranks)
    except Exception as error:
        ending = leader.fail(error)
        raise ending from (None if ending is error else error)
    leader.answers()
    return ParallelDecoder(leader, own)


def load_share(load: Load, device: torch.device, num_ranks: int) -> GenericDecoder:
    """This rank's share of a target, and its slots. Nothing is packed: a packed weight cannot be divided.

    Raises:
        SpecbatchError: JOB_MODEL_LOAD.
    """
    model = load_model(load.path, getattr(torch, load.dtype), device, num_ranks=num_ranks)
    runner = ModelRunner(
        model,
        num_slots=load.num_slots,
        max_positions=load.max_positions,
        context_length=load.context_length,
        vocab_size=load.vocab_size,
    )
    return GenericDecoder(runner)


@torch.inference_mode()
def follow(follower: Follower, device: torch.device, num_ranks: int) -> None:
    """Do what the leader says, until it says that this was all.

    Raises:
        Exception: a forward failed here. The leader knows why, and the process ends.
    """
    try:
        _follow(follower, device, num_ranks)
    except Exception as error:
        follower.end(error)
        raise


def _follow(follower: Follower, device: torch.device, num_ranks: int) -> None:
    decoder: GenericDecoder | None = None
    for message in follower.messages():
        if isinstance(message, Load):
            if decoder is not None:  # a second load replaces the first
                decoder = None
                give_back_memory(device)
            with torch.inference_mode(False), _answered(follower):
                decoder = load_share(message, device, num_ranks)
            continue
        assert decoder is not None, "a leader loads before it decodes"
        if isinstance(message, SlotCall):
            with _answered(follower):
                getattr(decoder.cache, message.method)(*message.arguments)
            continue
        failpoint("rank_forward:before")
        _forward(decoder, message, device)


@contextmanager
def _answered(follower: Follower) -> Iterator[None]:
    """Tell the leader how something went that meets no other rank on its way; its error is the leader's to raise."""
    try:
        yield
    except Exception as error:
        follower.answer(error)
    else:
        follower.answer()


def _forward(decoder: GenericDecoder, message: Run | Canonical, device: torch.device) -> None:
    token_M = torch.empty(message.num_tokens, dtype=torch.int64, device=device)
    dist.broadcast(token_M, src=0)
    if isinstance(message, Canonical):
        decoder.canonical_logits(token_M)
    else:
        decoder.run(Layout(message.slot_R, message.start_R, message.count_R).feed(token_M), message.keep_N)
