"""Is a store fit for a job? Measured on the store itself: many that speak S3 answer conditional writes and lie.

The probe works under ``_specbatch/probe-<random>/`` of the output and removes what it wrote, where it may.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from specbatch.schemas.canonical import sha256_hex
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.probe_cache import RemoteStore, passed_lately, place_of, remember
from specbatch.storage.store import NotFound, Store

SKEW_WARNING_SECONDS = 5 * 60.0
SKEW_LIMIT_SECONDS = 15 * 60.0  # S3 refuses requests that are stamped further off
_BODY_BYTES = 4096

Level = Literal["ok", "warning", "failed"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProbeCheck:
    """One checked property.

    Attributes:
        name: what was checked, for people.
        detail: what was found.
        code: the error that a failure is.
    """

    name: str
    level: Level
    detail: str
    code: ErrorCode

    @property
    def ok(self) -> bool:
        """Whether a job may rely on it; a warning is for people only."""
        return self.level != "failed"


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What a probe found, in the order of the checks."""

    checks: tuple[ProbeCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)


def probe_store(store: Store, *, num_creators: int = 8, num_keys: int = 20) -> ProbeReport:
    """Check a store, with ``num_creators`` threads racing for each of ``num_keys`` objects.

    Raises:
        SpecbatchError: the store cannot be used at all (unreachable, denied, not writable); JOB_NO_CAPACITY, the
            system does not start so many threads.
    """
    probe = _Probe(store, num_creators, num_keys)
    try:
        checks = [probe.create_once(), probe.stale_swap(), probe.concurrent_swap(), probe.read_after_write()]
        checks.append(probe.list_after_write())
        if isinstance(store, RemoteStore):
            checks += [probe.digest_is_kept(store), _clock(store.clock_skew_seconds())]
    finally:
        probe.clean_up()
    return ProbeReport(tuple(checks))


def check_store(store: Store, report: ProbeReport) -> None:
    """Refuse a store that failed its probe.

    A store opened with ``single_writer`` may lack atomic writes: nothing is built on them then.

    Raises:
        SpecbatchError: ``STORE_CLOCK_SKEW``, ``STORE_UNFIT`` or ``STORE_NOT_ATOMIC``, naming what failed.
    """
    failed = [check for check in report.checks if not check.ok]
    if _is_single_writer(store):
        failed = [check for check in failed if check.code is not ErrorCode.STORE_NOT_ATOMIC]
    if not failed:
        return
    code = next(check.code for check in failed)
    found = "; ".join(f"{check.name}: {check.detail}" for check in failed)
    remedy = {
        ErrorCode.STORE_NOT_ATOMIC: (
            "use another store, or --single-writer and see to it that only one run writes to this output"
        ),
        ErrorCode.STORE_CLOCK_SKEW: "set this machine's clock",
    }.get(code, "use another store or a newer version of it; --single-writer does not help here")
    raise SpecbatchError(code, f"the store of {store.uri} failed its probe ({found}); {remedy}")


def ensure_fit(store: Store, *, probe: Callable[[Store], ProbeReport] = probe_store) -> None:
    """Probe a store unless it passed within the last day, and refuse it if it fails.

    A pass is remembered per endpoint and bucket (of local files: per file system) in the user's cache folder.

    Raises:
        SpecbatchError: what ``probe_store`` and ``check_store`` raise.
    """
    if passed_lately(place_of(store)):
        return
    report = probe(store)
    check_store(store, report)
    note_pass(store, report)


def note_pass(store: Store, report: ProbeReport) -> None:
    """Remember a probe that was passed, so that no job has to make it again today."""
    if report.ok and not _is_single_writer(store):  # whose pass would say nothing about conditional writes
        remember(place_of(store))


def _is_single_writer(store: Store) -> bool:
    return bool(getattr(store, "single_writer", False))


