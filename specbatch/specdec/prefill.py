"""How newly opened slots are grouped for prefill: pure.

Rows of one forward stand in consecutive slots and are padded to the longest; groups are cut so that padding stays
small, and a prompt beyond the chunk size goes alone, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CHUNK_TOKENS = 512
_MAX_PADDED_TOKENS = 512
_MAX_PADDING_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class PrefillGroup:
    """Consecutive slots from ``first_slot`` on, with the number of tokens to run in each."""

    first_slot: int
    lengths: tuple[int, ...]

    def chunks(self, start: int) -> Iterator[tuple[int, int]]:
        """Ranges of positions from ``start`` to the longest row's end, at most ``CHUNK_TOKENS`` wide."""
        stop = max(self.lengths)
        for begin in range(start, stop, CHUNK_TOKENS):
            yield begin, min(begin + CHUNK_TOKENS, stop)


def plan_prefill(slots: Sequence[int], lengths: Sequence[int]) -> list[PrefillGroup]:
    """Group slots for prefill.

    Args:
        slots: ascending slot numbers; lengths: prompt tokens of each, ascending where padding is to stay small.
    """
    groups: list[PrefillGroup] = []
    for slot, length in zip(slots, lengths, strict=True):
        if groups and _fits(groups[-1], slot, length):
            groups[-1] = PrefillGroup(groups[-1].first_slot, (*groups[-1].lengths, length))
        else:
            groups.append(PrefillGroup(slot, (length,)))
    return groups


def _fits(group: PrefillGroup, slot: int, length: int) -> bool:
    lengths = (*group.lengths, length)
    padded = max(lengths) * len(lengths)
    is_next = slot == group.first_slot + len(group.lengths)
    return is_next and padded <= _MAX_PADDED_TOKENS and padded - sum(lengths) <= _MAX_PADDING_SHARE * padded
