"""Engine tokens per second at several batches: speculation, plain, and ``transformers`` ``generate`` in one run.

    make bench            # or: python benchmarks/bench_engine.py --batches 1,8 --rows 16 --repeats 1

The target is the bundled one inflated to about 120 M parameters, so that a forward has the cost of a real model;
acceptance stays the pair's own. Prompts are those of ``examples/prompts.parquet``; completion lengths are ragged
(seeded, 16 to 64 tokens, end of sequence ignored). Sides alternate within each repeat; figures are medians. The text of
all sides is compared.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from peers import Measured, Row, run_engine, run_generate

from specbatch.jobs.machine import describe_hardware
from specbatch.specdec.inflate import inflate
from specbatch.specdec.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
TAUGHT, STRANGER = "code-pair/draft-taught", "code-pair/draft-stranger"
GENERATE = "transformers generate"
RATIOS = (
    ("auto / plain", "auto_to_plain"),
    ("stranger / plain", "stranger_to_plain"),
    ("plain / generate", "plain_to_generate"),
    ("auto / generate", "auto_to_generate"),
)


def load_rows(target: Path, num_rows: int, seed: int) -> list[Row]:
    """Prompts spread over the example file, with ragged completion lengths."""
    prompts = pq.read_table(ROOT / "examples" / "prompts.parquet").column("prompt").to_pylist()
    generator = random.Random(seed)
    tokenizer = Tokenizer.from_folder(target)
    chosen = [prompts[i * len(prompts) // num_rows] for i in range(num_rows)]
    return [(tokenizer.encode(prompt), generator.randint(16, 64)) for prompt in chosen]


def bench_batch(target: Path, batch: int, rows: list[Row], draft_lengths: list[int], repeats: int) -> dict[str, Any]:
    """All sides at one batch, alternating; medians and ratios."""
    sides = {"plain": run_engine(target, None, "off", batch)}
    sides |= {f"K={k}": run_engine(target, TAUGHT, k, batch) for k in draft_lengths}
    sides["auto"] = run_engine(target, TAUGHT, "auto", batch)
    sides["auto, stranger draft"] = run_engine(target, STRANGER, "auto", batch)
    sides[GENERATE] = run_generate(target, batch)
    for side in sides.values():
        side(rows[:2])
    runs: dict[str, list[Measured]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            runs[name].append(side(rows))
    speed = {name: statistics.median(run.tokens_per_second for run in measured) for name, measured in runs.items()}
    plain_ids = runs["plain"][0].token_ids
    return {
        "batch": batch,
        "tokens_per_second": {name: round(value, 1) for name, value in speed.items()},
        "acceptance": runs["auto"][0].acceptance,
        "auto_to_plain": speed["auto"] / speed["plain"],
        "stranger_to_plain": speed["auto, stranger draft"] / speed["plain"],
        "plain_to_generate": speed["plain"] / speed[GENERATE],
        "auto_to_generate": speed["auto"] / speed[GENERATE],
        "same_text_as_plain": {
            name: sum(a == b for a, b in zip(measured[0].token_ids, plain_ids, strict=True)) / len(rows)
            for name, measured in runs.items()
        },
    }


def render(results: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    names = list(results[0]["tokens_per_second"])
    head = ["batch", *names, *(name for name, _ in RATIOS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for result in results:
        speed = result["tokens_per_second"]
        cells = [str(result["batch"]), *(f"{speed[name]:.0f}" for name in names)]
        cells += [f"{result[key]:.2f}" for _, key in RATIOS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", default="1,4,8,16,32")
    parser.add_argument("--draft-lengths", default="4", help="fixed K to measure")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parameters", type=int, default=120_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "target"
        shape = inflate("code-pair/target", target, options.parameters)
        rows = load_rows(target, options.rows, options.seed)
        results = []
        for batch in (int(value) for value in options.batches.split(",")):
            count = min(len(rows), max(8 * batch, 12))
            lengths = [int(value) for value in options.draft_lengths.split(",")]
            results.append(bench_batch(target, batch, rows[:: len(rows) // count][:count], lengths, options.repeats))
            print(render(results[-1:]), flush=True)
    hardware = describe_hardware()
    document = {
        "benchmark": "engine",
        "command": "python benchmarks/bench_engine.py " + " ".join(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
        "hardware": hardware,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("specbatch", "torch", "transformers")},
        "target_parameters": shape.parameters,
        "seed": options.seed,
        "results": results,
    }
    table = render(results)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = f"engine_{hardware['cores']}-cores_{document['date']}"
    (options.out / f"{stem}.json").write_text(json.dumps(document, indent=2) + "\n")
    (options.out / f"{stem}.md").write_text(f"{describe(document)}\n\n{table}\n")
    print(f"\n{describe(document)}\n\n{table}\n\nwritten: {options.out / stem}.json and .md")
    return 0


def describe(document: dict[str, Any]) -> str:
    """Recipe of the table in a few lines."""
    hardware = document["hardware"]
    versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items())
    size = document["target_parameters"] / 1e6
    return (
        f"Output tokens per second, medians; float32 target of {size:.0f} M parameters.\n"
        f"Command: `{document['command']}`. Date: {document['date']}.\n"
        f"Hardware: {hardware['cpu']}, {hardware['cores']} cores. Versions: {versions}, Python {document['python']}."
    )


if __name__ == "__main__":
    sys.exit(main())
