from __future__ import annotations

import dataclasses
import datetime
import decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import PART_FORMAT
from specbatch.schemas.rows import RESULT_COLUMNS, ResultForm, RowResult, result_columns
from specbatch.schemas.stats import PartStats, PhaseSeconds, SpecCounters, length_histogram
from specbatch.storage.parts import PartMeta, part_stats, read_part_meta, result_schema, write_part
from specbatch.storage.result_table import dictionary_columns

PLAN = "0123456789abcdef"

ODD_COLUMNS: dict[str, pa.Array] = {
    "nested": pa.array([[{"x": 1, "y": None}], None, []], pa.list_(pa.struct([("x", pa.int8()), ("y", pa.string())]))),
    "dictionary": pa.array(["u", None, "u"]).dictionary_encode(),
    "decimal": pa.array([decimal.Decimal("1.25"), None, decimal.Decimal("-3")], pa.decimal128(20, 2)),
    "timestamp": pa.array([datetime.datetime(2024, 3, 31, 1, 30), None, None], pa.timestamp("us", "Europe/Paris")),
    "nanoseconds": pa.array([1, 2, None], pa.timestamp("ns")),
    "binary": pa.array([b"\xff\x00", b"", None]),
    "large": pa.array(["a", None, "c"], pa.large_string()),
    "view": pa.array(["a", None, "c"], pa.string_view()),
    "nothing": pa.nulls(3),
    "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int32())),
    "half": pa.array([1.5, None, 2], pa.float16()),
    "duration": pa.array([1, None, 3], pa.duration("ms")),
    "vector": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
    "date": pa.array([0, None, 1], pa.date32()),
}


def ok_row(row_id: int, text: str = "hello", tokens: int = 5) -> RowResult:
    counters = SpecCounters(1, 1, 4, 3, (0, 0, 0, 1), (0, 0, 0, 0, 1))
    return RowResult(
        row_id,
        0,
        row_id + 100,
        "stop",
        3,
        text,
        tuple(range(tokens)),
        min_margin=0.25,
        num_near_ties=1,
        counters=counters,
    )


def bad_row(row_id: int) -> RowResult:
    return RowResult(row_id, 0, row_id + 100, "error", error_code="ROW_PROMPT_NULL", error_message="the prompt is null")


RESULTS = (ok_row(7), bad_row(8), ok_row(9, ""))


def meta_for(results: tuple[RowResult, ...], **changes: Any) -> PartMeta:
    stats = part_stats(results, PhaseSeconds(score=1.5, load=0.25))
    start = results[0].row_id if results else 0
    meta = PartMeta(PART_FORMAT, PLAN, 2, start, start + len(results), "token", stats)
    return dataclasses.replace(meta, **changes)


def write(path: Path, rows: pa.Table | None = None, **changes: Any) -> PartMeta:
    rows = rows if rows is not None else pa.table({"prompt": ["a", None, "c"]})
    return write_part(path, rows, RESULTS, meta_for(RESULTS, **changes))


def test_every_column_of_the_contract(tmp_path: Path) -> None:
    write(tmp_path / "part")
    table = pq.read_table(tmp_path / "part")
    assert tuple(table.schema.names) == ("prompt", *RESULT_COLUMNS)
    types = {name: str(table.schema.field(name).type) for name in RESULT_COLUMNS}
    assert types == {
        "row_id": "int64",
        "sample_index": "int32",
        "status": "string",
        "completion": "string",
        "completion_token_ids": "list<element: int32 not null>",
        "finish_reason": "string",
        "error_code": "string",
        "error_message": "string",
        "num_prompt_tokens": "int32",
        "num_completion_tokens": "int32",
        "row_seed": "int64",
        "min_margin": "float",
        "num_spec_steps": "int32",
        "num_plain_steps": "int32",
        "num_draft_tokens": "int32",
        "num_accepted_draft_tokens": "int32",
        "acceptance_histogram": "list<element: int32 not null>",
        "draft_length_histogram": "list<element: int32 not null>",
    }


