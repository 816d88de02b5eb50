"""Training of the demo pair: shapes, batches, the next-token loop and the distillation loop.

Everything runs in float32 on the CPU. Lengths are given in steps, not in minutes, so that a run does the
same work on every machine; one step sees `TOKENS_PER_STEP` tokens.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pair_text import BOS, BOS_ID, EOS, EOS_ID, PAD, PAD_ID
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

CONTEXT = 2048
TOKENS_PER_STEP = 2048
# Most steps use short windows, which cost least and teach most per token; the rare long ones keep the rotary
# positions up to the full context in use. Pairs of (window, share of the steps).
WINDOWS = ((128, 0.15), (256, 0.65), (512, 0.12), (1024, 0.05), (2048, 0.03))

# Both drafts have one shape: a forward costs the same, and what sets them apart is what they know.
_DRAFT = {
    "num_hidden_layers": 2,
    "hidden_size": 160,
    "intermediate_size": 432,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
}
_SHAPES: dict[str, dict[str, int]] = {
    "target": {
        "num_hidden_layers": 6,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "draft-taught": _DRAFT,
    "draft-stranger": _DRAFT,
}

Batches = Iterator[torch.Tensor]
Log = Callable[[str], None]

transformers_logging.disable_progress_bar()


def new_model(name: str, vocabulary: int) -> Any:
    """A fresh model of the shape that `name` has in the pair (5.40 M or 1.28 M parameters)."""
    shape = _SHAPES[name]
    config = LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        **shape,
    )
    model: Any = LlamaForCausalLM(config)
    for layer in model.model.layers:
        # Residual branches start small, so that depth does not blow up the first steps.
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            torch.nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * shape["num_hidden_layers"]))
    return model.float()


def save(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a Hugging Face folder in float16; it appears, or takes an older one's place, when it is whole."""
    partial = folder.with_name(folder.name + ".partial")
    model.to(torch.float16).save_pretrained(partial)
    model.float()
    target = folder.with_name("target")
    if folder != target and target.is_dir():
        # The same to the byte, whichever library version wrote the target's.
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(target / name, partial / name)
    else:
        wrapped: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)
        wrapped.model_max_length = CONTEXT
        wrapped.save_pretrained(partial)
    for path in partial.iterdir():
        path.chmod(0o644)  # safetensors creates its file for the owner alone
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def load(folder: Path) -> Any:
    """Load a model of the pair for float32 work."""
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def windows(stream: torch.Tensor, generator: torch.Generator) -> Batches:
    """Random windows of the packed stream, in batches of `TOKENS_PER_STEP` tokens of varying shape."""
    shares = torch.tensor([share for _, share in WINDOWS])
    while True:
        length = WINDOWS[int(torch.multinomial(shares, 1, generator=generator))][0]
        length = min(length, len(stream) - 1)
        rows = max(1, TOKENS_PER_STEP // length)
        starts = torch.randint(0, len(stream) - length, (rows,), generator=generator)
        yield torch.stack([stream[start : start + length] for start in starts.tolist()])


def _optimizer(model: Any, learning_rate: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up over 4 % of the steps, then a cosine down to 2 %."""
    warm_up = max(1, round(0.04 * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _fit(model: Any, loss_of: Callable[[int], torch.Tensor], steps: int, learning_rate: float, log: Log) -> None:
    model.train()
    optimizer = _optimizer(model, learning_rate)
    started = time.perf_counter()
    smooth: float | None = None
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _rate(step, steps)
        loss = loss_of(step)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            seconds = time.perf_counter() - started
            speed = (step + 1) * TOKENS_PER_STEP / seconds
            log(f"step {step + 1}/{steps}  loss {smooth:.3f}  {seconds / 60:.1f} min  {speed:.0f} tok/s")
    model.eval()


def _next_token_loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def train_on_text(model: Any, batches: Batches, steps: int, learning_rate: float, log: Log) -> None:
    """Next-token training."""
    _fit(model, lambda step: _next_token_loss(model, next(batches)), steps, learning_rate, log)


@torch.inference_mode()
def held_out_loss(model: Any, stream: torch.Tensor, window: int = 512, most: int = 128) -> float:
    """Mean next-token loss over windows of a stream that was not trained on, in nats per token."""
    count = min(most, len(stream) // window)
    rows = stream[: count * window].view(count, window)
    losses = [_next_token_loss(model, chunk).item() * len(chunk) for chunk in torch.split(rows, 8)]
    return sum(losses) / count


@torch.inference_mode()
def continue_rows(target: Any, prompts: torch.Tensor, length: int, temperatures: torch.Tensor) -> torch.Tensor:
    """Let the target continue prompts of one length; a row's temperature 0 means its likeliest token."""
    ids, cache = prompts, None
    for _ in range(length):
        out = target(input_ids=ids if cache is None else ids[:, -1:], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits = out.logits[:, -1]
        warm = torch.softmax(logits / temperatures.clamp_min(1e-3)[:, None], dim=-1)
        drawn = torch.multinomial(warm, 1).squeeze(1)
        token = torch.where(temperatures > 0, drawn, logits.argmax(dim=-1))
        ids = torch.cat([ids, token[:, None]], dim=1)
    return ids.clone()


def own_text(target: Any, stream: torch.Tensor, rows: int, generator: torch.Generator, log: Log) -> torch.Tensor:
    """Rows of 256 tokens that the target wrote itself after prompts of varied length out of the text.

    A draft is asked to foresee what its target says, at the temperatures people use, not what the text says.
    So half of its lessons are the target's own words: a third likeliest tokens, a third each at 0.7 and 1.0.
    """
    parts: list[torch.Tensor] = []
    started = time.perf_counter()
    while sum(map(len, parts)) < rows:
        count = min(96, rows - sum(map(len, parts)))
        prompt = int(torch.randint(8, 96, (1,), generator=generator))
        starts = torch.randint(0, len(stream) - prompt, (count,), generator=generator)
        prompts = torch.stack([stream[start : start + prompt] for start in starts.tolist()])
        temperatures = torch.tensor([0.0, 0.7, 1.0])[torch.randint(0, 3, (count,), generator=generator)]
        parts.append(continue_rows(target, prompts, 256 - prompt, temperatures))
    log(f"{rows} rows of the target's own text  {(time.perf_counter() - started) / 60:.1f} min")
    return torch.cat(parts)


def distil(
    draft: Any, target: Any, batches: Batches, own: torch.Tensor, steps: int, learning_rate: float, log: Log
) -> None:
    """Teach the draft the target's distributions: KL divergence, text and the target's own rows in turn."""
    per_step = max(1, TOKENS_PER_STEP // own.shape[1])

    def loss_of(step: int) -> torch.Tensor:
        if step % 2:
            ids = own[torch.arange(step // 2 * per_step, (step // 2 + 1) * per_step) % len(own)]
        else:
            ids = next(batches)
        with torch.no_grad():
            wanted = torch.log_softmax(target(input_ids=ids, use_cache=False).logits, dim=-1).flatten(0, 1)
        said = torch.log_softmax(draft(input_ids=ids, use_cache=False).logits, dim=-1).flatten(0, 1)
        return functional.kl_div(said, wanted, reduction="batchmean", log_target=True)

    _fit(draft, loss_of, steps, learning_rate, log)
