"""What a product costs whose rows do not depend on each other.

On a GPU: microseconds of ``invariant_linear`` beside ``torch.nn.functional.linear``, and the weights that it reads as a
share of what a large copy moves, for the products of Llama models of 1 B and 8 B parameters in bfloat16. Each product
is repeated over copies of its weight that no cache holds, inside one CUDA graph, so that neither cache nor launches are
measured. Before anything is timed, rows are compared to the bit.

On a CPU: milliseconds for the products of the 120 M benchmark model beside those packed for oneDNN; they take turns.

python benchmarks/bench_products.py
python benchmarks/bench_products.py --device cpu
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import gpu  # noqa: F401  # finds the checkout where it is not installed
import torch
from torch import Tensor
from torch.nn import functional

from specbatch.specdec.kernels.invariant import InvariantProduct, invariant_linear
from specbatch.specdec.kernels.packing import Product

ROWS = (1, 2, 4, 8, 16, 32, 40, 64, 128, 256)
GPU_SHAPES = {
    "1 B": {"qkv": (2048, 3072), "out": (2048, 2048), "gate_up": (2048, 16384), "down": (8192, 2048)},
    "8 B": {"qkv": (4096, 6144), "out": (4096, 4096), "gate_up": (4096, 28672), "down": (14336, 4096)},
}
"""Inputs and outputs."""
CPU_SHAPES = [(768, 1536), (768, 768), (768, 6912), (3456, 768)] * 12
MIN_WEIGHT_BYTES = 400 * 2**20
"""Several times the second-level cache of any GPU."""


def graph_microseconds(run: Callable[[], object], repeats: int = 20) -> float:
    """Median time of one replay of a captured graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes per second that a large copy reads and writes."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / graph_microseconds(lambda: target.copy_(source)) * 1e6


def check_rows(weight_OI: Tensor) -> None:
    """End the run where a row depends on where it stands."""
    x = torch.randn(max(ROWS), weight_OI.shape[1], dtype=weight_OI.dtype, device="cuda")
    whole = invariant_linear(x, weight_OI)
    for rows in ROWS:
        for begin in sorted({0, 7, max(ROWS) - rows}):
            part = x[begin : begin + rows]
            if not torch.equal(invariant_linear(part, weight_OI), whole[begin : begin + rows]):
                sys.exit(
                    f"bench_products: {rows} rows from {begin} on differ from the same among {max(ROWS)}, weight "
                    f"{tuple(weight_OI.shape)}; the product does not hold what it promises, nothing was measured"
                )


def on_gpu() -> None:
    """Print a table for each model."""
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; a copy moves {bandwidth / 1e12:.2f} TB/s\n")
    for model, shapes in GPU_SHAPES.items():
        print(f"{model}\n\n| product | rows | F.linear, µs | invariant, µs | ratio | of a copy's bandwidth |")
        print("|---|---|---|---|---|---|")
        for name, (inputs, outputs) in shapes.items():
            copies = -(-MIN_WEIGHT_BYTES // (2 * inputs * outputs))
            weights = torch.randn(copies, outputs, inputs, dtype=torch.bfloat16, device="cuda") / inputs**0.5
            check_rows(weights[0])
            for rows in ROWS:
                x = torch.randn(rows, inputs, dtype=torch.bfloat16, device="cuda")
                plain = graph_microseconds(lambda x=x, w=weights: [functional.linear(x, one) for one in w]) / copies
                ours = graph_microseconds(lambda x=x, w=weights: [invariant_linear(x, one) for one in w]) / copies
                share = 2 * inputs * outputs / (ours * 1e-6) / bandwidth
                print(f"| {name} | {rows} | {plain:.1f} | {ours:.1f} | {ours / plain:.2f} | {share:.0%} |", flush=True)
            del weights
        print()


def on_cpu(repeats: int = 9) -> None:
    """Print a table."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    weights = [torch.randn(outputs, inputs) / inputs**0.5 for inputs, outputs in CPU_SHAPES]
    sides = [[Product(weight, None) for weight in weights], [InvariantProduct(weight, None) for weight in weights]]
    print(
        f"{torch.get_num_threads()} threads\n\n| rows | Product, ms | InvariantProduct, ms | ratio |\n|---|---|---|---|"
    )
    for rows in ROWS:
        x = {inputs: torch.randn(rows, inputs) for inputs, _ in CPU_SHAPES}
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(2 * repeats + 2):
            started = time.perf_counter()
            for product in sides[number % 2]:
                product(x[product.in_features])
            if number > 1:
                times[number % 2].append((time.perf_counter() - started) * 1e3)
        plain, ours = (statistics.median(side) for side in times)
        print(f"| {rows} | {plain:.1f} | {ours:.1f} | {ours / plain:.2f} |", flush=True)


@torch.inference_mode()
def main() -> None:
    """Measure on the device that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args().device
    if device == "cpu":
        on_cpu()
    elif torch.cuda.is_available():
        on_gpu()
    else:
        sys.exit("bench_products: this torch sees no GPU; measure the products of a CPU with --device cpu")


if __name__ == "__main__":
    main()
