"""What watching a job costs: the live view, its snapshots, and the documents that others watch it by.

    python benchmarks/bench_view.py                  # --workers 1,8,40; --rows 0 leaves part b out

Part a: processor seconds of one drawing, of one snapshot and of one written document, each times how often it is done
in a second, as a share of one core. The coordinator's process does this work, so the share is an upper bound of what a
job loses: it loses nothing where a core is free. Drawings are written to a pipe that another process reads.

Part b: a job whose engine does nothing (``noop_engine``), once with the live view on a pseudo-terminal and once with
``--format quiet``, taking turns: rows per second from the first ready worker to the last part, and processor seconds of
the coordinator's process, which say something on a busy machine too. An engine that does nothing is the worst case: of
rows that are really decoded, a view takes the same seconds from far fewer. Single jobs differ by a third and
more where others use the machine, so that only medians of some rounds say anything, and their ratio within the spread.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workload import ROOT, write_prompts

from specbatch.jobs.coordinator.workers import WorkerView
from specbatch.jobs.display.live import REFRESH_SECONDS, LiveView
from specbatch.jobs.display.live_layout import snapshot_of
from specbatch.jobs.planning.machine import count_cores, describe_hardware
from specbatch.jobs.running.job_run import LOG_SECONDS, PROGRESS_SECONDS, VIEW_SECONDS
from specbatch.jobs.running.run_log import Fact, RunLog
from specbatch.jobs.running.tally import RunTally
from specbatch.schemas.messages import MemoryReport, Progress, RoundBlock, WorkerPoll, WorkerReady
from specbatch.schemas.run import ProgressDocument
from specbatch.schemas.stats import PartStats, SpecCounters
from specbatch.storage.store import open_store

MOST_SHARE = 0.01
_MEMORY = MemoryReport(1, 2, 3, 4, 640_000_000)
_SIZE = (120, 50)
_DRIVER = """
import pathlib, sys, time
from specbatch.jobs.cli.app import run
code = run(sys.argv[2:])
pathlib.Path(sys.argv[1]).write_text(str(time.process_time()))
sys.exit(code)
"""


def make_tally(num_workers: int) -> RunTally:
    """A run of so many workers, half a minute old."""
    tally = RunTally()
    for worker in range(num_workers):
        tally.add_ready(
            WorkerReady(worker, f"node-{worker}", 100, "cpu", "float32", 2, 2.0, _MEMORY, (("torch", "2"),)), 0.0
        )
    for second in range(1, 31):
        for worker in range(num_workers):
            tally.add_poll(worker, make_poll(second), float(second))
    return tally


def make_poll(second: int) -> WorkerPoll:
    """What a busy worker says once a second."""
    histogram = (0, 0, 10 * second, 0, 40 * second)
    counters = SpecCounters(50 * second, 4 * second, 180 * second, 90 * second, (1, 2, 3, 4, 5), histogram)
    block = RoundBlock(num_spec_tokens=200, draft_length_histogram=(4, 0, 10, 0, 40), num_accepted_draft_tokens=90)
    progress = Progress(second, 200 * second, 8, counters, errors_by_code=(("ROW_TOO_LONG", 3),))
    return WorkerPoll((), (), (block,), progress, _MEMORY)


def make_document(tally: RunTally, num_workers: int, **changes: Any) -> ProgressDocument:
    """The document that a run makes of its tally."""
    views = tuple(WorkerView(n, "ready", f"node-{n}/cpu", (n, n + 1)) for n in range(num_workers))
    fields = tally.progress_fields(1_000_000, PartStats(), rows_in_parts=1000, now_seconds=30.0, views=views)
    common: dict[str, Any] = {"format": "specbatch/progress/1", "epoch": 1, "host": "h", "pid": 1, "updated_at": "now"}
    common |= {"state": "running", "num_rows": 1_000_000, "num_parts": 1000, "parts_done": 1, "rows_in_parts": 1000}
    return ProgressDocument(**(common | fields | {"output": "/data/out", "elapsed_seconds": 30.0} | changes))


def processor_seconds(action: Callable[[int], object], repeats: int) -> float:
    """Median over five batches of the processor time of one call, threads of this process included."""
    action(0)
    times = []
    for _ in range(5):
        started = time.process_time()
        for number in range(repeats):
            action(number)
        times.append((time.process_time() - started) / repeats)
    return statistics.median(times)


class Reader:
    """Reads a pseudo-terminal to its end, so that nothing written to it waits."""

    def __init__(self) -> None:
        self._controller, self.terminal = pty.openpty()
        self.end = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._controller, 65536)
                if not data:
                    return
                self.end = (self.end + data)[-2000:]
            except OSError:
                return

    def close(self) -> None:
        """End; the terminal's own end has been closed before."""
        self._thread.join(5)
        os.close(self._controller)


