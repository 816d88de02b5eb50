"""What models compute with: Triton kernels, each with a slow twin in torch, and products on packed weights for a CPU.

The twins are the oracle, and what runs on a CPU. Triton's interpreter runs the kernels there too, for the tests.

Shape letters: M tokens, Q query heads, H key-value heads, D and V widths of keys and values, N pages of S positions.
"""

from __future__ import annotations

from torch import Tensor

from specbatch.specdec.kernels.layer import triton_module
from specbatch.specdec.kernels.spans import Spans, by_token
from specbatch.specdec.kernels.twin import paged_attention_twin


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
    out_MQV: Tensor | None = None,
) -> Tensor:
    """``paged_attention`` where the tensors are on a GPU, its twin elsewhere.

    The twin computes every segment alone; with ``is_invariant`` every token, because the number of queries shapes sums.

    Raises:
        SpecbatchError: JOB_VERSION_SKEW on a GPU without Triton.
    """
    if not query_MQD.is_cuda:
        spans = by_token(spans) if is_invariant else spans
        return paged_attention_twin(
            query_MQD, key_NSHD, value_NSHD, spans, scaling=scaling, window=window, softcap=softcap, out_MQV=out_MQV
        )
    result: Tensor = triton_module("paged_attention").paged_attention(
        query_MQD,
        key_NSHD,
        value_NSHD,
        spans,
        scaling=scaling,
        window=window,
        softcap=softcap,
        is_invariant=is_invariant,
        out_MQV=out_MQV,
    )
    return result
