"""Where the wall time of an engine goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from specbatch.schemas.stats import PhaseSeconds

_DEVICE_PHASES = ("propose", "score", "prefill")
"""Phases that end when what they have asked of the device is done; the others wait for what they need anyway."""


class PhaseClock:
    """Wall seconds by phase."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = PhaseSeconds()
        self._device = device

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to a phase."""
        started = time.perf_counter()
        try:
            yield
            if self._device.type == "cuda" and phase in _DEVICE_PHASES:
                torch.cuda.synchronize(self._device)
        finally:
            self.add(phase, time.perf_counter() - started)

    def add(self, phase: str, seconds: float) -> None:
        """Add time that was measured elsewhere."""
        self.seconds = replace(self.seconds, **{phase: getattr(self.seconds, phase) + seconds})
