from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_contract import StoreContract

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.local import LocalStore
from specbatch.storage.store import NotFound, Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "out"))


class TestLocalStore(StoreContract):
    pass


# Dies by SIGKILL inside create: at the first fsync the contents are written but have no name yet.
KILLED_WRITER = """
import os, signal, sys
from specbatch.storage.store import open_store
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL) if os.fstat(handle).st_size == 500_000 else None
open_store(sys.argv[1]).create("data/a", b"x" * 500_000)
"""


def test_a_writer_killed_inside_create_leaves_no_object(store: LocalStore) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, store.uri], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((Path(store.uri) / "_specbatch/tmp").iterdir())) == 1
    with pytest.raises(NotFound):
        store.read("data/a")
    assert store.list("") == []
    assert store.create("data/a", b"second attempt") is True
    assert store.read("data/a") == b"second attempt"


# Dies by SIGKILL inside swap, holding the lock: at the first fsync the new contents are spooled.
KILLED_SWAPPER = """
import os, signal, sys
from specbatch.storage.store import open_store
store = open_store(sys.argv[1])
version = store.read_versioned("lease")[1]
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
store.swap("lease", b"2", version)
"""


def test_a_swapper_killed_inside_swap_leaves_the_old_object_and_no_lock(store: LocalStore) -> None:
    version = store.swap("lease", b"1", None)
    killed = subprocess.run([sys.executable, "-c", KILLED_SWAPPER, store.uri], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert store.read_versioned("lease") == (b"1", version)
    assert store.swap("lease", b"3", version) is not None


def test_a_folder_that_vanishes_when_it_is_empty_stops_no_creator(store: LocalStore) -> None:
    def work(worker: int) -> bool:
        results = []
        for number in range(50):
            results.append(store.create(f"folder/{worker}-{number}", b"x"))
            store.delete(f"folder/{worker}-{number}")
            assert all(key.startswith("folder/") for key in store.list(""))
        return all(results)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert not (Path(store.uri) / "folder").exists()


def test_a_link_that_reports_a_conflict_with_itself_has_won(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)  # what a network file system does when the first answer is lost

    monkeypatch.setattr(os, "link", link_twice)
    assert store.create("data/a", b"mine") is True
    monkeypatch.undo()
    assert store.create("data/a", b"other") is False


def test_contents_are_durable_before_they_have_a_name(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, link = os.fsync, os.link

    def noted_fsync(handle: int) -> None:
        events.append("fsync folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "fsync file")  # noqa: PTH112
        fsync(handle)

    def noted_link(source: Path, target: Path) -> None:
        events.append("link")
        link(source, target)

    store.create("data/before", b"")
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "link", noted_link)
    store.create("data/a", b"x")
    assert events == ["fsync file", "link", "fsync folder"]


def test_a_folder_in_the_way_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SpecbatchError) as caught:
        open_store(str(tmp_path / "file")).create("data/a", b"x")
    assert caught.value.code is ErrorCode.JOB_OUTPUT_UNWRITABLE
    assert str(tmp_path / "file") in caught.value.message
    assert "--output" in caught.value.message
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(store: LocalStore) -> None:
    """A file size limit stops a real write in the middle, as a full disk does."""
    script = (
        "import resource, signal, sys\n"
        "from specbatch.schemas.errors import SpecbatchError\n"
        "from specbatch.storage.store import open_store\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    open_store(sys.argv[1]).create('data/a', b'x' * 500_000)\n"
        "except SpecbatchError as error:\n"
        "    sys.stdout.write(str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, store.uri], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("JOB_OUTPUT_UNWRITABLE: cannot write ")
    assert "free some space" in done.stdout
    assert list((Path(store.uri) / "_specbatch/tmp").iterdir()) == []
    assert store.list("") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_one_clear_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(SpecbatchError) as caught:
            open_store(str(tmp_path / "out")).replace("a", b"x")
    finally:
        tmp_path.chmod(0o700)
    assert caught.value.code is ErrorCode.JOB_OUTPUT_UNWRITABLE
    assert "permission denied" in caught.value.message


@pytest.mark.parametrize(
    "uri", ["s3://user:secret@bucket/out", "gs://secret/out", "hf://x/y", "file:///tmp/x", "", "  "]
)
def test_other_schemes_are_refused_without_repeating_what_may_be_secret(uri: str) -> None:
    with pytest.raises(SpecbatchError) as caught:
        open_store(uri)
    assert caught.value.code is ErrorCode.JOB_URI_INVALID
    assert "secret" not in caught.value.message


def test_opening_a_store_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_store(str(tmp_path / "out")).read("manifest.json")
    assert open_store(str(tmp_path / "out")).list("data") == []
    assert not (tmp_path / "out").exists()
