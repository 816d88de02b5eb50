"""How keys and values are kept, and whether bits may depend on the batch: what a model must be for it. Pure.

Both are matters of memory in pages, so of the lean path. They define the target's text: a key that was rounded to 8
bits is another key, and products that add in another order are other products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.specdec.models.families import LEAN_MODEL_TYPES

if TYPE_CHECKING:
    from specbatch.schemas.spec import KvCacheDtype

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
"""The types that models are computed in, and bytes of one number."""

KV_BYTES = {"fp8": 1}
"""Bytes of one number of a key or value, where it is not the model's own type."""


def is_usual(kv_cache_dtype: KvCacheDtype, *, bitwise: bool) -> bool:
    """Neither was asked for."""
    return kv_cache_dtype == "auto" and not bitwise


def check_arithmetic(
    name: str, path: str, kv_cache_dtype: KvCacheDtype, *, bitwise: bool, coupling: str, num_ranks: int = 1
) -> None:
    """Refuse what the path that decodes a target does not offer.

    Args:
        path: ``lean`` or ``generic``.

    Raises:
        SpecbatchError: JOB_CONFIG.
    """
    if is_usual(kv_cache_dtype, bitwise=bitwise):
        return
    option = "--bitwise" if bitwise else f"--kv-cache-dtype {kv_cache_dtype}"
    if num_ranks > 1:
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"{option} is for one device; leave out --tensor-parallel-size")
    if path != "lean":
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"{option} is for dense models of the families {', '.join(LEAN_MODEL_TYPES)}, and {name} is none of them; "
            "leave it out",
        )
    if bitwise and coupling == "distribution":
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            "--bitwise promises one text whatever the draft, --coupling distribution only its law; leave one of them "
            "out",
        )
