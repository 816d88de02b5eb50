"""JSONL as Parquet: every value comes back as JSON has it, and what cannot be read is named by file and line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonl_files import PLAIN, found, normalise, pack, table_of, write_lines

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage import jsonl, jsonl_lines, jsonl_types
from specbatch.storage.jsonl import Wanted, find_source, make_rules, observe, survey, write_copy
from specbatch.storage.jsonl_types import JSON_KEY


def refused(code: ErrorCode, call: Callable[[], object]) -> str:
    with pytest.raises(SpecbatchError) as caught:
        call()
    assert caught.value.code is code, str(caught.value)
    assert "\n" not in caught.value.message
    assert caught.value.message.isascii()
    return caught.value.message


def lines_of(path: Path, data: bytes) -> list[Any]:
    path.write_bytes(data)
    return table_of(path).to_pylist()


# ---- values -----------------------------------------------------------


def same(value: Any, read: Any, field: pa.Field) -> bool:
    """Whether a cell holds what JSON had there, by the rules of the column's type."""
    if value is None or read is None:
        return value is None and read is None
    if field.metadata and JSON_KEY in field.metadata:
        return alike(json.loads(read), value)
    if pa.types.is_struct(field.type):
        children = {field.type.field(index).name: field.type.field(index) for index in range(field.type.num_fields)}
        return value.keys() <= children.keys() and all(
            same(value.get(name), read[name], child) for name, child in children.items()
        )
    if pa.types.is_list(field.type):
        return len(value) == len(read) and all(
            same(one, other, field.type.value_field) for one, other in zip(value, read, strict=True)
        )
    if pa.types.is_floating(field.type):
        return not isinstance(value, bool) and value == read and math.copysign(1, value) == math.copysign(1, read)
    return alike(value, read)


