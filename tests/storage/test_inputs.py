from __future__ import annotations

import base64
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_parquet import I32, column, encode, metadata, parquet_file, varint
from hypothesis import given, settings
from hypothesis import strategies as st

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import InputFile, Segment
from specbatch.storage import footer_facts, inputs
from specbatch.storage.inputs import discover, read_inputs, read_segment


def write(path: Path, *, rows: int = 10, group: int = 4, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns or {"prompt": [f"p{i}" for i in range(rows)], "n": list(range(rows))})
    pq.write_table(table, path, row_group_size=group, write_page_checksum=True)
    return path


def segment_of(file: InputFile, start: int, stop: int, first: int = 0) -> Segment:
    return Segment(file.path, file.size_bytes, file.footer_sha256, start, stop, first)


def refused(code: ErrorCode, call: Callable[[], object]) -> str:
    with pytest.raises(SpecbatchError) as caught:
        call()
    assert caught.value.code is code, str(caught.value)
    assert "\n" not in caught.value.message
    return caught.value.message


def outcome_of(call: Callable[[], object]) -> ErrorCode | None:
    """The code of the refusal, None where there was none."""
    try:
        call()
    except SpecbatchError as error:
        return error.code
    return None


# ---- discovery -----------------------------------------------------------


def test_one_file_is_pinned(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    (file,) = discover([str(path)])
    assert (file.name, file.path, file.size_bytes) == ("a.parquet", str(path), path.stat().st_size)
    assert file.row_group_rows == (4, 4, 2)
    assert discover([str(path)]) == (file,)


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d" / "a.parquet")
    monkeypatch.chdir(tmp_path)
    assert [file.path for file in discover(["d/a.parquet"])] == [str(tmp_path / "d/a.parquet")]
    assert [(f.name, f.path) for f in discover(["d"])] == [("a.parquet", str(tmp_path / "d/a.parquet"))]
    assert [(f.name, f.path) for f in discover(["*/a.*"])] == [("d/a.parquet", str(tmp_path / "d/a.parquet"))]


def test_a_folder_is_read_recursively_sorted_and_without_what_is_not_data(tmp_path: Path) -> None:
    for name in ("b.parquet", "a/z.parquet", "a.parquet", "_skip.parquet", ".skip.parquet", "_tmp/x.parquet"):
        write(tmp_path / name)
    write(tmp_path / "an-output" / "data" / "part.parquet")
    (tmp_path / "an-output" / "_specbatch").mkdir()
    (tmp_path / "readme.txt").write_text("no data")
    assert [file.name for file in discover([str(tmp_path)])] == ["a/z.parquet", "a.parquet", "b.parquet"]
    # In a glob too, where folders and hidden names may match.
    assert [file.name for file in discover([f"{tmp_path}/**/*.parquet"])] == ["a/z.parquet", "a.parquet", "b.parquet"]


def test_a_glob_matches_files_and_a_literal_name_goes_first(tmp_path: Path) -> None:
    for name in ("x1.parquet", "x2.parquet", "y.parquet", "x[1].parquet"):
        write(tmp_path / name)
    assert [file.name for file in discover([f"{tmp_path}/x?.parquet"])] == ["x1.parquet", "x2.parquet"]
    assert [file.name for file in discover([f"{tmp_path}/x[1].parquet"])] == ["x[1].parquet"]


def test_datasets_keep_the_order_in_which_they_were_given(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet")
    write(tmp_path / "a.parquet")
    datasets = [str(tmp_path / "b.parquet"), str(tmp_path / "a.parquet")]
    assert [file.name for file in discover(datasets)] == ["b.parquet", "a.parquet"]


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    assert str(path) in refused(ErrorCode.JOB_CONFIG, lambda: discover([str(path), str(tmp_path)]))


def test_missing_and_empty_datasets(tmp_path: Path) -> None:
    gone = tmp_path / "gone.parquet"
    assert str(gone) in refused(ErrorCode.JOB_INPUT_MISSING, lambda: discover([str(gone)]))
    refused(ErrorCode.JOB_INPUT_EMPTY, lambda: discover([]))
    refused(ErrorCode.JOB_INPUT_EMPTY, lambda: discover([str(tmp_path)]))
    refused(ErrorCode.JOB_INPUT_EMPTY, lambda: discover([f"{tmp_path}/*.parquet"]))
    for uri in ("s3://me:hunter2@bucket/x", "https://me:hunter2@bucket/x"):
        assert "hunter2" not in refused(ErrorCode.JOB_URI_INVALID, lambda uri=uri: discover([uri]))
    assert "**" in refused(ErrorCode.JOB_URI_INVALID, lambda: discover([f"{tmp_path}/a**/*.parquet"]))


@pytest.mark.parametrize("name", [b"\xff.parquet", b"two\nlines.parquet", b"\x1b[31m.parquet"])
def test_a_name_that_is_not_printable_text_is_refused(tmp_path: Path, name: bytes) -> None:
    write(tmp_path / "good").rename(tmp_path / os.fsdecode(name))
    message = refused(ErrorCode.JOB_URI_INVALID, lambda: discover([str(tmp_path)]))
    assert message.isascii()
    assert message.isprintable()


def test_an_unfinished_output_of_specbatch_is_refused_as_a_dataset(tmp_path: Path) -> None:
    write(tmp_path / "data" / "part.parquet")
    (tmp_path / "_specbatch").mkdir()
    message = refused(ErrorCode.JOB_INCOMPLETE, lambda: discover([str(tmp_path)]))
    assert "is an output of specbatch" in message


# ---- files that cannot be used -----------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "it is empty"),
        (lambda data: b"id,prompt\n1,hello\n", "it is not a Parquet file"),
        (lambda data: b"PAR1", "it is not a Parquet file"),
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: data[:-1], "cut short"),
        (lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1", "cut short"),
        (lambda data: data[:-60] + bytes(52) + data[-8:], "damaged"),
        (lambda data: data[:-8] + b"\x00\x00\x00\x00PAR1", "footer is damaged"),
    ],
)
def test_what_is_not_parquet_is_named(tmp_path: Path, damage: Callable[[bytes], bytes], reason: str) -> None:
    path = write(tmp_path / "a.parquet")
    path.write_bytes(damage(path.read_bytes()))
    message = refused(ErrorCode.JOB_INPUT_CORRUPT, lambda: discover([str(path)]))
    assert str(path) in message
    assert reason in message


