"""Compile the kernels of paged attention down to machine code for compute capability 9.0, which needs no GPU.

Run by ``test_kernels.py``; ``python compile_paged_attention.py --all`` compiles every kind of tile and prints what
each takes.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specbatch.specdec.forward.paging import PAGE_SIZE
from specbatch.specdec.kernels.launch import SPLIT, tile_options
from specbatch.specdec.kernels.paged_kernels import (
    FIND_WIDTH,
    MERGE_HEADS,
    MERGE_UNROLL,
    attend_kernel,
    merge_kernel,
)

SHARED_BYTES = 227 * 1024
NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float8_e4m3fn: "fp8e4nv",
}
HALF, FP8 = torch.bfloat16, torch.float8_e4m3fn


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], options: dict[str, Any]) -> Any:
    signature, aligned = {}, {}
    for number, parameter in enumerate(kernel.params):
        name = parameter.name
        signature[name] = "constexpr" if name in constants else types.get(name, "i32")
        is_aligned = signature[name].startswith("*") or name.endswith("_stride")
        if is_aligned and not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment):
            aligned[(number,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def compile_both(
    dtype: torch.dtype, pool: torch.dtype, width: int, rows: int, *, window: int = 0, softcap: float = 0.0
) -> None:
    sums = "fp64" if dtype == torch.float64 else "fp32"
    types = dict.fromkeys(("first_R", "count_R", "start_R", "table_RW"), "*i32")
    types |= dict.fromkeys(("out_MQV", "query_MQD"), f"*{NAMES[dtype]}")
    types |= dict.fromkeys(("key_NSHD", "value_NSHV"), f"*{NAMES[pool]}")
    types |= dict.fromkeys(("sum_MQPV", "top_MQP", "total_MQP"), f"*{sums}")
    block = triton.next_power_of_2(width)
    common = {
        "Q": 32, "V": width, "BLOCK_V": block, "SPLIT": SPLIT, "WINDOW": window,
        "SUMS": tl.float64 if sums == "fp64" else tl.float32,
    }  # fmt: skip
    constants = common | {
        "GROUP": 4, "D": width, "BLOCK_D": block, "PAGE": PAGE_SIZE, "SCALING": 0.1, "SOFTCAP": softcap,
        "WIDTH": FIND_WIDTH, "IS_FP8": pool == FP8,
    }  # fmt: skip
    options = tile_options(dtype, width, rows)
    constants |= {name: options.pop(name) for name in ("BLOCK_M", "BLOCK_N", "PRECISION")}
    attend = compiled(attend_kernel, types, constants, options)
    merging = common | {"HEADS": MERGE_HEADS, "UNROLL": MERGE_UNROLL}
    merge = compiled(merge_kernel, types, merging, {"num_warps": 2, "enable_fp_fusion": False})
    for binary in (attend, merge):
        assert binary.asm["cubin"]
        assert binary.metadata.shared <= SHARED_BYTES, binary.metadata.shared
    sys.stdout.write(
        f"{dtype} over {pool}, width {width}, {rows} rows: {attend.metadata.shared} bytes of shared memory\n"
    )


def main(*, is_all: bool) -> None:
    compile_both(HALF, HALF, 128, 64)
    compile_both(HALF, FP8, 128, 16, window=4096, softcap=50.0)
    if is_all:
        compile_both(torch.float16, torch.float16, 80, 64)
        for pool in (HALF, FP8):
            for width in (64, 128, 256):
                for rows in (16, 32, 64, 128) if width <= 128 else (16, 32, 64):
                    compile_both(HALF, pool, width, rows)
        for dtype in (torch.float32, torch.float64):
            for pool in (dtype, FP8):
                for width in (64, 128, 256):
                    compile_both(dtype, pool, width, 16, softcap=30.0)
    sys.stdout.write("compiled\n")


if __name__ == "__main__":
    main(is_all="--all" in sys.argv)
