"""``cancel`` reaches the run that is alive and no other; ``gc`` removes what nobody needs, never a part of the job."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from stored_output import begin, finish, run_record, write_parts

from specbatch.jobs.cli import app as cli
from specbatch.jobs.output.cancel import cancel_requested, request_cancel
from specbatch.jobs.output.lease import LEASE_KEY, HeldLease, LeaseDocument, acquire, read_lease
from specbatch.jobs.spec.settings import Layer
from specbatch.jobs.upkeep.amendments import prepare_retry
from specbatch.jobs.upkeep.cancel import cancel_output
from specbatch.jobs.upkeep.gc import STALE_SECONDS, AbortsUploads, collect_garbage, render_gc
from specbatch.jobs.upkeep.resume import StoredOutput, open_output
from specbatch.jobs.watching.status import read_status
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import CancelDocument
from specbatch.storage.local import LocalStore
from specbatch.storage.store import Store


def held(output: StoredOutput) -> tuple[HeldLease, int]:
    """A run of this process that has taken the lease and an epoch, as a real one does."""
    lease = acquire(output.store)
    epoch = output.ledger.begin_run(run_record()).epoch
    assert lease.renew(epoch)
    return lease, epoch


def held_elsewhere(store: Store) -> LeaseDocument:
    lease = acquire(store)
    found = read_lease(store)
    assert found is not None
    elsewhere = replace(found, host="elsewhere")
    store.replace(LEASE_KEY, json.dumps({name: getattr(elsewhere, name) for name in LeaseDocument.__slots__}).encode())
    del lease
    return elsewhere


def test_the_running_epoch_is_asked_once(tmp_path: Path) -> None:
    output = begin(tmp_path)
    write_parts(output, shards={0})
    lease, epoch = held(output)
    assert not cancel_requested(output.store, epoch)
    line = cancel_output(output.uri)
    assert f"process {os.getpid()}" in line
    assert "exit 143" in line
    assert f"specbatch resume {output.uri}" in line
    assert cancel_requested(output.store, epoch)
    assert not cancel_requested(output.store, epoch + 1), "the next run is not asked"
    assert "had been asked" in cancel_output(output.uri)
    document = json.loads(output.store.read(f"_specbatch/cancel-{epoch}.json"))
    assert (document["format"], document["epoch"], document["pid"]) == ("specbatch/cancel/1", epoch, os.getpid())
    lease.release()


def test_a_run_that_has_no_epoch_in_its_lease_yet_is_asked_all_the_same(tmp_path: Path) -> None:
    output = begin(tmp_path)
    lease = acquire(output.store)
    epoch = output.ledger.begin_run(run_record()).epoch
    assert request_cancel(output.store).state == "asked"
    assert cancel_requested(output.store, epoch)
    lease.release()


def test_a_run_that_has_no_epoch_at_all_yet_is_asked_all_the_same(tmp_path: Path) -> None:
    """It has the lease, with the epoch of the run before, and looks at what is there."""
    output = begin(tmp_path)
    before, last = held(output)
    assert request_cancel(output.store).state == "asked"
    before.release()
    lease = acquire(output.store)
    assert not cancel_requested(output.store, last + 1, lease.token), "what the run before was asked is no concern"
    assert request_cancel(output.store).state == "asked", "the run before was, this one was not"
    assert request_cancel(output.store).state == "asked before"
    epoch = output.ledger.begin_run(run_record()).epoch
    assert epoch == last + 1
    assert cancel_requested(output.store, epoch, lease.token)
    assert lease.renew(epoch)
    assert cancel_requested(output.store, epoch), "as status asks"
    lease.release()
    again, next_epoch = held(output)
    assert not cancel_requested(output.store, next_epoch, again.token), "the next run is not asked"
    again.release()


def test_a_request_of_an_earlier_version_is_understood(tmp_path: Path) -> None:
    output = begin(tmp_path)
    lease, epoch = held(output)
    old = {"format": "specbatch/cancel/1", "epoch": epoch, "requested_at": "", "host": "h", "pid": 1}
    assert CancelDocument(**old).token == ""
    output.store.create(f"_specbatch/cancel-{epoch}.json", json.dumps(old).encode())
    assert cancel_requested(output.store, epoch, lease.token)
    lease.release()


def test_where_nothing_runs_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = begin(tmp_path)
    assert cli.run(["cancel", output.uri]) == 0
    assert f"nothing runs on {output.uri}; " in capsys.readouterr().out
    held(output)[0].release()
    assert cli.run(["cancel", output.uri]) == 0
    assert "nothing runs" in capsys.readouterr().out
    finish(output)
    assert cancel_output(output.uri) == f"nothing runs on {output.uri}: the job is complete"
    assert not list((tmp_path / "out/_specbatch").glob("cancel-*"))
    assert cli.run(["cancel", str(tmp_path / "nowhere")]) == 2


def test_the_run_of_an_amendment_is_reached_through_its_job(tmp_path: Path) -> None:
    output = begin(tmp_path)
    finish(output, {(3, 0): "ROW_MEMORY"})
    retry = prepare_retry(output.uri, Layer({}, {}))
    assert retry is not None
    child = open_output(retry.prepared.output)
    lease, epoch = held(child)
    assert f"the run on {child.uri} " in cancel_output(output.uri)
    assert cancel_requested(child.store, epoch)
    lease.release()


def test_status_tells_how_to_stop_and_that_it_was_asked(tmp_path: Path) -> None:
    from specbatch.schemas.run import ProgressDocument

    output = begin(tmp_path)
    assert f"specbatch resume {output.uri}" in read_status(output.uri).next_step
    lease, epoch = held(output)
    values = dict.fromkeys(("num_rows", "num_parts", "parts_done", "rows_in_parts", "rows_done", "num_errors"), 0)
    import socket
    from datetime import UTC, datetime

    progress = ProgressDocument(
        format="specbatch/progress/1",
        epoch=epoch,
        host=socket.gethostname(),
        pid=os.getpid(),
        updated_at=datetime.now(UTC).isoformat(),
        state="running",
        completion_tokens=0,
        tokens_per_second=0.0,
        acceptance_rate=None,
        mean_emitted=None,
        eta_seconds=None,
        workers=[],
        **values,
    )
    output.ledger.write_progress(progress)
    assert f"specbatch cancel {output.uri}" in read_status(output.uri).next_step
    cancel_output(output.uri)
    assert "was asked to stop" in read_status(output.uri).next_step
    lease.release()


def spool(output: StoredOutput, *, age_seconds: float = 0.0) -> Path:
    path = output.store.spool_path()
    path.write_bytes(b"half a part")
    os.utime(path, (time.time() - age_seconds,) * 2)
    return path


def test_spooled_files_go_and_everything_of_the_job_stays(tmp_path: Path) -> None:
    output = begin(tmp_path)
    finish(output, {(3, 0): "ROW_MEMORY"})
    retry = prepare_retry(output.uri, Layer({}, {}))
    assert retry is not None
    child = open_output(retry.prepared.output)
    finish(child)
    lock = tmp_path / "out/_specbatch/tmp/swap.lock"
    held(output)[0].release()
    assert lock.exists()
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    leftovers = [spool(output), spool(child)]
    report = collect_garbage(output.uri, remove_foreign=True)
    assert (report.num_spool_files, report.spool_bytes, report.foreign, report.unknown) == (2, 22, [], [])
    assert not any(path.exists() for path in leftovers)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before, "the lock of swaps stays too"
    assert "nothing to remove" in render_gc(collect_garbage(output.uri))


def test_a_live_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = begin(tmp_path)
    path = spool(output)
    lease, _ = held(output)
    assert cli.run(["gc", output.uri, "--yes"]) == 6
    assert "JOB_LIVE" in capsys.readouterr().err
    assert path.exists()
    lease.release()
    assert cli.run(["gc", output.uri]) == 0
    assert "removed 1 spool file (11 B)" in capsys.readouterr().out


def test_a_silent_holder_elsewhere_keeps_what_is_younger_than_a_day(tmp_path: Path) -> None:
    output = begin(tmp_path)
    held_elsewhere(output.store)
    young, old = spool(output), spool(output, age_seconds=STALE_SECONDS + 5)
    slept: list[float] = []
    report = collect_garbage(output.uri, sleep=slept.append)
    assert sum(slept) == 30
    assert (young.exists(), old.exists(), report.num_spool_files) == (True, False, 1)


def test_a_holder_elsewhere_that_renews_is_live(tmp_path: Path) -> None:
    output = begin(tmp_path)
    lease = held_elsewhere(output.store)

    def renew(seconds: float) -> None:
        renewed = replace(lease, renewals=lease.renewals + 1)
        fields = {name: getattr(renewed, name) for name in LeaseDocument.__slots__}
        output.store.replace(LEASE_KEY, json.dumps(fields).encode())

    with pytest.raises(SpecbatchError) as caught:
        collect_garbage(output.uri, sleep=renew)
    assert caught.value.code is ErrorCode.JOB_LIVE


def test_foreign_parts_are_listed_and_removed_only_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault 26: a zombie of an older job left a part of its plan."""
    output = begin(tmp_path)
    write_parts(output, shards={0, 1})
    foreign, strange = "data/part-000000-0123456789abcdef.parquet", "data/notes.txt"
    beyond = f"data/part-000099-{output.stored.plan}.parquet"
    for key in (foreign, strange, beyond):
        output.store.create(key, b"x")
    report = collect_garbage(output.uri)
    assert report.foreign == [f"{output.uri}/{foreign}"]
    assert report.unknown == [f"{output.uri}/{strange}", f"{output.uri}/{beyond}"]
    assert "found, remove with --yes: 1 part of other plans" in render_gc(report)
    kept = output.store.list("data")
    assert len(kept) == 5
    assert cli.run(["gc", output.uri, "--yes", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed_foreign"] is True
    assert output.store.list("data") == [key for key in kept if key != foreign]


def test_what_a_killed_probe_left_goes(tmp_path: Path) -> None:
    output = begin(tmp_path)
    output.store.create("_specbatch/probe-0123456789abcdef/race-1", b"x")
    assert collect_garbage(output.uri).num_probe_objects == 1
    assert not [key for key in output.store.list("") if "probe-" in key]


def test_uploads_are_aborted_where_the_store_can_hold_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = begin(tmp_path)
    assert not isinstance(output.store, AbortsUploads)
    asked: list[float] = []

    def abort_uploads(self: LocalStore, older_than_seconds: float) -> int:
        asked.append(older_than_seconds)
        return 2

    monkeypatch.setattr(LocalStore, "abort_uploads", abort_uploads, raising=False)
    assert collect_garbage(output.uri).num_uploads == 2
    assert asked == [STALE_SECONDS]
