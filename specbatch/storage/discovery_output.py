"""An output of specbatch as a dataset: the parts that its manifest names, and the columns that specbatch added."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import JOB_FORMAT, MANIFEST_FORMAT
from specbatch.schemas.rows import reserved_columns
from specbatch.storage.store import NotFound, Store, open_store

_PART_PATH = re.compile(r"data/part-\d{6,}-[0-9a-f]{16}\.parquet")
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{0,64}")


@dataclass(frozen=True, slots=True)
class OutputParts:
    """A finished output.

    Attributes:
        parts: (name, path or URI), in the order of the rows.
        bookkeeping: names of the columns that specbatch added.
        note: what is not read, None where all is.
    """

    parts: tuple[tuple[str, str], ...]
    bookkeeping: frozenset[str]
    note: str | None


def parts_of_output(output: str) -> OutputParts:
    """Read job and manifest of an output.

    Raises:
        SpecbatchError: ``JOB_INCOMPLETE`` where the job is not finished; ``JOB_FORMAT`` for documents that this
            version does not read; ``JOB_STORE_LOST``, ``JOB_STORE_DENIED``.
    """
    store = open_store(output)
    manifest = _document(store, "manifest.json", MANIFEST_FORMAT)
    if manifest is None:
        raise SpecbatchError(
            ErrorCode.JOB_INCOMPLETE,
            f"dataset {store.uri} is an output of specbatch that is not finished (it has no manifest.json); "
            f"finish it with: specbatch resume {store.uri}",
        )
    job = _document(store, "_specbatch/job.json", JOB_FORMAT)
    try:
        paths = [str(part["path"]) for part in manifest["commit"]["parts"]]
        prefix = (job or manifest)["identity"]["fields"]["output"].get("prefix", "")
    except (KeyError, TypeError, AttributeError):
        raise _unreadable(store, "manifest.json") from None
    if not all(map(_PART_PATH.fullmatch, paths)) or not (isinstance(prefix, str) and _PREFIX.fullmatch(prefix)):
        raise _unreadable(store, "manifest.json")
    amendments = {key.split("/")[1] for key in store.list("amendments") if key.endswith("/manifest.json")}
    note = None
    if amendments:
        note = (
            f"dataset {store.uri} has amendments, which are not read: its failed rows count as failed; to have them, "
            "submit what specbatch export makes of it"
        )
    root = store.uri.rstrip("/")
    return OutputParts(tuple((path, f"{root}/{path}") for path in paths), reserved_columns(prefix), note)


def _document(store: Store, key: str, format: str) -> dict[str, Any] | None:
    try:
        data = store.read(key)
    except NotFound:
        return None
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise _unreadable(store, key) from None
    if not isinstance(document, dict) or document.get("format") != format:
        raise _unreadable(store, key)
    return document


def _unreadable(store: Store, key: str) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_FORMAT,
        f"dataset {store.uri} is an output of specbatch whose {key} this version does not read; "
        "see specbatch verify, or use the version that wrote it",
    )
