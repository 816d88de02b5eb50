"""The metrics of a run, sent to the Ray that it runs on: what to send is pure, sending is a thin shell.

Everything comes from what the driver knows anyway. Where Ray does not take metrics, the run goes on without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from specbatch.jobs.running.metrics_table import JOB_LABEL, MEMORY_KINDS, METRICS, WORKER_STATES
from specbatch.jobs.running.run_documents import RunDocuments
from specbatch.jobs.running.run_log import Fact
from specbatch.schemas.log_lines import short_job
from specbatch.schemas.messages import MemoryReport, PartReceipt
from specbatch.storage.retries import num_retries

METRICS_SECONDS = 2.0

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One number that is sent: of a gauge its value, of a counter by how much it rose, always above 0."""

    name: str
    labels: Labels
    value: float


@dataclass(frozen=True, slots=True)
class MetricsView:
    """A run at one moment. Counts are of this run alone and never fall; parts that it found are not among them.

    Attributes:
        workers: how many there are by state.
        memory_bytes: of all living workers, by kind.
        mean_k, speedup: None where nothing is known yet.
    """

    num_ok: int = 0
    errors_by_code: Mapping[str, int] = field(default_factory=dict)
    num_parts: int = 0
    num_output_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_deaths: int = 0
    num_storage_retries: int = 0
    num_in_flight: int = 0
    num_waiting: int = 0
    oldest_seconds: float = 0.0
    workers: Mapping[str, int] = field(default_factory=dict)
    num_active: int = 0
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    mean_k: float | None = None
    speedup: float | None = None


def samples(view: MetricsView, former: MetricsView) -> tuple[Sample, ...]:
    """What is to be sent, given what was known when something was sent last (an empty view at first)."""
    before = _counts(former)
    risen = [(key, count - before.get(key, 0)) for key, count in _counts(view).items()]
    counters = [Sample(*key, value) for key, value in risen if value > 0]
    return (*counters, *_gauges(view))


def _counts(view: MetricsView) -> dict[tuple[str, Labels], int]:
    counts: dict[tuple[str, Labels], int] = {
        ("specbatch_rows_total", (("outcome", "ok"),)): view.num_ok,
        ("specbatch_rows_total", (("outcome", "error"),)): sum(view.errors_by_code.values()),
        ("specbatch_output_tokens_total", ()): view.num_output_tokens,
        ("specbatch_draft_tokens_total", ()): view.num_draft_tokens,
        ("specbatch_accepted_tokens_total", ()): view.num_accepted_tokens,
        ("specbatch_parts_total", ()): view.num_parts,
        ("specbatch_worker_deaths_total", ()): view.num_deaths,
        ("specbatch_storage_retries_total", ()): view.num_storage_retries,
    }
    errors = {("specbatch_errors_total", (("code", code),)): count for code, count in view.errors_by_code.items()}
    return counts | errors


def _gauges(view: MetricsView) -> list[Sample]:
    found = [
        Sample("specbatch_shards_in_flight", (), view.num_in_flight),
        Sample("specbatch_shards_waiting", (), view.num_waiting),
        Sample("specbatch_oldest_shard_age_seconds", (), view.oldest_seconds),
        Sample("specbatch_batch_slots_active", (), view.num_active),
    ]
    found += [Sample("specbatch_workers", (("state", name),), view.workers.get(name, 0)) for name in WORKER_STATES]
    found += [
        Sample("specbatch_device_memory_bytes", (("kind", name),), view.memory_bytes.get(name, 0))
        for name in MEMORY_KINDS
    ]
    known = {"specbatch_k": view.mean_k, "specbatch_expected_speedup": view.speedup}
    return found + [Sample(name, (), value) for name, value in known.items() if value is not None]


