"""The peers of ``transformers``: the same weights, prompts and number of new tokens, each at its best settings.

Decoding is timed as the difference between a run to the full length and a run that ends with the first token, so that
a peer's reading of prompts is kept out of its speed, as it is of the engine's.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

from gpu import plan
from gpu.models import Pair, release
from gpu.roof import round_bytes, synchronize

_SHORT_TOKENS = 16
_PAGE_TOKENS = 256
_SPARE_PAGES = 1.3
"""Pages beyond those in use, so that a safety margin never bites."""
_BATCH_TOKENS = 4096
_ASSISTED_LENGTHS = (3, 5)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)

Texts = list[list[int]]
Run = Callable[[int], Texts]
"""Decode so many tokens behind every prompt."""

_best_settings: dict[tuple[str, str], str] = {}
"""By model and peer: what a short pass chose, once for all cells."""


class TooSlowError(Exception):
    """The peer did not come to its last token before the deadline."""


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
            figures, texts = _continuous(pair, prompts, new_tokens, deadline)
        elif side == plan.ASSISTED:
            figures, texts = _assisted(pair, prompts, new_tokens, deadline)
        else:
            is_static = side == plan.STATIC
            options = {"cache_implementation": "static"} if is_static else {}
            # The library compiles decoding with a static cache by itself on CUDA; a graph belongs to one cache length.
            more = {"warm_tokens": new_tokens, "repeats": 2} if is_static else {}
            figures, texts = _timed(pair, _generate(pair, prompts, deadline, **options), new_tokens, **more)
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


def _timed(
    pair: Pair, run: Run, new_tokens: int, *, warm_tokens: int = 4, repeats: int = 1
) -> tuple[dict[str, Any], Texts]:
    """Seconds of the first token and of all further ones, behind a run that warms up; the fastest of ``repeats``."""
    run(min(warm_tokens, new_tokens))
    first, whole = float("inf"), float("inf")
    texts: Texts = []
    for _ in range(repeats):
        first = min(first, _seconds(pair, lambda: run(1))[0])
        seconds, texts = _seconds(pair, lambda: run(new_tokens))
        whole = min(whole, seconds)
    return {"first_seconds": first, "seconds": max(whole - first, 1e-9)}, texts


def _seconds(pair: Pair, run: Callable[[], Texts]) -> tuple[float, Texts]:
    synchronize(pair.device)
    started = time.perf_counter()
    texts = run()
    synchronize(pair.device)
    return time.perf_counter() - started, texts


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
        results[f"K={number}"] = _timed(pair, run, new_tokens)
    setting = min(results, key=lambda name: results[name][0]["seconds"])
    figures, texts = results[setting]
    return figures | {"setting": setting}, texts


def continuous_settings(device: torch.device) -> dict[str, dict[str, Any]]:
    """What ``generate_batch`` is tried with: flash kernels where they are installed, CUDA graphs and none."""
    if device.type != "cuda":
        return {"sdpa": {"attention": "sdpa"}}
    found = {
        "flash_attention_3": importlib.util.find_spec("flash_attn_interface"),
        "flash_attention_2": importlib.util.find_spec("flash_attn"),
    }
    flash = {name: {"attention": name} for name, spec in found.items() if spec is not None}
    plain = {
        "sdpa": {"attention": "sdpa", "use_cuda_graph": False},
        "sdpa, CUDA graphs": {"attention": "sdpa", "use_cuda_graph": True, "use_async_batching": True},
    }
    return flash | plain


def _continuous(
    pair: Pair, prompts: Sequence[Sequence[int]], new_tokens: int, deadline: float
) -> tuple[dict[str, Any], Texts]:
    """What ``generate_batch`` runs on, through its manager, so that one is made for all runs of a cell."""
    settings = continuous_settings(pair.device)
    key = pair.name, plan.GENERATE_BATCH
    errors = {}
    if key not in _best_settings and len(settings) > 1:
        seconds = {}
        for name, setting in settings.items():
            try:
                seconds[name] = _in_manager(pair, prompts, _SHORT_TOKENS, deadline, setting)[0]["seconds"]
            except Exception as error:
                errors[name] = _one_line(error)
        if not seconds:
            raise RuntimeError("; ".join(f"{name}: {text}" for name, text in errors.items()))
        _best_settings[key] = min(seconds, key=seconds.__getitem__)
    setting_name = _best_settings.setdefault(key, next(iter(settings)))
    figures, texts = _in_manager(pair, prompts, new_tokens, deadline, settings[setting_name])
    return figures | {"setting": setting_name, "failed_settings": errors}, texts


def _in_manager(
    pair: Pair, prompts: Sequence[Sequence[int]], new_tokens: int, deadline: float, setting: dict[str, Any]
) -> tuple[dict[str, Any], Texts]:
    module = pair.module("target")
    options = dict(setting)
    module.set_attn_implementation(options.pop("attention"))
    pages = len(prompts) * (-(-(len(prompts[0]) + new_tokens) // _PAGE_TOKENS) + 1)
    wanted = options | {
        "page_size": _PAGE_TOKENS,
        "block_size": _PAGE_TOKENS,  # the name of it before 5.20
        "num_blocks": int(_SPARE_PAGES * pages) + 4,
        "max_batch_tokens": max(_BATCH_TOKENS, 2 * len(prompts)),
        "max_requests_per_batch": len(prompts),
        "allow_block_sharing": False,  # a repeated pass must not find its own prompts
        "auto_switch_to_flash": False,
    }
    known = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
    config = ContinuousBatchingConfig(**{name: value for name, value in wanted.items() if name in known})
    generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=new_tokens)
    with module.continuous_batching_context_manager(
        generation_config=generation,
        continuous_batching_config=config,
        warmup=pair.device.type == "cuda",
        timeout=10.0,
    ) as manager:

        def run(length: int) -> Texts:
            names = [manager.add_request(list(ids), max_new_tokens=length, eos_token_id=-1) for ids in prompts]
            results: dict[str, list[int]] = {}
            while len(results) < len(prompts):
                result = manager.get_result(timeout=1)
                if result is None and not manager.is_running():
                    fatal = getattr(getattr(manager, "background_thread_status", None), "fatal_error", None)
                    raise RuntimeError(f"its thread died: {fatal!r}")
                if result is not None and result.is_finished():
                    if result.error:
                        raise RuntimeError(str(result.error))
                    results[result.request_id] = list(result.generated_tokens)
                if time.time() > deadline:
                    raise TooSlowError(f"{len(results)} of {len(prompts)} rows had ended at the deadline")
            return [results[name] for name in names]

        # Graphs are captured for a size when it first comes.
        return _timed(pair, run, new_tokens, warm_tokens=new_tokens if options.get("use_cuda_graph") else 4)


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
