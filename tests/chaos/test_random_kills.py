"""Real jobs, killed at random moments on local disk and on S3, then run again until they finish.

    make chaos                                          # 2 runs on each store
    CHAOS_RUNS=25 make chaos                            # fifty runs: estimated at an hour, from single ones
    CHAOS_RUNS=25 CHAOS_SEED=7 CHAOS_STORES=s3 make chaos

A run kills a job up to four times: its driver, a worker, everything at once, or a process is only stopped for a
while. On S3 the fault proxy loses, delays, repeats, refuses and cuts requests all the time. Then the job is run to its
end. Nothing may be lost, nothing may be there twice, a part that has been seen may never change, and the text must be
that of a run that nobody disturbed. A run that fails prints its seed; the same seed draws the same victims and delays.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import actions
import pyarrow as pa
import pytest
from outputs import BucketOutput, LocalOutput, Output, part_keys, read_rows, s3_client
from proxy import FaultProxy, Reply, Request
from s3_server import S3Server
from whole_jobs import Place, check_finished, check_kept, finish, kill, read_parts

RUNS = int(os.environ.get("CHAOS_RUNS", "2"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
STORES = os.environ.get("CHAOS_STORES", "local,s3").split(",")
MAX_KILLS = 4
MAX_ATTEMPTS = 12

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pa.Table]:
    place = Place(tmp_path_factory.mktemp("undisturbed") / "place")
    output = LocalOutput(place.root / "out")
    ended = place.run_submit(output, "--draft", "none")
    assert ended.code == 0, ended
    yield read_rows(output)
    place.close()


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    server = S3Server()
    yield server.endpoint.removeprefix("http://")
    server.stop()


@pytest.fixture(scope="module")
def proxy(s3_address: str) -> Iterator[FaultProxy]:
    found = FaultProxy(s3_address)
    yield found
    found.close()


@pytest.fixture
def where(request: pytest.FixtureRequest, tmp_path: Path, store: str) -> Iterator[tuple[Place, Output]]:
    endpoint: str | None = None
    output: Output = LocalOutput(tmp_path / "out")
    if store == "s3":
        endpoint = request.getfixturevalue("proxy").endpoint
        client = s3_client(f"http://{request.getfixturevalue('s3_address')}")
        bucket = f"chaos-{secrets.token_hex(6)}"
        client.create_bucket(Bucket=bucket)
        output = BucketOutput(client, bucket, "out")
    place = Place(tmp_path / "place", endpoint)
    yield place, output
    place.close()


def truncate_some(request: Request, forward: actions.Forward) -> Reply:
    """An answer that breaks off in the middle, where it has one."""
    reply = forward(request)
    return replace(reply, num_bytes_sent=len(reply.body) // 2)


def make_trouble(proxy: FaultProxy, seed: int) -> None:
    """A network and a store that fail about every eighth request, each in its own way."""
    proxy.reset(seed)
    for operations, action, probability in (
        ("PUT", actions.lose_reply(), 0.03),
        ("PUT", actions.hold(2.0), 0.02),
        ("PUT", actions.duplicate(), 0.02),
        ("PUT", actions.conflict, 0.03),
        ("PUT", actions.answer_after(500, "InternalError"), 0.02),
        ("GET", truncate_some, 0.02),
        ("", actions.lose_request(), 0.03),
        ("", actions.slow_down, 0.04),
        ("", actions.internal_error, 0.02),
        ("", actions.delay(0.5), 0.02),
    ):
        proxy.on(operations, "", action, times=None, probability=probability)


def wait_for_a_moment(output: Output, process: subprocess.Popen[str], chance: random.Random) -> str:
    """Some seconds after the start, or a moment after some part; on a slow machine and on a fast one."""
    num_more, pause = chance.choice([0, 0, 1, 2, 3, 5, 8]), chance.uniform(0, 10)
    if num_more == 0:
        time.sleep(pause)
        return f"{pause:.1f} s after the start"
    wanted = len(part_keys(output)) + num_more
    while process.poll() is None and len(part_keys(output)) < wanted:
        time.sleep(0.02)
    time.sleep(pause / 10)
    return f"{pause / 10:.2f} s after part {wanted}"


def disturb(place: Place, process: subprocess.Popen[str], chance: random.Random) -> str:
    """SIGKILL the driver, a worker or everything at once; or stop one of them for some seconds."""
    victim = chance.choice(["driver", "worker", "all", "driver stopped", "worker stopped"])
    workers = place.workers()
    targets = {"driver": [process.pid], "worker": workers[:1], "all": [process.pid, *place.processes()]}
    for pid in targets[victim.split()[0]]:
        kill(pid, signal.SIGSTOP if "stopped" in victim else signal.SIGKILL)
    if "stopped" in victim:
        time.sleep(chance.uniform(1, 8))
        for pid in targets[victim.split()[0]]:
            kill(pid, signal.SIGCONT)
    return victim


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("number", range(RUNS))
def test_a_job_that_is_killed_at_random_moments(
    request: pytest.FixtureRequest, where: tuple[Place, Output], store: str, number: int, undisturbed: pa.Table
) -> None:
    """Faults 1 to 4, 22 and 27 to 34 in random order."""
    chance = random.Random(f"{SEED}/{store}/{number}")
    place, output = where
    proxy = request.getfixturevalue("proxy") if store == "s3" else None
    if proxy is not None:
        make_trouble(proxy, chance.randrange(1 << 30))
    kept: dict[str, bytes] = {}
    for attempt in range(MAX_ATTEMPTS):
        options = ["--speculation", str(chance.randint(1, 6)), "--workers", chance.choice("12")]
        process = place.submit(output, *options)
        if attempt < MAX_KILLS:
            moment = wait_for_a_moment(output, process, chance)
            if process.poll() is None:
                victim = disturb(place, process, chance)
                print(f"seed {SEED}, {store} {number}, attempt {attempt}: {victim} {moment}")
        ended = finish(process, 400)
        assert "Traceback" not in ended.err, ended
        check_kept(output, kept)
        kept = read_parts(output)
        if ended.code == 0:
            break
    assert ended.code == 0, ended
    if proxy is not None:
        print(f"{sum(exchange.was_faulty for exchange in proxy.requests())} of {len(proxy.requests())} requests failed")
        proxy.reset()
    check_finished(place, output, undisturbed)
