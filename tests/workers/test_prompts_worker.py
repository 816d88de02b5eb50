"""A worker with chats, templates, columns that pass through, and settings of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fake_engine import FakeEngine
from shard_helpers import cut, make_config, read_part, run_leases, run_shards
from test_prompts_chat import MARKED, folder_with

from specbatch.schemas.messages import Lease
from specbatch.schemas.prompt import PassThrough, PromptSpec
from specbatch.schemas.seeds import prompt_seed, row_seed
from specbatch.schemas.spec import GenerationSpec
from specbatch.workers.worker import Worker

ROWS: dict[str, Any] = {
    "key": ["a", "b", "c", None, "e"],
    "question": ["one", "two", "three", "four", "five"],
    "max_new_tokens": [2, None, 0, 4, 5],
    "seed": [None, 9, None, None, None],
}


def write(path: Path, rows: dict[str, Any] = ROWS) -> Path:
    pq.write_table(pa.table(rows), path)
    return path


def decode(tmp_path: Path, poison: tuple[int, ...] = (), **changes: Any) -> list[dict[str, Any]]:
    (shard,) = cut([write(tmp_path / "in.parquet")], 100)
    config = make_config(tmp_path / "out", **changes)
    news = run_leases(Worker(config, lambda config: FakeEngine(config)), [Lease(shard, 1, poison=poison)])
    assert news.failures == []
    return read_part(tmp_path / "out", 0)


def test_columns_for_prompts_need_not_be_kept(tmp_path: Path) -> None:
    passed = PassThrough((("key", "id"), ("seed", "old_seed")))
    rows = decode(tmp_path, prompt=PromptSpec(template="{{ question|upper }}!"), pass_through=passed)
    assert [row["completion"] for row in rows] == ["ONE!", "TWO!", "THREE!", "FOUR!", "FIVE!"]
    assert [row["id"] for row in rows] == ROWS["key"]
    assert list(rows[0])[:3] == ["id", "old_seed", "row_id"]


def test_settings_and_seeds_of_rows_reach_the_engine_and_the_part(tmp_path: Path) -> None:
    prompt = PromptSpec(column="question", row_params=True, seed_by="id", id_column="key")
    generation = GenerationSpec(max_new_tokens=3, temperature=0.5, num_samples=2, seed=1)
    rows = decode(tmp_path, prompt=prompt, generation=generation, poison=(4,))
    assert [(row["row_id"], row["completion"], row["error_code"]) for row in rows[::2]] == [
        (0, "on", None),
        (1, "two", None),
        (2, None, "ROW_PARAMS"),
        (3, None, "ROW_ID_NULL"),
        (4, None, "ROW_POISON"),
    ]
    assert [row["completion"] for row in rows[1::2]] == [row["completion"] for row in rows[::2]]
    seeds = [
        *(row_seed(1, "a", sample) for sample in (0, 1)),
        *(prompt_seed(9, sample) for sample in (0, 1)),
        *(row_seed(1, "c", sample) for sample in (0, 1)),
        *(row_seed(1, 3, sample) for sample in (0, 1)),
        *(row_seed(1, "e", sample) for sample in (0, 1)),
    ]
    assert [row["row_seed"] for row in rows] == seeds


def test_chats_are_rendered_with_the_template_of_the_target(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", MARKED)
    prompt = PromptSpec(column="question", system="s")
    rows = decode(tmp_path, prompt=prompt, target_path=str(folder), generation=GenerationSpec(max_new_tokens=64))
    assert rows[0]["completion"] == "<|bos|>system\ns<|eos|>\n<|bos|>user\none<|eos|>\n<|bos|>assistant\n"


def test_a_chat_template_that_is_gone_is_told(tmp_path: Path) -> None:
    (shard,) = cut([write(tmp_path / "in.parquet")], 100)
    config = make_config(tmp_path / "out", prompt=PromptSpec(column="question", system="s"), target_path=str(tmp_path))
    news = run_shards(Worker(config, lambda config: FakeEngine(config)), [shard])
    assert [failure.code for failure in news.failures] == ["JOB_CONFIG"]
