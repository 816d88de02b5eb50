"""JSONL among the files of a dataset, outputs of specbatch as datasets, files that are left out, and none at all."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonl_files import PLAIN, normalise, write_lines
from s3_server import S3Server

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import Segment
from specbatch.schemas.rows import RESULT_COLUMNS
from specbatch.storage.inputs import Inputs, read_inputs, read_segment, with_copies
from specbatch.storage.jsonl import copy_name


def refused(code: ErrorCode, call: Callable[[], object]) -> str:
    with pytest.raises(SpecbatchError) as caught:
        call()
    assert caught.value.code is code, str(caught.value)
    assert "\n" not in caught.value.message
    return caught.value.message


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def names(inputs: Inputs) -> list[tuple[str, int]]:
    return [(file.name, file.num_rows) for file in inputs.files]


# ---- discovery and pins -----------------------------------------------------------


def test_folders_and_globs_find_jsonl_too(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b/c.NDJSON", "d.jsonl.gz", "e.jsonl.zst", "_skip.jsonl", ".x/a.jsonl"):
        write_lines(tmp_path / name, [{"prompt": name}] * 2)
    for name in ("f.json", "g.jsonl.bz2", "h.txt", "jsonl"):
        (tmp_path / name).write_text("no data")
    expected = [("a.jsonl", 2), ("b/c.NDJSON", 2), ("d.jsonl.gz", 2), ("e.jsonl.zst", 2)]
    assert names(read_inputs([str(tmp_path)])) == expected
    assert names(read_inputs([f"{tmp_path}/[ade].jsonl*"])) == [expected[0], expected[2], expected[3]]


def test_jsonl_is_pinned_by_its_contents(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "x"}, {"prompt": "y"}])
    (file,) = read_inputs([str(path)]).files
    data = path.read_bytes()
    assert (file.size_bytes, file.footer_sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert file.num_rows == 2


def test_a_copy_is_read_in_place_of_its_original(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": f"p{n}", "n": n} for n in range(10)])
    normalise(path, tmp_path / "copy.parquet")
    inputs = with_copies(read_inputs([str(path)]), {0: str(tmp_path / "copy.parquet")})
    (file,) = inputs.files
    assert inputs.schema.names == ["prompt", "n"]
    segment = Segment(file.path, file.size_bytes, file.footer_sha256, 3, 7, 3)
    assert read_segment(segment).column("n").to_pylist() == [3, 4, 5, 6]
    other = write_lines(tmp_path / "b.jsonl", [{"prompt": "other", "n": 1}])
    normalise(other, tmp_path / "copy.parquet")
    refused(ErrorCode.JOB_INPUT_CHANGED, lambda: read_segment(segment))
    refused(ErrorCode.JOB_INPUT_CHANGED, lambda: with_copies(read_inputs([str(path)]), {0: file.path}))


def test_parquet_and_jsonl_must_have_the_same_columns(tmp_path: Path) -> None:
    write(tmp_path / "d" / "a.parquet", prompt=["x"], n=pa.array([1], pa.int32()))
    path = write_lines(tmp_path / "d" / "b.jsonl", [{"prompt": "y", "n": 2}])
    normalise(path, tmp_path / "copy.parquet")
    inputs = read_inputs([str(tmp_path / "d")])
    message = refused(ErrorCode.JOB_SCHEMA_MISMATCH, lambda: with_copies(inputs, {1: str(tmp_path / "copy.parquet")}))
    assert "a.parquet" in message
    assert "b.jsonl" in message
    assert "int32" in message


def test_copies_of_files_that_were_typed_together_have_names_of_their_own(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"v": 1}])
    write_lines(tmp_path / "b.jsonl", [{"v": 0.5}])
    one = read_inputs([str(tmp_path / "a.jsonl")]).sources[0]
    both = list(read_inputs([str(tmp_path)]).sources.values())
    assert both[0].sha256 == one.sha256
    assert copy_name(both[0], both, PLAIN) != copy_name(one, [one], PLAIN)


def test_jsonl_on_s3_is_pinned_like_the_local_file(s3_server: S3Server, tmp_path: Path) -> None:
    bucket = s3_server.new_bucket()
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst"):
        path = write_lines(tmp_path / "d" / name, [{"prompt": name, "n": n} for n in range(5000)])
        s3_server.put(bucket, f"d/{name}", path.read_bytes())
    local, remote = read_inputs([str(tmp_path / "d")]), read_inputs([f"s3://{bucket}/d"])
    for one, other in zip(local.files, remote.files, strict=True):
        assert (one.name, one.size_bytes, one.footer_sha256, one.row_group_rows) == (
            other.name, other.size_bytes, other.footer_sha256, other.row_group_rows
        )  # fmt: skip
    assert names(read_inputs([f"s3://{bucket}/d/*.gz"])) == [("b.jsonl.gz", 5000)]


def test_a_damaged_object_is_named(s3_server: S3Server, tmp_path: Path) -> None:
    bucket = s3_server.new_bucket()
    data = write_lines(tmp_path / "a.jsonl.gz", [{"prompt": str(n)} for n in range(5000)]).read_bytes()
    s3_server.put(bucket, "a.jsonl.gz", data[:-100])
    message = refused(ErrorCode.JOB_INPUT_CORRUPT, lambda: read_inputs([f"s3://{bucket}/a.jsonl.gz"]))
    assert f"s3://{bucket}/a.jsonl.gz" in message


# ---- outputs of specbatch -----------------------------------------------------------


def make_output(folder: Path, *, prefix: str = "", parts: int = 2) -> dict[str, bytes]:
    """The objects of a finished output with two rows a part, by key."""
    added = {f"{prefix}{name}": [None, None] for name in RESULT_COLUMNS}
    keys = [f"data/part-{number:06d}-{'ab' * 8}.parquet" for number in range(parts)]
    objects: dict[str, bytes] = {}
    for number, key in enumerate(keys):
        columns = {"prompt": [f"p{2 * number}", f"p{2 * number + 1}"], **added}
        columns[f"{prefix}completion"] = [f"c{number}", None]
        data = io.BytesIO()
        table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        pq.write_table(table, data)
        objects[key] = data.getvalue()
    output = {"prefix": prefix} if prefix else {}
    identity = {"S": "0" * 64, "P": "ab" * 8, "fields": {"output": output}}
    objects["_specbatch/job.json"] = json.dumps({"format": "specbatch/job/1", "identity": identity}).encode()
    commit = {"parts": [{"path": key} for key in keys]}
    document = {"format": "specbatch/manifest/1", "identity": identity, "commit": commit}
    objects["manifest.json"] = json.dumps(document).encode()
    objects[f"data/part-000000-{'cd' * 8}.parquet"] = b"a part of another plan"
    for key, data in objects.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    return objects


@pytest.mark.parametrize("prefix", ["", "gen_"])
def test_an_output_is_read_through_its_manifest(prefix: str, tmp_path: Path) -> None:
    make_output(tmp_path / "out", prefix=prefix)
    inputs = read_inputs([str(tmp_path / "out")])
    assert names(inputs) == [(f"data/part-{n:06d}-{'ab' * 8}.parquet", 2) for n in range(2)]
    assert inputs.bookkeeping >= {f"{prefix}{name}" for name in RESULT_COLUMNS}
    assert "prompt" not in inputs.bookkeeping
    assert inputs.notes == ()


def test_an_output_on_s3_is_read_through_its_manifest(s3_server: S3Server, tmp_path: Path) -> None:
    bucket = s3_server.new_bucket()
    for key, data in make_output(tmp_path / "out").items():
        s3_server.put(bucket, f"runs/out/{key}", data)
        s3_server.put(bucket, f"unfinished/{key}" if key != "manifest.json" else "unfinished/x", data)
    inputs = read_inputs([f"s3://{bucket}/runs/out"])
    assert names(inputs) == names(read_inputs([str(tmp_path / "out")]))
    assert inputs.files[0].path == f"s3://{bucket}/runs/out/data/part-000000-{'ab' * 8}.parquet"
    refused(ErrorCode.JOB_INCOMPLETE, lambda: read_inputs([f"s3://{bucket}/unfinished/"]))
    refused(ErrorCode.JOB_INPUT_EMPTY, lambda: read_inputs([f"s3://{bucket}/runs"]))


def test_an_output_without_a_manifest_is_refused(tmp_path: Path) -> None:
    make_output(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    assert "specbatch resume" in refused(ErrorCode.JOB_INCOMPLETE, lambda: read_inputs([str(tmp_path / "out")]))


def test_amendments_of_an_output_are_not_read_and_that_is_said(tmp_path: Path) -> None:
    make_output(tmp_path / "out")
    make_output(tmp_path / "out" / "amendments" / "1")
    inputs = read_inputs([str(tmp_path / "out")])
    assert len(inputs.files) == 2
    (note,) = inputs.notes
    assert "amendments" in note


@pytest.mark.parametrize("path", ["../../secret.parquet", "/etc/passwd", "data/part-000000-xyz.parquet", 3])
def test_a_manifest_names_parts_and_nothing_else(path: Any, tmp_path: Path) -> None:
    make_output(tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    document = json.loads(manifest.read_bytes())
    document["commit"]["parts"][0]["path"] = path
    manifest.write_text(json.dumps(document))
    refused(ErrorCode.JOB_FORMAT, lambda: read_inputs([str(tmp_path / "out")]))


# ---- bad files and none -----------------------------------------------------------


def bad_folder(folder: Path) -> Path:
    write(folder / "a.parquet", prompt=["x"])
    (folder / "b.parquet").write_bytes(b"no parquet")
    write_lines(folder / "c.jsonl", [{"prompt": "y"}])
    (folder / "d.jsonl").write_bytes(b'{"prompt": "z"}\n{"prompt": \n')
    return folder


def test_quarantine_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    folder = str(bad_folder(tmp_path / "d"))
    refused(ErrorCode.JOB_INPUT_CORRUPT, lambda: read_inputs([folder]))
    inputs = read_inputs([folder], on_bad_file="quarantine")
    assert names(inputs) == [("a.parquet", 1), ("c.jsonl", 1)]
    assert [(one.name, one.code) for one in inputs.skipped] == [
        ("b.parquet", "JOB_INPUT_CORRUPT"),
        ("d.jsonl", "JOB_INPUT_CORRUPT"),
    ]
    assert "d.jsonl line 2" in inputs.skipped[1].reason
    assert set(inputs.sources) == {1}


def test_files_that_were_left_out_stay_out_without_a_look(tmp_path: Path) -> None:
    folder = bad_folder(tmp_path / "d")
    known = {"b.parquet": "JOB_INPUT_CORRUPT", "d.jsonl": "JOB_INPUT_CORRUPT"}
    write(folder / "b.parquet", prompt=["repaired"])
    (folder / "d.jsonl").unlink()
    write_lines(folder / "d.jsonl", [{"prompt": "repaired"}])
    inputs = read_inputs([str(folder)], on_bad_file="quarantine", known_bad=known)
    assert names(inputs) == [("a.parquet", 1), ("c.jsonl", 1)]
    assert [(one.name, one.code) for one in inputs.skipped] == list(known.items())


def test_where_no_file_can_be_read_quarantine_is_no_help(tmp_path: Path) -> None:
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    message = refused(
        ErrorCode.JOB_INPUT_CORRUPT, lambda: read_inputs([str(tmp_path)], on_bad_file="quarantine", allow_empty=True)
    )
    assert "b.parquet" in message


def test_other_faults_than_bad_files_are_not_quarantined(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", prompt=["x"])
    write(tmp_path / "b.parquet", prompt=[1])
    refused(ErrorCode.JOB_SCHEMA_MISMATCH, lambda: read_inputs([str(tmp_path)], on_bad_file="quarantine"))


def test_nothing_is_taken_where_that_is_allowed(s3_server: S3Server, tmp_path: Path) -> None:
    bucket = s3_server.new_bucket()
    for dataset in (str(tmp_path), f"{tmp_path}/*.jsonl", f"s3://{bucket}/empty/"):
        refused(ErrorCode.JOB_INPUT_EMPTY, lambda dataset=dataset: read_inputs([dataset]))
        assert read_inputs([dataset], allow_empty=True).files == ()
    refused(ErrorCode.JOB_INPUT_MISSING, lambda: read_inputs([str(tmp_path / "gone.jsonl")], allow_empty=True))
    (tmp_path / "blank.jsonl").write_bytes(b"\n \r\n")
    assert names(read_inputs([str(tmp_path)])) == [("blank.jsonl", 0)]
