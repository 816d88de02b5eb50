"""The peers of ``transformers``: the same weights, prompts and number of new tokens, each at its best settings.

Decoding is timed as the difference between a run to the full length and a run that ends with the first token, so that
a peer's reading of prompts is kept out of its speed, as it is of the engine's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from gpu import continuous, plan
from gpu.models import Pair, release
from gpu.peer_timing import REPEATS, Run, Texts, TooSlowError, timed
from gpu.roof import Model, round_bytes

_COMPILED_REPEATS = 3
_ASSISTED_LENGTHS = (3, 5)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def measure(
    pair: Pair, batch: int, prompts: Sequence[Sequence[int]], side: str, new_tokens: int, deadline: float
) -> tuple[dict[str, Any], Texts]:
    """One peer in one cell; returns its figures and texts.

    Raises:
        TooSlowError: see there. Whatever the library raises goes through.
    """
    module = pair.module("target")
    if module.config._attn_implementation != "sdpa":  # a manager that failed leaves its own behind
        module.set_attn_implementation("sdpa")
    try:
        if side == plan.GENERATE_BATCH:
            figures, texts = continuous.measure(pair, prompts, new_tokens, deadline)
        elif side == plan.ASSISTED:
            figures, texts = _assisted(pair, prompts, new_tokens, deadline)
        elif side == plan.STATIC:
            # The library compiles decoding with a static cache by itself on CUDA.
            forget_compiled(module)
            run = _generate(pair, prompts, deadline, cache_implementation="static")
            figures, texts = timed(pair, run, new_tokens, warm_tokens=new_tokens, repeats=_COMPILED_REPEATS)
            figures["setting"] = "sdpa"
        else:
            run = _generate(pair, prompts, deadline)
            figures, texts = timed(pair, run, new_tokens)
            figures["setting"] = "sdpa"
    finally:
        release()
    context = len(prompts[0])
    rounds = new_tokens - 1
    figures |= {
        "tokens": batch * rounds,
        "tokens_per_second": batch * rounds / figures["seconds"],
        "prefill_tokens_per_second": batch * context / figures.pop("first_seconds"),
    }
    if side != plan.ASSISTED:
        figures |= {
            "rounds": rounds,
            "round_seconds": figures["seconds"] / rounds,
            "round_bytes": round_bytes(pair.target_model, None, batch * (context + new_tokens / 2), 0, 0),
        }
    return figures, texts


def forget_compiled(module: Any) -> None:
    """Let the next shape be compiled as the first one was: for itself alone, and a cache of its own length.

    A second shape in one process would be compiled for any shape, and the longest cache so far would be taken again.
    """
    torch._dynamo.reset()
    for name in ("_compiled_call", "_last_compile_config", "_previous_max_cache_length"):
        module.__dict__.pop(name, None)


def _generate(pair: Pair, prompts: Sequence[Sequence[int]], deadline: float, **options: Any) -> Run:
    """``generate`` on prompts of equal lengths, so that nothing is padded and no mask is needed."""
    module = pair.module("target")
    ids = torch.tensor(prompts, device=pair.device)
    mask = torch.ones_like(ids)

    def run(length: int) -> Texts:
        seconds = max(deadline - time.time(), 0.1)
        out = module.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=length, max_time=seconds, **options
        )
        texts: Texts = out[:, ids.shape[1] :].tolist()
        if len(texts[0]) < length:
            raise TooSlowError(f"{len(texts[0])} of {length} tokens were there at the deadline")
        return texts

    return run


def _assisted(
    pair: Pair, prompts: Sequence[Sequence[int]], new_tokens: int, deadline: float
) -> tuple[dict[str, Any], Texts]:
    """``assistant_model``, the better of two fixed numbers of drafts."""
    pair.ready_draft(len(prompts[0]))
    assistant = pair.module("draft")
    results: dict[str, tuple[dict[str, Any], Texts]] = {}
    for number in _ASSISTED_LENGTHS:
        config = assistant.generation_config
        config.num_assistant_tokens, config.num_assistant_tokens_schedule = number, "constant"
        config.assistant_confidence_threshold = 0.0
        run = _generate(pair, prompts, deadline, assistant_model=assistant)
        results[f"K={number}"] = timed(pair, run, new_tokens)
    setting = min(results, key=lambda name: results[name][0]["seconds"])
    figures, texts = results[setting]
    return figures | {"setting": setting}, texts


def num_passes(side: str, model: str, batch: int, new_tokens: int, device: torch.device) -> tuple[int, float]:
    """How often a peer reads its prompts in a task, and how often it decodes ``new_tokens``; about."""
    if side == plan.GENERATE_BATCH:
        return continuous.num_passes(model, batch, new_tokens, device)
    if side == plan.STATIC:
        return 1 + 2 * _COMPILED_REPEATS, 1.0 + _COMPILED_REPEATS
    times = len(_ASSISTED_LENGTHS) if side == plan.ASSISTED else 1
    return times * (1 + 2 * REPEATS), float(times * REPEATS)


def needed_bytes(side: str, model: Model, batch: int, context: int, new_tokens: int) -> int:
    """Memory of a peer beside the weights: its cache, and what the largest forward needs at once."""
    if side == plan.GENERATE_BATCH:
        return continuous.needed_bytes(model, batch, context + new_tokens)
    # All prompts are read in one forward: gate, up and their product, and some rows of the residual's width.
    activations = batch * context * (3 * model.shape.intermediate + 4 * model.shape.hidden) * model.dtype_bytes
    return batch * (context + new_tokens) * model.kv_bytes + activations
