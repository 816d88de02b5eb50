"""``--dedupe mark``: the first row with the same prompt and parameters, found without having all rows in memory."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_normalise import begin, plan, read_all

from specbatch.jobs.planning import dedupe
from specbatch.jobs.planning.dedupe import ensure_duplicates, find_first_rows, row_digests
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage import duplicates
from specbatch.storage.duplicates import read_duplicates, write_duplicates

NONE = bytes(16)


def expected_marks(digests: list[bytes]) -> list[int | None]:
    first: dict[bytes, int] = {}
    marks: list[int | None] = []
    for row, digest in enumerate(digests):
        marks.append(None if digest == NONE or digest not in first else first[digest])
        first.setdefault(digest, row)
    return marks


@given(
    keys=st.lists(st.integers(0, 12), max_size=60),
    sorted_rows=st.sampled_from([1, 3, 1 << 21]),
    group_rows=st.sampled_from([1, 7, 1 << 16]),
)
@settings(max_examples=150, deadline=None)
def test_marks_are_those_of_a_dictionary(
    keys: list[int], sorted_rows: int, group_rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    digests = [NONE if key == 0 else hashlib.blake2b(bytes([key]), digest_size=16).digest() for key in keys]
    # Digests that share their first half, or lie at the ends of a range.
    digests = [bytes(8) + digest[8:] if key == 1 else b"\xff" * 16 if key == 2 else digest
               for key, digest in zip(keys, digests, strict=True)]  # fmt: skip
    folder = tmp_path_factory.mktemp("marks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedupe, "_SORTED_ROWS", sorted_rows)
        patch.setattr(duplicates, "_GROUP_ROWS", group_rows)
        write_duplicates(find_first_rows(iter(digests), len(digests), folder / "spool"), folder / "marks")
        marks = read_duplicates(str(folder / "marks"), [(0, len(digests))]).to_pylist()
        assert marks == expected_marks(digests)
        ranges = [(start, min(start + 2, len(marks))) for start in range(0, len(marks), 5)]
        picked = read_duplicates(str(folder / "marks"), ranges).to_pylist()
        assert picked == [mark for start, stop in ranges for mark in marks[start:stop]]


def test_a_file_that_lacks_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"duplicate_of": pa.array([None, 0], pa.int64())}), tmp_path / "marks")
    for path, stop in ((tmp_path / "marks", 3), (tmp_path / "marks", 1 << 20)):
        with pytest.raises(SpecbatchError) as caught:
            read_duplicates(str(path), [(stop - 1, stop)])
        assert caught.value.code is ErrorCode.JOB_INTEGRITY
    (tmp_path / "bad").write_bytes(b"PAR1")
    with pytest.raises(SpecbatchError):
        read_duplicates(str(tmp_path / "bad"), [(0, 1)])


def write(folder: Path, **columns: Any) -> Path:
    path = folder / "d.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


PROMPTS = ["a", "b", "a", None, None, " ", "c", "b", "a", " "]


def test_rows_are_marked_in_the_columns_that_pass_through(tmp_path: Path) -> None:
    path = write(tmp_path, prompt=PROMPTS, n=list(range(10)))
    prepared, stored = begin(plan(path, output=tmp_path / "out", dedupe="mark", shard_rows=4))
    uri = ensure_duplicates(prepared, stored)
    assert uri == f"{tmp_path}/out/_specbatch/input/duplicates-{stored.plan}.parquet"
    table = read_all(prepared, duplicates=uri)
    assert table.schema.names == ["prompt", "n", "duplicate_of"]
    assert table.schema.field("duplicate_of").type == pa.int64()
    assert table.column("duplicate_of").to_pylist() == [None, None, 0, None, None, None, None, 1, 0, None]
    before = Path(uri).stat().st_mtime_ns
    assert ensure_duplicates(prepared, stored) == uri
    assert Path(uri).stat().st_mtime_ns == before, "it is made once"
    assert not list((tmp_path / "out" / "_specbatch" / "tmp").iterdir())


def test_parameters_tell_rows_apart_and_what_a_template_leaves_out_does_not(tmp_path: Path) -> None:
    path = write(tmp_path, prompt=["a"] * 5, temperature=[None, 0.5, 0.5, None, 3e9], seed=[1, 1, 1, None, None])
    options = {"output": tmp_path / "out", "dedupe": "mark"}
    prepared, stored = begin(plan(path, row_params=True, **options))
    table = read_all(prepared, duplicates=ensure_duplicates(prepared, stored))
    assert table.column("duplicate_of").to_pylist() == [None, None, 1, None, None]
    prepared = plan(path, template="{{ prompt }}!", output=tmp_path / "other", dedupe="mark")
    segments = [segment for shard in prepared.shards for segment in shard.segments]
    assert len(set(row_digests(prepared, segments))) == 1


def test_a_limit_bounds_what_is_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path, prompt=PROMPTS)
    prepared, stored = begin(plan(path, output=tmp_path / "out", dedupe="mark", limit=3))
    table = read_all(prepared, duplicates=ensure_duplicates(prepared, stored))
    assert table.column("duplicate_of").to_pylist() == [None, None, 0]


def test_an_amendment_reads_the_marks_of_its_parent(tmp_path: Path) -> None:
    path = write(tmp_path, prompt=PROMPTS)
    prepared, stored = begin(plan(path, output=tmp_path / "out", dedupe="mark"))
    uri = ensure_duplicates(prepared, stored)
    child = replace(prepared, output=str(tmp_path / "out" / "amendments" / "1"))
    assert ensure_duplicates(child, replace(stored, shards=stored.shards[:1])) == uri


def test_a_prefix_stands_before_this_column_too(tmp_path: Path) -> None:
    path = write(tmp_path, prompt=PROMPTS)
    prepared, stored = begin(plan(path, output=tmp_path / "out", dedupe="mark", output_prefix="gen_"))
    table = read_all(prepared, duplicates=ensure_duplicates(prepared, stored))
    assert table.schema.names == ["prompt", "gen_duplicate_of"]
