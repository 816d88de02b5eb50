"""Stay with a job that Ray Jobs have until it ends: its progress from the output, its end from both."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from specbatch.jobs.display.progress import ProgressView
from specbatch.jobs.output.submissions import last_epoch, read_end
from specbatch.jobs.planning.prepare import PreparedJob
from specbatch.jobs.running.job import JobOutcome
from specbatch.jobs.submission.client import JobsClient, JobState
from specbatch.jobs.submission.submit import Submitted
from specbatch.jobs.upkeep.resume import open_output
from specbatch.jobs.watching.status import read_progress
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError
from specbatch.storage.store import Store, open_store

LOOK_SECONDS = 2.0
SILENT_SECONDS = 120.0
"""An endpoint, or a store, that does not answer for so long is given up; the job may go on for all that."""
_LAST_WORDS_SECONDS = 10.0
_EXITS = frozenset(int(code) for code in ExitCode)


class Detached(BaseException):
    """A signal: the user does not want to wait any longer. The job goes on."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True, slots=True)
class Ending:
    """How a driver ended.

    Attributes:
        code, message: of the error that ended it; None and empty where there was none.
    """

    exit_code: int
    code: ErrorCode | None = None
    message: str = ""


def wait_for_outcome(
    submitted: Submitted, client: JobsClient, prepared: PreparedJob, view: ProgressView, say: Callable[[str], None]
) -> JobOutcome:
    """Follow a job to its end and tell how it ended, as ``run_job`` would have here.

    Raises:
        Detached: SIGINT or SIGTERM has come.
        SpecbatchError: why the job failed; that endpoint or store have been silent for too long.
    """
    store = open_store(prepared.output, single_writer=prepared.spec.execution.single_writer)
    try:
        ending = follow(submitted, client, store, view, say)
    finally:
        view.close()
    if ending.code is not None:
        raise SpecbatchError(ending.code, ending.message)
    opened = open_output(prepared.output)
    manifest, num_parts = opened.ledger.find_manifest(), len(opened.stored.shards)
    parts_done = num_parts if manifest is not None else len(opened.ledger.find_parts(opened.stored))
    return JobOutcome(prepared.output, ExitCode(ending.exit_code), manifest, False, parts_done, num_parts)


def follow(
    submitted: Submitted,
    client: JobsClient,
    store: Store,
    view: ProgressView,
    say: Callable[[str], None],
    *,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Ending:
    """Show a job's progress until its driver has ended.

    Raises:
        Detached: SIGINT or SIGTERM has come.
        SpecbatchError: JOB_CLUSTER_LOST, JOB_STORE_LOST: endpoint or store have been silent for too long.
    """
    answered_at, status = clock(), None
    with detaching():
        while True:
            try:
                state = client.find(submitted.record.submission_id)
                if state is not None and state.status != status:
                    status = state.status
                    if line := _news(state, submitted):
                        say(line)
                _show_progress(submitted, store, view)
                end = _find_ending(submitted, client, store, state, sleep, clock)
                answered_at = clock()
                if end is not None:
                    return end
            except SpecbatchError as error:
                if error.code not in (ErrorCode.JOB_CLUSTER_LOST, ErrorCode.JOB_STORE_LOST):
                    raise
                if clock() - answered_at > SILENT_SECONDS:
                    raise SpecbatchError(
                        error.code,
                        f"{error.message}; {submitted.record.submission_id} may go on: "
                        f"{submitted.next_commands()[0][0]} tells",
                    ) from error
            sleep(LOOK_SECONDS)


def _news(state: JobState, submitted: Submitted) -> str | None:
    if state.status == "PENDING":
        why = f" ({state.message})" if state.message else ""
        return f"{submitted.record.submission_id} waits for its driver to start{why}"
    return f"{submitted.record.submission_id} runs" if state.status == "RUNNING" else None


def _show_progress(submitted: Submitted, store: Store, view: ProgressView) -> None:
    progress = read_progress(store)
    if progress is not None and progress.epoch > submitted.record.epoch_before:
        view.update(progress)


def _find_ending(
    submitted: Submitted,
    client: JobsClient,
    store: Store,
    state: JobState | None,
    sleep: Callable[[float], object],
    clock: Callable[[], float],
) -> Ending | None:
    """How the driver ended, by its own word where there is one; None while it goes on."""
    record = submitted.record
    deadline = clock() + _LAST_WORDS_SECONDS
    while True:
        if (end := read_end(store, record.number)) is not None:
            code = ErrorCode(end.code) if end.code is not None and end.code in ErrorCode.__members__ else None
            return Ending(end.exit_code, code, end.message)
        if state is not None and not state.has_ended:
            return None
        if state is None or clock() >= deadline:
            break
        sleep(LOOK_SECONDS)  # it may have written its last word a moment ago
    if state is None:
        text = f"Ray Jobs at {record.address} no longer know {record.submission_id}: the cluster has been started anew"
        return Ending(int(ExitCode.INFRASTRUCTURE), ErrorCode.JOB_CLUSTER_LOST, text)
    if state.status == "STOPPED":
        return Ending(int(ExitCode.TERMINATED))
    return _silent_ending(submitted, client, state, has_run=last_epoch(store) > record.epoch_before)


def _silent_ending(submitted: Submitted, client: JobsClient, state: JobState, *, has_run: bool) -> Ending:
    """The end of a driver that left no word in the output: it does not see it, or was killed."""
    line = client.last_error(submitted.record.submission_id)
    code, _, message = (line or "").removeprefix("error: ").partition(": ")
    if state.exit_code in _EXITS and state.exit_code and code in ErrorCode.__members__ and message:
        return Ending(state.exit_code, ErrorCode(code), message)
    lines = state.message.strip().splitlines()
    why = f" ({lines[0][:300]})" if lines else ""
    did = "died without a word" if has_run else "could not begin"
    text = f"the driver of {submitted.record.submission_id} {did}{why}; the same command goes on"
    return Ending(int(ExitCode.INFRASTRUCTURE), ErrorCode.JOB_CLUSTER_LOST, text)


@contextmanager
def detaching() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into ``Detached`` while in the block; in another thread than the main one nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        raise Detached(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
