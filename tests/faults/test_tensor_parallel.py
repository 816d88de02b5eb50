"""Whole jobs whose target two processes share: the text of one process, whichever of the two is killed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow as pa
import pytest
from outputs import Output
from whole_jobs import Place, check_finished, check_kept, finish, kill, read_run, wait_for_parts, wait_until

from specbatch.jobs.coordinator.policy import HUNG_SECONDS
from specbatch.specdec.ranks.meeting import divided_device

pytestmark = [
    pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600),
    pytest.mark.skipif(divided_device() != "cpu", reason="this torch divides targets over GPUs only"),
]  # fmt: skip

SHARED = ("--tensor-parallel-size", "2")


@pytest.mark.parametrize("victim", ["ray::RankActor", "ray::WorkerActor"])
def test_one_death_is_the_groups(place: Place, output: Output, reference: pa.Table, victim: str) -> None:
    """SIGKILL of either rank: the other ends too, a new pair does what was not finished, nothing is left over."""
    process = place.submit(output, *SHARED)
    kept = wait_for_parts(output, 2, process)
    ranks = place.processes("ray::RankActor") + place.processes("ray::WorkerActor")
    assert len(ranks) == 2
    kill(place.processes(victim)[0])
    wait_until(lambda: not set(ranks) & set(place.processes("ray::")), process, seconds=20)
    ended = finish(process)
    assert ended.code == 0, ended
    assert ended.err.count("worker 0 died") == 1
    assert ("rank 1 of 2 is gone" in ended.err) == (victim == "ray::RankActor")
    assert read_run(output, 1)["restarts"] == 1
    assert not place.processes("ray::")
    assert not list(place.temporary.glob("specbatch-ranks-*")), "the places where ranks met are gone"
    check_kept(output, kept)
    check_finished(place, output, reference)


def test_an_error_in_a_ranks_forward_is_told_at_once_and_the_job_goes_on(
    place: Place, output: Output, reference: pa.Table, tmp_path: Path
) -> None:
    """Ray keeps a process whose call has raised: the leader must not wait in its collective until it counts as hung."""
    before = time.monotonic()
    ended = place.run_submit(output, *SHARED, SPECBATCH_FAILPOINT=f"rank_forward:before:20:error@{tmp_path / 'once'}")
    assert ended.code == 0, ended
    assert "rank 1 of 2 is gone: RuntimeError: failpoint rank_forward:before" in ended.err
    assert ended.err.count("worker 0 died") == 1
    assert time.monotonic() - before < HUNG_SECONDS
    assert read_run(output, 1)["restarts"] == 1
    assert not list(place.temporary.glob("specbatch-ranks-*"))
    check_finished(place, output, reference)


def test_a_job_of_one_process_is_another_job(place: Place, output: Output) -> None:
    """The number of ranks is part of the identity; older identities know nothing of it."""
    ended = place.run_submit(output, *SHARED, "--limit", "4")
    assert ended.code == 0, ended
    job = json.loads(output.read("_specbatch/job.json"))
    assert job["identity"]["fields"]["model"]["tensor_parallel_size"] == 2
    again = place.run_submit(output, "--limit", "4")
    assert "JOB_SPEC_CHANGED" in again.err
    assert "model.tensor_parallel_size: 2 → absent" in again.err
    deep = place.run("verify", "--deep", output.uri)
    assert deep.code == 0, deep
    assert "no row was decoded again: the target was divided among 2 devices" in deep.out + deep.err
