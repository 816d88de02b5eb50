"""S3 and its like as a store: create-once is a PUT with ``If-None-Match: *``, swap one with ``If-Match``.

The outcome of a write is never read from its status alone. A conflict can be with one's own success whose reply was
lost, a timeout can hide a success, and a 409 says nothing. Every write carries a random token in the object's metadata,
and after anything but a plain success the object is read back: whose token it bears tells who won.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from specbatch.schemas.canonical import sha256_file, sha256_hex
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.s3_client import Bucket, bucket_of
from specbatch.storage.s3_errors import Fault, FaultKind
from specbatch.storage.s3_file import open_object
from specbatch.storage.s3_session import connection
from specbatch.storage.spool import new_spool_path
from specbatch.storage.store import SPOOL_FOLDER, NotFound, check_key

MAX_PUT_BYTES = 5 * 1024**3
_CHUNK_BYTES = 1 << 20
_MARK_WAITS_SECONDS = (0.05, 0.2, 0.5)
# After these nobody knows whether the object was written, or by whom; after any other it was not.
_UNSETTLED = frozenset({FaultKind.CHANGED, FaultKind.BUSY, FaultKind.RETRY, FaultKind.ABSENT, FaultKind.EXPIRED})


@dataclass(frozen=True, slots=True)
class S3Store:
    """Objects below ``uri``, which is ``s3://bucket`` or ``s3://bucket/prefix``.

    Attributes:
        single_writer: write without conditions, after looking whether the object is there. Two writers at once can
            then both believe to have made an object: this is for stores without conditional writes.
    """

    uri: str
    single_writer: bool = False

    @property
    def is_local(self) -> bool:
        """See ``Store.is_local``."""
        return False

    def create(self, key: str, source: bytes | Path) -> bool:
        """See ``Store.create``.

        Raises:
            SpecbatchError: also ``JOB_CONFIG``, the source is larger than one PUT may be.
        """
        return self._write(key, source, None) is not None

    def replace(self, key: str, data: bytes) -> None:
        """See ``Store.replace``."""
        bucket, name = self._place(key)
        _Write(bucket, name, data).send_unconditionally()

    def swap(self, key: str, data: bytes, expected: str | None) -> str | None:
        """See ``Store.swap``."""
        return self._write(key, data, expected)

    def read(self, key: str) -> bytes:
        """See ``Store.read``."""
        bucket, name = self._place(key)
        return bucket.read(name)[0]

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        """See ``Store.read_versioned``."""
        bucket, name = self._place(key)
        return bucket.read(name)

    def size(self, key: str) -> int:
        """See ``Store.size``."""
        bucket, name = self._place(key)
        return bucket.head(name).num_bytes

    def list(self, prefix: str) -> list[str]:
        """See ``Store.list``."""
        bucket, root = self._root()
        top = prefix.rstrip("/")
        folder = root + (f"{check_key(top)}/" if top else "")
        keys = (found.key.removeprefix(root) for found in bucket.list(folder))
        # Consoles mark folders by empty objects whose names end with a slash.
        return sorted(key for key in keys if not key.endswith("/") and not key.startswith(f"{SPOOL_FOLDER}/"))

    def open(self, key: str) -> BinaryIO:
        """See ``Store.open``. One open object is one version, whatever happens to the key meanwhile."""
        bucket, name = self._place(key)
        return open_object(bucket, name)

    def spool_path(self) -> Path:
        """See ``Store.spool_path``: in a private folder in the temporary folder of this machine."""
        return new_spool_path()

    def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        bucket, name = self._place(key)
        bucket.delete(name)

    def abort_uploads(self, older_than_seconds: float) -> int:
        """Give up multipart uploads below the root that began so long ago: not ours, but they are billed."""
        bucket, root = self._root()
        return bucket.abort_uploads(root, older_than_seconds)

    def clock_skew_seconds(self) -> float:
        """How far the store's clock is ahead of this machine's, to about a second."""
        bucket, root = self._root()
        return bucket.clock_skew_seconds(root)

    def stored_sha256(self, key: str) -> str | None:
        """The digest that the write left on an object, None where the store keeps no metadata.

        Raises:
            NotFound: there is no object.
        """
        bucket, name = self._place(key)
        return bucket.stamp(name).sha256

    @property
    def place(self) -> str:
        """Endpoint and bucket: what decides how the store behaves."""
        return f"{connection().endpoint}/{self._root()[0].name}"

    def _write(self, key: str, source: bytes | Path, expected: str | None) -> str | None:
        bucket, name = self._place(key)
        write = _Write(bucket, name, source)
        if not self.single_writer:
            return write.send(expected)
        try:
            found = bucket.head(name).etag
        except NotFound:
            found = None
        return write.send_unconditionally() if found == expected else None

    def _root(self) -> tuple[Bucket, str]:
        bucket, prefix = bucket_of(self.uri)
        return bucket, f"{prefix}/" if prefix else ""

    def _place(self, key: str) -> tuple[Bucket, str]:
        bucket, root = self._root()
        return bucket, root + str(check_key(key))


class _Write:
    """One write of one object: all its attempts carry one token."""

    def __init__(self, bucket: Bucket, key: str, source: bytes | Path) -> None:
        self._bucket = bucket
        self._key = key
        self._source = source
        self._num_bytes = source.stat().st_size if isinstance(source, Path) else len(source)
        if self._num_bytes > MAX_PUT_BYTES:
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG,
                f"{bucket.uri(key)} would have {self._num_bytes} bytes, more than the 5 GiB of one PUT; "
                "use a smaller --shard-rows",
            )
        self._sha256 = sha256_file(source) if isinstance(source, Path) else sha256_hex(source)
        self._token = secrets.token_hex(16)

    def send(self, expected: str | None) -> str | None:
        """Write the object if it still has the ETag ``expected`` (None: if there is none).

        Returns:
            Its new ETag, or None where another's object is there now.
        """
        return self._until_settled(
            lambda: self._bucket.put(
                self._key,
                self._source,
                token=self._token,
                sha256=self._sha256,
                only_if_absent=expected is None,
                only_if_etag=expected,
            ),
            lambda: self._look(expected),
        )

    def send_unconditionally(self) -> str:
        """Write the object over whatever is there; a lost reply costs a second identical write."""
        etag = self._until_settled(
            lambda: self._bucket.put(self._key, self._source, token=self._token, sha256=self._sha256),
            lambda: (False, None),
        )
        assert etag is not None
        return etag

    def _until_settled(self, put: Callable[[], str], look: Callable[[], tuple[bool, str | None]]) -> str | None:
        """Try until a PUT succeeds or a look at the object settles what became of it: (settled, result)."""
        attempts = self._bucket.attempts()
        while True:
            try:
                return put()
            except Fault as fault:
                if fault.kind not in _UNSETTLED:
                    raise self._bucket.error(fault, "write", self._key) from fault
                settled, etag = look()
                if settled:
                    return etag
                try:
                    attempts.failed(fault)
                except Fault:
                    raise self._lost(fault) from fault

    def _look(self, expected: str | None) -> tuple[bool, str | None]:
        """Whether the object's state settles this write, and as what; unsettled: the same PUT may be sent again."""
        for wait_seconds in (*_MARK_WAITS_SECONDS, None):
            try:
                found = self._bucket.stamp(self._key)
            except NotFound:
                # Nothing there to swap with: it was deleted. Nothing there at all: a create is still to be done.
                return expected is not None, None
            if found.token == self._token:
                return True, found.etag
            if found.etag == expected:
                return False, None
            if found.token is not None or found.num_bytes != self._num_bytes:
                return True, None
            # No token: metadata can come late (or never) to an object that can be seen already.
            if wait_seconds is not None:
                time.sleep(wait_seconds)
        return True, found.etag if self._has_our_bytes() else None

    def _has_our_bytes(self) -> bool:
        digest = hashlib.sha256()
        try:
            with open_object(self._bucket, self._key) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except (NotFound, SpecbatchError) as error:
            if isinstance(error, SpecbatchError) and error.code is not ErrorCode.JOB_INTEGRITY:
                raise
            return False  # replaced or deleted while it was read
        return digest.hexdigest() == self._sha256

    def _lost(self, fault: Fault) -> SpecbatchError:
        kind = FaultKind.EXPIRED if fault.kind is FaultKind.EXPIRED else FaultKind.RETRY
        return self._bucket.error(Fault(kind, fault.reason), "write", self._key)
