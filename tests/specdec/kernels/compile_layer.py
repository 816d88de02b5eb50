"""Compile the kernels of a layer and the invariant product for compute capability 9.0; no GPU is needed.

Prints a line of JSON for each: what it was compiled for, shared memory, instructions that its promises rest on.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specbatch.specdec.kernels import invariant_kernels as products
from specbatch.specdec.kernels import layer_kernels as layers

_POINTERS = re.compile(r"_[A-Z0-9]{1,5}$")
_LOAD = re.compile(r"ldmatrix\.\S+ \{([^}]*)\}, \[(%r\d+)(?:\+(\d+))?\]")
_MULTIPLY = re.compile(r"mma\.sync\S+m16n8k16\S+ \{ ([^}]*) \}, \{ ([^}]*) \}, \{ [^}]* \}, \{ \1 \}")
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_MATRIX = re.compile(r"(?:mma\.sync|wgmma\.mma_async)\S*?\.(m\d+n\d+k\d+)")


def orders(ptx: str) -> list[list[tuple[int, int]]]:
    """In which order the inputs of a step are multiplied, one list for each kind of output that there is.

    Every matrix instruction adds to four sums in place. Where its rows were loaded from says which inputs it takes: an
    address, counted off, and what is added to it, of which whole rows of a step are left out.
    """
    loaded, addresses = {}, []
    for registers, address, offset in _LOAD.findall(ptx):
        loaded[registers] = address, int(offset or 0) % products.STEP_BYTES
    found: dict[str, list[tuple[int, int]]] = {}
    for sums, rows in _MULTIPLY.findall(ptx):
        address, offset = loaded[rows]
        if address not in addresses:
            addresses.append(address)
        found.setdefault(sums, []).append((addresses.index(address), offset))
    return sorted({tuple(order) for order in found.values()})


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], default: str, **options: int) -> None:
    """Arguments that ``types`` leaves out are aligned pointers to ``default``, or int32 where no shape says pointer."""
    signature, attributes = {}, {}
    for number, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in types:
            signature[name] = types[name]
        else:
            signature[name] = f"*{default}" if _POINTERS.search(name) else "i32"
        if signature[name].startswith("*") or name in ("num_inputs", "num_outputs"):
            attributes[(number,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options | {"enable_fp_fusion": False})
    ptx = done.asm["ptx"]
    found = {
        "kernel": kernel.fn.__name__, "type": default, "shared_bytes": done.metadata.shared,
        "matrix": sorted(set(_MATRIX.findall(ptx))), "is_wgmma": "wgmma.mma_async" in ptx,
        "async_copies": len(re.findall(r"cp\.async\.c[ag]", ptx)), "is_8_bits": "e4m3x2" in ptx,
        "rows": constants.get("BLOCK_M"), "orders": orders(ptx),
    }  # fmt: skip
    sys.stdout.write(json.dumps(found) + "\n")


def main() -> None:
    """Everything that a model in bfloat16 or float32 launches."""
    import triton.language as tl

    for default in ("bf16", "fp32"):
        size = 4 if default == "fp32" else 2
        compiled(
            layers.add_rms_norm_kernel, {},
            {"E": 4096, "EPSILON": 1e-5, "HAS_DELTA": True, "COMPUTE": tl.float32, "BLOCK": 4096}, default, num_warps=8,
        )  # fmt: skip
        compiled(layers.silu_mul_kernel, {}, {"COMPUTE": tl.float32, "BLOCK": 1024}, default, num_warps=4)
        for pool, largest in ((default, 0.0), ("fp8e4nv", 448.0)):
            constants = {
                "PAGE": 16, "Q": 32, "H": 8, "D": 128, "EPSILON": 1e-6, "HAS_QUERY_NORM": True, "HAS_KEY_NORM": True,
                "KEY_LARGEST": largest, "VALUE_LARGEST": largest, "COMPUTE": tl.float32, "BLOCK": 64,
            }  # fmt: skip
            types = {"key_NSHD": f"*{pool}", "value_NSHD": f"*{pool}", "place_M": "*i64"}
            compiled(layers.rotate_and_write_kernel, types, constants, default, num_warps=1)
        for tile in {products.tile_of(_DTYPES[default], rows) for rows in (1, 1000)}:
            for is_even in (True, False):
                constants = {
                    "HAS_BIAS": True, "IS_EVEN": is_even, "COMPUTE": tl.float32, "BLOCK_M": tile.rows,
                    "BLOCK_N": tile.outputs, "BLOCK_K": products.STEP_BYTES // size,
                }  # fmt: skip
                compiled(
                    products.invariant_linear_kernel, {}, constants, default,
                    num_warps=tile.num_warps, num_stages=tile.num_stages,
                )  # fmt: skip


if __name__ == "__main__":
    main()
