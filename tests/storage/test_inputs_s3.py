"""Datasets on S3, against a real S3 server: found and pinned by the rules of local ones, each read of one version."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import FaultRule, S3Server

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import InputFile, Segment
from specbatch.storage.discovery_s3 import select_by_glob
from specbatch.storage.inputs import discover, read_inputs, read_segment

NAMES = (
    "b.parquet",
    "a/z.parquet",
    "a.parquet",
    "a/part-1.parquet",
    "_skip.parquet",
    ".skip.parquet",
    "_tmp/x.parquet",
    "a/.hidden/x.parquet",
    "an-output/data/part.parquet",
    "an-output/_specbatch/job.json",
    "a/deep/out/_specbatch/plan.parquet",
    "a/deep/out/data/part.parquet",
    "day=1/c.PARQUET",
    "readme.txt",
)
"""A folder with everything that is data and everything that is not."""


def encoded(rows: int = 10, *, first: int = 0, group: int = 4) -> bytes:
    data = io.BytesIO()
    table = pa.table({"prompt": [f"p{i}" for i in range(first, first + rows)], "n": list(range(first, first + rows))})
    pq.write_table(table, data, row_group_size=group, write_page_checksum=True)
    return data.getvalue()


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.new_bucket()


def refused(code: ErrorCode, call: Callable[[], object]) -> str:
    with pytest.raises(SpecbatchError) as caught:
        call()
    assert caught.value.code is code, str(caught.value)
    assert "\n" not in caught.value.message
    return caught.value.message


def names_of(files: Sequence[InputFile]) -> list[str]:
    return [file.name for file in files]


def segment_of(file: InputFile, start: int, stop: int) -> Segment:
    return Segment(file.path, file.size_bytes, file.footer_sha256, start, stop, 0)


def test_one_object_is_pinned_like_the_local_file(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    s3_server.put(bucket, "data/a.parquet", encoded())
    (tmp_path / "a.parquet").write_bytes(encoded())
    (file,) = discover([f"s3://{bucket}/data/a.parquet"])
    (local,) = discover([str(tmp_path / "a.parquet")])
    assert file.path == f"s3://{bucket}/data/a.parquet"
    for field in ("name", "size_bytes", "footer_sha256", "row_group_rows"):
        assert getattr(file, field) == getattr(local, field), "a dataset that moves keeps its identity"


@pytest.mark.parametrize("argument", ["", "/", "/**/*.parquet", "/*", "/a*", "/a/*.parquet", "/*/*", "/[ab].parquet"])
def test_the_rules_are_those_of_local_folders(s3_server: S3Server, bucket: str, tmp_path: Path, argument: str) -> None:
    root = tmp_path / "data"
    for name in NAMES:
        s3_server.put(bucket, f"data/{name}", encoded(2))
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(2))
    s3_server.put(bucket, "data-2/other.parquet", encoded(2))
    try:
        expected: list[str] | ErrorCode = names_of(discover([f"{root}{argument}"]))
    except SpecbatchError as error:
        expected = error.code
    uri = f"s3://{bucket}/data{argument}"
    if isinstance(expected, ErrorCode):
        refused(expected, lambda: discover([uri]))
        return
    files = discover([uri])
    assert names_of(files) == expected
    for file in files:
        assert posixpath.basename(file.path) == posixpath.basename(file.name)


def test_a_whole_bucket_and_several_arguments_of_both_kinds(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    s3_server.put(bucket, "x/b.parquet", encoded(3))
    s3_server.put(bucket, "a.parquet", encoded(2))
    (tmp_path / "local.parquet").write_bytes(encoded(4))
    assert names_of(discover([f"s3://{bucket}"])) == ["a.parquet", "x/b.parquet"]
    files = discover([f"s3://{bucket}/x", str(tmp_path / "local.parquet"), f"s3://{bucket}/a.parquet"])
    assert [(file.name, file.num_rows) for file in files] == [("b.parquet", 3), ("local.parquet", 4), ("a.parquet", 2)]
    refused(ErrorCode.JOB_CONFIG, lambda: discover([f"s3://{bucket}/x/b.parquet", f"s3://{bucket}/x/"]))


def test_what_is_not_there(s3_server: S3Server, bucket: str) -> None:
    s3_server.put(bucket, "text/readme.txt", b"no data")
    refused(ErrorCode.JOB_INPUT_MISSING, lambda: discover([f"s3://{bucket}/gone.parquet"]))
    refused(ErrorCode.JOB_INPUT_MISSING, lambda: discover(["s3://no-such-bucket-of-ours/gone.parquet"]))
    refused(ErrorCode.JOB_INPUT_EMPTY, lambda: discover([f"s3://{bucket}/text"]))
    refused(ErrorCode.JOB_INPUT_EMPTY, lambda: discover([f"s3://{bucket}/text/*.parquet"]))
    refused(ErrorCode.JOB_URI_INVALID, lambda: discover([f"s3://{bucket}/a/../b.parquet"]))
    refused(ErrorCode.JOB_URI_INVALID, lambda: discover([f"s3://{bucket}/a//b.parquet"]))
    assert "**" in refused(ErrorCode.JOB_URI_INVALID, lambda: discover([f"s3://{bucket}/a**/*.parquet"]))


def test_an_unfinished_output_is_refused_as_a_dataset(s3_server: S3Server, bucket: str) -> None:
    s3_server.put(bucket, "out/_specbatch/job.json", b"{}")
    s3_server.put(bucket, "out/data/part.parquet", encoded())
    assert f"s3://{bucket}/out" in refused(ErrorCode.JOB_INCOMPLETE, lambda: discover([f"s3://{bucket}/out"]))


def test_names_that_no_path_can_have(s3_server: S3Server, bucket: str) -> None:
    s3_server.put(bucket, "data/a//b.parquet", encoded())
    assert "a//b.parquet" in refused(ErrorCode.JOB_URI_INVALID, lambda: discover([f"s3://{bucket}/data"]))
    s3_server.put(bucket, "more/back%E2%80%AEwards.parquet", encoded())
    assert refused(ErrorCode.JOB_URI_INVALID, lambda: discover([f"s3://{bucket}/more"])).isprintable()


def test_the_first_bad_object_is_named_with_its_uri(s3_server: S3Server, bucket: str) -> None:
    for number in range(12):
        s3_server.put(bucket, f"d/{number:02d}.parquet", b"x" * 50 if number in (7, 9) else encoded(2))
    message = refused(ErrorCode.JOB_INPUT_CORRUPT, lambda: discover([f"s3://{bucket}/d"]))
    assert f"s3://{bucket}/d/07.parquet" in message


def test_planning_asks_once_for_each_footer(s3_server: S3Server, bucket: str) -> None:
    for number in range(5):
        s3_server.put(bucket, f"d/{number}.parquet", encoded(1000, group=100))
    s3_server.inject()
    assert len(read_inputs([f"s3://{bucket}/d"]).files) == 5
    gets = [request for request in s3_server.requests() if ".parquet" in request]
    assert sorted(gets) == [f"GET /{bucket}/d/{number}.parquet" for number in range(5)]


@pytest.mark.parametrize(("start", "stop"), [(0, 1000), (0, 1), (990, 1000), (250, 350), (5, 5)])
def test_a_segment_is_exactly_its_rows(s3_server: S3Server, bucket: str, start: int, stop: int) -> None:
    s3_server.put(bucket, "a.parquet", encoded(1000, group=300))
    (file,) = discover([f"s3://{bucket}/a.parquet"])
    assert read_segment(segment_of(file, start, stop)).column("n").to_pylist() == list(range(start, stop))


def big_object() -> bytes:
    """Larger than any read-ahead, so that its pages are fetched apart from its footer."""
    data = io.BytesIO()
    texts = [f"{number:08d}" * 100 for number in range(4000)]
    table = pa.table({"prompt": texts})
    pq.write_table(table, data, compression="none", use_dictionary=False, data_page_size=1 << 16)
    return data.getvalue()


def test_a_truncated_body_is_asked_for_again(s3_server: S3Server, bucket: str) -> None:
    """Fault 39."""
    s3_server.put(bucket, "a.parquet", big_object())
    (file,) = discover([f"s3://{bucket}/a.parquet"])
    for skip in range(3):
        s3_server.inject(FaultRule("GET", "a.parquet", "truncate", count=1, skip=skip))
        table = read_segment(segment_of(file, 0, 4000))
        assert table.column("prompt").to_pylist()[-1] == "00003999" * 100


def test_an_object_replaced_before_the_read_is_refused(s3_server: S3Server, bucket: str) -> None:
    """Fault 40: between planning and reading, the pin tells."""
    s3_server.put(bucket, "a.parquet", encoded())
    (file,) = discover([f"s3://{bucket}/a.parquet"])
    s3_server.put(bucket, "a.parquet", encoded(first=1))
    message = refused(ErrorCode.JOB_INPUT_CHANGED, lambda: read_segment(segment_of(file, 0, 10)))
    assert f"s3://{bucket}/a.parquet" in message
    s3_server.put(bucket, "a.parquet", b"x" * 100)
    refused(ErrorCode.JOB_INPUT_CHANGED, lambda: read_segment(segment_of(file, 0, 10)))


def test_an_object_replaced_during_the_read_is_refused(
    s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 40: the new version is equal in size and footer, so that only If-Match can tell."""
    from specbatch.storage import inputs

    data = big_object()
    at = data.index(b"00003000")
    s3_server.put(bucket, "a.parquet", data)
    (file,) = discover([f"s3://{bucket}/a.parquet"])
    open_parquet = inputs.open_parquet

    def replace_and_open(*arguments: object) -> pq.ParquetFile:
        s3_server.put(bucket, "a.parquet", data[:at] + b"99999999" + data[at + 8 :])
        return open_parquet(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(inputs, "open_parquet", replace_and_open)
    refused(ErrorCode.JOB_INPUT_CHANGED, lambda: read_segment(segment_of(file, 0, 4000)))


def test_an_object_that_is_gone_is_missing(s3_server: S3Server, bucket: str) -> None:
    s3_server.put(bucket, "a.parquet", encoded())
    (file,) = discover([f"s3://{bucket}/a.parquet"])
    gone = Segment(file.path.replace("a.parquet", "b.parquet"), file.size_bytes, file.footer_sha256, 0, 1, 0)
    refused(ErrorCode.JOB_INPUT_MISSING, lambda: read_segment(gone))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["b"]),
        ("**/b", ["a/b", "a/c/b", "b"]),
        ("a/**/b", ["a/b", "a/c/b"]),
        ("**/c/**/b", ["a/c/b"]),
        ("**", []),
        ("a/?", ["a/b"]),
        ("[!a]", ["b"]),
        ("a/**", []),
        ("A/b", []),
    ],
)
def test_patterns(pattern: str, expected: list[str], tmp_path: Path) -> None:
    """The same as ``pathlib``'s, which serves the local ones."""
    keys = [("b",), ("a", "b"), ("a", "c", "b"), ("a", "_specbatch2", "b")]
    assert ["/".join(key) for key in select_by_glob(keys, pattern.split("/"))] == expected
    for key in keys[:3]:
        path = tmp_path.joinpath(*key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    found = [path for path in tmp_path.glob(pattern) if path.is_file()]
    assert sorted(path.relative_to(tmp_path).as_posix() for path in found) == expected