def test_ok_rows_and_error_rows(tmp_path: Path) -> None:
    write(tmp_path / "part")
    ok, bad, empty = pq.read_table(tmp_path / "part").to_pylist()
    assert ok == {
        "prompt": "a",
        "row_id": 7,
        "sample_index": 0,
        "status": "ok",
        "completion": "hello",
        "completion_token_ids": [0, 1, 2, 3, 4],
        "finish_reason": "stop",
        "error_code": None,
        "error_message": None,
        "num_prompt_tokens": 3,
        "num_completion_tokens": 5,
        "row_seed": 107,
        "min_margin": 0.25,
        "num_spec_steps": 1,
        "num_plain_steps": 1,
        "num_draft_tokens": 4,
        "num_accepted_draft_tokens": 3,
        "acceptance_histogram": [0, 0, 0, 1],
        "draft_length_histogram": [0, 0, 0, 0, 1],
    }
    assert (bad["status"], bad["finish_reason"], bad["error_code"]) == ("error", "error", "ROW_PROMPT_NULL")
    assert (bad["completion"], bad["completion_token_ids"], bad["min_margin"]) == (None, None, None)
    assert [bad[name] for name in RESULT_COLUMNS if name.startswith("num_")] == [0] * 6
    assert bad["acceptance_histogram"] == bad["draft_length_histogram"] == []
    assert empty["completion"] == "", "an empty completion is not a missing one"


def test_lengths_by_their_binary_digits() -> None:
    assert length_histogram([]) == ()
    assert length_histogram([0]) == (1,)
    assert length_histogram([8, 1, 3, 2, 8, 15, 0, 16]) == (1, 1, 2, 0, 3, 1)


def test_odd_columns_pass_through_unchanged(tmp_path: Path) -> None:
    source = tmp_path / "source.parquet"
    pq.write_table(pa.table(ODD_COLUMNS), source)
    rows = pq.ParquetFile(source).read()
    write(tmp_path / "part", rows)
    back = pq.ParquetFile(tmp_path / "part").read()
    for name in ODD_COLUMNS:
        assert back.schema.field(name) == rows.schema.field(name), name
        assert back.column(name).to_pylist() == rows.column(name).to_pylist(), name


def test_dictionaries_of_several_row_groups_pass_through(tmp_path: Path) -> None:
    source = tmp_path / "source.parquet"
    values = pa.chunked_array([pa.array(["b"]).dictionary_encode(), pa.array(["a", "b"]).dictionary_encode()])
    pq.write_table(pa.table({"d": values}), source, row_group_size=1)
    rows = pa.Table.from_batches(list(pq.ParquetFile(source).iter_batches(1)))
    write(tmp_path / "part", rows)
    assert pq.read_table(tmp_path / "part").column("d").to_pylist() == ["b", "a", "b"]


def test_nullability_and_metadata_of_the_input_are_kept() -> None:
    given = pa.schema(
        [pa.field("prompt", pa.string(), nullable=False, metadata={"unit": "text"})],
        metadata={"pandas": "{}", "specbatch": "of another part"},
    )
    schema = result_schema(given)
    assert schema.field("prompt").equals(given.field("prompt"), check_metadata=True)
    assert schema.metadata == {b"pandas": b"{}"}


def test_text_that_is_not_utf8_passes_through(tmp_path: Path) -> None:
    broken = pa.array([b"\xff\xfe", b"ok", None], pa.binary()).view(pa.string())
    write(tmp_path / "part", pa.table({"prompt": broken}))
    back = pq.read_table(tmp_path / "part").column("prompt").cast(pa.binary())
    assert back.to_pylist() == [b"\xff\xfe", b"ok", None]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one", pa.table(ODD_COLUMNS))
    write(tmp_path / "two", pa.table(ODD_COLUMNS))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_footer_says_what_was_given(tmp_path: Path) -> None:
    meta = write(tmp_path / "part")
    assert read_part_meta(tmp_path / "part") == meta
    assert meta.stats == PartStats(
        num_rows=3,
        num_results=3,
        num_ok=2,
        num_prompt_tokens=6,
        num_completion_tokens=10,
        num_near_ties=2,
        errors_by_code=(("ROW_PROMPT_NULL", 1),),
        counters=SpecCounters(2, 2, 8, 6, (0, 0, 0, 2), (0, 0, 0, 0, 2)),
        prompt_lengths=(0, 0, 2),
        completion_lengths=(0, 0, 0, 2),
        seconds=PhaseSeconds(score=1.5, load=0.25),
    )
    stored = pq.ParquetFile(tmp_path / "part").metadata.metadata
    assert set(stored) == {b"ARROW:schema", b"specbatch"}


