"""A private local folder of this process, for files on their way to a remote store.

The folder goes when the process ends. One left by a killed process is removed by the next process that makes its own:
a living owner holds a lock on its folder, which the system drops when it dies.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from specbatch.schemas.errors import ErrorCode, SpecbatchError

_PREFIX = "specbatch-spool-"


@dataclass(slots=True)
class _Own:
    """The folder of this process, and the handle that holds its lock."""

    folder: Path | None = None
    handle: int = -1
    pid: int = -1


_own = _Own()
_lock = threading.Lock()


def new_spool_path() -> Path:
    """A fresh path in this process's private folder.

    Raises:
        SpecbatchError: ``SHARD_DISK_FULL`` or ``JOB_OUTPUT_UNWRITABLE``: the temporary folder takes no file.
    """
    top = Path(tempfile.gettempdir())
    try:
        with _lock:
            # A forked child inherits the parent's folder, which the parent removes when it ends.
            if _own.folder is None or _own.pid != os.getpid() or not _own.folder.is_dir():
                _remove_abandoned(top)
                _own.folder, _own.handle = _make_folder(top)
                _own.pid = os.getpid()
            return _own.folder / secrets.token_hex(16)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = ErrorCode.SHARD_DISK_FULL if is_full else ErrorCode.JOB_OUTPUT_UNWRITABLE
        raise SpecbatchError(
            code, f"cannot write to the temporary folder {top}: {reason}; free some space or set TMPDIR to another"
        ) from error


def _make_folder(top: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=top))
        # Until the lock is ours another process takes the folder for abandoned and removes it; then we make another.
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder, handle
        os.close(handle)


def _remove_abandoned(top: Path) -> None:
    for folder in top.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or gone already
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


def _remove_own() -> None:
    if _own.folder is not None and _own.pid == os.getpid():
        shutil.rmtree(_own.folder, ignore_errors=True)


atexit.register(_remove_own)