class _Probe:
    """The checks of one store; they write below one folder."""

    def __init__(self, store: Store, num_creators: int, num_keys: int) -> None:
        self._store = store
        self._num_creators = num_creators
        self._num_keys = num_keys
        self._folder = f"_specbatch/probe-{secrets.token_hex(8)}"
        self._written: list[str] = []

    def create_once(self) -> ProbeCheck:
        """Of concurrent creators of one object exactly one must win, and its contents must stay."""
        name, code = "create-once under concurrency", ErrorCode.STORE_NOT_ATOMIC
        kept: dict[str, bytes] = {}
        for number in range(self._num_keys):
            key = self._key(f"race-{number}")
            bodies = [self._body() for _ in range(self._num_creators)]
            won = self._at_once([partial(self._store.create, key, body) for body in bodies])
            winners = [body for body, is_winner in zip(bodies, won, strict=True) if is_winner]
            if len(winners) != 1:
                found = (
                    f"{len(winners)} of {self._num_creators} concurrent creators of one object were told they made it"
                )
                return ProbeCheck(name, "failed", found, code)
            kept[key] = winners[0]
        changed = sum(self._store.read(key) != body for key, body in kept.items())
        if changed:
            return ProbeCheck(
                name, "failed", f"{changed} of {len(kept)} objects do not hold what their winner wrote", code
            )
        return ProbeCheck(name, "ok", f"one winner each for {len(kept)} objects, {self._num_creators} creators", code)

    def stale_swap(self) -> ProbeCheck:
        """A swap from the current version must be done, one from an older version or from nothing refused."""
        name, code = "compare-and-swap", ErrorCode.STORE_NOT_ATOMIC
        key = self._key("swap")
        first = self._store.swap(key, self._body(), None)
        if first is None:
            return ProbeCheck(name, "failed", "a swap where there was no object was refused", code)
        current = self._body()
        if self._store.swap(key, current, first) is None:
            return ProbeCheck(name, "failed", "a swap from the current version was refused", code)
        if self._store.swap(key, self._body(), first) is not None or self._store.read(key) != current:
            return ProbeCheck(name, "failed", "a swap from an older version was done", code)
        if self._store.swap(key, self._body(), None) is not None or self._store.read(key) != current:
            return ProbeCheck(name, "failed", "a swap that wanted no object was done over one", code)
        return ProbeCheck(name, "ok", "a fresh swap is done, a stale one refused", code)

    def concurrent_swap(self) -> ProbeCheck:
        """Of concurrent swaps from one version exactly one must be done, and its contents must stay."""
        name, code = "compare-and-swap under concurrency", ErrorCode.STORE_NOT_ATOMIC
        key = self._key("swap-race")
        version = self._store.swap(key, self._body(), None)
        for _ in range(self._num_keys):
            bodies = [self._body() for _ in range(self._num_creators)]
            found = self._at_once([partial(self._store.swap, key, body, version) for body in bodies])
            winners = [number for number, done in enumerate(found) if done is not None]
            if len(winners) != 1:
                detail = f"{len(winners)} of {self._num_creators} concurrent swaps from one version were done"
                return ProbeCheck(name, "failed", detail, code)
            if self._store.read(key) != bodies[winners[0]]:
                return ProbeCheck(name, "failed", "the object does not hold what its one winner wrote", code)
            version = found[winners[0]]
        return ProbeCheck(name, "ok", f"one winner in each of {self._num_keys} rounds", code)

    def read_after_write(self) -> ProbeCheck:
        """What was just written, overwritten or deleted must be seen so at once."""
        name, code = "read-after-write", ErrorCode.STORE_UNFIT
        for number in range(self._num_keys):
            key = self._key(f"read-{number}")
            for body in (self._body(), self._body()[: _BODY_BYTES // 2]):
                self._store.replace(key, body)
                if self._read(key) != body or self._store.size(key) != len(body):
                    return ProbeCheck(name, "failed", "a read right after a write did not give what was written", code)
            if self._delete(key) and self._read(key) is not None:
                return ProbeCheck(name, "failed", "a deleted object could still be read", code)
        return ProbeCheck(name, "ok", f"{self._num_keys} objects were read back at once", code)

    def list_after_write(self) -> ProbeCheck:
        """An object must be listed as soon as it is there, and no longer than it is."""
        name, code = "list-after-write", ErrorCode.STORE_UNFIT
        folder = f"{self._folder}/list"
        expected: list[str] = []
        for number in range(self._num_keys):
            key = self._key(f"list/{number:03d}")
            self._store.create(key, b"")
            expected.append(key)
            if self._store.list(folder) != expected:
                return ProbeCheck(name, "failed", "a listing right after a write did not show what was there", code)
        if self._delete(expected[-1]) and self._store.list(folder) != expected[:-1]:
            return ProbeCheck(name, "failed", "a listing showed a deleted object", code)
        return ProbeCheck(name, "ok", f"{self._num_keys} objects were listed at once", code)

    def digest_is_kept(self, store: RemoteStore) -> ProbeCheck:
        """The digest in an object's metadata must come back; without it outcomes are settled by comparing contents."""
        name, code = "metadata", ErrorCode.STORE_UNFIT
        key, body = self._key("metadata"), self._body()
        self._store.create(key, body)
        found = store.stored_sha256(key)
        if found is None:
            return ProbeCheck(name, "warning", "the store keeps no metadata; lost replies cost a second read", code)
        if found != sha256_hex(body):
            return ProbeCheck(name, "failed", "the metadata came back changed", code)
        return ProbeCheck(name, "ok", "the digest of an object came back", code)

    def clean_up(self) -> None:
        """Remove what was written; what cannot be removed does no harm."""
        with suppress(SpecbatchError):
            for key in self._written:
                self._store.delete(key)

    def _key(self, name: str) -> str:
        key = f"{self._folder}/{name}"
        self._written.append(key)
        return key

    def _body(self) -> bytes:
        return secrets.token_bytes(_BODY_BYTES)

    def _read(self, key: str) -> bytes | None:
        try:
            return self._store.read(key)
        except NotFound:
            return None

    def _delete(self, key: str) -> bool:
        """False where these credentials may not: a job never deletes, so they need not."""
        try:
            self._store.delete(key)
        except SpecbatchError as error:
            if error.code is not ErrorCode.JOB_STORE_DENIED:
                raise
            return False
        return True

    def _at_once(self, calls: list[Callable[[], T]]) -> list[T]:
        barrier = threading.Barrier(len(calls))

        def run(call: Callable[[], T]) -> T:
            barrier.wait()
            return call()

        with ThreadPoolExecutor(len(calls)) as pool:
            try:
                begun = [pool.submit(run, call) for call in calls]
            except RuntimeError as error:  # the system starts no more threads
                barrier.abort()  # those that were started would wait for ever
                raise SpecbatchError(
                    ErrorCode.JOB_NO_CAPACITY,
                    f"cannot probe {self._store.uri} with {len(calls)} requests at once: {error}; "
                    "allow more processes and threads here (ulimit -u, or the limit of the container)",
                ) from error
            return [call.result() for call in begun]


def _clock(skew_seconds: float) -> ProbeCheck:
    name, code = "clock", ErrorCode.STORE_CLOCK_SKEW
    apart = (
        f"this machine's clock is {abs(skew_seconds):.0f} s {'behind' if skew_seconds > 0 else 'ahead of'} the store's"
    )
    if abs(skew_seconds) > SKEW_LIMIT_SECONDS:
        return ProbeCheck(name, "failed", apart, code)
    return ProbeCheck(name, "warning" if abs(skew_seconds) > SKEW_WARNING_SECONDS else "ok", apart, code)
