"""Sections of the report on what surrounds the decoding: runs, workers, input, parts, machine, identity. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.reports import facts
from specbatch.jobs.reports.command import reproduce
from specbatch.jobs.reports.model import Fact, Section, Table
from specbatch.jobs.reports.verdict import explain
from specbatch.schemas.manifest import Manifest

MAX_WORKER_ROWS = 32
MAX_EVENT_ROWS = 60
MAX_FILE_ROWS = 50


def describe_runs(manifest: Manifest) -> Section:
    """Runs, losses of workers, and what was said meanwhile."""
    observed = manifest.observed
    found = [
        Fact("runs", fmt.count(observed.runs)),
        Fact("attempts", f"{fmt.plural(observed.attempts, 'shard')} handed out"),
        Fact(
            "workers lost",
            f"{fmt.count(max(observed.deaths, observed.restarts))} died, {fmt.count(observed.restarts)} started again, "
            f"{fmt.count(observed.preemptions)} taken away",
        ),
    ]
    if observed.quarantined:
        found.append(Fact("out of service", ", ".join(fmt.clean(place, 80) for place in observed.quarantined)))
    tables = []
    if observed.history:
        rows = tuple(
            (
                str(run.epoch),
                fmt.iso(run.started_at),
                fmt.clock(run.total_seconds),
                fmt.clean(run.outcome, 20),
                fmt.count(run.deaths),
                fmt.count(run.preemptions),
            )
            for run in observed.history
        )
        header = ("run", "started", "took", "outcome", "deaths", "taken away")
        tables.append(Table("Runs", header, rows, texts=frozenset({0, 1, 3})))
    if observed.events:
        shown = observed.events[:MAX_EVENT_ROWS]
        events = tuple((str(item.epoch), fmt.clock(item.at_seconds), fmt.clean(item.text)[:300]) for item in shown)
        more = len(observed.events) - len(shown)
        title = "Events" if not more else f"Events (the first {len(shown)}; {more} more in the manifest)"
        tables.append(Table(title, ("run", "after", "what"), events, texts=frozenset({0, 2})))
    return Section("runs", "Runs and events", tuple(found), tuple(tables))


def describe_workers(manifest: Manifest) -> Section:
    """How fast each worker was, and what it held in memory."""
    everyone = manifest.observed.throughput.per_worker
    rows = tuple(
        (
            f"{item.get('epoch', '?')}.{item.get('worker', '?')}",
            f"{fmt.clean(item.get('host', '?'), 24)}/{fmt.clean(item.get('device', '?'), 12)}",
            fmt.count(int(facts.number(item.get("rows")))),
            fmt.rate(facts.number(item.get("tokens_per_active_second"))),
            "-" if item.get("acceptance_rate") is None else fmt.percent(facts.number(item["acceptance_rate"])),
            fmt.percent(_idle_share(item)),
        )
        for item in _slowest(everyone)
    )
    header = ("worker", "place", "rows", "tokens/s", "accepted", "idle")
    title = "Workers (run.worker)"
    if len(everyone) > MAX_WORKER_ROWS:
        title = f"Workers (run.worker): the slowest {MAX_WORKER_ROWS} of {len(everyone)}"
    by_place: dict[str, list[float]] = defaultdict(list)
    for item in everyone:
        by_place[str(item.get("device", "?"))].append(facts.number(item.get("tokens_per_active_second")))
    found = [
        Fact(
            f"tokens/s on {fmt.clean(device, 12)}",
            f"median of workers {fmt.rate(statistics.median(speeds))}, "
            f"{fmt.rate(min(speeds))} to {fmt.rate(max(speeds))}",
        )
        for device, speeds in sorted(by_place.items())
        if len(speeds) > 1
    ]
    tables = [Table(title, header, rows, texts=frozenset({0, 1}))] if rows else []
    if manifest.observed.memory:
        tables.append(_memory(manifest))
    return Section("workers", "Workers", tuple(found), tuple(tables))


def _slowest(everyone: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(everyone) <= MAX_WORKER_ROWS:
        return list(everyone)
    ordered = sorted(everyone, key=lambda item: facts.number(item.get("tokens_per_active_second")))
    return ordered[:MAX_WORKER_ROWS]


def _idle_share(item: dict[str, Any]) -> float | None:
    idle, active = facts.number(item.get("idle_seconds")), facts.number(item.get("active_seconds"))
    return idle / (idle + active) if idle + active > 0 else None


def _memory(manifest: Manifest) -> Table:
    keys = ("target_bytes", "draft_bytes", "target_kv_bytes", "draft_kv_bytes", "process_bytes")
    shown = manifest.observed.memory[:MAX_WORKER_ROWS]
    rows = tuple(
        (
            fmt.clean(item.get("worker", "?"), 8),
            fmt.clean(item.get("device", "?"), 8),
            *(fmt.size(facts.number(item.get(key))) for key in keys),
        )
        for item in shown
    )
    more = len(manifest.observed.memory) - len(shown)
    title = "Memory per worker" if not more else f"Memory per worker (the first {len(shown)}; {more} more)"
    header = ("worker", "device", "target", "draft", "target KV", "draft KV", "process")
    return Table(title, header, rows, texts=frozenset({0, 1}))


def describe_inputs(manifest: Manifest) -> Section:
    """The pinned input files, and those left out."""
    inputs = manifest.identity.fields.get("inputs")
    found: list[Fact] = []
    if isinstance(inputs, list) and inputs:
        sizes = [facts.number(item[1]) for item in inputs if isinstance(item, list) and len(item) == 4]
        found.append(Fact("files", f"{fmt.count(len(inputs))}, {fmt.size(sum(sizes))}"))
    skipped = facts.skipped_files(manifest)
    rows = tuple((fmt.clean(name, 80), fmt.clean(code, 40), explain(code)[0]) for name, code in skipped[:MAX_FILE_ROWS])
    more = f" (the first {MAX_FILE_ROWS} of {len(skipped)})" if len(skipped) > MAX_FILE_ROWS else ""
    table = Table(f"Input files left out{more}", ("file", "code", "why"), rows, texts=frozenset({0, 1, 2}))
    return Section("inputs", "Input", tuple(found), (table,) if rows else ())


def describe_parts(output: str, manifest: Manifest, *, is_complete: bool = True) -> Section:
    """Where the results lie and how large they are."""
    root, parts = fmt.clean(output).rstrip("/"), manifest.commit.parts
    sizes = [part.bytes for part in parts]
    found = [Fact("data", f"{root}/data/*.parquet  ({fmt.plural(len(parts), 'part')})")]
    if sizes:
        median = statistics.median(sizes)
        each = f"{fmt.size(min(sizes))} to {fmt.size(max(sizes))} each, median {fmt.size(median)}"
        found.append(Fact("sizes", f"{fmt.size(sum(sizes))} in all; {each}"))
    found.append(Fact("manifest", f"{root}/manifest.json" if is_complete else "not written yet"))
    return Section("parts", "Files", tuple(found))


def describe_machine(manifest: Manifest) -> Section:
    """Models, hardware, execution, versions."""
    observed, draft = manifest.observed, manifest.models.draft
    return Section(
        "machine",
        "Models and machine",
        (
            Fact("target", facts.describe_model(manifest.models.target)),
            Fact("draft", "none" if draft is None else facts.describe_model(draft)),
            Fact("hardware", facts.pairs(observed.hardware)),
            Fact("execution", facts.pairs(observed.execution)),
            Fact("versions", facts.pairs(observed.versions)),
        ),
    )


def describe_identity(manifest: Manifest) -> Section:
    """What makes this job the job it is."""
    model = manifest.identity.fields.get("model")
    found = [
        Fact("job", fmt.clean(manifest.job_id, 80)),
        Fact("S (identity)", fmt.clean(manifest.identity.S, 80)),
        Fact("P (plan)", fmt.clean(manifest.identity.P, 80)),
    ]
    if isinstance(model, dict):
        found.append(Fact("tokenizer", fmt.clean(model.get("tokenizer", "?"), 80)))
        found.append(
            Fact(
                "arithmetic", f"{fmt.clean(model.get('dtype', '?'), 20)}, {fmt.clean(model.get('path', '?'), 20)} path"
            )
        )
    found += [
        Fact(f"{role} {fmt.clean(name, 40)}", fmt.clean(digest, 80))
        for role, record in (("target", manifest.models.target), ("draft", manifest.models.draft))
        if record is not None
        for name, digest in sorted(record.files.items())
    ]
    return Section("identity", "Identity (SHA-256)", tuple(found))


def describe_reproduce(output: str, manifest: Manifest) -> Section:
    """The command that would run it again."""
    command, note = reproduce(manifest, output)
    found = [Fact("command", command)] if command else []
    return Section("reproduce", "Run it again", (*found, *([Fact("note", note)] if note else [])))
