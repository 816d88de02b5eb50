"""Whether a night kept its pace: pauses, a slow-down with what else changed meanwhile, workers that waited. Pure."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.reports.model import Finding
from specbatch.schemas.manifest import Manifest

MUCH_IDLE = 0.2
"""Share of the workers' time spent waiting from which it is said."""
SLOWED_TO = 0.7
"""Throughput of the last third over that of the first, below which the night slowed down."""
STALLED_BELOW = 0.1
"""A bucket with less than this share of the usual throughput stands still."""
MIN_STALL_SHARE = 0.02
"""Share of the night that must have stood still to be said."""
_MIN_BUCKETS = 12


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
    change = _slowdown(timeline)
    if change is not None:
        findings.append(change)
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


def _median(buckets: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [bucket[key] for bucket in buckets if bucket.get(key) is not None]
    return statistics.median(values) if values else None
