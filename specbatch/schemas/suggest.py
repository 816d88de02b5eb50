"""The nearest known name to one that does not exist, for messages that end with a question."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

_MAX_NAMES = 2000
_MAX_CHARACTERS = 100
_CUTOFF = 0.6


def closest(name: str, known: Iterable[str], *, cutoff: float = _CUTOFF) -> str | None:
    """The known name that is most like ``name``, capitals aside; None where none is near.

    Names may come from a hostile file, so only so many of them, and only so long ones, are looked at.
    """
    folded: dict[str, str] = {}
    for each in islice(known, _MAX_NAMES):
        if len(each) <= _MAX_CHARACTERS:
            folded.setdefault(each.casefold(), each)
    found = difflib.get_close_matches(name[:_MAX_CHARACTERS].casefold(), list(folded), n=1, cutoff=cutoff)
    return folded[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """``did you mean 'prompt'?``, or ``otherwise`` where no known name is near."""
    near = closest(name, known)
    return otherwise if near is None else f"did you mean {near!r}?"
