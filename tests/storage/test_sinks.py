"""What an export is written to: whole or not there, on local disk and on S3."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from s3_server import FaultRule, S3Server

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage import sinks
from specbatch.storage.s3_session import connection
from specbatch.storage.sinks import open_folder, open_sink
from specbatch.storage.store import open_store


def refused(uri: str, code: ErrorCode, *, overwrite: bool = False) -> None:
    with pytest.raises(SpecbatchError) as caught, open_sink(uri, overwrite=overwrite) as sink:
        sink.write(b"new")
    assert caught.value.code is code
    assert "\n" not in caught.value.message


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "file"
    with open_sink(str(place)) as sink:
        sink.write(b"some")
        assert not place.exists()
        sink.write(b" more")
        assert sink.tell() == 9
    assert place.read_bytes() == b"some more"
    assert [path.name for path in place.parent.iterdir()] == ["file"]


def fail(uri: str, num_bytes: int) -> None:
    """Break off behind so many bytes."""
    with open_sink(uri) as sink:
        sink.write(bytes(num_bytes))
        raise RuntimeError


def fail_in_folder(uri: str) -> None:
    with open_folder(uri) as folder:
        with folder.open("part-00000.parquet") as file:
            file.write(b"some")
        raise RuntimeError


def test_a_file_that_failed_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        fail(str(tmp_path / "file"), 4)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"old")
    refused(str(place), ErrorCode.JOB_PREFIX_TAKEN)
    assert place.read_bytes() == b"old"
    with open_sink(str(place), overwrite=True) as sink:
        sink.write(b"new")
        assert place.read_bytes() == b"old", "the old one stays until the new one is whole"
    assert place.read_bytes() == b"new"


def test_a_file_that_somebody_else_made_meanwhile_stays(tmp_path: Path) -> None:
    place = tmp_path / "file"

    def write() -> None:
        with open_sink(str(place)) as sink:
            sink.write(b"ours")
            place.write_bytes(b"theirs")

    with pytest.raises(SpecbatchError) as caught:
        write()
    assert caught.value.code is ErrorCode.JOB_PREFIX_TAKEN
    assert place.read_bytes() == b"theirs"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    refused(str(tmp_path / "file" / "below"), ErrorCode.JOB_OUTPUT_UNWRITABLE)
    refused("gs://bucket/file", ErrorCode.JOB_URI_INVALID)


def write_folder(uri: str, *, overwrite: bool = False, names: tuple[str, ...] = ("part-00000.parquet",)) -> None:
    with open_folder(uri, overwrite=overwrite) as folder:
        for name in names:
            with folder.open(name) as file:
                file.write(name.encode())


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    write_folder(str(tmp_path / "out"), names=("part-00000.parquet", "a=1/b=%2F/part-00000.parquet"))
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["out/_SUCCESS", "out/a=1/b=%2F/part-00000.parquet", "out/part-00000.parquet"]


def test_a_folder_that_failed_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        fail_in_folder(str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_only_what_an_export_made_is_overwritten(tmp_path: Path) -> None:
    """A wrong name must not cost anybody his data."""
    place = tmp_path / "out"
    write_folder(str(place), names=("part-00000.parquet", "part-00001.parquet"))
    with pytest.raises(SpecbatchError, match="--overwrite"):
        write_folder(str(place))
    write_folder(str(place), overwrite=True)
    assert sorted(path.name for path in place.iterdir()) == ["_SUCCESS", "part-00000.parquet"]
    (place / "thesis.tex").write_bytes(b"years of work")
    with pytest.raises(SpecbatchError, match=r"thesis\.tex"):
        write_folder(str(place), overwrite=True)
    assert (place / "thesis.tex").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("rival", [False, True], ids=["it fails", "another takes the name"])
def test_an_older_folder_is_not_lost_where_the_new_one_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rival: bool
) -> None:
    place = tmp_path / "out"
    write_folder(str(place), names=("part-00007.parquet",))
    rename = Path.rename

    def meddle(path: Path, to: Path) -> Path:
        if path.suffix == ".partial":
            if not rival:
                raise OSError(5, "Input/output error")
            place.mkdir()
            (place / "theirs").touch()
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", meddle)
    with pytest.raises(SpecbatchError) as caught:
        write_folder(str(place), overwrite=True)
    assert caught.value.code is ErrorCode.JOB_OUTPUT_UNWRITABLE
    left = sorted(path.name for path in tmp_path.iterdir())
    if rival:
        assert (left[1:], [path.name for path in place.iterdir()]) == (["out"], ["theirs"])
        assert f"kept as {tmp_path / left[0]}" in caught.value.message
        assert left[0].endswith(".old")
    else:
        assert left == ["out"]
    assert (tmp_path / left[0] / "part-00007.parquet").read_bytes() == b"part-00007.parquet"


KILLED = """
import sys, time
from specbatch.storage.sinks import open_folder, open_sink
kind, uri = sys.argv[1:]
if kind == "file":
    with open_sink(uri) as sink:
        sink.write(b"x" * 100)
        sink.flush()
        print("open", flush=True)
        time.sleep(60)
