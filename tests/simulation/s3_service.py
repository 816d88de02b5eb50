"""A simulated S3 service under the real ``S3Store``: boto3's answers and errors in the place of boto3's client."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, NoReturn, TypeVar

from botocore import exceptions as boto

from specbatch.storage import s3, s3_client
from specbatch.storage.s3_session import Connection
from specbatch.storage.store import NotFound

from .checker import Checker, is_created_once
from .environment import EPOCH_SECONDS
from .network import ErrorAnswer, Network, NoAnswer, Objects, Stored
from .scheduler import Scheduler

URI = "s3://bucket/out"
_PREFIX = "out/"
_ENDPOINT = "https://simulated"

Answer = TypeVar("Answer")
_spools = itertools.count()


class SimulatedClient:
    """What ``S3Store`` uses of a boto3 client. One method is one request."""

    meta = SimpleNamespace(endpoint_url=_ENDPOINT)

    def __init__(self, scheduler: Scheduler, objects: Objects, network: Network) -> None:
        self._scheduler = scheduler
        self._objects = objects
        self._network = network

    def put_object(
        self,
        *,
        Key: str,
        Body: bytes | BinaryIO,
        Metadata: dict[str, str],
        IfNoneMatch: str | None = None,
        IfMatch: str | None = None,
        **rest: Any,
    ) -> dict[str, Any]:
        data = Body if isinstance(Body, bytes) else Body.read()
        key = _key(Key)
        assert IfNoneMatch in (None, "*")

        def effect() -> Stored | int:
            current = self._objects.all.get(key)
            if IfNoneMatch is not None and current is not None:
                return 412
            if IfMatch is not None and current is None:
                return 404
            if IfMatch is not None and current is not None and IfMatch.strip('"') != _etag(current):
                return 412
            return self._objects.put(key, data, Metadata)

        condition = "if-none-match " if IfNoneMatch else "if-match " if IfMatch else ""
        answer = self._ask("PutObject", f"PUT {condition}{key}", effect, mutates=True)
        if answer == 412:
            _refuse("PutObject", 412, "PreconditionFailed")
        if isinstance(answer, int):
            _refuse("PutObject", 404, "NoSuchKey")
        return {"ETag": f'"{_etag(answer)}"'}

    def get_object(
        self, *, Key: str, Range: str | None = None, IfMatch: str | None = None, **rest: Any
    ) -> dict[str, Any]:
        found = self._find("GetObject", f"GET {_key(Key)}", _key(Key))
        if IfMatch is not None and IfMatch.strip('"') != _etag(found):
            _refuse("GetObject", 412, "PreconditionFailed")
        answer = _facts(found)
        data = found.data
        if Range is not None:
            first, _, last = Range.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
            if start >= len(data):
                _refuse("GetObject", 416, "InvalidRange")
            answer["ContentRange"] = f"bytes {start}-{stop - 1}/{len(data)}"
            answer["ResponseMetadata"]["HTTPStatusCode"] = 206
            data = data[start:stop]
        return {**answer, "Body": io.BytesIO(data)}

    def head_object(self, *, Key: str, **rest: Any) -> dict[str, Any]:
        return _facts(self._find("HeadObject", f"HEAD {_key(Key)}", _key(Key)))

    def list_objects_v2(self, *, Prefix: str = "", **rest: Any) -> dict[str, Any]:
        def effect() -> list[dict[str, Any]]:
            return [
                {"Key": _PREFIX + key, "Size": len(stored.data), "ETag": f'"{_etag(stored)}"'}
                for key, stored in sorted(self._objects.all.items())
                if (_PREFIX + key).startswith(Prefix)
            ]

        contents = self._ask("ListObjectsV2", f"LIST {Prefix}", effect, mutates=False)
        date = datetime.fromtimestamp(EPOCH_SECONDS + self._scheduler.now_seconds, UTC)
        headers = {"date": format_datetime(date, usegmt=True)}
        metadata = {"HTTPStatusCode": 200, "HTTPHeaders": headers}
        return {"Contents": contents, "IsTruncated": False, "ResponseMetadata": metadata}

    def list_multipart_uploads(self, *, Prefix: str = "", **rest: Any) -> dict[str, Any]:
        """There are none: no writer of ours begins one."""
        return self._ask("ListMultipartUploads", f"LIST UPLOADS {Prefix}", dict, mutates=False)

    def delete_object(self, *, Key: str, **rest: Any) -> dict[str, Any]:
        self._ask("DeleteObject", f"DELETE {_key(Key)}", lambda: self._objects.delete(_key(Key)), mutates=True)
        return {}

    def _find(self, operation: str, label: str, key: str) -> Stored:
        found = self._ask(operation, label, lambda: self._objects.all.get(key), mutates=False)
        if found is None:
            # An answer to HEAD has no body, so it cannot name the error.
            _refuse(operation, 404, "404" if operation == "HeadObject" else "NoSuchKey")
        return found

    def _ask(self, operation: str, label: str, effect: Callable[[], Answer], *, mutates: bool) -> Answer:
        try:
            return self._network.perform(label, effect, mutates=mutates)
        except NoAnswer:
            raise boto.ReadTimeoutError(endpoint_url=_ENDPOINT) from None
        except ErrorAnswer as error:
            if error.code == "cut":
                raise boto.IncompleteReadError(actual_bytes=1, expected_bytes=2) from None
            _refuse(operation, error.status, error.code)


def _refuse(operation: str, status: int, code: str) -> NoReturn:
    raise boto.ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, operation)


def _facts(stored: Stored) -> dict[str, Any]:
    return {
        "ETag": f'"{_etag(stored)}"',
        "ContentLength": len(stored.data),
        "Metadata": dict(stored.metadata),
        "ResponseMetadata": {"HTTPStatusCode": 200},
    }


def _etag(stored: Stored) -> str:
    return hashlib.md5(stored.data, usedforsecurity=False).hexdigest()


def _key(name: str) -> str:
    assert name.startswith(_PREFIX)
    return name.removeprefix(_PREFIX)


class _SimulatedConnection(Connection):
    def __init__(self, client: SimulatedClient) -> None:
        super().__init__()
        self._simulated = client

    def client(self) -> Any:
        return self._simulated


def s3_patches(
    scheduler: Scheduler, objects: Objects, network: Network, spool: Path
) -> list[tuple[object, str, object]]:
    """What to replace so that the S3 code meets the simulated service; each process has its own connection."""
    connections: dict[int, Connection] = {}

    def connection() -> Connection:
        actor = scheduler.current
        assert actor is not None
        if actor.pid not in connections:
            connections[actor.pid] = _SimulatedConnection(SimulatedClient(scheduler, objects, network))
        return connections[actor.pid]

    return [
        (s3_client, "connection", connection),
        (s3, "connection", connection),
        (s3, "new_spool_path", lambda: spool / f"spool-{next(_spools)}"),
    ]


class WatchedStore:
    """Passes everything on to a store, and holds its answers about objects that never change against the truth."""

    def __init__(self, store: s3.S3Store, checker: Checker) -> None:
        self._store = store
        self._checker = checker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def create(self, key: str, source: bytes | Path) -> bool:
        data = source if isinstance(source, bytes) else source.read_bytes()
        created = self._store.create(key, source)
        stored = self._checker.objects.all.get(key)
        if is_created_once(key) and (stored is None or (created and stored.data != data)):
            self._checker.violate("claim", f"create of {key} said {created}, but the object is another one or none")
        # Only attempts at parts and job documents never have the same bytes.
        if not created and stored is not None and stored.data == data and key.startswith(("data/", "_specbatch/job")):
            self._checker.violate("claim", f"create of {key} denied its own success")
        return created

    def read(self, key: str) -> bytes:
        return self._present(key, lambda: self._store.read(key))

    def size(self, key: str) -> int:
        return self._present(key, lambda: self._store.size(key))

    def open(self, key: str) -> BinaryIO:
        return self._present(key, lambda: self._store.open(key))

    def _present(self, key: str, ask: Callable[[], Answer]) -> Answer:
        was_there = key in self._checker.objects.all
        try:
            return ask()
        except NotFound:
            if was_there and is_created_once(key) and key in self._checker.objects.all:
                self._checker.violate("claim", f"{key} was there all the time and was not found")
            raise


def open_s3_store(checker: Checker, *, is_watched: bool) -> Any:
    """The real S3 store, for the running process."""
    store = s3.S3Store(URI)
    return WatchedStore(store, checker) if is_watched else store