def measure_pieces(num_workers: int, repeats: int) -> dict[str, dict[str, float]]:
    """Processor seconds of each piece, how often it is done in a second, and their product."""
    tally = make_tally(num_workers)
    document = make_document(tally, num_workers)
    # What is written by os.write takes its processor time here; the reader's part is read in another process.
    sink = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert sink.stdin is not None
    stream = os.fdopen(os.dup(sink.stdin.fileno()), "w", encoding="utf-8")
    view = LiveView(stream, size=lambda: _SIZE)

    def draw(number: int) -> None:
        # Set from below: ``show`` would start the thread that draws by itself.
        view._snapshot = snapshot_of(document, rows_done=number, elapsed_seconds=float(number))
        view.draw()

    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        log = RunLog()

        def write_log(number: int) -> None:
            log.add(Fact("warning", "worker_died", f"worker {number} died: out of memory", number))
            log.flush(lambda name, text: store.replace(f"_specbatch/logs/1/{name}", text.encode()))

        pieces = {
            "poll": (
                processor_seconds(lambda number: tally.add_poll(0, make_poll(31), 31.0 + number / 100), repeats),
                float(num_workers),
            ),
            "snapshot": (
                processor_seconds(lambda number: make_document(tally, num_workers, epoch=number), repeats),
                1 / VIEW_SECONDS + 1 / PROGRESS_SECONDS,
            ),
            "drawing": (processor_seconds(draw, repeats), 1 / REFRESH_SECONDS),
            "document": (
                processor_seconds(
                    lambda number: store.replace("_specbatch/progress.json", document.model_dump_json().encode()),
                    repeats,
                ),
                1 / PROGRESS_SECONDS,
            ),
            "log": (processor_seconds(write_log, min(repeats, 50)), 1 / LOG_SECONDS),
        }
    stream.close()
    sink.stdin.close()
    sink.wait()
    return {
        name: {"seconds": seconds, "per_second": rate, "share": seconds * rate}
        for name, (seconds, rate) in pieces.items()
    }