def test_a_clock_adds_the_encoding_time(tmp_path: Path) -> None:
    ticks = iter([10.0, 12.5])
    rows = pa.table({"prompt": ["a", "b", "c"]})
    meta = write_part(tmp_path / "part", rows, RESULTS, meta_for(RESULTS), clock=lambda: next(ticks))
    assert meta.stats.seconds == PhaseSeconds(score=1.5, load=0.25, write=2.5)
    assert read_part_meta(tmp_path / "part") == meta


def test_a_part_without_rows(tmp_path: Path) -> None:
    meta = meta_for(())
    write_part(tmp_path / "part", pa.table({"prompt": pa.array([], pa.string())}), (), meta)
    assert read_part_meta(tmp_path / "part") == meta


@pytest.mark.parametrize(
    "results",
    [
        (ok_row(7), ok_row(9), bad_row(8)),
        (ok_row(7), bad_row(8)),
        (ok_row(7), bad_row(8), bad_row(8)),
        (ok_row(7), bad_row(8), ok_row(9), ok_row(10)),
    ],
)
def test_other_rows_than_planned_are_a_fault_of_ours(tmp_path: Path, results: tuple[RowResult, ...]) -> None:
    rows = pa.table({"prompt": ["x"] * len(results)})
    with pytest.raises(AssertionError):
        write_part(tmp_path / "part", rows, results, meta_for(results, row_start=7, row_stop=10))


def test_duckdb_reads_a_part(tmp_path: Path) -> None:
    write(tmp_path / "part.parquet")
    query = f"select status, count(*), sum(num_completion_tokens) from '{tmp_path}/*.parquet' group by 1 order by 1"
    assert duckdb.sql(query).fetchall() == [("error", 1, 0), ("ok", 2, 10)]


def not_sound(path: Path) -> str:
    with pytest.raises(SpecbatchError) as caught:
        read_part_meta(path)
    assert caught.value.code is ErrorCode.JOB_INTEGRITY
    return caught.value.message


def test_what_is_no_part_is_not_sound(tmp_path: Path) -> None:
    path = tmp_path / "part"
    write(path)
    data = path.read_bytes()
    path.write_bytes(data[:-30])
    assert "cut short" in not_sound(path)
    path.write_bytes(b"")
    assert "empty" in not_sound(path)
    pq.write_table(pa.table({"a": [1]}), path)
    assert "does not say which shard" in not_sound(path)
    path.write_bytes(data.replace(b'"shard":2', b'"shard":x'))
    assert "footer is damaged" in not_sound(path)
    path.write_bytes(data.replace(b'"row_stop":10', b'"row_stop":11'))
    assert "holds 3 rows" in not_sound(path)


def test_a_part_of_another_version_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "part"
    write(path)
    path.write_bytes(path.read_bytes().replace(b"specbatch/part/1", b"specbatch/part/9"))
    with pytest.raises(SpecbatchError, match="use the version of specbatch that wrote it") as caught:
        read_part_meta(path)
    assert caught.value.code is ErrorCode.JOB_FORMAT


def test_every_flipped_footer_byte_is_survived(tmp_path: Path) -> None:
    path = tmp_path / "part"
    write(path)
    data = path.read_bytes()
    outcomes: set[object] = set()
    for at in range(len(data) - int.from_bytes(data[-8:-4], "little") - 8, len(data), 11):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1 :])
        try:
            outcomes.add(type(read_part_meta(path)))
        except SpecbatchError as error:
            outcomes.add(error.code)
    assert outcomes <= {PartMeta, ErrorCode.JOB_INTEGRITY, ErrorCode.JOB_FORMAT}


