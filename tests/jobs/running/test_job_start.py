"""A run that is still starting lives: it renews its lease, and notices where another run has taken it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stored_output import begin, write_parts

from specbatch.jobs.coordinator.events import Cancelled
from specbatch.jobs.output.cancel import request_cancel
from specbatch.jobs.output.lease import LEASE_KEY, RENEW_SECONDS, acquire, read_lease
from specbatch.jobs.planning.prepare import prepare
from specbatch.jobs.running import cluster, job_run
from specbatch.jobs.running.cluster_view import ClusterView
from specbatch.jobs.running.job_run import JobRun
from specbatch.jobs.running.need import Node, WorkerNeed
from specbatch.jobs.running.node_gate import OPEN_SECONDS, NodeGate
from specbatch.jobs.spec.settings import flag_layer, resolve
from specbatch.jobs.upkeep.resume import StoredOutput
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.run import ProgressDocument
from specbatch.storage.local import LocalStore

LAST_EPOCH = 3


class Start:
    """A run of a job whose nodes never answer, under a clock that only ``pass_seconds`` moves.

    Attributes:
        renewed_at: seconds of each renewal that was seen.
        taken_at: when another run takes the lease.
        is_open: whether the nodes were waited for to the end.
    """

    def __init__(self, output: StoredOutput, folder: Path) -> None:
        self.output, self.seconds, self.taken_at, self.is_open = output, 0.0, float("inf"), False
        self.received = None
        acquired = acquire(output.store)
        assert acquired.renew(LAST_EPOCH)
        acquired.release()
        self.lease = acquire(output.store)
        self.renewed_at = [0.0]
        self._renewals = 0
        options = {"output": output.uri, "seed": 7, "shard_rows": 5, "device": "cpu"}
        prepared = prepare(resolve([flag_layer(options, [str(folder / "prompts.parquet")])]))
        self.run = JobRun(
            prepared, output.ledger, output.stored, self.lease, self, self, lambda line: None, started=0.0
        )

    def pass_seconds(self, seconds: float) -> None:
        self.seconds += seconds
        found = read_lease(self.output.store)
        assert found is not None
        if found.renewals != self._renewals:
            self._renewals = found.renewals
            self.renewed_at.append(self.seconds)
        if self.seconds >= self.taken_at and found.token == self.lease.token:
            taken = replace(found, token="theirs", host="elsewhere")
            self.output.store.replace(LEASE_KEY, json.dumps(asdict(taken)).encode())

    # ---- what a run asks of the signals and of its view ----

    sleep = pass_seconds

    def arm(self) -> None:
        return None

    def check(self) -> None:
        return None

    def update(self, document: ProgressDocument) -> None:
        return None

    def close(self) -> None:
        return None


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    output = begin(tmp_path)
    write_parts(output, shards={0, 1, 2})
    start = Start(output, tmp_path)

    @contextmanager
    def open_cluster(*arguments: Any) -> Iterator[Any]:
        view = ClusterView((Node("head", 0, 0), Node("a", 4, 0)))
        yield SimpleNamespace(view=lambda: view, check=lambda: None, logs=tmp_path)

    @contextmanager
    def admit_nodes(prepared: Any, look: Any, need: WorkerNeed, say: Any) -> Iterator[NodeGate]:
        yield NodeGate(need, (), look, say, ask=lambda node, paths: node, collect=lambda calls: {})

    def no_runner(*arguments: Any, **options: Any) -> None:
        start.is_open = True
        raise SpecbatchError(ErrorCode.JOB_NO_CAPACITY, "this is all that a test wants")

    monkeypatch.setattr(cluster, "open_cluster", open_cluster)
    monkeypatch.setattr(job_run, "admit_nodes", admit_nodes)
    monkeypatch.setattr(job_run, "Runner", no_runner)
    monkeypatch.setattr(job_run.time, "monotonic", lambda: start.seconds)
    return start


def ended(start: Start) -> SpecbatchError:
    with pytest.raises(SpecbatchError) as caught:
        start.run.run()
    return caught.value


def longest_silence(start: Start) -> float:
    moments = [*start.renewed_at, start.seconds]
    return max(later - earlier for earlier, later in pairwise(moments))


def test_the_lease_is_renewed_while_nodes_are_waited_for(start: Start) -> None:
    assert ended(start).code is ErrorCode.JOB_NO_CAPACITY
    assert start.is_open
    assert start.seconds >= OPEN_SECONDS
    assert longest_silence(start) < RENEW_SECONDS + 1
    found = read_lease(start.output.store)
    assert found is not None
    assert found.epoch == start.output.ledger.epochs()[-1], "who cancels it now finds the epoch in the lease"


def test_a_run_that_is_taken_over_while_nodes_are_waited_for_ends(start: Start) -> None:
    start.taken_at = 20.0
    error = ended(start)
    assert error.code is ErrorCode.JOB_HELD
    assert "while this one was starting" in error.message
    assert start.seconds < start.taken_at + RENEW_SECONDS + 1
    assert not start.is_open
    assert [record.outcome for record in start.output.ledger.read_runs()] == ["failed"]


def test_a_run_that_is_asked_to_stop_while_it_has_no_epoch_stops(start: Start) -> None:
    assert request_cancel(start.output.store).state == "asked"
    ended(start)
    assert start.output.ledger.epochs() == [1], "the request names another epoch, or none"
    assert list(start.run._outside()) == [Cancelled()]


@pytest.fixture
def slow_footers(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = LocalStore.open

    def open_slowly(store: LocalStore, key: str) -> Any:
        if key.startswith("data/"):
            start.pass_seconds(RENEW_SECONDS)
        return real(store, key)

    monkeypatch.setattr(LocalStore, "open", open_slowly)


@pytest.mark.usefixtures("slow_footers")
def test_the_lease_is_renewed_while_footers_are_read(start: Start) -> None:
    epochs: list[int] = []
    real = start.lease.renew

    def renew(epoch: int | None = None) -> bool:
        done = real(epoch)
        found = read_lease(start.output.store)
        assert found is not None
        epochs.append(found.epoch)
        return done

    start.lease.renew = renew
    ended(start)
    assert epochs[:4] == [LAST_EPOCH, LAST_EPOCH, LAST_EPOCH, 1], "until it has an epoch the one before stays there"


@pytest.mark.usefixtures("slow_footers")
def test_a_run_that_is_taken_over_while_footers_are_read_takes_no_epoch(start: Start) -> None:
    start.taken_at = 2 * RENEW_SECONDS
    assert ended(start).code is ErrorCode.JOB_HELD
    assert start.output.ledger.epochs() == []


def test_a_run_that_was_taken_over_before_it_had_its_epoch_starts_no_ray(start: Start) -> None:
    start.taken_at = 0.0
    start.pass_seconds(0.0)
    assert ended(start).code is ErrorCode.JOB_HELD
    assert not start.is_open
    assert start.seconds == 0.0