def alike(one: Any, other: Any) -> bool:
    """Equality that tells 1 from 1.0 and from true."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
NUMBERS = st.integers() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.sampled_from([1 << 53, -(1 << 63), 1 << 63, 1 << 70, 0.5]) | TEXTS
KEYS = st.sampled_from(["a", "b", "c d", "é", "", "row.x"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["prompt", "n", "meta", "ü"]), VALUES, max_size=4), max_size=8)


@given(rows=ROWS, compression=st.sampled_from(["", ".gz", ".zst"]), tidy=st.booleans())
@settings(max_examples=300, deadline=None)
def test_values_come_back_as_json_reads_them(rows: list[dict[str, Any]], compression: str, tidy: bool) -> None:
    data = b"".join(json.dumps(row, ensure_ascii=tidy).encode() + (b"\n" if tidy else b"\r\n\n") for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.jsonl{compression}"
        path.write_bytes(pack(data, compression))
        if not any(rows):
            assert survey(found(path)).num_rows == len(rows)
            if rows:
                refused(ErrorCode.JOB_INPUT_UNSUPPORTED, lambda: table_of(path))
            return
        table = table_of(path)
        schema = table.schema
        cells = [table.column(name).to_pylist() for name in schema.names]
    assert table.num_rows == len(rows)
    assert set(schema.names) == {key for row in rows for key in row}
    for number, row in enumerate(rows):
        for field, column in zip(schema, cells, strict=True):
            assert same(row.get(field.name), column[number], field), (row, field)


@given(values=st.lists(VALUES, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_types_do_not_depend_on_how_rows_are_spread_over_files(values: list[Any]) -> None:
    """Shapes of files are merged: the same as of one file with all rows, but for where a kind was first seen."""
    whole, parts = jsonl_types.Shape(), [jsonl_types.Shape(), jsonl_types.Shape()]
    for number, value in enumerate(values):
        whole.observe({"v": value}, ("f", number))
        parts[number * 2 // len(values)].observe({"v": value}, ("f", number))
    parts[0].merge(parts[1])
    assert jsonl_types.arrow_schema(parts[0]).equals(jsonl_types.arrow_schema(whole), check_metadata=True)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, None], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([1.0, -0.0], pa.float64()),
        ([(1 << 53) + 1, 0.5], "json"),
        ([(1 << 53) + 1, 5], pa.int64()),
        ([1 << 63], "json"),
        ([True, None], pa.bool_()),
        ([True, 1], "json"),
        ([None], pa.string()),
        (["x", 1], "json"),
        ([[], [None]], pa.list_(pa.field("element", pa.string()))),
        ([{}], "json"),
        ([{"": 1}], "json"),
        ([{"a": 1}, {"b": "x"}], pa.struct([("a", pa.int64()), ("b", pa.string())])),
        ([[1, 2.5]], pa.list_(pa.field("element", pa.float64()))),
    ],
)
def test_the_type_of_a_column(values: list[Any], kind: Any, tmp_path: Path) -> None:
    field = table_of(write_lines(tmp_path / "a.jsonl", [{"v": value} for value in values])).schema.field("v")
    if kind == "json":
        assert field.type == pa.string()
        assert field.metadata is not None
    else:
        assert field.type == kind
        assert not field.metadata


def test_mixed_values_are_told_with_their_lines(tmp_path: Path) -> None:
    rows = [{"v": "x", "deep": {"w": [1]}}, {"v": None}, {"v": 3, "deep": {"w": ["y"]}}]
    source = survey(found(write_lines(tmp_path / "a.jsonl", rows)))
    rules = make_rules([source], [None], PLAIN)
    assert rules.notes == [
        "column 'v' is kept as JSON text: text in a.jsonl line 1, a number in a.jsonl line 3",
        "column 'deep'.'w'[] is kept as JSON text: text in a.jsonl line 3, a number in a.jsonl line 1",
    ]


def test_objects_with_very_many_keys_and_deep_ones_are_json_text(tmp_path: Path) -> None:
    many = {f"k{number}": number for number in range(jsonl_types.MAX_OBJECT_KEYS + 1)}
    deep: Any = 1
    for _ in range(jsonl_types.MAX_DEPTH + 3):
        deep = {"d": [deep]}
    path = write_lines(tmp_path / "a.jsonl", [{"many": many, "deep": deep}])
    (row,) = table_of(path).to_pylist()
    assert json.loads(row["many"]) == many
    innermost = row["deep"]
    while not isinstance(innermost, str):
        innermost = innermost["d"] if isinstance(innermost, dict) else innermost[0]
    assert json.loads(innermost)


def test_a_file_with_too_many_columns_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl_types, "MAX_COLUMNS", 3)
    path = write_lines(tmp_path / "a.jsonl", [{"a": 1, "b": 2, "c": 3}, {"d": 4}])
    assert "more than 3 keys" in refused(ErrorCode.JOB_INPUT_UNSUPPORTED, lambda: table_of(path))
    path = write_lines(tmp_path / "b.jsonl", [{"": 1}])
    assert "name of a column" in refused(ErrorCode.JOB_INPUT_UNSUPPORTED, lambda: table_of(path))


CHAT = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("chats", "is_json"),
    [
        ([CHAT, None, [{"role": "user", "content": None}]], False),
        ([CHAT, [{"role": "user", "content": "x", "name": "n"}]], True),
        ([CHAT, [{"role": "user", "content": 3}]], True),
        ([CHAT, "no chat"], True),
        ([[{"role": "user"}]], True),
        ([json.dumps(CHAT)], False),
    ],
)
def test_chats_are_lists_of_messages_or_json_text_as_a_whole(chats: list[Any], is_json: bool, tmp_path: Path) -> None:
    """A malformed chat must not change what the others hold: each is text that its row is judged by."""
    path = write_lines(tmp_path / "a.jsonl", [{"messages": chat} for chat in chats])
    column = table_of(path, Wanted(chat_column="messages")).column("messages")
    read = column.to_pylist()
    if is_json:
        assert column.type == pa.string()
        assert [None if text is None else json.loads(text) for text in read] == chats
    else:
        assert read == chats


# ---- lines -----------------------------------------------------------


def test_byte_order_mark_line_ends_and_blank_lines(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"a": 1}\r\n\r\n \t\n{"a": "x\\u2028\xe2\x80\xa8\\u0000"}\n{"a": null}'
    assert lines_of(tmp_path / "a.jsonl", data) == [{"a": "1"}, {"a": '"x\u2028\u2028\\u0000"'}, {"a": None}]
    assert lines_of(tmp_path / "b.jsonl", b'\n{"a": "x\\u0000"}') == [{"a": "x\0"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": hunter2}', "not valid JSON at character 7"),
        (b'{"a": "hunter2}', "unterminated string"),
        (b'{"a": 1} hunter2', "not valid JSON at character 10 (extra data)"),
        (b'{"a": "hunter2\x01"}', "invalid control character"),
        (b'{"a": "\\hunter2"}', "not valid JSON"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is not JSON"),
        (b'{"a": 1e999}', "beyond the range"),
        (b'{"a": {"b": [1, 1e999]}}', "beyond the range"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "too many digits"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (b'{"a": {"b": 1, "b": 1}}', "the key 'b' stands twice"),
        (b'{"a": "hunter2\xff"}', "not valid UTF-8 at byte 15"),
        (b'{"a": "\\ud800 hunter2"}', "surrogate"),
        (b'{"\\ud800": 1}', "surrogate"),
        (b'["hunter2"]', "a list instead of an object"),
        (b'"hunter2"', "text instead of an object"),
        (b"null", "null instead of an object"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_a_bad_line_is_named_by_its_number_and_not_repeated(
    line: bytes, reason: str, compression: str, tmp_path: Path
) -> None:
    path = tmp_path / f"d.jsonl{compression}"
    path.write_bytes(pack(b'{"a": "x"}\r\n\n{"a": "y"}\n' + line + b"\n", compression))
    message = refused(ErrorCode.JOB_INPUT_CORRUPT, lambda: table_of(path))
    assert message.startswith(f"{path} line 4: ")
    assert reason in message
    assert "hunter2" not in message


def test_surrogate_pairs_and_what_looks_like_half_of_one_are_text(tmp_path: Path) -> None:
    data = b'{"a": "\\ud83d\\ude00"}\n{"a": "\\\\ud800"}\n'
    assert lines_of(tmp_path / "a.jsonl", data) == [{"a": "\N{GRINNING FACE}"}, {"a": "\\ud800"}]


@pytest.mark.parametrize("head", [b"\xff\xfe", b"\xfe\xff"])
def test_utf16_is_told_apart(head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(head + '{"a": 1}'.encode("utf-16-le"))
    assert "UTF-16" in refused(ErrorCode.JOB_INPUT_CORRUPT, lambda: survey(found(path)))


@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize("kept", [0, 1, 3, 10, 0.5, 0.99, -1])
def test_compressed_files_that_are_cut_short_are_named(compression: str, kept: float, tmp_path: Path) -> None:
    rows = [{"prompt": f"{number * 7919 % 1009} {number}"} for number in range(3000)]
    data = write_lines(tmp_path / f"a.jsonl{compression}", rows).read_bytes()
    path = tmp_path / f"cut.jsonl{compression}"
    path.write_bytes(data[: int(len(data) * kept)] if isinstance(kept, float) else data[:kept])
    assert str(path) in refused(ErrorCode.JOB_INPUT_CORRUPT, lambda: survey(found(path)))


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_compressed_files_that_are_damaged_are_named(compression: str, tmp_path: Path) -> None:
    data = bytearray(write_lines(tmp_path / f"a.jsonl{compression}", [{"prompt": "x" * 500}] * 500).read_bytes())
    data[len(data) // 2] ^= 0xFF
    path = tmp_path / f"bad.jsonl{compression}"
    path.write_bytes(data)
    with pytest.raises(SpecbatchError) as caught:
        table_of(path)
    assert caught.value.code is ErrorCode.JOB_INPUT_CORRUPT
    assert str(path) in caught.value.message


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_compression_is_told_by_the_bytes_and_several_streams_follow_each_other(
    compression: str, tmp_path: Path
) -> None:
    data = pack(b'{"a": 1}\n', compression) + pack(b'{"a": 2}\n{"a"', compression) + pack(b": 3}", compression)
    assert lines_of(tmp_path / f"a.jsonl{compression}", data) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert lines_of(tmp_path / "b.ndjson", data) == [{"a": 1}, {"a": 2}, {"a": 3}]
    path = tmp_path / f"c.jsonl{compression}"
    path.write_bytes(b'{"a": 1}\n')
    assert "its name says" in refused(ErrorCode.JOB_INPUT_CORRUPT, lambda: survey(found(path)))


def test_a_line_beyond_all_measure_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl_lines, "MAX_LINE_BYTES", 3 << 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "' + b"x" * (5 << 20) + b'"}\n')
    assert "line 2 has more than 3 MiB" in refused(ErrorCode.JOB_INPUT_LIMIT, lambda: survey(found(path)))


# ---- copies -----------------------------------------------------------


def test_a_copy_is_a_function_of_the_bytes_and_names_its_original(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{number}", "n": {"a": [number]}} for number in range(100)]
    path = write_lines(tmp_path / "a.jsonl.gz", rows)
    first = normalise(path, tmp_path / "one.parquet")
    (tmp_path / "moved").mkdir()
    other = path.rename(tmp_path / "moved" / "a.jsonl.gz")
    normalise(other, tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    source = survey(found(other))
    stored = list((first.metadata.metadata or {}).items())
    assert find_source(stored) == (source.size_bytes, source.sha256)
    assert first.schema_arrow.metadata is None, "what is in the schema would follow the rows into the parts"
    assert first.read().to_pylist() == rows


def test_rows_are_written_in_groups_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "_MIN_BLOCK_BYTES", 1000)
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "x" * 90, "n": number} for number in range(100)])
    parquet = normalise(path, tmp_path / "copy.parquet")
    groups = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
    assert max(groups) < 10 < len(groups)
    assert parquet.read().column("n").to_pylist() == list(range(100))


def test_a_file_that_changes_between_two_looks_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "a"}])
    source = survey(found(path))
    rules = make_rules([source], [None], PLAIN)
    write_lines(path, [{"prompt": "b"}])
    assert str(path) in refused(ErrorCode.JOB_INPUT_CHANGED, lambda: write_copy(source, rules, tmp_path / "copy"))
    assert str(path) in refused(ErrorCode.JOB_INPUT_CHANGED, lambda: observe(source))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """80 MB of lines, gzipped, in a process that may have 420 MB of data: a whole file in memory needs far more."""
    path = tmp_path / "big.jsonl.gz"
    line = json.dumps({"prompt": "word " * 40, "meta": {"tags": ["a", "b"], "n": 1}}).encode() + b"\n"
    path.write_bytes(pack(line * (80_000_000 // len(line)), ".gz"))
    limit = 420 << 20
    code = f"""
import resource
import pyarrow
resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}))
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from jsonl_files import normalise
print(normalise(Path({str(path)!r}), Path({str(tmp_path / "copy")!r})).metadata.num_rows)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 80_000_000 // len(line)


def test_the_copy_of_nested_parquet_stays_out_of_it(tmp_path: Path) -> None:
    """Nested columns of Parquet pass through a segment exactly, whatever JSONL would have made of them."""
    from specbatch.schemas.plan import Segment
    from specbatch.storage.inputs import discover, read_segment

    struct = pa.struct([("a", pa.int8()), ("b", pa.list_(pa.timestamp("us", "UTC")))])
    table = pa.table(
        {
            "prompt": ["x", "y"],
            "n": pa.array([{"a": 1, "b": [0, None]}, None], struct),
            "m": pa.array([[("k", 1.5)], []], pa.map_(pa.string(), pa.float32())),
            "d": pa.array(["u", None]).dictionary_encode(),
        }
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    (file,) = discover([str(path)])
    read = read_segment(Segment(file.path, file.size_bytes, file.footer_sha256, 0, 2, 0))
    assert read.schema.equals(pq.read_schema(path))
    assert read.cast(table.schema).equals(table)
