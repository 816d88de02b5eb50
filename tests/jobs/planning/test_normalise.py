"""JSONL from the command to the parts: copied once, pinned by its original, found again by every later run."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import S3Server
from stored_output import begin as begin_output
from stored_output import finish

import specbatch
from specbatch.jobs.cli import app as cli
from specbatch.jobs.output.ledger import Ledger, StoredJob
from specbatch.jobs.planning import normalise
from specbatch.jobs.planning.normalise import home_of, place_copies
from specbatch.jobs.planning.prepare import PreparedJob, prepare
from specbatch.jobs.spec.settings import Layer, flag_layer, resolve
from specbatch.jobs.upkeep.gc import collect_garbage
from specbatch.jobs.upkeep.resume import prepare_resume, prepare_stored, resume_settings
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.messages import Lease, WorkerConfig
from specbatch.schemas.prompt import PromptSpec
from specbatch.schemas.rows import ResultForm
from specbatch.storage import jsonl
from specbatch.storage.store import open_store
from specbatch.workers.reading import ShardReader

ASSETS = Path(specbatch.__file__).parent / "assets" / "code-pair"
NO_CHANGES = Layer({}, {})
ROWS = [{"prompt": f"prompt {n % 7}", "n": n, "meta": {"tags": [str(n)]}} for n in range(40)]


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def refused(code: ErrorCode, call: Callable[[], object]) -> str:
    with pytest.raises(SpecbatchError) as caught:
        call()
    assert caught.value.code is code, str(caught.value)
    assert "\n" not in caught.value.message
    return caught.value.message


def plan(*datasets: Path, **options: Any) -> PreparedJob:
    texts = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    names = [texts.pop("dataset_uri")] if "dataset_uri" in texts else [str(path) for path in datasets]
    return prepare(resolve([flag_layer({"device": "cpu", **texts}, names)]))


def begin(prepared: PreparedJob) -> tuple[PreparedJob, StoredJob]:
    """What a run does before it has any worker."""
    prepared = place_copies(prepared)
    ledger = Ledger(open_store(prepared.output))
    spec = prepared.spec.model_dump(mode="json")
    return prepared, ledger.begin_job(prepared.identity, prepared.models, spec, prepared.shards)


def worker_config(prepared: PreparedJob, **changes: Any) -> WorkerConfig:
    return WorkerConfig(
        worker=0,
        output=prepared.output,
        plan=prepared.identity.P,
        target_path=str(prepared.target.path),
        draft_path=None,
        dtype="float32",
        device="cpu",
        speculation="off",
        batch_size=1,
        num_threads=1,
        prompt=PromptSpec.of(prepared.spec),
        generation=prepared.spec.generation,
        pass_through=prepared.pass_through,
        form=ResultForm.of(prepared.spec),
        **changes,
    )


def read_all(prepared: PreparedJob, **changes: Any) -> pa.Table:
    """The columns that the parts of a job would have, as a worker reads them."""
    reader = ShardReader(worker_config(prepared, **changes), lambda text: list(text.encode()), 4096)
    return pa.concat_tables([reader.load(Lease(shard, 1)).table for shard in prepared.shards])


def no_copying(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_copy(*_: Any) -> None:
        raise AssertionError("it was copied before")

    def observe(*_: Any) -> None:
        raise AssertionError("it was read before")

    monkeypatch.setattr(jsonl, "write_copy", write_copy)
    monkeypatch.setattr(jsonl, "observe", observe)


def test_planning_writes_nothing_and_reads_from_a_temporary_copy(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", ROWS)
    prepared = plan(path, output=tmp_path / "out", shard_rows=16)
    assert sorted(tmp_path.iterdir()) == [path]
    assert read_all(prepared).to_pylist() == ROWS
    assert [shard.num_rows for shard in prepared.shards] == [14, 13, 13]


def test_a_job_reads_its_copies_in_the_output(tmp_path: Path) -> None:
    for name, rows in (("a.jsonl", ROWS[:20]), ("b.jsonl.gz", ROWS[20:])):
        write_lines(tmp_path / "d" / name, rows)
    planned = plan(tmp_path / "d", output=tmp_path / "out")
    spools = [copy.spool for copy in planned.copies]
    prepared, stored = begin(planned)
    paths = {segment.path for shard in stored.shards for segment in shard.segments}
    assert all(Path(path).parent == tmp_path / "out" / "_specbatch" / "input" for path in paths)
    assert len(paths) == 2
    assert not any(spool is not None and spool.exists() for spool in spools)
    assert read_all(prepared).to_pylist() == ROWS
    assert stored.document.identity.fields["jsonl"] == "specbatch/jsonl/1"


@pytest.mark.parametrize("output", [None, "out"])
def test_a_second_submit_and_a_resume_copy_nothing(
    output: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "d.jsonl.gz", ROWS)
    given = {} if output is None else {"output": tmp_path / output}
    prepared, stored = begin(plan(path, **given))
    no_copying(monkeypatch)
    again = plan(path, shard_rows=5, **given)
    assert again.identity.S == prepared.identity.S
    assert again.output == prepared.output
    assert [copy.spool for copy in again.copies] == [None]
    resumed = prepare_resume(prepared.output, NO_CHANGES)
    assert resumed.identity == stored.document.identity
    assert read_all(place_copies(resumed)).to_pylist() == ROWS


def test_the_copies_of_a_job_on_s3_lie_there_too(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3_server.new_bucket()
    local = [
        write_lines(tmp_path / name, ROWS[start : start + 20]) for name, start in (("a.jsonl", 0), ("b.jsonl", 20))
    ]
    for path in local:
        s3_server.put(bucket, f"d/{path.name}", path.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(normalise, "_MAX_COPY_BYTES", 10)
        planned = plan(dataset_uri=f"s3://{bucket}/d")
        assert "split" in refused(ErrorCode.JOB_INPUT_LIMIT, lambda: place_copies(planned))
    prepared, stored = begin(plan(dataset_uri=f"s3://{bucket}/d"))
    assert prepared.output.startswith(f"s3://{bucket}/d-")
    assert {segment.path.rpartition("/")[0] for shard in stored.shards for segment in shard.segments} == {
        f"{prepared.output}/_specbatch/input"
    }
    no_copying(monkeypatch)
    assert read_all(prepare_resume(prepared.output, NO_CHANGES)).to_pylist() == ROWS


def test_a_copy_that_was_lost_is_made_again(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", ROWS)
    prepared, _ = begin(plan(path, output=tmp_path / "out"))
    (copy,) = (tmp_path / "out" / "_specbatch" / "input").iterdir()
    data = copy.read_bytes()
    copy.unlink()
    assert read_all(place_copies(prepare_resume(prepared.output, NO_CHANGES))).to_pylist() == ROWS
    assert copy.read_bytes() == data


def test_a_changed_original_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", ROWS)
    prepared, _ = begin(plan(path, output=tmp_path / "out"))
    write_lines(path, [*ROWS[:-1], {**ROWS[-1], "n": 0}])
    message = refused(ErrorCode.JOB_SPEC_CHANGED, lambda: prepare_resume(prepared.output, NO_CHANGES))
    assert "d.jsonl" in message
    assert "restore the dataset" in message
    path.unlink()
    refused(ErrorCode.JOB_INPUT_MISSING, lambda: prepare_resume(prepared.output, NO_CHANGES))


def test_a_copy_that_is_none_of_the_original_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", ROWS)
    prepared, _ = begin(plan(path, output=tmp_path / "out"))
    (copy,) = (tmp_path / "out" / "_specbatch" / "input").iterdir()
    pq.write_table(pa.table({"prompt": ["other"]}), copy)
    refused(ErrorCode.JOB_INPUT_CHANGED, lambda: prepare_resume(prepared.output, NO_CHANGES))
    refused(ErrorCode.JOB_INPUT_CHANGED, lambda: read_all(prepared))


def test_an_amendment_reads_the_copies_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "d.jsonl", ROWS)
    _, stored = begin(plan(path, output=tmp_path / "out"))
    no_copying(monkeypatch)
    child = str(tmp_path / "out" / "amendments" / "1")
    assert home_of(child) == str(tmp_path / "out")
    prepared = prepare_stored(stored, resume_settings(stored, NO_CHANGES, output=child))
    assert Path(prepared.inputs[0].path).parent == tmp_path / "out" / "_specbatch" / "input"


def test_jsonl_of_the_same_name_in_two_jobs_of_one_folder_does_not_meet(tmp_path: Path) -> None:
    """A beginning that was killed leaves its copies; a later job with other rows neither uses nor keeps them."""
    path = write_lines(tmp_path / "d.jsonl", ROWS)
    place_copies(plan(path, output=tmp_path / "out"))
    write_lines(path, ROWS[:5])
    prepared, _ = begin(plan(path, output=tmp_path / "out"))
    folder = tmp_path / "out" / "_specbatch" / "input"
    assert len(list(folder.iterdir())) == 2
    assert collect_garbage(prepared.output).num_copies == 1
    assert read_all(prepared).to_pylist() == ROWS[:5]
    assert collect_garbage(prepared.output).num_copies == 0


def test_prompts_that_are_not_all_text_are_refused_with_their_lines(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"prompt": "x"}, {"prompt": 3}])
    message = refused(ErrorCode.JOB_COLUMN_TYPE, lambda: plan(path, output=tmp_path / "out"))
    assert "line 1" in message
    assert "line 2" in message


def test_mixed_columns_are_told(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"prompt": "x", "v": 1}, {"prompt": "y", "v": "z"}])
    (note,) = plan(path, output=tmp_path / "out").notes
    assert "'v' is kept as JSON text" in note


def request(number: int, **body: Any) -> dict[str, Any]:
    body = {"model": "gpt", "prompt": f"p{number}", **body}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/completions", "body": body}


def test_an_openai_batch_file_names_its_own_columns(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [request(0, max_tokens=3), request(1, temperature=0.5, seed=4)])
    prepared = plan(path, output=tmp_path / "out")
    given = prepared.spec.input
    assert (given.id_column, given.row_params, given.messages_column) == ("custom_id", True, None)
    assert prepared.settings.origins["input.id_column"] == "OpenAI batch file"
    assert [row["max_new_tokens"] for row in read_all(prepared).to_pylist()] == [3, None]
    assert any("'model'" in note for note in prepared.notes)
    _, stored = begin(prepared)
    assert prepare_resume(prepared.output, NO_CHANGES).identity == stored.document.identity
    own = plan(path, output=tmp_path / "other", id_column="model")
    assert own.spec.input.id_column == "model"


def test_settings_of_a_whole_job_are_compared_at_every_submit(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [request(0, stop="END")])
    assert "--stop" in refused(ErrorCode.JOB_INPUT_UNSUPPORTED, lambda: plan(path, output=tmp_path / "out"))
    place_copies(plan(path, output=tmp_path / "out", stop=["END"]))
    refused(ErrorCode.JOB_INPUT_UNSUPPORTED, lambda: plan(path, output=tmp_path / "out"))


CHAT_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def errors_of(prepared: PreparedJob) -> list[str | None]:
    """The code of each row that has no prompt, None of the others."""
    reader = ShardReader(worker_config(prepared), lambda text: list(text.encode()), 4096)
    rows = [row for shard in prepared.shards for row in reader.load(Lease(shard, 1)).rows]
    return [getattr(row, "error_code", None) for row in rows]


def test_a_malformed_chat_is_an_error_row_and_leaves_the_others_alone(tmp_path: Path) -> None:
    """Row 13 of the bad-input matrix."""
    shutil.copytree(ASSETS / "draft-taught", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    chat = [{"role": "user", "content": "hi"}]
    bad = ["hi", [], [1], [{"content": "x"}], [{"role": 1, "content": "x"}], [{"role": "user", "content": 2}], {}]
    path = write_lines(tmp_path / "d.jsonl", [{"messages": value} for value in [chat, *bad, None, chat]])
    prepared = plan(path, output=tmp_path / "out", messages_column="messages", target=tmp_path / "model")
    assert errors_of(prepared) == [None, *["ROW_MESSAGES"] * len(bad), "ROW_PROMPT_NULL", None]
    passed = read_all(prepared).column("messages").to_pylist()
    assert [None if text is None else json.loads(text) for text in passed] == [chat, *bad, None, chat]


def test_a_template_that_fails_fails_its_row(tmp_path: Path) -> None:
    """Row 32 of the bad-input matrix."""
    rows = [{"a": 4, "b": 2}, {"a": 4, "b": 0}, {"a": 4}, {"a": 4, "b": 1 << 40}]
    path = write_lines(tmp_path / "d.jsonl", rows)
    prepared = plan(path, output=tmp_path / "out", template="{{ a // b }} {{ 'x' * b }}")
    assert errors_of(prepared) == [None, "ROW_TEMPLATE", "ROW_TEMPLATE", "ROW_TEMPLATE"]
    refused(ErrorCode.JOB_CONFIG, lambda: plan(path, output=tmp_path / "out", template="{{ a "))
    refused(ErrorCode.JOB_COLUMN_MISSING, lambda: plan(path, output=tmp_path / "out", template="{{ c }}"))


# ---- outputs as datasets, bad files -----------------------------------------------------------


def test_files_that_were_left_out_are_remembered(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    write_lines(folder / "a.jsonl", ROWS[:4])
    (folder / "b.jsonl").write_bytes(b'{"prompt": \n')
    (folder / "c.parquet").write_bytes(b"junk")
    write_lines(folder / "z.jsonl", ROWS[6:9])
    prepared, stored = begin(plan(folder, output=tmp_path / "out", on_bad_file="quarantine"))
    assert len(prepared.notes) == 2
    assert "b.jsonl line 1" in prepared.notes[0]
    recorded = stored.document.identity.fields["quarantined"]
    assert recorded == [["b.jsonl", "JOB_INPUT_CORRUPT"], ["c.parquet", "JOB_INPUT_CORRUPT"]]
    write_lines(folder / "b.jsonl", ROWS[4:6])
    resumed = prepare_resume(prepared.output, NO_CHANGES)
    assert resumed.identity == stored.document.identity, "a job goes on with the files that it began with"
    write_lines(folder / "a.jsonl", []).write_bytes(b'{"prompt": \n')
    message = refused(ErrorCode.JOB_INPUT_CORRUPT, lambda: prepare_resume(prepared.output, NO_CHANGES))
    assert "a.jsonl line 1" in message
    write_lines(folder / "a.jsonl", ROWS[:4])
    again = plan(folder, output=tmp_path / "out", on_bad_file="quarantine")
    assert again.identity.S != stored.document.identity.S, "another submit sees that the file is sound now"


def test_results_of_one_job_are_the_dataset_of_another(tmp_path: Path) -> None:
    output = begin_output(tmp_path)
    finish(output, {(3, 0): "ROW_PROMPT_NULL"})
    prepared = plan(tmp_path / "out", output=tmp_path / "next", rename=["completion=answer"])
    assert prepared.pass_through.new == ("prompt", "tag", "answer")
    table = read_all(prepared)
    assert table.column("answer").to_pylist()[2:5] == ["text 2", None, "text 4"]
    prepared = plan(tmp_path / "out", output=tmp_path / "next", prompt_column="completion")
    assert prepared.pass_through.new == ("prompt", "tag")
    shard = prepared.shards[0]
    assert shard.num_rows == 20 or len(prepared.shards) > 1
    assert read_all(prepared).schema.names == ["prompt", "tag"]


# ---- nothing at all -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "parquet", "jsonl", "glob"])
def test_a_dataset_without_rows_is_a_complete_job_where_that_is_allowed(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d").mkdir()
    dataset = str(tmp_path / "d")
    if kind == "parquet":
        pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "d" / "a.parquet")
    elif kind == "jsonl":
        (tmp_path / "d" / "a.jsonl").write_bytes(b"\n\n")
    elif kind == "glob":
        dataset += "/*.parquet"
    output = str(tmp_path / "out")
    submit = ["submit", dataset, "--output", output, "--device", "cpu", "--format", "json"]
    assert cli.run(submit) == 2
    assert "JOB_INPUT_EMPTY" in capsys.readouterr().err
    assert cli.run([*submit, "--allow-empty"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["parts"], document["counts"]["rows"]) == (0, 0)
    for name in ("manifest.json", "_SUCCESS", "_specbatch/job.json"):
        assert (tmp_path / "out" / name).is_file()
    assert cli.run([*submit, "--allow-empty"]) == 0, "the same again: it is complete"
    capsys.readouterr()
    assert cli.run(["resume", output]) == 0
    assert cli.run(["verify", output]) == 0
    assert cli.run(["report", output]) == 0
    assert cli.run(["status", output]) == 0


def test_columns_are_still_checked_where_a_file_without_rows_has_some(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"question": pa.array([], pa.string())}), path)
    refused(ErrorCode.JOB_COLUMN_MISSING, lambda: plan(path, output=tmp_path / "out", allow_empty=True))


def test_a_parquet_dataset_has_the_identity_that_it_had(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["a"]}), path)
    prepared = plan(path, output=tmp_path / "out")
    assert not {"jsonl", "hub", "quarantined"} & prepared.identity.fields.keys()
    assert prepared.copies == ()
    assert prepared.notes == ()
    assert place_copies(prepared) is prepared
    assert open_store(prepared.output).list("") == []
