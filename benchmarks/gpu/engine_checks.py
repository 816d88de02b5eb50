"""The engine on this device against its slow twin, and how often bfloat16 changes a row.

The twin is the unmodified module, asked for one token behind the whole prefix each time, without cache, batch or draft:
once on this device in the same dtype, and once on the host in float64.
"""

from __future__ import annotations

import itertools
import time
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM

from gpu.models import TARGET, TAUGHT, equal_rows, prompts, release, tokenizer
from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec import Engine, reference
from specbatch.specdec.models.folders import locate_model

_PROMPT_TOKENS, _ROWS = 48, 5
_TEMPERATURES, _LENGTHS, _BATCHES = (0.0, 0.8), (0, 1, 4), (1, 5)
_CONTEXT_LENGTH = 2048
_BFLOAT16_BATCHES = (1, 8, 32)


class OnDevice(torch.nn.Module):
    """A module on the device behind the face that the twin expects, whose tensors are on the host."""

    def __init__(self, module: Any, device: torch.device) -> None:
        super().__init__()
        self._module, self._device = module, device

    def forward(self, input_ids: torch.Tensor, **settings: Any) -> Any:
        logits = self._module(input_ids=input_ids.to(self._device), **settings).logits
        return SimpleNamespace(logits=logits.cpu())


def rows_of(count: int, temperature: float, new_tokens: int) -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts of different lengths, and how their rows are sampled."""
    ids = [row[: len(row) - 7 * (number % 5)] for number, row in enumerate(prompts(count, _PROMPT_TOKENS))]
    params = [
        SamplingParams(max_new_tokens=new_tokens, temperature=temperature, seed=100 + number, ignore_eos=True)
        for number in range(count)
    ]
    return ids, params


@lru_cache(maxsize=4)
def twin(device: torch.device, dtype: torch.dtype, temperature: float, new_tokens: int) -> list[list[int]]:
    """What the rows should say."""
    module = AutoModelForCausalLM.from_pretrained(locate_model(TARGET).path, dtype=dtype).to(device).eval()
    subject = OnDevice(module, device)
    vocab_size = tokenizer().vocab_size
    rows = zip(*rows_of(_ROWS, temperature, new_tokens), strict=True)
    outputs = (
        reference.generate(subject, ids, params, vocab_size=vocab_size, context_length=_CONTEXT_LENGTH)
        for ids, params in rows
    )
    return [list(output.token_ids) for output in outputs]


def make_engine(
    device: torch.device,
    dtype: str,
    batch: int,
    length: int,
    path: Literal["auto", "generic"] = "auto",
    *,
    bitwise: bool = False,
) -> Engine:
    """The bundled pair at a fixed K."""
    return Engine.from_pretrained(
        TARGET,
        TAUGHT if length else None,
        max_batch_size=batch,
        speculation=length or "off",
        device=str(device),
        dtype=dtype,
        model_path=path,
        bitwise=bitwise,
    )


def decode(engine: Engine, rows: int, temperature: float, new_tokens: int) -> list[list[int]]:
    """What an engine makes of the rows."""
    return [list(output.token_ids) for output in engine.generate(*rows_of(rows, temperature, new_tokens))]


def against_twin(device: torch.device, dtype: str, new_tokens: int, deadline: float) -> dict[str, Any]:
    """Rows that equal the twin's, over temperatures, K, batches and both model paths."""
    entries: list[dict[str, Any]] = []
    paths: tuple[Literal["auto", "generic"], ...] = ("auto", "generic")
    for path, length, batch in itertools.product(paths, _LENGTHS, _BATCHES):
        engine = make_engine(device, dtype, batch, length, path)
        for temperature in _TEMPERATURES:
            if time.time() > deadline:
                return {"entries": entries, "is_whole": False}
            ours = decode(engine, _ROWS, temperature, new_tokens)
            on_device = twin(device, getattr(torch, dtype), temperature, new_tokens)
            on_host = twin(torch.device("cpu"), torch.float64, temperature, new_tokens)
            entries.append(
                {
                    "path": engine.model_path,
                    "temperature": temperature,
                    "K": length,
                    "batch": batch,
                    "equal_to_twin": equal_rows(ours, on_device),
                    "equal_to_host_twin": equal_rows(ours, on_host),
                }
            )
        del engine
        release()  # the next one takes its share of what is free
    return {"entries": entries, "is_whole": True}


def bfloat16_rate(device: torch.device, new_tokens: int, num_rows: int, deadline: float) -> dict[str, Any]:
    """Share of rows that differ from those of batch 1 without drafts, by batch and K; and the same with ``bitwise``."""
    entries: list[dict[str, Any]] = []
    first: dict[tuple[float, bool], list[list[int]]] = {}
    for bitwise, batch, length in itertools.product((False, True), _BFLOAT16_BATCHES, _LENGTHS):
        engine = make_engine(device, "bfloat16", batch, length, bitwise=bitwise)
        for temperature in _TEMPERATURES:
            if time.time() > deadline:
                return {"entries": entries, "is_whole": False}
            began = time.perf_counter()
            ours = decode(engine, num_rows, temperature, new_tokens)
            entries.append(
                {
                    "temperature": temperature,
                    "bitwise": bitwise,
                    "seconds": time.perf_counter() - began,
                    "batch": batch,
                    "K": length,
                    "rows": num_rows,
                    "tokens": new_tokens,
                    "differing": 1.0 - equal_rows(ours, first.setdefault((temperature, bitwise), ours)),
                }
            )
        del engine
        release()
    return {"entries": entries, "is_whole": True}
