"""What does the coordinator cost per shard, and does that stay flat as the job grows?

    python benchmarks/bench_coordinator.py            # --counts 10,100,1000 --workers 64 for less, or for more workers

Workers that take no time: every lease is answered by a receipt at once, with a tick and a beat of every worker for each
50 receipts, about what a real run hears in a second. Small jobs are repeated until as many shards have been done as in
a large one. Memory is that of the coordinator at its fullest, traced in a run of its own.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import statistics
import sys
import time
import tracemalloc
from collections import deque
from pathlib import Path
from typing import Any

from specbatch.jobs.coordinator.coordinator import Coordinator
from specbatch.jobs.coordinator.events import (
    Assign,
    Beat,
    Begin,
    Command,
    Event,
    FinishJob,
    PartDone,
    StartWorker,
    Tick,
    WorkerJoined,
)
from specbatch.jobs.planning.machine import describe_hardware
from specbatch.schemas.messages import PartReceipt
from specbatch.schemas.plan import Segment, Shard
from specbatch.schemas.stats import PartStats

ROOT = Path(__file__).resolve().parents[1]
ROWS_PER_SHARD = 1000
RECEIPTS_PER_TICK = 50
MOST_RATIO = 1.5


def make_shards(count: int) -> tuple[Shard, ...]:
    """A plan of so many shards of one file."""
    rows = ROWS_PER_SHARD
    return tuple(
        Shard(index, (Segment("a", 1, "f", index * rows, (index + 1) * rows, index * rows),)) for index in range(count)
    )


def run(shards: tuple[Shard, ...], num_workers: int) -> int:
    """One job from its beginning to its end; returns the number of events."""
    stats = PartStats(num_rows=ROWS_PER_SHARD, num_results=ROWS_PER_SHARD, num_ok=ROWS_PER_SHARD)
    coordinator = Coordinator(shards, num_workers=num_workers)
    events: deque[Event] = deque([Begin()])
    num_events = num_receipts = 0
    while events:
        commands: list[Command] = coordinator.handle(events.popleft())
        num_events += 1
        for command in commands:
            match command:
                case Assign(worker, lease):
                    shard = lease.shard.index
                    receipt = PartReceipt(shard, "part", ROWS_PER_SHARD, 100, "", "token", True, stats)
                    events.append(PartDone(worker, receipt))
                    num_receipts += 1
                    if num_receipts % RECEIPTS_PER_TICK == 0:
                        events.append(Tick(float(num_receipts // RECEIPTS_PER_TICK)))
                        events.extend(Beat(number, 0.0, 0.05) for number in range(num_workers))
                case StartWorker(worker):
                    events.append(WorkerJoined(worker, f"host/{worker}"))
                case FinishJob():
                    return num_events
                case _:
                    raise SystemExit(f"not in this play: {command}")
    raise SystemExit("the job did not come to its end")


def time_jobs(shards: tuple[Shard, ...], num_jobs: int, num_workers: int) -> tuple[float, int]:
    """Processor seconds and events of so many jobs. It is one thread that never waits; others' load stays outside."""
    gc.collect()
    started = time.process_time()
    num_events = sum(run(shards, num_workers) for _ in range(num_jobs))
    return time.process_time() - started, num_events


def peak_memory(shards: tuple[Shard, ...], num_workers: int) -> int:
    """Bytes of the coordinator at its fullest, without the plan."""
    gc.collect()
    tracemalloc.start()
    run(shards, num_workers)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak_bytes


def measure(counts: list[int], num_workers: int, repeats: int) -> list[dict[str, Any]]:
    """Medians over repeats; the sizes take turns, so that a machine that slows down does so for all."""
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    num_events: dict[int, int] = {}
    num_jobs = {count: max(max(counts) // count, 1) for count in counts}
    for _ in range(repeats):
        for count in counts:
            spent, num_events[count] = time_jobs(make_shards(count), num_jobs[count], num_workers)
            seconds[count].append(spent)
    sizes = []
    for count in counts:
        median, num_shards = statistics.median(seconds[count]), num_jobs[count] * count
        sizes.append(
            {
                "shards": count,
                "jobs": num_jobs[count],
                "cpu_seconds": seconds[count],
                "events_per_second": num_events[count] / median,
                "microseconds_per_shard": median / num_shards * 1e6,
                "rows_per_second": num_shards * ROWS_PER_SHARD / median,
                "peak_bytes": peak_memory(make_shards(count), num_workers),
            }
        )
    return sizes


def render(document: dict[str, Any]) -> str:
    """The table."""
    sizes = document["sizes"]
    # Below some dozens of shards the start of the workers is most of a job.
    large = [size["microseconds_per_shard"] for size in sizes if size["shards"] >= 100] or [0.0]
    ratio = max(large) / min(large) if min(large) else 1.0
    lines = [
        f"Coordinator, {document['workers']} workers that take no time, {document['rows_per_shard']} rows per shard, "
        f"{document['hardware']['cores']} cores, {document['date']}. Processor time of its one thread.",
        "",
        "| shards | µs per shard | events per second | rows per second | peak memory, MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {size['shards']:,} | {size['microseconds_per_shard']:.1f} | {size['events_per_second']:,.0f} "
        f"| {size['rows_per_second']:,.0f} | {size['peak_bytes'] / 2**20:.2f} |"
        for size in sizes
    ]
    verdict = "met" if ratio <= MOST_RATIO else "**not met**"
    lines += ["", f"Dearest over cheapest from 100 shards on: {ratio:.2f} (at most {MOST_RATIO}: {verdict})."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", default="10,100,1000,10000,100000", help="shards per job")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file; the table is written beside it")
    options = parser.parse_args(arguments)
    counts = [int(value) for value in options.counts.split(",")]
    document = {
        "benchmark": "coordinator",
        "date": datetime.date.today().isoformat(),
        "hardware": describe_hardware(),
        "workers": options.workers,
        "rows_per_shard": ROWS_PER_SHARD,
        "sizes": measure(counts, options.workers, options.repeats),
    }
    stem = f"coordinator_{document['hardware']['cores']}-cores_{document['date']}"
    out = options.out or ROOT / "benchmarks" / "results" / f"{stem}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    out.with_suffix(".md").write_text(render(document) + "\n")
    print(f"{render(document)}\n\nwritten: {out} and {out.stem}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
