"""Prompts that begin alike share their beginning: pure functions over the tokens that the slots hold.

A system prompt, a few-shot header, the samples of one prompt: what the target has read once in any slot, also in one
whose row has ended, is copied instead of computed.

Shape letters: S slots, P positions, R slots that are looked at, C of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specbatch.specdec.accept import IntArray

MIN_SHARED_TOKENS = 16
"""Shorter beginnings are cheaper to compute than to look after."""

_STRETCH_GROWTH = 4


@dataclass(frozen=True, slots=True)
class Sharing:
    """What a pending row should do: copy ``num_tokens`` from ``source``, or wait for ``source``, or neither."""

    source: int
    num_tokens: int
    must_wait: bool = False


def common_prefix(token_SP: IntArray, length_S: IntArray, prompt: IntArray, slot_R: IntArray | None = None) -> IntArray:
    """Tokens of ``prompt`` that each slot's first ``length_S`` tokens begin with, int64 [S]; of ``slot_R`` only, [R].

    Most slots part from a prompt within a few tokens, so stretches are compared that grow, each of the slots that have
    not parted yet: what is read grows with what is common, not with the width of the table.
    """
    slot_R = np.arange(len(length_S)) if slot_R is None else slot_R
    known_R = np.minimum(length_S[slot_R], min(len(prompt), token_SP.shape[1]))
    count_R: IntArray = np.zeros(len(slot_R), dtype=np.int64)
    alike = np.flatnonzero(known_R > 0)
    begin, end = 0, MIN_SHARED_TOKENS
    while len(alike):
        end = min(end, int(known_R[alike].max()))
        is_equal = token_SP[slot_R[alike], begin:end] == prompt[begin:end]
        num_equal_C = np.where(is_equal.all(axis=1), end - begin, is_equal.argmin(axis=1))
        count_R[alike] = np.minimum(begin + num_equal_C, known_R[alike])
        alike = alike[(num_equal_C == end - begin) & (known_R[alike] > end)]
        begin, end = end, _STRETCH_GROWTH * end
    return count_R


def plan_sharing(
    slot: int, own_kv: int, prompt: IntArray, token_SP: IntArray, kv_S: IntArray, length_S: IntArray, pending: list[int]
) -> Sharing | None:
    """How a pending row gets its beginning.

    Args:
        slot: the row's slot. own_kv: tokens that its cache holds already. prompt: its tokens but the last, which is
            always fed, because only a token that is fed has logits.
        kv_S: tokens in the target's cache. length_S: tokens that rows have; a closed slot keeps those of its last row.
        pending: slots of pending rows that are fed before this one; of ``length_S`` only theirs are looked at.
    """
    held_S = common_prefix(token_SP, kv_S, prompt)
    source = int(held_S.argmax())
    if pending:
        coming_R = common_prefix(token_SP, length_S, prompt, np.array(pending))
        best = int(coming_R.argmax())
        if coming_R[best] >= max(own_kv, int(held_S[source])) + MIN_SHARED_TOKENS:
            return Sharing(pending[best], int(coming_R[best]), must_wait=True)
    if source != slot and held_S[source] >= own_kv + MIN_SHARED_TOKENS:
        return Sharing(source, int(held_S[source]))
    return None
