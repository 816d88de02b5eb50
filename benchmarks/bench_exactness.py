"""How often rounding could change the text of the bundled pair, how often it does, and what preventing it costs.

The prompts are those of examples/prompts.parquet; row i has seed i. Texts are compared between batch shapes, with
near-tie arbitration and with its threshold set to 0. Logits are taken from the engine's own rounds and compared where
both runs stand behind the same prefix.

OMP_NUM_THREADS=1 python benchmarks/bench_exactness.py --markdown benchmarks/results/exactness_<date>.md
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from exactness.logits import logit_lines
from exactness.passes import Rows, at_most, load, num_differing

import specbatch
from specbatch.jobs.planning.machine import describe_hardware

TEMPERATURES = (0.0, 0.7)
NUM_DRAFTS = 4
BITWISE_PASSES = 3


def near_tie_lines(rows: Rows, num_rows: int, num_alone: int) -> Iterator[str]:
    """Near ties, their cost, and what batch shape does to float32 text with and without arbitration."""
    alone, together = load(1, "off", "float32"), load(16, NUM_DRAFTS, "float32")
    for temperature in TEMPERATURES:
        settled = rows.decode(together, range(num_rows), temperature)
        loose = rows.decode(together, range(num_rows), temperature, has_arbitration=False)
        settled_alone = rows.decode(alone, range(num_alone), temperature)
        # A row alone in the batch that met no near tie goes through the same arithmetic without arbitration.
        loose_alone = list(settled_alone.outputs)
        touched = [row for row in range(num_alone) if loose_alone[row].num_near_ties]
        again = rows.decode(alone, touched, temperature, has_arbitration=False)
        for row, output in zip(touched, again.outputs, strict=True):
            loose_alone[row] = output
        rate = settled.num_near_ties / settled.num_tokens * 1e4
        yield (
            f"| {temperature} | {settled.num_tokens} | {settled.num_near_ties} | {rate:.2f} "
            f"| {settled.canonical_seconds / settled.seconds:.2%} "
            f"| {at_most(num_differing(loose.outputs[:num_alone], loose_alone), num_alone)} "
            f"| {at_most(num_differing(settled.outputs[:num_alone], settled_alone.outputs), num_alone)} |"
        )


def half_precision_lines(rows: Rows, num_rows: int) -> Iterator[str]:
    """Rows whose bfloat16 text changes with the batch shape."""
    alone, together = load(1, "off", "bfloat16"), load(8, NUM_DRAFTS, "bfloat16")
    for temperature in TEMPERATURES:
        one = rows.decode(alone, range(num_rows), temperature)
        other = rows.decode(together, range(num_rows), temperature)
        yield f"| {temperature} | {rows.num_tokens} | {at_most(num_differing(one.outputs, other.outputs), num_rows)} |"


def bitwise_lines(rows: Rows, num_rows: int) -> Iterator[str]:
    """Rows whose text changes with the batch shape under ``--bitwise``, and what it costs at 8 rows."""
    for dtype in ("float32", "bfloat16"):
        alone = load(1, "off", dtype, bitwise=True)
        together = {bitwise: load(8, NUM_DRAFTS, dtype, bitwise=bitwise) for bitwise in (False, True)}
        for temperature in TEMPERATURES:
            one = rows.decode(alone, range(num_rows), temperature)
            seconds: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(BITWISE_PASSES):
                for bitwise, engine in together.items():
                    last = rows.decode(engine, range(num_rows), temperature)
                    seconds[bitwise].append(last.seconds)
            differing = at_most(num_differing(one.outputs, last.outputs), num_rows)
            ratio = statistics.median(seconds[True]) / statistics.median(seconds[False])
            yield f"| {dtype} | {temperature} | {differing} | {ratio:.2f} |"


def near_tie_section(rows: Rows, arguments: argparse.Namespace) -> Iterator[str]:
    """Near ties in float32, and rows that differ without their settling and with it."""
    yield (
        f"float32. Near ties and the share of wall time that deciding them took: 16 rows in flight, K = {NUM_DRAFTS}, "
        f"{arguments.rows} rows. Rows whose tokens differ between that and 1 row in flight without a draft: the first "
        f"{arguments.rows_alone}."
    )
    yield from (
        "",
        "| T | tokens | near ties | per 10,000 tokens | share of time | differ without arbitration | differ with it |",
    )
    yield "|---|---|---|---|---|---|---|"
    yield from near_tie_lines(rows, arguments.rows, arguments.rows_alone)


def half_precision_section(rows: Rows, arguments: argparse.Namespace) -> Iterator[str]:
    """Rows that differ in bfloat16."""
    yield (
        "bfloat16, no arbitration. Rows whose tokens differ between 1 row in flight without a draft and 8 rows, "
        f"K = {NUM_DRAFTS}."
    )
    yield from ("", "| T | tokens per row | differ |", "|---|---|---|")
    yield from half_precision_lines(rows, arguments.half_rows)


def bitwise_section(rows: Rows, arguments: argparse.Namespace) -> Iterator[str]:
    """Rows that differ under ``--bitwise``, and its cost."""
    yield (
        f"`--bitwise`: rows whose tokens differ between 1 row in flight without a draft and 8 rows, K = {NUM_DRAFTS}, "
        f"and the time of the 8 rows over that without it: {arguments.bitwise_rows} rows, medians of {BITWISE_PASSES} "
        "passes in turns."
    )
    yield from ("", "| dtype | T | differ | time |", "|---|---|---|---|")
    yield from bitwise_lines(rows, arguments.bitwise_rows)


def logit_section(rows: Rows, arguments: argparse.Namespace) -> Iterator[str]:
    """How far logits move."""
    yield (
        f"Change of the target's raw logits against 1 row in flight without a draft, T = 0.7, {arguments.logit_rows} "
        "rows, behind equal prefixes. The last column is the gap between the two likeliest tokens."
    )
    yield from ("", "| dtype | shape | positions | median | 99.9 % | largest | largest change of the gap |")
    yield "|---|---|---|---|---|---|---|"
    yield from logit_lines(rows, arguments.logit_rows, NUM_DRAFTS)


SECTIONS = {
    "near-ties": near_tie_section,
    "bfloat16": half_precision_section,
    "bitwise": bitwise_section,
    "logits": logit_section,
}


def main() -> None:
    """Measure, print the tables as they come, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=SECTIONS, help="one table; all of them take a quarter of an hour")
    parser.add_argument("--rows", type=int, default=320, help="rows of the near-tie count")
    parser.add_argument("--rows-alone", type=int, default=160, help="of these, rows decoded one by one as well")
    parser.add_argument("--half-rows", type=int, default=128, help="rows in bfloat16")
    parser.add_argument("--bitwise-rows", type=int, default=64, help="rows under --bitwise")
    parser.add_argument("--logit-rows", type=int, default=32, help="rows whose logits are compared")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of every completion")
    parser.add_argument("--markdown", type=Path, help="file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    transformers.utils.logging.disable_progress_bar()
    rows = Rows(arguments.tokens)
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say(
        f"Bundled pair, CPU, `lean` path, {arguments.tokens} tokens per row. A share of 0 is given with the bound that "
        "it is below with 95 % confidence."
    )
    for name, section in SECTIONS.items():
        if arguments.only in (None, name):
            say("")
            for line in section(rows, arguments):
                say(line)
    say("")
    say(
        f"Command: `OMP_NUM_THREADS={torch.get_num_threads()} python {' '.join(sys.argv)}`. "
        f"Date: {datetime.date.today()}."
    )
    say(
        f"Hardware: {describe_hardware()['cpu']}, {len(os.sched_getaffinity(0))} cores. "
        f"Versions: specbatch {specbatch.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}."
    )
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
