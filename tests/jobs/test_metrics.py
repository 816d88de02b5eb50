"""Metrics: what is sent, that trouble with them ends no job, and that a real Ray exports them under their names."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from specbatch.jobs.running import metrics
from specbatch.jobs.running.metrics import MetricsExporter, MetricsView, Sample, samples
from specbatch.jobs.running.metrics_table import METRICS
from specbatch.jobs.running.run_log import RunLog
from specbatch.jobs.running.tally import RunTally
from specbatch.schemas.messages import MemoryReport, PartReceipt, Progress, RoundBlock, WorkerPoll, WorkerReady
from specbatch.schemas.stats import PartStats, SpecCounters

NAMES = {metric.name: metric for metric in METRICS}
MEMORY = MemoryReport(100, 10, 7, 3, 500)
BEFORE = MetricsView(num_ok=5, errors_by_code={"ROW_TOO_LONG": 1}, num_output_tokens=50, num_parts=2)


def sent(view: MetricsView, former: MetricsView) -> dict[tuple[str, str], float]:
    found = samples(view, former)
    return {(sample.name, ",".join(value for _, value in sample.labels)): sample.value for sample in found}


def test_counters_are_sent_as_what_they_rose_by() -> None:
    now = replace(BEFORE, num_ok=8, errors_by_code={"ROW_TOO_LONG": 1, "ROW_NUMERIC": 2}, num_deaths=1)
    found = {key: value for key, value in sent(now, BEFORE).items() if NAMES[key[0]].kind == "counter"}
    assert found == {
        ("specbatch_rows_total", "ok"): 3,
        ("specbatch_rows_total", "error"): 2,
        ("specbatch_errors_total", "ROW_NUMERIC"): 2,
        ("specbatch_worker_deaths_total", ""): 1,
    }


def test_gauges_are_sent_as_they_are_and_unknown_ones_not_at_all() -> None:
    found = sent(replace(BEFORE, workers={"ready": 2}, mean_k=2.5, memory_bytes={"draft": 9}), BEFORE)
    assert found["specbatch_workers", "ready"] == 2
    assert found["specbatch_workers", "suspect"] == 0, "a state that nobody is in any more falls to 0"
    assert found["specbatch_device_memory_bytes", "draft"] == 9
    assert found["specbatch_k", ""] == 2.5
    assert ("specbatch_expected_speedup", "") not in found


def test_samples_have_the_names_and_labels_of_the_table() -> None:
    view = replace(
        BEFORE, num_draft_tokens=4, num_accepted_tokens=2, num_deaths=1, num_storage_retries=1, mean_k=1.0, speedup=1.2
    )
    found = samples(view, MetricsView())
    assert {sample.name for sample in found} == set(NAMES)
    for sample in found:
        assert tuple(name for name, _ in sample.labels) == NAMES[sample.name].labels
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), "Ray would rename it"


class Run:
    """The documents of a run as far as an exporter looks at them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tally = RunTally()
        self.log = RunLog()
        self.receipts: dict[int, PartReceipt] = {}
        self.in_flight: tuple[int, ...] = ()
        self.stored = SimpleNamespace(
            document=SimpleNamespace(identity=SimpleNamespace(S="0123456789abcdef" * 4)), shards=range(10)
        )
        self.coordinator = SimpleNamespace(
            in_flight=lambda: self.in_flight,
            worker_views=lambda: [SimpleNamespace(state="ready"), SimpleNamespace(state="suspect")],
            num_crashes=1,
            num_preemptions=2,
        )

    def now(self) -> float:
        return self.seconds

    @property
    def parts_done(self) -> int:
        return len(self.receipts)


@pytest.fixture
def run() -> Run:
    return Run()


def ready(worker: int) -> WorkerReady:
    return WorkerReady(worker, "here", 1, "cpu", "float32", 1, 0.0, MEMORY, ())


def test_a_run_is_seen_through_its_tally_its_coordinator_and_its_parts(run: Run) -> None:
    exporter: Any = MetricsExporter(run)  # type: ignore[arg-type]
    for worker in (1, 2):
        run.tally.add_ready(ready(worker), 0.0)
    block = RoundBlock(4, 2, 2.0, 2.0, 60, 20, draft_length_histogram=(2, 0, 6), num_accepted_draft_tokens=8)
    progress = Progress(num_rows_done=3, num_completion_tokens=80, num_rows_active=5, num_storage_retries=4)
    progress = replace(progress, counters=SpecCounters(num_draft_tokens=12, num_accepted_draft_tokens=8))
    run.tally.add_poll(1, WorkerPoll((), (), (), progress, MEMORY), 1.0)
    run.tally.add_poll(1, WorkerPoll((), (), (block,), progress, MEMORY), 2.0)
    run.tally.add_death(2)
    run.in_flight = (4, 5)
    exporter.view()
    run.seconds, run.in_flight = 9.0, (5, 6)
    stats = PartStats(num_rows=3, num_results=3, num_ok=2, errors_by_code=(("ROW_NUMERIC", 1),))
    run.receipts[4] = PartReceipt(4, "p", 3, 1, "", "", True, stats)
    view = exporter.view()
    assert (view.num_ok, view.errors_by_code, view.num_parts) == (2, {"ROW_NUMERIC": 1}, 1)
    assert (view.num_output_tokens, view.num_draft_tokens, view.num_accepted_tokens) == (80, 12, 8)
    assert (view.num_in_flight, view.num_waiting, view.oldest_seconds) == (2, 7, 9.0)
    assert (view.num_deaths, view.num_storage_retries, view.num_active) == (3, 4, 5)
    assert view.workers == {"ready": 1, "suspect": 1}
    assert view.memory_bytes == {"target": 100, "draft": 10, "target_kv": 7, "draft_kv": 3, "process": 500}
    assert (view.mean_k, view.speedup) == (1.5, 3.0)
    assert exporter.view() == view, "a part is counted once"


