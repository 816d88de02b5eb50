"""Measure how well the drafts of a pair foresee their target.

    python examples/demo_pair/measure.py specbatch/assets/code-pair
    python examples/demo_pair/measure.py PAIR --prompts examples/prompts.parquet --json figures.json

The target continues every prompt; then each draft reads the same tokens (teacher-forced) and is compared
at every position. At temperature 0 the figure is the share of positions where both have the same
likeliest token. Above 0 it is the mean of sum(min(p, q)) over the vocabulary, p and q being the two
distributions at that temperature: the share of tokens that the best possible way of drafting could get
accepted. Neither depends on how far ahead a draft looks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pair_text import EOS_ID, PAD_ID, pack, read_test_snippets
from pair_train import held_out_loss, load
from tokenizers import Tokenizer

TEMPERATURES = (0.0, 0.7, 1.0)


@dataclass(frozen=True)
class Agreement:
    """One line of the table."""

    draft: str
    temperature: float
    agreement: float
    lowest_row: float
    highest_row: float
    positions: int


@torch.inference_mode()
def agreement(
    target: Any,
    drafts: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    tokens: int,
    temperature: float,
    seed: int,
) -> list[Agreement]:
    """Continue `prompts` with the target and compare each draft with it at every generated position."""
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD_ID] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    # Padding stands on the left, so that all rows end together; positions count from the first real token.
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * (len(prompt) + tokens) for prompt in prompts])
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    generator = torch.Generator().manual_seed(seed)
    cache = None
    for length in range(width, width + tokens):
        since = 0 if cache is None else length - 1
        out = target(
            input_ids=ids[:, since:],
            attention_mask=mask[:, :length],
            position_ids=positions[:, since:length],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, logits = out.past_key_values, out.logits[:, -1]
        if temperature > 0:
            token = torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=generator)
        else:
            token = logits.argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, token], dim=1)
    drawn = ids[:, width:]
    # A row ends with its first <|eos|>, which still counts.
    alive = ((drawn == EOS_ID).cumsum(1) - (drawn == EOS_ID).int()) == 0

    def said(model: Any) -> torch.Tensor:
        inputs = {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "position_ids": positions[:, :-1]}
        logits: torch.Tensor = model(**inputs, use_cache=False, logits_to_keep=tokens).logits
        return logits.argmax(dim=-1) if temperature == 0 else torch.softmax(logits / temperature, dim=-1)

    wanted = said(target)
    lines = []
    for name, draft in drafts.items():
        offered = said(draft)
        same = (wanted == offered).float() if temperature == 0 else torch.minimum(wanted, offered).sum(-1)
        rows = (same * alive).sum(1) / alive.sum(1)
        mean = ((same * alive).sum() / alive.sum()).item()
        lines.append(Agreement(name, temperature, mean, rows.min().item(), rows.max().item(), int(alive.sum())))
    return lines


def measure_pair(
    folder: Path,
    prompts: Sequence[str] | None = None,
    tokens: int = 96,
    temperatures: Sequence[float] = TEMPERATURES,
    seed: int = 0,
    with_loss: bool = True,
) -> dict[str, Any]:
    """Measure the pair in `folder`: the target's loss on test files and each draft's agreement.

    Without `prompts`, 32 pieces of the standard library's test files, 48 tokens of each, serve as prompts.
    """
    target = load(folder / "target")
    drafts = {path.name: load(path) for path in sorted(folder.glob("draft-*")) if (path / "config.json").is_file()}
    tokenizer = Tokenizer.from_file(str(folder / "target" / "tokenizer.json"))
    if prompts is None:
        encoded = [tokenizer.encode(text).ids[:48] for text in read_test_snippets(32)]
    else:
        encoded = [tokenizer.encode(text).ids for text in prompts]
    lines = [
        line for temperature in temperatures for line in agreement(target, drafts, encoded, tokens, temperature, seed)
    ]
    figures: dict[str, Any] = {
        "pair": folder.name,
        "prompts": len(encoded),
        "tokens_per_prompt": tokens,
        "agreement": [asdict(line) for line in lines],
    }
    if with_loss:
        unseen = pack(tokenizer, read_test_snippets(96, characters=2000))
        figures["target_loss_on_test_files"] = held_out_loss(target, unseen)
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures as a Markdown table, one line per draft."""
    lines: list[dict[str, Any]] = figures["agreement"]
    temperatures = sorted({line["temperature"] for line in lines})
    loss = figures.get("target_loss_on_test_files")
    rows = [
        f"{figures['prompts']} prompts, {figures['tokens_per_prompt']} tokens each; "
        "in brackets the lowest and the highest row"
        + ("" if loss is None else f"; the target's loss on test files is {loss:.3f}"),
        "",
        "| draft | " + " | ".join(f"T = {temperature:g}" for temperature in temperatures) + " |",
        "|---" * (len(temperatures) + 1) + "|",
    ]
    for draft in dict.fromkeys(line["draft"] for line in lines):
        cells = [
            f"{line['agreement']:.3f} ({line['lowest_row']:.2f} to {line['highest_row']:.2f})"
            for line in sorted(lines, key=lambda line: float(line["temperature"]))
            if line["draft"] == draft
        ]
        rows.append(f"| {draft} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _read_prompts(path: Path, count: int) -> list[str]:
    """Up to `count` prompts, evenly spread over a Parquet file's `prompt` column."""
    import pyarrow.parquet as pq

    prompts: list[str] = pq.read_table(path, columns=["prompt"]).column("prompt").to_pylist()
    step = max(1, len(prompts) // count)
    return prompts[::step][:count]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure how well the drafts of a pair foresee their target.")
    parser.add_argument("pair", type=Path, help="folder with target/ and draft-*/")
    parser.add_argument("--prompts", type=Path, help="Parquet file with a `prompt` column (needs pyarrow)")
    parser.add_argument("--count", type=int, default=32, help="how many of those prompts (default 32)")
    parser.add_argument("--tokens", type=int, default=96, help="tokens to generate per prompt (default 96)")
    parser.add_argument("--temperatures", type=float, nargs="+", default=TEMPERATURES)
    parser.add_argument("--no-loss", action="store_true", help="leave out the target's loss on test files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws above temperature 0")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    prompts = _read_prompts(options.prompts, options.count) if options.prompts else None
    figures = measure_pair(
        options.pair, prompts, options.tokens, options.temperatures, options.seed, not options.no_loss
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(table(figures))


if __name__ == "__main__":
    main()
