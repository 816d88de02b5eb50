"""The coordinator rule by rule: events in, literal command lists out. Shards, and how a run ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from coordinator_farm import done, make_shards
from coordinator_play import Play, failed, workers_of

from specbatch.jobs.coordinator.coordinator import Coordinator
from specbatch.jobs.coordinator.events import (
    Assign,
    Begin,
    Cancelled,
    CapacityChanged,
    DrainWorker,
    DropShard,
    EndInterrupted,
    FailJob,
    FinishJob,
    Interrupted,
    StartWorker,
    Tick,
    WorkerDied,
    WorkerDrained,
    WorkerJoined,
)
from specbatch.jobs.coordinator.policy import MAX_DEPTH
from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.plan import Segment, Shard

# ---- handing out -----------------------------------------------------------------------------------------------------


def test_one_worker_holds_two_shards_until_the_job_is_finished() -> None:
    play = Play(3)
    assert play(Begin()) == [StartWorker(0)]
    assert play(WorkerJoined(0)) == [play.assign(0, 0), play.assign(0, 1)]
    assert play(done(0, 0)) == [play.assign(0, 2)]
    assert play(done(0, 2)) == []
    assert play(done(0, 1)) == [FinishJob()]
    assert play(done(0, 1)) == []


def test_a_job_without_shards_is_finished_at_once() -> None:
    assert Play(0)(Begin()) == [FinishJob()]


def test_nothing_is_ordered_before_the_beginning() -> None:
    play = Play(1)
    assert play(CapacityChanged(4)) == []
    assert play(Tick(1.0)) == []
    assert play(Begin()) == [StartWorker(0)]


def test_no_more_workers_than_shards() -> None:
    assert Play(2, num_workers=8)(Begin()) == [StartWorker(0), StartWorker(1)]


def test_leases_ahead_can_be_more_than_two() -> None:
    play = Play(9, leases_per_worker=4)
    assert len(play.begin()) == 4


def test_shards_that_take_a_moment_are_handed_out_further_ahead() -> None:
    """And shards that take longer again as few as before: what a worker holds dies with it."""
    play = Play(200)
    held = [command.lease.shard.index for command in play.begin() if isinstance(command, Assign)]
    assert len(held) == 2

    def finish(number: int) -> None:
        for _ in range(number):
            commands = play(done(0, held.pop(0)))
            held.extend(command.lease.shard.index for command in commands if isinstance(command, Assign))

    finish(30)
    assert len(held) == 2, "nobody has looked at the clock yet"
    held += [command.lease.shard.index for command in play.pass_time(1, 0) if isinstance(command, Assign)]
    assert len(held) == MAX_DEPTH
    finish(1)
    assert play.pass_time(1, 0) == []
    finish(MAX_DEPTH - 1)
    assert len(held) == 2


def test_the_tail_is_shared_among_workers() -> None:
    play = Play(3, num_workers=2)
    play(Begin())
    assert play(WorkerJoined(0)) == [play.assign(0, 0)], "3 shards for 2 workers: one each, the third to the first free"
    assert play(WorkerJoined(1)) == [play.assign(1, 1)]
    assert play(done(1, 1)) == [play.assign(1, 2)]


def test_a_shard_that_came_back_goes_before_later_ones() -> None:
    play = Play(9)
    play.begin()
    assert play(failed(0, 1)) == [play.assign(0, 1, attempt=2)]


def test_the_views_tell_who_does_what() -> None:
    play = Play(3, num_workers=2)
    play(Begin())
    play(WorkerJoined(0, "host/cpu"))
    first, second = play.coordinator.worker_views()
    assert (first.worker, first.state, first.place, first.shards) == (0, "ready", "host/cpu", (0,))
    assert (second.worker, second.state, second.shards) == (1, "starting", ())
    assert play.coordinator.held_by(0) == (0,)
    assert play.coordinator.held_by(7) == ()
    assert play.coordinator.in_flight() == (0,)


# ---- failures that name a shard --------------------------------------------------------------------------------------


def test_a_failed_shard_gets_three_attempts_then_the_job_fails_with_the_last_reason() -> None:
    play = Play(1)
    play(Begin())
    assert play(WorkerJoined(0)) == [play.assign(0, 0, attempt=1)]
    assert play(failed(0, 0)) == [play.assign(0, 0, attempt=2)]
    assert play(failed(0, 0)) == [play.assign(0, 0, attempt=3)]
    assert play(failed(0, 0, "disk on fire")) == [
        FailJob(ErrorCode.SHARD_FAILED, "shard 0 failed 3 times, the last time with: disk on fire")
    ]
    assert play(WorkerDied(0, "late news")) == []


@pytest.mark.parametrize("code", ["SHARD_INPUT_CORRUPT", "JOB_INPUT_CHANGED", "JOB_INTEGRITY"])
def test_a_failure_that_would_come_again_ends_the_job_at_once(code: str) -> None:
    """Fault 40, bad input 20: no storm of attempts."""
    play = Play(2)
    play.begin()
    assert play(failed(0, 1, "page 7", code)) == [FailJob(ErrorCode(code), "shard 1: page 7")]


@pytest.mark.parametrize("code", ["SHARD_DISK_FULL", "SHARD_OOM", "JOB_STORE_LOST"])
def test_a_shard_moves_to_another_worker_and_fails_under_its_own_code(code: str) -> None:
    """Faults 9, 41, 45."""
    play = Play(8, num_workers=2)
    play.begin(2)
    assert play(failed(0, 0, "no room", code)) == [play.assign(0, 4)], "the other worker is better for shard 0"
    assert play(done(1, 2)) == [play.assign(1, 0, attempt=2)]
    assert play(failed(1, 0, "no room", code)) == [play.assign(1, 5)]
    assert play(done(0, 1)) == [play.assign(0, 0, attempt=3)]
    assert play(failed(0, 0, "no room", code)) == [
        FailJob(ErrorCode(code), "shard 0 failed 3 times, the last time with: no room")
    ]


def test_a_worker_gets_a_shard_again_that_it_gave_up_while_all_others_are_silent() -> None:
    play = Play(2, num_workers=2)
    play.begin(2)
    play.pass_time(31, 0)
    assert workers_of(play) == {0: "ready", 1: "suspect"}
    assert play(failed(0, 0)) == [play.assign(0, 0, attempt=2)]


def test_without_a_store_that_lets_one_part_win_nothing_is_given_out_twice() -> None:
    assert not any(
        isinstance(command, Assign) for command in play_with_straggler(has_twins=False).pass_time(60, 0, 1, 2)
    )


def test_an_unknown_code_is_a_plain_failure() -> None:
    play = Play(1)
    play.begin()
    assert play(failed(0, 0, code="SHARD_OF_TOMORROW")) == [play.assign(0, 0, attempt=2)]


def test_a_failure_told_twice_is_charged_once() -> None:
    """Fault 17: duplicates are harmless."""
    play = Play(3, num_workers=2)
    play.begin(2)
    assert play(failed(0, 0)) == [play.assign(0, 2)]
    for _ in range(5):
        assert play(failed(0, 0)) == []
        assert play(failed(9, 0)) == []
    assert play(done(1, 1)) == [play.assign(1, 0, attempt=2)]


# ---- stragglers ------------------------------------------------------------------------------------------------------


def play_with_straggler(**options: object) -> Play:
    """Six shards of ten seconds for three workers, but that shard 2 does not come back; second 20."""
    play = Play(6, num_workers=3, leases_per_worker=1, **options)
    play.begin(3)
    play.pass_time(10, 0, 1, 2)
    assert play(done(0, 0)) == [play.assign(0, 3)]
    assert play(done(1, 1)) == [play.assign(1, 4)]
    play.pass_time(10, 0, 1, 2)
    assert play(done(0, 3)) == [play.assign(0, 5)]
    assert play(done(1, 4)) == [], "20 s are no more than twice the usual 10"
    return play


def test_a_straggler_is_given_out_a_second_time_and_one_part_wins() -> None:
    play = play_with_straggler()
    assert play.pass_time(1, 0, 1, 2) == [play.assign(1, 2, attempt=2)]
    assert play(done(0, 5)) == []
    assert play.pass_time(30, 0, 1, 2) == [], "at most one twin"
    assert play(done(2, 2)) == [DropShard(1, 2), FinishJob()]


def test_the_twin_can_win() -> None:
    play = play_with_straggler()
    play.pass_time(1, 0, 1, 2)
    assert play(done(1, 2)) == [DropShard(2, 2)]
    assert play(done(2, 2)) == []
    assert play(done(0, 5)) == [FinishJob()]


def test_a_twin_that_dies_leaves_the_shard_with_the_other() -> None:
    play = play_with_straggler()
    play.pass_time(1, 0, 1, 2)
    assert play(WorkerDied(1, "killed")) == []
    assert play.coordinator.in_flight() == (2, 5)
    assert play(done(0, 5)) == []
    assert play.pass_time(30, 0, 2) == [], "it was in a worker that died: no twin any more"
    assert play(done(2, 2)) == [FinishJob()]


def test_large_shards_are_no_stragglers() -> None:
    """Durations are scaled by rows."""
    small = make_shards(5, rows=10)
    large = Shard(5, (Segment("a", 1, "f", 50, 150, 50),))
    coordinator = Coordinator((large, *(replace(shard, index=shard.index + 6) for shard in small)), num_workers=2)
    play = Play(0)
    play.coordinator = coordinator
    play.begin(2)
    for _ in range(5):
        play.pass_time(10, 0, 1)
        held = play.coordinator.held_by(1) or play.coordinator.held_by(0)[1:]
        play(done(1, held[0]))
    assert play.coordinator.in_flight() == (5,)
    assert not any(isinstance(command, Assign) for command in play.pass_time(60, 0, 1))


# ---- ends ------------------------------------------------------------------------------------------------------------


def test_an_interruption_drains_and_leaves_the_rest() -> None:
    """Fault 47."""
    play = Play(5)
    play.begin()
    assert play(Interrupted()) == [DrainWorker(0)]
    assert play(done(0, 0)) == []
    assert play(WorkerDrained(0)) == [EndInterrupted()]
    assert play.coordinator.num_done == 1


def test_an_interruption_before_any_worker_is_ready_ends_at_once() -> None:
    play = Play(5)
    play(Begin())
    assert play(Interrupted()) == [EndInterrupted()]


def test_a_job_that_finishes_while_draining_is_finished() -> None:
    play = Play(1)
    play.begin()
    play(Interrupted())
    assert play(done(0, 0)) == [FinishJob()]


def test_a_death_while_draining_ends_the_run_without_a_restart() -> None:
    play = Play(5)
    play.begin()
    play(Interrupted())
    assert play(WorkerDied(0, "killed")) == [EndInterrupted()]


def test_deaths_while_draining_are_charged_to_nobody() -> None:
    play = Play(1)
    play.begin()
    for worker in (0, 1):
        play(WorkerDied(worker, "out of memory", ErrorCode.SHARD_OOM))
        play(WorkerJoined(worker + 1))
    play(Interrupted())
    assert play(WorkerDied(2, "out of memory", ErrorCode.SHARD_OOM)) == [EndInterrupted()]


def test_a_worker_that_comes_up_while_others_drain_gets_nothing() -> None:
    play = Play(5, num_workers=2)
    play(Begin())
    play(WorkerJoined(0))
    play(Interrupted())
    assert play(WorkerJoined(1)) == []
    assert workers_of(play) == {0: "draining", 1: "draining"}


def test_a_cancelled_job_drains_and_says_so() -> None:
    play = Play(5)
    play.begin()
    assert play(Cancelled()) == [DrainWorker(0)]
    assert play.said == ["cancelled: finishing the shards in flight"]
    assert play(Interrupted()) == [], "the first reason stays"
    assert play(WorkerDrained(0)) == [EndInterrupted("cancelled")]
    assert EndInterrupted("cancelled").code is None


def test_at_the_deadline_the_job_drains_and_ends_with_its_code() -> None:
    play = Play(5, deadline_seconds=90.0)
    play.begin()
    assert play.pass_time(89, 0) == []
    assert play.pass_time(1, 0) == [DrainWorker(0)]
    assert play.said == ["the deadline has come: finishing the shards in flight"]
    assert play.pass_time(9, 0) == []
    play(done(0, 0))
    end = play(done(0, 1))
    assert end == [EndInterrupted("deadline")]
    assert EndInterrupted("deadline").code is ErrorCode.JOB_DEADLINE


def test_the_deadline_goes_on_while_the_coordinator_sleeps() -> None:
    play = Play(5, deadline_seconds=90.0)
    play.begin()
    play.pass_time(1, 0)
    assert play(Tick(1000.0)) == [DrainWorker(0)]


def test_the_error_budget_is_judged_after_a_thousand_rows() -> None:
    """Bad input 44."""
    play = Play(3, max_error_rate=0.05)
    play.begin()
    assert play(done(0, 0, rows=999, errors=999)) == [play.assign(0, 2)]
    (command,) = play(done(0, 1, rows=1, errors=0))
    assert isinstance(command, FailJob)
    assert command.code is ErrorCode.JOB_ERROR_RATE
    assert "999 of 1000" in command.message


def test_the_error_budget_counts_parts_of_earlier_runs_and_allows_the_exact_rate() -> None:
    (command,) = Play(1, max_error_rate=0.05, rows_done=2000, errors_done=101)(Begin())
    assert isinstance(command, FailJob)
    assert Play(1, max_error_rate=0.05, rows_done=2000, errors_done=100)(Begin()) == [StartWorker(0)]
