"""Speculative decoding as a library: torch and transformers only, no Ray, no storage, no command line.

>>> from specbatch.specdec import Engine, SamplingParams
>>> engine = Engine.from_pretrained("code-pair/target", draft="code-pair/draft-taught", max_batch_size=8)
>>> outputs = engine.generate(["def f(x):"], SamplingParams(max_new_tokens=16))
>>> outputs[0].finish_reason
'length'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.output import SequenceOutput

if TYPE_CHECKING:
    from specbatch.specdec.engine import Engine

__all__ = ["Engine", "SamplingParams", "SequenceOutput"]


def __getattr__(name: str) -> object:
    """Import torch only when the engine itself is asked for: planning uses this package too."""
    if name == "Engine":
        from specbatch.specdec.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
