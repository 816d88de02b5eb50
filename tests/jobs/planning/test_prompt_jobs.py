"""From options to prompts: what is refused before any model is loaded, what the identity holds, and whole jobs."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specbatch import load
from specbatch.jobs.planning.prepare import PreparedJob, prepare
from specbatch.jobs.planning.text import render_plan
from specbatch.jobs.planning.unique_ids import check_unique_ids
from specbatch.jobs.reports.facts import describe_model
from specbatch.jobs.spec.settings import (
    environment_layer,
    flag_layer,
    read_job_file,
    resolve,
    set_layer,
    with_text_files,
)
from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.spec import GenerationSpec
from specbatch.specdec.models.folders import locate_model
from specbatch.storage.inputs import read_inputs

TEMPLATE = "{% for m in messages %}<|bos|>{{ m.role }}: {{ m.content }}<|eos|>{% endfor %}<|bos|>assistant:"
ROWS: dict[str, Any] = {
    "prompt": ["def a(x):", "def b(x):", "def c(x):"],
    "chat": [[{"role": "user", "content": f"def {name}(x):"}] for name in "abc"],
    "key": ["a", "b", "c"],
    "max_new_tokens": [3, None, 5],
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled target with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chatty"
    shutil.copytree(locate_model("code-pair/target").path, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table(ROWS), path)
    return path


def prepared(dataset: Path, **options: Any) -> PreparedJob:
    return prepare(resolve([flag_layer({"draft": "none", **options}, [str(dataset)])]))


def refused(dataset: Path, **options: Any) -> tuple[str, str]:
    with pytest.raises(SpecbatchError) as caught:
        prepared(dataset, **options)
    assert "\n" not in caught.value.message
    return caught.value.code.value, caught.value.message


# ---- @FILE -----------------------------------------------------------------------------------------------------------


def test_a_text_may_stand_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.jinja").write_text("line {{ a }}\n\n")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "s.txt").write_bytes(b"\xef\xbb\xbfBe brief.\r\n")
    (tmp_path / "jobs" / "job.yaml").write_text('input:\n  system: "@s.txt"\n  prompt_column: "@s.txt"\n')
    monkeypatch.chdir(tmp_path)
    layer = with_text_files(flag_layer({"template": "@t.jinja"}))
    assert layer.values["input.template"] == "line {{ a }}\n"
    assert layer.origins["input.template"] == "--template"
    assert with_text_files(set_layer(["input.system=@jobs/s.txt"])).values == {"input.system": "Be brief."}
    assert with_text_files(environment_layer({"SPECBATCH_SYSTEM": "@@home"})).values == {"input.system": "@home"}
    found = read_job_file(tmp_path / "jobs" / "job.yaml").values
    assert found == {"input.system": "Be brief.", "input.prompt_column": "@s.txt"}


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("gone", None, "No such file"),
        ("", None, ""),
        ("large", b"x" * (5 << 20), "larger"),
        ("bytes", b"\xff", "UTF-8"),
    ],
)
def test_a_text_file_that_cannot_be_read(name: str, data: bytes | None, says: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(SpecbatchError) as caught:
        with_text_files(flag_layer({"system": f"@{name}"}), tmp_path)
    assert caught.value.code == "JOB_CONFIG"
    assert "--system" in caught.value.message
    assert says in caught.value.message


def test_a_long_text_is_not_repeated_in_a_message() -> None:
    options = {"messages_column": "chat", "template": "secret {{ x }}" * 1000}
    with pytest.raises(SpecbatchError) as caught:
        resolve([flag_layer(options)])
    assert "messages_column" in caught.value.message
    assert "secret" not in caught.value.message


# ---- quantized weights -----------------------------------------------------------------------------------------------


def test_quantization_is_the_jobs_identity_and_shown(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    dense = prepared(dataset)
    assert "quantization" not in dense.identity.fields["model"], "identities of dense jobs stay as they were"
    assert dense.models.target.quantization is None
    job = prepared(dataset, quantization="torchao-int8")
    expected = {
        "method": "torchao", "config": {"quant_type": "Int8WeightOnlyConfig"}, "applied": "on loading",
        "weights": "quantized",
    }  # fmt: skip
    assert job.models.target.quantization == job.identity.fields["model"]["quantization"] == expected
    assert (dense.identity.fields["model"]["path"], job.identity.fields["model"]["path"]) == ("lean", "generic")
    assert job.identity.S not in (dense.identity.S, prepared(dataset, quantization="torchao-float8").identity.S)
    assert "quantized: torchao-int8)" in render_plan(job, "human")
    assert describe_model(job.models.target).endswith("quantized on loading by torchao Int8WeightOnlyConfig")


def test_a_quantization_that_cannot_work_is_refused(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(dataset, quantization="int3")[0] == "JOB_CONFIG"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, message = refused(dataset, quantization="torchao-int8")
    assert code == "JOB_PACKAGE_MISSING"
    assert "pip install torchao" in message
    assert refused(dataset, quantization="torchao-int8", dtype="float64")[0] == "JOB_CONFIG"


# ---- refused before any model is loaded ------------------------------------------------------------------------------


def test_contradictions_and_misspellings_are_refused(dataset: Path, target: Path) -> None:
    assert refused(dataset, template="{{ prompt }}", prompt_column="prompt")[0] == "JOB_CONFIG"
    assert refused(dataset, messages_column="chat", prompt_column="prompt", target=str(target))[0] == "JOB_CONFIG"
    assert "did you mean 'prompt'?" in refused(dataset, template="{{ promt }}")[1]
    assert refused(dataset, template="{{ prompt ")[0] == "JOB_CONFIG"
    assert refused(dataset, messages_column="key2")[0] == "JOB_COLUMN_MISSING"
    assert refused(dataset, messages_column="max_new_tokens")[0] == "JOB_COLUMN_TYPE"
    code, message = refused(dataset, system="Be brief.")
    assert (code, "code-pair" in message or "target" in message) == ("JOB_CONFIG", True)
    assert "chat template" in message
    assert refused(dataset, seed_by="id")[0] == "JOB_CONFIG"
    assert refused(dataset, keep_columns=["nothing"])[0] == "JOB_COLUMN_MISSING"
    assert refused(dataset, rename=["key=status"])[0] == "JOB_COLUMN_RESERVED"


def test_a_stored_job_names_its_prompt_column_although_nobody_chose_it(dataset: Path) -> None:
    from specbatch.jobs.output.jobdocument import JOB_KEY
    from specbatch.jobs.spec.settings import Layer

    values = {"input.datasets": [str(dataset)], "input.prompt_column": "prompt", "input.template": "{{ key }}"}
    prepare(resolve([Layer(values, dict.fromkeys(values, JOB_KEY)), flag_layer({"draft": "none"})]))


# ---- identity --------------------------------------------------------------------------------------------------------


def test_the_identity_has_the_chat_template_where_one_is_used(dataset: Path, target: Path) -> None:
    plain = prepared(dataset, target=str(target)).identity
    assert plain.fields["prompt"] == {"column": "prompt"}
    chats = prepared(dataset, target=str(target), messages_column="chat").identity
    digest = chats.fields["prompt"]["chat_template"]
    assert chats.fields["prompt"] == {"column": "prompt", "messages_column": "chat", "chat_template": digest}
    assert len(digest) == 64
    system = prepared(dataset, target=str(target), system="s").identity
    assert system.fields["prompt"]["chat_template"] == digest
    assert "chat_template" not in prepared(dataset, template="{{ key }}").identity.fields["prompt"]


def test_the_parts_have_the_columns_that_were_asked_for(dataset: Path) -> None:
    job = prepared(dataset, keep_columns=["key", "prompt"], rename=["key=id"])
    assert job.pass_through.new == ("id", "prompt")
    assert job.columns == tuple(ROWS)


# ---- ids -------------------------------------------------------------------------------------------------------------


def write_ids(folder: Path, *files: list[Any]) -> list[str]:
    for number, keys in enumerate(files):
        table = pa.table({"prompt": ["p"] * len(keys), "key": pa.array(keys)})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=2)
    return [str(folder / f"{number}.parquet") for number in range(len(files))]


def check_ids(paths: list[str], num_rows: int = 1000) -> str | None:
    try:
        check_unique_ids(read_inputs(paths).files, num_rows, "key")
    except SpecbatchError as error:
        return str(error)
    return None


def test_ids_of_a_dataset_are_looked_at_across_files(tmp_path: Path) -> None:
    paths = write_ids(tmp_path, ["a", "b", None, "d"], [None, "e", "secret", "f", "secret"])
    message = check_ids(paths)
    assert message is not None
    assert message.startswith("JOB_ID_DUPLICATE: rows 6 and 8")
    assert "secret" not in message
    assert check_ids(paths, num_rows=8) is None
    assert "rows 1 and 4" in (check_ids(write_ids(tmp_path, [1, 2, 3], [4, 2])) or "")
    assert check_ids(write_ids(tmp_path, [1, 2, 3], [4, 5])) is None


def test_a_job_with_ids_that_are_not_unique_is_refused(tmp_path: Path) -> None:
    (path,) = write_ids(tmp_path, ["a", "b", "a"])
    options = {"seed_by": "id", "id_column": "key"}
    assert refused(Path(path), **options)[0] == "JOB_ID_DUPLICATE"
    assert prepared(Path(path), limit=2, **options).identity.fields["generation"]["seed_by"] == "id"
    prepared(Path(path), id_column="key")


# ---- whole jobs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    # Ray refuses long names of folders for temporary files, and pytest's are long.
    temporary = tempfile.mkdtemp(prefix="sb", dir="/tmp")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPECBATCH_", "RAY_"))}
    yield {**kept, "HOME": str(tmp_path_factory.mktemp("home")), "TMPDIR": temporary}
    shutil.rmtree(temporary, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_a_job_of_chats_says_what_the_engine_says_to_each_of_them(
    tmp_path: Path, target: Path, dataset: Path, environment: dict[str, str]
) -> None:
    from specbatch.schemas.prompt import ChatText
    from specbatch.specdec import Engine

    (tmp_path / "template.jinja").write_text("# {{ key|upper }}\n{{ prompt }}\n")
    runs = {
        "chats": ["--messages-column", "chat", "--system", "Be brief.", "--row-params"],
        "template": ["--template", "@template.jinja", "--keep-columns", "key", "--rename", "key=id", "--seed-by", "id"],
    }
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, options in runs.items():
        command = [str(Path(sys.executable).parent / "specbatch"), "submit", str(dataset), "--target", str(target)]
        common = ["--output", name, "--draft", "code-pair/draft-taught", "--max-new-tokens", "8", "--id-column", "key"]
        sampling = ["--temperature", "0.7", "--num-samples", "2", "--seed", "5", "--format", "json"]
        done = subprocess.run(
            [*command, *common, *sampling, *options],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["counts"]["ok"] == 6
        rows[name] = load(tmp_path / name).to_pylist()
    engine = Engine.from_pretrained(target, max_batch_size=1, speculation="off")
    for name, found in rows.items():
        texts, params = [], []
        for row in found:
            index = row["row_id"]
            question, key = ROWS["prompt"][index], ROWS["key"][index]
            chat = f"<|bos|>system: Be brief.<|eos|><|bos|>user: {question}<|eos|><|bos|>assistant:"
            texts.append(ChatText(chat) if name == "chats" else f"# {key.upper()}\n{question}")
            most = ROWS["max_new_tokens"][index] if name == "chats" else None
            one = GenerationSpec(max_new_tokens=most or 8, temperature=0.7)
            params.append(one.sampling_params(row["row_seed"]))
        alone = engine.generate(texts, params)
        assert [list(output.token_ids) for output in alone] == [row["completion_token_ids"] for row in found]
        assert [output.num_prompt_tokens for output in alone] == [row["num_prompt_tokens"] for row in found]
    assert list(rows["template"][0])[:2] == ["id", "row_id"]
    assert max(row["num_completion_tokens"] for row in rows["chats"][:2]) <= 3
