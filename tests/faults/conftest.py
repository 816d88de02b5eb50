"""What the fault tests share: one S3 server, one fault proxy, and the output of a job that nobody disturbed."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from outputs import CREDENTIALS, BucketOutput, LocalOutput, Output, read_rows, s3_client
from proxy import FaultProxy
from s3_server import S3Server
from whole_jobs import Place


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """``host:port`` of the S3 server."""
    server = S3Server()
    yield server.endpoint.removeprefix("http://")
    server.stop()


@pytest.fixture(scope="session")
def s3(s3_address: str) -> Any:
    """A client past the proxy."""
    return s3_client(f"http://{s3_address}")


@pytest.fixture(scope="session")
def shared_proxy(s3_address: str) -> Iterator[FaultProxy]:
    proxy = FaultProxy(s3_address)
    yield proxy
    proxy.close()


@pytest.fixture
def proxy(shared_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy without rules; one for all tests, because clients are kept per process and endpoint."""
    shared_proxy.reset()
    yield shared_proxy
    shared_proxy.reset()
    assert shared_proxy.defects == []


@pytest.fixture
def bucket(s3: Any) -> str:
    """The name of a fresh bucket."""
    name = f"test-{secrets.token_hex(6)}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def s3_environment(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's own S3 settings: the proxy, and credentials that the server takes."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": proxy.endpoint}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path / "place")
    yield found
    found.close()


@pytest.fixture
def s3_place(tmp_path: Path, proxy: FaultProxy) -> Iterator[Place]:
    """A place whose commands reach the S3 server through the proxy."""
    found = Place(tmp_path / "place", proxy.endpoint)
    yield found
    found.close()


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return LocalOutput(tmp_path / "out")


@pytest.fixture
def bucket_output(s3: Any, bucket: str) -> Output:
    return BucketOutput(s3, bucket, "jobs/out")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Output]:
    """The finished output of a plain run on local disk; not to be changed."""
    place = Place(tmp_path_factory.mktemp("undisturbed") / "place")
    output = LocalOutput(place.root / "out")
    ended = place.run_submit(output, "--draft", "none")
    assert ended.code == 0, ended
    yield output
    place.close()


@pytest.fixture(scope="session")
def reference(undisturbed: Output) -> pa.Table:
    """The rows of the plain run."""
    return read_rows(undisturbed)
