"""What a run notices for its report: a draft that was let go of, workers that crashed."""

from __future__ import annotations

import pytest

from specbatch.jobs.coordinator.events import WorkerDied
from specbatch.jobs.coordinator.staffing import Staffing
from specbatch.jobs.output.observations import end_time
from specbatch.jobs.running.tally import RunTally
from specbatch.schemas.messages import MemoryReport, Progress, RoundBlock, WorkerPoll, WorkerReady


def memory(draft_bytes: int) -> MemoryReport:
    return MemoryReport(100, draft_bytes, 10, draft_bytes // 10, 1000)


def poll(draft_bytes: int) -> WorkerPoll:
    block = RoundBlock(num_spec_rounds=1, draft_length_histogram=(1, 0, 2), num_accepted_draft_tokens=3)
    return WorkerPoll((), (), (block,), Progress(), memory(draft_bytes))


@pytest.mark.parametrize(("at_start", "later", "seconds"), [(50, 0, 7.0), (50, 50, None), (0, 0, None)])
def test_the_second_in_which_a_draft_is_gone_is_kept(at_start: int, later: int, seconds: float | None) -> None:
    tally = RunTally()
    tally.add_ready(WorkerReady(0, "host", 1, "cpu", "float32", 2, 0.5, memory(at_start), ()), 1.0)
    tally.add_poll(0, poll(at_start), 4.0)
    tally.add_poll(0, poll(later), 7.0)
    tally.add_poll(0, poll(later), 9.0)
    (record,) = tally.worker_records()
    assert record.draft_given_up_seconds == seconds
    assert record.blocks[0].draft_length_histogram == (1, 0, 2)
    assert record.blocks[0].num_accepted_draft_tokens == 3


def test_every_crash_counts_also_one_that_nobody_replaces() -> None:
    staffing = Staffing(1, 60.0)
    for worker in range(3):
        staffing.note_crash(WorkerDied(worker, "killed"), was_loading=False, was_probing=False)
    assert (staffing.num_crashes, staffing.num_restarts) == (3, 0)


@pytest.mark.parametrize(
    ("started", "seconds", "ended"),
    [
        ("2026-11-23T23:59:30+00:00", 45.2, "2026-11-24T00:00:15+00:00"),
        ("no time", 1.0, "no time"),
        ("2026-11-23T23:59:30+00:00", 1e300, "2026-11-23T23:59:30+00:00"),
    ],
)
def test_a_run_ends_its_seconds_after_its_start(started: str, seconds: float, ended: str) -> None:
    assert end_time(started, seconds) == ended
