"""The storage protocol: named byte objects below one root, some of which are created once and never change.

Keys are relative POSIX paths. A store holds configuration only, so it pickles and crosses to workers.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from specbatch.schemas.errors import ErrorCode, SpecbatchError

SPOOL_FOLDER = "_specbatch/tmp"
"""Where local files are written before they appear under their key; never listed, safe to delete when nothing runs."""

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


class NotFound(Exception):  # noqa: N818 - it reads as the answer to a question, not as a fault
    """There is no object under this key."""


class Store(Protocol):
    """Byte objects below one root.

    Every write that fails for want of space, permission or a sane file system raises ``SpecbatchError``
    ``JOB_OUTPUT_UNWRITABLE`` and leaves the object as it was.
    """

    @property
    def uri(self) -> str:
        """The root, as ``open_store`` takes it."""

    def create(self, key: str, source: bytes | Path) -> bool:
        """Create an object whose contents appear at once, complete and durable, or not at all.

        Among any number of concurrent creators of one key exactly one gets True, and its contents stay.
        A ``Path`` must not be written to afterwards; deleting it stays with the caller.

        Returns:
            True when this call made the object, False when it was there already (it is left alone).
        """

    def replace(self, key: str, data: bytes) -> None:
        """Write an object, over an older one if there is one; a reader sees the old or the new, never a mixture."""

    def read(self, key: str) -> bytes:
        """Contents of an object.

        Raises:
            NotFound: there is none.
        """

    def size(self, key: str) -> int:
        """Bytes of an object.

        Raises:
            NotFound: there is none.
        """

    def list(self, prefix: str) -> list[str]:
        """Sorted keys below a folder (``data`` and ``data/`` name the same one, ``""`` the root)."""

    def open(self, key: str) -> BinaryIO:
        """A seekable reader of an object; the caller closes it.

        Raises:
            NotFound: there is none.
        """

    def spool_path(self) -> Path:
        """A fresh local path to write a file to that ``create`` will take without a second copy."""


def check_key(key: str) -> PurePosixPath:
    """Assert that a key is a relative path without ``.``, ``..`` or empty segments, outside the spool folder."""
    segments = key.split("/")
    assert all(segment not in ("", ".", "..") for segment in segments), f"bad storage key {key!r}"
    assert not f"{key}/".startswith(f"{SPOOL_FOLDER}/"), f"{key!r} lies in the spool folder"
    return PurePosixPath(key)


def local_path(uri: str, what: str) -> Path:
    """The absolute local path that a user's URI names.

    Args:
        uri: what the user wrote.
        what: how the message calls it, such as ``"dataset"`` or ``"output"``.

    Raises:
        SpecbatchError: ``JOB_URI_INVALID`` for an empty name or a URI with a scheme. Only the scheme is
            repeated: the rest may hold credentials.
    """
    if scheme := _SCHEME.match(uri):
        raise SpecbatchError(
            ErrorCode.JOB_URI_INVALID,
            f"{what} {scheme.group(1)}://… is not supported: this version reads and writes local paths only",
        )
    if not uri.strip() or "\0" in uri:
        raise SpecbatchError(ErrorCode.JOB_URI_INVALID, f"{what} is {uri!r}; give a local path")
    return Path(uri).expanduser().absolute()


def open_store(uri: str) -> Store:
    """The store at a local path, which need not exist yet.

    Raises:
        SpecbatchError: ``JOB_URI_INVALID`` for any other scheme.
    """
    from specbatch.storage.local import LocalStore

    return LocalStore(str(local_path(uri, "output")))
