"""``generate_batch``, through the manager that it runs on, so that one is made for all runs of a cell."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from gpu.models import Pair, release
from gpu.peer_timing import REPEATS, StillRunningError, Texts, TooSlowError, timed
from gpu.roof import Model

_CHOICE_TOKENS = 48
"""Of the short pass that chooses a setting."""
_PAGE_TOKENS = 256
_SPARE_PAGES = 1.3
"""Pages beyond those in use, so that a safety margin never bites."""
_BATCH_TOKENS = 4096
_KV_INTERVAL_TOKENS = 1024
_STOP_SECONDS = 10.0

logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)

_best_settings: dict[tuple[str, int], str] = {}
"""What a short pass chose, by model and rows in flight; lengths of prompts share it."""


def flash_kernels() -> list[str]:
    """Attention kernels of the flash family that the library can find here."""
    modules = {"flash_attention_3": "flash_attn_interface", "flash_attention_2": "flash_attn"}
    return [name for name, module in modules.items() if importlib.util.find_spec(module) is not None]


def settings_of(device: torch.device, batch: int) -> dict[str, dict[str, Any]]:
    """What ``generate_batch`` is tried with: flash kernels where they are installed, CUDA graphs and none.

    The library pads a captured step to 64 rows and to multiples of 16,384 keys by itself. The last setting pads to the
    rows that there are and to a sixteenth of that, for some more graphs, which are captured before anything is timed.
    """
    if device.type != "cuda":
        return {"sdpa": {"attention": "sdpa", "use_cuda_graph": False}}
    graphs = {"attention": "sdpa", "use_cuda_graph": True, "use_async_batching": True}
    narrow = {"q_padding_interval_size": batch, "kv_padding_interval_size": _KV_INTERVAL_TOKENS}
    return {name: {"attention": name} for name in flash_kernels()} | {
        "sdpa": {"attention": "sdpa", "use_cuda_graph": False},
        "sdpa, CUDA graphs": graphs,
        "sdpa, CUDA graphs, narrow": graphs | narrow,
    }


def measure(
    pair: Pair, prompts: Sequence[Sequence[int]], new_tokens: int, deadline: float
) -> tuple[dict[str, Any], Texts]:
    """What ``generate_batch`` runs on, through its manager, so that one is made for all runs of a cell."""
    settings = settings_of(pair.device, len(prompts))
    key = pair.name, len(prompts)
    tried: dict[str, float] = {}
    errors: dict[str, str] = {}
    if key not in _best_settings and len(settings) > 1:
        for number, (name, setting) in enumerate(settings.items()):
            # Each has its share of the time, and so has the run that counts.
            until = time.time() + (deadline - time.time()) / (len(settings) + 1 - number)
            try:
                tried[name] = _in_manager(pair, prompts, min(_CHOICE_TOKENS, new_tokens), until, setting)[0]["seconds"]
            except StillRunningError:
                raise
            except Exception as error:
                errors[name] = _one_line(error)
            release()
        if not tried:
            raise RuntimeError("; ".join(f"{name}: {text}" for name, text in errors.items()))
        _best_settings[key] = min(tried, key=tried.__getitem__)
    setting_name = _best_settings.setdefault(key, next(iter(settings)))
    figures, texts = _in_manager(pair, prompts, new_tokens, deadline, settings[setting_name])
    return figures | {"setting": setting_name, "tried_seconds": tried, "failed_settings": errors}, texts


def num_passes(model: str, batch: int, new_tokens: int, device: torch.device) -> tuple[int, float]:
    """How often prompts are read in a task, and ``new_tokens`` decoded; about."""
    # Where graphs are captured, what warms up is as long as what is timed.
    reads, decodes, settings = 1 + 2 * REPEATS, 1.0 + REPEATS, len(settings_of(device, batch))
    if settings == 1 or (model, batch) in _best_settings:
        return reads, decodes
    return (1 + settings) * reads, decodes * (1 + settings * _CHOICE_TOKENS / new_tokens)


def needed_bytes(model: Model, batch: int, row_tokens: int) -> int:
    """Memory beside the weights: the pages, and what one layer's attention needs at once."""
    shape, width = model.shape, model.dtype_bytes
    tokens = _num_blocks(batch, row_tokens) * _PAGE_TOKENS
    # A mask over all that is held, and its keys and values once more for every head.
    mask = _batch_tokens(batch) * tokens * width
    return tokens * model.kv_bytes + mask + 2 * tokens * shape.heads * shape.head_dim * width


def _num_blocks(batch: int, row_tokens: int) -> int:
    return int(_SPARE_PAGES * batch * (-(-row_tokens // _PAGE_TOKENS) + 1)) + 4


def _batch_tokens(batch: int) -> int:
    return max(_BATCH_TOKENS, 2 * batch)


def options_of(
    setting: dict[str, Any], num_rows: int, row_tokens: int, known: Collection[str]
) -> tuple[str, dict[str, Any]]:
    """The attention to set, and the options of the library's config, as far as its version has them.

    Args:
        row_tokens: prompt and new tokens of a row. known: names of the config's fields.
    """
    blocks_of_row = -(-row_tokens // _PAGE_TOKENS) + 1
    wanted = setting | {
        "page_size": _PAGE_TOKENS,
        "num_blocks": _num_blocks(num_rows, row_tokens),
        "max_batch_tokens": _batch_tokens(num_rows),
        "max_requests_per_batch": num_rows,
        # As ``generate_batch`` takes it from its inputs. Without, rows over 8,192 tokens would leave the fast way.
        "max_blocks_per_request": blocks_of_row + blocks_of_row % 2,
        "allow_block_sharing": False,  # a repeated pass must not find its own prompts
        "auto_switch_to_flash": False,
    }
    attention = wanted.pop("attention")
    if "auto_switch_to_flash" not in known and attention == "sdpa":
        attention = "paged|sdpa"  # by its short name an older version takes flash kernels where it finds some
    if "page_size" not in known:
        wanted["block_size"] = _PAGE_TOKENS  # an older name of it
    return attention, {name: value for name, value in wanted.items() if name in known}


def _in_manager(
    pair: Pair, prompts: Sequence[Sequence[int]], new_tokens: int, deadline: float, setting: dict[str, Any]
) -> tuple[dict[str, Any], Texts]:
    module = pair.module("target")
    known = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
    attention, options = options_of(setting, len(prompts), len(prompts[0]) + new_tokens, known)
    module.set_attn_implementation(attention)
    config = ContinuousBatchingConfig(**options)
    generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=new_tokens)
    with _running(pair, generation, config) as manager:

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
        has_graphs = setting.get("use_cuda_graph") is not False
        return timed(pair, run, new_tokens, warm_tokens=new_tokens if has_graphs else 4)


@contextmanager
def _running(pair: Pair, generation: GenerationConfig, config: ContinuousBatchingConfig) -> Iterator[Any]:
    """A manager whose thread has ended behind the block, whatever is still to be done then.

    Raises:
        StillRunningError: the thread goes on.
    """
    module = pair.module("target")
    manager = module.init_continuous_batching(generation_config=generation, continuous_batching_config=config)
    if pair.device.type == "cuda":
        manager.warmup()
    manager.start()
    try:
        yield manager
    finally:
        manager.stop(block=True, timeout=_STOP_SECONDS, hard_stop=True)
        if manager.is_running():
            raise StillRunningError("its thread goes on although it was told to stop")
        manager.destroy()


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
