"""The sampling of a batch on tensors that stay where they are, for rounds that are captured.

Shape letters: B rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specbatch.specdec.sampling.tensors import SamplingTensors
from specbatch.specdec.sampling.winner import DEVICE_PREFIX

_ROW_FIELDS = (
    "seed_B",
    "top_k_B",
    "min_new_tokens_B",
    "num_forced_B",
    "profile_B",
    "temperature_B",
    "top_p_B",
    "log_min_p_B",
    "repetition_B",
    "presence_B",
    "frequency_B",
    "gain_B",
    "is_truncated_B",
)


class StaticSampling:
    """Holds the sampling tensors of up to so many rows. Rows beyond those that were loaded are drawn too: greedily.

    Args:
        like: the sampling of any rows; it says which dtypes the tensors have.
    """

    def __init__(self, num_rows: int, like: SamplingTensors) -> None:
        self._held: dict[str, Tensor] = {
            name: torch.zeros(num_rows, dtype=getattr(like, name).dtype, device=getattr(like, name).device)
            for name in _ROW_FIELDS
        }
        self._loaded: SamplingTensors | None = None

    @staticmethod
    def can_hold(sampling: SamplingTensors) -> bool:
        """Whether rows are drawn by temperature and truncation alone: what changes logits has shapes of its own."""
        return not sampling.has_changes

    def load(self, sampling: SamplingTensors, num_rows: int) -> SamplingTensors:
        """Copy the sampling of some rows; returns it on the static tensors, for ``num_rows`` rows."""
        if sampling is not self._loaded:
            for name, held in self._held.items():
                values = getattr(sampling, name)
                held[: len(values)].copy_(values, non_blocking=True)
                held[len(values) :].zero_()  # what was there may not go with the others: a larger top_k, for one
            self._loaded = sampling
        views: dict[str, Any] = {name: held[:num_rows] for name, held in self._held.items()}
        return replace(sampling, **views)


def kind_of(sampling: SamplingTensors) -> tuple[bool, bool, bool, bool, bool, bool]:
    """What decides which code a draw runs: part of the key of a captured round."""
    return (
        sampling.is_random,
        sampling.has_truncation,
        sampling.has_untruncated,
        sampling.has_top_p,
        sampling.max_top_k >= DEVICE_PREFIX,  # below that a device takes the same prefix for all
        sampling.wants_logprobs,
    )
