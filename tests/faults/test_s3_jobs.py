"""Whole jobs on S3 with the fault proxy in between: rows 30, 33 to 36, 39, 40, 45 and 46 of the fault matrix."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import actions
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from outputs import CREDENTIALS, BucketOutput, part_keys, read_rows
from proxy import FaultProxy, Reply, Request
from whole_jobs import (
    DATASET,
    NUM_PARTS,
    NUM_ROWS,
    OPTIONS,
    SHARD_ROWS,
    Place,
    check_finished,
    check_kept,
    finish,
    read_parts,
    wait_for_parts,
    wait_until,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

PATIENCE = "SPECBATCH_STORE_PATIENCE_SECONDS"
PADDING_BYTES = 1 << 18


@pytest.fixture
def dataset(s3: Any, bucket: str) -> str:
    """The input on S3."""
    s3.put_object(Bucket=bucket, Key="in/prompts.parquet", Body=DATASET.read_bytes())
    return f"s3://{bucket}/in/prompts.parquet"


@pytest.mark.long
def test_job_through_a_bad_network(
    s3_place: Place, bucket_output: BucketOutput, dataset: str, proxy: FaultProxy, reference: pa.Table, tmp_path: Path
) -> None:
    """Faults 3, 27, 28, 30, 33, 34 and 39 at once, input and output on S3, and a worker that is killed after a PUT."""
    proxy.on("PUT", "/data/", actions.lose_reply(), times=2)
    proxy.on("PUT", "/data/", actions.lose_request(), times=2)
    proxy.on("PUT", "/data/", actions.conflict, times=2)
    proxy.on("PUT", "/data/", actions.answer_after(500, "InternalError"), times=1)
    proxy.on("GET", "prompts", actions.truncate(100), times=3, first=2)
    proxy.on("PUT", "manifest.json|_SUCCESS|job.json|plan-", actions.lose_reply(), times=4)
    proxy.on("", "", actions.slow_down, times=None, probability=0.1)
    proxy.on("GET HEAD LIST", "", actions.internal_error, times=None, probability=0.05)
    process = s3_place.start(
        "submit", dataset, *OPTIONS, "--output", bucket_output.uri,
        SPECBATCH_FAILPOINT=f"part_create:after:4:kill@{tmp_path}/once",
    )  # fmt: skip
    ended = finish(process)
    assert ended.code == 0, ended
    assert (tmp_path / "once").exists()
    faulty = proxy.requests()
    assert sum(exchange.was_faulty for exchange in faulty) > 15
    proxy.reset()
    check_finished(s3_place, bucket_output, reference)
    conditional = [
        exchange for exchange in faulty if exchange.request.operation == "PUT" and "/data/" in exchange.request.key
    ]
    assert all(exchange.request.header("If-None-Match") == "*" for exchange in conditional)


def test_refused_output_is_told_before_anything_is_loaded(
    s3_place: Place, bucket_output: BucketOutput, proxy: FaultProxy
) -> None:
    """Fault 36: nothing may be written; the command says so and ends without a Ray and without a model."""
    proxy.on("PUT", "", actions.access_denied, times=None)
    ended = s3_place.run_submit(bucket_output)
    assert ended.code == 2, ended
    assert "JOB_STORE_DENIED" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
    assert bucket_output.keys("") == []


def test_store_that_lies_is_refused(s3_place: Place, bucket_output: BucketOutput, proxy: FaultProxy) -> None:
    """Fault 46: a store where every creator wins; the job is refused before its plan is written."""
    proxy.on("PUT", "", actions.ignore_conditions(), times=None)
    ended = s3_place.run_submit(bucket_output)
    assert ended.code == 2, ended
    assert "STORE_NOT_ATOMIC" in ended.err
    assert "_specbatch/job.json" not in bucket_output.keys("")
    assert part_keys(bucket_output) == []


def test_clock_that_is_an_hour_off_is_refused(s3_place: Place, bucket_output: BucketOutput, proxy: FaultProxy) -> None:
    """Fault 42: this machine's clock is an hour from the store's; the line names the clock."""
    proxy.on("", "", actions.shift_clock(3600), times=None)
    ended = s3_place.run_submit(bucket_output)
    assert ended.code == 2, ended
    assert "STORE_CLOCK_SKEW" in ended.err.splitlines()[-1]


COORDINATOR_KEYS = ["/plan-", "/job.json", "/lease.json", "/runs/", "/progress.json", "/manifest.json", "/_SUCCESS"]
"""What a coordinator puts; the parts are the workers'."""


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_coordinator_killed_at_each_kind_of_put(
    s3_place: Place, bucket_output: BucketOutput, proxy: FaultProxy, reference: pa.Table
) -> None:
    """Faults 22 and 23 on S3: SIGKILL while a PUT of the coordinator is on its way, right before and right after it."""
    kept: dict[str, bytes] = {}
    for key in COORDINATOR_KEYS:
        for is_done in (False, True):
            process = s3_place.submit(bucket_output)

            def kill_driver(
                request: Request, forward: actions.Forward, pid: int = process.pid, is_done: bool = is_done
            ) -> None:
                if is_done:
                    forward(request)
                os.kill(pid, signal.SIGKILL)

            proxy.reset()
            proxy.on("PUT", key, kill_driver)
            ended = finish(process)
            assert ended.code == -signal.SIGKILL, f"{key} {is_done}: {ended}"
            wait_until(lambda: not s3_place.workers(), seconds=60)
            check_kept(bucket_output, kept)
            kept = read_parts(bucket_output)
    proxy.reset()
    ended = s3_place.run_submit(bucket_output)
    assert ended.code == 0, ended
    check_kept(bucket_output, kept)
    check_finished(s3_place, bucket_output, reference)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_storm(s3_place: Place, bucket_output: BucketOutput, proxy: FaultProxy, reference: pa.Table) -> None:
    """Fault 33: half of all requests of a whole job are told to slow down.

    The store is known: its probe, some hundred requests of which each round waits for the slowest, was made in peace.
    """
    known = s3_place.run("doctor", bucket_output.uri)
    assert known.code == 0, known
    proxy.on("", "", actions.slow_down, times=None, probability=0.5)
    ended = s3_place.run_submit(bucket_output, seconds=1200.0)
    assert ended.code == 0, ended
    proxy.reset()
    check_finished(s3_place, bucket_output, reference)


