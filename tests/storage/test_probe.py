"""The probe of a store: a good one passes, and each way of lying is refused by name."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from s3_server import FaultRule, S3Server

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage import probe_cache
from specbatch.storage.local import LocalStore
from specbatch.storage.probe import ProbeReport, check_store, ensure_fit, probe_store
from specbatch.storage.s3 import S3Store
from specbatch.storage.store import Store, open_store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def s3_store(s3_server: S3Server) -> Store:
    return open_store(f"s3://{s3_server.new_bucket()}/out")


def refusal(store: Store, report: ProbeReport) -> SpecbatchError:
    with pytest.raises(SpecbatchError) as caught:
        check_store(store, report)
    assert "\n" not in str(caught.value)
    return caught.value


def failed(report: ProbeReport) -> list[str]:
    return [check.name for check in report.checks if not check.ok]


def test_local_files_pass_and_nothing_is_left(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    report = probe_store(store)
    check_store(store, report)
    assert [(check.name, check.level) for check in report.checks] == [
        ("create-once under concurrency", "ok"),
        ("compare-and-swap", "ok"),
        ("compare-and-swap under concurrency", "ok"),
        ("read-after-write", "ok"),
        ("list-after-write", "ok"),
    ]
    assert store.list("") == []
    assert [path.name for path in (tmp_path / "out/_specbatch").iterdir()] == ["tmp"]


def test_a_sound_s3_store_passes_and_nothing_is_left(s3_store: Store) -> None:
    report = probe_store(s3_store, num_keys=4)
    check_store(s3_store, report)
    assert report.ok
    assert [check.name for check in report.checks][-2:] == ["metadata", "clock"]
    assert s3_store.list("") == []


@pytest.fixture
def racy_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    server = S3Server(racy_seconds=0.05)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop()


def test_a_store_that_looks_and_then_writes_is_refused(racy_server: S3Server) -> None:
    """Fault 46: a real server whose conditional writes have a gap between looking and writing."""
    store = open_store(f"s3://{racy_server.new_bucket()}/out")
    report = probe_store(store, num_keys=2)
    assert "create-once under concurrency" in failed(report)
    error = refusal(store, report)
    assert error.code is ErrorCode.STORE_NOT_ATOMIC
    assert "concurrent creators of one object" in error.message
    assert "--single-writer" in error.message
    assert store.list("") == []


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_a_store_that_ignores_a_condition_is_refused(header: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = S3Server(ignored_header=header)
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        uri = f"s3://{server.new_bucket()}/out"
        report = probe_store(open_store(uri), num_keys=2)
        assert failed(report)[-1].startswith("compare-and-swap")
        assert refusal(open_store(uri), report).code is ErrorCode.STORE_NOT_ATOMIC
        single = open_store(uri, single_writer=True)
        check_store(single, report)
        ensure_fit(single, probe=lambda store: probe_store(store, num_keys=2))
        with pytest.raises(SpecbatchError, match="failed its probe"):
            ensure_fit(open_store(uri), probe=lambda store: probe_store(store, num_keys=2))
    finally:
        server.stop()


def test_where_a_thread_cannot_be_started_nobody_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a limit of processes: the others stand before the race and would wait for the last one for ever."""
    start, started, aborted = threading.Thread.start, [], []

    def start_few(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    class Barrier(threading.Barrier):
        def wait(self, timeout: float | None = None) -> int:
            return super().wait(20)  # a test that fails shall end

        def abort(self) -> None:
            aborted.append(self)
            super().abort()

    monkeypatch.setattr(threading.Thread, "start", start_few)
    monkeypatch.setattr(threading, "Barrier", Barrier)
    with pytest.raises(SpecbatchError, match=r"cannot probe .* 3 requests at once: can't start new thread") as caught:
        probe_store(open_store(str(tmp_path / "out")), num_creators=3)
    assert caught.value.code is ErrorCode.JOB_NO_CAPACITY
    assert (len(started), len(aborted)) == (2, 1)
    assert not any(thread.is_alive() for thread in started)


class WinnerIsOverwritten(LocalStore):
    """Every creator but one is told that it lost, and the last one's contents stay."""

    def create(self, key: str, source: bytes | Path) -> bool:
        is_first = super().create(key, source)
        assert isinstance(source, bytes)
        self.replace(key, source)
        return is_first


class StaleReads(LocalStore):
    """Reads show what was there at the first one."""

    seen: dict[str, bytes] = {}  # noqa: RUF012 - one for all instances is what it is for

    def read(self, key: str) -> bytes:
        return self.seen.setdefault(key, super().read(key))


class LateListing(LocalStore):
    """The newest object is missing from listings."""

    def list(self, prefix: str) -> list[str]:
        return super().list(prefix)[:-1]


class RefusesFreshSwaps(LocalStore):
    def swap(self, key: str, data: bytes, expected: str | None) -> str | None:
        return super().swap(key, data, expected) if expected is None else None


@pytest.mark.parametrize(
    ("kind", "check", "code"),
    [
        (WinnerIsOverwritten, "create-once under concurrency", ErrorCode.STORE_NOT_ATOMIC),
        (RefusesFreshSwaps, "compare-and-swap", ErrorCode.STORE_NOT_ATOMIC),
        (StaleReads, "read-after-write", ErrorCode.STORE_UNFIT),
        (LateListing, "list-after-write", ErrorCode.STORE_UNFIT),
    ],
)
def test_a_lying_store_is_refused_by_name(kind: type[LocalStore], check: str, code: ErrorCode, tmp_path: Path) -> None:
    store = kind(str(tmp_path))
    report = probe_store(store, num_keys=3)
    assert check in failed(report)
    assert check in refusal(store, ProbeReport(tuple(found for found in report.checks if found.name == check))).message
    assert {found.code for found in report.checks if found.name == check} == {code}
    assert LocalStore(store.uri).list("") == []


@pytest.mark.parametrize(
    ("skew_seconds", "level"),
    [(0, "ok"), (-200, "ok"), (400, "warning"), (-400, "warning"), (1000, "failed"), (-3600, "failed")],
)
def test_a_clock_that_is_off(s3_store: Store, monkeypatch: pytest.MonkeyPatch, skew_seconds: int, level: str) -> None:
    """Fault 42."""
    clock_of_ours = SimpleNamespace(time=lambda: time.time() - skew_seconds)
    monkeypatch.setattr("specbatch.storage.s3_client.time", clock_of_ours)
    report = probe_store(s3_store, num_keys=1, num_creators=2)
    clock = report.checks[-1]
    assert (clock.name, clock.level) == ("clock", level)
    if level == "failed":
        assert refusal(s3_store, report).code is ErrorCode.STORE_CLOCK_SKEW
        assert ("behind" if skew_seconds > 0 else "ahead of") in clock.detail
    else:
        check_store(s3_store, report)


def test_credentials_that_may_not_delete_pass(s3_store: Store, s3_server: S3Server) -> None:
    """No object of a job is ever deleted, so a job's credentials should not be able to."""
    s3_server.inject(FaultRule("DELETE", "", "answer", status=403, code="AccessDenied", count=10_000))
    assert probe_store(s3_store, num_keys=2).ok


def test_a_store_that_cannot_be_reached_is_no_liar(s3_store: Store, s3_server: S3Server) -> None:
    s3_server.inject(FaultRule("PUT", "", "answer", status=403, code="AccessDenied", count=10_000))
    with pytest.raises(SpecbatchError) as caught:
        probe_store(s3_store, num_keys=2)
    assert caught.value.code is ErrorCode.JOB_STORE_DENIED


# --- once a day ---


@dataclass
class CountedProbe:
    """A short probe that counts its calls."""

    calls: int = 0

    def __call__(self, store: Store) -> ProbeReport:
        self.calls += 1
        return probe_store(store, num_keys=1, num_creators=1)


@pytest.fixture(params=["local", "s3"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "out"))
    store: Store = request.getfixturevalue("s3_store")
    return store


def test_a_pass_is_remembered_for_a_day(either: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = CountedProbe()
    ensure_fit(either, probe=probe)
    ensure_fit(open_store(f"{either.uri}/elsewhere"), probe=probe)
    assert probe.calls == 1
    now = time.time()
    for later_seconds, calls in ((probe_cache.CACHE_SECONDS - 10, 1), (2 * probe_cache.CACHE_SECONDS, 2), (0.0, 3)):
        clock = SimpleNamespace(time=lambda later=later_seconds: now + later)
        monkeypatch.setattr(probe_cache, "time", clock)
        ensure_fit(either, probe=probe)
        assert probe.calls == calls


def test_another_bucket_is_probed_by_itself(s3_server: S3Server) -> None:
    probe = CountedProbe()
    for _ in range(2):
        ensure_fit(open_store(f"s3://{s3_server.new_bucket()}/out"), probe=probe)
    assert probe.calls == 2


def test_a_failure_is_not_remembered(tmp_path: Path) -> None:
    store = RefusesFreshSwaps(str(tmp_path))
    for _ in range(2):
        with pytest.raises(SpecbatchError):
            ensure_fit(store)
    probe = CountedProbe()
    ensure_fit(open_store(str(tmp_path)), probe=probe)
    assert probe.calls == 1


def test_a_single_writers_pass_is_not_remembered(s3_store: Store) -> None:
    probe = CountedProbe()
    ensure_fit(S3Store(s3_store.uri, single_writer=True), probe=probe)
    ensure_fit(s3_store, probe=probe)
    assert probe.calls == 2


def _no_folder(cache: Path) -> None:
    cache.write_text("a file is in the way")


def _damaged(cache: Path) -> None:
    for path in (cache / "specbatch").iterdir():
        path.write_text("{")


def _of_another(cache: Path) -> None:
    for path in (cache / "specbatch").iterdir():
        path.write_text(json.dumps({"place": "elsewhere", "passed_at": time.time()}))


@pytest.mark.parametrize(("is_first", "spoil"), [(True, _no_folder), (False, _damaged), (False, _of_another)])
def test_a_cache_that_is_of_no_use_is_no_error(
    tmp_path: Path, cache: Path, is_first: bool, spoil: Callable[[Path], None]
) -> None:
    store, probe = open_store(str(tmp_path / "out")), CountedProbe()
    if not is_first:
        ensure_fit(store, probe=probe)
    spoil(cache)
    ensure_fit(store, probe=probe)
    assert probe.calls == (1 if is_first else 2)
