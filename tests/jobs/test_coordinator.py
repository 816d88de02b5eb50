"""The coordinator rule by rule: events in, literal command lists out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from coordinator_farm import Farm, done, make_shards, passed, row_ids, run_begun
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from specbatch.jobs.coordinator.coordinator import Coordinator
from specbatch.jobs.coordinator.events import (
    Assign,
    AttemptFailed,
    Beat,
    Begin,
    Cancelled,
    CapacityChanged,
    Command,
    DrainWorker,
    DropShard,
    EndInterrupted,
    Event,
    FailJob,
    FinishJob,
    Interrupted,
    KillWorker,
    PreemptionNotice,
    Say,
    StartWorker,
    Tick,
    WorkerDied,
    WorkerDrained,
    WorkerJoined,
    WorkerPlaced,
)
from specbatch.jobs.coordinator.policy import MAX_ATTEMPTS, MAX_DEPTH
from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.messages import Lease, ShardFailed
from specbatch.schemas.plan import Segment, Shard


def failed(worker: int, shard: int, message: str = "no luck", code: str = "SHARD_FAILED") -> AttemptFailed:
    return AttemptFailed(worker, ShardFailed(shard, 1, code, message))


class Play:
    """A coordinator with short names for what it says; lines for the user are kept apart."""

    def __init__(self, num_shards: int, num_workers: int | None = 1, rows: int = 10, **options: object) -> None:
        self.shards = make_shards(num_shards, rows)
        self.coordinator = Coordinator(self.shards, num_workers=num_workers, **options)  # type: ignore[arg-type]
        self.said: list[str] = []
        self.now = 0.0

    def __call__(self, event: Event) -> list[Command]:
        commands = self.coordinator.handle(event)
        self.said += [command.line for command in commands if isinstance(command, Say)]
        return [command for command in commands if not isinstance(command, Say)]

    def begin(self, num_ready: int = 1, place: str = "") -> list[Command]:
        """Begin, and let the first workers join; what came of the last one."""
        commands = self(Begin())
        for worker in range(num_ready):
            commands = self(WorkerJoined(worker, place))
        return commands

    def assign(self, worker: int, shard: int, attempt: int = 1, **lease: object) -> Assign:
        return Assign(worker, Lease(self.shards[shard], attempt, **lease))  # type: ignore[arg-type]

    def pass_time(self, seconds: int, *heard: int) -> list[Command]:
        """Ticks of one second; these workers are heard after each."""
        commands: list[Command] = []
        for _ in range(seconds):
            self.now += 1.0
            commands += self(Tick(self.now))
            for worker in heard:
                commands += self(Beat(worker, 0.0, 0.1))
        return commands


def workers_of(play: Play) -> dict[int, str]:
    return {view.worker: view.state for view in play.coordinator.worker_views()}


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
    assert play.coordinator.num_rows(2) == 10


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


# ---- loading, restarts, room -----------------------------------------------------------------------------------------


def test_two_deaths_before_ready_are_a_load_failure_with_the_cause() -> None:
    """Fault 10: before the budget is burnt."""
    play = Play(4)
    play(Begin())
    assert play(WorkerDied(0, "no memory")) == [StartWorker(1)]
    assert play(WorkerDied(1, "no memory")) == [
        FailJob(ErrorCode.JOB_MODEL_LOAD, "no worker could load the models: no memory")
    ]


def test_one_load_failure_is_tried_again() -> None:
    """Fault 10, once."""
    play = Play(4)
    play(Begin())
    assert play(WorkerDied(0, "no memory")) == [StartWorker(1)]
    play(WorkerJoined(1))
    assert play(WorkerDied(1, "killed")) == [StartWorker(2)]
    assert play(WorkerDied(2, "no memory")) == [StartWorker(3)]


def test_where_one_worker_loads_others_that_cannot_are_given_up() -> None:
    """Fault 10 on one place of two: the job goes on with what it has, and with more when there is new room."""
    play = Play(30, num_workers=2)
    play(CapacityChanged(2))
    play(Begin())
    play(WorkerJoined(0))
    assert play(WorkerDied(1, "bad place")) == [StartWorker(2)]
    assert play(WorkerDied(2, "bad place")) == []
    assert play(done(0, 0)) == [play.assign(0, 2)]
    assert play(CapacityChanged(3)) == [StartWorker(3)]
    assert play(WorkerDied(3, "bad place")) == [StartWorker(4)]
    play(WorkerDied(4, "bad place"))
    assert play(WorkerDied(0, "killed")) == [
        FailJob(ErrorCode.JOB_MODEL_LOAD, "no worker could load the models: killed")
    ]


def test_a_named_error_of_loading_ends_the_job_at_once() -> None:
    play = Play(4)
    play(Begin())
    death = WorkerDied(0, "the header is damaged", ErrorCode.JOB_MODEL_LOAD)
    assert play(death) == [FailJob(ErrorCode.JOB_MODEL_LOAD, "the header is damaged")]


def test_a_worker_that_does_not_come_up_is_killed_and_that_is_a_load_failure() -> None:
    play = Play(4, start_timeout_seconds=300)
    play(Begin())
    assert play.pass_time(300) == []
    assert play.pass_time(1) == [KillWorker(0, "has not loaded its models within 301 s")]
    assert play(WorkerJoined(0)) == [], "too late"
    assert play.pass_time(300) == [], "killed once"
    assert play(WorkerDied(0, "slow", cause="hung")) == [StartWorker(1)]
    assert play(WorkerDied(1, "slow")) == [FailJob(ErrorCode.JOB_MODEL_LOAD, "no worker could load the models: slow")]


def test_workers_that_die_in_vain_use_up_the_restarts() -> None:
    """Fault 19: no storm, though every time it is another place and another shard."""
    play = Play(200, num_workers=2)
    play.begin(2)
    worker = 0
    while StartWorker(worker + 2) in (commands := play(device_death(worker))):
        play(WorkerJoined(worker + 2, f"node-{worker}/cuda:0"))
        worker += 1
        assert worker < 50, "they are started for ever"
    assert commands == []
    assert play(device_death(worker + 1)) == [
        FailJob(ErrorCode.JOB_DEVICE, "workers keep dying, the last one with: CUDA error")
    ]
    assert play.coordinator.num_restarts == MAX_ATTEMPTS + 2 * (MAX_ATTEMPTS + 1)


def test_progress_refills_the_restarts() -> None:
    play = Play(200)
    play(Begin())
    for worker in range(100):
        play(WorkerJoined(worker))
        play(done(worker, play.coordinator.in_flight()[0]))
        assert play(WorkerDied(worker, "killed")) == [StartWorker(worker + 1)]
    assert play.coordinator.num_restarts == 100


def test_workers_follow_the_room_that_there_is() -> None:
    """Fault 14: more nodes, more workers; fewer nodes take their workers along."""
    play = Play(50, num_workers=None)
    assert play(Begin()) == []
    assert play(CapacityChanged(2)) == [StartWorker(0), StartWorker(1)]
    play(WorkerJoined(0))
    assert play(CapacityChanged(3)) == [StartWorker(2)]
    assert play(CapacityChanged(1)) == []
    assert play(WorkerDied(1, "node gone", cause="lost")) == []
    assert play(WorkerDied(2, "node gone", cause="lost")) == []
    assert play(CapacityChanged(2)) == [StartWorker(3)]


def test_the_room_does_not_exceed_the_wish() -> None:
    play = Play(50, num_workers=2)
    play(CapacityChanged(9))
    assert play(Begin()) == [StartWorker(0), StartWorker(1)]


def test_without_room_the_job_waits_then_gives_up() -> None:
    """Fault 14: bounded."""
    play = Play(5, num_workers=2, capacity_timeout_seconds=60)
    play(CapacityChanged(0))
    play(Begin())
    assert play.pass_time(59) == []
    assert play(CapacityChanged(1)) == [StartWorker(0)]
    play(WorkerJoined(0))
    assert play.pass_time(90, 0) == []
    play(CapacityChanged(0))
    assert play(WorkerDied(0, "node gone", cause="lost")) == []
    assert play.pass_time(59) == []
    (command,) = play.pass_time(1)
    assert isinstance(command, FailJob)
    assert command.code is ErrorCode.JOB_NO_CAPACITY
    assert "60 s" in command.message


def test_a_worker_that_starts_where_there_is_no_room_any_more_is_waited_for_no_longer() -> None:
    play = Play(5, num_workers=None, capacity_timeout_seconds=60)
    play(CapacityChanged(1))
    assert play(Begin()) == [StartWorker(0)]
    play(CapacityChanged(0))
    (command,) = play.pass_time(61)
    assert isinstance(command, FailJob)
    assert command.code is ErrorCode.JOB_NO_CAPACITY


def test_a_worker_that_gets_no_place_is_waited_for_as_long_as_room_is() -> None:
    """Fault 14: the cluster has the devices, but others hold them."""
    play = Play(5, num_workers=1, capacity_timeout_seconds=60)
    play(CapacityChanged(4))
    assert play(Begin()) == [StartWorker(0)]
    assert play.pass_time(30) == []
    assert play.said == []
    play.pass_time(29)
    assert ["up to 60 s" in line for line in play.said] == [True], "said once"
    play(WorkerPlaced(0))
    assert play.pass_time(100) == [], "it loads"
    assert play(WorkerDied(0, "node gone", cause="lost")) == [StartWorker(1)]
    assert play.pass_time(60) == []
    (command,) = play.pass_time(1)
    assert isinstance(command, FailJob)
    assert command.code is ErrorCode.JOB_NO_CAPACITY


# ---- signs of life ---------------------------------------------------------------------------------------------------


def test_a_silent_worker_is_suspected_then_killed_and_charged() -> None:
    """Fault 5: within the bound, a fresh process."""
    play = Play(9, num_workers=2)
    play.begin(2)
    assert play.pass_time(30, 1) == []
    assert workers_of(play)[0] == "ready"
    assert play.pass_time(1, 1) == []
    assert workers_of(play)[0] == "suspect"
    assert play.said == ["worker 0 has given no sign of life for 31 s; it gets no new shards"]
    assert play(done(0, 0)) == [], "not even where it could take one"
    assert play.pass_time(89, 1) == []
    assert play.pass_time(1, 1) == [KillWorker(0, "no sign of life for 121 s")]
    assert play.pass_time(30, 1) == []
    assert play(WorkerDied(0, "no sign of life", cause="hung")) == [StartWorker(2)]
    assert play(WorkerJoined(2)) == [play.assign(2, 1, attempt=2)]
    for worker in (3, 4):
        play(WorkerDied(worker - 1, "no sign of life", cause="hung"))
        play(WorkerJoined(worker))
    assert play.said[-1] == "shard 1 has killed 3 workers; looking for the row that does it"


def test_loading_is_no_silence() -> None:
    play = Play(9)
    play(Begin())
    play.pass_time(500)
    play(WorkerJoined(0))
    assert play.pass_time(30) == []
    assert workers_of(play)[0] == "ready"


def test_a_beat_in_time_clears_suspicion() -> None:
    play = Play(9, num_workers=2)
    play.begin(2)
    play.pass_time(40, 1)
    play(done(0, 0))
    assert play(Beat(0, 31.0)) == [], "an old beat is none"
    assert workers_of(play)[0] == "suspect"
    assert play(Beat(0, 3.0)) == [play.assign(0, 4)]
    assert workers_of(play)[0] == "ready"
    assert play.pass_time(27, 1) == []
    assert workers_of(play)[0] == "ready"


def test_a_loop_that_hangs_while_polls_are_answered_is_seen() -> None:
    """Fault 5: native code that holds no lock."""
    play = Play(9)
    play.begin()
    kills: list[Command] = []
    for second in range(121):
        kills += play.pass_time(1)
        kills += play(Beat(0, float(second + 1)))
    assert kills == [KillWorker(0, "no sign of life for 121 s")]


def test_slow_engines_get_more_patience() -> None:
    play = Play(9)
    play.begin()
    play(Beat(0, 0.0, median_step_seconds=20.0))
    assert play.pass_time(60) == []
    assert workers_of(play)[0] == "ready"
    assert play.pass_time(140) == []
    assert workers_of(play)[0] == "suspect"
    assert play.pass_time(1) == [KillWorker(0, "no sign of life for 201 s")]


def test_what_the_coordinator_slept_is_not_held_against_workers() -> None:
    """Fault 43: a stopped coordinator heard nobody."""
    play = Play(9)
    play.begin()
    play.pass_time(5, 0)
    assert play(Tick(5000.0)) == []
    assert workers_of(play)[0] == "ready"


def test_a_hung_worker_does_not_stop_a_drain() -> None:
    play = Play(9)
    play.begin()
    play(Interrupted())
    assert play.pass_time(121)[-1] == KillWorker(0, "no sign of life for 121 s")
    assert play(WorkerDied(0, "hung", cause="hung")) == [EndInterrupted()]


# ---- rows that kill --------------------------------------------------------------------------------------------------


def test_the_search_for_a_row_that_kills_step_by_step() -> None:
    """Fault 12: three deaths alone, then halves, then a last attempt without the row."""
    play = Play(1, rows=4)
    assert play.begin() == [play.assign(0, 0, 1)]
    for worker in (1, 2):
        play(WorkerDied(worker - 1, "killed"))
        assert play(WorkerJoined(worker)) == [play.assign(worker, 0, worker + 1)]
    play(WorkerDied(2, "killed"))
    assert play(WorkerJoined(3)) == [play.assign(3, 0, 4, probe=(0, 2))]
    assert play(passed(3, Lease(play.shards[0], 4, (0, 2)))) == [play.assign(3, 0, 5, probe=(2, 4))]
    assert play(passed(3, Lease(play.shards[0], 4, (0, 2)))) == [], "told twice"
    assert play(WorkerDied(3, "killed")) == [StartWorker(4)]
    assert play(WorkerJoined(4)) == [play.assign(4, 0, 6, probe=(2, 3))]
    assert play(passed(4, Lease(play.shards[0], 6, (2, 3)))) == [play.assign(4, 0, 7, probe=(3, 4))]
    play(WorkerDied(4, "killed"))
    assert play(WorkerJoined(5)) == [play.assign(5, 0, 8, poison=(3,))]
    assert play(done(5, 0)) == [FinishJob()]
    assert play.said == [
        "shard 0 has killed 3 workers; looking for the row that does it",
        "shard 0: rows that kill workers become ROW_POISON rows: 3",
    ]
    assert (play.coordinator.num_attempts, play.coordinator.num_probes) == (4, 4)


def test_a_probe_whose_machine_was_taken_is_repeated_free_of_charge() -> None:
    """Faults 12 and 20 together."""
    play = Play(1, rows=4)
    play.begin()
    for worker in (1, 2, 3):
        play(WorkerDied(worker - 1, "killed"))
        play(WorkerJoined(worker))
    for worker in (4, 5, 6):
        play(WorkerDied(worker - 1, "taken", cause="preempted"))
        assert play(WorkerJoined(worker)) == [play.assign(worker, 0, worker + 1, probe=(0, 2))]


def test_a_probe_passed_by_a_dead_worker_proves_nothing_twice() -> None:
    play = Play(1, rows=4)
    play.begin()
    for worker in (1, 2, 3, 4):
        play(WorkerDied(worker - 1, "killed"))
        play(WorkerJoined(worker))
    assert play(passed(3, Lease(play.shards[0], 4, (0, 2)))) == []
    assert play.coordinator.held_by(4) == (0,)


def test_rows_are_found_across_the_gaps_of_an_amendment() -> None:
    segments = tuple(Segment("a", 1, "f", row, row + count, row, (0,)) for row, count in ((3, 1), (50, 3), (900, 2)))
    farm = run_begun(Coordinator((Shard(7, segments),), num_workers=1), kills={51, 901})
    assert farm.end == FinishJob()
    assert farm.leases[-1].poison == (51, 901)
    assert farm.leases[3].probe == (3, 52)


def test_a_shard_of_one_row_needs_no_search() -> None:
    farm = run_begun(Coordinator(make_shards(3, rows=1), num_workers=1), kills={1})
    assert farm.end == FinishJob()
    assert farm.coordinator.num_probes == 0
    assert [lease.poison for lease in farm.leases if lease.poison] == [(1,)]


def test_more_than_eight_rows_that_kill_fail_the_job() -> None:
    farm = run_begun(Coordinator(make_shards(2, rows=64), num_workers=1), kills=range(64))
    assert isinstance(farm.end, FailJob)
    assert farm.end.code is ErrorCode.SHARD_FAILED
    assert "more than 8 rows" in farm.end.message
    eight = run_begun(Coordinator(make_shards(2, rows=64), num_workers=1), kills=range(8, 16))
    assert eight.end == FinishJob()


def test_a_shard_of_which_every_row_kills_is_not_blamed_on_its_rows() -> None:
    """A machine that ends every worker must not turn a whole shard, small as it is, into error rows."""
    farm = run_begun(Coordinator(make_shards(2, rows=4), num_workers=1), kills=range(4))
    assert isinstance(farm.end, FailJob)
    assert farm.end.code is ErrorCode.SHARD_FAILED
    assert "shard 0: every row of it kills the worker" in farm.end.message


def test_deaths_that_no_row_explains_fail_the_shard_in_the_end() -> None:
    """Whole leases kill, probes do not: one search, one more round of attempts."""
    farm = Farm(Coordinator(make_shards(1, rows=8), num_workers=1))
    farm.feed(Begin())
    while farm.end is None:
        if farm.starting:
            farm.join(farm.starting[0])
        ((worker, (lease,)),) = farm.held.items()
        if lease.probe is None:
            farm.die(worker)
        else:
            farm.work(worker)
    assert farm.end == FailJob(
        ErrorCode.SHARD_FAILED, "shard 0 kills workers, but no row of it does alone; the last one with: killed"
    )
    assert (farm.coordinator.num_attempts, farm.coordinator.num_probes) == (6, 2)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_exactly_the_rows_that_kill_are_left_out_within_the_bound_of_attempts(data: st.DataObject) -> None:
    """Fault 12, guarantee G11: several rows in several shards, workers that take several shards, any order."""
    num_shards, rows = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 200))
    coordinator = Coordinator(
        make_shards(num_shards, rows),
        num_workers=data.draw(st.integers(1, 4)),
        leases_per_worker=data.draw(st.integers(1, 4)),
    )
    kills = data.draw(st.sets(st.integers(0, num_shards * rows - 1), max_size=8))
    assume(rows == 1 or all(not set(range(s * rows, (s + 1) * rows)) <= kills for s in range(num_shards)))
    farm = run_begun(coordinator, kills, seed=data.draw(st.integers(0, 2**32)))
    assert farm.end == FinishJob()
    for shard in range(num_shards):
        mine = tuple(sorted(row for row in kills if row // rows == shard))
        leases = [lease for lease in farm.leases if lease.shard.index == shard]
        probes = [lease for lease in leases if lease.probe is not None]
        assert leases[-1].poison == mine
        assert len(probes) <= 2 * len(mine) * math.ceil(math.log2(rows)) if rows > 1 else not probes
        assert len(leases) - len(probes) <= (1 + MAX_ATTEMPTS + 1 if mine else 2), (
            "one death among others costs no more"
        )
        assert all(not set(row_ids(lease)) & kills for lease in leases[-1:])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sets(st.integers(0, 159), max_size=5))
def test_machines_taken_away_change_nothing_in_what_is_found(seed: int, kills: set[int]) -> None:
    """Faults 12 and 20 together, at random."""
    import random

    choices = random.Random(seed)
    farm = Farm(Coordinator(make_shards(4, rows=40), num_workers=2), kills)
    farm.feed(Begin())
    for _ in range(2000):
        if farm.end is not None:
            break
        if farm.held and choices.random() < 0.2:
            farm.die(choices.choice(sorted(farm.held)), cause=choices.choice(["preempted", "lost"]))
        else:
            choices.choice(farm.moves())()
    else:
        farm.run()
    assert farm.end == FinishJob()
    found = {lease.shard.index: lease.poison for lease in farm.leases}
    assert {row for rows in found.values() for row in rows} == kills


# ---- devices ---------------------------------------------------------------------------------------------------------


def device_death(worker: int) -> WorkerDied:
    return WorkerDied(worker, "CUDA error", ErrorCode.JOB_DEVICE)


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
