"""Scaled dot-product attention for ragged rows and grouped heads, registered under a name of its own.

``transformers`` repeats keys and values for grouped heads when a mask is given; here the query heads of a group become
further queries instead, so that keys and values are read where they lie. What a key may be seen by is decided by the
masks that are built here, one for every kind of layer; an argument that would change the result and is not computed
here is refused, never ignored.

Shape letters: B rows, Q query heads, H key-value heads, R = Q / H, T queries per row, P keys, D head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from specbatch.schemas.errors import ErrorCode, SpecbatchError

ATTENTION_NAME = "specbatch_ragged"
_NOT_COMPUTED = frozenset({"s_aux", "sinks", "position_bias", "head_mask", "block_table"})


def grouped_attention(
    module: nn.Module,
    query_BQTD: Tensor,
    key_BHPD: Tensor,
    value_BHPD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function of ``transformers``' interface.

    Args:
        attention_mask: float [B, 1, T, P] of ``visibility_mask``; None means causal over equal queries and keys (a
            whole prefix without cache).
        softcap: scores s become softcap * tanh(s / softcap) before the softmax (Gemma 2, arXiv 2408.00118).
        sliding_window: what the layer calls its window; the mask must already say the same.

    Returns:
        [B, T, Q, D] and no weights.

    Raises:
        SpecbatchError: JOB_MODEL_UNSUPPORTED for an argument that is not computed here.
    """
    B, Q, T, D = query_BQTD.shape
    H, P = key_BHPD.shape[1], key_BHPD.shape[2]
    R = Q // H
    refuse_what_is_not_computed(module, kwargs)
    if sliding_window is not None and sliding_window < P and getattr(attention_mask, "window", None) != sliding_window:
        raise unsupported(module, f"a window of {sliding_window} keys that its mask does not have")
    if softcap is not None:
        return _capped_attention(query_BQTD, key_BHPD, value_BHPD, attention_mask, scaling, softcap), None
    if attention_mask is None:
        key_BHPD, value_BHPD = key_BHPD.repeat_interleave(R, dim=1), value_BHPD.repeat_interleave(R, dim=1)
        out = functional.scaled_dot_product_attention(query_BQTD, key_BHPD, value_BHPD, is_causal=True, scale=scaling)
        return out.transpose(1, 2).contiguous(), None
    if R > 1 and T > 2 * H * D:  # so many queries that repeated keys and values are smaller than a repeated mask
        key_BHPD, value_BHPD = key_BHPD.repeat_interleave(R, dim=1), value_BHPD.repeat_interleave(R, dim=1)
    elif R > 1:
        query_BQTD = query_BQTD.reshape(B, H, R * T, D)
        if T > 1:  # one query's mask serves all heads of its group as it is
            attention_mask = attention_mask.repeat(1, 1, R, 1)
    out = functional.scaled_dot_product_attention(
        query_BQTD, key_BHPD, value_BHPD, attn_mask=attention_mask, scale=scaling
    )
    return out.reshape(B, Q, T, out.shape[-1]).transpose(1, 2).contiguous(), None


def whole_attention(
    query_TQD: Tensor, key_THD: Tensor, value_THD: Tensor, *, scaling: float, window: int | None = None
) -> Tensor:
    """Attention [T, Q, D] of a prefix that is all there, with no mask of T times T numbers.

    Where a window cuts, queries are taken by blocks as long as the window: each needs the keys of its own block and of
    the one before, and a mask of twice the window's square. Keys and values are repeated for grouped heads, T * Q * D
    numbers each: kernels that take groups as they are do so in half precision only, and torch would fall back to one
    that writes all scores of all heads.
    """
    T, Q, _ = query_TQD.shape
    repeats = Q // key_THD.shape[1]
    if repeats > 1:
        key_THD, value_THD = (states.repeat_interleave(repeats, dim=1) for states in (key_THD, value_THD))
    query, key, value = (states.transpose(0, 1).unsqueeze(0) for states in (query_TQD, key_THD, value_THD))
    if window is None or window >= T:
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return out[0].transpose(0, 1)
    blocks = []
    for begin in range(0, T, window):
        end, first = min(begin + window, T), max(begin - window, 0)
        position_1T = torch.arange(begin - first, end - first, device=query.device).unsqueeze(0)
        mask = visibility_mask(position_1T, end - first, query.dtype, window)
        blocks.append(
            functional.scaled_dot_product_attention(
                query[:, :, begin:end], key[:, :, first:end], value[:, :, first:end], attn_mask=mask, scale=scaling
            )
        )
    return torch.cat(blocks, dim=2)[0].transpose(0, 1)