class MetricsExporter:
    """Sends the metrics of one run; a trouble with them ends the sending, never the run."""

    def __init__(self, documents: RunDocuments) -> None:
        self._documents = documents
        self._job = short_job(documents.stored.document.identity.S)
        self._former = MetricsView()
        self._meters: dict[str, Any] = {}
        self._due_seconds = 0.0
        self._is_off = False
        self._since: dict[int, float] = {}
        self._retries_before = num_retries()
        self._num_counted = 0
        self._num_ok = 0
        self._errors: dict[str, int] = {}

    def tick(self) -> None:
        """Send, unless that was done a moment ago."""
        if self._documents.now() >= self._due_seconds:
            self._due_seconds = self._documents.now() + METRICS_SECONDS
            self.send()

    def send(self) -> None:
        """Send now; also at the end of a run, while Ray is still there."""
        if self._is_off:
            return
        try:
            view = self.view()
            for sample in samples(view, self._former):
                self._record(sample)
            self._former = view
        except Exception as error:  # whatever Ray raises: metrics are for watching, the job is what counts
            self._is_off = True
            line = f"Ray takes no metrics ({type(error).__name__}); the run goes on without"
            self._documents.log.add(Fact("warning", "metrics_off", line))

    def view(self) -> MetricsView:
        """The run as the driver knows it now."""
        documents, tally, coordinator = self._documents, self._documents.tally, self._documents.coordinator
        self._count(documents.receipts)
        in_flight = coordinator.in_flight() if coordinator is not None else ()
        now = documents.now()
        self._since = {shard: self._since.get(shard, now) for shard in in_flight}
        states: dict[str, int] = {}
        for worker in coordinator.worker_views() if coordinator is not None else ():
            states[worker.state] = states.get(worker.state, 0) + 1
        counters = tally.counters
        return MetricsView(
            num_ok=self._num_ok,
            errors_by_code=dict(self._errors),
            num_parts=self._num_counted,
            num_output_tokens=tally.num_completion_tokens,
            num_draft_tokens=counters.num_draft_tokens,
            num_accepted_tokens=counters.num_accepted_draft_tokens,
            num_deaths=coordinator.num_crashes + coordinator.num_preemptions if coordinator is not None else 0,
            num_storage_retries=num_retries() - self._retries_before + tally.num_storage_retries,
            num_in_flight=len(in_flight),
            num_waiting=max(len(documents.stored.shards) - documents.parts_done - len(in_flight), 0),
            oldest_seconds=max((now - since for since in self._since.values()), default=0.0),
            workers=states,
            num_active=tally.num_rows_active,
            memory_bytes=_sum_memory(tally.memory_reports),
            mean_k=tally.mean_k,
            speedup=tally.speedup_so_far,
        )

    def _count(self, receipts: Mapping[int, PartReceipt]) -> None:
        """Count the receipts that are new: they stay in the order in which they came."""
        for receipt in list(receipts.values())[self._num_counted :]:
            self._num_ok += receipt.stats.num_ok
            for code, count in receipt.stats.errors_by_code:
                self._errors[code] = self._errors.get(code, 0) + count
        self._num_counted = len(receipts)

    def _record(self, sample: Sample) -> None:
        meter = self._meters.get(sample.name)
        if meter is None:
            meter = self._meters[sample.name] = _make_meter(sample.name)
        labels = {JOB_LABEL: self._job, **dict(sample.labels)}
        if hasattr(meter, "inc"):
            meter.inc(sample.value, labels)
        else:
            meter.set(sample.value, labels)


def _make_meter(name: str) -> Any:
    from ray.util.metrics import Counter, Gauge

    metric = next(metric for metric in METRICS if metric.name == name)
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(name, metric.help, metric.all_labels)


def _sum_memory(reports: tuple[MemoryReport, ...]) -> dict[str, int]:
    sums = dict.fromkeys(MEMORY_KINDS, 0)
    for report in reports:
        for name, value in asdict(report).items():
            sums[name.removesuffix("_bytes")] += value
    return sums
