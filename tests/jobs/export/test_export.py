"""``specbatch export``: every form, from every kind of output, whole or not at all."""

from __future__ import annotations

import decimal
import gzip
import io
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import typer
from finished_output import Output, build, rewrite_part
from s3_server import S3Server
from stored_output import begin, finish

from specbatch import load
from specbatch.jobs.cli import export as cli_export
from specbatch.jobs.export import export
from specbatch.jobs.export.export import Meter, Selection, Source, check_place
from specbatch.jobs.export.lines import export_jsonl, export_openai
from specbatch.jobs.export.parquet import NULL_PARTITION, export_parquet
from specbatch.jobs.output.results import read_results
from specbatch.jobs.spec.settings import Layer
from specbatch.jobs.upkeep.amendments import prepare_retry
from specbatch.jobs.upkeep.resume import StoredOutput, open_output
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.rows import BOOKKEEPING_COLUMNS, RESULT_COLUMNS, ResultForm
from specbatch.storage.store import open_store

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "0.1"

app = typer.Typer()
cli_export.register(app)
app.command("other")(lambda: None)


def run(*arguments: str) -> None:
    app(args=["export", *arguments], standalone_mode=False)


def refused(code: ErrorCode, *arguments: str) -> str:
    with pytest.raises(SpecbatchError) as caught:
        run(*arguments)
    assert caught.value.code is code
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.fixture
def out(tmp_path: Path) -> Output:
    return build(tmp_path / "out")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def test_one_merged_file(out: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "all.parquet"
    run(str(out.root), "--parquet", str(place))
    expected = load(out.root)
    assert pq.read_table(place).equals(expected)
    assert expected.column("row_id").to_pylist() == list(range(20))
    assert capsys.readouterr().out == f"wrote {place}: 20 rows, {place.stat().st_size / 1000:.1f} kB\n"
    assert b"specbatch" not in (pq.read_metadata(place).metadata or {})
    assert duckdb.sql(f"select count(*), sum(num_completion_tokens) from '{place}'").fetchall() == [
        (20, out.manifest.commit.tokens.completion)
    ]


ODD_COLUMNS: dict[str, pa.Array] = {
    "nested": pa.array([[{"x": 1}], None, []], pa.list_(pa.struct([("x", pa.int8())]))),
    "dictionary": pa.array(["u", None, "u"]).dictionary_encode(),
    "decimal": pa.array([decimal.Decimal("1.25"), None, decimal.Decimal("-3")], pa.decimal128(20, 2)),
    "timestamp": pa.array([0, None, 1], pa.timestamp("ns", "Europe/Paris")),
    "binary": pa.array([b"\xff\x00", b"", None]),
    "view": pa.array(["a", None, "c"], pa.string_view()),
    "nothing": pa.nulls(3),
    "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int32())),
    "half": pa.array([1.5, None, 2], pa.float16()),
    "vector": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
    "a.dot": pa.array([1, 2, 3]),
}


def test_every_type_comes_through(tmp_path: Path) -> None:
    table = pa.table(ODD_COLUMNS)
    pq.write_table(table, tmp_path / "input.parquet")
    rows = pa.concat_tables([pq.ParquetFile(tmp_path / "input.parquet").read()] * 4)
    out = build(tmp_path / "out", num_rows=12, table=rows)
    run(str(out.root), "--parquet", str(tmp_path / "all.parquet"), "--only", "ok")
    found = pq.ParquetFile(tmp_path / "all.parquet").read()
    expected = pa.concat_tables([rows.slice(0, 3), rows.slice(4, 8)])
    for name in ODD_COLUMNS:
        assert found.schema.field(name) == rows.schema.field(name)
        assert found.column(name).to_pylist() == expected.column(name).to_pylist(), name
    run(str(out.root), "--jsonl", str(tmp_path / "all.jsonl"))
    assert [row["decimal"] for row in lines(tmp_path / "all.jsonl")] == ["1.25", None, "-3.00"] * 4


def test_files_of_a_size(tmp_path: Path) -> None:
    texts = [random.Random(row).randbytes(5000).hex() for row in range(400)]
    out = build(tmp_path / "out", num_rows=400, shard_rows=150, table=pa.table({"prompt": texts}))
    for most in (1 << 20, 3 << 20):
        place = tmp_path / f"files-{most}"
        run(str(out.root), "--parquet", str(place), "--max-file-bytes", str(most))
        files = sorted(place.glob("*.parquet"))
        assert [path.name for path in files] == [f"part-{number:05d}.parquet" for number in range(len(files))]
        assert len(files) > 1
        sizes = [path.stat().st_size for path in files]
        assert max(sizes) <= most
        assert min(sizes[:-1]) > most / 4
        table = pa.concat_tables([pq.read_table(path) for path in files])
        assert table.column("row_id").to_pylist() == list(range(400))
        assert (place / "_SUCCESS").exists()


@pytest.mark.parametrize("only", ["ok", "error", "all"])
def test_a_folder_for_each_value(tmp_path: Path, only: str) -> None:
    languages = pa.array(["de", None, "a/b=c", "", "de", "%"] * 4).dictionary_encode()
    flags = pa.array([True, False, None] * 8)
    rows = pa.table({"prompt": ["x"] * 24, "language": languages, "flag": flags})
    out = build(tmp_path / "out", num_rows=24, table=rows)
    place = tmp_path / "table"
    arguments = ["--partition-by", "language", "--partition-by", "flag", "--only", only]
    run(str(out.root), "--parquet", str(place), *arguments)
    found = ds.dataset(
        place,
        partitioning=ds.partitioning(pa.schema([("language", pa.string()), ("flag", pa.string())]), flavor="hive"),
    ).to_table()
    expected = load(out.root)
    if only != "all":
        expected = expected.filter(pa.compute.equal(expected.column("status"), only))
    pairs = dict(
        zip(found.column("row_id").to_pylist(), found.column("language").to_pylist(), strict=True),
    )
    wanted = zip(expected.column("row_id").to_pylist(), expected.column("language").to_pylist(), strict=True)
    assert pairs == {row_id: language or None for row_id, language in wanted}
    file = next(iter(place.rglob("*.parquet")))
    assert not {"language", "flag"} & set(pq.ParquetFile(file).schema_arrow.names)
    if only == "all":
        names = {path.parent.parent.name for path in place.rglob("*.parquet")}
        assert names == {"language=de", f"language={NULL_PARTITION}", "language=a%2Fb%3Dc", "language=%25"}
        counted = duckdb.sql(
            f"select language, count(*) from read_parquet('{place}/*/*/*.parquet', hive_partitioning=true) group by 1"
        ).fetchall()
        assert dict(counted)["a/b=c"] == 4


def test_partitions_in_files_of_a_size(tmp_path: Path) -> None:
    texts = [random.Random(row).randbytes(5000).hex() for row in range(400)]
    rows = pa.table({"prompt": texts, "half": [row % 2 for row in range(400)]})
    out = build(tmp_path / "out", num_rows=400, shard_rows=50, table=rows)
    place = tmp_path / "table"
    run(str(out.root), "--parquet", str(place), "--partition-by", "half", "--max-file-bytes", str(1 << 20))
    files = list((place / "half=1").glob("*.parquet"))
    assert len(files) > 1
    assert sum(pq.ParquetFile(path).metadata.num_rows for path in files) == 200


def test_partitions_that_are_refused(out: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = str(tmp_path / "table")
    assert "did you mean" in refused(
        ErrorCode.JOB_COLUMN_MISSING, str(out.root), "--parquet", place, "--partition-by", "tagg"
    )
    refused(ErrorCode.JOB_COLUMN_TYPE, str(out.root), "--parquet", place, "--partition-by", "min_margin")
    refused(ErrorCode.JOB_CONFIG, str(out.root), "--parquet", place, "--partition-by", "tag", "--partition-by", "tag")
    refused(ErrorCode.JOB_CONFIG, str(out.root), "--parquet", place, "--partition-by", "tag", "--columns", "tag")
    monkeypatch.setattr("specbatch.jobs.export.parquet.MAX_PARTITIONS", 10)
    message = refused(ErrorCode.JOB_CONFIG, str(out.root), "--parquet", place, "--partition-by", "row_id")
    assert "more than 10 folders" in message
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_columns_of_partitions_are_checked_though_no_row_is_chosen(tmp_path: Path) -> None:
    out = build(tmp_path / "out", errors=frozenset())
    arguments = [str(out.root), "--parquet", str(tmp_path / "table"), "--only", "error", "--partition-by"]
    refused(ErrorCode.JOB_COLUMN_MISSING, *arguments, "nothing")
    run(*arguments, "tag")
    assert [path.name for path in (tmp_path / "table").iterdir()] == ["_SUCCESS"]


def test_a_job_without_rows(tmp_path: Path) -> None:
    """What ``--allow-empty`` makes of an empty dataset: no part, so that nobody knows the dataset's columns."""
    asked: dict[str, Any] = {"output": {"prefix": "gen_"}, "num_samples": 2, "logprobs": True}
    out = build(tmp_path / "out", num_rows=0, form=ResultForm("gen_", with_logprobs=True), **asked)
    full = build(tmp_path / "full", form=ResultForm("gen_", with_logprobs=True), **asked)
    expected = pa.schema([field for field in load(full.root).schema if field.name.startswith("gen_")])
    assert "gen_logprobs" in expected.names
    assert load(out.root).equals(expected.empty_table())
    for number, form in enumerate((["--parquet"], ["--jsonl"], ["--openai"], ["--partition-by", "x", "--parquet"])):
        run(str(out.root), *form, str(tmp_path / str(number)))
    assert pq.read_table(tmp_path / "0").equals(expected.empty_table())
    run(str(out.root), "--parquet", str(tmp_path / "some"), "--columns", "prompt", "--columns", "gen_completion")
    chosen = pa.schema([("prompt", pa.null()), ("gen_completion", pa.string())])
    assert pq.read_schema(tmp_path / "some").equals(chosen), "a night without rows is exported like any other"
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes() == b""


def test_the_form_of_the_job_is_kept(tmp_path: Path) -> None:
    output = {"compression": "gzip", "row_group_rows": 7}
    out = build(tmp_path / "out", form=ResultForm(compression="gzip", row_group_rows=7), output=output)
    run(str(out.root), "--parquet", str(tmp_path / "all.parquet"))
    stored = pq.read_metadata(tmp_path / "all.parquet")
    assert stored.row_group(0).column(0).compression == "GZIP"
    assert [stored.row_group(index).num_rows for index in range(stored.num_row_groups)] == [7, 7, 6]


# ---- lines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_json_lines(out: Output, tmp_path: Path, ending: str) -> None:
    place = tmp_path / f"all.jsonl{ending}"
    run(str(out.root), "--jsonl", str(place))
    data = place.read_bytes()
    if ending == ".gz":
        data = gzip.decompress(data)
    elif ending == ".zst":
        data = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
    found = [json.loads(line) for line in data.splitlines()]
    assert found == load(out.root).to_pylist()
    again = tmp_path / f"again.jsonl{ending}"
    run(str(out.root), "--jsonl", str(again))
    assert again.read_bytes() == place.read_bytes()


def test_columns_and_rows_are_chosen(out: Output, tmp_path: Path) -> None:
    place = tmp_path / "some.jsonl"
    run(str(out.root), "--jsonl", str(place), "--columns", "completion", "--columns", "tag", "--only", "error")
    assert lines(place) == [{"completion": None, "tag": 0}]
    run(str(out.root), "--jsonl", str(place), "--drop-bookkeeping", "--overwrite")
    kept = [name for name in RESULT_COLUMNS if name not in BOOKKEEPING_COLUMNS]
    assert list(lines(place)[0]) == ["prompt", "tag", *kept]
    assert "row_seed" in kept
    assert "num_completion_tokens" in kept
    message = refused(ErrorCode.JOB_COLUMN_MISSING, str(out.root), "--jsonl", str(place), "--columns", "completions")
    assert "did you mean 'completion'" in message
    refused(ErrorCode.JOB_CONFIG, str(out.root), "--jsonl", str(place), "--columns", "tag", "--columns", "tag")


def test_openai_lines(out: Output, tmp_path: Path) -> None:
    place = tmp_path / "out.jsonl"
    run(str(out.root), "--openai", str(place))
    found = lines(place)
    rows = load(out.root).to_pylist()
    assert len(found) == 20
    for line, row in zip(found, rows, strict=True):
        assert list(line) == ["id", "custom_id", "response", "error"]
        assert line["custom_id"] == f"row-{row['row_id']}"
        if row["status"] == "error":
            assert line["response"] is None
            assert line["error"] == {"code": "ROW_PROMPT_NULL", "message": "the prompt is null"}
            continue
        assert line["error"] is None
        assert line["response"]["status_code"] == 200
        assert line["response"]["request_id"]
        body = line["response"]["body"]
        assert (body["object"], body["model"]) == ("text_completion", "code-pair/target")
        assert body["choices"] == [
            {"index": 0, "text": row["completion"], "logprobs": None, "finish_reason": row["finish_reason"]}
        ]
        total = row["num_prompt_tokens"] + row["num_completion_tokens"]
        assert body["usage"] == {
            "prompt_tokens": row["num_prompt_tokens"],
            "completion_tokens": row["num_completion_tokens"],
            "total_tokens": total,
        }
    assert len({line["id"] for line in found}) == 20


def test_openai_errors_in_a_file_of_their_own(out: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    run(str(out.root), "--openai", str(place), "--errors", str(errors))
    assert [line["custom_id"] for line in lines(errors)] == ["row-3"]
    assert len(lines(place)) == 19
    assert all(line["error"] is None for line in lines(place))
    assert f"wrote {place} and {errors}: 20 rows" in capsys.readouterr().out


def test_openai_samples_are_choices_of_one_line(tmp_path: Path) -> None:
    output = begin(tmp_path, num_samples=3, id_column="tag", rename=["tag=key"])
    finish(output, {(4, 1): "ROW_MEMORY", **{(5, sample): "ROW_POISON" for sample in range(3)}})
    place, errors = tmp_path / "lines.jsonl", tmp_path / "errors.jsonl"
    run(output.uri, "--openai", str(place))
    found = lines(place)
    assert len(found) == 20
    assert [choice["index"] for choice in found[0]["response"]["body"]["choices"]] == [0, 1, 2]
    rows = [row for row in load(output.uri).to_pylist() if row["row_id"] == 0]
    usage = found[0]["response"]["body"]["usage"]
    assert usage["completion_tokens"] == sum(row["num_completion_tokens"] for row in rows)
    assert usage["prompt_tokens"] == rows[0]["num_prompt_tokens"]
    assert [choice["index"] for choice in found[4]["response"]["body"]["choices"]] == [0, 2]
    assert found[4]["error"]["code"] == "ROW_MEMORY"
    assert found[4]["error"]["message"].startswith("1 of 3 samples failed, the first is sample 1: ")
    assert found[5]["response"] is None
    assert [line["custom_id"] for line in found] == [str(number) for number in range(20)]
    run(output.uri, "--openai", str(place), "--errors", str(errors), "--overwrite")
    assert [line["custom_id"] for line in lines(errors)] == ["4", "5"]
    assert len(lines(place)) == 19


def test_chats_are_answered_as_chats(tmp_path: Path) -> None:
    """Whether a job's prompts were chats stands in its identity; nothing else of it matters here."""
    out = build(tmp_path / "out")
    source = Source(str(out.root), Selection())
    source.fields["prompt"] = {"column": "prompt", "messages_column": "messages"}
    export_openai(source, str(tmp_path / "out.jsonl"))
    body = lines(tmp_path / "out.jsonl")[0]["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "text 0"}


# ---- amendments, prefix, older versions ------------------------------------------------------------------------------


def amend(parent: StoredOutput, failed: dict[tuple[int, int], str] | None = None) -> None:
    found = prepare_retry(parent.uri, Layer({}, {}))
    assert found is not None
    finish(open_output(found.prepared.output), failed)


@pytest.mark.parametrize("prefix", ["", "gen_"])
@pytest.mark.parametrize("num_samples", [1, 2])
def test_amendments_are_applied_in_their_order(tmp_path: Path, prefix: str, num_samples: int) -> None:
    parent = begin(tmp_path, num_samples=num_samples, output_prefix=prefix)
    failed = {(3, 0): "ROW_MEMORY", (4, 0): "ROW_MEMORY", (11, 0): "ROW_POISON", (19, num_samples - 1): "ROW_MEMORY"}
    finish(parent, failed)
    amend(parent, {(4, 0): "ROW_NUMERIC", (11, 0): "ROW_MEMORY"})
    amend(parent, {(11, 0): "ROW_MEMORY"})
    table = load(parent.uri)
    pairs = list(
        zip(table.column(f"{prefix}row_id").to_pylist(), table.column(f"{prefix}sample_index").to_pylist(), strict=True)
    )
    assert pairs == [(row, sample) for row in range(20) for sample in range(num_samples)]
    codes = dict(zip(pairs, table.column(f"{prefix}error_code").to_pylist(), strict=True))
    assert {pair: code for pair, code in codes.items() if code} == {(11, 0): "ROW_MEMORY"}
    run(parent.uri, "--parquet", str(tmp_path / "all.parquet"))
    assert pq.read_table(tmp_path / "all.parquet").equals(table)
    run(parent.uri, "--openai", str(tmp_path / "all.jsonl"))
    assert sum(line["error"] is not None for line in lines(tmp_path / "all.jsonl")) == 1


def test_only_some_columns_are_loaded(tmp_path: Path) -> None:
    parent = begin(tmp_path, output_prefix="gen_")
    finish(parent, {(3, 0): "ROW_MEMORY"})
    amend(parent)
    table = load(parent.uri, columns=["gen_completion", "tag"])
    assert table.schema.names == ["gen_completion", "tag"]
    assert table.equals(load(parent.uri).select(["gen_completion", "tag"]))
    with pytest.raises(SpecbatchError, match="gen_completion"):
        load(parent.uri, columns=["completion"])


def test_an_output_of_an_older_version(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "out")
    expected = load(tmp_path / "out")
    run(str(tmp_path / "out"), "--parquet", str(tmp_path / "all.parquet"))
    assert pq.read_table(tmp_path / "all.parquet").equals(expected)
    run(str(tmp_path / "out"), "--openai", str(tmp_path / "all.jsonl"))
    assert len(lines(tmp_path / "all.jsonl")) == len(set(expected.column("row_id").to_pylist()))
    run(str(tmp_path / "out"), "--card", str(tmp_path / "README.md"))
    assert (tmp_path / "README.md").read_text().startswith("---\n")


def test_parts_are_read_in_small_pieces(out: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbatch.jobs.output.results._BATCH_ROWS", 2)
    source = Source(str(out.root), Selection())
    assert [table.num_rows for table in source.tables()] == [2] * 10
    assert read_results(source.store, source.manifest).num_rows == 20


# ---- S3 --------------------------------------------------------------------------------------------------------------


def test_from_and_to_s3(out: Output, tmp_path: Path, s3_server: S3Server) -> None:
    bucket = s3_server.new_bucket()
    for path in out.root.rglob("*"):
        if path.is_file():
            s3_server.put(bucket, f"job/{path.relative_to(out.root).as_posix()}", path.read_bytes())
    uri, expected = f"s3://{bucket}/job", load(out.root)
    run(uri, "--parquet", f"s3://{bucket}/all.parquet")
    store = open_store(f"s3://{bucket}")
    assert pq.read_table(io.BytesIO(store.read("all.parquet"))).equals(expected)
    run(uri, "--parquet", f"s3://{bucket}/table", "--partition-by", "tag")
    keys = store.list("table")
    assert keys == ["table/_SUCCESS", *(f"table/tag={tag}/part-00000.parquet" for tag in range(3))]
    assert sum(pq.read_table(io.BytesIO(store.read(key))).num_rows for key in keys[1:]) == 20
    run(uri, "--jsonl", str(tmp_path / "all.jsonl"))
    assert lines(tmp_path / "all.jsonl") == expected.to_pylist()
    run(uri, "--openai", f"s3://{bucket}/lines.jsonl.gz")
    assert len(gzip.decompress(store.read("lines.jsonl.gz")).splitlines()) == 20
    assert "lie in each other" in refused(ErrorCode.JOB_URI_OVERLAP, uri, "--jsonl", f"s3://{bucket}/job/x.jsonl")


# ---- what is refused, and what is left behind ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), ErrorCode.JOB_CONFIG),
        (("--jsonl", "NEW", "--parquet", "NEW2"), ErrorCode.JOB_CONFIG),
        (("--jsonl", "NEW", "--errors", "NEW2"), ErrorCode.JOB_CONFIG),
        (("--jsonl", "NEW", "--partition-by", "tag"), ErrorCode.JOB_CONFIG),
        (("--openai", "NEW", "--max-file-bytes", "5000000"), ErrorCode.JOB_CONFIG),
        (("--openai", "NEW", "--columns", "tag"), ErrorCode.JOB_CONFIG),
        (("--openai", "NEW", "--errors", "NEW"), ErrorCode.JOB_CONFIG),
        (("--card", "NEW", "--only", "ok"), ErrorCode.JOB_CONFIG),
        (("--parquet", "NEW", "--license", "mit"), ErrorCode.JOB_CONFIG),
        (("--jsonl", "OUT/x.jsonl"), ErrorCode.JOB_URI_OVERLAP),
        (("--jsonl", "OUT"), ErrorCode.JOB_URI_OVERLAP),
        (("--parquet", "TMP", "--max-file-bytes", "5000000"), ErrorCode.JOB_URI_OVERLAP),
        (("--jsonl", "gs://bucket/x"), ErrorCode.JOB_URI_INVALID),
    ],
)
def test_bad_options(out: Output, tmp_path: Path, arguments: tuple[str, ...], code: ErrorCode) -> None:
    places = {"NEW": str(tmp_path / "new"), "NEW2": str(tmp_path / "new2"), "TMP": str(tmp_path)}
    given = [places.get(text, text.replace("OUT", str(out.root))) for text in arguments]
    refused(code, str(out.root), *given)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_job_that_is_not_finished(tmp_path: Path) -> None:
    out = build(tmp_path / "out", num_parts=2)
    refused(ErrorCode.JOB_INCOMPLETE, str(out.root), "--jsonl", str(tmp_path / "new"))
    refused(ErrorCode.JOB_OUTPUT_MISSING, str(tmp_path / "nothing"), "--jsonl", str(tmp_path / "new"))


def test_a_damaged_part_leaves_no_export(out: Output, tmp_path: Path) -> None:
    data = bytearray(out.part_path(2).read_bytes())
    data[len(data) // 3] ^= 1
    out.part_path(2).write_bytes(data)
    for form in ("--jsonl", "--parquet", "--openai"):
        refused(ErrorCode.JOB_INTEGRITY, str(out.root), form, str(tmp_path / "new"))
    refused(ErrorCode.JOB_INTEGRITY, str(out.root), "--parquet", str(tmp_path / "new"), "--partition-by", "tag")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_is_overwritten_unless_asked(out: Output, tmp_path: Path) -> None:
    place = tmp_path / "all.jsonl"
    place.write_text("precious")
    assert "--overwrite" in refused(ErrorCode.JOB_PREFIX_TAKEN, str(out.root), "--jsonl", str(place))
    assert place.read_text() == "precious"
    run(str(out.root), "--jsonl", str(place), "--overwrite")
    assert len(lines(place)) == 20


KILLED = """
import sys, time
from specbatch.jobs.export import export
from specbatch.jobs.export import lines as export_lines
from specbatch.jobs.export import parquet as export_parquet
real = export.Source.tables
def slow(self, extra=()):
    for table in real(self, extra):
        yield table
        print("some", flush=True)
        time.sleep(60)
export.Source.tables = slow
source = export.Source(sys.argv[1], export.Selection())
if sys.argv[2] == "jsonl":
    export_lines.export_jsonl(source, sys.argv[3])
else:
    export_parquet.export_parquet(source, sys.argv[3], partition_by=("tag",))
"""


@pytest.mark.parametrize("form", ["jsonl", "partitions"])
def test_a_killed_export_leaves_nothing_that_looks_whole(out: Output, tmp_path: Path, form: str) -> None:
    place = tmp_path / "new"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out.root), form, str(place)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "some\n"
    process.kill()
    process.communicate()
    assert not place.exists()
    assert all(path.name.startswith(".new.") for path in tmp_path.iterdir() if path.name != "out")
    if form == "jsonl":
        run(str(out.root), "--jsonl", str(place))
    else:
        run(str(out.root), "--parquet", str(place), "--partition-by", "tag")
    assert place.exists()


def test_export_needs_neither_torch_nor_ray(out: Output, tmp_path: Path) -> None:
    code = f"""
import sys, typer
from specbatch.jobs.cli import export as cli_export
app = typer.Typer()
cli_export.register(app)
app.command("other")(lambda: None)
heavy = {{"torch", "transformers", "pyarrow", "ray", "boto3", "botocore"}}
assert not heavy & set(sys.modules), sorted(heavy & set(sys.modules))
for form in (["--parquet", "x", "--partition-by", "tag"], ["--openai", "y"], ["--card", "z"]):
    app(args=["export", {str(out.root)!r}, *form], standalone_mode=False)
print(sorted((heavy - {{"pyarrow"}}) & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


def test_a_long_export_says_how_far_it_is(out: Output) -> None:
    now = [0.0]
    said: list[str] = []
    meter = Meter(1000, said.append, lambda: now[0])
    for second in range(1, 31):
        now[0] = float(second)
        meter.add(10)
    assert said == [
        "exported 50 of 1,000 rows (5.0 %)",
        "exported 150 of 1,000 rows (15.0 %)",
        "exported 250 of 1,000 rows (25.0 %)",
    ]


def test_json_of_what_was_written(out: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(str(out.root), "--jsonl", str(tmp_path / "new"), "--format", "json")
    assert json.loads(capsys.readouterr().out) == {
        "place": str(tmp_path / "new"),
        "num_rows": 20,
        "num_files": 1,
        "num_bytes": (tmp_path / "new").stat().st_size,
        "others": [],
    }


def test_places_that_share_the_beginning_of_a_name_are_apart() -> None:
    check_place("/a/out.jsonl", "/a/out")
    check_place("s3://b/out.jsonl", "s3://b/out")
    check_place("/a/out", "s3://b/out")
    with pytest.raises(SpecbatchError):
        check_place("s3://b/out/", "s3://b/out")


def test_rows_of_types_that_arrow_cannot_take(tmp_path: Path) -> None:
    table = pa.table({"v": pa.array(["a", None, "c"], pa.string_view()), "n": [1, 2, 3]})
    assert export.keep(table, pa.chunked_array([[True, False, True]])).to_pylist() == [
        {"v": "a", "n": 1},
        {"v": "c", "n": 3},
    ]
    assert export.pick(table, [1, 2]).column("n").to_pylist() == [2, 3]
    assert export.pick(table, []).num_rows == 0


def test_parts_whose_metadata_differ(out: Output, tmp_path: Path) -> None:
    """Files of one dataset may differ in what they say about themselves."""
    table = pq.ParquetFile(out.part_path(1)).read()
    rewrite_part(out, 1, table.replace_schema_metadata({"pandas": "{}"}))
    done = export_parquet(Source(str(out.root), Selection()), str(tmp_path / "all.parquet"))
    assert (done.num_rows, done.num_files) == (20, 1)
    assert export_jsonl(Source(str(out.root), Selection()), str(tmp_path / "all.jsonl")).num_rows == 20
