"""The generic model path over paged memory: unmodified ``transformers`` modules, fed one flat row of tokens.

Rows of all lengths stand end to end in that row, so nothing is padded; where each token stands travels to the attention
function through the keyword arguments of the model's forward (``kernels.interface``).

Shape letters: M tokens of the forward, H key-value heads, D head width, N kept tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from specbatch.specdec.accept import IntArray
from specbatch.specdec.forward.feed import Feed, on_device
from specbatch.specdec.forward.paged_memory import PagedMemory, Pages
from specbatch.specdec.forward.paging import PAGE_SIZE
from specbatch.specdec.forward.runner import ModelRunner
from specbatch.specdec.kernels import interface
from specbatch.specdec.kernels.spans import Spans
from specbatch.specdec.kernels.twin import pages_and_offsets, write_pages
from specbatch.specdec.models.families import head_width, num_kv_heads

LOOKS_INTO_TENSORS = frozenset({"granitemoe", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"})
"""Families whose modules ask the device which experts are wanted, or may: their rounds cannot be captured."""


class PagedCache(Cache):  # type: ignore[misc]
    """The cache that is handed to a model: it writes tokens to their pages, and gives back the whole pools."""

    def __init__(self, memory: PagedMemory) -> None:
        super().__init__(layers=[])
        self._memory = memory
        self._places = pages_and_offsets(torch.empty(0, dtype=torch.int64), PAGE_SIZE)

    def write_at(self, place_M: Tensor) -> None:
        """Where the tokens of the next forward go: int64 page * page size + offset."""
        self._places = pages_and_offsets(place_M, PAGE_SIZE)

    def update(
        self, key_1HMD: Tensor, value_1HMD: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write [1, H, M, D] at the places that were set before the forward."""
        keys, values = self._memory.keys[layer_idx], self._memory.values[layer_idx]
        write_pages(keys, key_1HMD[0].transpose(0, 1), self._places)
        write_pages(values, value_1HMD[0].transpose(0, 1), self._places)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Rows differ in length; positions are always passed explicitly, so no single length exists."""
        return 0


class PagedGenericDecoder:
    """A module of ``transformers`` whose keys and values are in pages.

    Args:
        model: as for ``ModelRunner``, of a family for which ``interface.takes_pages`` says so.
        pages: the table that it shares with the other model of the pair.
    """

    path = "generic"
    settles_near_ties = True
    is_invariant = False

    def __init__(self, model: Any, *, pages: Pages, context_length: int, vocab_size: int) -> None:
        interface.register()
        model.set_attn_implementation(interface.PAGED_ATTENTION_NAME)
        self._model, self._pages = model, pages
        self.context_length, self.vocab_size = context_length, vocab_size
        # Its slots are never used, and take no memory before they are.
        self._whole = ModelRunner(
            model, num_slots=1, max_positions=1, context_length=context_length, vocab_size=vocab_size
        )
        config = model.config.to_dict()
        heads, layers = num_kv_heads(config), int(model.config.num_hidden_layers)
        self._memory = PagedMemory(pages, layers, (heads, head_width(config)), self.dtype, self.device)
        self._cache = PagedCache(self._memory)

    @property
    def can_be_captured(self) -> bool:
        """Whether a forward waits for nothing."""
        return self._model.config.model_type not in LOOKS_INTO_TENSORS

    @property
    def device(self) -> torch.device:
        device: torch.device = self._whole.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._whole.dtype
        return dtype

    @property
    def cache(self) -> PagedMemory:
        return self._memory

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights, shared ones counted once."""
        return self._whole.weight_bytes

    @torch.inference_mode()
    def run(self, feed: Feed, keep_N: IntArray | None) -> Tensor:
        """See ``feed.Decoder``."""
        paged = self._pages.feed(feed.layout)
        index_N = None if keep_N is None else on_device(keep_N, self.device)
        return self.forward(feed.token_M, paged.position_M, paged.place_M, paged.spans, index_N)

    def forward(
        self, token_M: Tensor, position_M: Tensor, place_M: Tensor, spans: Spans, index_N: Tensor | None
    ) -> Tensor:
        """See ``lean_paged.PagedLeanDecoder.forward``."""
        self._cache.write_at(place_M)
        output = self._model(
            input_ids=token_M.unsqueeze(0),
            position_ids=position_M.clamp(max=self.context_length - 1).unsqueeze(0),
            past_key_values=self._cache,
            use_cache=True,
            # None kept is not what the library takes an empty index for.
            logits_to_keep=0 if index_N is None else (index_N if len(index_N) else 1),
            specbatch_spans=spans,
        )
        logits: Tensor = output.logits[0, ..., : self.vocab_size]
        return logits if index_N is None or len(index_N) else logits[:0]

    def canonical_logits(self, token_T: Tensor) -> Tensor:
        """See ``feed.Decoder``."""
        return self._whole.canonical_logits(token_T)
