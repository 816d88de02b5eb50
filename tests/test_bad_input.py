"""The bad-input matrix at the command line: for each row its code, its message and its exit status, and no traceback.

Rows are numbered as in the matrix of ``docs/reliability.md``. What becomes an error row instead of an end of the job
is also told row by row in ``workers/test_bad_rows.py``. The engine's own rows (30 a draft that does not pay, 36 and 37
numbers that are none, 38 no end, 39 stop strings, 40 memory) are in ``specdec/``.
"""

from __future__ import annotations

import base64
import gzip
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_parquet import column, metadata, parquet_file
from s3_server import S3Server

import specbatch
from specbatch.jobs.cli import app as cli
from specbatch.workers.rendering import MAX_PROMPT_BYTES

ASSETS = Path(specbatch.__file__).parent / "assets" / "code-pair"

Capture = pytest.CaptureFixture[str]
Make = Callable[[Path], list[str]]


def write(path: Path, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns or {"prompt": ["a", "b"]}), path)
    return str(path)


def raw(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def good(root: Path) -> str:
    return write(root / "good.parquet")


def damaged(path: Path, change: Callable[[bytes], bytes]) -> str:
    write(path)
    return raw(path, change(path.read_bytes()))


@dataclass(frozen=True)
class Case:
    """One way to be wrong.

    Attributes:
        make: prepares a folder and gives the arguments of ``specbatch submit``.
        says: texts that the one line must have.
    """

    name: str
    code: str
    make: Make
    says: tuple[str, ...] = ()
    exit_code: int = 2


def two_schemas(root: Path) -> list[str]:
    write(root / "d" / "first.parquet", prompt=["a"], n=[1])
    write(root / "d" / "second.parquet", prompt=["b"], n=["one"])
    return [str(root / "d")]


def extension_file(root: Path) -> list[str]:
    """Shaped like CVE-2026-41486: the metadata of a tensor type is a pickle, which opens a file when it is loaded."""
    witness = root / "it-ran"
    payload = b"cbuiltins\nopen\n(V" + str(witness).encode() + b"\nVw\ntR."
    field = pa.field(
        "image",
        pa.binary(),
        metadata={"ARROW:extension:name": "ray.data.arrow_tensor_v2", "ARROW:extension:metadata": payload},
    )
    table = pa.table([["a"], [b"x"]], schema=pa.schema([pa.field("prompt", pa.string()), field]))
    path = root / "tensors.parquet"
    pq.write_table(table, path)
    return [str(path)]


def encrypted_file(root: Path, *, plaintext_footer: bool) -> list[str]:
    import pyarrow.parquet.encryption as pe

    class Keys(pe.KmsClient):
        """A key store that keeps no secret."""

        def __init__(self, _: object) -> None:
            pe.KmsClient.__init__(self)

        def wrap_key(self, key: bytes, name: str) -> bytes:
            return base64.b64encode(key)

        def unwrap_key(self, wrapped: bytes, name: str) -> bytes:
            return base64.b64decode(wrapped)

    factory = pe.CryptoFactory(Keys)
    settings = pe.EncryptionConfiguration(
        footer_key="footer", column_keys={"column": ["prompt"]}, plaintext_footer=plaintext_footer
    )
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), settings)
    path = root / "secret.parquet"
    table = pa.table({"prompt": ["hush"], "n": [1]})
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    return [str(path)]


def job_file(text: str) -> Make:
    def make(root: Path) -> list[str]:
        path = root / "job.yaml"
        path.write_text(text)
        return [good(root), "--config", str(path)]

    return make


def with_option(*options: str) -> Make:
    return lambda root: [good(root), *options]


def on_columns(*options: str, **columns: Any) -> Make:
    return lambda root: [write(root / "d.parquet", **columns), *options]


def announcing(**changes: Any) -> Make:
    return lambda root: [raw(root / "d.parquet", parquet_file(metadata(**changes)))]


def in_folder(*, output: str) -> Make:
    def make(root: Path) -> list[str]:
        write(root / "d" / "a.parquet")
        return [str(root / "d"), "--output", str(root / output)]

    return make


def model_copy(change: Callable[[Path], None]) -> Make:
    def make(root: Path) -> list[str]:
        shutil.copytree(ASSETS / "draft-taught", root / "draft")
        change(root / "draft")
        return [good(root), "--draft", str(root / "draft")]

    return make


