"""Milliseconds for all linear layers of a 117 M model by number of rows: as they are, and packed for oneDNN.

python benchmarks/bench_linears.py
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from specbatch.specdec.kernels.packing import PackedLinear

SHAPES = [(768, 3456)] * 24 + [(3456, 768)] * 12 + [(768, 768)] * 24 + [(768, 384)] * 24


def milliseconds(run: Callable[[], object], repeats: int = 7) -> float:
    """Median wall time."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


@torch.inference_mode()
def main() -> None:
    """Print a Markdown table."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    plain = [nn.Linear(inputs, outputs, bias=False) for inputs, outputs in SHAPES]
    packed = [PackedLinear(linear) for linear in plain]
    print("| rows | F.linear | packed | ratio |\n|---|---|---|---|")
    for rows in (1, 2, 4, 8, 12, 16, 24, 32, 40, 64, 128, 256):
        x = {width: torch.randn(rows, width) for width in {inputs for inputs, _ in SHAPES}}
        before = milliseconds(lambda x=x: [layer(x[layer.in_features]) for layer in plain])
        after = milliseconds(lambda x=x: [layer(x[layer.in_features]) for layer in packed])
        print(f"| {rows} | {before:.1f} | {after:.1f} | {after / before:.2f} |")


if __name__ == "__main__":
    main()
