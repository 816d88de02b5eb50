"""A real S3 server for the tests: moto's, in a process of its own, with what moto lacks and with faults on demand.

moto looks whether an object exists, or has an ETag, and then writes, with no lock in between: of concurrent creators
several win. Real S3 serialises those, so here one lock is held around every request. The tests of the probe start the
server without it (``racy_seconds``), to have a store that lies. Faults here are the store's own; those of the network
in between, for whole jobs, are in ``faults/proxy.py``.

Run as a script it is the server; imported it starts one.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

Start = Callable[[str, list[tuple[str, str]]], Any]
Application = Callable[[dict[str, Any], Start], Iterable[bytes]]
_CONTROL = "/_control/"


@dataclass(frozen=True)
class FaultRule:
    """A fault for the next ``count`` requests of one method whose path contains ``key``.

    Attributes:
        action: ``answer`` (an error of S3: ``status`` and ``code``), ``drop`` (the connection ends with no reply),
            ``truncate`` (half the body, then the connection ends), ``shorten`` (half the body, said to be all),
            ``corrupt`` (one byte of the body), ``hold`` (for ``seconds``, then do it).
        is_done: whether the request takes effect before the fault: a lost reply instead of a lost request.
        skip: so many matching requests pass first.
    """

    method: str
    key: str
    action: Literal["answer", "drop", "truncate", "shorten", "corrupt", "hold"]
    is_done: bool = False
    status: int = 503
    code: str = "SlowDown"
    seconds: float = 0.0
    count: int = 1
    skip: int = 0


class S3Server:
    """A running server; the caller stops it."""

    def __init__(self, *, racy_seconds: float = 0.0, ignored_header: str = "") -> None:
        command = [sys.executable, __file__, "--racy-seconds", str(racy_seconds), "--ignored-header", ignored_header]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    @property
    def environment(self) -> dict[str, str]:
        """What a client of this server needs in its environment."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test-access-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def new_bucket(self) -> str:
        """Make an empty bucket of its own name."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self._send("PUT", f"/{name}", b"")
        return name

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Write an object without any client of ours."""
        self._send("PUT", f"/{bucket}/{key}", data)

    def inject(self, *rules: FaultRule) -> None:
        """Replace all fault rules, and forget the requests seen so far."""
        self._send("POST", f"{_CONTROL}rules", json.dumps([dataclasses.asdict(rule) for rule in rules]).encode())

    def requests(self) -> list[str]:
        """Requests since ``inject``, as ``"PUT /bucket/key"``."""
        seen: list[str] = json.loads(self._send("GET", f"{_CONTROL}requests", None))
        return seen

    def _send(self, method: str, path: str, data: bytes | None) -> bytes:
        # moto tells services apart by the scope of the signature, which it does not check.
        headers = {
            "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request",
            "Content-Type": "application/octet-stream",
        }
        request = urllib.request.Request(self.endpoint + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            body: bytes = answer.read()
            return body


class _Faults:
    """The outermost layer: notes requests and spoils those that a rule names."""

    def __init__(self, inner: Application) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._rules: list[FaultRule] = []
        self._seen: list[str] = []

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        # Read here: a slow body must not keep the lock of the server.
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path.startswith(_CONTROL):
            return [self._control(path, body, start)]
        rule = self._rule_for(method, path)
        if rule is None:
            return self._inner(environ, start)
        if rule.action == "hold":
            time.sleep(rule.seconds)
            return self._inner(environ, start)
        if rule.action in ("truncate", "shorten", "corrupt"):
            return self._spoil(rule, environ, start)
        if rule.is_done:
            list(self._inner(environ, lambda status, headers: None))
        if rule.action == "drop":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            start("200 OK", [("Content-Length", "0")])
            return [b""]
        text = f"<Error><Code>{rule.code}</Code><Message>injected</Message></Error>".encode()
        start(f"{rule.status} injected", [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
        return [b"" if method == "HEAD" else text]

    def _spoil(self, rule: FaultRule, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        head: list[Any] = []
        body = b"".join(self._inner(environ, lambda *arguments: head.extend(arguments)))
        status, headers = head
        middle = len(body) // 2
        if rule.action == "shorten":
            headers = [item for item in headers if item[0].lower() != "content-length"]
            headers.append(("Content-Length", str(middle)))
        start(status, headers)
        if rule.action == "corrupt":
            yield body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
            return
        yield body[:middle]
        if rule.action == "truncate":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)

    def _control(self, path: str, body: bytes, start: Start) -> bytes:
        with self._lock:
            if path.endswith("rules"):
                self._rules = [FaultRule(**rule) for rule in json.loads(body)]
                self._seen.clear()
            answer = json.dumps(self._seen).encode()
        start("200 OK", [("Content-Length", str(len(answer)))])
        return answer

    def _rule_for(self, method: str, path: str) -> FaultRule | None:
        with self._lock:
            self._seen.append(f"{method} {path}")
            for index, rule in enumerate(self._rules):
                if rule.method != method or rule.key not in path:
                    continue
                if rule.skip:
                    self._rules[index] = dataclasses.replace(rule, skip=rule.skip - 1)
                    continue
                if rule.count:
                    self._rules[index] = dataclasses.replace(rule, count=rule.count - 1)
                    return rule
        return None


def _serialised(inner: Application) -> Application:
    lock = threading.Lock()

    def call(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        with lock:
            return list(inner(environ, start))

    return call


def _without_header(inner: Application, name: str) -> Application:
    def call(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "PUT":
            environ.pop(f"HTTP_{name.upper().replace('-', '_')}", None)
        return inner(environ, start)

    return call


def _serve() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from moto.s3.models import S3Backend
    from werkzeug.serving import make_server

    parser = argparse.ArgumentParser()
    parser.add_argument("--racy-seconds", type=float, default=0.0)
    parser.add_argument("--ignored-header", default="")
    arguments = parser.parse_args()

    class QuietHandler(MotoRequestHandler):
        def log_request(self, *args: object) -> None:
            """Nothing: the tests ask for the requests by ``requests``."""

    application: Application = DomainDispatcherApplication(create_backend_app)
    if arguments.racy_seconds:
        put_object = S3Backend.put_object

        def slow_put_object(*args: Any, **kwargs: Any) -> Any:
            time.sleep(arguments.racy_seconds)
            return put_object(*args, **kwargs)

        S3Backend.put_object = slow_put_object
    else:
        application = _serialised(application)
    if arguments.ignored_header:
        application = _without_header(application, arguments.ignored_header)
    # The end of the input is the end of whoever started this, however he ended.
    threading.Thread(target=lambda: os._exit(len(sys.stdin.read())), daemon=True).start()
    server = make_server("127.0.0.1", 0, _Faults(application), threaded=True, request_handler=QuietHandler)
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    _serve()
