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
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_MAX_PREFIX_BYTES = 800  # of S3's 1,024, so that every key of a job fits below it


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

    @property
    def is_local(self) -> bool:
        """Whether objects are local files."""

    def create(self, key: str, source: bytes | Path) -> bool:
        """Create an object whose contents appear at once, complete and durable, or not at all.

        Among any number of concurrent creators of one key exactly one gets True, and its contents stay.
        A ``Path`` must not be written to afterwards; deleting it stays with the caller.

        Returns:
            True when this call made the object, False when it was there already (it is left alone).
        """

    def replace(self, key: str, data: bytes) -> None:
        """Write an object, over an older one if there is one; a reader sees the old or the new, never a mixture."""

    def swap(self, key: str, data: bytes, expected: str | None) -> str | None:
        """Write an object if it is still the one that was read; of concurrent swaps from one version one succeeds.

        Args:
            expected: the version that ``read_versioned`` gave; None where there must be no object.

        Returns:
            The new version, or None where the object is another one now (it is left alone).
        """

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        """Contents of an object, and an opaque text that changes whenever the object does.

        Raises:
            NotFound: there is none.
        """

    def delete(self, key: str) -> None:
        """Remove an object, if it is there. Only ``gc`` and the probe do: no object of a job is ever removed."""

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
        raise _bad_uri(what, f"is {scheme.group(1)}://…; only local paths and s3://bucket/prefix are supported here")
    if not uri.strip() or "\0" in uri:
        raise SpecbatchError(ErrorCode.JOB_URI_INVALID, f"{what} is {uri!r}; give a local path")
    return Path(uri).expanduser().absolute()


def is_s3(uri: str) -> bool:
    """Whether a URI is of S3; it may be a bad one."""
    return uri.startswith("s3://")


def s3_location(uri: str, what: str) -> tuple[str, str]:
    """Bucket and key prefix of ``s3://bucket/prefix``; the prefix has no slash at its end and may be empty.

    Args:
        uri: what the user wrote.
        what: how the message calls it, such as ``"dataset"`` or ``"output"``.

    Raises:
        SpecbatchError: ``JOB_URI_INVALID``. Nothing of the URI is repeated: it may hold credentials.
    """
    assert is_s3(uri), "not of S3"
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.removesuffix("/")
    if "@" in bucket or ":" in bucket:
        raise _bad_uri(what, "holds credentials or a port; credentials come from AWS's own variables and files")
    if not _BUCKET.fullmatch(bucket):
        raise _bad_uri(what, "names no valid bucket; write s3://bucket/prefix")
    if prefix and any(segment in ("", ".", "..") for segment in prefix.split("/")):
        raise _bad_uri(what, "has an empty, '.' or '..' segment; write the prefix without it")
    if not prefix.isprintable():
        raise _bad_uri(what, "holds characters that cannot be printed; choose another prefix")
    if len(prefix.encode("utf-8", "replace")) > _MAX_PREFIX_BYTES:
        raise _bad_uri(what, f"has a prefix of over {_MAX_PREFIX_BYTES} bytes; choose a shorter one")
    return bucket, prefix


def open_store(uri: str, *, single_writer: bool = False) -> Store:
    """The store at a local path or below ``s3://bucket/prefix``, which need not exist yet. No request is sent.

    Args:
        single_writer: on S3, write without conditions: for stores that lack them, with one run at a time.

    Raises:
        SpecbatchError: ``JOB_URI_INVALID`` for any other scheme and for a malformed URI.
    """
    if is_s3(uri):
        from specbatch.storage.s3 import S3Store

        bucket, prefix = s3_location(uri, "output")
        return S3Store(f"s3://{bucket}/{prefix}".removesuffix("/"), single_writer=single_writer)
    from specbatch.storage.local import LocalStore

    return LocalStore(str(local_path(uri, "output")))


def _bad_uri(what: str, reason: str) -> SpecbatchError:
    return SpecbatchError(ErrorCode.JOB_URI_INVALID, f"the URI of the {what} {reason}")
