"""The sides of the comparison: each takes rows (prompt ids, tokens wanted) and gives token ids and seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec import Engine

Row = tuple[list[int], int]


@dataclass(frozen=True, slots=True)
class Measured:
    """One timed pass over all rows. ``token_ids`` are cut to the tokens that each row wanted."""

    seconds: float
    token_ids: tuple[tuple[int, ...], ...]
    acceptance: float | None = None

    @property
    def tokens_per_second(self) -> float:
        return sum(len(ids) for ids in self.token_ids) / self.seconds


def run_engine(
    target: Path, draft: str | None, speculation: int | Literal["auto", "off"], batch: int
) -> Callable[[Sequence[Row]], Measured]:
    """specbatch: plain, with a fixed K, or with K chosen by measurement (learning included: a new engine each time)."""

    def measure(rows: Sequence[Row]) -> Measured:
        engine = Engine.from_pretrained(target, draft, max_batch_size=batch, speculation=speculation)
        params = [SamplingParams(max_new_tokens=wanted, ignore_eos=True) for _, wanted in rows]
        started = time.perf_counter()
        outputs = engine.generate([ids for ids, _ in rows], params)
        seconds = time.perf_counter() - started
        drafted = sum(output.stats.num_draft_tokens for output in outputs)
        accepted = sum(output.stats.num_accepted_draft_tokens for output in outputs)
        return Measured(seconds, tuple(o.token_ids for o in outputs), accepted / drafted if drafted else None)

    return measure


def run_generate(target: Path, batch: int) -> Callable[[Sequence[Row]], Measured]:
    """``transformers`` ``generate`` in batches padded on the left.

    Its best setting: rows are taken in order of prompt length, so that padding is small. A batch runs until its longest
    completion is there, because a caller does not know lengths beforehand.
    """
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()

    def measure(rows: Sequence[Row]) -> Measured:
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        results: dict[int, tuple[int, ...]] = {}
        started = time.perf_counter()
        for begin in range(0, len(order), batch):
            chosen = order[begin : begin + batch]
            width = max(len(rows[i][0]) for i in chosen)
            ids = torch.tensor([[0] * (width - len(rows[i][0])) + rows[i][0] for i in chosen])
            mask = torch.tensor([[0] * (width - len(rows[i][0])) + [1] * len(rows[i][0]) for i in chosen])
            longest = max(rows[i][1] for i in chosen)
            with torch.inference_mode():
                output = model.generate(
                    ids, attention_mask=mask, do_sample=False, max_new_tokens=longest, min_new_tokens=longest,
                    pad_token_id=0,
                )  # fmt: skip
            for row, i in enumerate(chosen):
                results[i] = tuple(output[row, width : width + rows[i][1]].tolist())
        seconds = time.perf_counter() - started
        return Measured(seconds, tuple(results[i] for i in range(len(rows))))

    return measure
