"""Whether a night kept its pace: pauses, a slow-down, a draft that lost touch, a slow worker, much waiting. Pure."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.reports.model import Finding, Table
from specbatch.jobs.reports.workers import judge_workers
from specbatch.schemas.manifest import Manifest, TimelineBucket

MUCH_IDLE = 0.2
"""Share of the workers' time spent waiting from which it is said."""
SLOWED_TO = 0.7
"""Throughput of the last third over that of the first, below which the night slowed down."""
STALLED_BELOW = 0.1
"""A bucket with less than this share of the usual throughput stands still."""
MIN_STALL_SHARE = 0.02
"""Share of the night that must have stood still to be said."""
ACCEPTANCE_FELL_TO = 0.75
"""Acceptance of the last third over that of the first, below which it collapsed."""
_MIN_BUCKETS = 12
_PACE_STEPS = 12


def judge_pace(manifest: Manifest) -> list[Finding]:
    """What is to be said of the pace."""
    timeline = manifest.observed.timeline
    findings = []
    stalled_seconds, stalled_at = find_stall(timeline)
    if stalled_seconds:
        findings.append(
            Finding(
                "warning",
                f"Nothing was decoded for {fmt.duration(stalled_seconds)}",
                f"the longest pause began {fmt.clock(stalled_at)} after the start",
                "look at the events of that time below",
            )
        )
    findings += [change for change in (_slowdown(timeline), _collapse(timeline)) if change is not None]
    findings += judge_workers(manifest)
    idle = manifest.observed.throughput.idle_share
    if idle >= MUCH_IDLE:
        findings.append(
            Finding(
                "warning",
                f"Workers waited {fmt.percent(idle)} of the time",
                "there was too little work for all of them, or it came too late",
                "fewer `--workers`, or more shards (`--shard-rows`, new output)",
            )
        )
    return findings


def describe_pace(manifest: Manifest) -> Table | None:
    """Throughput, acceptance and workers in at most twelve steps; None where there are too few buckets."""
    timeline = manifest.observed.timeline
    if len(timeline) < 2:
        return None
    size = -(-len(timeline) // _PACE_STEPS)
    steps = [timeline[start : start + size] for start in range(0, len(timeline), size)]
    speeds = [statistics.fmean(bucket["tokens_per_second"] for bucket in step) for step in steps]
    most = max(speeds) or 1.0
    rows = tuple(
        (fmt.clock(step[-1]["seconds"]), fmt.rate(speed), _mean_acceptance(step), _workers(step))
        for step, speed in zip(steps, speeds, strict=True)
    )
    bars = ((1, tuple(speed / most for speed in speeds)),)
    return Table("Pace", ("until", "tokens/s", "accepted", "workers"), rows, bars)


def _mean_acceptance(step: Sequence[TimelineBucket]) -> str:
    known = [value for bucket in step if (value := bucket.get("acceptance")) is not None]
    return fmt.percent(statistics.fmean(known) if known else None)


def _workers(step: Sequence[TimelineBucket]) -> str:
    known = [bucket.get("workers") for bucket in step]
    counts = [value for value in known if value is not None]
    return str(max(counts)) if counts else "-"


def find_stall(timeline: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Seconds that stood still in all, and when the longest pause began; (0, 0) where that is not worth saying.

    What stands still at the end is the last rows of the job, and before the first token models load.
    """
    if len(timeline) < _MIN_BUCKETS:
        return 0.0, 0.0
    width = timeline[0]["seconds"]
    speeds = [bucket["tokens_per_second"] for bucket in timeline]
    floor = STALLED_BELOW * statistics.median(speeds)
    alive = [index for index, speed in enumerate(speeds) if speed > floor]
    if not alive:
        return 0.0, 0.0
    pauses = [(after - before - 1, before + 1) for before, after in itertools.pairwise(alive)]
    total = sum(length for length, _ in pauses)
    if total < max(2, MIN_STALL_SHARE * len(timeline)):
        return 0.0, 0.0
    _, first = max(pauses, key=lambda pause: (pause[0], -pause[1]))
    return total * width, first * width


def _slowdown(timeline: Sequence[Mapping[str, Any]]) -> Finding | None:
    """Throughput of the last third, without the very end, against the first; with what else changed meanwhile."""
    body = timeline[: len(timeline) * 95 // 100]
    third = len(body) // 3
    if third < _MIN_BUCKETS // 3:
        return None
    first, last = body[:third], body[-third:]
    before, after = _median(first, "tokens_per_second"), _median(last, "tokens_per_second")
    if not before or after is None or after >= SLOWED_TO * before:
        return None
    changes = []
    for key, words, show in (
        ("workers", "workers", lambda value: f"{value:.0f}"),
        ("acceptance", "acceptance", fmt.percent),
    ):
        old, new = _median(first, key), _median(last, key)
        if old is not None and new is not None and new < 0.9 * old:
            changes.append(f"{words} {show(old)} to {show(new)}")
    return Finding(
        "warning",
        f"It slowed down to {fmt.percent(after / before)} of its first pace",
        f"{fmt.rate(before)} to {fmt.rate(after)} tokens/s{'; ' if changes else ''}{', '.join(changes)}",
        "rows that come last may be longer" if not changes else "",
    )


def _collapse(timeline: Sequence[Mapping[str, Any]]) -> Finding | None:
    """Acceptance of the last third against the first."""
    third = len(timeline) // 3
    if third < _MIN_BUCKETS // 3:
        return None
    before, after = _median(timeline[:third], "acceptance"), _median(timeline[-third:], "acceptance")
    if not before or after is None or after >= ACCEPTANCE_FELL_TO * before:
        return None
    return Finding(
        "warning",
        f"Acceptance fell from {fmt.percent(before)} to {fmt.percent(after)}",
        "the draft knows the prompts of the first third better than those of the last: the data changed in between",
        "`specbatch calibrate` on rows of the end says whether the draft pays there",
    )


def _median(buckets: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [bucket[key] for bucket in buckets if bucket.get(key) is not None]
    return statistics.median(values) if values else None