def edit_json(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        change(document)
        (folder / name).write_text(json.dumps(document))

    return edit


def swap_two_tokens(tokenizer: dict[str, Any]) -> None:
    vocab = tokenizer["model"]["vocab"]
    first, second = list(vocab)[-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]


def taken_folder(root: Path) -> list[str]:
    (root / "out").mkdir()
    (root / "out" / "notes.txt").write_text("mine")
    return [good(root), "--output", str(root / "out")]


def on_lines(data: bytes, compression: str = "") -> Make:
    return lambda root: [raw(root / f"d.jsonl{compression}", data)]


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def two_formats(root: Path) -> list[str]:
    write(root / "d" / "b.parquet", prompt=["a"], n=["one"])
    raw(root / "d" / "a.jsonl", b'{"prompt": "a", "n": 1}')
    return [str(root / "d")]


def unfinished_output(root: Path) -> list[str]:
    (root / "before" / "_specbatch").mkdir(parents=True)
    return [str(root / "before"), "--output", str(root / "out")]


REQUEST = json.dumps(
    {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "hush", "tools": [{"a": 1}]}}
).encode()
SECRET = "hunter2"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
MANY_VALUES = "generation:\n  stop: [" + ",".join(["x"] * 30_000) + "]\n"

CASES = (
    Case("10 no prompt column", "JOB_COLUMN_MISSING", on_columns(question=["a"], id=[1]), ("'question', 'id'",)),
    Case("10 no id column", "JOB_COLUMN_MISSING", on_columns("--id-column", "key", prompt=["a"]), ("'key'",)),
    Case("11 prompts are numbers", "JOB_COLUMN_TYPE", on_columns(prompt=[1, 2]), ("int64",)),
    Case("11 prompts are lists", "JOB_COLUMN_TYPE", on_columns(prompt=[["a"], ["b"]]), ("list",)),
    Case("11 prompts are bytes", "JOB_COLUMN_TYPE", on_columns(prompt=[b"a"]), ("binary",)),
    Case("12 schemas differ", "JOB_SCHEMA_MISMATCH", two_schemas, ("first.parquet", "second.parquet", "'n'")),
    Case("16 reserved column", "JOB_COLUMN_RESERVED", on_columns(prompt=["a"], status=["x"]), ("'status'",)),
    Case("17 all files empty", "JOB_INPUT_EMPTY", on_columns(prompt=pa.array([], pa.string())), ("no rows",)),
    Case("18 empty folder", "JOB_INPUT_EMPTY", lambda root: [str(root)], ("*.parquet",)),
    Case("18 no match", "JOB_INPUT_EMPTY", lambda root: [f"{root}/*.parquet"], ("matches no file",)),
    Case("18 no dataset", "JOB_INPUT_EMPTY", lambda root: [], ("no dataset",)),
    Case("18 no such file", "JOB_INPUT_MISSING", lambda root: [f"{root}/gone.parquet"], ("gone.parquet",)),
    Case(
        "18 no such file, empty allowed",
        "JOB_INPUT_MISSING",
        lambda root: [f"{root}/gone.parquet", "--allow-empty"],
        ("gone.parquet",),
    ),
    Case("18 blank lines", "JOB_INPUT_EMPTY", on_lines(b"\n \r\n"), ("no rows", "--allow-empty")),
    Case("19 text", "JOB_INPUT_CORRUPT", lambda r: [raw(r / "t.parquet", b"id,prompt\n1,x\n")], ("t.parquet",)),
    Case("19 nothing", "JOB_INPUT_CORRUPT", lambda r: [raw(r / "t.parquet", b"")], ("t.parquet", "empty")),
    Case("19 cut", "JOB_INPUT_CORRUPT", lambda r: [damaged(r / "t.parquet", lambda d: d[:-9])], ("cut short",)),
    Case(
        "19 bad footer",
        "JOB_INPUT_CORRUPT",
        lambda r: [damaged(r / "t.parquet", lambda d: d[:-80] + os.urandom(4) + bytes(68) + d[-8:])],
        ("t.parquet",),
    ),
    Case("19 pages outside", "JOB_INPUT_CORRUPT", announcing(chunk=column(pages=1 << 40)), ("outside of the file",)),
    Case(
        "19 nothing but bad files",
        "JOB_INPUT_CORRUPT",
        lambda r: [raw(r / "t.parquet", b"x"), "--on-bad-file", "quarantine"],
        ("t.parquet", "no file"),
    ),
    Case("5 JSONL with bytes", "JOB_INPUT_CORRUPT", on_lines(b'{"prompt": "\xff"}'), ("line 1", "UTF-8")),
    Case("6 JSONL, half a pair", "JOB_INPUT_CORRUPT", on_lines(b'{"prompt": "\\ud800"}'), ("line 1", "surrogate")),
    Case("10 JSONL, no prompt", "JOB_COLUMN_MISSING", on_lines(b'{"question": "a"}'), ("'question'",)),
    Case("11 JSONL, mixed", "JOB_COLUMN_TYPE", on_lines(b'{"prompt": "a"}\n{"prompt": 1}'), ("line 1", "line 2")),
    Case("11 JSONL, numbers", "JOB_COLUMN_TYPE", on_lines(b'{"prompt": 1}'), ("int64",)),
    Case("12 JSONL and Parquet differ", "JOB_SCHEMA_MISMATCH", two_formats, ("b.parquet", "a.jsonl", "'n'")),
    Case("16 JSONL, reserved", "JOB_COLUMN_RESERVED", on_lines(b'{"prompt": "a", "status": 1}'), ("'status'",)),
    Case("19 JSONL, a bad line", "JOB_INPUT_CORRUPT", on_lines(b'{"prompt": "a"}\n{"prompt": hush}'), ("line 2",)),
    Case("19 JSONL, no objects", "JOB_INPUT_CORRUPT", on_lines(b"[1]"), ("line 1", "a list")),
    Case("19 JSONL, not a number", "JOB_INPUT_CORRUPT", on_lines(b'{"prompt": "a", "n": NaN}'), ("line 1", "NaN")),
    Case(
        "19 JSONL, key twice", "JOB_INPUT_CORRUPT", on_lines(b'{"prompt": "a", "prompt": "b"}'), ("'prompt'", "twice")
    ),
    Case("19 gzip cut short", "JOB_INPUT_CORRUPT", on_lines(gzip.compress(b"{}" * 999)[:-9], ".gz"), ("cut short",)),
    Case("19 zstd cut short", "JOB_INPUT_CORRUPT", on_lines(zstd(b'{"prompt": "a"}')[:-3], ".zst"), ("cut short",)),
    Case("19 not gzip", "JOB_INPUT_CORRUPT", on_lines(b'{"prompt": "a"}', ".gz"), ("gzip",)),
    Case("an unfinished output", "JOB_INCOMPLETE", unfinished_output, ("specbatch resume",), exit_code=1),
    Case("a request that is not done", "JOB_INPUT_UNSUPPORTED", on_lines(REQUEST), ("line 1", "body.tools")),
    Case("27 no dataset of a hub", "JOB_URI_INVALID", lambda r: [f"hf://me:{SECRET}@x", "--output", "out"], ("hf://",)),
    Case("21 bomb", "JOB_INPUT_LIMIT", announcing(chunk=column(uncompressed=1 << 40)), ("'prompt'", "announces")),
    Case("21 absurd rows", "JOB_INPUT_LIMIT", announcing(rows=1 << 50), ("row group",)),
    Case(
        "21 too many shards",
        "JOB_INPUT_LIMIT",
        lambda r: [*announcing(rows=1 << 30)(r), "--shard-rows", "1"],
        ("--shard-rows",),
    ),
    Case("22 encrypted", "JOB_INPUT_UNSUPPORTED", lambda r: encrypted_file(r, plaintext_footer=False), ("encrypted",)),
    Case(
        "22 encrypted columns",
        "JOB_INPUT_UNSUPPORTED",
        lambda r: encrypted_file(r, plaintext_footer=True),
        ("encrypted",),
    ),
    Case("22 codec", "JOB_INPUT_UNSUPPORTED", announcing(chunk=column(codec=3)), ("LZO", "zstd")),
    Case("22 unknown codec", "JOB_INPUT_UNSUPPORTED", announcing(chunk=column(codec=42)), ("number 42",)),
    Case("23 extension type", "JOB_INPUT_EXTENSION", extension_file, ("ray.data.arrow_tensor_v2", "'image'")),
    Case("26 output is the dataset", "JOB_URI_OVERLAP", in_folder(output="d"), ("--output",)),
    Case("26 output inside the dataset", "JOB_URI_OVERLAP", in_folder(output="d/out"), ("--output",)),
    Case("27 credentials", "JOB_URI_INVALID", lambda r: [f"s3://me:{SECRET}@bucket/x"], ("credentials",)),
    Case("27 credentials of the output", "JOB_URI_INVALID", with_option("--output", f"s3://me:{SECRET}@bucket/x")),
    Case("27 scheme", "JOB_URI_INVALID", lambda r: [f"https://me:{SECRET}@host/x"], ("https",)),
    Case("27 scheme of the output", "JOB_URI_INVALID", with_option("--output", f"gs://{SECRET}/x"), ("gs",)),
    Case("27 dots", "JOB_URI_INVALID", lambda r: ["s3://bucket/a/../b.parquet"]),
    Case("27 empty segment", "JOB_URI_INVALID", with_option("--output", "s3://bucket/a//b")),
    Case("27 no bucket", "JOB_URI_INVALID", lambda r: ["s3:///b.parquet"]),
    Case("27 pattern", "JOB_URI_INVALID", lambda r: [f"{r}/a**/b.parquet"], ("**",)),
    Case("28 prefix taken", "JOB_PREFIX_TAKEN", taken_folder, ("notes.txt",)),
    Case(
        "29 other vocabulary",
        "JOB_VOCAB_MISMATCH",
        model_copy(edit_json("tokenizer.json", swap_two_tokens)),
        ("token",),
    ),
    Case(
        "33 remote code",
        "JOB_REMOTE_CODE",
        model_copy(edit_json("config.json", lambda c: c.update(auto_map={"AutoModelForCausalLM": "evil.Model"}))),
        ("config.json",),
    ),
    Case(
        "34 pickled weights",
        "JOB_UNSAFE_WEIGHTS",
        model_copy(lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin")),
        ("safetensors",),
    ),
    Case("35 no such model", "JOB_MODEL_MISSING", with_option("--target", "nobody/no-such-model"), ("no-such-model",)),
    Case("41 negative", "JOB_CONFIG", with_option("--max-new-tokens", "-1"), ("generation.max_new_tokens",)),
    Case("41 huge", "JOB_CONFIG", with_option("--shard-rows", "9" * 30), ("execution.shard_rows",)),
    Case("41 not a number", "JOB_CONFIG", job_file("generation:\n  top_p: .nan\n"), ("generation.top_p",)),
    Case("41 infinite", "JOB_CONFIG", job_file("generation:\n  temperature: 1e999\n"), ("generation.temperature",)),
    Case("41 unknown key", "JOB_CONFIG", job_file("generation:\n  sead: 1\n"), ("did you mean generation.seed",)),
    Case("41 duplicate key", "JOB_CONFIG", job_file("generation:\n  seed: 1\n  seed: 2\n"), ("line 3", "twice")),
    Case("42 tag", "JOB_CONFIG", job_file("output: !!python/object/apply:os.system [id]\n"), ("line 1", "tags")),
    Case("42 aliases", "JOB_CONFIG", job_file("input: &x {limit: 3}\nmodels: *x\n"), ("line 2", "aliases")),
    Case("42 bomb of aliases", "JOB_CONFIG", job_file(BOMB), ("aliases",)),
    Case("42 too many values", "JOB_CONFIG", job_file(MANY_VALUES), ("20000 values",)),
    Case("42 nested", "JOB_CONFIG", job_file("output: " + "[" * 5000 + "]" * 5000), ("nested",)),
    Case("42 too large", "JOB_CONFIG", job_file("#" * (1 << 20) + "\n\n"), ("1048576",)),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_job_ends_in_one_line(
    case: Case, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = case.make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert cli.run(["submit", *arguments, "--dry-run"]) == case.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"error: {case.code}: ")
    assert "Traceback" not in line
    assert SECRET not in line
    assert "hush" not in line, "a message repeats nothing of a row"
    assert [text for text in case.says if text not in line] == []
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written, and no code of the input ran"


def test_a_job_with_other_settings_is_refused_with_the_difference(tmp_path: Path, capsys: Capture) -> None:
    """Row 43."""
    from specbatch.jobs.output.ledger import Ledger
    from specbatch.jobs.planning.prepare import prepare
    from specbatch.jobs.spec.settings import flag_layer, resolve
    from specbatch.storage.store import open_store

    dataset, output = good(tmp_path), str(tmp_path / "out")
    prepared = prepare(resolve([flag_layer({"output": output, "seed": 1}, [dataset])]))
    spec = prepared.spec.model_dump(mode="json")
    Ledger(open_store(output)).begin_job(prepared.identity, prepared.models, spec, prepared.shards)
    assert cli.run(["submit", dataset, "--output", output, "--seed", "1", "--dry-run"]) == 0
    capsys.readouterr()
    assert cli.run(["submit", dataset, "--output", output, "--seed", "2", "--dry-run"]) == 2
    assert "error: JOB_SPEC_CHANGED: " in (message := capsys.readouterr().err)
    assert "generation.seed: 1 → 2" in message
    write(tmp_path / "good.parquet", prompt=["a", "c"])
    assert cli.run(["submit", dataset, "--output", output, "--seed", "1", "--dry-run"]) == 2
    assert "error: JOB_SPEC_CHANGED: " in (message := capsys.readouterr().err)
    assert "restore the dataset" in message


@pytest.mark.parametrize(
    ("status", "headers", "code"),
    [
        (403, {"X-Error-Code": "GatedRepo"}, "JOB_MODEL_ACCESS"),
        (401, {"X-Error-Code": "RepoNotFound"}, "JOB_MODEL_MISSING"),
        (500, {}, "JOB_MODEL_MISSING"),
    ],
)
def test_a_model_that_may_not_be_had(
    status: int,
    headers: dict[str, str],
    code: str,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row 35, with what the hub's client raises for such answers; the token is never shown."""
    import huggingface_hub
    from huggingface_hub.errors import Response
    from huggingface_hub.utils import hf_raise_for_status

    http = importlib.import_module(Response.__module__.partition(".")[0])  # whichever client the hub's library has

    def answer(*_: object, **__: object) -> None:
        request = http.Request("GET", "https://hub.test/api/models/some/model/revision/main")
        hf_raise_for_status(http.Response(status, headers=headers, request=request, text=f"token {SECRET}"))

    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    assert cli.run(["submit", good(tmp_path), "--target", "some/model", "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {code}: ")
    assert "some/model" in line
    assert SECRET not in line


def planned(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert cli.run(["plan", *arguments, "--format", "json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_files_without_rows_are_planned_and_listed(tmp_path: Path, capsys: Capture) -> None:
    """Row 17."""
    write(tmp_path / "d" / "a.parquet", prompt=pa.array([], pa.string()))
    write(tmp_path / "d" / "b.parquet", prompt=["x", "y"])
    document = planned(capsys, str(tmp_path / "d"))
    assert [(file["name"], file["rows"]) for file in document["inputs"]] == [("a.parquet", 0), ("b.parquet", 2)]
    assert document["rows"] == 2


def test_hidden_names_are_left_out_and_partition_folders_are_folders(tmp_path: Path, capsys: Capture) -> None:
    """Row 24."""
    for name in ("day=2/a.parquet", "day=1/a.parquet", "_metadata.parquet", ".x/a.parquet", "day=1/_b.parquet"):
        write(tmp_path / "d" / name)
    document = planned(capsys, str(tmp_path / "d"))
    assert [file["name"] for file in document["inputs"]] == ["day=1/a.parquet", "day=2/a.parquet"]


def test_shards_span_many_tiny_files(tmp_path: Path, capsys: Capture) -> None:
    """Row 25; ten million rows are in ``benchmarks/bench_planning.py``."""
    for number in range(300):
        write(tmp_path / "d" / f"{number:03d}.parquet", prompt=[str(number)])
    document = planned(capsys, str(tmp_path / "d"), "--shard-rows", "64")
    assert [shard["row_stop"] - shard["row_start"] for shard in document["shards"]] == [64, 64, 64, 64, 44]


def test_columns_in_another_order_and_doubled_ids_are_no_error(tmp_path: Path, capsys: Capture) -> None:
    """Rows 12 and 14: order may differ; identity is (file, row), so that ids may repeat or be null (15)."""
    write(tmp_path / "d" / "a.parquet", prompt=["x", "y"], id=["same", None])
    write(tmp_path / "d" / "b.parquet", id=["same"], prompt=["z"])
    assert planned(capsys, str(tmp_path / "d"), "--id-column", "id")["rows"] == 3


S3_CASES = (
    ("18 no such object", "JOB_INPUT_MISSING", ["s3://{bucket}/gone.parquet"], "gone.parquet"),
    ("18 empty prefix", "JOB_INPUT_EMPTY", ["s3://{bucket}/text"], "*.parquet"),
    ("19 text", "JOB_INPUT_CORRUPT", ["s3://{bucket}/text/readme.txt"], "s3://"),
    ("26 output is the dataset", "JOB_URI_OVERLAP", ["s3://{bucket}/d", "--output", "s3://{bucket}/d/"], "--output"),
    ("26 output inside", "JOB_URI_OVERLAP", ["s3://{bucket}/d", "--output", "s3://{bucket}/d/out"], "--output"),
    ("26 default inside", "JOB_URI_OVERLAP", ["s3://{bucket}/"], "--output"),
    ("28 a file", "JOB_PREFIX_TAKEN", ["s3://{bucket}/d", "--output", "s3://{bucket}/text/readme.txt"], "is a file"),
    ("28 not ours", "JOB_PREFIX_TAKEN", ["s3://{bucket}/d", "--output", "s3://{bucket}/text"], "readme.txt"),
)


@pytest.fixture
def bucket(s3_server: S3Server, tmp_path: Path) -> str:
    name = s3_server.new_bucket()
    s3_server.put(name, "d/a.parquet", Path(good(tmp_path)).read_bytes())
    s3_server.put(name, "text/readme.txt", b"no data")
    s3_server.put(name, "out/_specbatch/job.json", b"{}")
    return name


def test_an_unfinished_output_on_s3_is_no_dataset(bucket: str, capsys: Capture) -> None:
    assert cli.run(["submit", f"s3://{bucket}/out", "--dry-run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: JOB_INCOMPLETE: ")


@pytest.mark.parametrize(("name", "code", "arguments", "says"), S3_CASES, ids=[case[0] for case in S3_CASES])
def test_bad_jobs_on_s3(name: str, code: str, arguments: list[str], says: str, bucket: str, capsys: Capture) -> None:
    assert cli.run(["submit", *(text.format(bucket=bucket) for text in arguments), "--dry-run"]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"error: {code}: ")
    assert says in line


@pytest.mark.parametrize(
    ("argument", "folder"),
    [("d/a.parquet", "d/a"), ("d", "d"), ("d/", "d"), ("d/*.parquet", "d/d"), ("*/a.parquet", "{bucket}")],
)
def test_the_default_output_lies_beside_the_dataset(argument: str, folder: str, bucket: str, capsys: Capture) -> None:
    document = planned(capsys, f"s3://{bucket}/{argument}")
    expected = f"s3://{bucket}/{folder.format(bucket=bucket)}-{document['identity']['S'][:8]}"
    assert (document["output"], document["state"]) == (expected, "new")


# ---- rows, through a whole job -----------------------------------------------------------

CONTEXT_BYTES = 1 << 16
ROWS: tuple[tuple[str, bytes | None, str | None], ...] = (
    ("fine", b"def f(x):\n    return ", None),
    ("1 null", None, "ROW_PROMPT_NULL"),
    ("2 empty", b"", "ROW_PROMPT_EMPTY"),
    ("2 white space", " \n\t\u00a0\u2028".encode(), "ROW_PROMPT_EMPTY"),
    ("3 over the context", b"x = 1\n" * CONTEXT_BYTES, "ROW_TOO_LONG"),
    ("5 invalid UTF-8", b"hush \xff\xfe", "ROW_ENCODING"),
    ("6 NUL", b"a\0b", None),
    ("6 lone surrogate", b"hush \xed\xa0\x80", "ROW_ENCODING"),
    ("6 byte order mark", b"\xef\xbb\xbfimport os\n", None),
    ("6 bidirectional marks", "x = '\u202e\u2066'\n".encode(), None),
    ("6 terminal escapes", b"\x1b[31mred\x1b]0;title\x07", None),
    ("7 special tokens as text", b"<|endoftext|><|eos|></s><s>[INST]", None),
    ("8 too large", b"hush " * (MAX_PROMPT_BYTES // 5 + 1), "ROW_TOO_LARGE"),
)


@pytest.fixture
def run_job(tmp_path: Path) -> Iterator[Callable[..., tuple[int, str, str]]]:
    # Ray refuses long names of folders for temporary files, and pytest's are long.
    temporary = tempfile.mkdtemp(prefix="sb", dir="/tmp")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPECBATCH_", "RAY_"))}
    environment = {**kept, "HOME": str(tmp_path), "TMPDIR": temporary}

    def run(*arguments: str) -> tuple[int, str, str]:
        command = [str(Path(sys.executable).parent / "specbatch"), *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        return done.returncode, done.stdout, done.stderr

    yield run
    shutil.rmtree(temporary, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
def test_bad_rows_become_error_rows_and_every_row_is_kept_as_it_was(
    tmp_path: Path, run_job: Callable[..., tuple[int, str, str]]
) -> None:
    """Rows 1 to 8, 14 and 15 on the bundled pair: exit 3, or 0 where row errors are allowed."""
    prompts = pa.array([prompt for _, prompt, _ in ROWS], pa.binary()).view(pa.string())
    ids = [None if index % 3 == 0 else "same" for index in range(len(ROWS))]
    dataset, output = tmp_path / "d.parquet", tmp_path / "out"
    pq.write_table(pa.table({"prompt": prompts, "id": ids}), dataset)
    arguments = ["submit", str(dataset), "--output", str(output), "--id-column", "id", "--max-new-tokens", "4"]
    code, out, err = run_job(*arguments, "--draft", "none")
    assert code == 3, err
    assert "Traceback" not in out + err
    assert "hush" not in out + err
    table = pa.concat_tables(pq.ParquetFile(path).read() for path in sorted((output / "data").iterdir()))
    assert table.column("error_code").to_pylist() == [code for _, _, code in ROWS]
    assert table.column("prompt").cast(pa.binary()).to_pylist() == [prompt for _, prompt, _ in ROWS]
    assert table.column("id").to_pylist() == ids
    messages = [message for message in table.column("error_message").to_pylist() if message is not None]
    assert len(messages) == sum(code is not None for _, _, code in ROWS)
    assert not any("hush" in message for message in messages)
    assert run_job(*arguments, "--draft", "none", "--row-errors-ok")[0] == 0
    assert run_job("verify", str(output))[0] == 0


@pytest.mark.ray
@pytest.mark.slow
def test_too_many_bad_rows_end_the_job_and_keep_its_parts(
    tmp_path: Path, run_job: Callable[..., tuple[int, str, str]]
) -> None:
    """Rows 44 and 20: exit 4 over the error budget; exit 1 for a damaged page, on the first attempt."""
    dataset, output = tmp_path / "d.parquet", tmp_path / "out"
    pq.write_table(pa.table({"prompt": pa.array([None] * 1200 + ["x = 1"] * 100, pa.string())}), dataset)
    arguments = ["submit", str(dataset), "--output", str(output), "--max-new-tokens", "2", "--draft", "none"]
    code, out, err = run_job(*arguments)
    assert code == 4, err
    assert "JOB_ERROR_RATE" in err
    assert "Traceback" not in out + err
    assert not (output / "manifest.json").exists()
    assert list((output / "data").iterdir()) != []
    code, _, err = run_job(*arguments, "--max-error-rate", "1")
    assert code == 3, err

    page = tmp_path / "page.parquet"
    text = "hello world, this is stored as it is"
    plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"prompt": [text]}), page, write_page_checksum=True, **plain)
    raw(page, page.read_bytes().replace(b"hello world", b"jello world"))
    code, out, err = run_job("submit", str(page), "--output", str(tmp_path / "page-out"), "--draft", "none")
    assert code == 1, err
    assert "SHARD_INPUT_CORRUPT" in err
    assert "page.parquet" in err
    assert "Traceback" not in out + err
