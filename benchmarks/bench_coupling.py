"""How many drafts each coupling accepts on the bundled pair, by temperature and place in the window, and what it costs.

Contexts are prefixes of texts that the target itself sampled at the same temperature. From each, the draft proposes K
tokens in each of three ways, and every rule judges the proposals made for it. Plain forward passes of ``transformers``.

python benchmarks/bench_coupling.py --markdown benchmarks/results/coupling_<date>.md

Shape letters: B contexts, K drafts, T = K + 1 positions, L tokens of a text, V vocabulary.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import specbatch
from specbatch.jobs.planning.machine import describe_hardware
from specbatch.specdec import noise
from specbatch.specdec.sampling import coupling

ROOT = Path(__file__).resolve().parents[1]
PAIR = ROOT / "specbatch" / "assets" / "code-pair"
TEMPERATURES = (0.3, 0.7, 1.0)
K = 4
PROMPT_TOKENS, TEXT_TOKENS, SPACING = 24, 72, 6
BEST = "best possible for one draft: sum of min(p, q)"
BLOCK = "block verification (`distribution`)"
RATIO = "ratio test"
SEED = "shared Gumbel noise (`seed`, the default)"
ARGMAX = "argmax draft, target's draw"


@dataclass(frozen=True, slots=True)
class Windows:
    """Proposals behind some contexts, with the laws at every place. ``draft_BK`` int64, laws float64 [B, T or K, V]."""

    draft_BK: Tensor
    p_BTV: Tensor
    q_BKV: Tensor


class Model:
    """A model with the KV of all rows, which have the same length at every time."""

    def __init__(self, name: str) -> None:
        self.module = AutoModelForCausalLM.from_pretrained(PAIR / name, dtype=torch.float32).eval()
        self.cache: Any = DynamicCache()

    def laws(self, token_BT: Tensor, temperature: float) -> Tensor:
        """float64 [B, T, V] behind each of some more tokens."""
        logits_BTV = self.module(token_BT, past_key_values=self.cache, use_cache=True).logits
        return (logits_BTV.to(torch.float64) / temperature).softmax(dim=-1)

    def forget(self, count: int) -> None:
        """Take back the last tokens."""
        self.cache.crop(-count)


def propose(
    target: Model, draft: Model, text_BL: Tensor, temperature: float, choose: Callable[[Tensor, int], Tensor]
) -> Windows:
    """K drafts behind each text, chosen from the draft's law by ``choose(law_BV, index)``; both models come back.

    Both have seen all of the text but its last token.
    """
    length = text_BL.shape[1]
    tokens, q = [text_BL[:, -1]], []
    for j in range(K):
        q.append(draft.laws(tokens[-1][:, None], temperature)[:, 0])
        tokens.append(choose(q[-1], length + j))
    token_BT = torch.stack(tokens, dim=1)
    p_BTV = target.laws(token_BT, temperature)
    draft.forget(K)
    target.forget(K + 1)
    return Windows(token_BT[:, 1:], p_BTV, torch.stack(q, dim=1))


def ratio_test(windows: Windows) -> Tensor:
    """Survival: the product of min(1, p / q) along the window."""
    chance_BK1 = windows.p_BTV[:, :-1].gather(-1, windows.draft_BK[..., None])
    chance_BK1 = (chance_BK1 / windows.q_BKV.gather(-1, windows.draft_BK[..., None])).clamp(max=1)
    return chance_BK1.squeeze(-1).cumprod(dim=-1)


def block_verification(windows: Windows) -> Tensor:
    """Survival: at least one coin at or behind the place falls well."""
    weight_B, chances = torch.ones(len(windows.draft_BK), dtype=torch.float64), []
    for j in range(K):
        p_BV, q_BV = windows.p_BTV[:, j], windows.q_BKV[:, j]
        weight_B = coupling.extend_weight(weight_B, p_BV, q_BV, windows.draft_BK[:, j])
        following_BV = windows.q_BKV[:, j + 1] if j + 1 < K else torch.zeros_like(q_BV)
        chances.append(coupling.judge_prefix(weight_B, windows.p_BTV[:, j + 1], following_BV)[0])
    return 1 - (1 - torch.stack(chances, dim=1)).flip(-1).cumprod(dim=-1).flip(-1)


def judge(target: Model, draft: Model, text_BL: Tensor, temperature: float, seed_B: Tensor) -> dict[str, Tensor]:
    """Survival by rule on windows behind the same texts: the chance of at least j accepted drafts, given the drafts."""
    start_B = torch.full_like(seed_B, text_BL.shape[1])
    token_V = torch.arange(draft.module.config.vocab_size)

    def own_stream(law_BV: Tensor, index: int) -> Tensor:
        return coupling.propose_token(law_BV.log(), seed_B, start_B, torch.full_like(seed_B, index))

    def shared_noise(law_BV: Tensor, index: int) -> Tensor:
        bits_BV = noise.hash_tokens(noise.keys(seed_B, torch.full_like(seed_B, index)), token_V)
        return (noise.gumbel_fast(bits_BV) + law_BV.log()).argmax(dim=-1)

    def likeliest(law_BV: Tensor, index: int) -> Tensor:
        return law_BV.argmax(dim=-1)

    drawn, shared, certain = (
        propose(target, draft, text_BL, temperature, choose) for choose in (own_stream, shared_noise, likeliest)
    )
    target_BK = torch.stack([shared_noise(shared.p_BTV[:, j], text_BL.shape[1] + j) for j in range(K)], dim=1)
    certain_BK1 = certain.p_BTV[:, :-1].gather(-1, certain.draft_BK[..., None])
    return {
        BEST: torch.minimum(drawn.p_BTV[:, :1], drawn.q_BKV[:, :1]).sum(dim=-1),
        BLOCK: block_verification(drawn),
        RATIO: ratio_test(drawn),
        SEED: (shared.draft_BK == target_BK).double().cumprod(dim=-1),
        ARGMAX: certain_BK1.squeeze(-1).cumprod(dim=-1),
    }


def measure(pair: tuple[str, str], prompt_BL: Tensor, temperature: float) -> dict[str, Tensor]:
    """Survival [contexts, K] by rule, over texts that the target samples, at every ``SPACING``-th token."""
    target, draft = (Model(name) for name in pair)
    generator = torch.Generator().manual_seed(int(temperature * 100))
    text_BL = prompt_BL
    law_BV = target.laws(text_BL, temperature)[:, -1]
    draft.laws(text_BL, temperature)
    found: dict[str, list[Tensor]] = {}
    for count in range(TEXT_TOKENS):
        token_B1 = torch.multinomial(law_BV, 1, generator=generator)
        text_BL = torch.cat((text_BL, token_B1), dim=1)
        if count % SPACING == 0:
            # Both models lack the token just drawn, as in the engine.
            seed_B = torch.randint(1 << 62, (len(text_BL),), generator=generator)
            for name, survival_BK in judge(target, draft, text_BL, temperature, seed_B).items():
                found.setdefault(name, []).append(survival_BK)
        law_BV = target.laws(token_B1, temperature)[:, 0]
        draft.laws(token_B1, temperature)
    return {name: torch.cat(parts) for name, parts in found.items()}


def rows_of_table(temperature: float, found: dict[str, Tensor], num_texts: int) -> list[str]:
    """Markdown: acceptance at each place given that all before were accepted, then tokens per round."""
    lines = []
    for name, survival_CK in found.items():
        mean_K = survival_CK.mean(dim=0)
        before_K = torch.cat((torch.ones(1, dtype=torch.float64), mean_K[:-1]))
        cells = [f"{float(x):.3f}" for x in mean_K / before_K]
        cells[0] += f" ± {error(survival_CK[:, 0], num_texts):.3f}"
        if name == BEST:
            cells += [""] * K
        else:
            tokens_C = 1 + survival_CK.sum(dim=-1)
            cells.append(f"{float(tokens_C.mean()):.3f} ± {error(tokens_C, num_texts):.3f}")
        lines.append(f"| {temperature} | {name} | " + " | ".join(cells) + " |")
    return lines


def error(value_C: Tensor, num_texts: int) -> float:
    """Standard error; contexts of one text are not independent, so texts are the sample."""
    return float(value_C.view(-1, num_texts).mean(dim=0).std()) / num_texts**0.5


def milliseconds(run: Callable[[], object], repeats: int = 9) -> float:
    """Median processor time, which does not count what other programs take."""
    run()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return statistics.median(times) * 1e3


def cost(batch: int, vocab: int) -> str:
    """A row of the table of costs: what a round spends on draws and judging, models left out."""
    generator = torch.Generator().manual_seed(0)
    q_logits = [torch.randn(batch, vocab, generator=generator) for _ in range(K)]
    p_NV = torch.randn(batch * (K + 1), vocab, generator=generator)
    seed_B, start_B = torch.arange(batch), torch.zeros(batch, dtype=torch.int64)
    draft_BK = torch.stack([coupling.propose_token(q, seed_B, start_B, start_B + j) for j, q in enumerate(q_logits)], 1)
    token_V = torch.arange(vocab)

    def accept() -> object:
        return coupling.accept_block(p_NV, q_logits, draft_BK, torch.full_like(seed_B, K), seed_B, start_B)

    def draw(logits_NV: Tensor) -> Tensor:
        row_N = torch.arange(len(logits_NV))
        bits_NV = noise.hash_tokens(noise.keys(row_N, row_N), token_V)
        return (logits_NV.to(torch.float64) + noise.gumbel_fast(bits_NV)).argmax(dim=-1)

    judging = milliseconds(accept)
    drawing = milliseconds(lambda: draw(p_NV))
    proposing = milliseconds(lambda: draw(q_logits[0])) * K
    return f"| {batch} | {vocab} | {proposing:.1f} | {drawing:.1f} | {judging:.1f} |"


@torch.inference_mode()
def main() -> None:
    """Measure, print the tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--texts", type=int, default=128, help="prompts taken from examples/prompts.parquet")
    parser.add_argument("--markdown", type=Path, help="file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(PAIR / "target")
    prompts = pq.read_table(ROOT / "examples" / "prompts.parquet")["prompt"].to_pylist()
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    ids = [tokens[:PROMPT_TOKENS] for tokens in ids if len(tokens) >= PROMPT_TOKENS][: arguments.texts]
    places = " | ".join(f"place {j + 1}" for j in range(K))
    lines = [
        f"Drafts accepted at each place of a window of {K}, given that all before were accepted, and tokens per round.",
        f"`code-pair`, target with `draft-taught`; {len(ids)} texts, {TEXT_TOKENS // SPACING} contexts in each; "
        "± is one standard error.",
        "",
        f"| T | rule | {places} | tokens per round |",
        "|---" * (K + 3) + "|",
    ]
    for temperature in TEMPERATURES:
        lines += rows_of_table(
            temperature, measure(("target", "draft-taught"), torch.tensor(ids), temperature), len(ids)
        )
    lines += [
        "",
        f"CPU milliseconds per round, one thread, for draws and judging (models left out), {K} drafts in every row.",
        "`seed` proposes and draws, `distribution` proposes and judges.",
        "",
        "| rows | vocabulary | propose (both) | draw (`seed`, without its exact scores) | judge (`distribution`) |",
        "|---|---|---|---|---|",
    ]
    torch.set_num_threads(1)
    lines += [cost(8, 4096), cost(32, 4096), cost(8, 32_000)]
    lines += [
        "",
        f"Command: `python {' '.join(sys.argv)}`. Date: {datetime.date.today()}.",
        f"Hardware: {describe_hardware()['cpu']}, {len(os.sched_getaffinity(0))} cores. "
        f"Versions: specbatch {specbatch.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}.",
    ]
    print("\n".join(lines))
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
