"""Reading the files of an output that may be hostile: no links, no devices, bounded sizes, strict JSON.

Part of ``verify``, which shares no code with the writers: a mistake of theirs must not be repeated here.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn


class Unsound(Exception):  # noqa: N818 - a finding, not a fault of the program
    """Something in the output is not as it must be; the message names it."""


class Absent(Exception):  # noqa: N818 - an answer
    """There is no such file."""


@contextmanager
def open_regular(root: Path, name: str) -> Iterator[BinaryIO]:
    """Opens a regular file below ``root``; no part of ``name`` may be a symbolic link.

    Raises:
        Absent: there is none.
        Unsound: a link, a folder, a device, or not readable.
    """
    folders = name.split("/")
    handles = [_open_folder(root, None, follow=True)]
    try:
        for depth, folder in enumerate(folders[:-1], start=1):
            handles.append(_open_folder(folder, handles[-1], shown="/".join(folders[:depth])))
        # Without O_NONBLOCK a named pipe would block for ever.
        handle = _open(folders[-1], handles[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, name)
    finally:
        for folder_handle in handles:
            os.close(folder_handle)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Unsound(f"{name} is not a regular file")
        yield file


def read_bounded(root: Path, name: str, max_bytes: int) -> bytes:
    """Contents of a regular file below ``root``.

    Raises:
        Absent, Unsound: see ``open_regular``; Unsound also above ``max_bytes``.
    """
    with open_regular(root, name) as file:
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
        root_handle = _open_folder(root, None, follow=True)
        try:
            handle = _open_folder(name, root_handle, shown=name)
        finally:
            os.close(root_handle)
    except Absent:
        return []
    try:
        return sorted(os.listdir(handle))  # noqa: PTH208 - by handle, so that no link can be put in between
    finally:
        os.close(handle)


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