def test_a_trouble_with_metrics_ends_the_metrics_and_not_the_job(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def fail(name: str) -> Any:
        calls.append(name)
        raise RuntimeError("no agent at /secret/path")

    monkeypatch.setattr(metrics, "_make_meter", fail)
    exporter = MetricsExporter(run)  # type: ignore[arg-type]
    exporter.tick()
    run.seconds = 100.0
    exporter.tick()
    exporter.send()
    assert len(calls) == 1
    assert [note.message for note in run.log.notes] == ["Ray takes no metrics (RuntimeError); the run goes on without"]


def test_metrics_are_sent_every_two_seconds_at_most(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[Sample] = []
    monkeypatch.setattr(MetricsExporter, "_record", lambda self, sample: recorded.append(sample))
    exporter = MetricsExporter(run)  # type: ignore[arg-type]
    counts = []
    for run.seconds in (0.0, 0.5, 1.9, 2.1, 2.2):
        exporter.tick()
        counts.append(sum(sample.name == "specbatch_shards_waiting" for sample in recorded))
    assert counts == [1, 1, 1, 2, 2]


# ---- a real Ray ------------------------------------------------------------------------------------

HEAD = """
import sys
from ray.cluster_utils import Cluster

head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}
head["metrics_export_port"] = int(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={**head, "temp_dir": sys.argv[2]})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
DEADLINE_SECONDS = 400.0


def free_port() -> int:
    """One that is bound seconds later: below those that the system gives to whoever asks for any."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
            return int(probe.getsockname()[1])


@pytest.fixture
def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPECBATCH_", "RAY_"))}
    return {**kept, "RAY_metrics_report_interval_ms": "1000", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def head(environment: dict[str, str]) -> Iterator[tuple[str, int]]:
    """A Ray of an operator, which exports metrics: its address and that port."""
    folder = tempfile.mkdtemp(prefix="sbm", dir="/tmp")  # Ray refuses long names, and pytest's are long
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD, str(port), folder],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), port
    finally:
        process.communicate("", timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def scrape(port: int) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Our samples by name, then by labels of ours."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
            text = reply.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return {}
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_specbatch_"):
                metric = NAMES[sample.name.removeprefix("ray_")]
                labels = tuple((name, sample.labels[name]) for name in metric.all_labels)
                found.setdefault(sample.name, {})[labels] = sample.value
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_a_real_ray_exports_what_the_manifest_says(
    head: tuple[str, int], environment: dict[str, str], tmp_path: Path
) -> None:
    address, port = head
    texts = [f"def f{i}(x):\n    # Return {i} of x.\n" for i in range(11)] + [""]
    pq.write_table(pa.table({"prompt": texts}), tmp_path / "in.parquet")
    output = tmp_path / "out"
    command = [str(Path(sys.executable).parent / "specbatch"), "submit", str(tmp_path / "in.parquet")]
    command += ["--output", str(output), "--address", address, "--workers", "1", "--shard-rows", "4"]
    command += ["--max-new-tokens", "48", "--row-errors-ok", "--format", "quiet"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    seen: dict[str, Any] = {}
    deadline = time.monotonic() + DEADLINE_SECONDS
    while process.poll() is None:
        assert time.monotonic() < deadline, "it took too long"
        seen |= scrape(port)
        time.sleep(0.3)
    assert process.returncode == 0, process.communicate()
    manifest = json.loads((output / "manifest.json").read_bytes())
    job, commit = ("job", manifest["identity"]["S"][:12]), manifest["commit"]
    expected = {
        ("ray_specbatch_rows_total", (job, ("outcome", "ok"))): commit["counts"]["ok"],
        ("ray_specbatch_rows_total", (job, ("outcome", "error"))): commit["counts"]["errors"],
        ("ray_specbatch_errors_total", (job, ("code", "ROW_PROMPT_EMPTY"))): 1,
        ("ray_specbatch_parts_total", (job,)): len(commit["parts"]),
        ("ray_specbatch_output_tokens_total", (job,)): commit["tokens"]["completion"],
        ("ray_specbatch_draft_tokens_total", (job,)): commit["tokens"]["draft"],
        ("ray_specbatch_accepted_tokens_total", (job,)): commit["tokens"]["accepted"],
    }
    found: dict[Any, float | None] = {}
    while time.monotonic() < deadline and found != expected:
        seen |= scrape(port)
        found = {(name, labels): seen.get(name, {}).get(labels) for name, labels in expected}
        time.sleep(0.3)
    assert found == expected
    # Nobody died and no store was asked twice; whether plain rounds were drawn is a matter of luck.
    absent = {"specbatch_worker_deaths_total", "specbatch_storage_retries_total", "specbatch_expected_speedup"}
    gauges = {metric.exported_name for metric in METRICS if metric.kind == "gauge" and metric.name not in absent}
    assert gauges <= set(seen)
    assert all(labels[0] == job for name in seen for labels in seen[name]), "the job is named by its identity alone"
