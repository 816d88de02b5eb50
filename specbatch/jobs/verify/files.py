"""Reading the files of an output that may be hostile: no links, no devices, bounded sizes, strict JSON.

Part of ``verify``, which shares no code with the writers: a mistake of theirs must not be repeated here. Objects of a
remote store come through its own reader, which knows bytes and nothing of what they mean.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, Protocol

if TYPE_CHECKING:
    from specbatch.storage.store import Store

_CHUNK_BYTES = 1 << 20
_MAX_OBJECT_BYTES = 8 << 30


class Unsound(Exception):  # noqa: N818 - a finding, not a fault of the program
    """Something in the output is not as it must be; the message names it."""


class Absent(Exception):  # noqa: N818 - an answer
    """There is no such file."""


class Source(Protocol):
    """The files of one output, or of an amendment below it."""

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A local file with the contents of ``name``.

        Raises:
            Absent: there is none.
            Unsound: it is something else, cannot be read, or is absurdly large.
        """

    def list(self, folder: str) -> list[str]:
        """Sorted names in a folder; [] where there is none.

        Raises:
            Unsound: it is no folder.
        """

    def below(self, folder: str) -> Source:
        """The files of an inner output."""


@dataclass(frozen=True, slots=True)
class LocalSource:
    """An output in a local folder."""

    root: Path

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """See ``Source.open``."""
        return open_regular(self.root, name)

    def list(self, folder: str) -> list[str]:
        """See ``Source.list``."""
        return list_folder(self.root, folder)

    def below(self, folder: str) -> Source:
        """See ``Source.below``. A link there is found when a file is opened."""
        return _InnerSource(self, folder)


@dataclass(frozen=True, slots=True)
class RemoteSource:
    """An output in a remote store. Each object is fetched to a nameless local file: no more than one lies here."""

    store: Store

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """See ``Source.open``."""
        from specbatch.storage.store import NotFound

        try:
            num_bytes = self.store.size(name)
            if num_bytes > _MAX_OBJECT_BYTES:
                raise Unsound(f"{name} has {num_bytes:,} bytes")
            remote = self.store.open(name)
        except NotFound as error:
            raise Absent(name) from error
        with remote, tempfile.TemporaryFile() as local:
            while chunk := remote.read(_CHUNK_BYTES):
                local.write(chunk)
                if local.tell() > num_bytes:
                    raise Unsound(f"{name} grows while it is read")
            local.seek(0)
            yield local

    def list(self, folder: str) -> list[str]:
        """See ``Source.list``."""
        inner = (key.removeprefix(f"{folder}/").split("/")[0] for key in self.store.list(folder))
        return sorted(set(inner))

    def below(self, folder: str) -> Source:
        """See ``Source.below``."""
        return _InnerSource(self, folder)


@dataclass(frozen=True, slots=True)
class _InnerSource:
    outer: Source
    folder: str

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        return self.outer.open(f"{self.folder}/{name}")

    def list(self, folder: str) -> list[str]:
        return self.outer.list(f"{self.folder}/{folder}")

    def below(self, folder: str) -> Source:
        return _InnerSource(self.outer, f"{self.folder}/{folder}")


@contextmanager
def open_regular(root: Path, name: str) -> Iterator[BinaryIO]:
    """Opens a regular file below ``root``; no part of ``name`` may be a symbolic link.

    Raises:
        Absent: there is none.
        Unsound: a link, a folder, a device, or not readable.
    """
    *folders, last = name.split("/")
    with _folder_handle(root, folders) as folder_handle:
        # Without O_NONBLOCK a named pipe would block for ever.
        handle = _open(last, folder_handle, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, name)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Unsound(f"{name} is not a regular file")
        yield file


def read_bounded(source: Source, name: str, max_bytes: int) -> bytes:
    """Contents of a file of an output.

    Raises:
        Absent, Unsound: see ``Source.open``; Unsound also above ``max_bytes``.
    """
    with source.open(name) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise Unsound(f"{name} has more than {max_bytes:,} bytes")
    return data


def list_folder(root: Path, name: str) -> list[str]:
    """Sorted names in a folder below ``root``; [] where there is none.

    Raises:
        Unsound: a link or no folder.
    """
    try:
        with _folder_handle(root, name.split("/")) as handle:
            return sorted(os.listdir(handle))  # noqa: PTH208 - by handle, so that no link can be put in between
    except Absent:
        return []


@contextmanager
def map_file(file: BinaryIO) -> Iterator[bytes | mmap.mmap]:
    """Contents of an open file, mapped into memory: a large file costs none."""
    if os.fstat(file.fileno()).st_size == 0:
        yield b""
        return
    # Not closed here: whoever still holds a view of it keeps it alive, and the last one lets it go.
    yield mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def sha256_hex(data: bytes | mmap.mmap) -> str:
    """Hex SHA-256."""
    return hashlib.sha256(data).hexdigest()


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object without duplicate keys, NaN or infinity.

    Raises:
        Unsound: anything else.
    """
    try:
        value = json.loads(data, object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Unsound(f"{name} is not valid JSON ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise Unsound(f"{name} is not a JSON object")
    return value


def canonical(value: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8: the spelling that digests are taken of. A lone surrogate must not stop us here."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


@contextmanager
def _folder_handle(root: Path, folders: list[str]) -> Iterator[int]:
    """The folder below ``root`` that is reached through these, none of which may be a link."""
    handles = [_open_folder(root, None, follow=True)]
    try:
        for depth, folder in enumerate(folders, start=1):
            handles.append(_open_folder(folder, handles[-1], shown="/".join(folders[:depth])))
        yield handles[-1]
    finally:
        for handle in handles:
            os.close(handle)


def _open_folder(name: str | Path, parent: int | None, *, follow: bool = False, shown: str = "") -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | (0 if follow else os.O_NOFOLLOW)
    return _open(name, parent, flags, shown or str(name))


def _open(name: str | Path, parent: int | None, flags: int, shown: str) -> int:
    try:
        return os.open(name, flags | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError as error:
        raise Absent(shown) from error
    except OSError as error:
        try:
            mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        except OSError:
            mode = 0
        if stat.S_ISLNK(mode):
            raise Unsound(f"{shown} is a symbolic link") from error
        raise Unsound(f"{shown} cannot be read ({error.strerror})") from error


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")
