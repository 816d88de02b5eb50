"""Prompts that begin alike share their beginning: pure functions over the tokens that the slots hold.

A system prompt, a few-shot header, the samples of one prompt: what the target has read once in any slot, also in one
whose row has ended, is copied instead of computed.

Shape letters: S slots, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specbatch.specdec.accept import IntArray

MIN_SHARED_TOKENS = 16
"""Shorter beginnings are cheaper to compute than to look after."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """What a pending row should do: copy ``num_tokens`` from ``source``, or wait for ``source``, or neither."""

    source: int
    num_tokens: int
    must_wait: bool = False


def common_prefix(token_SP: IntArray, length_S: IntArray, prompt: IntArray) -> IntArray:
    """Tokens of ``prompt`` that each slot's first ``length_S`` tokens begin with, int64 [S]."""
    width = min(len(prompt), token_SP.shape[1])
    is_equal = (token_SP[:, :width] == prompt[:width]) & (np.arange(width) < length_S[:, None])
    count_S: IntArray = np.cumprod(is_equal, axis=1, dtype=np.int64).sum(axis=1)
    return count_S


def plan_sharing(
    slot: int, own_kv: int, prompt: IntArray, token_SP: IntArray, kv_S: IntArray, length_S: IntArray, pending: list[int]
) -> Sharing | None:
    """How a pending row gets its beginning.

    Args:
        slot: the row's slot. own_kv: tokens that its cache holds already. prompt: its tokens but the last, which is
            always fed, because only a token that is fed has logits.
        kv_S: tokens in the target's cache. length_S: tokens that the rows have, or of closed slots 0.
        pending: slots of pending rows that are fed before this one.
    """
    held_S = common_prefix(token_SP, kv_S, prompt)
    source = int(held_S.argmax())
    if source != slot and held_S[source] >= own_kv + MIN_SHARED_TOKENS:
        return Sharing(source, int(held_S[source]))
    if pending:
        coming_S = common_prefix(token_SP[pending], length_S[pending], prompt)
        best = int(coming_S.argmax())
        if coming_S[best] >= max(own_kv, int(held_S[slot])) + MIN_SHARED_TOKENS:
            return Sharing(pending[best], int(coming_S[best]), must_wait=True)
    return None
