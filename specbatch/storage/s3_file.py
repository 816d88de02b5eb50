"""An S3 object as a seekable file: ranged reads of one version, with a little read-ahead."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, BinaryIO, cast

from specbatch.storage.s3_client import Bucket
from specbatch.storage.s3_errors import Fault, FaultKind
from specbatch.storage.store import NotFound

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_READ_AHEAD_BYTES = 128 * 1024


class S3File(io.RawIOBase):
    """One version of an object, opened for reading. ``read(n)`` gives n bytes wherever the object has them.

    Small reads fetch ``_READ_AHEAD_BYTES`` around them (the end of the object with what lies before it, as Parquet
    footers are read backwards); larger ones fetch just what they ask for and keep nothing.
    """

    def __init__(self, bucket: Bucket, key: str, etag: str | None = None, num_bytes: int | None = None) -> None:
        """Open an object; with ``etag`` and ``num_bytes`` (of a listing) no request is sent.

        Raises:
            NotFound: there is none.
            SpecbatchError: ``JOB_INPUT_CHANGED`` (of an output ``JOB_INTEGRITY``): it has another ETag.
        """
        super().__init__()
        self._bucket = bucket
        self._key = key
        if etag is None or num_bytes is None:
            found = bucket.head(key)
            if etag not in (None, found.etag):
                raise self._changed()
            etag, num_bytes = found.etag, found.num_bytes
        self.etag = etag
        self.num_bytes = num_bytes
        self._position = 0
        self._window = b""
        self._window_start = 0

    @property
    def name(self) -> str:
        """The object's URI."""
        return self._bucket.uri(self._key)

    def readable(self) -> bool:
        """See ``io.IOBase``."""
        return True

    def seekable(self) -> bool:
        """See ``io.IOBase``."""
        return True

    def tell(self) -> int:
        """See ``io.IOBase``."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See ``io.IOBase``. Beyond the end is allowed; reads there give nothing."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.num_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """``size`` bytes, fewer only at the end of the object; all the rest where it is negative or None.

        Raises:
            SpecbatchError: ``JOB_INPUT_CHANGED`` (of an output ``JOB_INTEGRITY``) where the object was replaced or
                deleted, and what ``Bucket.get`` raises.
        """
        if self.closed:
            raise ValueError("read of a closed file")
        rest = max(0, self.num_bytes - self._position)
        wanted = rest if size is None or size < 0 else min(size, rest)
        data = self._bytes_at(self._position, wanted)
        self._position += wanted
        return data

    def readall(self) -> bytes:
        """See ``io.RawIOBase``."""
        return self.read()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """See ``io.RawIOBase``."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def _bytes_at(self, start: int, count: int) -> bytes:
        if count == 0:
            return b""
        at = start - self._window_start
        if at >= 0 and at + count <= len(self._window):
            return self._window[at : at + count]
        if count >= _READ_AHEAD_BYTES:
            return self._fetch(start, start + count)
        stop = min(start + _READ_AHEAD_BYTES, self.num_bytes)
        self._window_start = min(start, max(0, stop - _READ_AHEAD_BYTES))
        self._window = self._fetch(self._window_start, stop)
        at = start - self._window_start
        return self._window[at : at + count]

    def _fetch(self, start: int, stop: int) -> bytes:
        try:
            data = self._bucket.get(self._key, start, stop, self.etag)
        except NotFound as error:
            raise self._changed() from error
        if len(data) != stop - start:
            raise self._changed()
        return data

    def _changed(self) -> Exception:
        return self._bucket.error(Fault(FaultKind.CHANGED, "another version"), "read", self._key)


def open_object(bucket: Bucket, key: str, etag: str | None = None, num_bytes: int | None = None) -> BinaryIO:
    """``S3File`` under the type that readers of files take."""
    return cast(BinaryIO, S3File(bucket, key, etag, num_bytes))
