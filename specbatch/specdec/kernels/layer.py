"""The small operations of a decoder layer over a flat row of tokens: one launch each on a GPU, plain torch elsewhere.

Half precision is rounded where ``forward/lean.py`` rounds it. Its norm is ``torch.nn.functional.rms_norm``, which
multiplies by the weight in float32 and rounds once; the norm of ``transformers``' Llama module rounds before it
multiplies, too, and differs from it in a quarter of random values in bfloat16. In float32 and float64 both give the
same bits.

Shape letters: M tokens, E hidden width, I inner width of the MLP, Q query heads, H key-value heads, D head width,
N pages of S positions.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from torch import Tensor

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.specdec.kernels.layer_twin import add_rms_norm_twin, rotate_and_write_twin, silu_mul_twin


def add_rms_norm(x_ME: Tensor, delta_ME: Tensor | None, weight_E: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Add to the residual and norm the sum.

    Args:
        x_ME: the residual. delta_ME: what is added; None to norm ``x_ME`` itself.

    Returns:
        The sum [M, E], rounded to its type (``x_ME`` itself without a delta), and the norm of the rounded sum.
        Statistics are taken in float32, of float64 in float64.

    Raises:
        SpecbatchError: JOB_VERSION_SKEW on a GPU without Triton.
    """
    if not x_ME.is_cuda:
        return add_rms_norm_twin(x_ME, delta_ME, weight_E, epsilon)
    launch = triton_module("layer_kernels").launch_add_rms_norm
    result: tuple[Tensor, Tensor] = launch(x_ME, delta_ME, weight_E, epsilon)
    return result


def rotate_and_write(
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
    """Norm and rotate queries and keys, and write keys and values into pages.

    Args:
        states_MSD: output of the fused product, [M, (Q + 2 H) D] or [M, Q + 2 H, D]: queries, keys, values.
        cos_MD, sin_MD: of the tokens' positions; the first half of the sine is negated.
        key_pool_NSHD, value_pool_NSHD: one layer's pools; heads dense, other strides free. In float8_e4m3fn, what
            is larger than its largest number (448) is cut to that.
        place_M: int64, page * S + offset of each token. Two tokens at one place leave either; that is for scratch.
        query_norm_D, key_norm_D: weights of a norm over each head (Qwen3), with ``epsilon``.

    Returns:
        Rotated queries [M, Q, D]; each head dense, the tokens perhaps not.

    Raises:
        SpecbatchError: JOB_VERSION_SKEW on a GPU without Triton.
    """
    run = triton_module("layer_kernels").launch_rotate_and_write if states_MSD.is_cuda else rotate_and_write_twin
    query_MQD: Tensor = run(
        states_MSD, cos_MD, sin_MD, key_pool_NSHD, value_pool_NSHD, place_M, num_heads, num_kv_heads,
        query_norm_D, key_norm_D, epsilon,
    )  # fmt: skip
    return query_MQD


def silu_mul(gate_up_MI: Tensor) -> Tensor:
    """SiLU of the first half of each token's values times the second half, [M, 2 I] to [M, I].

    Raises:
        SpecbatchError: JOB_VERSION_SKEW on a GPU without Triton.
    """
    if not gate_up_MI.is_cuda:
        return silu_mul_twin(gate_up_MI)
    out_MI: Tensor = triton_module("layer_kernels").launch_silu_mul(gate_up_MI)
    return out_MI


def triton_module(name: str) -> ModuleType:
    """A module of this package that needs Triton, imported where a GPU needs it: torch for CPUs comes without it.

    Raises:
        SpecbatchError: JOB_VERSION_SKEW where Triton is not installed.
    """
    try:
        return import_module(f"specbatch.specdec.kernels.{name}")
    except ModuleNotFoundError as error:
        raise SpecbatchError(
            ErrorCode.JOB_VERSION_SKEW,
            f"the kernels of this GPU need a package that is not installed: {error.name}; install 'triton>=3.5'",
        ) from error
