"""The engine's sides: prompts are read, the batch comes to a steady state, and then rounds are timed.

A side is a setting of speculation and of the engine's switches; a new one is an entry of ``settings_of``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from gpu import plan
from gpu.models import Pair, tokenizer
from gpu.roof import round_bytes, synchronize
from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec import Engine, prefill
from specbatch.specdec.controller import RoundMeasure, make_policy

_FILL_CHUNK_TOKENS = 8192
"""While the batch is being filled: so that the first rows have not said much when the last have been read."""
_MOST_NEW_TOKENS = 1024
"""Room of a row behind its prompt."""
_PREFILL_TOKENS = 16384
"""Of the pass that times the reading of prompts alone."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a side builds its engine; ``options`` are arguments of ``Engine``."""

    speculation: int | Literal["auto", "off"]
    options: dict[str, Any]
    has_suffix: bool = False


class NotOfferedError(Exception):
    """The side needs something that this engine or device does not have."""


def settings_of(side: str, device: torch.device) -> Setting:
    """The setting behind a side's name.

    Raises:
        NotOfferedError: for an uncaptured side where nothing is captured.
    """
    base = side.removesuffix(plan.UNCAPTURED)
    if base != side and device.type != "cuda":
        raise NotOfferedError("rounds are captured on a GPU only")
    speculation: int | Literal["auto", "off"]
    if base == plan.PLAIN:
        speculation = "off"
    elif base in (plan.AUTO, plan.AUTO_MODEL):
        speculation = "auto"
    else:
        speculation = int(base.removeprefix("K="))
    return Setting(speculation, {"rounds": "ahead" if base == side else "loop"}, has_suffix=base == plan.AUTO)


def make_engine(pair: Pair, batch: int, context: int, setting: Setting) -> Engine:
    """A new engine around the resident pair, as ``from_pretrained`` would build it, without its ledger."""
    speculation = setting.speculation
    draft = None if speculation in ("off", 0) else pair.ready_draft(context)
    pair.fit_caches(batch, context + _MOST_NEW_TOKENS)
    return Engine(
        pair.target,
        draft,
        tokenizer(),
        eos_ids=(),
        policy=make_policy(speculation, has_draft=draft is not None, uses_suffix=setting.has_suffix),
        max_batch_size=batch,
        max_sequence_tokens=pair.target.context_length,
        has_suffix=setting.has_suffix,
        has_profile=speculation == "auto",
        **setting.options,
    )


@contextmanager
def large_chunks() -> Iterator[None]:
    """Prompts in larger pieces than the engine would take."""
    usual = prefill.CHUNK_TOKENS, prefill.DEVICE_CHUNK_TOKENS
    prefill.CHUNK_TOKENS = prefill.DEVICE_CHUNK_TOKENS = _FILL_CHUNK_TOKENS
    try:
        yield
    finally:
        prefill.CHUNK_TOKENS, prefill.DEVICE_CHUNK_TOKENS = usual


def said(engine: Engine, batch: int) -> list[list[int]]:
    """What the rows in flight have said, in the order of their keys."""
    slots = engine._batch.slots
    texts: dict[Any, list[int]] = {}
    for slot, request in enumerate(slots.requests):
        if request is not None:
            texts[request.key] = slots.token_SP[slot, slots.prompt_length_S[slot] : slots.length_S[slot]].tolist()
    return [texts.get(row, []) for row in range(batch)]