def test_every_cut_and_every_flipped_footer_byte_is_survived(tmp_path: Path) -> None:
    """Whatever the damage, the answer is a coded error or a pin: never a crash, never a hang."""
    path = write(tmp_path / "a.parquet", rows=3)
    data = path.read_bytes()
    outcomes: set[ErrorCode | None] = set()
    for at in range(len(data) - int.from_bytes(data[-8:-4], "little") - 8, len(data), 5):
        for damaged in (data[:at], data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]):
            path.write_bytes(damaged)
            outcomes.add(outcome_of(lambda: discover([str(path)])))
    assert outcomes <= {
        None,
        ErrorCode.JOB_INPUT_CORRUPT,
        ErrorCode.JOB_INPUT_UNSUPPORTED,
        ErrorCode.JOB_INPUT_LIMIT,
        ErrorCode.JOB_SCHEMA_MISMATCH,
    }


def test_the_first_bad_file_is_named(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / f"{number:02d}.parquet", rows=2)
    (tmp_path / "07.parquet").write_text("x" * 50)
    (tmp_path / "13.parquet").write_text("x" * 50)
    assert "07.parquet" in refused(ErrorCode.JOB_INPUT_CORRUPT, lambda: discover([str(tmp_path)]))


class HostileType(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.string(), "test.hostile")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> HostileType:
        TOUCHED.append(serialized)
        return cls()


