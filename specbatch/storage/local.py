"""Local files as a store. Create-once is a hard link: the file system lets exactly one caller make a name.

A new object is written under ``_specbatch/tmp/``, made durable, and only then linked to its name, so a name never
shows half a file. ``O_EXCL`` on the name itself would: the name exists before its contents do. A writer that
dies leaves a file in ``tmp/`` that no key refers to.

A swap compares and writes under a lock that the system drops when its holder dies. The version of an object is the
digest of its contents: what is swapped must never return to old contents (leases count).
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from specbatch.schemas.canonical import sha256_hex
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.store import SPOOL_FOLDER, NotFound, check_key

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SWAP_LOCK = "swap.lock"
_NUM_LINK_TRIES = 5
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LocalStore:
    """Objects are files below ``uri``, an absolute local path."""

    uri: str

    @property
    def is_local(self) -> bool:
        """See ``Store.is_local``."""
        return True

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
                _in_folder(final.parent, lambda: spool.replace(final))
            finally:
                spool.unlink(missing_ok=True)

    def swap(self, key: str, data: bytes, expected: str | None) -> str | None:
        """See ``Store.swap``."""
        if expected is None:
            return sha256_hex(data) if self.create(key, data) else None
        with self._swap_lock():
            try:
                found = self.read_versioned(key)[1]
            except NotFound:
                return None
            if found != expected:
                return None
            self.replace(key, data)
            return sha256_hex(data)

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        """See ``Store.read_versioned``."""
        data = self.read(key)
        return data, sha256_hex(data)

    def delete(self, key: str) -> None:
        """See ``Store.delete``. Folders that become empty go too: a store has none."""
        path = self._path(key)
        with write_errors(path), suppress(*_ABSENT):
            path.unlink()
            fsync_folder(path.parent)
        for folder in path.relative_to(self.uri).parents[:-1]:
            try:
                (Path(self.uri) / folder).rmdir()
            except OSError:
                return

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
        with _read_errors(folder):
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

    @contextmanager
    def _swap_lock(self) -> Iterator[None]:
        """One swap at a time among all processes that see this folder."""
        lock = self.spool_path().with_name(_SWAP_LOCK)
        with write_errors(lock):
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield
            finally:
                os.close(handle)

    @property
    def _spool_folder(self) -> Path:
        return Path(self.uri) / SPOOL_FOLDER

    def _path(self, key: str) -> Path:
        return Path(self.uri) / check_key(key)


def _raise(error: OSError) -> None:
    """For ``os.walk``, which otherwise leaves out what it may not read: a part left out would look unwritten."""
    if not isinstance(error, _ABSENT):
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

    def link() -> bool:
        try:
            os.link(spool, final)
        except FileExistsError:
            # Over a network file system a retried request can report a conflict with its own success.
            return spool.samefile(final)
        return True

    return _in_folder(final.parent, link)


def _in_folder(folder: Path, name: Callable[[], T]) -> T:
    """Make a name in a folder, and make it durable. A rival's ``delete`` may remove the folder while it is empty."""
    for _ in range(_NUM_LINK_TRIES - 1):
        with suppress(FileNotFoundError):
            return _named(folder, name)
    return _named(folder, name)


def _named(folder: Path, name: Callable[[], T]) -> T:
    _ensure_folder(folder)
    result = name()
    fsync_folder(folder)
    return result


def _ensure_folder(folder: Path) -> None:
    """Make a folder and its parents; each new name is made durable in its parent."""
    if folder.is_dir():
        return
    _ensure_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    fsync_folder(folder.parent)


def _fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def name_folder(new: Path, final: Path, *, aside: Path) -> None:
    """Give a folder that is complete its name. One that has the name goes, but not before the new one is there.

    Args:
        aside: where the older folder is for that moment.

    Raises:
        OSError: the name cannot be given. An older folder has it again.
        SpecbatchError: ``JOB_OUTPUT_UNWRITABLE``, an older folder could not be put back either and is kept aside.
    """
    is_replacing = os.path.lexists(final)
    if is_replacing:
        final.rename(aside)
    try:
        new.rename(final)
    except OSError as error:
        if is_replacing:
            _put_back(aside, final, error)
        raise
    fsync_folder(final.parent)
    if is_replacing:
        shutil.rmtree(aside, ignore_errors=True)


def _put_back(aside: Path, final: Path, error: OSError) -> None:
    try:
        aside.rename(final)
    except OSError:
        reason = (error.strerror or type(error).__name__).lower()
        raise SpecbatchError(
            ErrorCode.JOB_OUTPUT_UNWRITABLE,
            f"cannot write {final}: {reason}; what was there before is kept as {aside}, rename it or remove it",
        ) from error


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
