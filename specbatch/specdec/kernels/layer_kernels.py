"""The small operations of a decoder layer as Triton programs, with their launchers.

What eager mode rounds between two operations is rounded here too, so that half precision gives the same values but for
the order of sums and the last bit of exponentials. Fusing multiply-adds is switched off: whether it is Triton's default
changes with its version. No result of a token depends on another token: a program sees one.

The launchers read nothing from the device and choose shapes from widths alone, so they may stand in a CUDA graph.

A model has one binary of each kernel, whatever the number of tokens and wherever a batch's tensors begin: Triton sees
rows that are dense and begin at 16 bytes, and no stride of them. How a program loads decides how it divides a row among
its threads, and so the order of the sums in a norm.

Shape letters: M tokens, E hidden width, I inner width of the MLP, Q query heads, H key-value heads, D head width,
N pages of S positions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_SILU_BLOCK = 1024
_COMPUTE = {torch.float64: tl.float64}
"""What is computed in; float32 for all other types."""


@triton.jit
def add_rms_norm_kernel(
    sum_ME,
    normed_ME,
    x_ME,
    delta_ME,
    weight_E,
    E: tl.constexpr,
    EPSILON: tl.constexpr,
    HAS_DELTA: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (M): a token per program. The sum is rounded before it is normed, as it is where it is stored in between."""
    token = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    is_inside = index < E
    x = tl.load(x_ME + token * E + index, mask=is_inside, other=0.0)
    if HAS_DELTA:
        delta = tl.load(delta_ME + token * E + index, mask=is_inside, other=0.0)
        x = (x.to(COMPUTE) + delta.to(COMPUTE)).to(x_ME.dtype.element_ty)
        tl.store(sum_ME + token * E + index, x, mask=is_inside)
    x = x.to(COMPUTE)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / E + EPSILON)
    weight = tl.load(weight_E + index, mask=is_inside, other=0.0).to(COMPUTE)
    normed = x * scale * weight
    tl.store(normed_ME + token * E + index, normed.to(normed_ME.dtype.element_ty), mask=is_inside)


