"""What the engine adds to its own matrix products, and what speculation could give if nothing were added.

    python benchmarks/bench_overhead.py            # --rows 1,8 --caps 8 for less

First table: a plain step of the engine at several rows in flight, against the matrix products of the same loaded target
run alone, one after the other, on as many rows: those with weights, and attention's two on as many keys.

Second table: for each cap the K that pure arithmetic would choose, the same for all rows of a full batch, and the gain
over plain decoding that it gives. A round is taken to cost the target's products on cap * (K + 1) rows and K times the
draft's on cap rows, and nothing else; how many drafts a round accepts is measured on the benchmark's own prompts. The
bound is that of the draft model alone: the suffix index, whose drafts cost next to nothing, and a K of its own for each
row can pass it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from workload import ROOT, load_rows

from specbatch.jobs.planning.machine import count_cores, describe_hardware
from specbatch.schemas.sampling import SamplingParams
from specbatch.schemas.stats import SpecCounters, accepted_by_position, proposed_by_position
from specbatch.specdec import Engine
from specbatch.specdec.inflate import inflate
from specbatch.specdec.kernels.packing import Product

TAUGHT = "code-pair/draft-taught"
MOST_OVERHEAD = 1.3
MAX_K = 6
GRID = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 448)
PROMPT_TOKENS, WARM_STEPS, TIMED_STEPS = 32, 4, 24
MEAN_KEYS = PROMPT_TOKENS + WARM_STEPS + TIMED_STEPS // 2


def products_of(decoder: Any) -> Sequence[Product]:
    """The products with weights of a model on the lean path."""
    if decoder.path != "lean":
        raise SystemExit("the engine decodes this model by the generic path; there are no products to time alone")
    products: Sequence[Product] = decoder.products
    return products


@torch.inference_mode()
def product_seconds(products: Sequence[Product], rows: int, repeats: int) -> float:
    """Median seconds of all products one after the other; each reads its own weights, so none stays in cache."""
    widths = {product.in_features for product in products}
    inputs = {width: torch.randn(rows, width) for width in widths}
    seconds = []
    for repeat in range(repeats + 1):
        started = time.perf_counter()
        for product in products:
            product(inputs[product.in_features])
        if repeat:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


@torch.inference_mode()
def attention_seconds(decoder: Any, rows: int, num_keys: int, repeats: int) -> float:
    """Median seconds of the two products of attention in all layers, on keys and values where they lie."""
    heads, width = decoder.num_heads // decoder.num_kv_heads, decoder.head_dim
    query = torch.randn(rows, decoder.num_kv_heads, heads, width)
    mask = torch.zeros(rows, 1, 1, num_keys)
    seconds = []
    for repeat in range(repeats + 1):
        started = time.perf_counter()
        for layer in range(len(decoder.layers)):
            keys, values = decoder.cache.read(layer, 0, rows, num_keys)
            functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        if repeat:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def step_seconds(engine: Engine, rows: int) -> float:
    """Median seconds of a plain step with all rows in flight and none in prefill."""
    params = SamplingParams(max_new_tokens=2 * (WARM_STEPS + TIMED_STEPS), ignore_eos=True)
    for row in range(rows):
        engine.submit(row, [5 + (7 * row + i) % 500 for i in range(PROMPT_TOKENS)], params)
    seconds: list[float] = []
    steps = 0
    while len(seconds) < TIMED_STEPS:
        prefilled = engine.seconds.prefill
        started = time.perf_counter()
        finished = engine.step()
        elapsed = time.perf_counter() - started
        if finished:
            raise RuntimeError("a row ended before enough steps were timed")
        if engine.num_queued == 0 and engine.seconds.prefill == prefilled:
            steps += 1
            if steps > WARM_STEPS:
                seconds.append(elapsed)
    engine.cancel_all()
    return statistics.median(seconds)


def survival(target: Path, num_rows: int, seed: int) -> list[float]:
    """Entry j: the share of rounds in which drafts 0 to j are all accepted, with K fixed at its largest."""
    engine = Engine.from_pretrained(target, TAUGHT, max_batch_size=8, speculation=MAX_K)
    rows = load_rows(target, num_rows, seed)
    params = [SamplingParams(max_new_tokens=wanted, ignore_eos=True) for _, wanted in rows]
    counters = SpecCounters.total(output.stats for output in engine.generate([ids for ids, _ in rows], params))
    pairs = zip(accepted_by_position(counters), proposed_by_position(counters), strict=False)
    return [accepted / max(proposed, 1) for accepted, proposed in pairs][:MAX_K]


def best_draft_length(
    cap: int, target: dict[int, float], draft: dict[int, float], survives: list[float]
) -> dict[str, float]:
    """K of the greatest gain, the tokens that a row then gets in a round, and the gain over K = 0."""

    def seconds(of: dict[int, float], rows: int) -> float:
        return float(np.interp(rows, list(of), list(of.values())))

    plain = seconds(target, cap)
    best = {"K": 0.0, "tokens": 1.0, "gain": 1.0}
    for length in range(1, len(survives) + 1):
        tokens = 1 + sum(survives[:length])
        cost = seconds(target, cap * (length + 1)) + length * seconds(draft, cap)
        if tokens * plain / cost > best["gain"]:
            best = {"K": length, "tokens": tokens, "gain": tokens * plain / cost}
    return best


def render(document: dict[str, Any]) -> str:
    """Markdown of both tables."""
    hardware, versions = document["hardware"], document["versions"]
    lines = [
        f"Hardware: {hardware['cpu']}, {document['threads']} threads. Date: {document['date']}. Versions: "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
        "",
        f"| rows | products with weights, ms | attention, ms | engine step, ms | step / all products (target ≤ "
        f"{MOST_OVERHEAD}) | step / products with weights |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for step in document["steps"]:
        ratio = step["step_seconds"] / (step["product_seconds"] + step["attention_seconds"])
        verdict = "met" if ratio <= MOST_OVERHEAD else "**over**"
        lines.append(
            f"| {step['rows']} | {step['product_seconds'] * 1e3:.1f} | {step['attention_seconds'] * 1e3:.1f} "
            f"| {step['step_seconds'] * 1e3:.1f} | {ratio:.2f}, {verdict} "
            f"| {step['step_seconds'] / step['product_seconds']:.2f} |"
        )
    survives = ", ".join(f"{value:.2f}" for value in document["survival"])
    lines += [
        "",
        f"Rounds that accept at least 1, 2, ... drafts: {survives}.",
        "",
        "| cap | best K by arithmetic | tokens per row and round | bound on auto / plain |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {bound['cap']} | {bound['K']:.0f} | {bound['tokens']:.2f} | {bound['gain']:.2f} |"
        for bound in document["bounds"]
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1,2,4,8,16,32", help="rows in flight of the first table")
    parser.add_argument("--caps", default="1,4,8,16,32,64", help="caps of the second table")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--survival-rows", type=int, default=32, help="rows decoded to measure acceptance")
    parser.add_argument("--parameters", type=int, default=120_000_000)
    parser.add_argument("--threads", type=int, default=count_cores())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file; the table is written beside it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    steps = []
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "target"
        inflate("code-pair/target", target, options.parameters)
        for rows in (int(value) for value in options.rows.split(",")):
            engine = Engine.from_pretrained(target, max_batch_size=rows, speculation="off")
            decoder = engine._batch.target
            products = products_of(decoder)
            # Before and after the steps: a machine that slows down meanwhile shows on both sides.
            before = product_seconds(products, rows, options.repeats)
            seconds = step_seconds(engine, rows)
            after = product_seconds(products, rows, options.repeats)
            steps.append(
                {
                    "rows": rows,
                    "product_seconds": (before + after) / 2,
                    "attention_seconds": attention_seconds(decoder, rows, MEAN_KEYS, options.repeats),
                    "step_seconds": seconds,
                }
            )
        caps = [int(value) for value in options.caps.split(",")]
        grid = [rows for rows in GRID if rows <= max(caps) * (MAX_K + 1)]
        pair = Engine.from_pretrained(target, TAUGHT, max_batch_size=8, speculation=MAX_K)
        of_target, of_draft = (
            {rows: product_seconds(products, rows, options.repeats) for rows in grid}
            for products in (products_of(pair._batch.target), products_of(pair._batch.draft))
        )
        survives = survival(target, options.survival_rows, options.seed)
    document = {
        "benchmark": "overhead",
        "date": datetime.date.today().isoformat(),
        "hardware": describe_hardware(),
        "threads": options.threads,
        "versions": {name: importlib.metadata.version(name) for name in ("specbatch", "torch", "transformers")},
        "parameters": options.parameters,
        "steps": steps,
        "product_seconds": {"target": of_target, "draft": of_draft},
        "survival": survives,
        "bounds": [{"cap": cap, **best_draft_length(cap, of_target, of_draft, survives)} for cap in caps],
    }
    stem = f"overhead_{document['hardware']['cores']}-cores_{document['date']}"
    out = options.out or ROOT / "benchmarks" / "results" / f"{stem}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    out.with_suffix(".md").write_text(render(document) + "\n")
    print(f"{render(document)}\n\nwritten: {out} and {out.stem}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