with open_folder(uri) as folder, folder.open("part-00000.parquet") as file:
    file.write(b"x" * 100)
    file.flush()
    print("open", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "out"
    writer = subprocess.Popen([sys.executable, "-c", KILLED, kind, str(place)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "open\n"
    writer.kill()
    writer.communicate()
    assert not os.path.lexists(place)
    assert all(path.name.startswith(".out.") and path.name.endswith(".partial") for path in tmp_path.iterdir())


# ---- S3 --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sinks, "_PART_BYTES", 5 << 20)
    return s3_server.new_bucket()


def uploads(bucket: str) -> int:
    return len(connection().client().list_multipart_uploads(Bucket=bucket).get("Uploads", ()))


@pytest.mark.parametrize("num_bytes", [0, 100, 5 << 20, (11 << 20) + 3])
def test_an_object_of_any_size(bucket: str, num_bytes: int) -> None:
    data = bytes(range(256)) * (num_bytes // 256 + 1)
    with open_sink(f"s3://{bucket}/a/file") as sink:
        for start in range(0, num_bytes, 1 << 20):
            sink.write(data[start : min(start + (1 << 20), num_bytes)])
        assert open_store(f"s3://{bucket}").list("") == []
    assert open_store(f"s3://{bucket}/a").read("file") == data[:num_bytes]
    assert uploads(bucket) == 0


@pytest.mark.parametrize("num_bytes", [100, 6 << 20])
def test_an_object_that_failed_leaves_nothing(bucket: str, num_bytes: int) -> None:
    with pytest.raises(RuntimeError):
        fail(f"s3://{bucket}/file", num_bytes)
    assert open_store(f"s3://{bucket}").list("") == []
    assert uploads(bucket) == 0


@pytest.mark.parametrize("num_bytes", [100, 6 << 20])
def test_an_object_is_overwritten_only_if_asked(bucket: str, num_bytes: int) -> None:
    store = open_store(f"s3://{bucket}")
    store.replace("file", b"old")
    refused(f"s3://{bucket}/file", ErrorCode.JOB_PREFIX_TAKEN)
    assert store.read("file") == b"old"
    with open_sink(f"s3://{bucket}/file", overwrite=True) as sink:
        sink.write(bytes(num_bytes))
    assert store.read("file") == bytes(num_bytes)
    refused(f"s3://{bucket}", ErrorCode.JOB_URI_INVALID)


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_requests_that_fail_are_sent_again(bucket: str, s3_server: S3Server, method: str) -> None:
    """POST begins and completes an upload, PUT sends a part; the reply is lost after the request took effect."""
    s3_server.inject(*(FaultRule(method, "/file", "drop", is_done=True, skip=skip) for skip in (0, 1)))
    with open_sink(f"s3://{bucket}/file") as sink:
        sink.write(bytes(6 << 20))
    s3_server.inject()
    assert open_store(f"s3://{bucket}").read("file") == bytes(6 << 20)


def test_a_folder_on_s3_ends_with_its_mark(bucket: str) -> None:
    uri = f"s3://{bucket}/table"
    with pytest.raises(RuntimeError):
        fail_in_folder(uri)
    store = open_store(uri)
    assert store.list("") == ["part-00000.parquet"], "without _SUCCESS it is not whole"
    with pytest.raises(SpecbatchError, match="--overwrite"):
        write_folder(uri)
    write_folder(uri, overwrite=True, names=("k=1/part-00000.parquet",))
    assert store.list("") == ["_SUCCESS", "k=1/part-00000.parquet"]
    store.replace("other", b"")
    with pytest.raises(SpecbatchError, match="other"):
        write_folder(uri, overwrite=True)
    assert len(store.list("")) == 3


def test_a_store_that_stays_away_is_named(bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECBATCH_STORE_PATIENCE_SECONDS", "0.5")
    s3_server.inject(FaultRule("POST", "/file", "answer", status=503, count=1000))
    started = time.monotonic()
    with pytest.raises(SpecbatchError) as caught, open_sink(f"s3://{bucket}/file") as sink:
        sink.write(bytes(6 << 20))
    assert caught.value.code is ErrorCode.JOB_STORE_LOST
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("is_done", [True, False])
def test_an_upload_that_is_gone_is_complete_or_lost(bucket: str, s3_server: S3Server, is_done: bool) -> None:
    """The reply to the completion is lost, and asked again the store knows no such upload; or somebody aborted it."""
    gone = FaultRule("POST", "/file", "answer", status=404, code="NoSuchUpload", skip=1)
    s3_server.inject(*([FaultRule("POST", "/file", "drop", is_done=True, skip=1)] if is_done else []), gone)

    def write() -> None:
        with open_sink(f"s3://{bucket}/file") as sink:
            sink.write(bytes(6 << 20))

    if is_done:
        write()
        assert open_store(f"s3://{bucket}").read("file") == bytes(6 << 20)
        return
    with pytest.raises(SpecbatchError) as caught:
        write()
    assert caught.value.code is ErrorCode.JOB_STORE_LOST
    assert open_store(f"s3://{bucket}").list("") == []