TOUCHED: list[bytes] = []


@pytest.mark.parametrize("nested", [False, True])
def test_extension_types_are_refused_and_never_deserialised(tmp_path: Path, nested: bool) -> None:
    column = pa.ExtensionArray.from_storage(HostileType(), pa.array(["x"]))
    if nested:
        column = pa.StructArray.from_arrays([pa.array([1]), column], names=["plain", "inner"])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": pa.array(["p"]), "evil": column}), path)
    TOUCHED.clear()
    pa.register_extension_type(HostileType())
    try:
        message = refused(ErrorCode.JOB_INPUT_EXTENSION, lambda: discover([str(path)]))
        assert TOUCHED == []
        pq.read_schema(path)
        assert TOUCHED != [], "the trap itself must work"
    finally:
        pa.unregister_extension_type("test.hostile")
    assert ("'evil.inner'" if nested else "'evil'") in message
    assert "'test.hostile'" in message


def test_a_damaged_arrow_schema_is_corrupt(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    data = path.read_bytes()
    at = data.index(b"ARROW:schema") + 40
    path.write_bytes(data[:at] + b"!" + data[at + 1 :])
    refused(ErrorCode.JOB_INPUT_CORRUPT, lambda: discover([str(path)]))


def test_files_without_an_arrow_schema_and_with_native_parquet_types_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"prompt": ["x"], "id": pa.array([b"0" * 16], pa.uuid())})
    pq.write_table(table, path, store_schema=False)  # the UUID is then Parquet's own logical type
    schema = read_inputs([str(path)]).schema
    assert schema.field("id").type == pa.binary(16)


