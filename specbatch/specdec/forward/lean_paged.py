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

from specbatch.specdec.accept import IntArray
from specbatch.specdec.forward.feed import Feed, on_device
from specbatch.specdec.forward.lean import LeanDecoder
from specbatch.specdec.forward.paged_memory import PagedMemory, Pages
from specbatch.specdec.kernels import attend
from specbatch.specdec.kernels.invariant import InvariantProduct
from specbatch.specdec.kernels.layer import add_rms_norm, rotate_and_write, silu_mul
from specbatch.specdec.kernels.layer_twin import rounded_as
from specbatch.specdec.kernels.packing import Product, RowProduct
from specbatch.specdec.kernels.spans import Spans


class PagedLeanDecoder(LeanDecoder):
    """A decoder of the Llama family whose keys and values are in pages.

    Args:
        model: as for ``LeanDecoder``. pages: the table that it shares with the other model of the pair.
        kv_dtype: what keys and values are kept in; the model's own type if None.
        is_invariant: compute every token with the same bits, whatever is computed beside it: products, norms and
            attention that do not know the number of tokens.
    """

    cache: PagedMemory
    can_be_captured = True

    def __init__(
        self,
        model: Any,
        *,
        pages: Pages,
        context_length: int,
        vocab_size: int,
        kv_dtype: torch.dtype | None = None,
        is_invariant: bool = False,
    ) -> None:
        self._pages = pages
        self._kv_dtype = kv_dtype
        self._is_invariant = is_invariant
        super().__init__(model, num_slots=0, max_positions=0, context_length=context_length, vocab_size=vocab_size)

    @property
    def is_invariant(self) -> bool:
        """See ``feed.Decoder``."""
        return self._is_invariant

    @property
    def settles_near_ties(self) -> bool:
        """See ``feed.Decoder``. A last bit may turn a key's rounding to 8 bits, which moves logits far beyond it."""
        return not self._is_invariant and self._kv_dtype is None

    def make_product(self, weight_OI: Tensor, bias_O: Tensor | None) -> RowProduct:
        """Of the kind that the promise asks for."""
        return InvariantProduct(weight_OI, bias_O) if self._is_invariant else Product(weight_OI, bias_O)

    def make_memory(self, num_slots: int, max_positions: int) -> PagedMemory:
        """The pool of this model."""
        heads = (self.num_kv_heads, self.head_dim)
        return PagedMemory(self._pages, len(self.layers), heads, self._kv_dtype or self.dtype, self.device)

    def as_stored(self, states: Tensor) -> Tensor:
        """Keys or values as they come back from the pool, whose type may be coarser."""
        return rounded_as(states, self._kv_dtype or self.dtype)

    @torch.inference_mode()
    def run(self, feed: Feed, keep_N: IntArray | None) -> Tensor:
        """See ``feed.Decoder``."""
        paged = self._pages.feed(feed.layout)
        index_N = None if keep_N is None else on_device(keep_N, self.device)
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
        cos_M1D, sin_M1D = self._rotary(x_ME, position_M)
        cos_MD, sin_MD = cos_M1D.squeeze(1), sin_M1D.squeeze(1)
        # What attention writes to, zeros where a token stands in no segment: zeroed once, not in every layer, since all
        # layers write to the same tokens and each has read what the one before wrote.
        attended_MQD = x_ME.new_zeros(x_ME.shape[0], self.num_heads, self.head_dim)
        delta_ME: Tensor | None = None
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            keys, values = self.cache.keys[number], self.cache.values[number]
            x_ME, normed_ME = add_rms_norm(x_ME, delta_ME, layer.input_norm, self.epsilon)
            query_MQD = rotate_and_write(
                layer.qkv(normed_ME),
                cos_MD,
                sin_MD,
                keys,
                values,
                place_M,
                self.num_heads,
                self.num_kv_heads,
                layer.query_norm,
                layer.key_norm,
                self.epsilon,
            )
            out_ME = attend(
                query_MQD,
                keys,
                values,
                spans,
                scaling=layer.scaling,
                window=layer.window,
                is_invariant=self._is_invariant,
                out_MQV=attended_MQD,
            ).flatten(1)
            if number == last and index_N is not None:
                # Behind the last layer's attention only the kept tokens are worth computing.
                x_ME, out_ME = x_ME[index_N], out_ME[index_N]
            x_ME, normed_ME = add_rms_norm(x_ME, layer.out(out_ME), layer.mlp_norm, self.epsilon)
            delta_ME = layer.down(silu_mul(layer.gate_up(normed_ME)))
        return self.cut(self.head(add_rms_norm(x_ME, delta_ME, self.norm, self.epsilon)[1]))
