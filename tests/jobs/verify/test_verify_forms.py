"""``verify`` and ``verify --deep`` on outputs of every form, decoded for real: sound as they are, each lie is found."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_output import build, edit_manifest, rewrite_part

from specbatch import load
from specbatch.jobs.output.ledger import Ledger, StoredJob
from specbatch.jobs.output.manifest import success_digest
from specbatch.jobs.planning.prepare import PreparedJob, prepare
from specbatch.jobs.running import job
from specbatch.jobs.spec.settings import Layer, flag_layer, resolve
from specbatch.jobs.upkeep.repair import prepare_repair
from specbatch.jobs.verify.seeds import SeedRules, check_seeds, id_texts, seed_rules
from specbatch.jobs.verify.verify import VerifyReport, verify_output
from specbatch.schemas.canonical import sha256_hex
from specbatch.schemas.messages import Lease, WorkerConfig
from specbatch.schemas.plan import part_name
from specbatch.schemas.prompt import PromptSpec
from specbatch.schemas.rows import ResultForm
from specbatch.schemas.seeds import prompt_seed, row_seed
from specbatch.specdec.models.folders import locate_model
from specbatch.storage.store import open_store
from specbatch.workers.worker import Worker

CHAT = "{% for m in messages %}<|bos|>{{ m.role }}: {{ m.content }}<|eos|>{% endfor %}<|bos|>assistant:"
ROWS: dict[str, Any] = {
    "prompt": ["def a(x):", "def b(x):", None, "def a(x):", "class A:", "import os\n", "def b(x):"],
    "key": ["k0", "k1", "k2", "k3", "k4", "k5", "k6"],
    "chat": [[{"role": "user", "content": f"say {name}"}] for name in "abcdefg"],
    "n": [1.5, None, float("nan"), 4.0, 5.0, 6.0, 7.0],
    "temperature": [None, 0.5, 0.5, -1.0, 0.9, None, 0.5],
    "seed": [None, 7, None, 8, (1 << 63) - 1, None, -5],
    "max_new_tokens": [None, 2, None, None, 3, 0, None],
}


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "chatty"
    shutil.copytree(locate_model("code-pair/target").path, folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(ROWS), path, row_group_size=3)
    return path


def decode(prepared: PreparedJob, stored: StoredJob, ledger: Ledger, missing: set[int] | None = None) -> None:
    """What a run does, without Ray."""
    config = WorkerConfig(
        worker=0,
        output=prepared.output,
        plan=stored.plan,
        target_path=str(prepared.target.path),
        draft_path=None,
        dtype=prepared.execution.dtype,
        device="cpu",
        speculation="off",
        batch_size=4,
        num_threads=1,
        prompt=PromptSpec.of(prepared.spec),
        generation=prepared.spec.generation,
        pass_through=prepared.pass_through,
        form=ResultForm.of(prepared.spec),
        duplicates=prepared.duplicates,
    )
    shards = [shard for shard in stored.shards if missing is None or shard.index in missing]
    worker = Worker(config)
    worker.ready()
    num_done, deadline = 0, time.monotonic() + 60
    try:
        for shard in shards:
            worker.assign(Lease(shard, attempt=1))
        while num_done < len(shards):
            news = worker.poll(5.0)
            assert not news.failures, news.failures
            num_done += len(news.receipts)
            assert time.monotonic() < deadline
    finally:
        worker.stop()
    receipts = [
        replace(receipt, sha256=ledger.hash_part(receipt.path)) for receipt in ledger.find_parts(stored).values()
    ]
    ledger.commit(stored, prepared.models, receipts)


def make(tmp_path: Path, path: Path | None = None, **options: Any) -> str:
    """A finished job over the rows above."""
    given = {
        "output": str(tmp_path / "out"),
        "draft": "none",
        "speculation": "off",
        "device": "cpu",
        "max_new_tokens": 4,
        "shard_rows": 3,
        "seed": 11,
        **options,
    }
    prepared = prepare(resolve([flag_layer(given, [str(path or dataset(tmp_path))])]))
    ledger = Ledger(open_store(prepared.output))
    prepared, _, stored = job._begin(ledger, prepared, None)
    decode(prepared, stored, ledger)
    return prepared.output


def sound(uri: str, num_again: int | None = None) -> VerifyReport:
    report = verify_output(uri, deep=True)
    assert report.problems == ()
    assert report.state == "sound"
    (again,) = [note for note in report.notes if "again" in note]
    assert again.startswith("decoded "), report.notes
    if num_again is not None:
        assert again.startswith(f"decoded {num_again} results")
    return report


SAMPLED = {"num_samples": 2, "temperature": 0.8}


@pytest.mark.parametrize(
    ("options", "num_again"),
    [
        ({"output_prefix": "gen.", "compression": "gzip", "row_group_rows": 2, "logprobs": True}, 6),
        ({"template": "# {{ key }} {{ n }}\n{{ row['prompt'] or 'x' }}", "rename": ["key=name", "n=m"]}, 6),
        ({"rename": ["prompt=question"], "keep_columns": ["n", "prompt"], "output_prefix": "x_"}, 6),
        ({"row_params": True, **SAMPLED}, None),
        ({"row_params": True, "rename": ["seed=s", "temperature=t"], "temperature": 0.7}, None),
        ({"row_params": True, "keep_columns": ["prompt"], "temperature": 0.7}, None),
        ({"seed_by": "id", "id_column": "key", "rename": ["key=name"], **SAMPLED}, 8),
        ({"seed_by": "id", "id_column": "key", "keep_columns": ["prompt"], **SAMPLED}, 8),
        ({"seed_by": "id", "id_column": "key", "row_params": True, **SAMPLED}, None),
        ({"dedupe": "mark", "output_prefix": "x_"}, 6),
        ({"dedupe": "mark", "row_params": True, "temperature": 0.4}, None),
        pytest.param({"truncate_prompt": "left", "template": "{{ prompt or 'y' }}" * 440}, 7, marks=pytest.mark.slow),
    ],
)
def test_outputs_of_every_form_are_sound(tmp_path: Path, options: dict[str, Any], num_again: int | None) -> None:
    sound(make(tmp_path, **options), num_again)


@pytest.mark.parametrize(
    "options",
    [
        {"messages_column": "chat"},
        {"messages_column": "chat", "system": "Be brief.", "dedupe": "mark"},
        {"system": "Be brief.", "rename": ["prompt=question"]},
    ],
)
def test_chats_are_rendered_again(tmp_path: Path, chatty: Path, options: dict[str, Any]) -> None:
    uri = make(tmp_path, target=str(chatty), **options)
    sound(uri)
    template = (chatty / "chat_template.jinja").read_text()
    try:
        (chatty / "chat_template.jinja").write_text(CHAT.replace("assistant", "robot"))
        notes = verify_output(uri, deep=True).notes
        assert any("another chat template" in note for note in notes)
    finally:
        (chatty / "chat_template.jinja").write_text(template)


def test_json_lines_are_compared_with_their_copy(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"def f{row}(x):", "n": row}) + "\n" for row in range(5)))
    uri = make(tmp_path, path)
    sound(uri, 5)
    assert load(uri).column("n").to_pylist() == list(range(5))


def test_an_output_as_the_dataset_of_another(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    first = make(tmp_path, output=str(tmp_path / "first" / "out"), output_prefix="a_")
    uri = make(tmp_path, Path(first), prompt_column="prompt", rename=["a_completion=draft"])
    sound(uri)
    names = load(uri).schema.names
    assert "draft" in names
    assert not any(name.startswith("a_") for name in names)


# ---- lies ------------------------------------------------------------------------------------------------------------


def edit(uri: str, shard: int, column: str, place: int, value: Any, *, options: dict[str, Any] | None = None) -> None:
    """Change one cell of a part, and make the manifest fit it, as someone would who covers a lie."""
    root = Path(uri)
    plan = json.loads((root / "_specbatch/job.json").read_bytes())["identity"]["P"]
    name = part_name(shard, plan)
    stored = pq.read_metadata(root / name).metadata[b"specbatch"]
    table = pq.ParquetFile(root / name).read()
    index = table.schema.get_field_index(column)
    cells = table.column(column).to_pylist()
    cells[place] = value
    field = table.schema.field(index)
    table = table.set_column(index, field, pa.array(cells, field.type))
    (root / name).unlink()
    with pq.ParquetWriter(root / name, table.schema, **(options or {"compression": "zstd"})) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"specbatch": stored})
    manifest = json.loads((root / "manifest.json").read_bytes())
    for part in manifest["commit"]["parts"]:
        data = (root / part["path"]).read_bytes()
        part.update(bytes=len(data), sha256=sha256_hex(data))
    (root / "manifest.json").write_text(json.dumps(manifest))
    (root / "_SUCCESS").write_bytes(success_digest((root / "manifest.json").read_bytes()))


def lie(uri: str, *, deep: bool = False) -> str:
    report = verify_output(uri, deep=deep)
    assert report.state == "not sound"
    return "; ".join(report.problems)


def test_a_seed_under_a_prefix(tmp_path: Path) -> None:
    uri = make(tmp_path, output_prefix="gen_")
    edit(uri, 1, "gen_row_seed", 0, 5)
    assert "row_seed does not follow from the job's seed (row 3)" in lie(uri)


@pytest.mark.parametrize("kept", [None, ["prompt"]])
def test_a_seed_made_of_ids(tmp_path: Path, kept: list[str] | None) -> None:
    """Where the ids are not in the parts only the deep check can tell."""
    options = {"keep_columns": kept} if kept else {"rename": ["key=name"]}
    uri = make(tmp_path, seed_by="id", id_column="key", **options)
    edit(uri, 1, "row_seed", 0, row_seed(11, 3, 0))
    if kept:
        assert verify_output(uri).state == "sound"
    else:
        assert "row_seed does not follow" in lie(uri)
    assert "seed" in lie(uri, deep=True)


def test_a_seed_that_the_row_names(tmp_path: Path) -> None:
    uri = make(tmp_path, row_params=True)
    table = load(uri)
    seeds = table.column("row_seed").to_pylist()
    assert seeds[1] == 7
    assert table.column("error_code").to_pylist()[6] == "ROW_PARAMS"
    assert seeds[6] == row_seed(11, 6, 0)
    edit(uri, 0, "row_seed", 1, row_seed(11, 1, 0))
    assert "row_seed does not follow" in lie(uri)


def test_a_mark_of_a_duplicate(tmp_path: Path) -> None:
    uri = make(tmp_path, dedupe="mark", output_prefix="x_")
    assert load(uri).column("x_duplicate_of").to_pylist() == [None, None, None, 0, None, None, 1]
    edit(uri, 1, "x_duplicate_of", 0, 1)
    assert verify_output(uri).state == "sound"
    assert "marks of duplicates are wrong, the first of row 3" in lie(uri, deep=True)
    edit(uri, 1, "x_duplicate_of", 0, 3)
    assert "duplicate_of names no row before this one (row 3)" in lie(uri)


def test_a_renamed_column(tmp_path: Path) -> None:
    uri = make(tmp_path, rename=["key=name"])
    edit(uri, 2, "name", 0, "other")
    assert verify_output(uri).state == "sound"
    assert "column name does not hold what the dataset does" in lie(uri, deep=True)


def test_text_that_the_target_would_not_say(tmp_path: Path) -> None:
    uri = make(tmp_path, template="# {{ key }}\n{{ prompt or '' }}", row_params=True)
    column = load(uri).column("completion_token_ids").to_pylist()
    ids = [*column[0][:-1], (column[0][-1] + 1) % 100]
    edit(uri, 0, "completion_token_ids", 0, ids)
    assert verify_output(uri).state == "sound"
    assert "row 0 sample 0: the target alone, on cpu here, says something else" in lie(uri, deep=True)


@pytest.mark.parametrize(
    ("asked", "written", "finding"),
    [
        ({"compression": "gzip"}, {"compression": "zstd"}, "is compressed by zstd, not by gzip"),
        ({"row_group_rows": 2}, {"compression": "zstd"}, "has 3 rows; 2 were asked for"),
    ],
)
def test_another_form_than_was_asked_for(
    tmp_path: Path, asked: dict[str, Any], written: dict[str, Any], finding: str
) -> None:
    uri = make(tmp_path, **asked)
    assert verify_output(uri).state == "sound"
    edit(uri, 0, "key", 0, "k0", options=written)
    assert finding in lie(uri)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("prefix", "y_"),
        ("stats.prompt_lengths", [0, 3]),
        ("stats.completion_lengths", [1, 1, 1]),
        ("stats.num_cut", 9),
    ],
)
def test_a_footer_that_lies(tmp_path: Path, path: str, value: Any) -> None:
    out = build(tmp_path / "out", form=ResultForm(prefix="x_"), output={"prefix": "x_"})
    assert verify_output(str(out.root)).problems == ()
    footer = json.loads(pq.read_metadata(out.part_path(1)).metadata[b"specbatch"])
    *sections, key = path.split(".")
    target = footer[sections[0]] if sections else footer
    assert key in target
    target[key] = value
    rewrite_part(out, 1, pq.ParquetFile(out.part_path(1)).read(), footer)
    assert f"the footer says {key}" in lie(str(out.root))


def test_a_manifest_that_lies_about_lengths(tmp_path: Path) -> None:
    out = build(tmp_path / "out")
    assert out.manifest.commit.lengths is not None
    edit_manifest(out, lengths={"prompt": [20], "completion": [], "num_cut": 0})
    found = lie(str(out.root))
    assert all(f"commit.lengths.{name}" in found for name in ("prompt", "completion", "num_cut"))
    edit_manifest(out, lengths=None)
    assert "commit.lengths.prompt is None" in lie(str(out.root))


def test_a_repair_knows_the_form(tmp_path: Path) -> None:
    uri = make(tmp_path, output_prefix="x_", compression="snappy", seed_by="id", id_column="key", dedupe="mark")
    whole = load(uri)
    root = Path(uri)
    (root / "manifest.json").unlink()
    (root / "_SUCCESS").unlink()
    plan = json.loads((root / "_specbatch/job.json").read_bytes())["identity"]["P"]
    damaged = root / part_name(1, plan)
    damaged.write_bytes(damaged.read_bytes()[:-20])
    repair = prepare_repair(uri, str(tmp_path / "new"), Layer({}, {}))
    assert repair.num_copied == 2
    ledger = Ledger(open_store(str(tmp_path / "new")))
    prepared, _, stored = job._begin(ledger, repair.prepared, ledger.find_job())
    decode(prepared, stored, ledger, {1})
    sound(str(tmp_path / "new"))
    kept = ["key", "x_duplicate_of", "x_row_id", "x_row_seed", "x_status", "x_completion", "x_completion_token_ids"]
    assert load(tmp_path / "new").select(kept).equals(whole.select(kept))


# ---- seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(["a", None, "ü"]),
        pa.array(["a", None, "ü"], pa.large_string()),
        pa.array(["a", None, "ü"], pa.string_view()),
        pa.array(["a", None, "ü"]).dictionary_encode(),
        pa.array([1, None, -5]),
    ],
)
def test_seeds_of_ids_are_those_of_the_worker(ids: pa.Array) -> None:
    texts = id_texts(ids)
    assert texts == [None if value is None else str(value) for value in ids.to_pylist()]
    row_ids, samples = np.array([4, 5, 6]), np.array([0, 1, 2])
    keys = [row_id if text is None else text for text, row_id in zip(texts, row_ids.tolist(), strict=True)]
    seeds = np.array([row_seed(3, key, sample) for key, sample in zip(keys, [0, 1, 2], strict=True)])
    rules = SeedRules(3, "id", "key")
    assert not check_seeds(rules, seeds, row_ids, samples, ids=ids).any()
    assert check_seeds(rules, seeds + 1, row_ids, samples, ids=ids).all()


def test_seeds_that_rows_name_are_those_of_the_worker() -> None:
    own = pa.array([9.0, 9.0, None, 9.0])
    row_ids, samples = np.array([0, 0, 1, 2]), np.array([0, 1, 0, 0])
    seeds = np.array([9, prompt_seed(9, 1), row_seed(3, 1, 0), row_seed(3, 2, 0)])
    codes = [None, None, None, "ROW_PARAMS"]
    rules = SeedRules(3, own_column="seed")
    assert not check_seeds(rules, seeds, row_ids, samples, own=own, codes=codes).any()
    assert check_seeds(rules, seeds, row_ids, samples, own=own, codes=[None] * 4).tolist() == [False] * 3 + [True]


def test_an_identity_without_a_seed_has_no_rules() -> None:
    assert seed_rules({"generation": {"seed": "7"}}) is None
    assert seed_rules({}) is None
