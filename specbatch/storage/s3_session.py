"""The connection to an S3 endpoint: one client per process, patience with its failures, renewal of credentials.

The SDK's own retries are off: it repeats a conditional PUT whose reply was lost and then reports a conflict with its
own success, and no setting tells the two apart. Here a failure is waited out by whoever asked, who knows what he asked.
"""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore import exceptions as boto
from botocore.config import Config

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.retries import count_retry
from specbatch.storage.s3_errors import Fault, FaultKind, fault_of

PATIENCE_VARIABLE = "SPECBATCH_STORE_PATIENCE_SECONDS"
_PATIENCE_SECONDS = 120.0
_CONNECT_TIMEOUT_SECONDS = 10.0
_READ_TIMEOUT_SECONDS = 60.0
_FIRST_DELAY_SECONDS = 0.05
_MAX_DELAY_SECONDS = 10.0
_RENEWAL_SECONDS = 5.0
_MAX_CONNECTIONS = 32
_AWS_DOMAINS = ("amazonaws.com", "amazonaws.com.cn")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# What a client is made from: a change in one of these wants another client.
_SETTINGS = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ACCESS_KEY_ID",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    PATIENCE_VARIABLE,
)


def patience_seconds() -> float:
    """How long a store may fail before the job gives it up; ``SPECBATCH_STORE_PATIENCE_SECONDS`` overrides it."""
    try:
        return max(0.0, float(os.environ.get(PATIENCE_VARIABLE, _PATIENCE_SECONDS)))
    except ValueError as error:
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"{PATIENCE_VARIABLE} is not a number; give seconds") from error


class Connection:
    """One endpoint as this process sees it. Threads share it, and with it what is known of an outage."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._client: Any = None
        self._renewed_at = float("-inf")
        self._has_answered = False
        self._failing_since: float | None = None
        self._failed_at = 0.0

    def client(self) -> Any:
        """The boto3 client.

        Raises:
            SpecbatchError: the settings make none, or name an endpoint without TLS that is not this machine.
        """
        with self._lock:
            if self._client is None:
                self._client = _make_client()
            return self._client

    @property
    def endpoint(self) -> str:
        """Scheme and host, fit to be shown."""
        return _shown(self.client().meta.endpoint_url)

    def fault(self, error: Exception) -> Fault:
        """Sort what a request raised, and remember whether the store answers."""
        fault = fault_of(error)
        if fault.kind is FaultKind.NO_CREDENTIALS and self._has_answered:
            fault = Fault(FaultKind.EXPIRED, fault.reason)  # a provider that has worked before may work again
        if fault.kind not in (FaultKind.RETRY, FaultKind.EXPIRED):
            self.note_answer()
        return fault

    def note_answer(self) -> None:
        """The store answered: an outage, if there was one, is over."""
        self._has_answered = True
        self._failing_since = None

    def outage_seconds(self, now: float, patience: float) -> float:
        """Note a failure; how long requests have failed with no answer in between."""
        if self._failing_since is None or now - self._failed_at > patience:
            self._failing_since = now
        self._failed_at = now
        return now - self._failing_since

    def renew(self) -> None:
        """Read the credentials anew: keys from files and environments are never read again by a living session."""
        with self._lock:
            if time.monotonic() - self._renewed_at >= _RENEWAL_SECONDS:
                self._renewed_at = time.monotonic()
                self._client = None


class Attempts:
    """The attempts of one operation: waits between them, with jitter, until patience ends.

    Patience is shared: where nothing has been answered for that long, later operations fail on their second attempt
    instead of each waiting for itself.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._patience_seconds = patience_seconds()
        self._started = time.monotonic()
        self._count = 0

    def failed(self, fault: Fault) -> None:
        """Wait before the next attempt.

        Raises:
            Fault: the given one, when there shall be no other attempt.
        """
        self._count += 1
        now = time.monotonic()
        longest = min(_MAX_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2 ** min(self._count, 16))
        delay_seconds = random.uniform(longest / 2, longest)
        if now + delay_seconds - self._started > self._patience_seconds:
            raise fault
        if fault.kind in (FaultKind.RETRY, FaultKind.EXPIRED):
            outage_seconds = self._connection.outage_seconds(now, self._patience_seconds)
            if outage_seconds > self._patience_seconds and self._count > 1:
                raise fault
        if fault.kind is FaultKind.EXPIRED:
            self._connection.renew()
        count_retry()
        time.sleep(delay_seconds)


_connections: dict[tuple[str | None, ...], Connection] = {}
_connections_lock = threading.Lock()


def connection() -> Connection:
    """The connection that the environment's settings name; the same one for each caller in this process."""
    settings = tuple(os.environ.get(name) for name in _SETTINGS)
    with _connections_lock:
        return _connections.setdefault(settings, Connection())


def _forget() -> None:
    """In a forked child: sockets and locks of the parent are not ours."""
    global _connections_lock
    _connections_lock = threading.Lock()
    _connections.clear()


os.register_at_fork(after_in_child=_forget)


def _make_client() -> Any:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    try:
        client = _client_with("path" if endpoint else "auto")
        if not endpoint and not (urlsplit(client.meta.endpoint_url).hostname or "").endswith(_AWS_DOMAINS):
            client = _client_with("path")  # the profile names an endpoint of its own
    except (boto.BotoCoreError, ValueError) as error:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"the AWS settings make no S3 client ({type(error).__name__}); check endpoint and profile",
        ) from error
    _check_endpoint(client.meta.endpoint_url)
    return client


def _client_with(addressing_style: str) -> Any:
    session = boto3.session.Session()
    longest = max(1.0, patience_seconds() / 2)
    config = Config(
        signature_version="s3v4",
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=min(_CONNECT_TIMEOUT_SECONDS, longest),
        read_timeout=min(_READ_TIMEOUT_SECONDS, longest),
        max_pool_connections=_MAX_CONNECTIONS,
        tcp_keepalive=True,
        # Not every store takes the SDK's CRC trailers; every store checks the signed SHA-256 of the payload.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": addressing_style, "payload_signing_enabled": True},
    )
    return session.client("s3", region_name=session.region_name or "us-east-1", config=config)


def _check_endpoint(url: str) -> None:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise SpecbatchError(
            ErrorCode.JOB_URI_INVALID, "the S3 endpoint holds credentials; give them by AWS's own variables or files"
        )
    if parts.scheme == "https" or parts.hostname in _LOOPBACK or os.environ.get("SPECBATCH_ALLOW_HTTP") == "1":
        return
    raise SpecbatchError(
        ErrorCode.JOB_CONFIG,
        f"the S3 endpoint {_shown(url)} is not encrypted; "
        "use https, or set SPECBATCH_ALLOW_HTTP=1 on a network you trust",
    )


def _shown(url: str) -> str:
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
