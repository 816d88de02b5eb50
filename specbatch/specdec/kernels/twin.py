"""The slow twin of ``paged_attention`` in plain torch, segment by segment: the oracle, and what runs on a CPU.

Shape letters: M tokens, Q query heads, H key-value heads, R = Q / H, D and V widths of keys and values, N pages of S
positions, T queries and P keys of a segment.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from specbatch.specdec.kernels.spans import Spans


def paged_attention_twin(
    query_MQD: Tensor,
    key_NSHD: Tensor,
    value_NSHD: Tensor,
    spans: Spans,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    out_MQV: Tensor | None = None,
) -> Tensor:
    """See ``paged_attention.paged_attention``; on a GPU this asks the device for the segments and waits.

    Returns:
        [M, Q, V] of the queries' type, ``out_MQV`` if it was given; zeros for tokens in no segment otherwise.
    """
    M, Q, _ = query_MQD.shape
    page_size, _, V = value_NSHD.shape[1:]
    if out_MQV is None:
        out_MQV = query_MQD.new_zeros(M, Q, V)
    segments = torch.stack((spans.first_R, spans.count_R, spans.start_R), dim=1).tolist()
    for row, (first, count, start) in enumerate(segments):
        if count == 0:
            continue
        end = start + count
        lowest = 0 if window is None else max(start - window + 1, 0)
        pages = spans.table_RW[row, lowest // page_size : -(-end // page_size)]
        part = slice(lowest % page_size, lowest % page_size + end - lowest)
        key_HPD, value_HPV = (
            _gathered(pool, pages)[part].to(query_MQD.dtype).transpose(0, 1) for pool in (key_NSHD, value_NSHD)
        )
        mask_TP = _hidden(start - lowest, count, window, query_MQD.device)
        query_TQD = query_MQD[first : first + count]
        out_MQV[first : first + count] = _attention(query_TQD, key_HPD, value_HPV, mask_TP, scaling, softcap)
    return out_MQV


def pages_and_offsets(place_M: Tensor, page_size: int) -> tuple[Tensor, Tensor]:
    """Flat places (page * page size + offset, int64) as ``write_pages`` takes them, for all layers of a forward."""
    return place_M // page_size, place_M % page_size


def write_pages(pool_NSHD: Tensor, states_MHD: Tensor, places: tuple[Tensor, Tensor]) -> None:
    """Write tokens in the pool's type.

    Args:
        pool_NSHD: keys or values of one layer. places: pages and offsets [M]; none twice, but of the scratch page.
    """
    if pool_NSHD.dtype.itemsize == 1:
        # What 8 bits cannot hold becomes the largest number that they can, not NaN. torch copies bytes by index on
        # every device, but not all 8-bit floats.
        largest = torch.finfo(pool_NSHD.dtype).max
        states = states_MHD.clamp(-largest, largest).to(pool_NSHD.dtype).view(torch.uint8)
        pool_NSHD = pool_NSHD.view(torch.uint8)
    else:
        states = states_MHD.to(pool_NSHD.dtype)
    pool_NSHD[places] = states


def _gathered(pool_NSHD: Tensor, pages_W: Tensor) -> Tensor:
    """[W * S, H, D] of these pages, read where they lie if they lie in a row."""
    pages = pages_W.tolist()
    if pages == list(range(pages[0], pages[0] + len(pages))):
        return pool_NSHD[pages[0] : pages[0] + len(pages)].flatten(0, 1)
    return pool_NSHD[pages_W.long()].flatten(0, 1)


def _hidden(first_query: int, count: int, window: int | None, device: torch.device) -> Tensor | None:
    """bool [T, P], which keys a query does not see; None if all are seen. Positions count from the first key."""
    if count == 1:  # what lies before the window has not been gathered
        return None
    position_T1 = torch.arange(first_query, first_query + count, device=device).unsqueeze(1)
    key_P = torch.arange(first_query + count, device=device)
    is_hidden = key_P > position_T1
    return is_hidden if window is None else is_hidden | (key_P <= position_T1 - window)


def _attention(
    query_TQD: Tensor,
    key_HPD: Tensor,
    value_HPV: Tensor,
    hidden_TP: Tensor | None,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """[T, Q, V]; the query heads of a group become further queries, so that keys are read where they lie."""
    T, Q, D = query_TQD.shape
    H = key_HPD.shape[0]
    R = Q // H
    query_HXD = query_TQD.view(T, H, R, D).permute(1, 2, 0, 3).reshape(H, R * T, D)
    mask = None
    if hidden_TP is not None:
        mask = torch.zeros(hidden_TP.shape, dtype=query_TQD.dtype, device=query_TQD.device)
        mask = mask.masked_fill_(hidden_TP, -torch.inf).repeat(R, 1)
    if softcap is None:
        out_HXV = functional.scaled_dot_product_attention(
            query_HXD.unsqueeze(0), key_HPD.unsqueeze(0), value_HPV.unsqueeze(0), attn_mask=mask, scale=scaling
        )[0]
    else:
        scores = torch.tanh(query_HXD @ key_HPD.transpose(1, 2) * (scaling / softcap)) * softcap
        scores = scores if mask is None else scores + mask
        weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        out_HXV = weights.to(query_TQD.dtype) @ value_HPV
    return out_HXV.view(H, R, T, -1).permute(2, 0, 1, 3).reshape(T, Q, -1)
