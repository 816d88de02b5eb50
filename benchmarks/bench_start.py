"""How long a user waits: for the help, for a plan, for the first decoded row.

    python benchmarks/bench_start.py                 # --repeats 5; --markdown keeps the table

Whole commands from start to exit, medians; each once before, unmeasured, so that files are in the page cache. The first
decoded row is the first progress event of ``submit --format jsonl`` that counts one, up to half a second after it
happened.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from workload import ROOT, write_prompts

from specbatch.jobs.planning.machine import count_cores, describe_hardware

SPECBATCH = [sys.executable, "-m", "specbatch"]
MOST_HELP_RATIO = 2.0
MOST_PLAN_SECONDS = 3.0
MOST_FIRST_ROW_SECONDS = 15.0
NUM_PLANNED = 10_000


def seconds_of(command: Sequence[str]) -> float:
    """From start to exit.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def first_row_seconds(folder: Path) -> float:
    """From the start of ``submit`` to the first event that counts a row."""
    command = [*SPECBATCH, "submit", str(ROOT / "examples" / "prompts.parquet"), "--output", str(folder)]
    started = time.perf_counter()
    with subprocess.Popen([*command, "--format", "jsonl"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "progress" and event["rows_done"] > 0:
                seconds = time.perf_counter() - started
                process.terminate()
                process.stdout.read()
                return seconds
    raise RuntimeError(f"no row was decoded; exit {process.returncode}")


def median_of(measure: Callable[[int], float], repeats: int) -> tuple[float, float, float]:
    """Least, median and most."""
    measure(0)
    found = [measure(number) for number in range(1, repeats + 1)]
    return min(found), statistics.median(found), max(found)


def render(measured: dict[str, tuple[float, float, float]]) -> str:
    """The table."""
    ratio = measured["specbatch --help"][1] / measured["import typer"][1]
    targets = {
        "import typer": "",
        "specbatch --help": f"{ratio:.2f} of `import typer`, ≤ {MOST_HELP_RATIO:g}",
        f"plan of {NUM_PLANNED:,} rows": f"≤ {MOST_PLAN_SECONDS:g} s",
        "submit, first decoded row": f"≤ {MOST_FIRST_ROW_SECONDS:g} s",
    }
    lines = ["| what | median, s | least to most, s | wanted |", "| --- | --- | --- | --- |"]
    for name, (least, middle, most) in measured.items():
        lines.append(f"| {name} | {middle:.2f} | {least:.2f} to {most:.2f} | {targets[name]} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--markdown", action="store_true", help="write benchmarks/results/start_<cores>-cores_<date>.md"
    )
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="specbatch-bench-") as name:
        folder = Path(name)
        dataset = folder / "prompts.parquet"
        write_prompts(dataset, NUM_PLANNED)
        plan = [*SPECBATCH, "plan", str(dataset), "--output", str(folder / "planned")]
        measured = {
            "import typer": median_of(lambda _: seconds_of([sys.executable, "-c", "import typer"]), options.repeats),
            "specbatch --help": median_of(lambda _: seconds_of([*SPECBATCH, "--help"]), options.repeats),
            f"plan of {NUM_PLANNED:,} rows": median_of(lambda _: seconds_of(plan), options.repeats),
            "submit, first decoded row": median_of(
                lambda number: first_row_seconds(folder / f"out-{number}"), min(options.repeats, 3)
            ),
        }
    date = datetime.date.today().isoformat()
    command = " ".join(["python benchmarks/bench_start.py", *(sys.argv[1:] if arguments is None else arguments)])
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("specbatch", "ray", "pyarrow"))
    text = (
        f"Hardware: {describe_hardware()['cpu']}, {count_cores()} threads. Date: {date}. Versions: {versions}. "
        f"Load average before: {load:.1f}. Command: `{command}`.\n\n{render(measured)}\n"
    )
    print(text)
    if options.markdown:
        out = ROOT / "benchmarks" / "results" / f"start_{count_cores()}-cores_{date}.md"
        out.write_text(text)
        print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
