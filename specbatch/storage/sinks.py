"""Files and folders that are written once, in a stream, and appear whole or not at all: what ``export`` makes.

Local: under a hidden name beside the wanted one, which a link or a rename gives it at the end. S3: one PUT, or an
upload of several parts that is completed at the end. In a folder on S3 the files appear one by one; ``_SUCCESS`` is the
last.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.local import fsync_folder, name_folder
from specbatch.storage.store import is_s3, local_path, open_store

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from specbatch.storage.s3_upload import MultipartUpload

SUCCESS_NAME = "_SUCCESS"
_PART_BYTES = 16 << 20
_PARTS_PER_SIZE = 1000
"""So many parts have one size, the next so many a larger one: S3 takes 10,000."""
_OWN_NAME = re.compile(r"(?:[^/]+=[^/]*/)*part-\d{5,}\.parquet|_SUCCESS")


class Folder(Protocol):
    """A folder in the making."""

    @property
    def is_local(self) -> bool:
        """Whether its files are local ones, of which many may be open at a time."""

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A new file of the folder; ``name`` may have folders of its own."""


@contextmanager
def open_sink(uri: str, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A file or object that is there, complete and durable, when the block ends; where it raises nothing is.

    Raises:
        SpecbatchError: ``JOB_PREFIX_TAKEN``, it exists and is not to be overwritten; ``JOB_URI_INVALID``,
            ``JOB_OUTPUT_UNWRITABLE``; for S3 ``JOB_STORE_LOST``, ``JOB_STORE_DENIED``.
    """
    if is_s3(uri):
        with _open_object(uri, overwrite=overwrite) as sink:
            yield sink
        return
    final = local_path(uri, "export")
    if final.is_dir() or (not overwrite and os.path.lexists(final)):
        raise _taken(str(final), is_folder=final.is_dir())
    with _place_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = _hidden(final)
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if overwrite:
                partial.replace(final)
            else:
                _give_name(partial, final)
            fsync_folder(final.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def open_folder(uri: str, *, overwrite: bool = False) -> Iterator[Folder]:
    """A folder of files; ``_SUCCESS``, an empty file, is its last.

    A folder may be overwritten only if it holds nothing but what an export makes: a wrong name must not cost data.

    Raises:
        SpecbatchError: as ``open_sink``.
    """
    if is_s3(uri):
        yield from _s3_folder(uri, overwrite=overwrite)
        return
    final = local_path(uri, "export")
    if os.path.lexists(final):
        _check_replaceable(final, overwrite=overwrite)
    with _place_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = _hidden(final)
        partial.mkdir()
        try:
            yield _LocalFolder(partial)
            (partial / SUCCESS_NAME).touch(exist_ok=False)
            for folder, _, _ in os.walk(partial):
                fsync_folder(Path(folder))
            name_folder(partial, final, aside=_hidden(final, "old"))
        finally:
            shutil.rmtree(partial, ignore_errors=True)


class _LocalFolder:
    is_local = True

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        path = self._root / name
        with _place_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())


class _S3Folder:
    is_local = False

    def __init__(self, root: str) -> None:
        self._root = root

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        return _open_object(f"{self._root}/{name}", overwrite=True)


def _s3_folder(uri: str, *, overwrite: bool) -> Iterator[Folder]:
    root = uri.rstrip("/")
    store = open_store(root)
    found = store.list("")
    if found and not overwrite:
        raise _taken(root, is_folder=True)
    if foreign := [key for key in found if not _OWN_NAME.fullmatch(key)]:
        raise _foreign(root, foreign[0])
    for key in sorted(found, key=lambda key: key != SUCCESS_NAME):  # first what says that the folder is whole
        store.delete(key)
    yield _S3Folder(root)
    store.replace(SUCCESS_NAME, b"")


@contextmanager
def _open_object(uri: str, *, overwrite: bool) -> Iterator[BinaryIO]:
    from specbatch.storage.s3_client import bucket_of
    from specbatch.storage.store import NotFound

    bucket, key = bucket_of(uri)
    if not key:
        raise SpecbatchError(ErrorCode.JOB_URI_INVALID, "the URI of the export names a bucket and no object in it")
    if not overwrite:
        try:
            bucket.head(key)
        except NotFound:
            pass
        else:
            raise _taken(bucket.uri(key))
    sink = _ObjectSink(uri)
    try:
        yield cast(BinaryIO, sink)
        made = sink.finish(overwrite=overwrite)
    except BaseException:
        sink.abort()
        raise
    if not made:
        raise _taken(bucket.uri(key))


class _ObjectSink(io.RawIOBase):
    """Takes bytes for one S3 object; not more than a part of it is in memory."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri
        self._buffer = bytearray()
        self._num_bytes = 0
        self._upload: MultipartUpload | None = None

    def writable(self) -> bool:
        """See ``io.IOBase``."""
        return True

    def tell(self) -> int:
        """Bytes taken so far."""
        return self._num_bytes

    def write(self, data: ReadableBuffer, /) -> int:
        """See ``io.RawIOBase``; all of the data is taken."""
        view = memoryview(data).cast("B")
        self._buffer += view
        self._num_bytes += len(view)
        while len(self._buffer) >= self._part_bytes():
            self._send(self._part_bytes())
        return len(view)

    def finish(self, *, overwrite: bool) -> bool:
        """Make the object; False where there is one that must stay."""
        if self._upload is not None:
            if self._buffer:
                self._send(len(self._buffer))
            return self._upload.complete(only_if_absent=not overwrite)
        parent, _, name = self._uri.rpartition("/")
        store = open_store(parent)
        if overwrite:
            store.replace(name, bytes(self._buffer))
            return True
        return store.create(name, bytes(self._buffer))

    def abort(self) -> None:
        """Leave nothing behind."""
        if self._upload is not None:
            self._upload.abort()

    def _part_bytes(self) -> int:
        number = 0 if self._upload is None else self._upload.num_parts
        return _PART_BYTES * (1 + number // _PARTS_PER_SIZE)

    def _send(self, num_bytes: int) -> None:
        from specbatch.storage.s3_client import bucket_of
        from specbatch.storage.s3_upload import MultipartUpload

        if self._upload is None:
            self._upload = MultipartUpload(*bucket_of(self._uri))
        self._upload.send(bytes(self._buffer[:num_bytes]))
        del self._buffer[:num_bytes]


def _hidden(final: Path, what: str = "partial") -> Path:
    return final.with_name(f".{final.name}.{secrets.token_hex(8)}.{what}")


def _give_name(partial: Path, final: Path) -> None:
    """Link, which never replaces; where the file system has no links, look and rename."""
    try:
        os.link(partial, final)
    except FileExistsError:
        raise _taken(str(final)) from None
    except OSError:
        if os.path.lexists(final):
            raise _taken(str(final)) from None
        partial.rename(final)


def _check_replaceable(final: Path, *, overwrite: bool) -> None:
    if not overwrite or not final.is_dir() or final.is_symlink():
        raise _taken(str(final), is_folder=final.is_dir())
    names = (path.relative_to(final).as_posix() for path in final.rglob("*") if path.is_symlink() or not path.is_dir())
    if foreign := next((name for name in names if not _OWN_NAME.fullmatch(name)), None):
        raise _foreign(str(final), foreign)


@contextmanager
def _place_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise SpecbatchError(
            ErrorCode.JOB_OUTPUT_UNWRITABLE,
            f"cannot write {path}: {reason}; make room there, or name another place",
        ) from error


def _taken(place: str, *, is_folder: bool = False) -> SpecbatchError:
    what = "folder" if is_folder else "file"
    return SpecbatchError(
        ErrorCode.JOB_PREFIX_TAKEN, f"there is a {what} at {place}; name another place, or give --overwrite"
    )


def _foreign(place: str, name: str) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_PREFIX_TAKEN,
        f"{place} holds {name!r}, which no export made, and is not overwritten; name another folder, or remove it",
    )
