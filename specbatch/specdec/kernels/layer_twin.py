"""The small operations of a decoder layer in plain torch: what ``layer_kernels`` must compute.

They are the operations of ``forward/lean.py`` in its order, so that a path built on them gives the same bits as that
one.

Shape letters: M tokens, E hidden width, I inner width of the MLP, Q query heads, H key-value heads, D head width,
N pages of S positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from specbatch.specdec.kernels.twin import pages_and_offsets, write_pages


def add_rms_norm_twin(x_ME: Tensor, delta_ME: Tensor | None, weight_E: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """See ``layer.add_rms_norm``."""
    sum_ME = x_ME if delta_ME is None else x_ME + delta_ME
    return sum_ME, functional.rms_norm(sum_ME, sum_ME.shape[-1:], weight_E, epsilon)


def rotate_and_write_twin(
    states_MSD: Tensor,
    cos_MD: Tensor,
    sin_MD: Tensor,
    key_pool_NSHD: Tensor,
    value_pool_NSHD: Tensor,
    place_M: Tensor,
    num_heads: int,
    num_kv_heads: int,
    query_norm_D: Tensor | None = None,
    key_norm_D: Tensor | None = None,
    epsilon: float = 1e-6,
) -> Tensor:
    """See ``layer.rotate_and_write``."""
    Q, H, D = num_heads, num_kv_heads, cos_MD.shape[-1]
    states_MSD = states_MSD.view(states_MSD.shape[0], Q + 2 * H, D)
    both = states_MSD[:, : Q + H]
    if query_norm_D is not None or key_norm_D is not None:
        query, key = states_MSD[:, :Q], states_MSD[:, Q : Q + H]
        query = query if query_norm_D is None else functional.rms_norm(query, (D,), query_norm_D, epsilon)
        key = key if key_norm_D is None else functional.rms_norm(key, (D,), key_norm_D, epsilon)
        both = torch.cat((query, key), dim=1)
    half = D // 2
    swapped = torch.cat((both[..., half:], both[..., :half]), dim=-1)
    rotated = torch.addcmul(both * cos_MD.unsqueeze(1), swapped, sin_MD.unsqueeze(1))
    places = pages_and_offsets(place_M, key_pool_NSHD.shape[1])
    write_pages(key_pool_NSHD, rotated[:, Q:], places)
    write_pages(value_pool_NSHD, states_MSD[:, Q + H :], places)
    return rotated[:, :Q]


def rounded_as(states: Tensor, dtype: torch.dtype) -> Tensor:
    """States as they come back from a pool of another type; what an 8-bit float cannot hold is cut to its largest."""
    if dtype == states.dtype:
        return states
    if dtype.itemsize == 1:
        largest = torch.finfo(dtype).max
        states = states.clamp(-largest, largest)
    return states.to(dtype).to(states.dtype)


def silu_mul_twin(gate_up_MI: Tensor) -> Tensor:
    """See ``layer.silu_mul``."""
    gate, up = gate_up_MI.chunk(2, dim=-1)
    return functional.silu(gate) * up
