"""The coordinator: events in, literal command lists out; then random orders that may lose and double nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specbatch.jobs.coordinator import (
    MAX_ATTEMPTS,
    Assign,
    AttemptFailed,
    Begin,
    Command,
    Coordinator,
    DrainWorker,
    EndInterrupted,
    Event,
    FailJob,
    FinishJob,
    Interrupted,
    PartDone,
    StartWorker,
    WorkerDied,
    WorkerDrained,
    WorkerJoined,
)
from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.messages import Lease, PartReceipt, ShardFailed
from specbatch.schemas.plan import Segment, Shard
from specbatch.schemas.stats import PartStats


def make_shards(count: int, rows: int = 10) -> tuple[Shard, ...]:
    return tuple(
        Shard(index, (Segment("a", 1, "f", index * rows, (index + 1) * rows, index * rows),)) for index in range(count)
    )


def done(worker: int, shard: int, rows: int = 10, errors: int = 0) -> PartDone:
    stats = PartStats(num_rows=rows, num_results=rows, num_ok=rows - errors)
    return PartDone(worker, PartReceipt(shard, f"part-{shard}", rows, 100, "0" * 64, "token", True, stats))


def failed(worker: int, shard: int, message: str = "no luck", code: str = "SHARD_FAILED") -> AttemptFailed:
    return AttemptFailed(worker, ShardFailed(shard, 1, code, message))


class Play:
    """A coordinator with short names for what it says."""

    def __init__(self, num_shards: int, num_workers: int = 1, **options: object) -> None:
        self.shards = make_shards(num_shards)
        self.coordinator = Coordinator(self.shards, num_workers=num_workers, **options)  # type: ignore[arg-type]

    def __call__(self, event: Event) -> list[Command]:
        return self.coordinator.handle(event)

    def assign(self, worker: int, shard: int, attempt: int = 1) -> Assign:
        return Assign(worker, Lease(self.shards[shard], attempt))


def test_one_worker_holds_two_shards_until_the_job_is_finished() -> None:
    play = Play(3)
    assert play(Begin()) == [StartWorker(0)]
    assert play(WorkerJoined(0)) == [play.assign(0, 0), play.assign(0, 1)]
    assert play(done(0, 0)) == [play.assign(0, 2)]
    assert play(done(0, 2)) == []
    assert play(done(0, 1)) == [FinishJob()]
    assert play(done(0, 1)) == []


def test_no_more_workers_than_shards() -> None:
    assert Play(2, num_workers=8)(Begin()) == [StartWorker(0), StartWorker(1)]


def test_leases_ahead_can_be_more_than_two() -> None:
    play = Play(9, leases_per_worker=4)
    play(Begin())
    assert len(play(WorkerJoined(0))) == 4


def test_the_tail_is_shared_among_workers() -> None:
    play = Play(3, num_workers=2)
    play(Begin())
    assert play(WorkerJoined(0)) == [play.assign(0, 0)], "3 shards for 2 workers: one each, the third to the first free"
    assert play(WorkerJoined(1)) == [play.assign(1, 1)]
    assert play(done(1, 1)) == [play.assign(1, 2)]


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
    play = Play(2)
    play(Begin())
    play(WorkerJoined(0))
    assert play(failed(0, 1, "page 7", code)) == [FailJob(ErrorCode(code), "shard 1: page 7")]


def test_a_dead_workers_shards_go_to_its_successor() -> None:
    play = Play(3)
    play(Begin())
    play(WorkerJoined(0))
    assert play(WorkerDied(0, "killed")) == [StartWorker(1)]
    assert play(WorkerJoined(1)) == [play.assign(1, 0, attempt=2), play.assign(1, 1, attempt=2)]
    assert (play.coordinator.num_restarts, play.coordinator.num_attempts) == (1, 4)


def test_a_receipt_from_a_dead_worker_counts() -> None:
    play = Play(2)
    play(Begin())
    play(WorkerJoined(0))
    play(WorkerDied(0, "killed"))
    assert play(done(0, 0)) == []
    assert play(WorkerJoined(1)) == [play.assign(1, 1, attempt=2)]
    assert play(done(1, 1)) == [FinishJob()]


def test_two_deaths_before_ready_are_a_load_failure_with_the_cause() -> None:
    play = Play(4)
    play(Begin())
    assert play(WorkerDied(0, "no memory")) == [StartWorker(1)]
    assert play(WorkerDied(1, "no memory")) == [
        FailJob(ErrorCode.JOB_MODEL_LOAD, "no worker could load the models: no memory")
    ]


def test_a_named_error_of_loading_ends_the_job_at_once() -> None:
    play = Play(4)
    play(Begin())
    death = WorkerDied(0, "the header is damaged", ErrorCode.JOB_MODEL_LOAD)
    assert play(death) == [FailJob(ErrorCode.JOB_MODEL_LOAD, "the header is damaged")]


def test_workers_that_keep_dying_use_up_the_restarts() -> None:
    play = Play(200, leases_per_worker=2)
    commands = play(Begin())
    for worker in range(100):
        play(WorkerJoined(worker))
        play(done(worker, play.coordinator.in_flight()[0]))  # progress, so that no shard runs out of attempts
        commands = play(WorkerDied(worker, "killed"))
        if any(isinstance(command, FailJob) for command in commands):
            break
    assert commands == [FailJob(ErrorCode.JOB_CLUSTER_LOST, "workers keep dying, the last one with: killed")]
    assert play.coordinator.num_restarts == MAX_ATTEMPTS + 2


def test_an_interruption_drains_and_leaves_the_rest() -> None:
    play = Play(5)
    play(Begin())
    play(WorkerJoined(0))
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
    play(Begin())
    play(WorkerJoined(0))
    play(Interrupted())
    assert play(done(0, 0)) == [FinishJob()]


def test_a_death_while_draining_ends_the_run_without_a_restart() -> None:
    play = Play(5)
    play(Begin())
    play(WorkerJoined(0))
    play(Interrupted())
    assert play(WorkerDied(0, "killed")) == [EndInterrupted()]


def test_the_error_budget_is_judged_after_a_thousand_rows() -> None:
    play = Play(3, max_error_rate=0.05)
    play(Begin())
    play(WorkerJoined(0))
    assert play(done(0, 0, rows=999, errors=999)) == [play.assign(0, 2)]
    (command,) = play(done(0, 1, rows=1, errors=0))
    assert isinstance(command, FailJob)
    assert command.code is ErrorCode.JOB_ERROR_RATE
    assert "999 of 1000" in command.message


def test_the_error_budget_counts_parts_of_earlier_runs_and_allows_the_exact_rate() -> None:
    (command,) = Play(1, max_error_rate=0.05, rows_done=2000, errors_done=101)(Begin())
    assert isinstance(command, FailJob)
    assert Play(1, max_error_rate=0.05, rows_done=2000, errors_done=100)(Begin()) == [StartWorker(0)]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_random_orders_lose_nothing_and_never_hand_out_a_finished_shard(data: st.DataObject) -> None:
    num_shards = data.draw(st.integers(1, 8))
    num_workers = data.draw(st.integers(1, 3))
    play = Play(num_shards, num_workers=num_workers, leases_per_worker=data.draw(st.integers(1, 3)))
    starting: set[int] = set()
    held: dict[int, list[int]] = {}
    ghosts: list[Event] = []  # news that a dead or drained worker may still send
    finished: set[int] = set()
    end: Command | None = None

    def obey(commands: list[Command]) -> None:
        nonlocal end
        for command in commands:
            assert end is None, "a command after the end"
            match command:
                case StartWorker(worker):
                    assert worker not in held
                    assert worker not in starting
                    starting.add(worker)
                case Assign(worker, lease):
                    shard = lease.shard.index
                    assert shard not in finished
                    assert all(shard not in shards for shards in held.values()), "leased twice"
                    held[worker].append(shard)
                case FinishJob() | EndInterrupted() | FailJob():
                    end = command

    obey(play(Begin()))
    interrupted = False
    for _ in range(200):
        if end is not None:
            break
        moves: list[Event] = [WorkerJoined(worker) for worker in starting]
        for worker, shards in held.items():
            moves += [done(worker, shard) for shard in shards] * 4
            moves += [failed(worker, shard) for shard in shards]
            moves.append(WorkerDied(worker, "killed"))
            if interrupted:
                moves.append(WorkerDrained(worker))
        moves += ghosts
        if not interrupted:
            moves.append(Interrupted())
        move = data.draw(st.sampled_from(moves))
        match move:
            case WorkerJoined(worker):
                starting.remove(worker)
                held[worker] = []
            case PartDone(worker, receipt):
                if receipt.shard in held.get(worker, []):
                    held[worker].remove(receipt.shard)
                finished.add(receipt.shard)
            case AttemptFailed(worker, failure):
                held[worker].remove(failure.shard)
            case WorkerDied(worker):
                ghosts += [done(worker, shard) for shard in held.pop(worker)]
            case WorkerDrained(worker):
                ghosts += [done(worker, shard) for shard in held[worker]]
                held[worker] = []
            case Interrupted():
                interrupted = True
        obey(play(move))
        if end is None:
            assert set(play.coordinator.in_flight()) == {shard for shards in held.values() for shard in shards}
            assert play.coordinator.num_done == len(finished)
            assert starting or held, "work is left and nobody is there to do it"
    if isinstance(end, FinishJob):
        assert finished == set(range(num_shards))
    if isinstance(end, EndInterrupted):
        assert interrupted
        assert not any(held.values())
