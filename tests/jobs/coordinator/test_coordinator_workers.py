"""The coordinator rule by rule: workers that start, get no room, fall silent."""

from __future__ import annotations

from coordinator_farm import done
from coordinator_play import Play, device_death, workers_of

from specbatch.jobs.coordinator.events import (
    Beat,
    Begin,
    CapacityChanged,
    Command,
    EndInterrupted,
    FailJob,
    Interrupted,
    KillWorker,
    StartWorker,
    Tick,
    WorkerDied,
    WorkerJoined,
    WorkerPlaced,
)
from specbatch.jobs.coordinator.policy import MAX_ATTEMPTS
from specbatch.schemas.errors import ErrorCode

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


def test_a_sleep_of_all_at_once_is_not_held_against_a_step_that_was_under_way() -> None:
    """Fault 52: coordinator and workers were paused together; the first answer comes before the step has ended."""
    play = Play(9)
    play.begin()
    for event in (Tick(1.0), Tick(601.0), Beat(0, 600.0), Tick(601.5)):
        assert play(event) == []
    assert workers_of(play)[0] == "ready"
    play.now = 601.0
    kills: list[Command] = []
    for second in range(1, 121):
        kills += play.pass_time(1)
        play(Beat(0, 600.0 + second))
    assert kills == [KillWorker(0, "no sign of life for 121 s")], "a step that never ends is a hang all the same"


def test_a_hung_worker_does_not_stop_a_drain() -> None:
    play = Play(9)
    play.begin()
    play(Interrupted())
    assert play.pass_time(121)[-1] == KillWorker(0, "no sign of life for 121 s")
    assert play(WorkerDied(0, "hung", cause="hung")) == [EndInterrupted()]
