"""The S3 store under real faults between it and a real server: rows 27 to 37, 39, 40, 42 and 45 of the fault matrix.

No upload is ever in several pieces, so the rows on multipart uploads (31, 32) are about the one PUT there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import actions
import pytest
from outputs import Output
from proxy import FaultProxy

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage import s3_session
from specbatch.storage.s3_client import bucket_of
from specbatch.storage.s3_file import open_object
from specbatch.storage.store import NotFound, Store, open_store

KEY = "data/part-000000-0123456789abcdef.parquet"
MINE, RIVAL = b"mine" * 1000, b"rival" * 1000


@pytest.fixture
def store(s3_environment: None, bucket_output: Output) -> Store:
    return open_store(bucket_output.uri)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage of four seconds is for good, and a reply that takes two is none."""
    monkeypatch.setenv("SPECBATCH_STORE_PATIENCE_SECONDS", "4")


def test_lost_put_request(store: Store, proxy: FaultProxy) -> None:
    """Fault 27: the PUT never arrives; it is sent again and there is one object."""
    lost = proxy.on("PUT", KEY, actions.lose_request(), times=2)
    assert store.create(KEY, MINE) is True
    assert lost.num_fired == 2
    assert store.read(KEY) == MINE
    assert store.list("data") == [KEY]


def test_lost_put_reply(store: Store, proxy: FaultProxy) -> None:
    """Fault 28: the object is there, its writer was told nothing, and a repetition is told 412: it is its own."""
    lost = proxy.on("PUT", KEY, actions.lose_reply())
    assert store.create(KEY, MINE) is True
    assert lost.num_fired == 1
    assert store.read(KEY) == MINE
    assert store.create(KEY, MINE) is False, "equal bytes of another call are not one's own write"


def test_every_put_reply_is_lost(store: Store, proxy: FaultProxy) -> None:
    """Fault 28, again and again: whatever the number of repetitions, one object and one winner."""
    proxy.on("PUT", KEY, actions.lose_reply(), times=None)
    assert store.create(KEY, MINE) is True
    assert store.create(KEY, RIVAL) is False
    assert store.read(KEY) == MINE


