"""What a worker says of a shard that it could not finish: by cause, because the answers differ.

A full disk is left to another node, memory that ran out to a smaller piece, damaged input to the user.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.messages import Lease, ShardFailed

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def shard_failed(lease: Lease, error: SpecbatchError | MemoryError, num_rows_done: int) -> ShardFailed:
    """The report of an error that ends a shard and leaves the worker whole.

    Args:
        num_rows_done: rows of the shard that the worker's totals count.
    """
    code, message = _describe(lease, error)
    return ShardFailed(lease.shard.index, lease.attempt, code.value, message, num_rows_done)


def _describe(lease: Lease, error: SpecbatchError | MemoryError) -> tuple[ErrorCode, str]:
    if any(isinstance(cause, MemoryError) for cause in _causes(error)):
        rows = f"rows {lease.shard.row_start} to {lease.shard.row_stop - 1}"
        return ErrorCode.SHARD_OOM, f"memory ran out with {rows} at hand; run with fewer --workers or more memory"
    assert isinstance(error, SpecbatchError)
    if any(isinstance(cause, OSError) and cause.errno in _NO_SPACE for cause in _causes(error)):
        return ErrorCode.SHARD_DISK_FULL, error.message
    return error.code, error.message


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
