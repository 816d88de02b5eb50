"""Whole jobs whose workers die, stop or cannot start: rows 1 to 5, 9 to 12 and 41 of the fault matrix."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from outputs import Output, part_keys, read_rows
from whole_jobs import (
    NUM_PARTS,
    Place,
    check_finished,
    check_kept,
    finish,
    kill,
    read_run,
    wait_for_parts,
    wait_until,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

POISON_ROW = 18


@pytest.mark.long
def test_worker_killed_mid_generation(place: Place, output: Output, reference: pa.Table) -> None:
    """Fault 1: SIGKILL while it decodes; another process does what it had not finished."""
    process = place.submit(output)
    kept = wait_for_parts(output, 2, process)
    (worker,) = place.workers()
    kill(worker)
    ended = finish(process)
    assert ended.code == 0, ended
    assert "worker 0 died" in ended.err
    assert read_run(output, 1)["restarts"] == 1
    check_kept(output, kept)
    check_finished(place, output, reference)


@pytest.mark.long
@pytest.mark.parametrize("side", ["before", "after"])
def test_worker_killed_around_its_commit(place: Place, output: Output, reference: pa.Table, side: str) -> None:
    """Faults 2 and 3: SIGKILL with the part written but not named, and with the part there but not told of.

    Every process dies at its fifth part, so there are three of them. What a dead one had committed is found in the
    store and not decoded again.
    """
    ended = place.run_submit(output, SPECBATCH_FAILPOINT=f"part_create:{side}:5:kill")
    assert ended.code == 0, ended
    assert read_run(output, 1)["restarts"] == 2
    check_finished(place, output, reference)


@pytest.mark.long
def test_stopped_worker(place: Place, output: Output, reference: pa.Table) -> None:
    """Fault 4: SIGSTOP; the others and successors finish the job, and nothing of it outlives the job."""
    process = place.submit(output, "--workers", "2")
    kept = wait_for_parts(output, 2, process)
    kill(place.workers()[0], signal.SIGSTOP)
    ended = finish(process, 400)
    assert ended.code == 0, ended
    check_kept(output, kept)
    check_finished(place, output, reference)
    wait_until(lambda: not place.workers(), seconds=30)


@pytest.mark.long
def test_worker_stopped_for_a_moment(place: Place, output: Output, reference: pa.Table) -> None:
    """Fault 4: SIGSTOP shorter than any deadline; it goes on, and nobody was replaced."""
    process = place.submit(output)
    wait_for_parts(output, 1, process)
    (worker,) = place.workers()
    kill(worker, signal.SIGSTOP)
    with pytest.raises(AssertionError, match="took too long"):
        wait_until(lambda: len(part_keys(output)) == NUM_PARTS, process, seconds=12)
    kill(worker, signal.SIGCONT)
    ended = finish(process)
    assert ended.code == 0, ended
    assert read_run(output, 1)["restarts"] == 0
    check_finished(place, output, reference)


@pytest.mark.long
def test_hung_worker(place: Place, output: Output, reference: pa.Table, tmp_path: Path) -> None:
    """Fault 5: a decode loop that never comes round again while its process answers; it is killed and replaced."""
    ended = place.run_submit(output, SPECBATCH_FAILPOINT=f"decode_step:before:9:hang@{tmp_path}/once", seconds=400)
    assert ended.code == 0, ended
    assert read_run(output, 1)["restarts"] == 1
    check_finished(place, output, reference)


@pytest.mark.long
@pytest.mark.parametrize(
    "failpoint", ["shard_read:before:2:oom", "part_spool:before:2:enospc", "part_create:before:2:enospc"]
)
def test_shortage_that_passes(
    place: Place, output: Output, reference: pa.Table, tmp_path: Path, failpoint: str
) -> None:
    """Faults 9 and 41: memory, or the disk, runs out once; the shard is made by another attempt."""
    ended = place.run_submit(output, SPECBATCH_FAILPOINT=f"{failpoint}@{tmp_path}/once")
    assert ended.code == 0, ended
    assert (tmp_path / "once").exists()
    check_finished(place, output, reference)


@pytest.mark.long
def test_memory_runs_out_each_time(place: Place, output: Output, reference: pa.Table) -> None:
    """Fault 9: no attempt finds the memory for its rows; the job ends with the code and can go on elsewhere."""
    ended = place.run_submit(output, SPECBATCH_FAILPOINT="shard_read:before:0:oom")
    assert ended.code == 1, ended
    assert "SHARD_OOM" in ended.err.splitlines()[-1]
    ended = place.run_submit(output)
    assert ended.code == 0, ended
    check_finished(place, output, reference)


@pytest.mark.long
def test_worker_fails_to_start_once(place: Place, output: Output, reference: pa.Table, tmp_path: Path) -> None:
    """Fault 10: SIGKILL while the first process loads its models; the second one does the job."""
    ended = place.run_submit(output, SPECBATCH_FAILPOINT=f"worker_load:before:1:kill@{tmp_path}/once")
    assert ended.code == 0, ended
    assert read_run(output, 1)["restarts"] == 1
    check_finished(place, output, reference)


def test_worker_never_starts(place: Place, output: Output) -> None:
    """Fault 10: no process lives long enough to load its models; the job ends before its attempts are used up."""
    ended = place.run_submit(output, SPECBATCH_FAILPOINT="worker_load:before:1:kill")
    assert ended.code == 1, ended
    assert "JOB_MODEL_LOAD" in ended.err.splitlines()[-1]
    assert part_keys(output) == []


@pytest.mark.long
def test_poison_row(place: Place, output: Output, reference: pa.Table) -> None:
    """Fault 12: one row kills every process that decodes it; it alone becomes an error row, found by bisection."""
    ended = place.run_submit(
        output, SPECBATCH_FAILPOINT="row_submit:before:0:kill", SPECBATCH_FAILPOINT_ROW=str(POISON_ROW), seconds=400
    )
    assert ended.code == 3, ended
    codes = read_rows(output).column("error_code").to_pylist()
    assert {row_id: code for row_id, code in enumerate(codes) if code} == {POISON_ROW: "ROW_POISON"}
    check_finished(place, output, reference, without=frozenset({POISON_ROW}))


@pytest.mark.long
def test_disk_full(place: Place, output: Output, reference: pa.Table) -> None:
    """Fault 41: no byte of a part can be written; the job ends with the code, and goes on once there is room.

    The limit is the kernel's own on the size of files of the worker processes, so it needs no privileges.
    """

    def limit(pid: int) -> None:
        try:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1024, 1024))
        except ProcessLookupError:
            return

    process = place.submit(output)
    with _each_worker(place, limit):
        ended = finish(process)
    assert ended.code == 1, ended
    assert "SHARD_DISK_FULL" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
    assert part_keys(output) == []
    ended = place.run_submit(output)
    assert ended.code == 0, ended
    check_finished(place, output, reference)


@contextmanager
def _each_worker(place: Place, action: Callable[[int], object]) -> Iterator[None]:
    """Does something to every worker process as soon as it is there."""
    ended, seen = threading.Event(), set[int]()

    def watch() -> None:
        while not ended.wait(0.05):
            for pid in place.workers():
                if pid not in seen:
                    seen.add(pid)
                    action(pid)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.long
def test_draft_that_cannot_be_loaded(place: Place, output: Output, reference: pa.Table, tmp_path: Path) -> None:
    """Fault 11: the draft's weights are damaged in a way that only loading shows; the job goes on without it."""
    from safetensors.numpy import load_file, save_file

    import specbatch

    draft = tmp_path / "draft"
    shutil.copytree(Path(specbatch.__file__).parent / "assets" / "code-pair" / "draft-taught", draft)
    weights = load_file(draft / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})
    ended = place.run_submit(output, "--draft", str(draft))
    assert ended.code == 0, ended
    assert "without" in ended.err
    memory = json.loads(output.read("manifest.json"))["observed"]["memory"]
    assert [each["draft_bytes"] for each in memory] == [0], "no draft model; the suffix index may still propose"
    check_finished(place, output, reference)
