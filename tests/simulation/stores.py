"""A store simulated as a whole: it keeps the protocol of ``Store``, but may fail to answer."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.store import NotFound

from .network import ErrorAnswer, Network, NoAnswer, Objects

Answer = TypeVar("Answer")
_spools = itertools.count()


class SimulatedStore:
    """See ``Store``. Every method but ``spool_path`` is one scheduling point.

    Args:
        spool: a local folder.
    """

    uri = "sim://bucket/out"
    is_local = False

    def __init__(self, objects: Objects, network: Network, spool: Path) -> None:
        self._objects = objects
        self._network = network
        self._spool = spool

    def create(self, key: str, source: bytes | Path) -> bool:
        data = source.read_bytes() if isinstance(source, Path) else source
        return self._write(f"create {key}", lambda: self._objects.create(key, data) is not None)

    def replace(self, key: str, data: bytes) -> None:
        self._write(f"replace {key}", lambda: self._objects.put(key, data))

    def swap(self, key: str, data: bytes, expected: str | None) -> str | None:
        def effect() -> str | None:
            if expected is None:
                new = self._objects.create(key, data)
            else:
                new = self._objects.swap(key, data, int(expected))
            return None if new is None else str(new.version)

        return self._write(f"swap {key}", effect)

    def delete(self, key: str) -> None:
        self._write(f"delete {key}", lambda: self._objects.delete(key))

    def read(self, key: str) -> bytes:
        return self.read_versioned(key)[0]

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        found = self._read(f"read {key}", lambda: self._objects.all.get(key))
        if found is None:
            raise NotFound(key)
        return found.data, str(found.version)

    def size(self, key: str) -> int:
        found = self._read(f"size {key}", lambda: self._objects.all.get(key))
        if found is None:
            raise NotFound(key)
        return len(found.data)

    def list(self, prefix: str) -> list[str]:
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        return self._read(f"list {folder}", lambda: sorted(key for key in self._objects.all if key.startswith(folder)))

    def open(self, key: str) -> BinaryIO:
        found = self._read(f"open {key}", lambda: self._objects.all.get(key))
        if found is None:
            raise NotFound(key)
        return io.BytesIO(found.data)

    def spool_path(self) -> Path:
        return self._spool / f"spool-{next(_spools)}"

    def _write(self, label: str, effect: Callable[[], Answer]) -> Answer:
        return self._perform(label, effect, mutates=True)

    def _read(self, label: str, effect: Callable[[], Answer]) -> Answer:
        return self._perform(label, effect, mutates=False)

    def _perform(self, label: str, effect: Callable[[], Answer], *, mutates: bool) -> Answer:
        try:
            return self._network.perform(label, effect, mutates=mutates)
        except (NoAnswer, ErrorAnswer) as error:
            raise SpecbatchError(ErrorCode.JOB_STORE_LOST, f"{label}: no answer from the store") from error
