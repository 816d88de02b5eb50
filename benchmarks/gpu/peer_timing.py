"""How a peer is timed: a run to the full length, less a run that ends with the first token."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gpu.models import Pair
from gpu.roof import synchronize

REPEATS = 2
"""How often everything is run; the fastest counts."""
_LEAST_DECODE_SHARE = 0.1
"""A run must take so much longer than its first token, or the difference of the two is noise."""

Texts = list[list[int]]
Run = Callable[[int], Texts]
"""Decode so many tokens behind every prompt."""


class TooSlowError(Exception):
    """The peer did not come to its last token before the deadline."""


class StillRunningError(TooSlowError):
    """Its thread goes on although it was told to stop: nothing that is measured beside it means anything."""


def timed(
    pair: Pair, run: Run, new_tokens: int, *, warm_tokens: int = 4, repeats: int = REPEATS
) -> tuple[dict[str, Any], Texts]:
    """Seconds of the first token and of all further ones, behind a run that warms up; the fastest of ``repeats``.

    Raises:
        RuntimeError: the two are too near each other for their difference to mean anything.
    """
    run(min(warm_tokens, new_tokens))
    first, whole = float("inf"), float("inf")
    texts: Texts = []
    for _ in range(repeats):
        first = min(first, _seconds(pair, lambda: run(1))[0])
        seconds, texts = _seconds(pair, lambda: run(new_tokens))
        whole = min(whole, seconds)
    if whole - first < _LEAST_DECODE_SHARE * whole:
        raise RuntimeError(
            f"its decoding cannot be told from its reading of prompts: {new_tokens} tokens took {whole:.3f} s, the "
            f"first of them {first:.3f} s"
        )
    return {"first_seconds": first, "seconds": whole - first}, texts


def _seconds(pair: Pair, run: Callable[[], Texts]) -> tuple[float, Texts]:
    synchronize(pair.device)
    started = time.perf_counter()
    texts = run()
    synchronize(pair.device)
    return time.perf_counter() - started, texts
