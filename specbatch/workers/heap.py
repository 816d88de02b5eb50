"""Python's cyclic collector in a worker process: out of the way while models load, and of what they left behind.

Loading makes some hundred thousand objects that live as long as the process. The collector would walk them again and
again: one to three seconds of start-up, and a part of what a row costs besides decoding (docs/decisions/0027).
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_YOUNG_OBJECTS = 20_000
"""New containers between two collections. A shard's rows are that many, and nearly all of them end without it."""


@contextlib.contextmanager
def made_to_stay() -> Iterator[None]:
    """Collect nothing in this block; what is there at its end is never looked at again. For the whole process."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
        gc.enable()
