"""The coordinator rule by rule: whom a death is charged to, and what becomes of devices and machines."""

from __future__ import annotations

import pytest
from coordinator_farm import Farm, done, make_shards, passed, row_ids
from coordinator_play import Play, device_death, failed, workers_of

from specbatch.jobs.coordinator.coordinator import Coordinator
from specbatch.jobs.coordinator.events import (
    Assign,
    Beat,
    Begin,
    CapacityChanged,
    DrainWorker,
    DropShard,
    FailJob,
    FinishJob,
    KillWorker,
    PreemptionNotice,
    StartWorker,
    WorkerDied,
    WorkerDrained,
    WorkerJoined,
)
from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.messages import Lease

# ---- deaths and blame ------------------------------------------------------------------------------------------------


def test_after_an_unexplained_death_its_shards_run_alone() -> None:
    """Fault 1: none is charged, each has a worker to itself until it is done."""
    play = Play(6)
    play.begin()
    assert play(WorkerDied(0, "killed")) == [StartWorker(1)]
    assert play(WorkerJoined(1)) == [play.assign(1, 0, attempt=2)]
    assert play(done(1, 0)) == [play.assign(1, 1, attempt=2)]
    assert play(done(1, 1)) == [play.assign(1, 2), play.assign(1, 3)]
    assert (play.coordinator.num_restarts, play.coordinator.num_attempts) == (1, 6)


def test_a_shard_that_must_run_alone_does_not_wait_for_ever() -> None:
    """No restart is on the way: one of the busy workers is let run empty."""
    play = Play(40, num_workers=2)
    play(CapacityChanged(2))
    play.begin(2)
    play(CapacityChanged(1))
    assert play(WorkerDied(0, "killed")) == []
    assert play.coordinator.held_by(1) == (2, 3)
    assert play(done(1, 2)) == []
    assert play(done(1, 3)) == [play.assign(1, 0, attempt=2)]
    assert play(done(1, 0)) == [play.assign(1, 1, attempt=2)]
    assert play(done(1, 1)) == [play.assign(1, 4), play.assign(1, 5)]


def test_a_shard_that_must_run_alone_is_not_forgotten_when_its_worker_dies() -> None:
    play = Play(40, num_workers=3)
    play(CapacityChanged(3))
    play.begin(3)
    play(CapacityChanged(1))
    play(WorkerDied(0, "killed"))
    play(done(1, 2))
    assert play(done(1, 3)) == [play.assign(1, 0, attempt=2)]
    assert play(done(2, 4)) == [play.assign(2, 6)], "one at a time runs empty"
    assert play(WorkerDied(1, "killed")) == []
    assert play(done(2, 5)) == []
    assert play(done(2, 6)) == [play.assign(2, 0, attempt=3)]


def test_nobody_runs_empty_while_a_worker_is_on_the_way() -> None:
    play = Play(40, num_workers=2)
    play.begin(2)
    assert play(WorkerDied(0, "killed")) == [StartWorker(2)]
    assert play(done(1, 2)) == [play.assign(1, 4)]


def test_a_receipt_from_a_dead_worker_counts() -> None:
    """Fault 3: the part is in the store, so the shard is done."""
    play = Play(2)
    play.begin()
    play(WorkerDied(0, "killed"))
    assert play(done(0, 0)) == []
    assert play(WorkerJoined(1)) == [play.assign(1, 1, attempt=2)]
    assert play(done(1, 1)) == [FinishJob()]


def test_a_zombies_part_frees_the_worker_that_does_the_shard_again() -> None:
    """Faults 4, 15: the zombie wins; the other shall forget the shard, and its rows count once."""
    play = Play(3, rows=600, max_error_rate=0.5)
    play.begin()
    play(WorkerDied(0, "killed"))
    assert play(WorkerJoined(1)) == [play.assign(1, 0, attempt=2)]
    assert play(done(0, 0, rows=600, errors=400)) == [DropShard(1, 0), play.assign(1, 1, attempt=2)]
    assert play(done(1, 0, rows=600, errors=400)) == [], "800 of 1,200 would be above the budget"
    assert play.coordinator.num_done == 1


