"""Opening a file of a dataset, local or on S3, and what is said of one that is not what it was."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.store import NotFound, is_s3


def open_input(path: str, etag: str | None = None, num_bytes: int | None = None) -> BinaryIO:
    """A file of a dataset as a seekable reader.

    Args:
        etag, num_bytes: of an object, the version that was found; no other one is read.

    Raises:
        SpecbatchError: ``JOB_INPUT_MISSING``, ``JOB_INPUT_CHANGED``; for S3 also ``JOB_STORE_LOST``,
            ``JOB_STORE_DENIED``.
    """
    if is_s3(path):
        from specbatch.storage.s3_client import bucket_of
        from specbatch.storage.s3_file import open_object

        bucket, key = bucket_of(path, "input")
        try:
            return open_object(bucket, key, etag, num_bytes)
        except NotFound as error:
            raise SpecbatchError(
                ErrorCode.JOB_INPUT_MISSING, f"{bucket.uri(key)} is no longer there; restore it"
            ) from error
    try:
        if not Path(path).is_file():
            raise SpecbatchError(ErrorCode.JOB_INPUT_MISSING, f"{path} is not a file; check the path")
        return Path(path).open("rb")
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise SpecbatchError(ErrorCode.JOB_INPUT_MISSING, f"{path} cannot be opened: {reason}") from error


def changed(path: str) -> SpecbatchError:
    """A file is another one than when it was pinned."""
    return SpecbatchError(
        ErrorCode.JOB_INPUT_CHANGED,
        f"{path} is not the file that was planned; restore it, or submit the new one to a new output",
    )
