"""Readers of what strangers may have written, on bytes that nobody meant: a result, or a refusal in one line.

Each reader gets arbitrary bytes, and a sound document with some bytes changed, cut out or doubled. What once went wrong
stands as an example beside the property.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from specbatch.jobs.output.jobdocument import decode_job
from specbatch.jobs.output.manifest import decode_manifest
from specbatch.jobs.spec.settings import file_layer, resolve, set_layer
from specbatch.jobs.verify.files import Unsound, parse_json
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.footer import extensions_in, read_footer
from specbatch.storage.footer_facts import NotParquet, OverLimit, Unsupported, read_facts
from specbatch.storage.parts import read_part_meta
from specbatch.storage.planfile import decode_plan
from specbatch.storage.store import local_path, open_store, s3_location

GOLDEN = next(path.parent for path in sorted((Path(__file__).parent / "golden").rglob("manifest.json")))
quick = settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def golden(pattern: str) -> bytes:
    return sorted(GOLDEN.glob(pattern))[0].read_bytes()


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """A document with one to four places changed, cut out or said twice."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["change", "cut", "double", "insert"])):
            case "change":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del data[at : at + draw(st.integers(1, 40))]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 40))]
            case _:
                data[at:at] = draw(st.binary(max_size=12))
    return bytes(data)


def bytes_like(sound: bytes) -> st.SearchStrategy[bytes]:
    return damaged(sound) | st.binary(max_size=200)


def survives(call: Callable[[], Any], *codes: ErrorCode) -> Any:
    """The result; None where it was refused with one of these codes, by one line."""
    try:
        return call()
    except SpecbatchError as error:
        return one_line(error.message) if error.code in codes else pytest.fail(str(error))


def one_line(message: str) -> None:
    assert "\n" not in message


# ---- footers, parts and plans ----------------------------------------------------------------------


def parquet_file() -> bytes:
    file = io.BytesIO()
    table = pa.table({"prompt": ["a", "b"], "n": [1, 2], "nested": [[{"x": 1}], []]})
    pq.write_table(table, file, row_group_size=1, write_page_checksum=True)
    return file.getvalue()


def footer_facts_of(data: bytes) -> None:
    try:
        footer = read_footer(io.BytesIO(data))
        facts = read_facts(footer.metadata, footer.size_bytes)
        extensions_in(facts.key_values)
    except (NotParquet, Unsupported, OverLimit) as error:
        one_line(str(error))


@quick
@given(bytes_like(parquet_file()))
@example(b"PAR1" + b"\xff\xff\xff\x7fPAR1")
@example(b"PAR1\x15\x02\x19\xfc\xff\xff\xff\xff\x0f" + b"\x09\0\0\0PAR1")
def test_footers(data: bytes) -> None:
    footer_facts_of(data)


@quick
@given(bytes_like(golden("data/part-*.parquet")))
def test_footers_of_parts(data: bytes) -> None:
    survives(lambda: read_part_meta(io.BytesIO(data)), ErrorCode.JOB_INTEGRITY, ErrorCode.JOB_FORMAT)


@quick
@given(bytes_like(golden("_specbatch/plan-*.parquet")))
@example(golden("_specbatch/plan-*.parquet").replace(b"start", b"\x80tart"))
def test_plans(data: bytes) -> None:
    survives(lambda: decode_plan(data), ErrorCode.JOB_INTEGRITY, ErrorCode.JOB_FORMAT)


# ---- documents -------------------------------------------------------------------------------------


@quick
@given(bytes_like(golden("manifest.json")))
@example(b"[" * 5000)
@example(b'{"format": "specbatch/manifest/1", "format": "x"}')
@example(b'{"format": 1e999}')
def test_manifests(data: bytes) -> None:
    survives(lambda: decode_manifest(data), ErrorCode.JOB_INTEGRITY, ErrorCode.JOB_FORMAT)


@quick
@given(bytes_like(golden("_specbatch/job.json")))
@example(b"[" * 5000)
def test_job_documents(data: bytes) -> None:
    survives(lambda: decode_job(data, "s3://bucket/out"), ErrorCode.JOB_INTEGRITY, ErrorCode.JOB_FORMAT)


@quick
@given(bytes_like(golden("manifest.json")))
@example(b"[" * 5000)
def test_what_verify_reads(data: bytes) -> None:
    try:
        parse_json(data, "manifest.json")
    except Unsound as problem:
        one_line(str(problem))


