"""S3 as a store: the contract, and every outcome of a request that leaves in doubt what happened."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import FaultRule, S3Server
from store_contract import StoreContract

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage import s3, s3_session
from specbatch.storage.s3_calls import ObjectInfo
from specbatch.storage.s3_client import Bucket, bucket_of
from specbatch.storage.s3_file import S3File, open_object
from specbatch.storage.store import NotFound, Store, open_store

KEY = "data/part-000000-abc.parquet"


@pytest.fixture
def store(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store; its failures are given up after a few seconds."""
    monkeypatch.setenv(s3_session.PATIENCE_VARIABLE, "20")
    uri = f"s3://{s3_server.new_bucket()}/some/out"
    s3_server.inject()
    return open_store(uri)


@pytest.fixture
def hasty(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The same with little patience."""
    monkeypatch.setenv(s3_session.PATIENCE_VARIABLE, "1")
    return store


class TestS3Store(StoreContract):
    num_processes = 3


class TestSingleWriter:
    """Without conditions, one writer at a time still gets the same answers."""

    @pytest.fixture
    def single(self, store: Store) -> Store:
        return open_store(store.uri, single_writer=True)

    def test_create_and_swap(self, single: Store, s3_server: S3Server) -> None:
        assert single.create("a", b"1") is True
        assert single.create("a", b"2") is False
        version = single.read_versioned("a")[1]
        assert single.swap("a", b"3", None) is None
        assert single.swap("a", b"3", version) is not None
        assert single.swap("a", b"4", version) is None
        assert single.read("a") == b"3"
        assert pickle.loads(pickle.dumps(single)) == single

    def test_a_lost_reply_is_repeated(self, single: Store, s3_server: S3Server) -> None:
        s3_server.inject(FaultRule("PUT", KEY, "drop", is_done=True))
        assert single.create(KEY, b"mine") is True


# --- what became of a write ---

LOST = [
    pytest.param(FaultRule("PUT", KEY, "drop"), id="request lost (fault 27)"),
    pytest.param(FaultRule("PUT", KEY, "drop", is_done=True), id="reply lost (fault 28)"),
    pytest.param(FaultRule("PUT", KEY, "answer", status=409, code="ConditionalRequestConflict"), id="409 (fault 30)"),
    pytest.param(
        FaultRule("PUT", KEY, "answer", is_done=True, status=409, code="ConditionalRequestConflict"),
        id="409 after success (fault 30)",
    ),
    pytest.param(
        FaultRule("PUT", KEY, "answer", is_done=True, status=412, code="PreconditionFailed"),
        id="412 of one's own write",
    ),
    pytest.param(FaultRule("PUT", KEY, "answer", status=200, code="InternalError"), id="200 with an error (fault 31)"),
    pytest.param(
        FaultRule("PUT", KEY, "answer", is_done=True, status=200, code="InternalError"),
        id="200 with an error after success (fault 31)",
    ),
    pytest.param(
        FaultRule("PUT", KEY, "answer", is_done=True, status=500, code="InternalError"), id="500 after success"
    ),
    pytest.param(FaultRule("PUT", KEY, "answer", status=503, count=3), id="SlowDown (fault 33)"),
    pytest.param(FaultRule("PUT", KEY, "answer", status=400, code="RequestTimeout"), id="400 RequestTimeout"),
    pytest.param(FaultRule("PUT", KEY, "answer", status=400, code="BadDigest"), id="damaged on the way"),
]


@pytest.mark.parametrize("rule", LOST)
def test_create_settles_an_unknown_outcome_of_its_own_write(
    store: Store, s3_server: S3Server, rule: FaultRule, tmp_path: Path
) -> None:
    source = tmp_path / "part"
    source.write_bytes(b"mine" * 1000)
    s3_server.inject(rule)
    assert store.create(KEY, source) is True
    assert store.read(KEY) == b"mine" * 1000
    assert store.list("") == [KEY]
    assert store.create(KEY, b"another") is False


@pytest.mark.parametrize("rule", LOST)
def test_create_does_not_take_anothers_object_for_its_own(store: Store, s3_server: S3Server, rule: FaultRule) -> None:
    assert store.create(KEY, b"other")
    s3_server.inject(rule)
    assert store.create(KEY, b"other") is False, "equal contents of another writer"
    assert store.read(KEY) == b"other"


@pytest.mark.parametrize("rule", LOST)
def test_swap_settles_an_unknown_outcome(store: Store, s3_server: S3Server, rule: FaultRule) -> None:
    version = store.swap(KEY, b"1", None)
    s3_server.inject(rule)
    newer = store.swap(KEY, b"2", version)
    assert newer is not None
    assert store.read_versioned(KEY) == (b"2", newer)
    s3_server.inject(rule)
    assert store.swap(KEY, b"3", version) is None
    assert store.read(KEY) == b"2"


def test_a_put_that_arrives_after_a_rival_won_changes_nothing(
    store: Store, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 29."""
    monkeypatch.setenv(s3_session.PATIENCE_VARIABLE, "6")  # so that the client gives the reply up after three seconds
    s3_server.inject(FaultRule("PUT", KEY, "hold", seconds=8.0))
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(store.create, KEY, b"late")
        while not any(seen.startswith("PUT") for seen in s3_server.requests()):
            assert not late.done()
            time.sleep(0.05)
        assert store.create(KEY, b"rival") is True
        assert late.result() is False
    time.sleep(6.0)
    assert len([seen for seen in s3_server.requests() if seen.startswith("PUT")]) == 2
    assert store.read(KEY) == b"rival"


def test_a_store_without_metadata_is_settled_by_contents(
    store: Store, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = Bucket.stamp

    def bare(bucket: Bucket, key: str) -> object:
        found = stamp(bucket, key)
        return type(found)(found.etag, found.num_bytes, None, None)

    monkeypatch.setattr(Bucket, "stamp", bare)
    s3_server.inject(FaultRule("PUT", KEY, "drop", is_done=True))
    assert store.create(KEY, b"mine") is True
    assert store.create(KEY, b"othr") is False
    version = store.read_versioned(KEY)[1]
    s3_server.inject(FaultRule("PUT", KEY, "drop", is_done=True))
    newer = store.swap(KEY, b"next", version)
    assert newer is not None
    assert store.swap(KEY, b"last", version) is None


def test_the_sdk_sends_a_conditional_put_once(store: Store, s3_server: S3Server) -> None:
    """Its own retry would report a conflict with its own success."""
    bucket, key = bucket_of(f"{store.uri}/x")
    s3_server.inject(FaultRule("PUT", "x", "answer", is_done=True, status=503))
    with pytest.raises(Exception, match="SlowDown"):
        bucket.put(key, b"x", token="t", sha256=hashlib.sha256(b"x").hexdigest(), only_if_absent=True)
    assert [seen.split()[0] for seen in s3_server.requests()] == ["PUT"]


def test_one_put_for_one_part(store: Store, s3_server: S3Server, tmp_path: Path) -> None:
    """No multipart upload, which some stores cannot create once."""
    source = tmp_path / "part"
    source.write_bytes(bytes(20 << 20))
    store.create(KEY, source)
    assert s3_server.requests() == [f"PUT /{store.uri.removeprefix('s3://')}/{KEY}"]


def test_more_than_one_put_can_take_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "part"
    with source.open("wb") as file:
        file.truncate(s3.MAX_PUT_BYTES + 1)
    with pytest.raises(SpecbatchError, match="--shard-rows") as caught:
        store.create(KEY, source)
    assert caught.value.code is ErrorCode.JOB_CONFIG


# --- reads ---


@pytest.mark.parametrize(
    "rule",
    [
        FaultRule("GET", "", "answer", status=500, code="InternalError", count=2),
        FaultRule("GET", "", "answer", status=503, count=3),
        FaultRule("GET", "", "drop", count=2),
        FaultRule("GET", "", "answer", status=404, code="", count=2),
        FaultRule("HEAD", "", "answer", status=500, code="InternalError", count=2),
        FaultRule("HEAD", "", "answer", status=404, count=1),
        FaultRule("HEAD", "", "drop", count=2),
    ],
    ids=lambda rule: f"{rule.method} {rule.action} {rule.status if rule.action == 'answer' else ''}",
)
def test_a_failed_read_is_repeated_and_never_absent(store: Store, s3_server: S3Server, rule: FaultRule) -> None:
    """Fault 34."""
    store.create(KEY, b"there")
    version = store.read_versioned(KEY)[1]

    def read_file() -> bytes:
        with store.open(KEY) as file:
            return file.read()

    for read, expected in (
        (lambda: store.read(KEY), b"there"),
        (lambda: store.size(KEY), 5),
        (lambda: store.list("data"), [KEY]),
        (lambda: store.read_versioned(KEY), (b"there", version)),
        (read_file, b"there"),
    ):
        s3_server.inject(rule)
        assert read() == expected


@pytest.mark.parametrize("action", ["truncate", "shorten"])
def test_a_body_cut_short_is_read_again(
    store: Store, s3_server: S3Server, action: Literal["truncate", "shorten"]
) -> None:
    """Fault 39."""
    store.create(KEY, bytes(range(256)) * 1000)
    s3_server.inject(FaultRule("GET", KEY, action, count=2))
    assert store.read(KEY) == bytes(range(256)) * 1000
    with store.open(KEY) as file:
        s3_server.inject(FaultRule("GET", KEY, action, count=2))
        assert file.read() == bytes(range(256)) * 1000


def test_a_body_damaged_on_its_way_is_read_again(store: Store, s3_server: S3Server) -> None:
    store.create(KEY, b"x" * 1000)
    s3_server.inject(FaultRule("GET", KEY, "corrupt"))
    assert store.read(KEY) == b"x" * 1000


def test_contents_that_stay_damaged_are_an_integrity_failure(store: Store, s3_server: S3Server) -> None:
    """Fault 38."""
    store.create(KEY, b"x" * 1000)
    s3_server.inject(FaultRule("GET", KEY, "corrupt", count=100))
    with pytest.raises(SpecbatchError) as caught:
        store.read(KEY)
    assert caught.value.code is ErrorCode.JOB_INTEGRITY


def test_a_failed_page_of_a_listing_is_not_its_end(store: Store, s3_server: S3Server) -> None:
    """Fault 34, in the middle of a listing of several pages."""
    bucket, root = bucket_of(store.uri)
    keys = [f"data/{number:05d}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: s3_server.put(bucket.name, f"{root}/{key}", b""), keys))
    s3_server.inject(FaultRule("GET", "", "answer", status=500, code="InternalError", skip=1))
    assert store.list("data") == keys
    assert len(s3_server.requests()) == 3


def test_a_listing_with_a_delimiter_shows_folders(store: Store) -> None:
    bucket, root = bucket_of(store.uri)
    for key in ("a.parquet", "sub/b.parquet", "sub/c.parquet"):
        store.create(key, b"x")
    found = list(bucket.list(f"{root}/", "/"))
    assert [item.key for item in found] == [f"{root}/a.parquet", f"{root}/sub/"]
    assert found[0] == ObjectInfo(f"{root}/a.parquet", 1, hashlib.md5(b"x").hexdigest())


def test_folder_markers_are_no_objects(store: Store, s3_server: S3Server) -> None:
    bucket, root = bucket_of(store.uri)
    s3_server.put(bucket.name, f"{root}/data/", b"")
    assert store.list("") == store.list("data") == []


# --- files ---


def test_a_file_reads_like_a_local_one(store: Store, tmp_path: Path) -> None:
    data = os.urandom(700_000)
    store.create(KEY, data)
    local = io.BytesIO(data)
    with store.open(KEY) as remote:
        for offset, whence, count in [
            (0, 0, 4), (-8, 2, 8), (-5000, 2, 4992), (100, 0, 300_000), (3, 1, 10), (699_990, 0, 100), (10**6, 0, 5),
            (0, 0, 0), (650_000, 0, -1), (131_070, 0, 4), (-1, 1, 3),
        ]:  # fmt: skip
            assert remote.seek(offset, whence) == local.seek(offset, whence)
            assert remote.read(count) == local.read(count)
            assert remote.tell() == local.tell()
        with pytest.raises(ValueError, match="negative"):
            remote.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        remote.read(1)


def test_parquet_is_read_with_few_requests(store: Store, s3_server: S3Server) -> None:
    sink = io.BytesIO()
    table = pa.table({"prompt": [f"row {number}" for number in range(1000)]})
    pq.write_table(table, sink)
    store.create(KEY, sink.getvalue())
    s3_server.inject()
    with store.open(KEY) as file:
        assert pq.ParquetFile(file).read() == table
    assert len(s3_server.requests()) == 2, "HEAD and one GET"


def test_an_open_file_never_mixes_two_versions(store: Store, s3_server: S3Server) -> None:
    """Fault 40."""
    bucket, root = bucket_of(store.uri, "input")
    old, new = b"a" * 400_000, b"b" * 400_000
    s3_server.put(bucket.name, f"{root}/in.parquet", old)
    with S3File(bucket, f"{root}/in.parquet") as file:
        assert file.read(200_000) == old[:200_000]
        s3_server.put(bucket.name, f"{root}/in.parquet", new)
        with pytest.raises(SpecbatchError, match="was replaced or deleted") as caught:
            file.read(200_000)
        assert caught.value.code is ErrorCode.JOB_INPUT_CHANGED
    with pytest.raises(SpecbatchError) as caught:
        open_object(bucket, f"{root}/in.parquet", hashlib.md5(old).hexdigest())
    assert caught.value.code is ErrorCode.JOB_INPUT_CHANGED


def test_a_file_deleted_while_open_is_an_error_not_an_end(store: Store) -> None:
    store.create(KEY, bytes(400_000))
    with store.open(KEY) as file:
        store.delete(KEY)
        with pytest.raises(SpecbatchError) as caught:
            file.read()
    assert caught.value.code is ErrorCode.JOB_INTEGRITY


def test_ranges(store: Store) -> None:
    bucket, root = bucket_of(store.uri)
    store.create("k", b"0123456789")
    key = f"{root}/k"
    etag = bucket.head(key).etag
    assert bucket.get(key) == b"0123456789"
    assert bucket.get(key, 2, 5, etag) == b"234"
    assert bucket.get(key, 7) == b"789"
    assert bucket.get(key, 7, 100) == b"789"
    assert bucket.get(key, 10) == bucket.get(key, 3, 3) == b""
    with pytest.raises(NotFound):
        bucket.get(f"{root}/other", 2, 5)


# --- credentials, permission, network ---


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestExpired", "InvalidToken"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_expired_credentials_are_read_anew(
    store: Store, s3_server: S3Server, code: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 35. To HEAD the store answers a bare 400; the GET that asks for the reason succeeds already."""
    monkeypatch.setattr(s3_session, "_connections", {})  # a session is renewed once in some seconds
    store.create("before", b"x")
    before = s3_session.connection().client()
    s3_server.inject(FaultRule(method, "", "answer", status=400, code=code))
    assert store.create(KEY, b"mine") is True
    assert store.size(KEY) == 4
    assert store.read(KEY) == b"mine"
    if method != "HEAD":
        assert s3_session.connection().client() is not before


def test_credentials_that_stay_expired_end_the_job_with_what_to_do(hasty: Store, s3_server: S3Server) -> None:
    """Fault 35."""
    s3_server.inject(
        *[
            FaultRule(method, "", "answer", status=400, code="ExpiredToken", count=99)
            for method in ("GET", "HEAD", "PUT")
        ]
    )
    for action in (lambda: hasty.read(KEY), lambda: hasty.size(KEY), lambda: hasty.create(KEY, b"x")):
        with pytest.raises(SpecbatchError, match=r"have expired.*renew them") as caught:
            action()
        assert caught.value.code is ErrorCode.JOB_STORE_LOST


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AccessDenied", ErrorCode.JOB_STORE_DENIED),
        (403, "InvalidAccessKeyId", ErrorCode.JOB_STORE_DENIED),
        (403, "SignatureDoesNotMatch", ErrorCode.JOB_STORE_DENIED),
        (403, "RequestTimeTooSkewed", ErrorCode.STORE_CLOCK_SKEW),
        (404, "NoSuchBucket", ErrorCode.JOB_OUTPUT_MISSING),
        (501, "NotImplemented", ErrorCode.STORE_UNFIT),
        (400, "InvalidRequest", ErrorCode.JOB_CONFIG),
    ],
)
def test_what_will_not_pass_is_said_at_once(
    store: Store, s3_server: S3Server, status: int, code: str, expected: ErrorCode
) -> None:
    """Faults 36 and 42."""
    rules = [FaultRule(method, "", "answer", status=status, code=code, count=99) for method in ("GET", "HEAD", "PUT")]
    s3_server.inject(*rules)
    started = time.monotonic()
    for action in (
        lambda: store.read(KEY),
        lambda: store.size(KEY),
        lambda: store.create(KEY, b"x"),
        lambda: store.list(""),
    ):
        with pytest.raises(SpecbatchError) as caught:
            action()
        assert caught.value.code is expected
        assert "\n" not in str(caught.value)
        assert "test-access-key" not in str(caught.value)
        assert "injected" not in str(caught.value), "words of the store can hold anything"
    assert time.monotonic() - started < 5
    assert len(s3_server.requests()) <= 6


def test_a_bucket_that_is_not_there(s3_server: S3Server) -> None:
    """HEAD cannot tell it from a missing object; it must not be taken for one (fault 37)."""
    store = open_store("s3://no-such-bucket/out")
    for action in (
        lambda: store.size(KEY),
        lambda: store.read(KEY),
        lambda: store.list(""),
        lambda: store.create(KEY, b""),
    ):
        with pytest.raises(SpecbatchError, match="has no such bucket") as caught:
            action()
        assert caught.value.code is ErrorCode.JOB_OUTPUT_MISSING
    with pytest.raises(SpecbatchError) as caught:
        bucket_of("s3://no-such-bucket/in", "input")[0].head("x")
    assert caught.value.code is ErrorCode.JOB_INPUT_MISSING


def test_a_network_that_is_gone_is_given_up_and_then_fails_fast(hasty: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 45. The second operation does not wait for itself: nothing has answered for as long as patience lasts."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    for action in (lambda: hasty.read(KEY), lambda: hasty.create(KEY, b"x"), lambda: hasty.list("")):
        with pytest.raises(SpecbatchError, match="does not answer") as caught:
            action()
        assert caught.value.code is ErrorCode.JOB_STORE_LOST
        assert "http://127.0.0.1:9" in caught.value.message


def test_a_storm_of_slow_down_is_waited_out(store: Store, s3_server: S3Server) -> None:
    """Fault 33: every other request of eight threads is refused."""
    rules = [FaultRule(method, KEY, "answer", count=1, skip=skip) for method in ("PUT", "GET") for skip in range(12)]
    s3_server.inject(*rules)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda number: store.create(f"{KEY}-{number}", b"%d" % number), range(12)))
        assert list(pool.map(lambda number: store.read(f"{KEY}-{number}"), range(12))) == [b"%d" % n for n in range(12)]


def test_no_credentials_is_one_clear_line(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3_server.new_bucket()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(SpecbatchError, match="there are no credentials") as caught:
        open_store(f"s3://{bucket}/out").read("a")
    assert caught.value.code is ErrorCode.JOB_STORE_DENIED


# --- processes ---


def _read_in_fork(store: Store, parents_client: int, results: multiprocessing.Queue[tuple[bytes, bool]]) -> None:
    results.put((store.read("a"), id(s3_session.connection().client()) == parents_client))


def test_a_forked_child_makes_its_own_connection(store: Store) -> None:
    store.create("a", b"x")
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[tuple[bytes, bool]] = context.Queue()
    client = s3_session.connection().client()
    child = context.Process(target=_read_in_fork, args=(store, id(client), results))
    child.start()
    assert results.get(timeout=30) == (b"x", False)
    child.join()
    assert store.read("a") == b"x"


def test_a_store_pickles_without_its_connection(store: Store) -> None:
    store.create("a", b"x")
    assert len(pickle.dumps(store)) < 300
    assert pickle.loads(pickle.dumps(store)) == store


def test_threads_share_one_client(store: Store) -> None:
    clients: list[object] = []
    threads = [threading.Thread(target=lambda: clients.append(s3_session.connection().client())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, clients))) == 1
