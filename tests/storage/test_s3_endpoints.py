"""URIs of S3, and the endpoints that are spoken to."""

from __future__ import annotations

import pytest
from s3_server import S3Server

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage import s3_session
from specbatch.storage.store import open_store

KEY = "data/part-000000-abc.parquet"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:secret@bucket/out",
        "s3://secret@bucket/out",
        "s3://bucket:9000/secret",
        "s3://",
        "s3:///secret",
        "s3://b/secret",
        "s3://bucket//secret",
        "s3://bucket/a//secret",
        "s3://bucket/../secret",
        "s3://bucket/a/./secret",
        "s3://bucket/secret//",
        "s3://bucket/secret\n",
        "s3://bucket/" + "secret" * 200,
        "S3://bucket/secret",
        "s3a://bucket/secret",
        "https://bucket.s3.amazonaws.com/secret",
    ],
)
def test_a_malformed_uri_is_refused_and_not_repeated(uri: str) -> None:
    """Bad input 27."""
    with pytest.raises(SpecbatchError) as caught:
        open_store(uri)
    assert caught.value.code is ErrorCode.JOB_URI_INVALID
    assert "secret" not in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("uri", "stored"),
    [("s3://bucket", "s3://bucket"), ("s3://bucket/", "s3://bucket"), ("s3://bucket/a b/c/", "s3://bucket/a b/c")],
)
def test_a_uri_has_one_spelling(uri: str, stored: str) -> None:
    store = open_store(uri)
    assert store.uri == stored
    assert not store.is_local


def test_a_store_at_the_root_of_a_bucket(s3_server: S3Server) -> None:
    store = open_store(f"s3://{s3_server.new_bucket()}")
    store.create("data/a", b"x")
    assert store.list("") == store.list("data") == ["data/a"]
    assert store.read("data/a") == b"x"


def test_plain_http_is_for_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://minio.example:9000")
    with pytest.raises(SpecbatchError, match=r"http://minio\.example:9000 is not encrypted") as caught:
        open_store("s3://bucket/out").read("a")
    assert caught.value.code is ErrorCode.JOB_CONFIG
    monkeypatch.setenv("SPECBATCH_ALLOW_HTTP", "1")
    assert s3_session.Connection().client().meta.endpoint_url == "http://minio.example:9000"


@pytest.mark.parametrize("endpoint", ["http://key:secret@127.0.0.1:9", "https://key:secret@minio.example"])
def test_an_endpoint_with_credentials_is_refused(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(SpecbatchError) as caught:
        open_store("s3://bucket/out").read("a")
    assert caught.value.code is ErrorCode.JOB_URI_INVALID
    assert "secret" not in str(caught.value)


def test_settings_that_make_no_client_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(SpecbatchError, match="ProfileNotFound") as caught:
        open_store("s3://bucket/out").read("a")
    assert caught.value.code is ErrorCode.JOB_CONFIG
