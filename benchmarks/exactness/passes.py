"""Passes of an engine over the example prompts, and how many rows differ between two of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

import pyarrow.parquet as pq
import torch

from specbatch.specdec import Engine, SamplingParams, SequenceOutput
from specbatch.specdec.accept import IntArray

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass over some rows gave, and what it took: wall seconds, and those of canonical evaluation."""

    outputs: list[SequenceOutput]
    seconds: float
    canonical_seconds: float

    @property
    def num_tokens(self) -> int:
        return sum(len(output.token_ids) for output in self.outputs)

    @property
    def num_near_ties(self) -> int:
        return sum(output.num_near_ties for output in self.outputs)


class Rows:
    """Prompts of the example file; row i has seed i."""

    def __init__(self, num_tokens: int) -> None:
        self.prompts: list[str] = pq.read_table(ROOT / "examples" / "prompts.parquet")["prompt"].to_pylist()
        self.num_tokens = num_tokens

    def decode(self, engine: Engine, rows: Sequence[int], temperature: float, *, has_arbitration: bool = True) -> Pass:
        """Decode some rows; without arbitration every draw counts as it comes out of the batch."""
        batch = engine._batch
        params = [
            SamplingParams(max_new_tokens=self.num_tokens, temperature=temperature, seed=row, ignore_eos=True)
            for row in rows
        ]
        spent: list[float] = []
        decide = batch.canonical_token

        def timed(slot: int, token_J: IntArray) -> tuple[int, float]:
            began = time.perf_counter()
            token = decide(slot, token_J)
            spent.append(time.perf_counter() - began)
            return token

        epsilon = batch.epsilon if has_arbitration else 0.0
        with mock.patch.object(batch, "canonical_token", timed), mock.patch.object(batch, "epsilon", epsilon):
            started = time.perf_counter()
            outputs = engine.generate([self.prompts[row] for row in rows], params)
            return Pass(outputs, time.perf_counter() - started, sum(spent))


def load(
    max_batch_size: int,
    speculation: int | Literal["off"],
    dtype: str,
    path: Literal["auto", "generic"] = "auto",
    *,
    bitwise: bool = False,
) -> Engine:
    """The bundled pair in one batch shape."""
    return Engine.from_pretrained(
        "code-pair/target",
        None if speculation == "off" else "code-pair/draft-taught",
        max_batch_size=max_batch_size,
        speculation=speculation,
        device="cpu",
        dtype=dtype,
        model_path=path,
        num_threads=torch.get_num_threads(),
        bitwise=bitwise,
    )


def num_differing(one: Sequence[SequenceOutput], other: Sequence[SequenceOutput]) -> int:
    """Rows whose token ids are not the same."""
    return sum(a.token_ids != b.token_ids for a, b in zip(one, other, strict=True))


def at_most(events: int, trials: int) -> str:
    """A share; for none at all what it is below with 95 % confidence (the rule of three)."""
    return f"{events} of {trials}" + (f" (below {300 / trials:.1f} %)" if events == 0 else f" ({events / trials:.1%})")