# ---- settings --------------------------------------------------------------------------------------

JOB_FILE = b"""\
input: {datasets: [a.parquet], limit: 8}
models:
  target: code-pair/target
generation: {max_new_tokens: 64, temperature: 0.7, stop: ["\\n\\n", 'x'], logit_bias: ["3:1.5"]}
execution:
  max_error_rate: 0.02
"""


@quick
@given(bytes_like(JOB_FILE))
@example(b"a: &a [*a]")
@example(b"generation: {seed: !!python/object/apply:os.system ['true']}")
@example(b"generation: {seed: 99999999999999999999999999999999}")
@example(b"generation: {temperature: .nan}")
def test_job_files(data: bytes) -> None:
    layer = survives(lambda: file_layer(data, "job.yaml"), ErrorCode.JOB_CONFIG)
    if layer is not None:
        survives(lambda: resolve([layer]), ErrorCode.JOB_CONFIG, ErrorCode.JOB_URI_INVALID)


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (b"[" * 100_000, "line 1: nested too deeply"),
        (b"a:\n" * 60_000, "line 10000: more than 20000 values"),
        (b"- " * 100_000, "line 1: nested too deeply"),
    ],
    ids=["brackets", "keys", "dashes"],
)
def test_large_job_files_are_refused_where_they_become_too_large(data: bytes, refusal: str) -> None:
    """The line tells: what is read to its end, and refused then, costs up to twenty seconds."""
    with pytest.raises(SpecbatchError) as caught:
        file_layer(data, "job.yaml")
    assert caught.value.message == f"--config job.yaml {refusal}"


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
values = leaves | st.lists(leaves, max_size=3) | st.dictionaries(st.text(max_size=5), leaves, max_size=3)
paths = ["input.limit", "generation.temperature", "generation.stop", "generation.logit_bias", "execution.workers"]
paths += ["execution.deadline", "results.partitions", "output", "input.rename"]


@quick
@given(values, st.sampled_from(paths))
def test_values_of_any_kind(value: Any, path: str) -> None:
    section, _, key = path.rpartition(".")
    document = {section: {key: value}} if section else {key: value}
    layer = survives(lambda: file_layer(json.dumps(document).encode(), "job.yaml"), ErrorCode.JOB_CONFIG)
    if layer is not None:
        survives(lambda: resolve([layer]), ErrorCode.JOB_CONFIG, ErrorCode.JOB_URI_INVALID)


@quick
@given(st.text(max_size=40))
def test_assignments(text: str) -> None:
    layer = survives(lambda: set_layer([f"generation.{text}"]), ErrorCode.JOB_CONFIG)
    assert layer is None or len(layer.values) == 1


# ---- names of places -------------------------------------------------------------------------------

SECRET = "hunter2secret"
pieces = st.text(max_size=6) | st.sampled_from(["..", ".", "", "/", "@", ":", "%2e%2e", "\0", "\n", "bucket", "a"])
heads = st.sampled_from(["s3://", "s3:/", "S3://", "http://", "", "/"])
uris = st.builds(lambda head, parts: head + "/".join(parts), heads, st.lists(pieces, max_size=5))
SECRET_URIS = ["s3://{}user:{}@bucket/a", "https://{}user:{}@host/a", "s3://bucket:{1}{0}/a"]


@quick
@given(uris)
@example("s3://bucket/a/../../other")
@example("s3://bucket//a")
@example("s3://b/a")
def test_uris(uri: str) -> None:
    if uri.startswith("s3://"):
        place = survives(lambda: s3_location(uri, "output"), ErrorCode.JOB_URI_INVALID)
        if place is not None:
            bucket, prefix = place
            assert "/" not in bucket
            assert not {"", ".", ".."} & set(prefix.split("/") if prefix else ())
            assert f"s3://{bucket}/{prefix}".rstrip("/") == uri.rstrip("/")
    else:
        found = survives(lambda: local_path(uri, "output"), ErrorCode.JOB_URI_INVALID)
        assert found is None or found.is_absolute()


@quick
@given(st.text(max_size=8), st.sampled_from(SECRET_URIS))
def test_a_refused_uri_is_not_repeated(noise: str, form: str) -> None:
    with pytest.raises(SpecbatchError) as caught:
        open_store(form.format(noise.replace("/", ""), SECRET))
    assert SECRET not in str(caught.value)
