from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import InputFile, Segment
from specbatch.storage.inputs import check_columns, discover, read_schema, read_segment


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
    assert "hunter2" not in refused(ErrorCode.JOB_URI_INVALID, lambda: discover(["s3://me:hunter2@bucket/x"]))


@pytest.mark.parametrize("name", [b"\xff.parquet", b"two\nlines.parquet", b"\x1b[31m.parquet"])
def test_a_name_that_is_not_printable_text_is_refused(tmp_path: Path, name: bytes) -> None:
    write(tmp_path / "good").rename(tmp_path / os.fsdecode(name))
    message = refused(ErrorCode.JOB_URI_INVALID, lambda: discover([str(tmp_path)]))
    assert message.isascii()
    assert message.isprintable()


def test_an_output_of_specbatch_is_refused_as_a_dataset(tmp_path: Path) -> None:
    write(tmp_path / "data" / "part.parquet")
    (tmp_path / "_specbatch").mkdir()
    message = refused(ErrorCode.JOB_COLUMN_RESERVED, lambda: discover([str(tmp_path)]))
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
        (lambda data: data[:-4] + b"PARE", "encrypted"),
        (lambda data: data[:-60] + bytes(52) + data[-8:], "damaged"),
        (lambda data: data[:-8] + b"\x00\x00\x00\x00PAR1", "footer cannot be read"),
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
            outcomes.add(outcome_of(lambda: read_schema(discover([str(path)]))))
    assert outcomes <= {None, ErrorCode.JOB_INPUT_CORRUPT, ErrorCode.JOB_SCHEMA_MISMATCH}


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
    schema = read_schema(discover([str(path)]))
    assert schema.field("id").type == pa.binary(16)


def test_the_extension_key_in_plain_data_is_no_extension(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    text = "ARROW:schema ARROW:extension:name"
    schema = pa.schema([pa.field("prompt", pa.string())], metadata={"note": base64.b64encode(text.encode())})
    pq.write_table(pa.table({"prompt": [text]}, schema=schema), path)
    assert len(discover([str(path)])) == 1


# ---- schemas and columns -----------------------------------------------------------


def test_files_may_differ_in_column_order_only(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", prompt=["x"], n=[1])
    write(tmp_path / "b.parquet", n=[2], prompt=["y"])
    assert read_schema(discover([str(tmp_path)])).names == ["prompt", "n"]


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
    files = discover([str(tmp_path)])
    message = refused(ErrorCode.JOB_SCHEMA_MISMATCH, lambda: read_schema(files))
    assert difference in message
    assert str(tmp_path / "a.parquet") in message
    assert str(tmp_path / "b.parquet") in message


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["x"]), pa.array([1])], names=["prompt", "prompt"]), path)
    assert "'prompt'" in refused(ErrorCode.JOB_SCHEMA_MISMATCH, lambda: read_schema(discover([str(path)])))


def test_a_missing_column_lists_those_found_and_suggests_the_nearest() -> None:
    schema = pa.schema([("prompts", pa.string()), ("id", pa.int64())])
    message = refused(ErrorCode.JOB_COLUMN_MISSING, lambda: check_columns(schema, "prompt", None))
    assert "'prompts', 'id'" in message
    assert "did you mean --prompt-column prompts?" in message
    assert "--id-column" in refused(ErrorCode.JOB_COLUMN_MISSING, lambda: check_columns(schema, "prompts", "key"))


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_text_types_are_prompts(kind: pa.DataType) -> None:
    check_columns(pa.schema([("prompt", kind), ("id", pa.int64())]), "prompt", "id")


@pytest.mark.parametrize("kind", [pa.int64(), pa.binary(), pa.list_(pa.string()), pa.null()])
def test_other_types_are_not(kind: pa.DataType) -> None:
    schema = pa.schema([("prompt", kind)])
    assert str(kind) in refused(ErrorCode.JOB_COLUMN_TYPE, lambda: check_columns(schema, "prompt", None))


def test_reserved_names_are_refused() -> None:
    schema = pa.schema([("prompt", pa.string()), ("status", pa.string()), ("logprobs", pa.int8())])
    message = refused(ErrorCode.JOB_COLUMN_RESERVED, lambda: check_columns(schema, "prompt", None))
    assert "'status', 'logprobs'" in message
    assert "'input_status'" in message


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
    refused(ErrorCode.JOB_INPUT_CHANGED, lambda: read_schema([file]))
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
