"""Compile the draw's kernels, and those that its checks launch, for compute capability 9.0; no GPU is needed.

Prints a line of JSON for each: what it was compiled for, and what its bounds and bits rest on.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import draw_kernel_checks as checks
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specbatch.specdec.kernels import draw_kernels as draws

_TYPES = {
    "row_N": "*i64", "index_N": "*i64", "seed_B": "*i64", "temperature_B": "*fp64", "token_N": "*i64",
    "token_NT": "*i32", "logits_stride": "i32", "num_tokens": "i32", "num_tiles": "i32",
    "bits_X": "*i32", "X": "i32", "bits_NC": "*i32", "seed_N": "*i64", "token_C": "*i32",
}  # fmt: skip


def compiled(kernel: Any, constants: dict[str, Any], logits: str, num_warps: int) -> None:
    """Print what became of a kernel whose logits are of this type."""
    types = _TYPES | {"logits_NV": f"*{logits}"}
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names}
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name in ("logits_stride", "num_tokens")
        if not kernel.params[number].do_not_specialize_on_alignment
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": num_warps, "enable_fp_fusion": False}
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx = done.asm["ptx"]
    found = {
        "kernel": kernel.fn.__name__, "type": logits, "is_random": constants.get("IS_RANDOM"),
        "has_fast_logarithm": "lg2.approx" in ptx, "local_accesses": len(re.findall(r"(?:ld|st)\.local", ptx)),
        "widest_load": max((int(n) for n in re.findall(r"ld\.global\.v(\d)", ptx)), default=1),
        "shared_bytes": done.metadata.shared,
    }  # fmt: skip
    sys.stdout.write(json.dumps(found) + "\n")


def main() -> None:
    """Every variant that a model in half or single precision launches, and the kernels of the checks."""
    for logits in ("bf16", "fp16", "fp32"):
        for is_random in (False, True):
            constants = {"IS_RANDOM": is_random, "BLOCK": draws.TILE}
            compiled(draws.draw_tiles_kernel, constants, logits, draws.NUM_WARPS)
    compiled(draws.fold_tiles_kernel, {"BLOCK": 64}, "fp32", 1)
    compiled(checks.noise_kernel, {"BLOCK": checks.NOISE_BLOCK}, "fp32", draws.NUM_WARPS)
    compiled(checks.hash_kernel, {"C": 64}, "fp32", draws.NUM_WARPS)


if __name__ == "__main__":
    main()
