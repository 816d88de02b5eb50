"""What a device runs beside its matrix products: Triton kernels, each with a slow twin in torch.

The twins are the oracle, and what runs on a CPU. Triton's interpreter runs the kernels there too, for the tests.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from specbatch.specdec.kernels.spans import Spans


def attend(
    query_MQD: Tensor,
    key_NSHD: Tensor,
    value_NSHD: Tensor,
    spans: Spans,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    is_invariant: bool = False,
) -> Tensor:
    """TEMPORARY twin."""
    M, Q, D = query_MQD.shape
    H = key_NSHD.shape[2]
    out = query_MQD.new_zeros(M, Q, value_NSHD.shape[3])
    for r in range(len(spans.first_R)):
        first, count, start = (int(x[r]) for x in (spans.first_R, spans.count_R, spans.start_R))
        if not count:
            continue
        P = start + count
        pages = spans.table_RW[r, : -(-P // key_NSHD.shape[1])].long()
        keys = key_NSHD[pages].flatten(0, 1)[:P].transpose(0, 1).to(query_MQD.dtype)
        values = value_NSHD[pages].flatten(0, 1)[:P].transpose(0, 1).to(query_MQD.dtype)
        position = torch.arange(start, P, device=query_MQD.device)
        key = torch.arange(P, device=query_MQD.device)
        mask = key <= position[:, None]
        if window is not None:
            mask &= key > position[:, None] - window
        query = query_MQD[first : first + count].view(count, H, Q // H, D).permute(1, 2, 0, 3).reshape(H, -1, D)
        o = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask.repeat(Q // H, 1), scale=scaling
        )
        out[first : first + count] = o.view(H, Q // H, count, -1).permute(2, 0, 1, 3).reshape(count, Q, -1)
    return out
