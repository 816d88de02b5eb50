"""The sides of the comparison that run in this process: each takes rows and gives token ids and seconds.

Loading, and making an engine or a manager, is outside the time; learning and all decoding is inside it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from workload import MOST_TOKENS, Row

from specbatch.schemas.sampling import SamplingParams
from specbatch.schemas.stats import SpecCounters
from specbatch.specdec import Engine


@dataclass(frozen=True, slots=True)
class Measured:
    """One timed pass over all rows. ``token_ids`` are cut to the tokens that each row wanted.

    Attributes:
        details: what a side says about itself: acceptance, use of the draft, seconds by phase.
    """

    seconds: float
    token_ids: tuple[tuple[int, ...], ...]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        return sum(len(ids) for ids in self.token_ids) / self.seconds


EARLY_SHARE = 0.05
"""By this share of a pass a draft that does not pay should be off."""

PAGE_TOKENS = 32
"""Of the cache of ``generate_batch``; 16 to 256 measure alike."""

# Their warnings, one for every request, would hide the benchmark's own lines.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)

Run = Callable[[Sequence[Row]], Measured]


def watch_draft(made: Engine) -> list[tuple[float, float]]:
    """A list that fills with the start and the seconds of every forward of the engine's draft model.

    The engine's counters do not tell drafts of the model from those of the suffix index.
    """
    calls: list[tuple[float, float]] = []
    draft: Any = made._batch.draft
    if draft is not None:
        forward = draft.run

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            logits = forward(*arguments, **named)
            calls.append((started, time.perf_counter() - started))
            return logits

        draft.run = timed
    return calls


def engine(
    target: Path, draft: str | Path | None, speculation: int | Literal["auto", "off"], cap: int
) -> dict[str, Run]:
    """specbatch: plain, or with K chosen by measurement. A new engine each time, so learning is paid each time."""

    def measure(rows: Sequence[Row]) -> Measured:
        made = Engine.from_pretrained(
            target, str(draft) if draft is not None else None, max_batch_size=cap, speculation=speculation
        )
        params = [SamplingParams(max_new_tokens=wanted, ignore_eos=True) for _, wanted in rows]
        calls = watch_draft(made)
        started = time.perf_counter()
        outputs = made.generate([ids for ids, _ in rows], params)
        seconds = time.perf_counter() - started
        early = started + EARLY_SHARE * seconds
        total = SpecCounters.total(output.stats for output in outputs)
        details = {
            "acceptance": total.num_accepted_draft_tokens / max(total.num_draft_tokens, 1),
            "draft_step_share": total.num_spec_steps / max(total.num_spec_steps + total.num_plain_steps, 1),
            "draft_time_share": sum(spent for _, spent in calls) / seconds,
            "late_draft_time_share": sum(spent for at, spent in calls if at > early) / (seconds - early + started),
            "draft_lengths": list(total.draft_length_histogram),
            "accepted": list(total.acceptance_histogram),
            "seconds": {name: round(value, 3) for name, value in asdict(made.seconds).items()},
        }
        return Measured(seconds, tuple(output.token_ids for output in outputs), details)

    return {"": measure}


@lru_cache(maxsize=4)
def hf_model(folder: Path, attention: str = "sdpa") -> Any:
    """A model of ``transformers`` in float32 that never ends by itself; kept, since several caps need it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def padded_generate(target: Path, cap: int) -> dict[str, Run]:
    """``generate`` in batches padded on the left.

    Its best setting: rows are taken in order of prompt length, so that padding is small. A batch runs until its longest
    completion is there, because a caller does not know lengths beforehand.
    """

    def measure(rows: Sequence[Row]) -> Measured:
        model = hf_model(target)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        results: dict[int, tuple[int, ...]] = {}
        started = time.perf_counter()
        for begin in range(0, len(order), cap):
            chosen = order[begin : begin + cap]
            width = max(len(rows[i][0]) for i in chosen)
            ids = torch.tensor([[0] * (width - len(rows[i][0])) + rows[i][0] for i in chosen])
            mask = torch.tensor([[0] * (width - len(rows[i][0])) + [1] * len(rows[i][0]) for i in chosen])
            longest = max(rows[i][1] for i in chosen)
            with torch.inference_mode():
                output = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=longest)
            for row, i in enumerate(chosen):
                results[i] = tuple(output[row, width : width + rows[i][1]].tolist())
        seconds = time.perf_counter() - started
        return Measured(seconds, tuple(results[i] for i in range(len(rows))))

    return {"": measure}


def continuous_batching(target: Path, cap: int) -> dict[str, Run]:
    """What ``generate_batch`` runs on, through its manager, which alone takes a length for each request."""

    def make(attention: str) -> Run:
        config = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=2
            * cap
            * (2 * MOST_TOKENS // PAGE_TOKENS),  # twice the most that is in use, so that its safety margin never bites
            max_batch_tokens=max(256, 2 * cap),
            max_requests_per_batch=cap,
            allow_block_sharing=False,  # the prompts share no prefix, and a repeated pass must not find its own
            use_cuda_graph=False,
            auto_switch_to_flash=False,
        )
        generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=MOST_TOKENS)

        def measure(rows: Sequence[Row]) -> Measured:
            model = hf_model(target, attention)
            results: dict[str, tuple[int, ...]] = {}
            with model.continuous_batching_context_manager(
                generation_config=generation, continuous_batching_config=config, warmup=False
            ) as manager:
                started = time.perf_counter()
                names = [manager.add_request(ids, max_new_tokens=n, eos_token_id=-1) for ids, n in rows]
                while len(results) < len(rows):
                    result = manager.get_result(timeout=1)
                    if result is None and not manager.is_running():
                        raise RuntimeError("the continuous batching thread of transformers died")
                    if result is not None and result.is_finished():
                        results[result.request_id] = tuple(result.generated_tokens)
                seconds = time.perf_counter() - started
            return Measured(seconds, tuple(results[name] for name in names))

        return measure

    return {impl: make(impl) for impl in ("paged|eager", "sdpa")}


def assisted(target: Path, draft: Path) -> dict[str, Run]:
    """``generate(assistant_model=...)``, one row at a time, which is all that it takes."""

    def make(num_tokens: int, schedule: str, threshold: float) -> Run:
        def measure(rows: Sequence[Row]) -> Measured:
            model, assistant = hf_model(target), hf_model(draft)
            config = assistant.generation_config
            config.num_assistant_tokens, config.num_assistant_tokens_schedule = num_tokens, schedule
            config.assistant_confidence_threshold = threshold
            results = []
            started = time.perf_counter()
            for ids, wanted in rows:
                prompt = torch.tensor([ids])
                with torch.inference_mode():
                    output = model.generate(
                        prompt, attention_mask=torch.ones_like(prompt), assistant_model=assistant, do_sample=False,
                        max_new_tokens=wanted,
                    )  # fmt: skip
                results.append(tuple(output[0, len(ids) :].tolist()))
            return Measured(time.perf_counter() - started, tuple(results))

        return measure

    fixed = {f"K={k}": make(k, "constant", 0.0) for k in (2, 3, 4, 5)}
    return fixed | {
        "heuristic from 5": make(5, "heuristic", 0.0),
        "20, confidence 0.4 (its default)": make(20, "constant", 0.4),
    }