def visibility_mask(position_BT: Tensor, num_keys: int, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """float [B, 1, T, P], 0 where a key is visible and -inf elsewhere.

    A query at position p sees the keys 0..p of its own slot, or p - window + 1 .. p.
    """
    key_P = torch.arange(num_keys, device=position_BT.device)
    position_BT1 = position_BT.unsqueeze(-1)
    is_hidden = key_P > position_BT1
    if window is not None:
        is_hidden |= key_P <= position_BT1 - window
    mask = torch.zeros(is_hidden.shape, dtype=dtype, device=position_BT.device)
    mask = mask.masked_fill_(is_hidden, -torch.inf).unsqueeze(1)
    # A label for the guard in grouped_attention: the numbers themselves could not be looked at without a host sync.
    mask.window = window  # type: ignore[attr-defined]
    return mask


def layer_masks(
    windows: Mapping[str, int | None],
    position_BT: Tensor,
    num_keys: int,
    dtype: torch.dtype,
    *,
    may_omit: bool = False,
) -> Tensor | dict[str, Tensor | None] | None:
    """What a model takes as ``attention_mask``: one mask where all layers are of a kind, else one for each kind.

    Args:
        windows: of ``models.families.layer_windows``.
        may_omit: for a whole prefix; None instead of a mask that only says causal saves T times T numbers.
    """
    by_window: dict[int | None, Tensor | None] = {None: None} if may_omit else {}
    masks = {}
    for kind, width in windows.items():
        window = None if width is None or width >= num_keys else width
        if window not in by_window:
            by_window[window] = visibility_mask(position_BT, num_keys, dtype, window)
        masks[kind] = by_window[window]
    return masks if len(masks) > 1 else next(iter(masks.values()))


def register() -> None:
    """Make the function known to ``transformers``; harmless when repeated."""
    AttentionInterface.register(ATTENTION_NAME, grouped_attention)


def _capped_attention(
    query_BQTD: Tensor,
    key_BHPD: Tensor,
    value_BHPD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    softcap: float,
) -> Tensor:
    """Attention [B, T, Q, D] with capped scores, which no fused kernel offers; the softmax is at least float32."""
    B, Q, T, D = query_BQTD.shape
    H, P = key_BHPD.shape[1], key_BHPD.shape[2]
    if attention_mask is None:
        attention_mask = visibility_mask(torch.arange(T, device=query_BQTD.device).unsqueeze(0), P, query_BQTD.dtype)
    query = query_BQTD.reshape(B, H, Q // H * T, D) * (D**-0.5 if scaling is None else scaling)
    scores = torch.tanh(query @ key_BHPD.transpose(2, 3) / softcap) * softcap
    scores = scores.view(B, Q, T, P) + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    out = weights.to(query.dtype).view(B, H, Q // H * T, P) @ value_BHPD
    return out.view(B, Q, T, out.shape[-1]).transpose(1, 2).contiguous()


def refuse_what_is_not_computed(module: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Look at the arguments that an attention function was given beside those that it computes with.

    Raises:
        SpecbatchError: JOB_MODEL_UNSUPPORTED for one that would change the result.
    """
    if not _NOT_COMPUTED.isdisjoint(kwargs):
        for name in sorted(_NOT_COMPUTED & kwargs.keys()):
            if kwargs[name] is not None:
                raise unsupported(module, f"{name!r}")
    if kwargs.get("dropout"):
        raise unsupported(module, "dropout; put the model in eval mode")
    if kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise unsupported(module, "attention to later tokens")


def unsupported(module: nn.Module, what: str) -> SpecbatchError:
    """The error of a layer that asks for what is not computed here."""
    return SpecbatchError(
        ErrorCode.JOB_MODEL_UNSUPPORTED, f"a layer of the type {type(module).__name__} asks for {what}"
    )
