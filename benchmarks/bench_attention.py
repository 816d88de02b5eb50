"""Paged attention on a GPU against the bytes that it must read: which part of the speed of a copy does it reach?

python benchmarks/bench_attention.py
python benchmarks/bench_attention.py --seconds 120 --without-flex

One layer of 32 query heads and 8 key-value heads of width 128 in bfloat16. Beside it ``scaled_dot_product_attention``
and FlexAttention, both on keys padded to the longest row. FlexAttention is compiled anew for each shape, which takes
most of the time; cases that the time does not suffice for are named.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import gpu  # noqa: F401  # finds the checkout where it is not installed
import torch
import triton
from torch import Tensor
from torch.nn import functional

from specbatch.specdec.forward.paging import PAGE_SIZE
from specbatch.specdec.kernels.spans import Spans

Q, H, D = 32, 8, 128
DTYPE = torch.bfloat16
_BUSY_CYCLES = 2_000_000
"""About a millisecond. The host takes longer to launch the kernel than the device to flush: without a wait behind the
flush the device would idle between the two events, and Python would be timed."""


def microseconds(run: Callable[[], object], repeats: int = 20) -> float:
    """Median time on the device, after a warm-up that also compiles; the caches are flushed before each call."""
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        flush.zero_()
        torch.cuda._sleep(_BUSY_CYCLES)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def copy_bytes_per_microsecond() -> float:
    """Bytes read and written by a large copy."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / microseconds(lambda: target.copy_(source))


def rows(contexts: list[int], width: int) -> tuple[Tensor, Tensor, Tensor, Spans]:
    """Queries, pools and spans of rows that end behind these contexts, their pages in random order."""
    num_pages = [-(-(context + width) // PAGE_SIZE) for context in contexts]
    order = torch.randperm(sum(num_pages), device="cuda").int() + 1
    table = torch.zeros(len(contexts), max(num_pages), dtype=torch.int32, device="cuda")
    for row, pages in enumerate(order.split(num_pages)):
        table[row, : len(pages)] = pages
    key, value = (torch.randn(len(order) + 1, PAGE_SIZE, H, D, dtype=DTYPE, device="cuda") for _ in range(2))
    query = torch.randn(len(contexts) * width, Q, D, dtype=DTYPE, device="cuda")
    start = torch.tensor(contexts, dtype=torch.int32, device="cuda")
    first = torch.arange(len(contexts), dtype=torch.int32, device="cuda") * width
    spans = Spans(first, torch.full_like(start, width), start, table, width, max(contexts) + width)
    return query, key, value, spans


def padded(
    contexts: list[int], width: int, *, has_flex: bool
) -> tuple[Callable[[], object], Callable[[], object] | None]:
    """The same work by the others."""
    B, P = len(contexts), max(contexts) + width
    query = torch.randn(B, Q, width, D, dtype=DTYPE, device="cuda")
    key, value = (torch.randn(B, H, P, D, dtype=DTYPE, device="cuda") for _ in range(2))
    start = torch.tensor(contexts, device="cuda")
    last = start[:, None] + torch.arange(width, device="cuda")
    mask = torch.arange(P, device="cuda") <= last[:, None, :, None]

    def sdpa() -> object:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)

    if not has_flex:
        return sdpa, None
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def is_seen(b: Tensor, _: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k <= start[b] + q

    # Compiled shapes are counted, and the ninth of a function would run uncompiled.
    torch._dynamo.reset()
    block_mask = create_block_mask(is_seen, B, None, width, P, device="cuda")
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return sdpa, lambda: compiled(query, key, value, block_mask=block_mask, enable_gqa=True)


def measured(contexts: list[int], width: int, *, has_flex: bool) -> list[float]:
    """Microseconds of the kernel, of the kernel with one shape of tile, and of the others."""
    from specbatch.specdec.kernels.paged_attention import paged_attention

    query, key, value, spans = rows(contexts, width)
    times = [
        microseconds(
            lambda is_invariant=is_invariant: paged_attention(
                query, key, value, spans, scaling=D**-0.5, is_invariant=is_invariant
            )
        )
        for is_invariant in (False, True)
    ]
    times += [microseconds(other) if other else float("nan") for other in padded(contexts, width, has_flex=has_flex)]
    torch.cuda.empty_cache()
    return times


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="no case begins later (default: 300)")
    parser.add_argument("--without-flex", action="store_true", help="leave FlexAttention out")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_attention: no GPU here; the kernel's times in the interpreter would mean nothing")
    deadline, left_out = time.monotonic() + options.seconds, list[str]()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    speed = copy_bytes_per_microsecond()
    print(f"copy: {speed / 1e6:.2f} TB/s\n")
    print("| rows | context | T | paged µs | part of copy | invariant µs | sdpa µs | flex µs |\n" + "|---" * 8 + "|")
    cases = [(f"{context}", [context] * B) for B in (1, 8, 32, 64, 256) for context in (512, 2048, 4096, 16384)]
    cases += [("512..8k mixed", [512 + 7680 * row * row // B**2 for row in range(B)]) for B in (8, 64, 256)]
    for name, contexts in cases:
        num_bytes = sum(contexts) * 2 * H * D * DTYPE.itemsize
        if num_bytes > 16e9 or max(contexts) * len(contexts) * 2 * H * D * DTYPE.itemsize > 16e9:
            continue
        for width in (1, 5, 9):
            if time.monotonic() > deadline:
                left_out.append(f"{len(contexts)} x {name}, T = {width}")
                continue
            times = measured(contexts, width, has_flex=not options.without_flex)
            part = num_bytes / speed / times[0]
            cells = [len(contexts), name, width, f"{times[0]:.0f}", f"{part:.2f}", f"{times[1]:.0f}"]
            cells += [f"{microseconds:.0f}" for microseconds in times[2:]]
            print("|" + "|".join(f" {cell} " for cell in cells) + "|", flush=True)
    if left_out:
        print(f"\nnot measured, no time: {'; '.join(left_out)}")


if __name__ == "__main__":
    main()