@pytest.mark.long
def test_credentials_expire_mid_run(
    s3_place: Place, bucket_output: BucketOutput, proxy: FaultProxy, reference: pa.Table, tmp_path: Path
) -> None:
    """Fault 35: the keys of a file expire behind the second part; new ones are in the file a little later."""
    file = tmp_path / "credentials"

    def write_credentials(name: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(f"[default]\naws_access_key_id = {name}\naws_secret_access_key = secret\n")
        fresh.replace(file)

    def expired(request: Request, forward: actions.Forward) -> Reply:
        if "OLDKEY" in (request.header("Authorization") or ""):
            return actions.error_reply(403, "ExpiredToken")
        return forward(request)

    write_credentials("OLDKEY")
    variables = {name: "" for name in CREDENTIALS if name != "AWS_DEFAULT_REGION"}
    process = s3_place.submit(bucket_output, AWS_SHARED_CREDENTIALS_FILE=str(file), **variables)
    kept = wait_for_parts(bucket_output, 2, process)
    proxy.on("", "", expired, times=None)
    time.sleep(3)
    assert process.poll() is None, finish(process)
    write_credentials("NEWKEY")
    ended = finish(process)
    assert ended.code == 0, ended
    assert "OLDKEY" not in ended.err
    proxy.reset()
    check_kept(bucket_output, kept)
    check_finished(s3_place, bucket_output, reference)


@pytest.mark.long
def test_credentials_that_stay_expired_end_the_run(
    s3_place: Place, bucket_output: BucketOutput, proxy: FaultProxy, reference: pa.Table
) -> None:
    """Fault 35: nobody renews them; the run ends, its parts stay, and it goes on with new ones."""
    process = s3_place.submit(bucket_output, **{PATIENCE: "6"})
    wait_for_parts(bucket_output, 2, process)
    proxy.on("", "", actions.expired_token, times=None)
    ended = finish(process)
    assert ended.code in (2, 8), ended
    assert "Traceback" not in ended.err
    proxy.reset()
    kept = read_parts(bucket_output)
    ended = s3_place.run_submit(bucket_output)
    assert ended.code == 0, ended
    check_kept(bucket_output, kept)
    check_finished(s3_place, bucket_output, reference)


@pytest.mark.long
def test_worker_cut_off_from_the_store(
    s3_place: Place, bucket_output: BucketOutput, proxy: FaultProxy, reference: pa.Table
) -> None:
    """Fault 45: nothing that is put under ``data/`` is answered for a while; attempts are bounded, nothing is lost."""
    proxy.on("PUT", "/data/", actions.blackhole(30), first=3, times=4)
    ended = s3_place.run_submit(bucket_output, **{PATIENCE: "8"})
    if ended.code != 0:  # every attempt fell into the hole: the next run goes on
        assert ended.code == 8, ended
        ended = s3_place.run_submit(bucket_output)
    assert ended.code == 0, ended
    proxy.reset()
    check_finished(s3_place, bucket_output, reference)


@pytest.mark.long
def test_store_gone_for_good(
    s3_place: Place, bucket_output: BucketOutput, proxy: FaultProxy, reference: pa.Table
) -> None:
    """Faults 34 and 45: the store stops answering mid-run; the run ends with its exit code, and resumes later."""
    process = s3_place.submit(bucket_output, **{PATIENCE: "6"})
    wait_for_parts(bucket_output, 2, process)
    proxy.on("", "", actions.lose_request(), times=None)
    ended = finish(process)
    assert ended.code == 8, ended
    assert "JOB_STORE_LOST" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
    proxy.reset()
    kept = read_parts(bucket_output)
    ended = s3_place.run_submit(bucket_output)
    assert ended.code == 0, ended
    check_kept(bucket_output, kept)
    check_finished(s3_place, bucket_output, reference)


@pytest.mark.long
def test_input_object_replaced_mid_run(
    s3: Any, s3_place: Place, bucket: str, bucket_output: BucketOutput, tmp_path: Path
) -> None:
    """Fault 40: the input object is another version than was planned: refused, and no row of it gets in.

    Every shard lies a megabyte from the next, so that no worker has read the planned version whole.
    """
    rows = pq.read_table(DATASET).slice(0, NUM_ROWS)
    planned, changed = tmp_path / "planned.parquet", tmp_path / "changed.parquet"
    padding = np.random.default_rng(40).bytes(NUM_ROWS * PADDING_BYTES)
    pads = [padding[at : at + PADDING_BYTES] for at in range(0, len(padding), PADDING_BYTES)]
    padded = rows.append_column("pad", pa.array(pads, pa.binary()))
    others = pa.array(["def g():"] * NUM_ROWS)
    pq.write_table(padded, planned, row_group_size=SHARD_ROWS)
    place = rows.column_names.index("prompt")
    pq.write_table(padded.set_column(place, "prompt", others), changed, row_group_size=SHARD_ROWS)
    s3.put_object(Bucket=bucket, Key="in/padded.parquet", Body=planned.read_bytes())
    process = s3_place.start("submit", f"s3://{bucket}/in/padded.parquet", *OPTIONS, "--output", bucket_output.uri)
    wait_for_parts(bucket_output, 1, process)
    os.kill(process.pid, signal.SIGSTOP)
    s3.put_object(Bucket=bucket, Key="in/padded.parquet", Body=changed.read_bytes())
    os.kill(process.pid, signal.SIGCONT)
    ended = finish(process)
    assert ended.code == 2, ended
    assert "JOB_INPUT_CHANGED" in ended.err.splitlines()[-1]
    assert 1 <= len(part_keys(bucket_output)) < NUM_PARTS
    written = read_rows(bucket_output)
    assert written.column("prompt").to_pylist() == [
        rows.column("prompt")[row_id].as_py() for row_id in written.column("row_id").to_pylist()
    ]


@pytest.mark.long
def test_part_deleted_before_the_manifest(
    s3_place: Place, bucket_output: BucketOutput, proxy: FaultProxy, reference: pa.Table
) -> None:
    """Fault 37: a part vanishes (a lifecycle rule) before the job commits: never a manifest that names it.

    Here the run dies right before its manifest; the next one finds the gap and makes that part again.
    """
    process = s3_place.submit(bucket_output)
    proxy.on("PUT", "/manifest.json", actions.lose_request(process.kill))
    ended = finish(process)
    assert ended.code == -signal.SIGKILL, ended
    bucket_output.delete(part_keys(bucket_output)[5])
    ended = s3_place.run_submit(bucket_output)
    assert ended.code == 0, ended
    check_finished(s3_place, bucket_output, reference)
    bucket_output.delete(part_keys(bucket_output)[5])
    ended = s3_place.run("verify", bucket_output.uri)
    assert ended.code == 7, ended