def test_lost_put_reply_of_a_file(store: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    """Fault 28 with a spooled file: its bytes are sent again from the start."""
    spool = tmp_path / "spool"
    spool.write_bytes(MINE)
    proxy.on("PUT", KEY, actions.lose_request())
    proxy.on("PUT", KEY, actions.lose_reply())
    assert store.create(KEY, spool) is True
    assert store.read(KEY) == MINE


def test_lost_reply_to_a_swap(store: Store, proxy: FaultProxy, bucket_output: Output) -> None:
    """Fault 28 for compare-and-swap: the new version is one's own although its repetition was refused."""
    first = store.swap("_specbatch/lease.json", b"1", None)
    assert first is not None
    proxy.on("PUT", "lease", actions.lose_reply())
    second = store.swap("_specbatch/lease.json", b"2", first)
    assert second is not None
    assert store.read_versioned("_specbatch/lease.json") == (b"2", second)
    assert store.swap("_specbatch/lease.json", b"3", first) is None
    assert bucket_output.read("_specbatch/lease.json") == b"2"


def test_lost_swap_and_a_rival_in_between(store: Store, proxy: FaultProxy, bucket_output: Output) -> None:
    """Fault 27 for compare-and-swap: the rival was first, and the repetition does not overwrite it."""
    first = store.swap("lease", b"1", None)
    proxy.on("PUT", "lease", actions.lose_request(lambda: bucket_output.write("lease", b"rival")))
    assert store.swap("lease", b"2", first) is None
    assert bucket_output.read("lease") == b"rival"


@pytest.mark.parametrize("fault", [actions.lose_request, actions.lose_reply])
def test_rival_while_a_put_is_in_doubt(store: Store, proxy: FaultProxy, bucket_output: Output, fault: Any) -> None:
    """Fault 27 and 28 with a rival that writes between the PUT and its repetition: one of the two has won."""

    def rival() -> None:
        if not bucket_output.keys(KEY):
            bucket_output.write(KEY, RIVAL)

    proxy.on("PUT", KEY, fault(rival))
    assert store.create(KEY, MINE) is (fault is actions.lose_reply)
    assert store.read(KEY) == (MINE if fault is actions.lose_reply else RIVAL)


def test_put_applied_late(store: Store, proxy: FaultProxy, bucket_output: Output) -> None:
    """Fault 29: a PUT arrives after a rival has won; the store refuses it and nothing changes."""
    held = actions.Hold(lambda: bucket_output.write(KEY, RIVAL))
    proxy.on("PUT", KEY, held)
    assert store.create(KEY, MINE) is False
    assert [reply.status for reply in held.release()] == [412]
    assert store.read(KEY) == RIVAL


def test_own_put_applied_late(store: Store, proxy: FaultProxy) -> None:
    """Fault 29: a PUT arrives after its own repetition; the object that was acknowledged stays."""
    held = actions.Hold()
    proxy.on("PUT", KEY, held)
    assert store.create(KEY, MINE) is True
    _, version = store.read_versioned(KEY)
    assert [reply.status for reply in held.release()] == [412]
    assert store.read_versioned(KEY) == (MINE, version)


def test_duplicated_put(store: Store, proxy: FaultProxy) -> None:
    """A network that sends the PUT twice and answers with the second outcome, a 412: it is one's own all the same."""
    proxy.on("PUT", KEY, actions.duplicate())
    assert store.create(KEY, MINE) is True
    assert store.create(KEY, RIVAL) is False


def test_conflict_is_not_existence(store: Store, proxy: FaultProxy) -> None:
    """Fault 30: 409 means that someone was at it, not that the object exists; the PUT is repeated."""
    conflicts = proxy.on("PUT", KEY, actions.conflict, times=2)
    assert store.create(KEY, MINE) is True
    assert conflicts.num_fired == 2
    assert store.read(KEY) == MINE


def test_conflict_with_a_rival_that_won(store: Store, proxy: FaultProxy, bucket_output: Output) -> None:
    """Fault 30: behind the 409 a rival has won."""
    refusal = actions.answer(409, "ConditionalRequestConflict", lambda: bucket_output.write(KEY, RIVAL))
    proxy.on("PUT", KEY, refusal)
    assert store.create(KEY, MINE) is False
    assert store.read(KEY) == RIVAL


def test_precondition_failed_without_an_object(store: Store, proxy: FaultProxy, bucket_output: Output) -> None:
    """A 412 although nothing is there (its reason is gone): never taken for existence without a look."""
    proxy.on("PUT", KEY, actions.precondition_failed)
    assert store.create(KEY, MINE) is True
    assert bucket_output.read(KEY) == MINE


def test_error_in_a_200(store: Store, proxy: FaultProxy, bucket_output: Output) -> None:
    """Fault 31: a 200 whose body says that it failed is a failure until the object has been seen."""
    proxy.on("PUT", KEY, actions.error_in_200)
    assert store.create(KEY, MINE) is True
    assert bucket_output.read(KEY) == MINE


def test_refusal_after_the_deed(store: Store, proxy: FaultProxy) -> None:
    """Fault 32: the store has written and then says something else; reading back settles it."""
    for number, (status, code) in enumerate([(404, "NoSuchUpload"), (500, "InternalError"), (503, "SlowDown")]):
        proxy.on("PUT", f"k{number}$", actions.answer_after(status, code))
        assert store.create(f"k{number}", MINE) is True, code
        assert store.read(f"k{number}") == MINE


def test_a_large_part_is_one_put(store: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    """Faults 31 and 32: nothing is uploaded in several pieces, so no completion can be in doubt."""
    spool = tmp_path / "spool"
    spool.write_bytes(bytes(range(256)) * (24 << 12))
    assert store.create(KEY, spool) is True
    (put,) = proxy.requests("PUT POST", "/data/")
    assert "?" not in put.request.target or "upload" not in put.request.target
    assert put.request.header("If-None-Match") == "*"
    assert store.size(KEY) == 24 << 20


def test_slow_down_storm(store: Store, proxy: FaultProxy) -> None:
    """Fault 33: half of all requests are told to slow down; everything completes, each object once."""
    proxy.on("", "", actions.slow_down, times=None, probability=0.5)
    keys = [f"data/{number:02d}" for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        created = list(pool.map(lambda key: store.create(key, key.encode()), keys))
    assert created == [True] * len(keys)
    assert store.list("data") == keys
    assert [store.read(key) for key in keys] == [key.encode() for key in keys]
    refused = [exchange for exchange in proxy.requests() if exchange.was_faulty]
    assert len(refused) >= len(keys)


def test_retries_are_spaced_out(store: Store, proxy: FaultProxy) -> None:
    """Fault 33: a refused request waits longer each time."""
    proxy.on("PUT", KEY, actions.slow_down, times=4)
    assert store.create(KEY, MINE) is True
    times = [exchange.at_seconds for exchange in proxy.requests("PUT", KEY)]
    gaps = [after - before for before, after in pairwise(times)]
    assert len(gaps) == 4
    assert max(gaps[2:]) > min(gaps[:2])
    assert sum(gaps) > 0.2


@pytest.mark.parametrize("fault", ["500", "lost", "cut"])
@pytest.mark.parametrize("operation", ["LIST", "HEAD", "GET"])
def test_failing_reads_are_repeated(store: Store, proxy: FaultProxy, operation: str, fault: str) -> None:
    """Fault 34: a listing, a look or a read that fails is repeated; what exists is never read as absent."""
    store.create(KEY, MINE)
    action = {"500": actions.internal_error, "lost": actions.lose_request(), "cut": actions.lose_reply()}[fault]
    failing = proxy.on(operation, "", action, times=2)
    for _ in range(2):
        assert store.list("data") == [KEY]
        assert store.size(KEY) == len(MINE)
        assert store.read(KEY) == MINE
        with store.open(KEY) as file:
            assert file.read() == MINE
    assert failing.num_fired == 2
    assert store.create(KEY, RIVAL) is False


@pytest.mark.parametrize("status", [(500, "InternalError"), (503, "SlowDown")])
def test_reads_that_fail_for_good_say_so(
    store: Store, impatient: None, proxy: FaultProxy, status: tuple[int, str]
) -> None:
    """Fault 34: an endless outage is an error with a code, never an empty listing and never "not found"."""
    store.create(KEY, MINE)
    proxy.on("LIST HEAD GET", "", actions.answer(*status), times=None)
    reads: list[Callable[[], object]] = [
        lambda: store.list("data"), lambda: store.size(KEY), lambda: store.read(KEY), lambda: store.open(KEY).read()
    ]  # fmt: skip
    for read in reads:
        with pytest.raises(SpecbatchError) as caught:
            read()
        assert caught.value.code is ErrorCode.JOB_STORE_LOST
        assert "\n" not in caught.value.message


def test_a_missing_bucket_is_not_an_empty_one(s3_environment: None) -> None:
    """Fault 37: a bucket that was deleted is an error, not a place without objects."""
    store = open_store("s3://no-such-bucket-here/out")
    for call in (lambda: store.list("data"), lambda: store.read(KEY), lambda: store.create(KEY, b"")):
        with pytest.raises(SpecbatchError) as caught:
            call()
        assert "no-such-bucket-here" in caught.value.message


def test_expired_credentials_are_read_anew(
    store: Store, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 35: after ExpiredToken the provider chain is asked again, and a finished part is put all the same."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))

    def write_credentials(name: str) -> None:
        file.write_text(f"[default]\naws_access_key_id = {name}\naws_secret_access_key = secret\n")

    write_credentials("OLDKEY")
    assert store.create("data/before", b"x") is True
    assert "OLDKEY" in (proxy.requests("PUT", "before")[-1].request.header("Authorization") or "")
    write_credentials("NEWKEY")
    proxy.on("PUT", KEY, actions.expired_token)
    assert store.create(KEY, MINE) is True
    assert "NEWKEY" in (proxy.requests("PUT", KEY)[-1].request.header("Authorization") or "")


def test_credentials_that_stay_expired(store: Store, impatient: None, proxy: FaultProxy) -> None:
    """Fault 35: expired and not renewed: one line, in bounded time, without the credentials."""
    proxy.on("PUT", KEY, actions.expired_token, times=None)
    with pytest.raises(SpecbatchError) as caught:
        store.create(KEY, MINE)
    assert caught.value.code in (ErrorCode.JOB_STORE_LOST, ErrorCode.JOB_STORE_DENIED)
    assert "testing" not in caught.value.message
    with pytest.raises(NotFound):
        store.read(KEY)


@pytest.mark.parametrize("operation", ["PUT", "GET HEAD", "LIST"])
def test_access_denied_is_told_at_once(store: Store, proxy: FaultProxy, operation: str) -> None:
    """Fault 36: no permission is no outage: it is not retried, and the line says what is refused."""
    store.create(KEY, MINE)
    denied = proxy.on(operation, "", actions.access_denied, times=None)
    call = {
        "PUT": lambda: store.create("data/other", MINE),
        "GET HEAD": lambda: store.read(KEY),
        "LIST": lambda: store.list("data"),
    }[operation]
    started = time.monotonic()
    with pytest.raises(SpecbatchError) as caught:
        call()
    assert caught.value.code is ErrorCode.JOB_STORE_DENIED
    assert denied.num_fired <= 2
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("num_bytes", [0, 1, 2500, 3999])
def test_truncated_body(store: Store, proxy: FaultProxy, num_bytes: int) -> None:
    """Fault 39: a body that breaks off is asked for again; short bytes are never given out."""
    store.create(KEY, MINE)
    cut = proxy.on("GET", KEY, actions.truncate(num_bytes), times=2)
    assert store.read(KEY) == MINE
    proxy.on("GET", KEY, actions.truncate(num_bytes))
    with store.open(KEY) as file:
        file.seek(0)
        assert file.read() == MINE
    assert cut.num_fired == 2


def test_slow_stream(store: Store, proxy: FaultProxy) -> None:
    """A body that trickles is waited for."""
    store.create(KEY, MINE)
    proxy.on("GET", KEY, actions.slow_stream(4000), times=1)
    assert store.read(KEY) == MINE


def test_black_hole(store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 45: a connection that is taken and never answered is given up after a time and opened anew."""
    monkeypatch.setattr(s3_session, "_READ_TIMEOUT_SECONDS", 2.0)
    monkeypatch.setenv("SPECBATCH_STORE_PATIENCE_SECONDS", "60")  # for the tries that follow, on a busy machine
    put = proxy.on("PUT", KEY, actions.blackhole(100))
    assert store.create(KEY, MINE) is True
    get = proxy.on("GET", KEY, actions.blackhole(100))
    assert store.read(KEY) == MINE
    assert (put.num_fired, get.num_fired) == (1, 1)


def test_black_hole_without_end(store: Store, impatient: None, proxy: FaultProxy) -> None:
    """Fault 45: nothing is ever answered; the attempt ends in bounded time with a code, and nothing was lost."""
    store.create("data/before", MINE)
    proxy.on("", "", actions.blackhole(10), times=None)
    started = time.monotonic()
    with pytest.raises(SpecbatchError) as caught:
        store.create(KEY, MINE)
    assert caught.value.code is ErrorCode.JOB_STORE_LOST
    assert time.monotonic() - started < 15
    proxy.reset()
    assert store.list("data") == ["data/before"]
    assert store.create(KEY, MINE) is True


def test_an_object_that_changes_while_it_is_read(store: Store, bucket_output: Output) -> None:
    """Fault 40: one open object never gives bytes of two versions; of an input the code says that it changed."""
    bucket_output.write("input.parquet", bytes(1 << 20))
    bucket, key = bucket_of(f"{bucket_output.uri}/input.parquet", "input")
    with open_object(bucket, key) as file:
        assert file.read(8) == bytes(8)
        bucket_output.write("input.parquet", b"\1" * (1 << 20))
        file.seek(-8, 2)
        with pytest.raises(SpecbatchError) as caught:
            file.read(8)
    assert caught.value.code is ErrorCode.JOB_INPUT_CHANGED


def test_an_object_that_is_deleted_while_it_is_read(store: Store, bucket_output: Output) -> None:
    """Fault 37: the rest of an object that vanishes is not taken for its end."""
    bucket_output.write(KEY, bytes(1 << 20))
    with store.open(KEY) as file:
        assert file.read(8) == bytes(8)
        bucket_output.delete(KEY)
        file.seek(-8, 2)
        with pytest.raises(SpecbatchError) as caught:
            file.read(8)
    assert caught.value.code is ErrorCode.JOB_INTEGRITY


def test_a_clock_that_is_an_hour_off(store: Store, proxy: FaultProxy) -> None:
    """Fault 42: the store refuses the signature's time; the line names the clock and not the permission."""
    proxy.on("PUT", "", actions.clock_skewed, times=None)
    with pytest.raises(SpecbatchError) as caught:
        store.create(KEY, MINE)
    assert caught.value.code is ErrorCode.STORE_CLOCK_SKEW
