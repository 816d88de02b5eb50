"""The fault proxy itself: each fault does what it says, to the requests it was meant for and to no others."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from threading import Barrier
from typing import Any

import actions
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from outputs import s3_client
from proxy import FaultProxy
from s3_server import S3Server


@pytest.fixture
def client(proxy: FaultProxy) -> Any:
    """A client through the proxy that never retries."""
    return s3_client(proxy.endpoint)


def create(client: Any, bucket: str, key: str, body: bytes) -> None:
    client.put_object(Bucket=bucket, Key=key, Body=body, IfNoneMatch="*")


def get(client: Any, bucket: str, key: str, **options: str) -> bytes:
    data: bytes = client.get_object(Bucket=bucket, Key=key, **options)["Body"].read()
    return data


def code_of(error: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    response = error.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def test_without_rules_it_changes_nothing(client: Any, bucket: str, proxy: FaultProxy) -> None:
    body = bytes(range(256)) * 4096
    create(client, bucket, "a/é +%?&=", body)
    assert get(client, bucket, "a/é +%?&=") == body
    assert get(client, bucket, "a/é +%?&=", Range="bytes=256-511") == bytes(range(256))
    assert client.head_object(Bucket=bucket, Key="a/é +%?&=")["ContentLength"] == len(body)
    assert client.list_objects_v2(Bucket=bucket, Prefix="a/")["KeyCount"] == 1
    with pytest.raises(ClientError) as caught:
        create(client, bucket, "a/é +%?&=", b"")
    assert code_of(caught) == (412, "PreconditionFailed")
    client.delete_object(Bucket=bucket, Key="a/é +%?&=")
    log = [(exchange.request.operation, exchange.status) for exchange in proxy.requests(key=bucket)]
    assert log == [
        ("PUT", 200), ("GET", 200), ("GET", 206), ("HEAD", 200), ("LIST", 200), ("PUT", 412), ("DELETE", 204)
    ]  # fmt: skip
    assert proxy.requests("PUT")[0].request.key == f"{bucket}/a/é +%?&="
    assert not any(exchange.was_faulty for exchange in proxy.requests())


def test_a_lost_request_is_not_carried_out_and_a_lost_reply_is(
    client: Any, s3: Any, bucket: str, proxy: FaultProxy
) -> None:
    proxy.on("PUT", "request$", actions.lose_request())
    proxy.on("PUT", "reply$", actions.lose_reply())
    for key in ("request", "reply"):
        with pytest.raises(ConnectionClosedError):
            create(client, bucket, key, b"x")
    assert [found["Key"] for found in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["reply"]
    assert [exchange.status for exchange in proxy.requests("PUT", bucket)] == [None, None]


def test_a_rule_counts(client: Any, bucket: str, proxy: FaultProxy) -> None:
    rule = proxy.on("PUT", "k", actions.slow_down, first=2, times=2)
    outcomes = []
    for number in range(5):
        try:
            create(client, bucket, f"k{number}", b"")
            outcomes.append(200)
        except ClientError as error:
            outcomes.append(error.response["ResponseMetadata"]["HTTPStatusCode"])
    assert outcomes == [200, 503, 503, 200, 200]
    assert (rule.num_matched, rule.num_fired) == (5, 2)


def test_chance_repeats_under_its_seed(client: Any, bucket: str, proxy: FaultProxy) -> None:
    def draw(seed: int) -> list[int | None]:
        proxy.reset(seed)
        proxy.on("GET", "", actions.internal_error, times=None, probability=0.5)
        for _ in range(20):
            with pytest.raises(ClientError):
                get(client, bucket, "absent")
        return [exchange.status for exchange in proxy.requests("GET")]

    first = draw(1)
    assert set(first) == {404, 500}
    assert draw(1) == first
    assert draw(2) != first


def test_a_held_request_arrives_after_its_client_has_gone(client: Any, s3: Any, bucket: str, proxy: FaultProxy) -> None:
    held = actions.Hold()
    proxy.on("PUT", "k$", held)
    with pytest.raises(ConnectionClosedError):
        create(client, bucket, "k", b"late")
    create(client, bucket, "k", b"rival")
    assert [reply.status for reply in held.release()] == [412]
    assert get(s3, bucket, "k") == b"rival"

    proxy.on("PUT", "soon$", actions.hold(1.0))
    started = time.monotonic()
    with pytest.raises(ConnectionClosedError):
        create(client, bucket, "soon", b"late")
    while "Contents" not in s3.list_objects_v2(Bucket=bucket, Prefix="soon"):
        assert time.monotonic() < started + 30
        time.sleep(0.02)
    assert time.monotonic() > started + 1.0, "not before its time"
    assert get(s3, bucket, "soon") == b"late"


def test_a_duplicate_gets_the_second_answer(client: Any, bucket: str, proxy: FaultProxy) -> None:
    proxy.on("PUT", "k$", actions.duplicate())
    with pytest.raises(ClientError) as caught:
        create(client, bucket, "k", b"x")
    assert code_of(caught)[0] == 412
    assert get(client, bucket, "k") == b"x"


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (actions.conflict, (409, "ConditionalRequestConflict")),
        (actions.precondition_failed, (412, "PreconditionFailed")),
        (actions.internal_error, (500, "InternalError")),
        (actions.slow_down, (503, "SlowDown")),
        (actions.expired_token, (403, "ExpiredToken")),
        (actions.access_denied, (403, "AccessDenied")),
        (actions.clock_skewed, (403, "RequestTimeTooSkewed")),
    ],
)
def test_refusals_are_not_carried_out(
    client: Any, s3: Any, bucket: str, proxy: FaultProxy, action: actions.Action, expected: tuple[int, str]
) -> None:
    proxy.on("PUT", "", action)
    with pytest.raises(ClientError) as caught:
        create(client, bucket, "k", b"x")
    assert code_of(caught) == expected
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)


def test_an_error_in_a_200_and_one_after_the_deed(client: Any, s3: Any, bucket: str, proxy: FaultProxy) -> None:
    proxy.on("PUT", "silent$", actions.error_in_200)
    with pytest.raises(ClientError) as caught:
        create(client, bucket, "silent", b"x")
    assert code_of(caught)[1] == "InternalError"
    assert proxy.requests("PUT", "silent")[0].status == 200
    proxy.on("PUT", "done$", actions.answer_after(404, "NoSuchUpload"))
    with pytest.raises(ClientError) as caught:
        create(client, bucket, "done", b"x")
    assert code_of(caught) == (404, "NoSuchUpload")
    assert [found["Key"] for found in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["done"]


def test_bodies_are_cut_changed_and_slowed(client: Any, bucket: str, proxy: FaultProxy) -> None:
    body = bytes(range(200))
    client.put_object(Bucket=bucket, Key="k", Body=body, ChecksumAlgorithm="SHA256")
    proxy.on("GET", "k$", actions.truncate(50))
    with pytest.raises((IncompleteReadError, ResponseStreamingError)):
        get(client, bucket, "k")
    proxy.on("GET", "k$", actions.corrupt(7))
    found = get(client, bucket, "k", Range="bytes=0-199")
    assert [index for index in range(200) if found[index] != body[index]] == [7]
    proxy.on("GET", "k$", actions.slow_stream(400))
    started = time.monotonic()
    assert get(client, bucket, "k") == body
    assert 0.4 < time.monotonic() - started < 5
    proxy.on("GET", "k$", actions.delay(0.3))
    started = time.monotonic()
    assert get(client, bucket, "k") == body
    assert time.monotonic() - started > 0.3


def test_a_black_hole_takes_the_connection_and_says_nothing(bucket: str, proxy: FaultProxy) -> None:
    client = s3_client(proxy.endpoint, read_timeout=0.3)
    proxy.on("GET", "k$", actions.blackhole(1))
    with pytest.raises(ReadTimeoutError):
        get(client, bucket, "k")


def test_the_servers_clock_and_its_conditions(client: Any, s3: Any, bucket: str, proxy: FaultProxy) -> None:
    proxy.on("HEAD", "", actions.shift_clock(3600))
    date = client.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]["date"]
    assert 3590 < parsedate_to_datetime(date).timestamp() - time.time() < 3610
    proxy.on("PUT", "", actions.ignore_conditions(), times=None)
    create(client, bucket, "k", b"one")
    create(client, bucket, "k", b"two")
    assert get(s3, bucket, "k") == b"two"


def test_conditional_writes_are_atomic_behind_the_proxy_alone(s3: Any) -> None:
    """moto checks a condition and then writes: with a gap in between all of three creators win, unless one waits."""
    server = S3Server(racy_seconds=0.2)
    proxy = FaultProxy(server.endpoint.removeprefix("http://"))
    try:
        direct, through = s3_client(server.endpoint), s3_client(proxy.endpoint)
        direct.create_bucket(Bucket="race")
        assert any(_num_winners(direct, f"direct-{attempt}") > 1 for attempt in range(20))
        assert _num_winners(through, "through") == 1
    finally:
        proxy.close()
        server.stop()


def _num_winners(client: Any, key: str) -> int:
    ready = Barrier(3)

    def attempt(writer: int) -> bool:
        ready.wait(60)
        try:
            create(client, "race", key, str(writer).encode())
        except ClientError:
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        return sum(pool.map(attempt, range(3)))
