"""What the job system costs beside the engine.

    python benchmarks/bench_jobs.py                  # --part a, b or c for one of them; --markdown keeps the tables

Part a: tokens per second of one worker (reading, tokenizing, writing, shard borders) over those of its engine alone on
the same rows, and the share of the time that the worker's decode loop waited. Both sides take turns at going first,
each time in a process of its own: threads of one process that compute slow each other, even where one only did so once.

Part b: rows per second of a whole local job whose engine does nothing, against Ray Data's ``map_batches`` doing the
same nothing to each row of the same file, writing Parquet too. Both may use all cores: Ray Data decides for itself,
the job gets ``--workers`` processes. Whole commands, from start to exit; and without
start-up, which is from the first ready worker to the last part, or from reading to the last file.

Part c: the same job with ever more shards of the same size: seconds per shard and memory of the coordinator's process.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from worker_side import worker_and_engine
from workload import ROOT, write_prompts

from specbatch.jobs.planning.machine import count_cores, describe_hardware

LEAST_RATIO = 0.9
FEWEST_SHARDS = 10
ENGINE_FACTORY = "noop_engine:NoopEngine"
NOTHING = ["--draft", "none", "--speculation", "off", "--max-new-tokens", "4", "--format", "quiet"]


# ---- parts b and c: whole jobs without decoding ----------------------------------------------------------------------


def noop_environment() -> dict[str, str]:
    """In which every worker gets the engine that does nothing."""
    path = os.pathsep.join([str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "SPECBATCH_ENGINE_FACTORY": ENGINE_FACTORY}


def peak_bytes(pid: int) -> int:
    """Most memory that a process has had so far; 0 once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def timed(command: Sequence[str]) -> tuple[float, int, str]:
    """Seconds from start to exit, peak bytes of the process itself, and what it printed."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=noop_environment(), stdout=out, stderr=err, text=True)
        peak = 0
        while process.poll() is None:
            peak = max(peak, peak_bytes(process.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {err.read()[-2000:]}")
        return seconds, peak, out.read()


def noop_job(dataset: Path, output: Path, *arguments: str) -> dict[str, float]:
    """A whole job; every row must be in a part."""
    command = [sys.executable, "-m", "specbatch", "submit", str(dataset), "--output", str(output), *NOTHING, *arguments]
    seconds, peak, _ = timed(command)
    manifest = json.loads((output / "manifest.json").read_bytes())
    rows = sum(pq.ParquetFile(path).metadata.num_rows for path in (output / "data").glob("*.parquet"))
    planned = pq.ParquetFile(dataset).metadata.num_rows
    if rows != planned:
        raise RuntimeError(f"{rows} rows in {output}, {planned} in {dataset}")
    return {
        "rows": rows,
        "shards": len(manifest["commit"]["parts"]),
        "seconds": seconds,
        "pipeline_seconds": manifest["observed"]["throughput"]["wall_seconds"],
        "driver_bytes": peak,
    }


def ray_data(dataset: Path, output: Path) -> dict[str, float]:
    """The same nothing by Ray Data."""
    side = str(ROOT / "benchmarks" / "ray_data_side.py")
    seconds, _, out = timed([sys.executable, side, str(dataset), str(output), "--cpus", str(count_cores())])
    rows = sum(pq.ParquetFile(path).metadata.num_rows for path in output.glob("*.parquet"))
    return {
        "rows": rows,
        "seconds": seconds,
        "pipeline_seconds": json.loads(out.splitlines()[-1])["seconds"],
    }


def part_b(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both systems in turn over one file."""
    dataset = folder / "prompts-b.parquet"
    write_prompts(dataset, options.rows_b)
    repeats = []
    for repeat in range(options.repeats):
        ours = noop_job(dataset, folder / f"b-{repeat}", "--workers", str(options.workers))
        theirs = ray_data(dataset, folder / f"b-ray-{repeat}")
        if ours["rows"] != theirs["rows"]:
            raise RuntimeError(f"{ours['rows']} and {theirs['rows']} rows were written")
        repeats.append({"specbatch": ours, "ray_data": theirs})
        print(f"b: {repeats[-1]}", flush=True)
    return {"rows": options.rows_b, "workers": options.workers, "repeats": repeats}


def part_c(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ever more shards of one size."""
    runs = []
    num_shards = FEWEST_SHARDS
    while num_shards <= options.most_shards:
        dataset = folder / f"prompts-c-{num_shards}.parquet"
        write_prompts(dataset, num_shards * options.rows_per_shard, group_rows=100 * options.rows_per_shard)
        shard_rows = ["--shard-rows", str(options.rows_per_shard)]
        runs.append(noop_job(dataset, folder / f"c-{num_shards}", "--workers", "1", *shard_rows))
        print(f"c: {runs[-1]}", flush=True)
        num_shards *= 10
    return {"rows_per_shard": options.rows_per_shard, "runs": runs}


# ---- the tables ------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Markdown."""
    return ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]]


def verdict(value: float, least: float) -> str:
    """A ratio and whether it reaches what is wanted."""
    return f"{value:.2f}, ≥ {least:g} {'met' if value >= least else '**missed**'}"


