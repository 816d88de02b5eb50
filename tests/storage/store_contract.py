"""The contract of a store, as tests: every back end runs this class."""

from __future__ import annotations

import multiprocessing
import pickle
import tracemalloc
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from specbatch.storage.store import NotFound, Store

NUM_WRITERS = 8
KEYS = tuple(f"data/part-{number:06d}.parquet" for number in range(5))


def contents_of(writer: int, key: str) -> bytes:
    """Large enough that a write is not one system call's worth, and different for each writer."""
    return f"{writer}:{key};".encode() * 20_000


def create_all(store: Store, writer: int) -> list[str]:
    """The keys that this writer won."""
    return [key for key in KEYS if store.create(key, contents_of(writer, key))]


def count_up(store: Store, times: int) -> None:
    """Add one to a counter, ``times`` times, as renewals of a lease do."""
    for _ in range(times):
        while True:
            data, version = store.read_versioned("_specbatch/lease.json")
            if store.swap("_specbatch/lease.json", b"%d" % (int(data) + 1), version) is not None:
                break


class StoreContract:
    """Subclasses give a fixture ``store``: an empty store."""

    num_processes = NUM_WRITERS

    def test_first_creator_wins_and_later_ones_change_nothing(self, store: Store) -> None:
        assert store.create("_specbatch/job.json", b"first") is True
        assert store.create("_specbatch/job.json", b"second") is False
        assert store.read("_specbatch/job.json") == b"first"

    def test_create_from_a_path(self, store: Store, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"of a file")
        assert store.create("data/a", source) is True
        assert store.create("data/a", source) is False
        source.unlink()
        assert store.read("data/a") == b"of a file"

    def test_create_from_the_spool(self, store: Store) -> None:
        spool = store.spool_path()
        spool.write_bytes(b"spooled")
        assert store.create("data/a", spool) is True
        spool.unlink()
        assert store.read("data/a") == b"spooled"

    def test_empty_object(self, store: Store) -> None:
        assert store.create("empty", b"") is True
        assert store.create("empty", b"x") is False
        assert (store.read("empty"), store.size("empty")) == (b"", 0)

    def test_one_winner_per_key_among_processes(self, store: Store) -> None:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.num_processes, mp_context=context) as pool:
            won = list(pool.map(create_all, [store] * self.num_processes, range(self.num_processes)))
        self._check_winners(store, won)

    def test_one_winner_per_key_among_threads(self, store: Store) -> None:
        with ThreadPoolExecutor(NUM_WRITERS) as pool:
            won = list(pool.map(create_all, [store] * NUM_WRITERS, range(NUM_WRITERS)))
        self._check_winners(store, won)

    def _check_winners(self, store: Store, won: list[list[str]]) -> None:
        for key in KEYS:
            winners = [writer for writer, keys in enumerate(won) if key in keys]
            assert len(winners) == 1, f"{key} was won by {winners}"
            assert store.read(key) == contents_of(winners[0], key)
        assert store.list("data") == sorted(KEYS)

    def test_replace_makes_and_overwrites(self, store: Store) -> None:
        store.replace("_specbatch/progress.json", b"one")
        store.replace("_specbatch/progress.json", b"two, longer")
        assert store.read("_specbatch/progress.json") == b"two, longer"
        assert store.create("_specbatch/progress.json", b"three") is False

    def test_a_reader_never_sees_a_mixture(self, store: Store) -> None:
        old, new = b"a" * 300_000, b"b" * 200_000
        store.replace("k", old)
        with ThreadPoolExecutor(2) as pool:
            writes = [pool.submit(store.replace, "k", (new, old)[turn % 2]) for turn in range(40)]
            seen = {store.read("k") for _ in range(200)}
            for write in writes:
                write.result()
        assert seen <= {old, new}

    def test_a_swap_from_the_current_version_is_done_and_gives_the_next(self, store: Store) -> None:
        first = store.swap("_specbatch/lease.json", b"1", None)
        assert first is not None
        assert store.read_versioned("_specbatch/lease.json") == (b"1", first)
        second = store.swap("_specbatch/lease.json", b"2", first)
        assert second not in (None, first)
        assert store.read_versioned("_specbatch/lease.json") == (b"2", second)

    def test_a_stale_swap_is_refused_and_changes_nothing(self, store: Store) -> None:
        first = store.swap("k", b"1", None)
        assert store.swap("k", b"2", first) is not None
        assert store.swap("k", b"3", first) is None
        assert store.swap("k", b"3", None) is None
        assert store.swap("absent", b"3", first) is None
        assert store.read("k") == b"2"
        assert store.list("") == ["k"]

    def test_a_swap_sees_what_other_writes_did(self, store: Store) -> None:
        store.create("k", b"1")
        _, version = store.read_versioned("k")
        store.replace("k", b"2")
        assert store.swap("k", b"3", version) is None
        store.delete("k")
        assert store.swap("k", b"3", version) is None
        assert store.swap("k", b"3", None) is not None

    def test_no_swap_is_lost_among_threads(self, store: Store) -> None:
        store.replace("_specbatch/lease.json", b"0")
        with ThreadPoolExecutor(NUM_WRITERS) as pool:
            for done in [pool.submit(count_up, store, 3) for _ in range(NUM_WRITERS)]:
                done.result()
        assert store.read("_specbatch/lease.json") == b"%d" % (3 * NUM_WRITERS)

    def test_no_swap_is_lost_among_processes(self, store: Store) -> None:
        store.replace("_specbatch/lease.json", b"0")
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.num_processes, mp_context=context) as pool:
            for done in [pool.submit(count_up, store, 5) for _ in range(self.num_processes)]:
                done.result()
        assert store.read("_specbatch/lease.json") == b"%d" % (5 * self.num_processes)

    def test_a_write_is_read_and_listed_at_once(self, store: Store) -> None:
        for number in range(10):
            key = f"data/{number}"
            store.create(key, b"%d" % number)
            assert store.read(key) == b"%d" % number
            assert store.list("data") == [f"data/{seen}" for seen in range(number + 1)]

    def test_deleted_is_gone_at_once_and_may_be_made_anew(self, store: Store) -> None:
        store.create("probe/a", b"x")
        store.create("probe/b", b"x")
        store.delete("probe/a")
        assert store.list("") == ["probe/b"]
        with pytest.raises(NotFound):
            store.read("probe/a")
        store.delete("probe/a")
        store.delete("never/was")
        assert store.create("probe/a", b"y") is True
        assert store.read("probe/a") == b"y"

    def test_a_large_object_takes_little_memory(self, store: Store, tmp_path: Path) -> None:
        source, block = tmp_path / "source", bytes(range(256)) * 4096
        with source.open("wb") as file:
            for _ in range(32):
                file.write(block)
        store.create("small", b"")  # a client's own memory is not in question
        tracemalloc.start()
        try:
            assert store.create("data/large", source) is True
            with store.open("data/large") as opened:
                assert all(opened.read(len(block)) == block for _ in range(32))
                assert opened.read(1) == b""
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert store.size("data/large") == 32 << 20
        assert peak_bytes < 8 << 20

    def test_what_is_absent_is_not_found(self, store: Store) -> None:
        store.create("data/a", b"x")
        for key in ("nothing", "data", "data/b", "data/a/b"):
            with pytest.raises(NotFound):
                store.read(key)
            with pytest.raises(NotFound):
                store.size(key)
            with pytest.raises(NotFound):
                store.open(key)
            with pytest.raises(NotFound):
                store.read_versioned(key)

    def test_open_is_seekable(self, store: Store) -> None:
        store.create("data/a", b"0123456789")
        with store.open("data/a") as file:
            file.seek(-3, 2)
            assert file.read() == b"789"
            file.seek(2)
            assert file.read(2) == b"23"
        assert store.size("data/a") == 10

    def test_list_is_of_one_folder_not_of_its_siblings(self, store: Store) -> None:
        for key in ("data/b", "data/a", "data/sub/c", "data-old/x", "data.json", "other/data/y"):
            store.create(key, b"")
        assert store.list("data/") == store.list("data") == ["data/a", "data/b", "data/sub/c"]
        assert store.list("data-old") == ["data-old/x"]
        assert store.list("nowhere") == []
        assert store.list("") == sorted(["data/b", "data/a", "data/sub/c", "data-old/x", "data.json", "other/data/y"])

    def test_spooled_files_are_not_listed(self, store: Store) -> None:
        spool = store.spool_path()
        spool.write_bytes(b"half")
        store.create("_specbatch/job.json", b"{}")
        assert store.list("") == store.list("_specbatch") == ["_specbatch/job.json"]
        spool.unlink()

    def test_nothing_is_left_behind(self, store: Store) -> None:
        folder = store.spool_path().parent
        before = set(folder.iterdir())  # all stores of a process share it
        store.create("a", b"x")
        store.create("a", b"y")
        store.replace("a", b"z")
        assert set(folder.iterdir()) <= before

    def test_pickles(self, store: Store) -> None:
        store.create("a", b"x")
        copy = pickle.loads(pickle.dumps(store))
        assert copy.uri == store.uri
        assert copy.read("a") == b"x"

    @pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "_specbatch/tmp/x"])
    def test_a_bad_key_is_a_fault_of_ours(self, store: Store, key: str) -> None:
        with pytest.raises(AssertionError):
            store.create(key, b"")