def test_the_extension_key_in_plain_data_is_no_extension(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    text = "ARROW:schema ARROW:extension:name"
    schema = pa.schema([pa.field("prompt", pa.string())], metadata={"note": base64.b64encode(text.encode())})
    pq.write_table(pa.table({"prompt": [text]}, schema=schema), path)
    assert len(discover([str(path)])) == 1


# ---- what footers announce -----------------------------------------------------------


def announce(path: Path, footer: dict[int, object]) -> Path:
    path.write_bytes(parquet_file(footer))
    return path


def test_a_footer_of_our_own_is_read_like_any(tmp_path: Path) -> None:
    """The hostile ones below differ from this one in a single value."""
    found = read_inputs([str(announce(tmp_path / "a.parquet", metadata()))])
    assert found.files[0].row_group_rows == (10,)
    assert found.schema == pa.schema([("prompt", pa.string())])


@pytest.mark.parametrize(
    ("footer", "reason"),
    [
        (metadata(chunk=column(codec=3)), "column 'prompt' is compressed with LZO"),
        (metadata(chunk=column(codec=77)), "compressed with an unknown codec (number 77)"),
        (metadata(f8={1: {}}), "it is an encrypted Parquet file"),
        (metadata(chunk={**column(), 8: {1: {}}}), "it is an encrypted Parquet file"),
        (metadata(chunk={**column(), 1: b"../other.parquet"}), "columns that lie in other files"),
    ],
)
def test_what_cannot_be_read_here_is_told_while_planning(
    tmp_path: Path, footer: dict[int, object], reason: str
) -> None:
    path = announce(tmp_path / "a.parquet", footer)
    message = refused(ErrorCode.JOB_INPUT_UNSUPPORTED, lambda: discover([str(path)]))
    assert reason in message
    assert str(path) in message


@pytest.mark.parametrize("where", ["head", "tail"])
def test_an_encrypted_footer_is_not_supported(tmp_path: Path, where: str) -> None:
    path = write(tmp_path / "a.parquet")
    data = path.read_bytes()
    path.write_bytes(data[:-4] + b"PARE" if where == "tail" else b"PARE" + data[4:-4] + b"xxxx")
    assert "encrypted" in refused(ErrorCode.JOB_INPUT_UNSUPPORTED, lambda: discover([str(path)]))


def nested(depth: int) -> list[dict[int, object]]:
    group = {3: I32(1), 4: b"g", 5: I32(1)}
    return [{4: b"schema", 5: I32(1)}, *[group] * depth, {1: I32(6), 3: I32(1), 4: b"leaf", 6: I32(0)}]


@pytest.mark.parametrize(
    ("footer", "reason"),
    [
        (metadata(rows=1 << 40), "a row group of 1,099,511,627,776 rows"),
        (
            metadata(chunk=column(uncompressed=1 << 31)),
            "announces 2,147,483,648 bytes in a row group of 100 compressed",
        ),
        (metadata(chunk=column(uncompressed=1 << 50)), "announces"),
        (metadata(f2=nested(5000)), "nested more than 64 deep"),
        (metadata(f2=[{4: b"schema", 5: I32(100_001)}, *[{1: I32(6), 4: b"x"}] * 100_001]), "columns"),
    ],
)
def test_bombs_are_refused_by_their_footers(tmp_path: Path, footer: dict[int, object], reason: str) -> None:
    path = announce(tmp_path / "a.parquet", footer)
    message = refused(ErrorCode.JOB_INPUT_LIMIT, lambda: discover([str(path)]))
    assert reason in message
    assert str(path) in message


def test_a_footer_of_absurd_size_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with path.open("wb") as file:  # a hole: the file takes no space
        file.write(b"PAR1")
        file.seek(100 << 20)
        file.write((65 << 20).to_bytes(4, "little") + b"PAR1")
    assert "68,157,440" in refused(ErrorCode.JOB_INPUT_LIMIT, lambda: discover([str(path)]))


def test_a_long_footer_takes_a_second_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    schema = pa.schema([("prompt", pa.string())], metadata={"note": "x" * 200_000})
    pq.write_table(pa.table({"prompt": ["a", "b"]}, schema=schema), path)
    (file,) = discover([str(path)])
    assert read_segment(segment_of(file, 0, 2)).column("prompt").to_pylist() == ["a", "b"]


@pytest.mark.parametrize(
    "footer",
    [
        metadata(chunk=column(compressed=5000)),
        metadata(chunk=column(pages=1 << 40)),
        metadata(chunk=column(compressed=-1)),
        metadata(rows=-1),
        metadata(f3=11),
        {1: I32(1)},
        metadata(f2=[]),
    ],
)
def test_footers_that_contradict_themselves_are_corrupt(tmp_path: Path, footer: dict[int, object]) -> None:
    path = announce(tmp_path / "a.parquet", footer)
    refused(ErrorCode.JOB_INPUT_CORRUPT, lambda: discover([str(path)]))


def test_a_footer_nested_without_end_is_corrupt(tmp_path: Path) -> None:
    """Structs in structs in a field that nobody knows: 100,000 levels would exhaust any stack."""
    footer = encode(metadata())[:-1] + b"\x0c" + varint(50 << 1) + b"\x1c" * 100_000 + bytes(100_002)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + bytes(1000) + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    assert "damaged" in refused(ErrorCode.JOB_INPUT_CORRUPT, lambda: discover([str(path)]))


def test_the_facts_are_those_that_arrow_reads(tmp_path: Path) -> None:
    table = pa.table({"prompt": [f"p{i}" for i in range(1000)], "nested": [[{"a": i, "b": None}] for i in range(1000)]})
    for compression in ("none", "snappy", "gzip", "brotli", "lz4", "zstd"):
        path = tmp_path / f"{compression}.parquet"
        pq.write_table(table, path, compression=compression, row_group_size=300, write_page_checksum=True)
        parquet = pq.ParquetFile(path)
        (file,) = discover([str(path)])
        groups = [parquet.metadata.row_group(index).num_rows for index in range(parquet.metadata.num_row_groups)]
        assert list(file.row_group_rows) == groups == [300, 300, 300, 100]
        data = path.read_bytes()
        serialised = data[-8 - int.from_bytes(data[-8:-4], "little") : -8]
        pairs = dict(footer_facts.read_facts(serialised, len(data)).key_values)
        assert pairs == parquet.metadata.metadata
        assert read_segment(segment_of(file, 250, 650)).equals(table.slice(250, 400))


# ---- schemas and columns -----------------------------------------------------------


def test_files_may_differ_in_column_order_only(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", prompt=["x"], n=[1])
    write(tmp_path / "b.parquet", n=[2], prompt=["y"])
    assert read_inputs([str(tmp_path)]).schema.names == ["prompt", "n"]


@pytest.mark.parametrize(
    ("columns", "difference"),
    [
        ({"prompt": ["y"], "n": ["one"]}, "column 'n' is int64 in one and string in the other"),
        ({"prompt": ["y"]}, "only one of them has the column 'n'"),
        ({"prompt": ["y"], "n": [1], "m": [2]}, "only one of them has the column 'm'"),
    ],
)
def test_other_differences_name_both_files(tmp_path: Path, columns: dict[str, object], difference: str) -> None:
    write(tmp_path / "a.parquet", prompt=["x"], n=[1])
    write(tmp_path / "b.parquet", **columns)
    message = refused(ErrorCode.JOB_SCHEMA_MISMATCH, lambda: discover([str(tmp_path)]))
    assert difference in message
    assert str(tmp_path / "a.parquet") in message
    assert str(tmp_path / "b.parquet") in message


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["x"]), pa.array([1])], names=["prompt", "prompt"]), path)
    assert "'prompt'" in refused(ErrorCode.JOB_SCHEMA_MISMATCH, lambda: discover([str(path)]))


