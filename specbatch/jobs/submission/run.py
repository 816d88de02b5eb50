"""A job through Ray Jobs from the first check to its end, for whoever calls it from Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from specbatch.jobs.display.progress import ProgressView
from specbatch.jobs.planning.prepare import prepare
from specbatch.jobs.running.job import JobOutcome
from specbatch.jobs.spec.address import check_address, is_jobs_endpoint
from specbatch.jobs.spec.settings import Settings
from specbatch.jobs.submission.client import JobsClient
from specbatch.jobs.submission.follow import wait_for_outcome
from specbatch.jobs.submission.submit import submit_job
from specbatch.schemas.errors import ErrorCode, SpecbatchError


def with_device(settings: Settings) -> Settings:
    """Settings for Ray Jobs with ``--device auto`` settled by what their cluster has, whatever this machine has.

    Raises:
        SpecbatchError: what ``JobsClient`` raises.
    """
    execution = settings.spec.execution
    if execution.address is None or execution.device != "auto" or not is_jobs_endpoint(execution.address):
        return settings
    device = "cuda" if JobsClient(check_address(execution.address)).has_gpus() else "cpu"
    spec = settings.spec.model_copy(update={"execution": execution.model_copy(update={"device": device})})
    return replace(settings, spec=spec, origins={**settings.origins, "execution.device": "cluster"})


def run_through_jobs(settings: Settings, view: ProgressView, say: Callable[[str], None]) -> JobOutcome:
    """Run a job through Ray Jobs and wait for its end.

    Raises:
        SpecbatchError: why it was refused or failed; JOB_CONFIG, it shall not be waited for, and there would be no
            outcome to return.
        Detached: SIGINT or SIGTERM has come; the job goes on.
    """
    if not settings.spec.execution.wait:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG, "wait=False has no outcome to return; use specbatch submit --no-wait"
        )
    prepared = prepare(with_device(settings))
    found = submit_job(prepared, say)
    if isinstance(found, JobOutcome):
        return found
    submitted, client = found
    say(f"{submitted.record.submission_id} is with Ray Jobs at {submitted.record.address}")
    return wait_for_outcome(submitted, client, prepared, view, say)
