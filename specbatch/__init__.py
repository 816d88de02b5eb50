"""Batch generation with speculative decoding: the same text, sooner, and exactly one result per row.

``submit``, ``report`` and ``load`` are imported when first used, so that ``import specbatch`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from specbatch._version import __version__

if TYPE_CHECKING:
    from specbatch.jobs.api import JobOutcome, load, report, submit

__all__ = ["JobOutcome", "__version__", "load", "report", "submit"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from specbatch.jobs import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