@triton.jit
def _normed(low, high, norm_D, index, is_inside, D: tl.constexpr, EPSILON: tl.constexpr, COMPUTE: tl.constexpr):
    """RMS norm of a head held in halves, rounded to its type."""
    low_c, high_c = low.to(COMPUTE), high.to(COMPUTE)
    scale = tl.rsqrt(tl.sum(low_c * low_c + high_c * high_c, axis=0) / D + EPSILON)
    low_weight = tl.load(norm_D + index, mask=is_inside, other=0.0).to(COMPUTE)
    high_weight = tl.load(norm_D + D // 2 + index, mask=is_inside, other=0.0).to(COMPUTE)
    return (low_c * scale * low_weight).to(low.dtype), (high_c * scale * high_weight).to(high.dtype)


@triton.jit
def _store(pointer, low, high, index, is_inside, HALF: tl.constexpr, LARGEST: tl.constexpr):
    """Store a head in its pool's type. LARGEST: of an 8-bit type, where larger ones are cut to; 0 for others."""
    if LARGEST > 0:
        low, high = low.to(tl.float32), high.to(tl.float32)
        # Comparisons, not minimum and maximum: those may turn NaN into a number.
        low = tl.where(low > LARGEST, LARGEST, tl.where(low < -LARGEST, -LARGEST, low))
        high = tl.where(high > LARGEST, LARGEST, tl.where(high < -LARGEST, -LARGEST, high))
    tl.store(pointer + index, low.to(pointer.dtype.element_ty), mask=is_inside)
    tl.store(pointer + HALF + index, high.to(pointer.dtype.element_ty), mask=is_inside)


@triton.jit(do_not_specialize_on_alignment=["place_M"])
def rotate_and_write_kernel(
    query_MQD,
    key_NSHD,
    value_NSHD,
    states_MSD,
    cos_MD,
    sin_MD,
    place_M,
    query_norm_D,
    key_norm_D,
    key_page_stride,
    key_slot_stride,
    key_head_stride,
    value_page_stride,
    value_slot_stride,
    value_head_stride,
    PAGE: tl.constexpr,
    Q: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    EPSILON: tl.constexpr,
    HAS_QUERY_NORM: tl.constexpr,
    HAS_KEY_NORM: tl.constexpr,
    KEY_LARGEST: tl.constexpr,
    VALUE_LARGEST: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (M, Q + 2 H): a head of a token per program, held in two halves, since rotation pairs those."""
    HALF: tl.constexpr = D // 2
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    index = tl.arange(0, BLOCK)
    is_inside = index < HALF
    source = states_MSD + token * (Q + 2 * H) * D + head * D
    low = tl.load(source + index, mask=is_inside, other=0.0)
    high = tl.load(source + HALF + index, mask=is_inside, other=0.0)
    place = tl.load(place_M + token).to(tl.int64)
    page, slot = place // PAGE, place % PAGE
    if head >= Q + H:
        target = value_NSHD + page * value_page_stride + slot * value_slot_stride + (head - Q - H) * value_head_stride
        _store(target, low, high, index, is_inside, HALF, VALUE_LARGEST)
    else:
        if HAS_QUERY_NORM:  # noqa: SIM102
            if head < Q:
                low, high = _normed(low, high, query_norm_D, index, is_inside, D, EPSILON, COMPUTE)
        if HAS_KEY_NORM:  # noqa: SIM102
            if head >= Q:
                low, high = _normed(low, high, key_norm_D, index, is_inside, D, EPSILON, COMPUTE)
        low_cos = tl.load(cos_MD + token * D + index, mask=is_inside, other=0.0).to(COMPUTE)
        high_cos = tl.load(cos_MD + token * D + HALF + index, mask=is_inside, other=0.0).to(COMPUTE)
        low_sin = tl.load(sin_MD + token * D + index, mask=is_inside, other=0.0).to(COMPUTE)
        high_sin = tl.load(sin_MD + token * D + HALF + index, mask=is_inside, other=0.0).to(COMPUTE)
        # The product with the cosine is rounded, the rest is one multiply-add: ``addcmul`` of a stored product.
        low_product = (low.to(COMPUTE) * low_cos).to(low.dtype).to(COMPUTE)
        high_product = (high.to(COMPUTE) * high_cos).to(high.dtype).to(COMPUTE)
        low_rotated = tl.fma(high.to(COMPUTE), low_sin, low_product).to(low.dtype)
        high_rotated = tl.fma(low.to(COMPUTE), high_sin, high_product).to(high.dtype)
        if head < Q:
            _store(query_MQD + (token * Q + head) * D, low_rotated, high_rotated, index, is_inside, HALF, 0)
        else:
            target = key_NSHD + page * key_page_stride + slot * key_slot_stride + (head - Q) * key_head_stride
            _store(target, low_rotated, high_rotated, index, is_inside, HALF, KEY_LARGEST)


@triton.jit
def silu_mul_kernel(out_MI, gate_up_MI, inner, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (M, blocks of I). SiLU is rounded before it is multiplied."""
    token = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = index < inner
    gate = tl.load(gate_up_MI + token * 2 * inner + index, mask=is_inside, other=0.0).to(COMPUTE)
    up = tl.load(gate_up_MI + token * 2 * inner + inner + index, mask=is_inside, other=0.0)
    gate = (gate / (1.0 + tl.exp(-gate))).to(up.dtype)
    out = gate.to(COMPUTE) * up.to(COMPUTE)
    tl.store(out_MI + token * inner + index, out.to(out_MI.dtype.element_ty), mask=is_inside)


def dense(tensor: Tensor) -> Tensor:
    """The tensor, or a copy, without gaps and beginning at 16 bytes: so that all launches of a kernel are alike."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def launch_add_rms_norm(
    x_ME: Tensor, delta_ME: Tensor | None, weight_E: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """See ``layer.add_rms_norm``."""
    M, E = x_ME.shape
    x = dense(x_ME)
    delta = x if delta_ME is None else dense(delta_ME)
    assert delta.shape == x.shape
    assert weight_E.shape == (E,)
    normed = torch.empty((M, E), dtype=x.dtype, device=x.device)
    total = x_ME if delta_ME is None else torch.empty_like(normed)
    if M == 0:
        return total, normed
    block = triton.next_power_of_2(E)
    with torch.cuda.device_of(x):
        add_rms_norm_kernel[(M,)](
            normed if delta_ME is None else total, normed, x, delta, weight_E, E=E, EPSILON=epsilon,
            HAS_DELTA=delta_ME is not None, COMPUTE=_COMPUTE.get(x.dtype, tl.float32), BLOCK=block,
            num_warps=min(16, max(1, block // 512)), enable_fp_fusion=False,
        )  # fmt: skip
    return total, normed


def launch_rotate_and_write(
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
    M, D = cos_MD.shape
    Q, H, S = num_heads, num_kv_heads, key_pool_NSHD.shape[1]
    states, cos, sin = dense(states_MSD), dense(cos_MD), dense(sin_MD)
    assert states.numel() == M * (Q + 2 * H) * D
    assert D % 2 == 0
    assert sin.shape == (M, D)
    assert place_M.shape == (M,)
    assert place_M.is_contiguous()
    assert key_pool_NSHD.shape == value_pool_NSHD.shape
    assert key_pool_NSHD.shape[2:] == (H, D)
    assert key_pool_NSHD.stride(3) == value_pool_NSHD.stride(3) == 1, "heads must be dense"
    query = torch.empty((M, Q, D), dtype=states.dtype, device=states.device)
    if M == 0:
        return query
    with torch.cuda.device_of(states):
        rotate_and_write_kernel[(M, Q + 2 * H)](
            query, key_pool_NSHD, value_pool_NSHD, states, cos, sin, place_M,
            states if query_norm_D is None else query_norm_D, states if key_norm_D is None else key_norm_D,
            *key_pool_NSHD.stride()[:3], *value_pool_NSHD.stride()[:3],
            PAGE=S, Q=Q, H=H, D=D, EPSILON=epsilon,
            HAS_QUERY_NORM=query_norm_D is not None, HAS_KEY_NORM=key_norm_D is not None,
            KEY_LARGEST=_largest(key_pool_NSHD), VALUE_LARGEST=_largest(value_pool_NSHD),
            COMPUTE=_COMPUTE.get(states.dtype, tl.float32), BLOCK=triton.next_power_of_2(D // 2),
            num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return query


def launch_silu_mul(gate_up_MI: Tensor) -> Tensor:
    """See ``layer.silu_mul``."""
    M, inner = gate_up_MI.shape[0], gate_up_MI.shape[1] // 2
    assert gate_up_MI.shape[1] % 2 == 0
    gate_up = dense(gate_up_MI)
    out = torch.empty((M, inner), dtype=gate_up.dtype, device=gate_up.device)
    if M == 0:
        return out
    with torch.cuda.device_of(gate_up):
        silu_mul_kernel[(M, triton.cdiv(inner, _SILU_BLOCK))](
            out, gate_up, inner, COMPUTE=_COMPUTE.get(out.dtype, tl.float32), BLOCK=_SILU_BLOCK, num_warps=4,
            enable_fp_fusion=False,
        )  # fmt: skip
    return out


def _largest(pool: Tensor) -> float:
    return torch.finfo(pool.dtype).max if pool.dtype.itemsize == 1 else 0.0
