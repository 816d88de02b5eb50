"""What every side of the benchmark decodes: prompts of the example file, ragged completion lengths, a random draft."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path
from statistics import NormalDist

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from specbatch.specdec.models.folders import locate_model
from specbatch.specdec.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent

Row = tuple[list[int], int]
"""Prompt ids and the number of tokens wanted."""

MEDIAN_TOKENS, SIGMA, FEWEST_TOKENS, MOST_TOKENS = 64, 0.7, 8, 256

ROWS_PER_CAP = {1: 8, 4: 24, 8: 32, 16: 48, 32: 64, 64: 128}
"""Three batches or more at small caps, two at large ones, so that refilling counts and the last rows do not rule."""


def num_rows(cap: int) -> int:
    """Rows of one pass at a cap."""
    return ROWS_PER_CAP.get(cap, max(8, 3 * cap if cap < 32 else 2 * cap))


def wanted_tokens(count: int, seed: int) -> list[int]:
    """Completion lengths: log-normal, as in real data.

    One draw from each of ``count`` equal slices of the distribution, in random order: a small sample has its mean too.
    """
    generator = random.Random(seed)
    normal = NormalDist(math.log(MEDIAN_TOKENS), SIGMA)
    lengths = [round(math.exp(normal.inv_cdf((i + generator.uniform(0.01, 0.99)) / count))) for i in range(count)]
    generator.shuffle(lengths)
    return [min(max(length, FEWEST_TOKENS), MOST_TOKENS) for length in lengths]


def load_rows(target: Path, count: int, seed: int) -> list[Row]:
    """Prompts spread evenly over the example file, each with the tokens it wants."""
    prompts = pq.read_table(ROOT / "examples" / "prompts.parquet").column("prompt").to_pylist()
    tokenizer = Tokenizer.from_folder(target)
    chosen = [prompts[i * len(prompts) // count % len(prompts)] for i in range(count)]
    return [
        (tokenizer.encode(prompt), wanted) for prompt, wanted in zip(chosen, wanted_tokens(count, seed), strict=True)
    ]


def write_prompts(path: Path, count: int, group_rows: int = 10_000) -> None:
    """``count`` prompts of the example file, over and over."""
    prompts = pq.read_table(ROOT / "examples" / "prompts.parquet").column("prompt").to_pylist()
    chosen = [prompts[i % len(prompts)] for i in range(count)]
    pq.write_table(
        pa.table({"id": [f"row-{i}" for i in range(count)], "prompt": chosen}), path, row_group_size=group_rows
    )


def tuning_rows(rows: list[Row], cap: int) -> list[Row]:
    """A short pass that fills the batch: enough to tell a peer's good settings from its bad ones."""
    return [(ids, min(wanted, 32)) for ids, wanted in rows[: max(cap + 1, 4)]]


def write_random_draft(shape_of: str, out: Path, seed: int) -> None:
    """A draft that knows nothing: the shape, cost and tokenizer of another one, with fresh weights."""
    source = locate_model(shape_of).path
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), dtype=torch.float32)
    model.save_pretrained(out)
    for path in source.glob("tokenizer*"):
        shutil.copyfile(path, out / path.name)
