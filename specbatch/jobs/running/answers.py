"""Waiting for what workers answer: in the run, and at its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from specbatch.jobs.running.processes import WorkerProcess
from specbatch.schemas.messages import WorkerPoll

_STOP_SECONDS = 5.0


def wait_for_answers(calls: Collection[Any], timeout_seconds: float) -> list[Any]:
    """Wait until some call has ended, but no longer than the timeout; all of those that have."""
    import ray

    if not calls:
        time.sleep(timeout_seconds)
        return []
    finished, others = ray.wait(list(calls), num_returns=1, timeout=timeout_seconds)
    if finished and others:
        finished += ray.wait(others, num_returns=len(others), timeout=0)[0]
    return list(finished)


def last_polls(workers: Sequence[WorkerProcess]) -> Iterator[tuple[WorkerProcess, WorkerPoll]]:
    """The totals of the end, of the workers that tell them in time."""
    import ray

    calls = {worker.last_question(): worker for worker in workers}
    for call in _wait_for_all(calls):
        with contextlib.suppress(ray.exceptions.RayError):  # dead after its work: only its last numbers are lost
            poll = calls[call].take_news(ray.get(call))
            if poll is not None:
                yield calls[call], poll


def stop_workers(workers: Sequence[WorkerProcess]) -> list[WorkerProcess]:
    """Tell workers to end; those that did in time."""
    calls = {worker.actor.stop.remote(): worker for worker in workers}
    return [calls[call] for call in _wait_for_all(calls)]


def _wait_for_all(calls: Collection[Any]) -> list[Any]:
    import ray

    if not calls:
        return []
    finished, _ = ray.wait(list(calls), num_returns=len(calls), timeout=_STOP_SECONDS)
    return list(finished)
