"""Which stores passed their probe within the last day: small files in the user's cache folder, for this user only."""

from __future__ import annotations

import json
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

from specbatch.schemas.canonical import sha256_hex
from specbatch.storage.store import Store

CACHE_SECONDS = 24 * 3600.0


@runtime_checkable
class RemoteStore(Protocol):
    """What a store on another machine tells besides."""

    @property
    def place(self) -> str:
        """Endpoint and bucket."""

    def clock_skew_seconds(self) -> float:
        """How far its clock is ahead of ours."""

    def stored_sha256(self, key: str) -> str | None:
        """The digest that a write left on an object."""


def place_of(store: Store) -> str:
    """What decides how a store behaves: its endpoint and bucket, or this machine and the file system."""
    if isinstance(store, RemoteStore):
        return store.place
    folder = Path(store.uri).absolute()
    while not folder.exists():
        folder = folder.parent
    while not folder.is_mount():
        folder = folder.parent
    return f"{os.uname().nodename}:{folder}"


def _cache_path(place: str) -> Path:
    top = os.environ.get("XDG_CACHE_HOME")
    folder = Path(top) if top else Path.home() / ".cache"
    return folder / "specbatch" / f"store-{sha256_hex(place.encode())[:16]}.json"


def passed_lately(place: str) -> bool:
    """Whether a store at this place passed its probe within the last day, as far as is known."""
    try:
        stored = json.loads(_cache_path(place).read_text())
        age_seconds = time.time() - float(stored["passed_at"])
        return stored["place"] == place and 0 <= age_seconds < CACHE_SECONDS
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):
        return False


def remember(place: str) -> None:
    """Note that a store at this place has passed now; where that cannot be written it is not noted."""
    with suppress(OSError, RuntimeError):  # RuntimeError: this user has no home folder
        path = _cache_path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        spool = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        spool.write_text(json.dumps({"place": place, "passed_at": time.time()}))
        spool.replace(path)