def samples_of(*rows: RowResult, num_samples: int = 3) -> tuple[RowResult, ...]:
    return tuple(
        dataclasses.replace(row, sample_index=sample, row_seed=row.row_seed + sample)
        for row in rows
        for sample in range(num_samples)
    )


def sample_meta(results: tuple[RowResult, ...]) -> PartMeta:
    return meta_for(results, row_start=7, row_stop=10)


def test_every_sample_is_a_row_beside_its_input(tmp_path: Path) -> None:
    results = samples_of(*RESULTS)
    rows = pa.table(ODD_COLUMNS)
    meta = write_part(tmp_path / "part", rows, results, sample_meta(results), num_samples=3)
    assert (meta.stats.num_rows, meta.stats.num_results, meta.stats.num_ok) == (3, 9, 6)
    assert read_part_meta(tmp_path / "part") == meta
    back = pq.ParquetFile(tmp_path / "part").read()
    assert back.column("row_id").to_pylist() == [7, 7, 7, 8, 8, 8, 9, 9, 9]
    assert back.column("sample_index").to_pylist() == [0, 1, 2] * 3
    for name in ODD_COLUMNS:
        values = [value for value in rows.column(name).to_pylist() for _ in range(3)]
        assert back.schema.field(name) == rows.schema.field(name), name
        assert back.column(name).to_pylist() == values, name


def test_samples_that_are_not_the_planned_ones_are_a_fault_of_ours(tmp_path: Path) -> None:
    rows = pa.table({"prompt": ["a", "b", "c"]})
    results = samples_of(*RESULTS)
    for wrong in (results[:-1], (results[1], results[0], *results[2:]), RESULTS):
        with pytest.raises(AssertionError):
            write_part(tmp_path / "part", rows, wrong, sample_meta(wrong), num_samples=3)


def test_a_part_that_lacks_samples_is_not_sound(tmp_path: Path) -> None:
    results = samples_of(*RESULTS)
    meta = sample_meta(results)
    write_part(tmp_path / "part", pa.table({"prompt": ["a", "b", "c"]}), results, meta, num_samples=3)
    data = (tmp_path / "part").read_bytes()
    (tmp_path / "part").write_bytes(data.replace(b'"num_results":9', b'"num_results":8'))
    assert "holds 9 rows" in not_sound(tmp_path / "part")
    (tmp_path / "part").write_bytes(data.replace(b'"num_rows":3', b'"num_rows":9'))
    assert "holds 9 rows" in not_sound(tmp_path / "part")


def test_logprobs_are_a_column_where_they_were_asked_for(tmp_path: Path) -> None:
    results = tuple(
        row if row.error_code else dataclasses.replace(row, logprobs=(-0.5, -1.25, -2.0, 0.0, float("-inf")))
        for row in RESULTS
    )
    rows = pa.table({"prompt": ["a", None, "c"]})
    meta = write_part(tmp_path / "part", rows, results, meta_for(results), form=ResultForm(with_logprobs=True))
    assert read_part_meta(tmp_path / "part") == meta
    table = pq.read_table(tmp_path / "part")
    assert tuple(table.schema.names) == ("prompt", *RESULT_COLUMNS, "logprobs")
    assert str(table.schema.field("logprobs").type) == "list<element: float not null>"
    given = [-0.5, -1.25, -2.0, 0.0, float("-inf")]
    assert table.column("logprobs").to_pylist() == [given, None, given]


def test_a_prefix_renames_every_column_that_is_added(tmp_path: Path) -> None:
    """The input may then have columns with the plain names, and a nested field of the prefixed one."""
    rows = pa.table(
        {
            "prompt": ["a", None, "c"],
            "row_id": pa.array([100, 200, 300]),
            "s": pa.array([{"x.row_id": 1}] * 3, pa.struct([("x.row_id", pa.int64())])),
        }
    )
    form = ResultForm(prefix="x.", with_logprobs=True)
    meta = write_part(tmp_path / "part", rows, RESULTS, meta_for(RESULTS), form=form)
    assert meta.prefix == "x."
    assert read_part_meta(tmp_path / "part") == meta
    table = pq.ParquetFile(tmp_path / "part").read()
    assert tuple(table.schema.names) == ("prompt", "row_id", "s", *result_columns("x.", with_logprobs=True))
    assert table.column("x.row_id").to_pylist() == [7, 8, 9]
    assert table.column("row_id").to_pylist() == [100, 200, 300]