def measure_job(rows: int, workers: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Whole jobs with the live view and without: rows per second, processor seconds of the coordinator's process."""
    from bench_jobs import ENGINE_FACTORY

    found: dict[str, dict[str, list[float]]] = {
        kind: {"rows_per_second": [], "processor_seconds": []} for kind in ("live", "quiet")
    }
    with tempfile.TemporaryDirectory() as folder:
        dataset, spent = Path(folder) / "prompts.parquet", Path(folder) / "spent"
        write_prompts(dataset, rows)
        for number in range(2 * rounds):
            kind = ("live", "quiet", "quiet", "live")[number % 4]
            output = Path(folder) / f"out-{number}"
            command = [sys.executable, "-c", _DRIVER, str(spent), "submit", str(dataset), "--output", str(output)]
            command += ["--draft", "none", "--speculation", "off", "--max-new-tokens", "4", "--workers", str(workers)]
            command += ["--format", "auto" if kind == "live" else "quiet"]
            environment = {**os.environ, "SPECBATCH_ENGINE_FACTORY": ENGINE_FACTORY, "TERM": "xterm-256color"}
            environment |= {"PYTHONPATH": str(Path(__file__).parent), "PYTHONUTF8": "1"}
            environment.pop("NO_COLOR", None)
            reader = Reader()
            done = subprocess.run(command, stderr=reader.terminal, stdout=subprocess.DEVNULL, env=environment)
            os.close(reader.terminal)
            reader.close()
            if done.returncode:
                raise SystemExit(f"the job ended with {done.returncode}: {reader.end.decode('utf-8', 'replace')}")
            record = json.loads((output / "_specbatch/runs/1.json").read_bytes())
            found[kind]["rows_per_second"].append(rows / record["wall_seconds"])
            found[kind]["processor_seconds"].append(float(spent.read_text()))
    return found


def job_lines(rows: int, jobs: dict[str, dict[str, list[float]]]) -> list[str]:
    """The table of part b: every job, the medians, and what of the median is left with the view."""
    medians = {
        kind: {name: statistics.median(values) for name, values in found.items()} for kind, found in jobs.items()
    }
    lines = [
        f"Whole jobs of {rows:,} rows whose engine does nothing; processor seconds are of the coordinator's process:",
        "",
        "| view | rows per second, median | each | processor seconds, median | each |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, found in jobs.items():
        rates = ", ".join(f"{rate:,.0f}" for rate in found["rows_per_second"])
        seconds = ", ".join(f"{each:.2f}" for each in found["processor_seconds"])
        middle = medians[kind]
        lines.append(
            f"| {kind} | {middle['rows_per_second']:,.0f} | {rates} | {middle['processor_seconds']:.2f} | {seconds} |"
        )
    ratios = {name: medians["live"][name] / value for name, value in medians["quiet"].items()}
    return [
        *lines,
        "",
        f"Live to quiet, by the medians: {ratios['rows_per_second']:.2f} of the rows per second, "
        f"{ratios['processor_seconds']:.2f} of the processor seconds.",
    ]


def render(document: dict[str, Any]) -> str:
    """The tables."""
    hardware, loads = document["hardware"], document["load_average"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [
        f"Hardware: {hardware['cpu']}, {hardware['cores']} threads. Date: {document['date']}. Versions: {versions}. "
        f"Load average before: {loads['before']:.1f}; after, of these jobs themselves too: {loads['after']:.1f}. "
        f"Command: `{document['command']}`.",
        "",
        "Cost of watching: processor time in the coordinator's process, at most as often as it is done.",
        "",
        "| workers | piece | ms | a second | % of a core |",
        "| --- | --- | --- | --- | --- |",
    ]
    for count, pieces in document["pieces"].items():
        lines += [
            f"| {count} | {name} | {1e3 * piece['seconds']:.3f} | {piece['per_second']:.1f} "
            f"| {100 * piece['share']:.3f} |"
            for name, piece in pieces.items()
        ]
        lines.append(f"| {count} | all | | | {100 * document['shares'][count]:.3f} |")
    verdict = "met" if max(document["shares"].values()) < MOST_SHARE else "**not met**"
    lines += ["", f"At most {100 * MOST_SHARE:.0f} % of a core: {verdict}."]
    if document["jobs"]:
        lines += ["", *job_lines(document["rows"], document["jobs"])]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write. Exit 1 where watching costs too much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", default="1,8,40", help="numbers of workers for part a")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--rows", type=int, default=300_000, help="rows of the jobs of part b; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=4, help="jobs of each kind in part b")
    parser.add_argument("--out", type=Path, help="JSON file; the tables are written beside it")
    options = parser.parse_args(arguments)
    counts = [int(text) for text in options.workers.split(",")]
    load_before = os.getloadavg()[0]
    pieces = {count: measure_pieces(count, options.repeats) for count in counts}
    jobs = measure_job(options.rows, count_cores(), options.rounds) if options.rows else {}
    document = {
        "benchmark": "view",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python benchmarks/bench_view.py", *(sys.argv[1:] if arguments is None else arguments)]),
        "hardware": describe_hardware(),
        "versions": {name: importlib.metadata.version(name) for name in ("specbatch", "ray", "pyarrow", "rich")},
        "load_average": {"before": load_before, "after": os.getloadavg()[0]},
        "pieces": pieces,
        "shares": {count: sum(piece["share"] for piece in found.values()) for count, found in pieces.items()},
        "rows": options.rows,
        "jobs": jobs,
    }
    stem = f"view_{document['hardware']['cores']}-cores_{document['date']}"
    out = options.out or ROOT / "benchmarks" / "results" / f"{stem}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    out.with_suffix(".md").write_text(render(document) + "\n")
    print(f"{render(document)}\n\nwritten: {out} and {out.stem}.md")
    return 0 if max(document["shares"].values()) < MOST_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
