"""Whether workers, machines and the store were what they should be: one slow worker, another machine, retries. Pure."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.reports.facts import number
from specbatch.jobs.reports.model import Finding
from specbatch.schemas.manifest import Manifest

SLOW_WORKER = 0.6
"""Speed of a worker over the median of the others on devices of its kind, below which it is named."""
SLOW_STORE = 0.2
"""Share of the workers' time spent on loading rows and writing parts from which the store is named."""
MANY_RETRIES = 10
"""Requests that were made again from which the store is named."""
_MIN_ACTIVE_SECONDS = 60.0
"""What took less than this says nothing of a night."""
_MIN_ACTIVE_SHARE = 0.1
_MAX_NAMED = 3


def judge_workers(manifest: Manifest) -> list[Finding]:
    """What is to be said of workers, machines and the store."""
    return [*_slow(manifest), *_machines(manifest), *_store(manifest)]


def _slow(manifest: Manifest) -> list[Finding]:
    """Workers that were much slower than the others of their kind in the same run, for a good part of the time."""
    groups: dict[tuple[Any, Any], list[dict[str, Any]]] = defaultdict(list)
    everyone = manifest.observed.throughput.per_worker
    longest = max((number(item.get("active_seconds")) for item in everyone), default=0.0)
    for item in everyone:
        if number(item.get("active_seconds")) >= max(_MIN_ACTIVE_SECONDS, _MIN_ACTIVE_SHARE * longest):
            groups[item.get("epoch"), item.get("device")].append(item)
    slow = [found for group in groups.values() for found in _slow_in(group)]
    if not slow:
        return []
    slow.sort(key=lambda found: found[1])
    named = "; ".join(
        f"worker {item.get('epoch', '?')}.{item.get('worker', '?')} on {fmt.clean(item.get('host', '?'), 40)} did "
        f"{fmt.rate(number(item.get('tokens_per_active_second')))} tokens/s, {fmt.percent(share)} of the others"
        for item, share in slow[:_MAX_NAMED]
    )
    more = f"; and {len(slow) - _MAX_NAMED} more" if len(slow) > _MAX_NAMED else ""
    title = "One worker was slow" if len(slow) == 1 else f"{len(slow)} workers were slow"
    return [
        Finding("warning", title, f"{named}{more}", "look at that machine: other load, heat, another kind of device")
    ]


def _slow_in(group: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """Slow ones of a group, each with its speed as a share of the others' median."""
    found = []
    for item in group if len(group) > 1 else ():
        usual = statistics.median(number(o.get("tokens_per_active_second")) for o in group if o is not item)
        speed = number(item.get("tokens_per_active_second"))
        if usual > 0 and speed < SLOW_WORKER * usual:
            found.append((item, speed / usual))
    return found


def _machines(manifest: Manifest) -> list[Finding]:
    """Runs of one job that were on other machines or other devices than the run before."""
    by_run: dict[int, tuple[set[str], set[str]]] = {}
    for item in manifest.observed.throughput.per_worker:
        hosts, devices = by_run.setdefault(int(number(item.get("epoch"))), (set(), set()))
        hosts.add(fmt.clean(item.get("host", "?"), 40))
        devices.add(f"{fmt.clean(item.get('device', '?'), 12)} {fmt.clean(item.get('dtype', '?'), 12)}")
    runs = sorted(by_run)
    findings = []
    for before, after in itertools.pairwise(runs):
        (old_hosts, old_devices), (new_hosts, new_devices) = by_run[before], by_run[after]
        if old_devices != new_devices:
            change = f"{_named(old_devices)} to {_named(new_devices)}"
            detail = f"{change}: speed, cost and, in the last digits, text are those of two kinds of device"
            findings.append(Finding("warning", f"Run {after} was on other devices than run {before}", detail))
        elif old_hosts.isdisjoint(new_hosts):
            detail = f"{_named(old_hosts)} to {_named(new_hosts)}"
            findings.append(Finding("note", f"Run {after} was on another machine than run {before}", detail))
    return findings


def _named(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:_MAX_NAMED]) + (f" and {len(listed) - _MAX_NAMED} more" if len(listed) > 3 else "")


def _store(manifest: Manifest) -> list[Finding]:
    """A store that took much of the time, or had to be asked again and again."""
    seconds, retries = manifest.commit.seconds, manifest.observed.store_retries
    total = sum(seconds.model_dump().values())
    share = (seconds.load + seconds.write) / total if total > 0 else 0.0
    findings = []
    if retries >= MANY_RETRIES:
        findings.append(
            Finding(
                "warning",
                f"The store was asked again {fmt.count(retries)} times",
                "requests failed in passing and were repeated; no result is lost",
                "look at the store and the network: throttling, time-outs",
            )
        )
    if share >= SLOW_STORE and total >= _MIN_ACTIVE_SECONDS:
        findings.append(
            Finding(
                "warning",
                f"Reading rows and writing parts took {fmt.percent(share)} of the device time",
                f"{fmt.duration(seconds.load)} loading, {fmt.duration(seconds.write)} writing",
                "a slow store or disk, or many small parts: a larger `--shard-rows` (new output)",
            )
        )
    return findings
