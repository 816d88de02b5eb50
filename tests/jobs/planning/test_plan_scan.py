"""The look at the prompts: equal to what a worker makes of them, and what ``plan`` says of it."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specbatch.jobs.cli import app as cli
from specbatch.jobs.planning.prepare import PreparedJob, prepare
from specbatch.jobs.planning.scan import parse_scan, sample_rows, scan
from specbatch.jobs.planning.scan_text import scan_lines
from specbatch.jobs.planning.scan_values import bin_edges, describe_lengths
from specbatch.jobs.spec.settings import flag_layer, resolve
from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.prompt import PromptSpec
from specbatch.specdec.models.folders import locate_model
from specbatch.specdec.tokenizer import Tokenizer
from specbatch.workers.prompts import PreparedRow, prepare_rows
from specbatch.workers.rendering import make_renderer


def prepared_job(path: Path, **options: Any) -> PreparedJob:
    return prepare(
        resolve([flag_layer({"output": str(path.parent / "out"), "profile": "none", **options}, [str(path)])])
    )


def write(path: Path, prompts: list[str | None], row_group_size: int | None = None, **columns: list[Any]) -> Path:
    pq.write_table(pa.table({"prompt": prompts, **columns}), path, row_group_size=row_group_size)
    return path


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(locate_model("code-pair/target").path)


def test_every_row_is_counted_as_a_worker_would_take_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    long = "x = 1\n" * 2000
    prompts = ["def f(x):", None, "", "  ", "return 1", "return 1", long, *[f"a{i} = {i}" for i in range(30)]]
    found = scan(prepared_job(write(tmp_path / "p.parquet", prompts), max_new_tokens=10, max_error_rate=1.0), None)
    lengths = sorted(len(tokenizer.encode(prompt)) for prompt in prompts if prompt and prompt.strip())
    assert found.is_all
    assert found.lengths is not None
    assert (found.lengths.fewest, found.lengths.most) == (lengths[0], lengths[-1])
    assert found.lengths.median == lengths[math.ceil(len(lengths) / 2) - 1]
    assert found.lengths.mean == pytest.approx(sum(lengths) / len(lengths))
    assert sum(count for _, _, count in found.lengths.bins) == len(lengths)
    assert {code: each.rows for code, each in found.errors} == {
        "ROW_PROMPT_NULL": 1,
        "ROW_PROMPT_EMPTY": 2,
        "ROW_TOO_LONG": 1,
    }
    assert found.all_errors.rows == found.all_errors.low == found.all_errors.high == 4
    assert found.over_length.rows == 1
    assert found.num_results == len(prompts) - 4
    assert found.num_prompt_tokens == sum(lengths) - lengths[-1]
    assert found.max_output_tokens == 10 * (len(prompts) - 4)


def test_prompts_that_are_cut_are_no_errors_and_a_short_room_is_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    long = "x = 1\n" * 2000
    job = prepared_job(write(tmp_path / "p.parquet", [long, "a"]), truncate_prompt="left", max_new_tokens=4000)
    found = scan(job, None)
    assert found.errors == ()
    assert found.over_length.rows == 1
    assert found.lengths is not None
    assert found.lengths.most == len(tokenizer.encode(long))
    assert found.lengths.fewest == 1
    assert found.clamped.rows == 2
    text = "\n".join(scan_lines(found, is_cut=True, max_error_rate=0.05))
    assert "they are cut to fit" in text
    assert "the context ends before --max-new-tokens" in text


def test_samples_and_row_settings_count_in_the_bound(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", ["a", "b", "c"], max_new_tokens=[5, None, 7])
    job = prepared_job(path, row_params=True, num_samples=3, temperature=1.0, max_new_tokens=100)
    found = scan(job, None)
    assert found.max_output_tokens == 3 * (5 + 100 + 7)
    assert found.num_results == 9


def test_a_template_is_rendered_for_the_count(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "p.parquet", ["a"] * 3, name=["f", "g", None])
    found = scan(prepared_job(path, template="def {{ name }}({{ prompt }}):"), None)
    assert found.lengths is not None
    assert found.lengths.most == len(tokenizer.encode("def f(a):"))
    assert [(code, each.rows) for code, each in found.errors] == [("ROW_TEMPLATE", 1)]


def test_chats_count_as_a_worker_encodes_them(tmp_path: Path) -> None:
    target = shutil.copytree(locate_model("code-pair/target").path, tmp_path / "target")
    template = "{% for m in messages %}<|eos|>{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    (target / "chat_template.jinja").write_text(template)
    chats = [[{"role": "user", "content": f"say <|eos|> {i}"}] for i in range(5)]
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"messages": [*chats, []]}), path)
    job = prepared_job(path, messages_column="messages", target=str(target), draft="none")
    found = scan(job, None)
    rows = prepare_rows(
        pq.read_table(path),
        0,
        prompt=PromptSpec.of(job.spec),
        generation=job.spec.generation,
        renderer=make_renderer(PromptSpec.of(job.spec), target, ["messages"]),
        encode=Tokenizer.from_folder(target).encode,
        context_length=2048,
    )
    assert found.num_prompt_tokens == sum(len(row.prompt_ids) for row in rows if isinstance(row, PreparedRow))
    assert [(code, each.rows) for code, each in found.errors] == [("ROW_MESSAGES", 1)]
    assert sorted(row.prompt_ids for row in sample_rows(job, 6)) == sorted(
        row.prompt_ids for row in rows if isinstance(row, PreparedRow)
    )


def test_a_sample_is_the_same_each_time_and_stands_for_the_dataset(tmp_path: Path) -> None:
    prompts = [None if i % 10 == 0 else "a = 1\n" * (i % 7 + 1) for i in range(20_000)]
    job = prepared_job(write(tmp_path / "p.parquet", prompts, row_group_size=500))
    found = scan(job, 2000)
    assert found == scan(job, 2000)
    assert (found.num_rows, found.num_scanned) == (20_000, 2000)
    assert not found.is_all
    (code, nulls), *_ = found.errors
    assert code == "ROW_PROMPT_NULL"
    assert nulls.low <= 2000 <= nulls.high
    assert nulls.low < nulls.rows < nulls.high
    whole = scan(job, None)
    assert found.num_prompt_tokens == pytest.approx(whole.num_prompt_tokens, rel=0.05)
    text = "\n".join(scan_lines(found, is_cut=False, max_error_rate=0.05))
    assert "2,000 of 20,000 rows, drawn by seed 0" in text
    assert "the job would give up" in text


def test_the_limit_counts(tmp_path: Path) -> None:
    found = scan(prepared_job(write(tmp_path / "p.parquet", ["a", None, None]), limit=1), None)
    assert (found.num_rows, found.errors) == (1, ())


def test_rows_for_calibration_are_decodable_and_mixed(tmp_path: Path) -> None:
    prompts = [None if i % 2 else f"x = {i}" for i in range(200)]
    job = prepared_job(write(tmp_path / "p.parquet", prompts))
    rows = sample_rows(job, 100)
    assert rows == sample_rows(job, 100)
    assert all(row.row_id % 2 == 0 for row in rows)
    ids = [row.row_id for row in rows]
    assert len(set(ids)) == len(ids)
    assert ids != sorted(ids)


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=60))
@settings(deadline=None)
def test_a_histogram_holds_every_length_once(lengths: list[int]) -> None:
    ordered = sorted(lengths)
    found = describe_lengths(ordered)
    assert len(found.bins) <= 12
    assert found.bins[0][0] == ordered[0]
    assert found.bins[-1][1] >= ordered[-1]
    for (_, high, _), (low, _, _) in zip(found.bins[:-1], found.bins[1:], strict=True):
        assert low == high + 1
    for low, high, count in found.bins:
        assert count == sum(low <= length <= high for length in ordered)
    assert found.fewest <= found.median <= found.p95 <= found.most


@pytest.mark.parametrize(
    ("fewest", "most", "edges"),
    [
        (5, 5, [5, 6]),
        (3, 40, [3, 4, 6, 8, 12, 16, 24, 32, 41]),
        (1, 3000, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3001]),
        (500, 507, [500, 501, 502, 503, 504, 505, 506, 507, 508]),
    ],
)
def test_edges_are_round_where_lengths_spread(fewest: int, most: int, edges: list[int]) -> None:
    assert bin_edges(fewest, most) == edges


def test_what_scan_takes() -> None:
    assert (parse_scan("all"), parse_scan("none"), parse_scan("250")) == (None, 0, 250)
    for wrong in ("", "0", "-1", "1.5", "some", "1e3", "٣"):
        with pytest.raises(SpecbatchError, match="--scan"):
            parse_scan(wrong)


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return str(write(tmp_path / "prompts.parquet", ["def f(x):", None, "return 1"]))


def test_plan_says_what_the_prompts_are_like(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", dataset, "--profile", "none"]) == 0
    out = capsys.readouterr().out
    assert "prompts      all 3 rows" in out
    assert "ROW_PROMPT_NULL  1 row" in out
    assert "give up" not in out, "an error rate is judged from 1,000 rows on"
    assert "forecast     none: run specbatch calibrate for a forecast" in out
    assert "with the draft a batch takes" in out


def test_plan_as_json_and_without_a_look(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", dataset, "--format", "json", "--scan", "2", "--profile", "none"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["scan"]["rows"] == 3
    assert document["scan"]["scanned"] == 2
    assert document["forecast"] is None
    assert cli.run(["plan", dataset, "--scan", "none", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["scan"] is None
    assert cli.run(["plan", dataset, "--scan", "some"]) == 2
    assert "--scan is 'some'" in capsys.readouterr().err


def test_plan_loads_neither_torch_nor_ray(dataset: str) -> None:
    code = f"""
import sys
from specbatch.jobs.cli import app as cli
assert cli.run(["plan", {dataset!r}, "--scan", "all"]) == 0
print(sorted({{"torch", "transformers", "ray"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
