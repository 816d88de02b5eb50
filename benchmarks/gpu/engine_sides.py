"""The engine's sides: prompts are read, the batch comes to a steady state, and then rounds are timed.

A side is a setting of speculation and of the engine's switches; a new one is an entry of ``settings_of``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gpu import plan, watch
from gpu.models import Pair, tokenizer
from gpu.roof import synchronize
from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec import Engine
from specbatch.specdec.models.memory import AUTO_DRAFT_LENGTH
from specbatch.specdec.output import SequenceOutput
from specbatch.specdec.policy.controller import make_policy
from specbatch.specdec.rounds import prefill

_FILL_CHUNK_TOKENS = 8192
"""While the batch is being filled: so that the first rows have not said much when the last have been read."""
_SPARE_ROUNDS = 24
"""Rounds that captures may spoil: two thirds of them before the timed ones, the rest among those."""
_PREFILL_TOKENS = 16384
"""Of the pass that times the reading of prompts alone."""
_PREFILL_ROOM_TOKENS = 64
"""For the one token behind each of them, and the page that every row must find free to come in."""


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


def room_tokens(side: str, prompt_tokens: int, new_tokens: int, rounds: int) -> int:
    """Tokens that a row may come to have behind its prompt: every draft of every round accepted.

    Args:
        prompt_tokens: of all rows together; while the last of them are read, the first rows decode already.
    """
    base = side.removesuffix(plan.UNCAPTURED)
    if base in (plan.AUTO, plan.AUTO_MODEL):
        most_drafts = AUTO_DRAFT_LENGTH
    else:
        most_drafts = 0 if base == plan.PLAIN else int(base.removeprefix("K="))
    fill_rounds = -(-prompt_tokens // _FILL_CHUNK_TOKENS)
    return new_tokens + (most_drafts + 1) * (fill_rounds + 2 * rounds + _SPARE_ROUNDS)


def make_engine(pair: Pair, batch: int, row_tokens: int, context: int, setting: Setting) -> Engine:
    """A new engine around the resident pair, as ``from_pretrained`` would build it, without its ledger.

    Args:
        row_tokens: that a row may come to have, its prompt of ``context`` tokens included.
    """
    speculation = setting.speculation
    draft = None if speculation in ("off", 0) else pair.ready_draft(context)
    pair.fit_caches(batch, row_tokens)
    return Engine(
        pair.target,
        draft,
        tokenizer(),
        eos_ids=(),
        policy=make_policy(speculation, has_draft=draft is not None, has_suffix=setting.has_suffix),
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


def said(engine: Engine, ended: Sequence[SequenceOutput], batch: int) -> list[list[int]]:
    """What the rows in flight have said, and those that have ended, in the order of their keys."""
    slots = engine._batch.slots
    texts: dict[Any, list[int]] = {output.key: list(output.token_ids) for output in ended}
    for slot, request in enumerate(slots.requests):
        if request is not None:
            texts[request.key] = slots.token_SP[slot, slots.prompt_length_S[slot] : slots.length_S[slot]].tolist()
    return [texts.get(row, []) for row in range(batch)]


def measure(
    pair: Pair,
    batch: int,
    prompts: Sequence[Sequence[int]],
    side: str,
    new_tokens: int,
    deadline: float,
    *,
    rounds: int,
) -> tuple[dict[str, Any], list[list[int]]]:
    """One side of one cell; returns its figures and the texts of the rows.

    ``rounds`` warm up, and more until a stretch of them has captured nothing; then at least as many are timed, and
    three quarters of ``new_tokens`` in every row. The timed part also ends with the first row that has all its tokens,
    or at the deadline, so that all rows are in flight in all of it. All sides warm up by as many rounds, because what
    comes later reads longer rows.

    Raises:
        NotOfferedError: see ``settings_of``. RuntimeError: memory ran out, there was no time for a single round, or the
            rounds do not add up to what the rows have said.
    """
    context, device = len(prompts[0]), pair.device
    room = room_tokens(side, batch * context, new_tokens, rounds)
    engine = make_engine(pair, batch, context + room, context, settings_of(side, device))
    seen = watch.Watch(engine)
    params = SamplingParams(max_new_tokens=room, ignore_eos=True)
    for row, ids in enumerate(prompts):
        engine.submit(row, ids, params)
    slots, ended = engine._batch.slots, list[SequenceOutput]()

    def step() -> bool:
        """Whether all rows go on."""
        finished = engine.step()
        ended.extend(finished)
        for output in finished:
            if output.error_code is not None:
                raise RuntimeError(f"a row ended with {output.error_code}: {output.error_message}")
        if engine.num_queued and not finished:
            raise RuntimeError(f"memory ran out: {engine.num_active} of {batch} rows are in flight")
        return not finished and time.time() < deadline

    started = time.perf_counter()
    with large_chunks():
        goes_on = step()
        while goes_on and len(slots.rows(begun=False)):
            goes_on = step()
    synchronize(device)
    fill_seconds = time.perf_counter() - started
    seen.begin()
    # Where captures do not end, half of the time is kept for what is timed.
    warm_deadline = (time.time() + deadline) / 2
    most_warm_rounds = rounds + _SPARE_ROUNDS * 2 // 3
    while goes_on and not seen.is_warm(rounds, most_warm_rounds) and time.time() < warm_deadline:
        goes_on = step()
    warm = seen.rounds
    seen.begin()
    before = _lengths(engine, ended, context)
    wanted = batch * new_tokens * 3 // 4
    while goes_on and (seen.num_timed < rounds or seen.num_timed_tokens < wanted):
        goes_on = step()
    texts, after = said(engine, ended, batch), _lengths(engine, ended, context)
    counted = sum(each.num_tokens for each in seen.rounds)
    if counted != after - before:
        raise RuntimeError(f"the rounds counted {counted} tokens, and the rows grew by {after - before}")
    figures = watch.figures(pair.target_model, pair.draft_model, seen.rounds, batch, before, after)
    figures |= {
        "fill_seconds": fill_seconds,
        "warm_rounds": len(warm),
        "warm_captured_rounds": sum(each.has_captured for each in warm),
        "warm_captured_seconds": sum(each.seconds for each in warm if each.has_captured),
    }
    engine.cancel_all()
    if side == plan.PLAIN and time.time() < deadline:
        figures |= _prefill_rate(pair, prompts)
    return figures, texts


def _lengths(engine: Engine, ended: Sequence[SequenceOutput], context: int) -> int:
    """Tokens of all rows together, prompts of ``context`` tokens included."""
    slots = engine._batch.slots
    in_flight = int(slots.length_S[slots.rows(begun=True)].sum())
    return in_flight + sum(context + len(output.token_ids) for output in ended)


def _prefill_rate(pair: Pair, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Tokens of prompts that the engine reads in a second, in its own chunks and with nothing beside them."""
    context = len(prompts[0])
    rows = prompts[: max(_PREFILL_TOKENS // context, 1)]
    engine = make_engine(pair, len(rows), context + _PREFILL_ROOM_TOKENS, context, Setting("off", {}))
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
