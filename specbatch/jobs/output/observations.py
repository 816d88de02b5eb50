"""What went on in the runs of a job, apart from numbers of tokens: cost, history, deaths, events. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from specbatch.schemas.manifest import Cost, DraftGivenUp, EventRecord, RunSummary
from specbatch.schemas.run import RunRecord, WorkerRecord

MAX_EVENTS = 200
"""Events that a manifest keeps, the first of all runs; the records of the runs have more."""


def summarize_runs(runs: Sequence[RunRecord]) -> list[RunSummary]:
    """One line of history for each run."""
    return [
        RunSummary(
            epoch=run.epoch,
            started_at=run.started_at,
            ended_at=end_time(run.started_at, run.total_seconds),
            host=run.host,
            outcome=run.outcome,
            wall_seconds=run.wall_seconds,
            total_seconds=run.total_seconds,
            attempts=run.attempts,
            deaths=run.crashes,
            restarts=run.restarts,
            preemptions=run.preemptions,
        )
        for run in runs
    ]


def end_time(started_at: str, total_seconds: float) -> str:
    """ISO 8601 to the second; what is no time is given back as it is."""
    try:
        return (datetime.fromisoformat(started_at) + timedelta(seconds=total_seconds)).isoformat(timespec="seconds")
    except (ValueError, OverflowError):
        return started_at


def first_events(runs: Sequence[RunRecord]) -> list[EventRecord]:
    """What the runs said, in their order, as much as a manifest keeps."""
    events = [
        EventRecord(epoch=run.epoch, at_seconds=seconds, text=text) for run in runs for seconds, text in run.events
    ]
    return events[:MAX_EVENTS]


def measure_cost(runs: Sequence[RunRecord]) -> Cost | None:
    """Hours of the devices, and what they cost where every run with workers had a price; None without workers."""
    working = [run for run in runs if run.workers]
    if not working:
        return None
    hours = [_device_seconds(run) / 3600 for run in working]
    prices = [_price(run) for run in working]
    known = [price for price in prices if price is not None]
    total = sum(h * price for h, price in zip(hours, known, strict=True)) if len(known) == len(prices) else None
    return Cost(device_hours=sum(hours), price_per_device_hour=prices[-1], total=total)


def _device_seconds(run: RunRecord) -> float:
    """Each GPU from the first start to the end of its worker; on CPU each machine for the whole run.

    A worker that takes the place of one that died takes its GPU too, so that a dead one counts as long as it lived.
    One whose target is divided has as many GPUs as ranks.
    """
    num_ranks = int(run.execution.get("tensor_parallel_size", 1))
    on_gpu = [worker for worker in run.workers if worker.device != "cpu"]
    cpu_hosts = {worker.host for worker in run.workers if worker.device == "cpu"}
    return sum(_lifetime(worker) for worker in on_gpu) * num_ranks + run.total_seconds * len(cpu_hosts)


def _lifetime(worker: WorkerRecord) -> float:
    return worker.load_seconds + worker.active_seconds + worker.idle_seconds


def _price(run: RunRecord) -> float | None:
    price = run.execution.get("price_per_device_hour")
    return float(price) if isinstance(price, int | float) else None


def find_draft_given_up(run: RunRecord | None) -> DraftGivenUp | None:
    """Workers of a run that let go of their draft because it did not pay; None where there are none."""
    times = [worker.draft_given_up_seconds for worker in run.workers] if run is not None else []
    known = [seconds for seconds in times if seconds is not None]
    return DraftGivenUp(workers=len(known), at_seconds=min(known)) if known else None
