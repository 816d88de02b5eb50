"""Whole jobs whose coordinator dies, has a rival or is told to stop: rows 22 to 26, 40, 42, 43 and 47."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from outputs import LocalOutput, Output, part_keys, read_rows
from whole_jobs import (
    DATASET,
    NUM_PARTS,
    NUM_ROWS,
    OPTIONS,
    Place,
    check_finished,
    check_kept,
    finish,
    read_parts,
    read_run,
    wait_for_parts,
    wait_until,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

STORAGE_STEPS = ["plan_create", "job_create", "manifest_create", "success_create"]
"""What a coordinator creates, in this order; the parts are the workers'."""


@pytest.fixture(
    params=["local", pytest.param("s3", marks=pytest.mark.long)],
)
def anywhere(request: pytest.FixtureRequest) -> tuple[Place, Output]:
    """A place and an output on local disk, and the same on S3."""
    names = ("place", "output") if request.param == "local" else ("s3_place", "bucket_output")
    return request.getfixturevalue(names[0]), request.getfixturevalue(names[1])


@pytest.mark.long
def test_coordinator_killed_at_every_storage_step(place: Place, output: Output, reference: pa.Table) -> None:
    """Faults 22 and 23: SIGKILL right before and right after each object that the coordinator creates, run after run.

    Every run goes on where the one before it died; the rows are decoded once.
    """
    kept: dict[str, bytes] = {}
    for step in STORAGE_STEPS:
        for side in ("before", "after"):
            ended = place.run_submit(output, SPECBATCH_FAILPOINT=f"{step}:{side}:1:kill")
            assert ended.code == -signal.SIGKILL, f"{step}:{side}: {ended}"
            check_kept(output, kept)
            kept = read_parts(output)
            assert len(kept) == (NUM_PARTS if step in ("manifest_create", "success_create") else 0)
    manifest = output.read("manifest.json")
    ended = place.run_submit(output)
    assert ended.code == 0, ended
    assert output.read("manifest.json") == manifest
    check_kept(output, kept)
    check_finished(place, output, reference)
    attempts = [read_run(output, int(Path(key).stem))["attempts"] for key in output.keys("_specbatch/runs/")]
    assert sum(attempts) <= NUM_PARTS, "no shard was decoded twice"


@pytest.mark.long
def test_coordinator_killed_while_it_decodes(anywhere: tuple[Place, Output], reference: pa.Table) -> None:
    """Fault 22: SIGKILL in the middle, twice; finished parts stay as they are and only the others are made."""
    place, output = anywhere
    kept: dict[str, bytes] = {}
    for number in (2, 5):
        process = place.submit(output)
        wait_for_parts(output, number, process)
        process.kill()
        process.communicate()
        wait_until(lambda: not place.workers(), seconds=60)
        check_kept(output, kept)
        kept = read_parts(output)
    ended = place.run_submit(output)
    assert ended.code == 0, ended
    check_kept(output, kept)
    check_finished(place, output, reference)


@pytest.mark.long
def test_two_submits_at_once(anywhere: tuple[Place, Output], reference: pa.Table) -> None:
    """Fault 24: one does the job; the other says that it is held, or that it is finished. Then a third says so too."""
    place, output = anywhere
    processes = [place.submit(output), place.submit(output)]
    endings = [finish(process) for process in processes]
    assert {ended.code for ended in endings} <= {0, 6}, endings
    assert any(ended.code == 0 for ended in endings), endings
    check_finished(place, output, reference)
    ended = place.run_submit(output)
    assert ended.code == 0
    assert "finished by an earlier run" in ended.err


@pytest.mark.long
def test_two_jobs_one_prefix(anywhere: tuple[Place, Output]) -> None:
    """Fault 25: of two jobs with other settings at once, one gets the output and the other is refused."""
    place, output = anywhere
    endings = [finish(process) for process in [place.submit(output), place.submit(output, "--seed", "5")]]
    assert sorted(ended.code for ended in endings) == [0, 2], endings
    (refused,) = [ended for ended in endings if ended.code == 2]
    assert "JOB_SPEC_CHANGED" in refused.err or "JOB_PREFIX_TAKEN" in refused.err
    assert read_rows(output).column("row_id").to_pylist() == list(range(NUM_ROWS))
    assert len(part_keys(output)) == NUM_PARTS
    verified = place.run("verify", output.uri)
    assert verified.code == 0, verified


