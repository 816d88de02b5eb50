"""The commands on an output that lies on S3: the same as on local disk, over a real server."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from s3_server import FaultRule, S3Server
from stored_output import NUM_ROWS, begin, finish, write_parts
from test_outputs_cancel_gc import held, held_elsewhere

from specbatch import load
from specbatch.jobs.cli import app as cli
from specbatch.jobs.output.cancel import cancel_requested
from specbatch.jobs.output.lease import HeldLease, acquire, read_lease
from specbatch.jobs.spec.settings import Layer
from specbatch.jobs.upkeep import doctor
from specbatch.jobs.upkeep.amendments import prepare_retry
from specbatch.jobs.upkeep.cancel import cancel_output
from specbatch.jobs.upkeep.gc import collect_garbage
from specbatch.jobs.upkeep.repair import prepare_repair
from specbatch.jobs.upkeep.resume import open_output, prepare_resume
from specbatch.jobs.watching.status import read_status
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import part_name
from specbatch.storage.probe import probe_store
from specbatch.storage.store import open_store

NOTHING = Layer({}, {})


@pytest.fixture
def uri(s3_server: S3Server) -> str:
    return f"s3://{s3_server.new_bucket()}/nightly/out"


def test_a_life_of_an_output(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = begin(tmp_path, uri=uri)
    write_parts(output, shards={0, 2})
    status = read_status(uri)
    assert (status.state, status.parts_done, status.num_parts) == ("interrupted", 2, 4)
    assert sorted(output.ledger.find_parts(output.stored)) == [0, 2]
    prepared = prepare_resume(uri, NOTHING)
    assert (prepared.output, prepared.identity) == (uri, output.stored.document.identity)

    lease, epoch = held(output)
    assert not cancel_requested(output.store, epoch)
    assert "was asked to stop" in cancel_output(uri)
    assert cancel_requested(output.store, epoch)
    with pytest.raises(SpecbatchError) as caught:
        collect_garbage(uri)
    assert caught.value.code is ErrorCode.JOB_LIVE
    lease.release()

    finish(output, {(7, 0): "ROW_MEMORY"})
    assert cli.run(["resume", uri, "--format", "quiet"]) == 3
    retry = prepare_retry(uri, NOTHING)
    assert retry is not None
    assert retry.prepared.output == f"{uri}/amendments/1"
    finish(open_output(retry.prepared.output))
    capsys.readouterr()
    assert cli.run(["report", uri]) == 0
    assert f"{uri} with 1 amendment: 20 ok, no errors" in capsys.readouterr().out
    table = load(uri)
    assert table.column("row_id").to_pylist() == list(range(NUM_ROWS))
    assert set(table.column("status").to_pylist()) == {"ok"}

    output.store.create("data/part-000000-0123456789abcdef.parquet", b"x")
    report = collect_garbage(uri, remove_foreign=True)
    assert (len(report.foreign), report.unknown) == (1, [])
    assert len(output.store.list("data")) == 4


def test_repair_from_and_to_s3(uri: str, tmp_path: Path, s3_server: S3Server) -> None:
    output = begin(tmp_path, uri=uri)
    finish(output)
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    name = part_name(1, output.stored.plan)
    data = bytearray(output.store.read(name))
    data[len(data) // 2] ^= 1
    s3_server.put(bucket, f"{prefix}/{name}", bytes(data))
    for new in (str(tmp_path / "local"), f"{uri}-repaired"):
        repair = prepare_repair(uri, new, NOTHING)
        assert repair.num_copied == 3
        assert name in repair.unsound[0]
        found = open_output(new)
        assert sorted(found.ledger.find_parts(found.stored)) == [0, 2, 3]
        for shard in (0, 2, 3):
            key = part_name(shard, output.stored.plan)
            assert found.store.read(key) == output.store.read(key)


@pytest.mark.parametrize("kind", ["nothing", "released"])
def test_of_many_that_want_the_lease_at_once_one_gets_it(uri: str, kind: str) -> None:
    """Fault 24: the lease is taken by compare-and-swap, from nothing and from a holder that is gone alike."""
    store = open_store(uri)
    if kind == "released":
        acquire(store).release()
    won: list[HeldLease] = []
    lost: list[str] = []
    barrier = threading.Barrier(6)

    def renew(seconds: float) -> None:
        if won:
            won[0].renew(1)

    def take() -> None:
        barrier.wait()
        try:
            won.append(acquire(store, sleep=renew))
        except SpecbatchError as error:
            lost.append(error.code)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), lost) == (1, [ErrorCode.JOB_HELD] * 5)
    assert won[0].renew(2)


def test_a_lost_reply_to_a_renewal_and_a_stolen_lease(uri: str, s3_server: S3Server) -> None:
    """Faults 28 and 43."""
    store = open_store(uri)
    lease = acquire(store)
    s3_server.inject(FaultRule("PUT", "lease.json", "drop", is_done=True))
    assert lease.renew(1)
    assert lease.renew(2)
    lease.release()
    thief = held_elsewhere(store)
    assert not lease.renew(3)
    assert read_lease(store) == thief


def test_status_reads_footers_of_nothing_and_imports_no_torch(uri: str, tmp_path: Path) -> None:
    write_parts(begin(tmp_path, uri=uri), shards={0})
    script = (
        "import sys\nfrom specbatch.jobs.cli import app as cli\ncli.run(sys.argv[1:])\n"
        "print('HEAVY', *(name for name in ('torch', 'ray', 'boto3') if name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, "status", uri], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY boto3"
    assert "5 of 20 rows (1 of 4 parts)" in done.stdout


@pytest.fixture
def short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "probe_store", partial(probe_store, num_creators=4, num_keys=2))


@pytest.mark.usefixtures("short_probe")
def test_a_prefix_is_probed_and_left_empty(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", uri, "--device", "cpu"]) == 0
    assert "store: create-once under concurrency" in capsys.readouterr().out
    assert open_store(uri).list("") == []


@pytest.mark.usefixtures("short_probe")
def test_a_store_that_lies_is_refused_and_single_writer_is_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault 46."""
    server = S3Server(racy_seconds=0.05)
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        uri = f"s3://{server.new_bucket()}/out"
        assert cli.run(["doctor", uri, "--device", "cpu"]) == 2
        assert "STORE_NOT_ATOMIC" in capsys.readouterr().out
        assert cli.run(["doctor", uri, "--device", "cpu", "--single-writer"]) == 0
        assert "warn  store: create-once" in capsys.readouterr().out
    finally:
        server.stop()
