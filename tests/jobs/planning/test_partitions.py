"""``--partition KEY=VALUE``: folders below the output, as tables by night have them."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_output import NUM_ROWS, begin, finish, write_dataset, write_parts

from specbatch import load
from specbatch.jobs.planning.destination import hive_escaped, with_partitions
from specbatch.jobs.planning.prepare import prepare
from specbatch.jobs.spec.settings import Layer, flag_layer, resolve
from specbatch.jobs.upkeep.resume import open_output, prepare_resume
from specbatch.jobs.verify.verify import verify_output
from specbatch.schemas.errors import ErrorCode, SpecbatchError


def test_folders_in_their_order() -> None:
    assert with_partitions("/out", [], ["x"]) == "/out"
    assert with_partitions("/out/", ["b=1", "a=x y"], ["x"]) == "/out/b=1/a=x y"
    assert with_partitions("s3://b/out", ["when=2026/01=%"], []) == "s3://b/out/when=2026%2F01%3D%25"


@pytest.mark.parametrize(
    ("partitions", "columns"),
    [(["a=1", "A=2"], []), (["completion=1"], ["completion"]), (["Prompt=1"], ["prompt"])],
)
def test_keys_that_are_refused(partitions: list[str], columns: list[str]) -> None:
    with pytest.raises(SpecbatchError) as caught:
        with_partitions("/out", partitions, columns)
    assert caught.value.code is ErrorCode.JOB_CONFIG


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8))
def test_readers_get_the_value_back(value: str) -> None:
    from urllib.parse import unquote

    text = hive_escaped(value)
    assert text.isprintable()
    assert not set(text) & set("/\\:*?\"'#=[]{^")
    assert unquote(text) == value


def test_a_job_in_its_partition(tmp_path: Path) -> None:
    """Begun, resumed, verified and loaded like any other; readers of the table see the night."""
    for night in ("2026-01-01", "2026-01-02"):
        output = begin(tmp_path, partition=[f"night={night}", "kind=a/b"])
        assert output.uri == str(tmp_path / "out" / f"night={night}" / "kind=a%2Fb")
        write_parts(output, shards={0})
        prepared = prepare_resume(output.uri, Layer({}, {}))
        assert prepared.output == output.uri, "a resume adds no folders"
        assert prepared.identity == output.stored.document.identity
        finish(output)
        assert verify_output(output.uri).state == "sound"
        assert load(output.uri).num_rows == NUM_ROWS
        assert open_output(output.uri).uri == output.uri
    found = duckdb.sql(
        f"select night, kind, count(*) from read_parquet('{tmp_path}/out/*/*/data/*.parquet', hive_partitioning=true) "
        "group by 1, 2 order by 1"
    ).fetchall()
    assert [(str(night), kind, count) for night, kind, count in found] == [
        ("2026-01-01", "a/b", NUM_ROWS),
        ("2026-01-02", "a/b", NUM_ROWS),
    ]
    schema = pa.schema([("night", pa.string()), ("kind", pa.string())])
    files = sorted(map(str, (tmp_path / "out").glob("*/*/data/*.parquet")))
    table = ds.dataset(files, partitioning=ds.partitioning(schema, flavor="hive")).to_table()
    assert table.num_rows == 2 * NUM_ROWS
    assert set(table.column("kind").to_pylist()) == {"a/b"}


def test_they_are_no_part_of_the_identity(tmp_path: Path) -> None:
    one = begin(tmp_path, uri=str(tmp_path / "one"), partition=["night=1"])
    other = begin(tmp_path, uri=str(tmp_path / "other"), partition=["night=2"])
    assert one.stored.document.identity == other.stored.document.identity


def test_below_the_default_output_too(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path)
    prepared = prepare(resolve([flag_layer({"partition": ["night=1"], "device": "cpu"}, [str(dataset)])]))
    assert prepared.output == f"{tmp_path}/prompts-{prepared.identity.S[:8]}/night=1"


def test_a_key_that_is_a_column_is_refused_before_anything_begins(tmp_path: Path) -> None:
    for key in ("tag", "gen_completion"):
        with pytest.raises(SpecbatchError) as caught:
            begin(tmp_path, partition=[f"{key}=1"], output_prefix="gen_")
        assert caught.value.code is ErrorCode.JOB_CONFIG
    assert not (tmp_path / "out").exists()
    begin(tmp_path, partition=["tag=1"], rename=["tag=key"])