def test_news_of_the_unknown_does_no_harm() -> None:
    play = Play(2)
    play.begin()
    for event in (
        WorkerJoined(5),
        WorkerDied(5, "killed"),
        WorkerDrained(5),
        WorkerDrained(0),
        Beat(5, 0.0),
        PreemptionNotice(5, 1.0),
        failed(5, 1),
        done(0, 77),
        passed(0, Lease(play.shards[0], 1, (0, 5))),
        WorkerJoined(0),
    ):
        assert play(event) == []
    assert play.coordinator.held_by(0) == (0, 1)


@pytest.mark.parametrize("cause", ["preempted", "lost"])
def test_what_is_taken_away_is_charged_to_nobody(cause: str) -> None:
    """Faults 13, 20: no attempt, no restart, and its shards need not run alone."""
    play = Play(4)
    play.begin()
    for worker in range(1, 31):
        assert play(WorkerDied(worker - 1, "gone", cause=cause)) == [StartWorker(worker)]  # type: ignore[arg-type]
        attempt = worker + 1
        assert play(WorkerJoined(worker)) == [play.assign(worker, 0, attempt), play.assign(worker, 1, attempt)]
    assert play.coordinator.num_restarts == 0
    assert play.coordinator.num_preemptions == (30 if cause == "preempted" else 0)


def test_a_named_error_of_a_whole_job_ends_it_at_once() -> None:
    play = Play(4)
    play.begin()
    death = WorkerDied(0, "file b.parquet is another now", ErrorCode.JOB_INPUT_CHANGED)
    assert play(death) == [FailJob(ErrorCode.JOB_INPUT_CHANGED, "file b.parquet is another now")]


def test_a_shard_that_eats_all_memory_alone_fails_under_that_code() -> None:
    """Fault 9: SHARD_OOM after the attempts, without a search for a row."""
    play = Play(1)
    play.begin()
    for worker in range(3):
        commands = play(WorkerDied(worker, "out of memory", ErrorCode.SHARD_OOM))
        play(WorkerJoined(worker + 1))
    assert commands == [FailJob(ErrorCode.SHARD_OOM, "shard 0 failed 3 times, the last time with: out of memory")]


# ---- devices ---------------------------------------------------------------------------------------------------------


def test_three_strikes_put_a_device_into_quarantine_and_another_one_goes_on() -> None:
    """Fault 6."""
    play = Play(20, num_workers=None)
    play(CapacityChanged(2))
    play(Begin())
    play(WorkerJoined(0, "a/cuda:0"))
    play(WorkerJoined(1, "a/cuda:1"))
    bad = 1
    for strike in range(3):
        assert play.coordinator.quarantined_places == ()
        assert StartWorker(strike + 2) in play(device_death(bad))
        bad = strike + 2
        play(WorkerJoined(bad, "a/cuda:1"))
    assert play.coordinator.quarantined_places == ("a/cuda:1",)
    assert workers_of(play) == {0: "ready", 4: "quarantined"}
    assert play.said[-2] == "a/cuda:1 has failed 3 times; no worker there gets work any more"
    while (held := play.coordinator.held_by(0)) and (end := play(done(0, held[0])))[:1] != [FinishJob()]:
        assert all(isinstance(command, Assign) and command.worker == 0 for command in end)
    assert end == [FinishJob()]


def test_a_worker_at_a_quarantined_place_is_drained_and_the_next_one_goes_elsewhere() -> None:
    play = Play(20, num_workers=1)
    play(CapacityChanged(2))
    play(Begin())
    for worker in range(3):
        play(WorkerJoined(worker, "a/cuda:0"))
        play(device_death(worker))
    assert play(WorkerJoined(3, "a/cuda:0")) == [DrainWorker(3), StartWorker(4)]
    assert play(WorkerDrained(3)) == []
    assert len(play(WorkerJoined(4, "a/cuda:1"))) == 1


def test_without_any_sound_device_the_job_fails() -> None:
    """Fault 6: what was finished before is kept."""
    play = Play(20)
    play(Begin())
    for worker in range(3):
        play(WorkerJoined(worker, "a/cuda:0"))
        play(device_death(worker))
    assert play(WorkerJoined(3, "a/cuda:0"))[-1] == FailJob(
        ErrorCode.JOB_DEVICE, "every device there is has failed again and again: a/cuda:0"
    )