def test_files_without_rows_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", prompt=pa.array([], pa.string()), n=pa.array([], pa.int64()))
    write(tmp_path / "b.parquet", prompt=["x"], n=[1])
    assert [(file.name, file.num_rows) for file in discover([str(tmp_path)])] == [("a.parquet", 0), ("b.parquet", 1)]


# ---- reading rows -----------------------------------------------------------


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (0, 4), (4, 8), (2, 9), (9, 10), (5, 5), (0, 0), (10, 10)])
def test_a_segment_is_exactly_its_rows(tmp_path: Path, start: int, stop: int) -> None:
    (file,) = discover([str(write(tmp_path / "a.parquet"))])
    table = read_segment(segment_of(file, start, stop))
    assert table.column("n").to_pylist() == list(range(start, stop))
    assert table.schema.names == ["prompt", "n"]


def test_large_row_groups_are_read_in_batches(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows=20_000, group=9_000)
    (file,) = discover([str(path)])
    table = read_segment(segment_of(file, 8_990, 17_500))
    assert table.column("n").to_pylist() == list(range(8_990, 17_500))


def test_a_file_without_rows_or_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    (file,) = discover([str(path)])
    assert file.num_rows == 0
    assert read_segment(segment_of(file, 0, 0)).num_rows == 0


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    (file,) = discover([str(path)])
    segment = segment_of(file, 0, 10)
    write(path, rows=10, prompt=[f"q{i}" for i in range(10)], n=list(range(10)))
    os.truncate(path, path.stat().st_size)
    assert path.stat().st_size == file.size_bytes, "the trap: the size alone does not tell"
    refused(ErrorCode.JOB_INPUT_CHANGED, lambda: read_segment(segment))
    path.write_bytes(path.read_bytes()[:-20])
    refused(ErrorCode.JOB_INPUT_CHANGED, lambda: read_segment(segment))
    path.unlink()
    refused(ErrorCode.JOB_INPUT_MISSING, lambda: read_segment(segment))


def test_a_damaged_page_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"prompt": ["hello world, this is stored as it is"]})
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, path, write_page_checksum=True, **plain)
    (file,) = discover([str(path)])
    data = path.read_bytes()
    path.write_bytes(data.replace(b"hello world", b"jello world"))
    message = refused(ErrorCode.SHARD_INPUT_CORRUPT, lambda: read_segment(segment_of(file, 0, 1)))
    assert str(path) in message


