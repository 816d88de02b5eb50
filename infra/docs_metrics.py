"""``docs/reference/metrics.md``, from the table of metrics."""

from __future__ import annotations

from specbatch.jobs.running.metrics_table import JOB_LABEL, MEMORY_KINDS, METRICS, WORKER_STATES

_BEGIN = f"""\
# Metrics

What a run exports through Ray, as Prometheus sees it. Every metric has the label `{JOB_LABEL}`, the first twelve digits
of the job's identity S; Ray adds labels of its own (node, session, worker). Counters begin at 0 with each run and count
that run alone; one that never rose is not there. [Metrics and logs](../observability.md) says what to look at.

| name | kind | unit | labels | what it says |
|---|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    lines = [_BEGIN]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
        lines.append(f"| `{metric.exported_name}` | {metric.kind} | {metric.unit} | {labels} | {metric.help} |\n")
    states, kinds = (", ".join(f"`{value}`" for value in values) for values in (WORKER_STATES, MEMORY_KINDS))
    lines.append(f"\nValues of `state`: {states}. Values of `kind`: {kinds}; `process` is memory of the host.\n")
    return "".join(lines)
