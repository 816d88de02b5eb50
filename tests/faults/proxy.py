"""An HTTP proxy between the S3 client and the S3 server that does on purpose what networks and stores do by accident.

A test says what shall happen to which requests (``FaultProxy.on``), and afterwards looks at what was asked
(``FaultProxy.requests``). What can happen is in ``actions.py``. The Host header is passed on as it came, so
signatures stay valid.

The proxy can also let writes through one at a time: moto checks a condition and then writes, without a lock, and a
race in moto must not be taken for one of ours.
"""

from __future__ import annotations

import http.client
import random
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "expect"}
)
_WRITES = frozenset({"PUT", "POST", "DELETE"})
_UPSTREAM_SECONDS = 60.0

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the client sent it.

    Attributes:
        target: path and query, as they stood in the request line.
    """

    method: str
    target: str
    headers: Headers
    body: bytes

    @property
    def operation(self) -> str:
        """The method, but ``LIST`` for listings."""
        query = urlsplit(self.target).query
        return "LIST" if self.method == "GET" and ("list-type=" in query or "prefix=" in query) else self.method

    @property
    def key(self) -> str:
        """Bucket and key, decoded: ``bucket/data/part-0.parquet``. For a listing, the decoded query too."""
        parts = urlsplit(self.target)
        path = unquote(parts.path).lstrip("/")
        return f"{path}?{unquote(parts.query)}" if self.operation == "LIST" else path

    def header(self, name: str) -> str | None:
        """The first header of this name, whatever its case."""
        return next((value for found, value in self.headers if found.lower() == name.lower()), None)

    def without(self, *names: str) -> Request:
        """The same request without some headers."""
        dropped = {name.lower() for name in names}
        return replace(self, headers=tuple(pair for pair in self.headers if pair[0].lower() not in dropped))


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to the client.

    Attributes:
        num_bytes_sent: the connection is cut behind so many bytes of the body; None sends it whole.
        bytes_per_second: how fast the body is sent; None for as fast as it goes.
    """

    status: int
    headers: Headers = ()
    body: bytes = b""
    num_bytes_sent: int | None = None
    bytes_per_second: float | None = None


Forward = Callable[[Request], Reply]
Action = Callable[[Request, Forward], Reply | None]
"""What happens to a request: the answer to give, or None to cut the connection without one."""


