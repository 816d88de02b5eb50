"""What lies directly in a folder, local or on S3, without looking any deeper: one request for a thousand names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.store import is_s3, local_path

MAX_NAMES = 20_000


@dataclass(frozen=True, slots=True)
class Listing:
    """The names in a folder, sorted, without slashes; ``is_whole`` is False where there are too many to look at."""

    folders: tuple[str, ...]
    files: tuple[str, ...]
    is_whole: bool = True


def list_folder(uri: str) -> Listing:
    """The folders and files directly in a folder; both empty where there is no such folder.

    Raises:
        SpecbatchError: ``JOB_URI_INVALID``; ``JOB_STORE_LOST``, it cannot be read, and others of the store.
    """
    return _list_on_s3(uri) if is_s3(uri) else _list_locally(local_path(uri, "output"))


def child(uri: str, name: str) -> str:
    """The URI of something in a folder."""
    return f"{uri.rstrip('/')}/{name}"


def _list_locally(folder: Path) -> Listing:
    try:
        with os.scandir(folder) as entries:
            return _listing((entry.name, entry.is_dir()) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return Listing((), ())
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise SpecbatchError(
            ErrorCode.JOB_STORE_LOST, f"cannot read {folder}: {reason}; make it readable and try again"
        ) from error


def _list_on_s3(uri: str) -> Listing:
    from specbatch.storage.s3_client import bucket_of

    bucket, prefix = bucket_of(uri)
    base = f"{prefix}/" if prefix else ""
    keys = (found.key.removeprefix(base) for found in bucket.list(base, delimiter="/"))
    return _listing((key.removesuffix("/"), key.endswith("/")) for key in keys)


def _listing(names: Iterable[tuple[str, bool]]) -> Listing:
    """From pairs (name, whether it is a folder); keys with doubled slashes make folders without a name."""
    found = list(islice(names, MAX_NAMES + 1))
    kept = sorted(pair for pair in found[:MAX_NAMES] if pair[0])
    return Listing(
        tuple(name for name, is_folder in kept if is_folder),
        tuple(name for name, is_folder in kept if not is_folder),
        is_whole=len(found) <= MAX_NAMES,
    )
