"""A door before the S3 server that lets through what IAM policies allow, and notes every request.

Who asks is told by the access key. As S3 does, it answers 403 and not 404 to those who ask for an object that is not
there and may not list the bucket.
"""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from policies import PLACEHOLDERS, Ask, allows, load

_CREDENTIAL = re.compile(r"Credential=([^/]+)/")
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "expect"})
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>lost</Message></Error>"
_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass(frozen=True, slots=True)
class Role:
    """Who has an access key, and what holds for it."""

    name: str
    policies: Sequence[dict[str, Any]]

    def may(self, ask: Ask) -> bool:
        return allows(self.policies, in_account(ask, self.name))


def in_account(ask: Ask, role: str) -> Ask:
    """A request as AWS sees it: by TLS (the server of the tests has none), by a role, for a bucket of this account."""
    account = PLACEHOLDERS["ACCOUNT"]
    own = {
        "aws:SecureTransport": "true",
        "aws:ResourceAccount": account,
        "aws:PrincipalArn": f"arn:aws:iam::{account}:role/{role}",
    }
    return Ask(ask.action, ask.resource, tuple({**own, **dict(ask.context)}.items()))


INPUT, OUTPUT = PLACEHOLDERS["INPUT_BUCKET"], PLACEHOLDERS["OUTPUT_BUCKET"]
JOB = f"{PLACEHOLDERS['OUTPUT_PREFIX']}/tonight"
ROLES = {name: Role(f"specbatch-{name}", [load(name), load("bucket")]) for name in ("worker", "coordinator", "gc")}
"""The roles of the policies, by the access key that the tests give them."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A request and what became of it; ``status`` is the client's."""

    role: str
    ask: Ask
    status: int

    @property
    def key(self) -> str:
        return self.ask.resource.partition(":::")[2].partition("/")[2]


def ask_of(method: str, target: str, headers: Mapping[str, str]) -> Ask:
    """What a request of specbatch asks IAM for.

    Raises:
        AssertionError: it is a request that no code of ours makes.
    """
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    arn = f"arn:aws:s3:::{bucket}"
    if not key:
        assert method == "GET", f"{method} {target}"
        if "uploads" in query:
            return Ask("s3:ListBucketMultipartUploads", arn)
        assert query.get("list-type") == ["2"], target
        return Ask("s3:ListBucket", arn, tuple(("s3:prefix", value) for value in query.get("prefix", ())))
    arn = f"{arn}/{key}"
    if method in ("GET", "HEAD") and not query:
        return Ask("s3:GetObject", arn)
    if method == "PUT" and not query and "x-amz-copy-source" not in headers:
        conditions = {"if-none-match": "s3:if-none-match", "if-match": "s3:if-match"}
        return Ask(
            "s3:PutObject", arn, tuple((conditions[name], headers[name]) for name in conditions if name in headers)
        )
    if method == "DELETE" and set(query) <= {"uploadId"}:
        return Ask("s3:AbortMultipartUpload" if query else "s3:DeleteObject", arn)
    raise AssertionError(f"{method} {target}")


class Gate:
    """The door, on a free port of the loopback device, until ``close``.

    Args:
        upstream: the endpoint of the S3 server.
        roles: by access key; other keys may do everything.
        lost: of writes to keys with this in them the first is lost, and of the second the reply.
    """

    def __init__(self, upstream: str, roles: Mapping[str, Role], lost: str) -> None:
        self.seen: list[Seen] = []
        self.unknown: list[str] = []
        self._upstream = upstream.removeprefix("http://")
        self._roles = roles
        self._lost = lost
        self._num_lost = 0
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: Any) -> None:
                """Nothing."""

            def _serve(self) -> None:
                gate._serve(self)

            do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = _serve

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        body = handler.rfile.read(int(headers.get("content-length", 0)))
        named = _CREDENTIAL.search(headers.get("authorization", ""))
        role = self._roles.get(named.group(1) if named else "")
        try:
            ask = ask_of(handler.command, handler.path, headers)
        except AssertionError as error:
            self.unknown.append(str(error))
            return _answer(handler, 403, [], _DENIED)
        if role is not None and not role.may(ask):
            return self._finish(handler, role, ask, 403, [], _DENIED)
        lost = self._loses(ask)
        if lost == 1:
            return self._finish(handler, role, ask, 503, [], _SLOW_DOWN)
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        try:
            passed = {name: value for name, value in handler.headers.items() if name.lower() not in _HOP_BY_HOP}
            connection.request(handler.command, handler.path, body, passed)
            reply = connection.getresponse()
            data, status, fields = reply.read(), reply.status, reply.getheaders()
        finally:
            connection.close()
        if status == 404 and ask.action == "s3:GetObject" and role is not None:
            bucket = ask.resource.partition("/")[0]
            implied = Ask("s3:ListBucket", bucket)
            if not role.may(implied):
                status, fields, data = 403, [], _DENIED
            self.seen.append(Seen(role.name, implied, status))
        if lost == 2:
            status, fields, data = 503, [], _SLOW_DOWN
        self._finish(handler, role, ask, status, fields, data)

    def _loses(self, ask: Ask) -> int:
        """Which of the writes to be lost this one is, 0 where it is none."""
        if ask.action != "s3:PutObject" or self._lost not in ask.resource or self._num_lost == 2:
            return 0
        self._num_lost += 1
        return self._num_lost

    def _finish(
        self, handler: BaseHTTPRequestHandler, role: Role | None, ask: Ask, status: int, fields: Any, data: bytes
    ) -> None:
        self.seen.append(Seen(role.name if role else "", ask, status))
        _answer(handler, status, fields, data)


def _answer(handler: BaseHTTPRequestHandler, status: int, fields: Any, data: bytes) -> None:
    handler.send_response_only(status)
    is_head, has_length = handler.command == "HEAD", False
    for name, value in fields:
        if name.lower() in _HOP_BY_HOP or (name.lower() == "content-length" and not is_head):
            continue
        has_length |= name.lower() == "content-length"
        handler.send_header(name, value)
    if not has_length:
        handler.send_header("Content-Length", "0" if is_head else str(len(data)))
    handler.end_headers()
    if not is_head:
        handler.wfile.write(data)