@dataclass(slots=True)
class Rule:
    """Some requests and what happens to them.

    Attributes:
        first: number of the first matching request that is acted on, from 1.
        times: how many from there on; None for all.
        num_matched: requests that matched so far.
        num_fired: requests that were acted on so far.
    """

    operations: frozenset[str]
    key: re.Pattern[str]
    action: Action
    first: int
    times: int | None
    probability: float
    num_matched: int = 0
    num_fired: int = 0

    def fires(self, request: Request, chance: random.Random) -> bool:
        if self.operations and request.operation not in self.operations:
            return False
        if not self.key.search(request.key):
            return False
        self.num_matched += 1
        if self.num_matched < self.first or (self.times is not None and self.num_fired >= self.times):
            return False
        if self.probability < 1 and chance.random() >= self.probability:
            return False
        self.num_fired += 1
        return True


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and what the client got for it; ``status`` is None where the connection was cut."""

    request: Request
    status: int | None
    was_faulty: bool
    at_seconds: float


@dataclass(slots=True)
class _State:
    rules: list[Rule] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(0))


class FaultProxy:
    """A proxy on a free port of the loopback device, until ``close``.

    Args:
        upstream: ``host:port`` of the S3 server.
        serialise_writes: let one PUT, POST or DELETE through at a time.
    """

    def __init__(self, upstream: str, *, serialise_writes: bool = True) -> None:
        self._upstream = upstream
        self._serialise_writes = serialise_writes
        self._writing = threading.Lock()
        self._lock = threading.Lock()
        self._state = _State()
        self.defects: list[BaseException] = []
        """Errors in the proxy itself; the fixture fails on them."""
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """What ``AWS_ENDPOINT_URL_S3`` has to be."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def on(
        self,
        operations: str,
        key: str,
        action: Action,
        *,
        first: int = 1,
        times: int | None = 1,
        probability: float = 1.0,
    ) -> Rule:
        """Let something happen. Of several rules for one request the earliest that fires is the one.

        Args:
            operations: such as ``"PUT"`` or ``"GET HEAD LIST"``; empty for all.
            key: regular expression searched in ``Request.key``.
        """
        rule = Rule(frozenset(operations.split()), re.compile(key), action, first, times, probability)
        with self._lock:
            self._state.rules.append(rule)
        return rule

    def reset(self, seed: int = 0) -> None:
        """No rules, no log, and the dice as at the start."""
        with self._lock:
            self._state = _State(chance=random.Random(seed))

    def requests(self, operations: str = "", key: str = "") -> list[Exchange]:
        """What was asked since the last ``reset``, filtered as in ``on``, in the order of the answers."""
        wanted = set(operations.split())
        with self._lock:
            return [
                exchange
                for exchange in self._state.exchanges
                if (not wanted or exchange.request.operation in wanted) and re.search(key, exchange.request.key)
            ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def forward(self, request: Request) -> Reply:
        """The S3 server's own answer."""
        if self._serialise_writes and request.method in _WRITES:
            with self._writing:
                return self._forward(request)
        return self._forward(request)

    def _forward(self, request: Request) -> Reply:
        connection = http.client.HTTPConnection(self._upstream, timeout=_UPSTREAM_SECONDS)
        try:
            connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers:
                if name.lower() not in _HOP_BY_HOP and name.lower() != "content-length":
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(request.body)))
            connection.putheader("Connection", "close")
            connection.endheaders(request.body)
            response = connection.getresponse()
            body = response.read()
            headers = tuple(pair for pair in response.getheaders() if pair[0].lower() not in _HOP_BY_HOP)
            return Reply(response.status, headers, body)
        finally:
            connection.close()

    def exchange(self, request: Request) -> Reply | None:
        """Answer a request by the first rule that fires, or by the S3 server."""
        with self._lock:
            rule = next((rule for rule in self._state.rules if rule.fires(request, self._state.chance)), None)
            exchanges = self._state.exchanges
        reply = rule.action(request, self.forward) if rule is not None else self.forward(request)
        status = reply.status if reply is not None else None
        with self._lock:
            exchanges.append(Exchange(request, status, rule is not None, time.monotonic()))
        return reply


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        import sys

        error = sys.exc_info()[1]
        # A client that gave up, or was killed, is no defect; neither is an S3 server that a test has stopped.
        if error is not None and not isinstance(error, (ConnectionError, TimeoutError, http.client.HTTPException)):
            self.proxy.defects.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body go in two writes; waiting for an ACK costs 40 ms a request
    server: _Server

    def _serve(self) -> None:
        request = Request(self.command, self.path, tuple(self.headers.items()), self._read_body())
        reply = self.server.proxy.exchange(request)
        if reply is None:
            self._cut()
        else:
            self._send(request, reply)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do_OPTIONS = _serve

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(chunks)

    def _send(self, request: Request, reply: Reply) -> None:
        self.send_response_only(reply.status)
        has_body = request.method != "HEAD" and reply.status not in (204, 304)
        for name, value in reply.headers:
            if not has_body or name.lower() != "content-length":
                self.send_header(name, value)
        if has_body:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if not has_body:
            return
        body = reply.body[: reply.num_bytes_sent]
        if reply.bytes_per_second is None:
            self.wfile.write(body)
        else:
            step = max(int(reply.bytes_per_second / 20), 1)
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                self.wfile.flush()
                time.sleep(step / reply.bytes_per_second)
        if len(body) < len(reply.body):
            self._cut()

    def _cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the log is ``FaultProxy.requests``."""
