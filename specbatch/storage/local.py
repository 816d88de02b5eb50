"""Local files as a store. Create-once is a hard link: the file system lets exactly one caller make a name.

A new object is written under ``_specbatch/tmp/``, made durable, and only then linked to its name, so a name never
shows half a file. ``O_EXCL`` on the name itself would: the name exists before its contents do. A writer that
dies leaves a file in ``tmp/`` that no key refers to.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.store import SPOOL_FOLDER, NotFound, check_key

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV})


@dataclass(frozen=True, slots=True)
class LocalStore:
    """Objects are files below ``uri``, an absolute local path."""

    uri: str

    def create(self, key: str, source: bytes | Path) -> bool:
        """See ``Store.create``."""
        final = self._path(key)
        with write_errors(final):
            if final.exists():
                return False
            if isinstance(source, Path) and source.parent == self._spool_folder:
                _fsync_file(source)
                return _link(source, final)
            spool = self.spool_path()
            try:
                _spool(spool, source)
                return _link(spool, final)
            finally:
                spool.unlink(missing_ok=True)

    def replace(self, key: str, data: bytes) -> None:
        """See ``Store.replace``."""
        final = self._path(key)
        with write_errors(final):
            spool = self.spool_path()
            try:
                _spool(spool, data)
                _ensure_folder(final.parent)
                spool.replace(final)
                _fsync_folder(final.parent)
            finally:
                spool.unlink(missing_ok=True)

    def read(self, key: str) -> bytes:
        """See ``Store.read``."""
        path = self._path(key)
        with _read_errors(path):
            return path.read_bytes()

    def size(self, key: str) -> int:
        """See ``Store.size``."""
        path = self._path(key)
        with _read_errors(path):
            if not path.is_file():
                raise NotFound(key)
            return path.stat().st_size

    def list(self, prefix: str) -> list[str]:
        """See ``Store.list``."""
        top = prefix.rstrip("/")
        folder = self._path(top) if top else Path(self.uri)
        keys: list[str] = []
        with _read_errors(folder), suppress(*_ABSENT):
            for parent, folders, names in os.walk(folder, onerror=_raise):
                if Path(parent) == self._spool_folder.parent:
                    folders[:] = [name for name in folders if name != self._spool_folder.name]
                keys.extend((Path(parent) / name).relative_to(self.uri).as_posix() for name in names)
        return sorted(keys)

    def open(self, key: str) -> BinaryIO:
        """See ``Store.open``."""
        path = self._path(key)
        with _read_errors(path):
            return path.open("rb")

    def spool_path(self) -> Path:
        """See ``Store.spool_path``. The folder is on the same file system as every key, so a link needs no copy."""
        with write_errors(self._spool_folder):
            _ensure_folder(self._spool_folder)
        return self._spool_folder / secrets.token_hex(16)

    @property
    def _spool_folder(self) -> Path:
        return Path(self.uri) / SPOOL_FOLDER

    def _path(self, key: str) -> Path:
        return Path(self.uri) / check_key(key)


def _raise(error: OSError) -> None:
    """For ``os.walk``, which otherwise leaves out what it may not read: a part left out would look unwritten."""
    raise error


def _spool(spool: Path, source: bytes | Path) -> None:
    """Write the contents to the spool file and make them durable."""
    with spool.open("xb") as target:
        if isinstance(source, Path):
            with source.open("rb") as origin:
                shutil.copyfileobj(origin, target, 1 << 20)
        else:
            target.write(source)
        target.flush()
        os.fsync(target.fileno())


def _link(spool: Path, final: Path) -> bool:
    """Give the spooled contents their name; False when the name was taken."""
    _ensure_folder(final.parent)
    try:
        os.link(spool, final)
    except FileExistsError:
        # Over a network file system a retried request can report a conflict with its own success.
        if not spool.samefile(final):
            return False
    _fsync_folder(final.parent)
    return True


def _ensure_folder(folder: Path) -> None:
    """Make a folder and its parents; each new name is made durable in its parent."""
    if folder.is_dir():
        return
    _ensure_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    _fsync_folder(folder.parent)


def _fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into ``JOB_OUTPUT_UNWRITABLE`` with the path, the reason and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            remedy = "free some space or choose another --output, then run the same command again"
        elif error.errno in _NO_LINKS:
            remedy = "the file system must allow hard links; choose another --output"
        else:
            remedy = "make it writable or choose another --output"
        reason = (error.strerror or type(error).__name__).lower()
        raise SpecbatchError(ErrorCode.JOB_OUTPUT_UNWRITABLE, f"cannot write {path}: {reason}; {remedy}") from error


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except _ABSENT as error:
        raise NotFound(str(path)) from error
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise SpecbatchError(
            ErrorCode.JOB_STORE_LOST, f"cannot read {path}: {reason}; make it readable and try again"
        ) from error