class CountingFile(io.FileIO):
    """Counts the bytes that are read through it."""

    num_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size) or b""
        CountingFile.num_read += len(data)
        return data


def test_only_what_is_needed_of_a_row_group_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row group that many shards share is neither in memory at once nor read to its end by each of them."""
    path = tmp_path / "a.parquet"
    texts = [os.urandom(1000).hex() for _ in range(20_000)]
    pq.write_table(pa.table({"prompt": texts}), path, compression="none", use_dictionary=False, data_page_size=1 << 16)
    (file,) = discover([str(path)])
    monkeypatch.setattr(inputs, "open_input", lambda path: CountingFile(path))
    monkeypatch.setattr(CountingFile, "num_read", 0)
    assert read_segment(segment_of(file, 0, 10)).column("prompt").to_pylist() == texts[:10]
    assert 0 < CountingFile.num_read < path.stat().st_size // 2


def test_a_row_group_that_many_shards_share_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    texts = [os.urandom(1000).hex() for _ in range(5000)]
    pq.write_table(pa.table({"prompt": texts}), path, compression="none", use_dictionary=False, data_page_size=1 << 16)
    (file,) = discover([str(path)])
    monkeypatch.setattr(inputs, "open_input", lambda path: CountingFile(path))
    monkeypatch.setattr(CountingFile, "num_read", 0)
    at = 0
    for shard in range(100):
        start = shard * 50 + 10 * (shard % 3)  # with gaps, as where other workers have some of the shards
        rows = read_segment(segment_of(file, start, shard * 50 + 50)).column("prompt").to_pylist()
        assert rows == texts[start : shard * 50 + 50]
        at += len(rows)
    assert CountingFile.num_read < 1.2 * path.stat().st_size


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(0, 30)), max_size=30))
@settings(max_examples=60, deadline=None)
def test_segments_in_any_order(reads: list[tuple[int, int, int]]) -> None:
    """Of more files than readers are kept, forwards and backwards, over the borders of row groups."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(4):
            write(Path(folder) / f"{number}.parquet", prompt=[str(number)] * 30, n=list(range(30)))
        files = discover([folder])
        for number, one, other in reads:
            start, stop = sorted((one, other))
            table = read_segment(segment_of(files[number], start, stop))
            assert table.column("n").to_pylist() == list(range(start, stop))
            assert set(table.column("prompt").to_pylist()) <= {str(number)}


def test_a_file_that_is_replaced_between_two_segments_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows=100, group=100)
    (file,) = discover([str(path)])
    assert read_segment(segment_of(file, 0, 10)).num_rows == 10
    write(path, rows=100, group=50)
    refused(ErrorCode.JOB_INPUT_CHANGED, lambda: read_segment(segment_of(file, 10, 20)))
    write(path, rows=100, group=100)
    assert read_segment(segment_of(file, 10, 20)).column("n").to_pylist() == list(range(10, 20))
    path.unlink()
    refused(ErrorCode.JOB_INPUT_MISSING, lambda: read_segment(segment_of(file, 20, 30)))


@pytest.mark.long
def test_a_column_of_more_than_two_gibibytes_is_read_in_pieces(tmp_path: Path) -> None:
    """Bad input 9: offsets of 32 bits end at 2 GiB; nothing may join the pieces."""
    path = tmp_path / "a.parquet"
    row = "x" * (72 << 20)
    schema = pa.schema([("prompt", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(32):
            writer.write_table(pa.table({"prompt": [row]}, schema=schema))
    (file,) = discover([str(path)])
    table = read_segment(segment_of(file, 0, 32))
    assert table.num_rows == 32
    assert table.nbytes > 1 << 31
    assert {len(value.as_buffer()) for value in table.column("prompt")} == {len(row)}
