"""Scaled dot-product attention for ragged rows and grouped heads, registered under a name of its own.

``transformers`` repeats keys and values for grouped heads when a mask is given; here the query heads of a group become
further queries instead, so that keys and values are read where they lie.

Shape letters: B rows, Q query heads, H key-value heads, R = Q / H, T queries per row, P keys, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

ATTENTION_NAME = "specbatch_sdpa"


def grouped_attention(
    module: nn.Module,
    query_BQTD: Tensor,
    key_BHPD: Tensor,
    value_BHPD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function of ``transformers``' interface.

    Args:
        attention_mask: float [B, 1, T, P], 0 where a key is visible and -inf elsewhere; None means causal over equal
            queries and keys (a whole prefix without cache).

    Returns:
        [B, T, Q, D] and no weights.
    """
    B, Q, T, D = query_BQTD.shape
    H = key_BHPD.shape[1]
    R = Q // H
    if attention_mask is None:
        key_BHPD, value_BHPD = key_BHPD.repeat_interleave(R, dim=1), value_BHPD.repeat_interleave(R, dim=1)
        out = functional.scaled_dot_product_attention(query_BQTD, key_BHPD, value_BHPD, is_causal=True, scale=scaling)
        return out.transpose(1, 2).contiguous(), None
    if R > 1:
        query_BQTD = query_BQTD.reshape(B, H, R * T, D)
        if T > 1:  # one query's mask serves all heads of its group as it is
            attention_mask = attention_mask.repeat(1, 1, R, 1)
    out = functional.scaled_dot_product_attention(
        query_BQTD, key_BHPD, value_BHPD, attn_mask=attention_mask, scale=scaling
    )
    return out.view(B, Q, T, out.shape[-1]).transpose(1, 2).contiguous(), None


def visibility_mask(position_BT: Tensor, num_keys: int, dtype: torch.dtype) -> Tensor:
    """float [B, 1, T, P]: a query at position p sees the keys 0..p of its own slot."""
    is_hidden = torch.arange(num_keys, device=position_BT.device) > position_BT.unsqueeze(-1)
    mask = torch.zeros(is_hidden.shape, dtype=dtype, device=position_BT.device)
    return mask.masked_fill_(is_hidden, -torch.inf).unsqueeze(1)


def register() -> None:
    """Make the function known to ``transformers``; harmless when repeated."""
    AttentionInterface.register(ATTENTION_NAME, grouped_attention)
