"""An endpoint of Ray Jobs that starts nothing, and a small job for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs_server import JobsServer
from stored_output import write_dataset

from specbatch.jobs.planning.prepare import PreparedJob, prepare
from specbatch.jobs.spec.settings import flag_layer, resolve


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobsServer]:
    for name in list(os.environ):
        if name.startswith(("RAY_", "SPECBATCH_")):
            monkeypatch.delenv(name)
    found = JobsServer()
    yield found
    found.close()


@pytest.fixture
def job(tmp_path: Path, server: JobsServer) -> Callable[..., PreparedJob]:
    dataset = write_dataset(tmp_path)

    def make(**options: Any) -> PreparedJob:
        given = {"output": str(tmp_path / "out"), "address": server.address, "shard_rows": 5, "device": "cpu"}
        return prepare(resolve([flag_layer({**given, **options}, [str(dataset)])]))

    return make
