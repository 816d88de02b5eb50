"""The lean model path over paged memory: what runs on a device.

The same layers as in ``lean``, with keys and values in pages and attention that reads every row as far as it goes: no
padding, whatever the lengths. A forward is made of device tensors alone (``forward``), so that it can be captured.

Shape letters: M tokens of the forward, E hidden width, Q query heads, D head width, N kept tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from specbatch.specdec.feed import Feed, IntArray
from specbatch.specdec.kernels import attend
from specbatch.specdec.kernels.spans import Spans
from specbatch.specdec.lean import LeanDecoder
from specbatch.specdec.paged_memory import PagedMemory, Pages


class PagedLeanDecoder(LeanDecoder):
    """A decoder of the Llama family whose keys and values are in pages.

    Args:
        model: as for ``LeanDecoder``. pages: the table that it shares with the other model of the pair.
    """

    cache: PagedMemory

    def __init__(self, model: Any, *, pages: Pages, context_length: int, vocab_size: int) -> None:
        self._pages = pages
        super().__init__(model, num_slots=0, max_positions=0, context_length=context_length, vocab_size=vocab_size)

    def make_memory(self, num_slots: int, max_positions: int) -> PagedMemory:
        """The pool of this model."""
        heads = (self.num_kv_heads, self.head_dim)
        return PagedMemory(self._pages, len(self.layers), heads, self.dtype, self.device)

    @torch.inference_mode()
    def run(self, feed: Feed, keep_N: IntArray | None) -> Tensor:
        """See ``feed.Decoder``."""
        paged = self._pages.feed(feed.layout)
        index_N = None if keep_N is None else torch.from_numpy(keep_N).to(self.device, non_blocking=True)
        return self.forward(feed.token_M, paged.position_M, paged.place_M, paged.spans, index_N)

    def forward(
        self, token_M: Tensor, position_M: Tensor, place_M: Tensor, spans: Spans, index_N: Tensor | None
    ) -> Tensor:
        """One forward, of tensors on the device only; nothing in it waits for the device.

        Args:
            token_M, position_M: int64 tokens and their positions. place_M: int64 where their keys and values go.
            index_N: int64 tokens whose logits are wanted; None for all.

        Returns:
            logits [N, V] in the model's dtype.
        """
        x_ME = functional.embedding(token_M, self.embedding)
        cos_M1D, sin_M1D = self._rotary(x_ME, position_M.clamp(max=self.context_length - 1))
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            query_MQD, key_MHD, value_MHD = self._project(layer, x_ME, cos_M1D, sin_M1D)
            keys, values = self.cache.keys[number], self.cache.values[number]
            keys.flatten(0, 1).index_copy_(0, place_M, key_MHD)
            values.flatten(0, 1).index_copy_(0, place_M, value_MHD)
            out_ME = attend(query_MQD, keys, values, spans, scaling=layer.scaling, window=layer.window).flatten(1)
            if number == last and index_N is not None:
                # Behind the last layer's attention only the kept tokens are worth computing.
                x_ME, out_ME = x_ME[index_N], out_ME[index_N]
            x_ME = self._finish(layer, x_ME, out_ME)
        return self._logits(x_ME)