@pytest.mark.parametrize("prefix", ["", "x_"])
def test_results_that_hardly_repeat_have_no_dictionary(tmp_path: Path, prefix: str) -> None:
    """All of the input's columns have one, nested ones too, and those whose plain names are those of results."""
    nested = pa.array(
        [[{"logprobs": [0.5], "row_id": 1}], None, []],
        pa.list_(pa.struct([("logprobs", pa.list_(pa.float32())), ("row_id", pa.int64())])),
    )
    columns = {"prompt": ["a", None, "c"], "nested": nested, "map": ODD_COLUMNS["map"]}
    rows = pa.table(columns | ({"completion": ["p", "q", "q"], "logprobs": nested} if prefix else {}))
    results = tuple(row if row.error_code else dataclasses.replace(row, logprobs=(-0.5,) * 5) for row in RESULTS)
    form = ResultForm(prefix=prefix, with_logprobs=True)
    write_part(tmp_path / "part", rows, results, meta_for(results), form=form)
    group = pq.read_metadata(tmp_path / "part").row_group(0)
    chunks = [group.column(index) for index in range(group.num_columns)]
    unique = {"row_id", "completion", "row_seed", "min_margin", "logprobs.list.element"}
    assert {chunk.path_in_schema for chunk in chunks if "RLE_DICTIONARY" not in chunk.encodings} == {
        prefix + path for path in unique
    }
    schema = pq.read_schema(tmp_path / "part")
    assert dictionary_columns(schema, prefix) is dictionary_columns(schema, prefix), "nobody may change what all get"
    assert isinstance(dictionary_columns(schema, prefix), tuple)


def test_a_part_whose_footer_names_another_prefix_is_not_sound(tmp_path: Path) -> None:
    write_part(
        tmp_path / "part", pa.table({"prompt": ["a", None, "c"]}), RESULTS, meta_for(RESULTS), form=ResultForm("x_")
    )
    data = (tmp_path / "part").read_bytes()
    (tmp_path / "part").write_bytes(data.replace(b'"prefix":"x_"', b'"prefix":"y_"'))
    assert not_sound(tmp_path / "part")


def test_without_a_prefix_the_footer_says_nothing_of_it(tmp_path: Path) -> None:
    write(tmp_path / "part")
    assert b"prefix" not in pq.read_metadata(tmp_path / "part").metadata[b"specbatch"]


@pytest.mark.parametrize(
    ("compression", "named"),
    [("zstd", "ZSTD"), ("snappy", "SNAPPY"), ("gzip", "GZIP"), ("lz4", "LZ4"), ("none", "UNCOMPRESSED")],
)
def test_compression(tmp_path: Path, compression: Any, named: str) -> None:
    form = ResultForm(compression=compression)
    meta = write_part(
        tmp_path / "part.parquet", pa.table({"prompt": ["a", None, "c"]}), RESULTS, meta_for(RESULTS), form=form
    )
    group = pq.read_metadata(tmp_path / "part.parquet").row_group(0)
    assert {group.column(index).compression for index in range(group.num_columns)} == {named}
    assert read_part_meta(tmp_path / "part.parquet") == meta
    assert duckdb.sql(f"select count(*) from '{tmp_path}/part.parquet'").fetchall() == [(3,)]


@pytest.mark.parametrize(("asked", "found"), [(2, [2, 1]), (1, [1, 1, 1]), (100, [3])])
def test_rows_of_a_row_group(tmp_path: Path, asked: int, found: list[int]) -> None:
    form = ResultForm(row_group_rows=asked)
    meta = write_part(tmp_path / "part", pa.table({"prompt": ["a", None, "c"]}), RESULTS, meta_for(RESULTS), form=form)
    stored = pq.read_metadata(tmp_path / "part")
    assert [stored.row_group(index).num_rows for index in range(stored.num_row_groups)] == found
    assert read_part_meta(tmp_path / "part") == meta
