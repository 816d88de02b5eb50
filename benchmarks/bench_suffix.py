"""What the suffix index proposes on real text, how much of it is accepted, and what a call costs.

The texts are completions of the bundled target for ``examples/prompts.parquet``, greedy and sampled, made here by
``transformers``. Each setting replays the same texts: rows are admitted in order into a fixed number of slots; in each
round the index proposes up to K drafts per row, as many are accepted as agree with the text, and one token more is
committed. So the model is asked for nothing in the replay, and settings differ by the index alone.

    python benchmarks/bench_suffix.py --markdown benchmarks/results/suffix_<date>.md

A setting's worth is tokens per unit of time where a step of one position costs 1 and every draft c more, with the best
K for each kind of match (length, and whether it is the row's own); plain decoding is worth 1.

Shape letters: B rows, R replayed rows of all rounds, K drafts.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from transformers import AutoModelForCausalLM

import specbatch
from specbatch.jobs.planning.machine import describe_hardware
from specbatch.specdec.accept import IntArray, accept
from specbatch.specdec.drafters.hashing import UintArray
from specbatch.specdec.drafters.suffix import CONTEXT_LENGTH, NGRAM_LENGTHS, Proposal, SuffixIndex
from specbatch.specdec.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "specbatch" / "assets" / "code-pair" / "target"
TEMPERATURES = (0.0, 0.7)
K = 8
COSTS = (0.05, 0.1, 0.2)
CALL_SIZES = (1, 8, 32, 64)
LENGTH_SETS = ((2,), (3,), (4,), (8,), (1, 2), (2, 4), (1, 2, 4), (2, 4, 8), (1, 3, 6), (3, 6, 12), (1, 2, 3, 4, 8))
BUCKETS = ((1, 1), (2, 2), (3, 3), (4, 5), (6, 8), (9, 16), (17, CONTEXT_LENGTH))
MakeIndex = Callable[[int], SuffixIndex]
Row = tuple[list[int], list[int]]


class WithoutOwnTables(SuffixIndex):
    """The tables of the rows share one salt, so none of them is a row's own."""

    def _cells(self, last_NH: IntArray, salt_N: UintArray) -> IntArray:
        return super()._cells(last_NH, np.zeros_like(salt_N))


class WithoutLoops(SuffixIndex):
    """Drafts stop where the row's own text ends."""

    def propose(self, slots_B: IntArray, max_drafts: int) -> Proposal:
        next_S, self._next_S = self._next_S, np.full_like(self._next_S, self._floor - 1)
        proposal = super().propose(slots_B, max_drafts)
        self._next_S = next_S
        return proposal


@dataclass(frozen=True, slots=True)
class Replay:
    """One entry for each row of each round. ``accepted_R`` may be less than ``length_R``, the drafts offered."""

    match_R: IntArray
    is_own_R: IntArray
    length_R: IntArray
    accepted_R: IntArray
    propose_seconds: float
    append_seconds: float

    @property
    def tokens_per_round(self) -> float:
        """Tokens that a row commits in a round, all drafts scored."""
        return 1 + float(self.accepted_R.mean())

    def worth(self, cost: float) -> float:
        """Tokens per unit of time at the best K for each kind of match (Dinkelbach's method for a ratio)."""
        kind_R = 2 * self.match_R + self.is_own_R
        k_K = np.arange(K + 1)
        num_tokens, seconds = [], []
        for kind in np.unique(kind_R):
            of_kind = kind_R == kind
            num_tokens.append((np.minimum(self.accepted_R[of_kind, None], k_K) + 1).sum(axis=0))
            seconds.append((np.minimum(self.length_R[of_kind, None], k_K) * cost + 1).sum(axis=0))
        tokens_MK, seconds_MK = np.stack(num_tokens), np.stack(seconds)
        ratio = 1.0
        for _ in range(30):
            best_M1 = (tokens_MK - ratio * seconds_MK).argmax(axis=1)[:, None]
            ratio = float(
                np.take_along_axis(tokens_MK, best_M1, 1).sum() / np.take_along_axis(seconds_MK, best_M1, 1).sum()
            )
        return ratio