def test_a_row_that_upsets_a_sound_device_does_not_cost_the_device() -> None:
    """Faults 6 and 12: with a single device, the row is found."""
    farm = Farm(Coordinator(make_shards(6, rows=16), num_workers=1), kills={15, 47, 79})
    farm.feed(Begin())
    while farm.end is None:
        if farm.starting:
            farm.join(farm.starting[0], "a/cuda:0")
        ((worker, leases),) = farm.held.items()
        if farm.kills.intersection(row_ids(leases[0])):
            farm.die(worker, code=ErrorCode.JOB_DEVICE)
        else:
            farm.work(worker)
    assert farm.end == FinishJob()
    assert {row for lease in farm.leases for row in lease.poison} == {15, 47, 79}


def test_a_device_that_fails_while_loading_fails_the_job_as_a_device() -> None:
    play = Play(3)
    play(Begin())
    assert play(device_death(0)) == [StartWorker(1)]
    assert play(device_death(1)) == [FailJob(ErrorCode.JOB_DEVICE, "no worker could load the models: CUDA error")]


# ---- machines that will be taken away --------------------------------------------------------------------------------


def play_with_known_durations() -> Play:
    """Shards of 10 rows take 20 s from lease to part; worker 0 got its two at second 40 and 30."""
    play = Play(30)
    play.begin()
    for shard in range(4):
        play.pass_time(10, 0)
        play(done(0, shard))
    assert play.coordinator.held_by(0) == (4, 5)
    return play


def test_a_notice_that_leaves_time_drains_the_worker() -> None:
    """Fault 20: finish if it fits."""
    play = play_with_known_durations()
    play.pass_time(5, 0)
    assert play(PreemptionNotice(0, grace_seconds=15.0)) == [DrainWorker(0)]
    assert play(PreemptionNotice(0, grace_seconds=10.0)) == []
    assert play(done(0, 4)) == [], "no new shards"
    assert play(done(0, 5)) == []
    assert play(WorkerDrained(0)) == [KillWorker(0, "its machine is being taken away")]
    assert play(WorkerDied(0, "gone")) == [StartWorker(1)]
    assert (play.coordinator.num_preemptions, play.coordinator.num_restarts) == (1, 0)


def test_a_worker_that_outstays_its_notice_is_killed_free_of_charge() -> None:
    play = play_with_known_durations()
    assert play(PreemptionNotice(0, grace_seconds=25.0)) == [DrainWorker(0)]
    assert play.pass_time(25, 0) == []
    assert play.pass_time(1, 0) == [KillWorker(0, "the time it had left has run out")]
    assert play(WorkerDied(0, "killed", cause="hung")) == [StartWorker(1)]
    assert play(WorkerJoined(1)) == [play.assign(1, 4, 2), play.assign(1, 5, 2)]
    assert (play.coordinator.num_preemptions, play.coordinator.num_restarts) == (1, 0)


def test_a_notice_that_leaves_too_little_gives_the_shards_back_at_once() -> None:
    """Fault 20: abandon, the budget untouched."""
    play = play_with_known_durations()
    play.pass_time(5, 0)
    assert play(PreemptionNotice(0, grace_seconds=14.0)) == [KillWorker(0, "its machine is being taken away")]
    assert play.coordinator.in_flight() == ()
    assert play(WorkerDied(0, "killed", cause="hung")) == [StartWorker(1)]
    assert play(WorkerJoined(1)) == [play.assign(1, 4, 2), play.assign(1, 5, 2)], "nothing need run alone"
    assert (play.coordinator.num_preemptions, play.coordinator.num_restarts) == (1, 0)


def test_a_notice_before_anything_is_known_of_durations_gives_the_shards_back() -> None:
    play = Play(5)
    play.begin()
    assert play(PreemptionNotice(0, grace_seconds=120.0)) == [KillWorker(0, "its machine is being taken away")]


def test_a_notice_to_a_worker_that_loads_or_idles() -> None:
    play = Play(2, num_workers=2)
    play(Begin())
    assert play(PreemptionNotice(0, 60.0)) == [KillWorker(0, "its machine is being taken away")]
    play(WorkerJoined(1))
    play(done(1, 0))
    play(done(1, 0))
    assert play(WorkerDied(0, "gone", cause="preempted")) == []


def test_a_death_within_the_notice_is_charged_to_nobody() -> None:
    play = play_with_known_durations()
    play(PreemptionNotice(0, grace_seconds=60.0))
    assert play(WorkerDied(0, "SIGTERM")) == [StartWorker(1)]
    assert play(WorkerJoined(1)) == [play.assign(1, 4, 2), play.assign(1, 5, 2)]
    assert play.coordinator.num_restarts == 0
