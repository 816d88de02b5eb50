"""The code that goes along with a job: this package as it is installed here."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[2]
_LEFT_OUT = ("__pycache__", "*.pyc", ".*")


@contextlib.contextmanager
def staged_package() -> Iterator[Path]:
    """A clean copy of the package, for the length of the block.

    Ray names an upload by the digest of names and contents: equal code has one name whoever submits it, and reaches a
    cluster once. The copy has no caches, which would differ, and lies below no ``.gitignore``, which Ray would follow.
    """
    with tempfile.TemporaryDirectory(prefix="specbatch-package-") as folder:
        copy = Path(folder) / "specbatch"
        shutil.copytree(_PACKAGE, copy, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        yield copy