def complete(prompts: Sequence[list[int]], num_tokens: int, temperature: float, batch: int = 32) -> list[Row]:
    """Completions of the target, end of sequence suppressed; the order of the prompts is kept."""
    module = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32).eval()
    torch.manual_seed(0)
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    completions: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    for start in range(0, len(prompts), batch):
        rows = by_length[start : start + batch]
        width = max(len(prompts[row]) for row in rows)
        ids = torch.tensor([[0] * (width - len(prompts[row])) + prompts[row] for row in rows])
        mask = torch.tensor([[0] * (width - len(prompts[row])) + [1] * len(prompts[row]) for row in rows])
        with torch.inference_mode():
            said = module.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                pad_token_id=0,
                **how,
            )
        for row, tokens in zip(rows, said[:, width:].tolist(), strict=True):
            completions[row] = tokens
    return list(zip(prompts, completions, strict=True))


def replay(rows: list[Row], num_slots: int, make: MakeIndex) -> Replay:
    """Feed all texts through an index as an engine with so many slots would; the times are medians of full rounds."""
    index = make(num_slots)
    waiting = list(range(len(rows)))[::-1]
    length = max(len(completion) for _, completion in rows)
    # The completion of the row in each slot, with room behind it for the drafts of its last round.
    text_SL = np.full((num_slots, length + K + 1), -1, dtype=np.int64)
    done_S, total_S = np.zeros(num_slots, dtype=np.int64), np.zeros(num_slots, dtype=np.int64)
    kept: list[tuple[IntArray, IntArray, IntArray, IntArray]] = []
    propose_seconds, append_seconds = [], []
    while True:
        for slot in np.flatnonzero(done_S == total_S).tolist():
            index.close(slot)
            if waiting:
                prompt, completion = rows[waiting.pop()]
                index.open(slot, np.array(prompt, dtype=np.int64), len(completion))
                text_SL[slot] = -1
                text_SL[slot, : len(completion)] = completion
                done_S[slot], total_S[slot] = 0, len(completion)
        slots_B = np.flatnonzero(done_S < total_S)
        if not len(slots_B):
            break
        started = time.perf_counter()
        proposal = index.propose(slots_B, K)
        proposed = time.perf_counter()
        length_B = np.minimum(proposal.length_B, total_S[slots_B] - done_S[slots_B] - 1)
        truth_BT = text_SL[slots_B[:, None], done_S[slots_B, None] + np.arange(K + 1)]
        accepted_B = accept(proposal.token_BK, length_B, truth_BT)
        appending = time.perf_counter()
        index.append(slots_B, truth_BT, accepted_B + 1)
        if len(slots_B) == num_slots:
            propose_seconds.append(proposed - started)
            append_seconds.append(time.perf_counter() - appending)
        done_S[slots_B] += accepted_B + 1
        kept.append((proposal.match_B, proposal.is_own_B.astype(np.int64), length_B, accepted_B))
    match_R, is_own_R, length_R, accepted_R = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    return Replay(
        match_R,
        is_own_R,
        length_R,
        accepted_R,
        statistics.median(propose_seconds),
        statistics.median(append_seconds),
    )


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A Markdown table; floats with two decimals."""
    body = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(header), ["---"] * len(header), *body])


def by_match(result: Replay) -> str:
    """Acceptance by length of the match and by whose text it is."""
    lines: list[list[object]] = []
    for low, high in BUCKETS:
        for is_own in (1, 0):
            chosen = (result.match_R >= low) & (result.match_R <= high) & (result.is_own_R == is_own)
            chosen &= result.length_R > 0
            accepted = result.accepted_R[chosen]
            name = str(low) if low == high else f"{low} to {high}"
            name += " or more" if high == CONTEXT_LENGTH else ""
            if len(accepted):
                share, first = 100 * float(chosen.mean()), float((accepted > 0).mean())
                drafts = float(result.length_R[chosen].mean())
                source = "own" if is_own else "other"
                lines.append([name, source, f"{share:.1f} %", drafts, first, float(accepted.mean())])
    columns = ("match", "whose text", "share of rows and rounds", "drafts offered", "first accepted", "accepted")
    return table(columns, lines)


def settings_table(texts: dict[float, list[Row]], settings: dict[str, MakeIndex], num_slots: int) -> str:
    """Tokens per round and worth of each setting, side by side for each temperature."""
    header = ["setting"]
    for temperature in texts:
        header += [f"T = {temperature:g}: tokens a round", *(f"worth at c = {cost:g}" for cost in COSTS)]
    lines: list[list[object]] = []
    for name, make in settings.items():
        line: list[object] = [name]
        for rows in texts.values():
            result = replay(rows, num_slots, make)
            line += [result.tokens_per_round, *(f"{result.worth(cost):.3f}" for cost in COSTS)]
        lines.append(line)
    return table(header, lines)


def calls_table(rows: list[Row]) -> str:
    """Microseconds of a call by rows."""
    lines = []
    for num_slots in CALL_SIZES:
        result = replay((rows * 2)[: max(len(rows), 2 * num_slots)], num_slots, SuffixIndex)
        seconds = (result.propose_seconds, result.append_seconds, result.propose_seconds + result.append_seconds)
        lines.append([num_slots, *(f"{1e6 * each:.0f}" for each in seconds)])
    return table(("rows", f"propose (K = {K})", "append", "both"), lines)


def render(texts: dict[float, list[Row]], command: str) -> str:
    """The whole report."""

    def with_lengths(lengths: tuple[int, ...]) -> MakeIndex:
        return lambda num_slots: SuffixIndex(num_slots, ngram_lengths=lengths)

    by_lengths = {", ".join(map(str, lengths)): with_lengths(lengths) for lengths in (NGRAM_LENGTHS, *LENGTH_SETS)}
    parts: dict[str, MakeIndex] = {
        "as it is": SuffixIndex,
        "no tables of a row's own": WithoutOwnTables,
        "no loops": WithoutLoops,
        "a log of 4,096 tokens": lambda num_slots: SuffixIndex(num_slots, max_log_tokens=1 << 12),
    }
    hardware, (first, *_) = describe_hardware(), texts.values()
    sections = [
        "# Suffix index: acceptance and cost",
        f"Command: `{command}`. Date: {datetime.date.today().isoformat()}. "
        f"Hardware: {hardware['cpu']}, {hardware['cores']} cores. Versions: specbatch {specbatch.__version__}, "
        f"numpy {np.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}.\n\n"
        f"Texts: {len(first)} prompts of `examples/prompts.parquet` (mean {np.mean([len(p) for p, _ in first]):.0f} "
        f"tokens), each completed by `code-pair/target` with {len(first[0][1])} tokens. K = {K} unless said. "
        "*Worth* is tokens per unit of time where a step of one position costs 1 and every draft c more, at the best K "
        "for each kind of match, chosen on the same texts; plain decoding is worth 1. *Tokens a round* scores all K.",
    ]
    for temperature, rows in texts.items():
        result = replay(rows, 8, SuffixIndex)
        found = 100 * float((result.length_R > 0).mean())
        sections += [
            f"## By length of the match, T = {temperature:g}, 8 rows in flight",
            f"Drafts are offered in {found:.0f} % of rows and rounds; {result.tokens_per_round:.2f} tokens a round.",
            by_match(result),
        ]
    sections += ["## N-gram lengths, 8 rows in flight", settings_table(texts, by_lengths, 8)]
    for num_slots in (8, 64):
        sections += [f"## What the parts bring, {num_slots} rows in flight", settings_table(texts, parts, num_slots)]
    sections += ["## Microseconds of a call", calls_table(first)]
    return "\n\n".join(sections) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=160)
    parser.add_argument("--tokens", type=int, default=96, help="length of every completion")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help="where to write the report")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    tokenizer = Tokenizer.from_folder(TARGET)
    texts = pq.read_table(ROOT / "examples" / "prompts.parquet").column("prompt").to_pylist()
    num_prompts = min(options.prompts, len(texts))
    prompts = [tokenizer.encode(texts[i * len(texts) // num_prompts]) for i in range(num_prompts)]
    rows = {temperature: complete(prompts, options.tokens, temperature) for temperature in TEMPERATURES}
    words = sys.argv[1:] if arguments is None else arguments
    report = render(rows, " ".join(["python benchmarks/bench_suffix.py", *words]))
    print(report)
    if options.markdown:
        options.markdown.write_text(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