def render_a(part: dict[str, Any]) -> list[str]:
    """One line for each repeat."""
    head = ["engine alone, tok/s", "worker, tok/s", "worker / engine", "worker idle"]
    lines = [
        [
            f"{repeat['engine']['tokens'] / repeat['engine']['seconds']:.1f}",
            f"{repeat['worker']['tokens'] / repeat['worker']['seconds']:.1f}",
            f"{repeat['ratio']:.3f}",
            f"{repeat['worker']['idle_share']:.1%}",
        ]
        for repeat in part["repeats"]
    ]
    middle = statistics.median(repeat["ratio"] for repeat in part["repeats"])
    return [
        f"One worker against its engine: {part['rows']} rows in {part['shards']} shards, "
        f"{part['batch_size']} in flight, target of {part['parameters'] / 1e6:.0f} M parameters, "
        f"speculation {part['speculation']}. "
        f"Median ratio {verdict(middle, LEAST_RATIO)}.",
        "",
        *table(head, lines),
    ]


def render_b(part: dict[str, Any]) -> list[str]:
    """Rows per second, whole and without start-up."""
    lines = []
    for name, key in (("whole command", "seconds"), ("without start-up", "pipeline_seconds")):
        ours, theirs = (
            part["rows"] / statistics.median(repeat[side][key] for repeat in part["repeats"])
            for side in ("specbatch", "ray_data")
        )
        lines.append([name, f"{ours:,.0f}", f"{theirs:,.0f}", verdict(ours / theirs, 1.0)])
    head = ["", "specbatch, rows/s", "Ray Data, rows/s", "specbatch / Ray Data"]
    title = f"An engine that does nothing, {part['rows']:,} rows, --workers {part['workers']}, medians:"
    return [title, "", *table(head, lines)]


def render_c(part: dict[str, Any]) -> list[str]:
    """One line for each number of shards."""
    head = ["shards", "rows", "rows/s, whole command", "ms per shard without start-up", "coordinator's memory, MiB"]
    lines = [
        [
            f"{run['shards']:,}",
            f"{run['rows']:,}",
            f"{run['rows'] / run['seconds']:,.0f}",
            f"{run['pipeline_seconds'] / run['shards'] * 1e3:.1f}",
            f"{run['driver_bytes'] / 2**20:.0f}",
        ]
        for run in part["runs"]
    ]
    return [f"Ever more shards of {part['rows_per_shard']} rows, an engine that does nothing:", "", *table(head, lines)]


_PARTS = {"a": (worker_and_engine, render_a), "b": (part_b, render_b), "c": (part_c, render_c)}


def render(document: dict[str, Any]) -> str:
    """All parts that were run."""
    lines = [
        f"Hardware: {document['hardware']['cpu']}, {count_cores()} threads. Date: {document['date']}. Versions: "
        + ", ".join(f"{name} {version}" for name, version in document["versions"].items())
        + f". Load average before: {document['load_average_before']:.1f}. "
        + f"Command: `python benchmarks/bench_jobs.py {' '.join(document['arguments'])}`.",
    ]
    for name, (_, rendered) in _PARTS.items():
        if name in document["parts"]:
            lines += ["", *rendered(document["parts"][name])]
    return "\n".join(lines)


def speculation(text: str) -> str | int:
    """``auto``, ``off`` or K."""
    return text if text in ("auto", "off") else int(text)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=sorted(_PARTS), help="one part alone")
    parser.add_argument("--repeats", type=int, default=3, help="of parts a and b")
    parser.add_argument("--rows-a", type=int, default=96)
    parser.add_argument("--shard-rows", type=int, default=16, help="of part a")
    parser.add_argument("--batch-size", type=int, default=8, help="rows in flight of part a")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of part a")
    parser.add_argument("--parameters", type=int, default=60_000_000, help="of part a's target")
    parser.add_argument("--threads", type=int, default=count_cores(), help="arithmetic threads of part a")
    parser.add_argument("--speculation", type=speculation, default=4, help="of part a")
    parser.add_argument("--rows-b", type=int, default=500_000)
    parser.add_argument("--workers", type=int, default=count_cores(), help="of part b")
    parser.add_argument("--rows-per-shard", type=int, default=10, help="of part c")
    parser.add_argument("--most-shards", type=int, default=10_000, help="of part c")
    parser.add_argument("--markdown", action="store_true", help="write benchmarks/results/jobs_<cores>-cores_<date>.md")
    options = parser.parse_args(arguments)
    document: dict[str, Any] = {
        "benchmark": "jobs",
        "date": datetime.date.today().isoformat(),
        "arguments": sys.argv[1:] if arguments is None else arguments,
        "hardware": describe_hardware(),
        "load_average_before": os.getloadavg()[0],
        "versions": {name: importlib.metadata.version(name) for name in ("specbatch", "torch", "ray", "pyarrow")},
        "parts": {},
    }
    for name, (measure, _) in _PARTS.items():
        if options.part in (None, name):
            with tempfile.TemporaryDirectory(prefix="specbatch-bench-") as folder:
                document["parts"][name] = measure(options, Path(folder))
    print(render(document))
    if options.markdown:
        out = ROOT / "benchmarks" / "results" / f"jobs_{count_cores()}-cores_{document['date']}.md"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(render(document) + "\n")
        out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
        print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
