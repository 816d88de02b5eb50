"""The generic model path: unmodified ``transformers`` modules, every supported family, the oracle of the lean one.

A module takes rows of equal width, so every attention group of a feed is a forward of its own, padded. What padding
writes lies beyond the lengths of the rows and is overwritten before it can be read.

Shape letters: M tokens of the forward, N kept tokens, B rows of a group, T its width or a whole prefix, G its tokens,
V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from specbatch.specdec.accept import IntArray
from specbatch.specdec.forward.cache import SlotCache
from specbatch.specdec.forward.feed import Feed, Group, on_device
from specbatch.specdec.forward.runner import ModelRunner


class GenericDecoder:
    """A ``ModelRunner`` behind the face that both paths have."""

    path = "generic"
    settles_near_ties = True
    is_invariant = False

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.context_length = runner.context_length
        self.vocab_size = runner.vocab_size

    @property
    def device(self) -> torch.device:
        device: torch.device = self._runner.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._runner.dtype
        return dtype

    @property
    def cache(self) -> SlotCache:
        return self._runner.cache

    @property
    def weight_bytes(self) -> int:
        return self._runner.weight_bytes

    def run(self, feed: Feed, keep_N: IntArray | None) -> Tensor:
        """See ``feed.Decoder``."""
        logits = []
        for group in feed.padded.groups:
            if keep_N is None:
                kept = np.arange(group.end - group.begin)
            else:
                kept = keep_N[(keep_N >= group.begin) & (keep_N < group.end)] - group.begin
            logits.append(self._run_group(feed, group, kept))
        return torch.cat(logits)

    def _run_group(self, feed: Feed, group: Group, kept: IntArray) -> Tensor:
        token_BT = feed.token_M[group.begin : group.end][group.gather_BT]
        index = on_device(kept, self.device)
        is_alone = group.num_rows == 1
        # Logits of a whole prompt would be the largest tensor of all, so a row that is alone keeps only what is wanted.
        keep = index if is_alone and len(kept) else (1 if is_alone else 0)
        logits_BTV = self._runner.forward(
            token_BT, group.position_BT, group.first_slot, group.num_keys, logits_to_keep=keep
        )
        if is_alone:
            return logits_BTV[0, : len(kept)]
        return logits_BTV.flatten(0, 1)[group.scatter_G[index]]

    def canonical_logits(self, token_T: Tensor) -> Tensor:
        """See ``feed.Decoder``."""
        return self._runner.canonical_logits(token_T)
