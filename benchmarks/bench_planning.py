"""How long planning takes at scale, and how much memory: ten million rows in a thousand files, resume listing included.

    python benchmarks/bench_planning.py            # --files 100 for less

The files hold short rows and lie in a temporary folder; they are in the page cache when they are read, so what is timed
is our own work. A resume lists its parts and reads the footer of each; the parts here are whole ones of a single row,
whose footers are those of large ones. The steps run in a process of their own, whose peak memory is that of all of
them, imports included; `specbatch plan` is the whole command on the same files, models looked at included.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import specbatch
from specbatch.jobs.output.ledger import Ledger, StoredJob
from specbatch.jobs.planning.machine import describe_hardware
from specbatch.jobs.planning.planning import cut_shards
from specbatch.schemas.manifest import PART_FORMAT, JobDocument
from specbatch.schemas.plan import InputFile, part_name, plan_digest
from specbatch.schemas.rows import RowResult
from specbatch.schemas.stats import PhaseSeconds
from specbatch.storage.inputs import read_inputs
from specbatch.storage.parts import PartMeta, part_stats, write_part
from specbatch.storage.planfile import decode_plan, encode_plan
from specbatch.storage.store import open_store

MOST_SECONDS = 60.0
MOST_BYTES = 1 << 30
IDENTITY = "0" * 64


def make_files(folder: Path, num_files: int, num_rows: int, num_groups: int) -> None:
    """Files of short prompts with an id and a score, no two alike."""
    folder.mkdir()
    rows_per_file = num_rows // num_files
    numbers = np.arange(rows_per_file)
    for index in range(num_files):
        ids = pa.array(numbers + index * rows_per_file)
        prompts = pa.array([f"row {index}-{number}" for number in range(rows_per_file)])
        table = pa.table({"id": ids, "prompt": prompts, "score": pa.array(numbers * 0.5)})
        path = folder / f"part-{index:05d}.parquet"
        pq.write_table(table, path, row_group_size=-(-rows_per_file // num_groups), compression="zstd")


def stored_job(num_parts: int) -> StoredJob:
    """A job of shards of one row, as a resume finds it; of its document only P is looked at."""
    shards = cut_shards([InputFile("a", "/a", 1, IDENTITY, (num_parts,))], 1)
    document = SimpleNamespace(identity=SimpleNamespace(P=plan_digest(IDENTITY, shards)))
    return StoredJob(cast(JobDocument, document), shards)


def make_parts(output: Path, num_parts: int) -> None:
    """A part for every shard of ``stored_job``."""
    (output / "data").mkdir(parents=True)
    job = stored_job(num_parts)
    for shard in job.shards:
        row = shard.row_start
        result = RowResult(
            row_id=row, sample_index=0, row_seed=row, finish_reason="error", error_code="ROW_PROMPT_NULL"
        )
        rows = pa.table({"id": [row], "prompt": pa.array([None], pa.string()), "score": [0.5]})
        stats = part_stats([result], PhaseSeconds())
        meta = PartMeta(PART_FORMAT, job.plan, shard.index, row, row + 1, "token", stats)
        write_part(output / part_name(shard.index, job.plan), rows, [result], meta)


def measure(dataset: Path, output: Path, num_parts: int) -> dict[str, Any]:
    """Plan, store, read and resume in this process; seconds of each step."""
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal started
        seconds[step] = time.perf_counter() - started
        started = time.perf_counter()

    inputs = read_inputs([str(dataset)])
    lap("find and pin the files")
    shards = cut_shards(inputs.files)
    lap("cut shards")
    plan_digest(IDENTITY, shards)
    lap("digest of the plan")
    data = encode_plan(shards)
    lap("encode the plan")
    assert decode_plan(data) == shards
    lap("decode the plan")
    job = stored_job(num_parts)
    ledger = Ledger(open_store(str(output)))
    started = time.perf_counter()
    assert len(ledger.find_parts(job)) == num_parts
    lap(f"resume: list {num_parts:,} parts and read their footers")
    return {
        "seconds": seconds,
        "peak_bytes": peak_bytes(resource.RUSAGE_SELF),
        "shards": len(shards),
        "rows": sum(shard.num_rows for shard in shards),
        "plan_bytes": len(data),
    }


def peak_bytes(who: int) -> int:
    """Peak resident memory; Linux counts in KiB."""
    return resource.getrusage(who).ru_maxrss * 1024


def run_command(dataset: Path) -> tuple[float, int]:
    """Wall seconds and peak memory of `specbatch plan`. The process measures its own children's peak."""
    script = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)\n"
    )
    command = [sys.executable, "-m", "specbatch", "plan", str(dataset)]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=True)
    return time.perf_counter() - started, int(done.stdout)


def render(found: dict[str, Any], command_seconds: float, command_bytes: int, num_files: int, command: str) -> str:
    """The whole report."""
    hardware = describe_hardware()
    total = sum(found["seconds"].values())
    lines = [f"| {step} | {seconds:.2f} |" for step, seconds in found["seconds"].items()]
    fits = total < MOST_SECONDS and found["peak_bytes"] < MOST_BYTES
    verdict = "within" if fits else "NOT within"
    return "\n".join(
        [
            "# Planning at scale",
            "",
            f"Command: `{command}`. Date: {datetime.date.today().isoformat()}. Hardware: {hardware['cpu']}, "
            f"{hardware['cores']} cores. Versions: specbatch {specbatch.__version__}, pyarrow {pa.__version__}, "
            f"Python {platform.python_version()}.",
            "",
            f"{found['rows']:,} rows in {num_files:,} files, {found['shards']:,} shards, a stored plan of "
            f"{found['plan_bytes'] / 1e3:,.0f} kB.",
            "",
            "| step | seconds |",
            "| --- | --- |",
            *lines,
            f"| all | {total:.2f} |",
            f"| `specbatch plan`, the whole command | {command_seconds:.2f} |",
            "",
            f"Peak memory: {found['peak_bytes'] / 1e6:,.0f} MB for the steps, {command_bytes / 1e6:,.0f} MB for the "
            f"command; {verdict} the aim of {MOST_SECONDS:.0f} s and {MOST_BYTES / 1e6:,.0f} MB.",
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Make the files, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--row-groups", type=int, default=4, help="of each file")
    parser.add_argument("--parts", type=int, default=10_000, help="that a resume finds")
    parser.add_argument("--markdown", type=Path, help="where to write the report")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure, options.measure.parent / "out", options.parts)))
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-planning-") as folder:
        dataset = Path(folder) / "dataset"
        make_files(dataset, options.files, options.rows, options.row_groups)
        make_parts(Path(folder) / "out", options.parts)
        child = [sys.executable, __file__, "--measure", str(dataset), "--parts", str(options.parts)]
        found = json.loads(subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True).stdout)
        command_seconds, command_bytes = run_command(dataset)
    words = sys.argv[1:] if arguments is None else arguments
    report = render(
        found, command_seconds, command_bytes, options.files, " ".join(["python benchmarks/bench_planning.py", *words])
    )
    print(report)
    if options.markdown:
        options.markdown.write_text(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
