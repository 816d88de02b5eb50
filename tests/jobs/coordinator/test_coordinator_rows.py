"""The coordinator rule by rule: the search for rows that kill."""

from __future__ import annotations

import math

from coordinator_farm import Farm, done, make_shards, passed, row_ids, run_begun
from coordinator_play import Play
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from specbatch.jobs.coordinator.coordinator import Coordinator
from specbatch.jobs.coordinator.events import (
    Begin,
    FailJob,
    FinishJob,
    StartWorker,
    WorkerDied,
    WorkerJoined,
)
from specbatch.jobs.coordinator.policy import MAX_ATTEMPTS
from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.messages import Lease
from specbatch.schemas.plan import Segment, Shard

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
