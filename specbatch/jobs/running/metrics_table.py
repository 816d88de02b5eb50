"""The metrics of a run: the one table from which they are exported, documented, and checked where they are used.

Labels have few values each. ``job``, which every metric has, is the beginning of the job's identity S: never a path,
never a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

JOB_LABEL = "job"
RAY_PREFIX = "ray_"

Kind = Literal["counter", "gauge"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: as it is handed to Ray; those of counters end in ``_total``, which nothing is added to.
        labels: besides ``job``.
        help: what it counts or measures, one sentence.
    """

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    help: str

    @property
    def exported_name(self) -> str:
        """As Prometheus sees it."""
        return RAY_PREFIX + self.name

    @property
    def all_labels(self) -> tuple[str, ...]:
        """``job`` and its own."""
        return (JOB_LABEL, *self.labels)


METRICS: tuple[Metric, ...] = (
    Metric("specbatch_rows_total", "counter", "results", ("outcome",), "Results in parts, by outcome: ok or error."),
    Metric("specbatch_output_tokens_total", "counter", "tokens", (), "Output tokens of finished rows."),
    Metric("specbatch_draft_tokens_total", "counter", "tokens", (), "Tokens that the draft proposed."),
    Metric("specbatch_accepted_tokens_total", "counter", "tokens", (), "Proposed tokens that were committed."),
    Metric("specbatch_errors_total", "counter", "results", ("code",), "Error results in parts, by error code."),
    Metric("specbatch_parts_total", "counter", "parts", (), "Parts that came into being."),
    Metric("specbatch_shards_in_flight", "gauge", "shards", (), "Shards that some worker holds."),
    Metric("specbatch_shards_waiting", "gauge", "shards", (), "Shards without a part that no worker holds."),
    Metric("specbatch_oldest_shard_age_seconds", "gauge", "seconds", (), "For how long the oldest is in flight."),
    Metric("specbatch_workers", "gauge", "workers", ("state",), "Workers, by what they are doing."),
    Metric("specbatch_worker_deaths_total", "counter", "workers", (), "Workers that crashed, hung or were taken away."),
    Metric("specbatch_k", "gauge", "tokens", (), "Mean K over the last 30 seconds; plain turns count as 0."),
    Metric("specbatch_batch_slots_active", "gauge", "slots", (), "Sequences in flight, all workers together."),
    Metric("specbatch_device_memory_bytes", "gauge", "bytes", ("kind",), "Memory of all workers, by what it holds."),
    Metric("specbatch_storage_retries_total", "counter", "requests", (), "Requests to a store that were made again."),
    Metric(
        "specbatch_expected_speedup",
        "gauge",
        "ratio",
        (),
        "Speed of rounds with drafts over that of plain rounds, as measured in this run so far.",
    ),
)

WORKER_STATES = ("starting", "ready", "suspect", "draining", "quarantined", "ending")
"""Values of ``state``; each is always exported, so that none stays at an old value."""
MEMORY_KINDS = ("target", "draft", "target_kv", "draft_kv", "process")
"""Values of ``kind``. ``process`` is the host's memory of the whole process, the others are on the device (on CPU a
part of it)."""
