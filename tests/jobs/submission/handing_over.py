"""What the tests of this folder share: a job handed over to the server of the test."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from specbatch.jobs.planning.prepare import PreparedJob
from specbatch.jobs.running.job import JobOutcome
from specbatch.jobs.submission.client import JobsClient
from specbatch.jobs.submission.submit import Submitted, submit_job

SPECBATCH = str(Path(sys.executable).parent / "specbatch")


def hand_over(prepared: PreparedJob, said: list[str] | None = None, **settings: Any) -> Submitted:
    client = JobsClient(str(prepared.spec.execution.address), sleep=lambda seconds: None)
    found = submit_job(prepared, (said if said is not None else []).append, client=client, **settings)
    assert not isinstance(found, JobOutcome)
    return found[0]