def measure(
    pair: Pair, batch: int, prompts: Sequence[Sequence[int]], side: str, new_tokens: int, deadline: float
) -> tuple[dict[str, Any], list[list[int]]]:
    """One side of one cell; returns its figures and the texts of the rows.

    A quarter of ``new_tokens`` warms up, the rest is timed. The timed part also ends with the first row that has all
    its tokens, or at the deadline, so that all rows are in flight in all of it.

    Raises:
        NotOfferedError: see ``settings_of``. RuntimeError: memory ran out, or there was no time for a single round.
    """
    context, device = len(prompts[0]), pair.device
    engine = make_engine(pair, batch, context, settings_of(side, device))
    policy, rounds = engine._batch.policy, list[RoundMeasure]()
    observe = policy.observe

    def watch(measure: RoundMeasure) -> None:
        rounds.append(measure)
        observe(measure)

    policy.observe = watch  # type: ignore[method-assign]
    params = SamplingParams(max_new_tokens=4 * new_tokens, ignore_eos=True)
    for row, ids in enumerate(prompts):
        engine.submit(row, ids, params)
    slots = engine._batch.slots

    def step() -> bool:
        """Whether all rows go on."""
        finished = engine.step()
        if engine.num_active < batch and not finished:
            raise RuntimeError(f"memory ran out: {engine.num_active} of {batch} rows are in flight")
        return not finished and time.time() < deadline

    started = time.perf_counter()
    with large_chunks():
        goes_on = step()
        while goes_on and (engine.num_queued or len(slots.rows(begun=False))):
            goes_on = step()
    synchronize(device)
    fill_seconds = time.perf_counter() - started
    lengths = _lengths(engine)
    while goes_on and _lengths(engine) < lengths + batch * new_tokens // 4:
        goes_on = step()
    synchronize(device)
    rounds.clear()
    before, started = _lengths(engine), time.perf_counter()
    while goes_on and _lengths(engine) < before + batch * new_tokens * 3 // 4:
        goes_on = step()
    synchronize(device)
    seconds = time.perf_counter() - started
    if not rounds:
        raise RuntimeError("no time was left for a single round in steady state")
    texts = said(engine, batch)
    figures = _figures(pair, batch, rounds, before, seconds) | {"fill_seconds": fill_seconds}
    engine.cancel_all()
    if side == plan.PLAIN and time.time() < deadline:
        figures |= _prefill_rate(pair, prompts)
    pair.fit_caches(1)
    return figures, texts


def _lengths(engine: Engine) -> int:
    """Tokens of all rows together."""
    slots = engine._batch.slots
    return int(slots.length_S[slots.rows(begun=True)].sum())


def _figures(pair: Pair, batch: int, rounds: list[RoundMeasure], before: int, seconds: float) -> dict[str, Any]:
    """What the timed rounds come to."""
    matched = sum(int(each.matched_B.sum()) for each in rounds)
    drafted = sum(int(each.draft_length_B.sum()) for each in rounds)
    judged = sum(int(np.minimum(each.matched_B + 1, each.draft_length_B).sum()) for each in rounds)
    rows = sum(each.num_rows for each in rounds)
    tokens = rows + matched
    row_tokens = before + tokens / 2
    steps = sum(each.num_draft_steps for each in rounds) / len(rounds)
    # A step of few rows reads their caches only.
    draft_rows = sum(each.num_draft_steps * each.num_model_rows for each in rounds) / len(rounds)
    draft = pair.draft_model if steps else None
    return {
        "tokens": tokens,
        "rounds": len(rounds),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "round_seconds": seconds / len(rounds),
        "round_bytes": round_bytes(pair.target_model, draft, row_tokens, steps, draft_rows * row_tokens / batch),
        "draft_steps_per_round": steps,
        "drafted_per_round": drafted / rows,
        "accepted_per_round": matched / rows,
        "accepted_share": matched / drafted if drafted else None,
        "acceptance": matched / judged if judged else None,
    }


def _prefill_rate(pair: Pair, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Tokens of prompts that the engine reads in a second, in its own chunks and with nothing beside them."""
    context = len(prompts[0])
    rows = prompts[: max(_PREFILL_TOKENS // context, 1)]
    engine = make_engine(pair, len(rows), context, Setting("off", {}))
    for row, ids in enumerate(rows):
        engine.submit(row, ids, SamplingParams(max_new_tokens=1, ignore_eos=True))
    started, left = time.perf_counter(), len(rows)
    while left:
        left -= len(engine.step())
    synchronize(pair.device)
    seconds = time.perf_counter() - started
    return {
        "prefill_tokens_per_second": len(rows) * context / seconds,
        "prefill_flops_per_second": pair.target_model.prefill_flops(len(rows), context) / seconds,
    }