def test_part_of_another_plan(place: Place, output: LocalOutput, undisturbed: LocalOutput) -> None:
    """Fault 26: a zombie of an old job writes its part late. The manifest does not name it and verify tells of it."""
    shutil.copytree(undisturbed.root, output.root)
    for key in ("manifest.json", "_SUCCESS"):
        output.delete(key)
    first = part_keys(output)[0]
    stray = first[: first.rindex("-")] + "-0123456789abcdef.parquet"
    output.write(stray, output.read(first))
    ended = place.run_submit(output)
    assert ended.code == 0, ended
    assert stray.encode() not in output.read("manifest.json")
    verified = place.run("verify", output.uri)
    assert verified.code == 7, verified
    assert Path(stray).name in verified.out
    output.delete(stray)
    assert place.run("verify", output.uri).code == 0


@pytest.mark.long
def test_input_replaced_mid_run(place: Place, output: Output, reference: pa.Table, tmp_path: Path) -> None:
    """Fault 40: the input is another one than was planned; no row of it gets in, and the old one is taken again."""
    dataset = tmp_path / "prompts.parquet"
    shutil.copy2(DATASET, dataset)
    original = dataset.read_bytes()
    rows = pq.read_table(DATASET)
    changed = tmp_path / "changed.parquet"
    pq.write_table(rows.set_column(rows.column_names.index("prompt"), "prompt", [["def g():"] * len(rows)]), changed)
    arguments = ["submit", str(dataset), *OPTIONS, "--output", output.uri]

    process = place.start(*arguments)
    wait_for_parts(output, 1, process)
    os.kill(process.pid, signal.SIGSTOP)
    changed.replace(dataset)
    os.kill(process.pid, signal.SIGCONT)
    ended = finish(process)
    if ended.code == 0:  # the worker had the planned file open still, and needs no other
        check_finished(place, output, reference)
        return
    assert ended.code == 2, ended
    assert "JOB_INPUT_CHANGED" in ended.err.splitlines()[-1]
    kept = read_parts(output)
    assert 1 <= len(kept) < NUM_PARTS
    assert place.run(*arguments).code == 2

    dataset.write_bytes(original)
    shutil.copystat(DATASET, dataset)
    ended = place.run(*arguments)
    assert ended.code == 0, ended
    check_kept(output, kept)
    check_finished(place, output, reference)


SHIFTED_CLOCK = """
import os, time
_true_time, _shift = time.time, float(os.environ["SHIFT_SECONDS"])
time.time = lambda: _true_time() + _shift
"""


@pytest.mark.long
def test_clocks_that_are_an_hour_off(place: Place, output: Output, reference: pa.Table, tmp_path: Path) -> None:
    """Fault 42: runs whose clocks go an hour before and behind follow each other; nothing is ordered by the clock."""
    (tmp_path / "sitecustomize.py").write_text(SHIFTED_CLOCK)
    process = place.submit(output, PYTHONPATH=str(tmp_path), SHIFT_SECONDS="3600")
    kept = wait_for_parts(output, 2, process)
    process.kill()
    process.communicate()
    ended = place.run_submit(output, PYTHONPATH=str(tmp_path), SHIFT_SECONDS="-3600")
    assert ended.code == 0, ended
    check_kept(output, kept)
    check_finished(place, output, reference)


@pytest.mark.long
def test_lease_holder_paused(anywhere: tuple[Place, Output], reference: pa.Table) -> None:
    """Fault 43: the coordinator sleeps past its lease, another takes over, and the first one wakes."""
    place, output = anywhere
    first = place.submit(output)
    wait_for_parts(output, 2, first)
    os.kill(first.pid, signal.SIGSTOP)
    second = place.run_submit(output)
    os.kill(first.pid, signal.SIGCONT)
    assert second.code == 0, second
    ended = finish(first)
    assert ended.code in (0, 6), ended
    check_finished(place, output, reference)


@pytest.mark.long
@pytest.mark.parametrize("num_signals", [1, 2])
def test_interrupted(anywhere: tuple[Place, Output], reference: pa.Table, num_signals: int) -> None:
    """Fault 47: one SIGINT drains, a second one stops at once; both exit 130 and the same command goes on."""
    place, output = anywhere
    process = place.submit(output)
    wait_for_parts(output, 2, process)
    for _ in range(num_signals):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)
    ended = finish(process)
    assert ended.code == 130, ended
    assert "Traceback" not in ended.err
    kept = read_parts(output)
    ended = place.run_submit(output)
    assert ended.code == 0, ended
    check_kept(output, kept)
    check_finished(place, output, reference)
