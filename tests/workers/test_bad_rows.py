"""Bad rows in a worker: each becomes an error row with its code, its neighbours do not notice, its columns are kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_engine import FakeEngine
from shard_helpers import PLAN, cut, make_config, read_part, run_shards

from specbatch.schemas.plan import part_name
from specbatch.workers import row_values
from specbatch.workers.worker import Worker

TEXTS = {"string": pa.string(), "large_string": pa.large_string(), "string_view": pa.string_view()}


def run(tmp_path: Path, values: list[bytes | None], kind: str = "string", **columns: Any) -> list[dict[str, Any]]:
    binary = {"string": pa.binary(), "large_string": pa.large_binary(), "string_view": pa.binary_view()}[kind]
    column = pa.array(values, binary)
    column = column.cast(TEXTS[kind], safe=False) if kind == "string_view" else column.view(TEXTS[kind])
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": column, **columns}), path)
    news = run_shards(Worker(make_config(tmp_path / "out"), FakeEngine), cut([path], len(values)))
    assert news.failures == []
    table = pq.ParquetFile(tmp_path / "out" / part_name(0, PLAN)).read()
    assert table.schema.field("prompt").type == TEXTS[kind]
    assert table.column("prompt").cast(binary).to_pylist() == values, "every prompt is kept byte by byte"
    rows: list[dict[str, Any]] = table.drop_columns(["prompt"]).to_pylist()
    return rows


@pytest.mark.parametrize(
    ("prompt", "code", "says"),
    [
        pytest.param(None, "ROW_PROMPT_NULL", "null", id="1 null"),
        pytest.param(b"", "ROW_PROMPT_EMPTY", "empty", id="2 empty"),
        pytest.param(b" \n\t", "ROW_PROMPT_EMPTY", "white space", id="2 white space"),
        pytest.param(b"y" * 64, "ROW_TOO_LONG", "64 tokens; the context of 64", id="3 over the context"),
        pytest.param(b"y" * 40, None, "", id="4 prompt and completion over the context"),
        pytest.param(b"hush \xff", "ROW_ENCODING", "byte 5 of 6", id="5 invalid UTF-8"),
        pytest.param(b"hush \xed\xa0\x80", "ROW_ENCODING", "byte 5 of 8", id="6 lone surrogate"),
        pytest.param(b"a\0b", None, "", id="6 NUL"),
        pytest.param(b"\xef\xbb\xbfa", None, "", id="6 byte order mark"),
        pytest.param("\u202ea\u2066".encode(), None, "", id="6 bidirectional marks"),
        pytest.param(b"<|eos|>", None, "", id="7 special token as text"),
        pytest.param(b"hush" * 100, "ROW_TOO_LARGE", "400 bytes; at most 256", id="8 too large"),
        pytest.param(b"numeric", "ROW_NUMERIC", "", id="36 numbers that are none"),
    ],
)
@pytest.mark.parametrize("kind", TEXTS)
def test_a_bad_row_among_good_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: bytes | None, code: str | None, says: str, kind: str
) -> None:
    monkeypatch.setattr(row_values, "MAX_PROMPT_BYTES", 256)
    rows = run(tmp_path, [b"before", prompt, b"after"], kind)
    assert [row["error_code"] for row in rows] == [None, code, None]
    assert [rows[0]["completion"], rows[2]["completion"]] == ["before", "after"]
    bad = rows[1]
    assert (bad["status"], bad["finish_reason"]) == (("error", "error") if code else ("ok", "length"))
    if code is None:
        assert prompt is not None
        assert bad["completion_token_ids"] == list(prompt)[:32], "the engine was given the text as it is"
    else:
        assert says in bad["error_message"]
        assert "hush" not in bad["error_message"]
        assert bad["completion"] is None


def test_a_row_of_a_hundred_megabytes_is_not_tokenized(tmp_path: Path) -> None:
    """Bad input 8."""

    class Engine(FakeEngine):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.tokenizer.encode = lambda text: 1 // (len(text) < row_values.MAX_PROMPT_BYTES)  # type: ignore[method-assign]

    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": ["x" * (100 << 20)]}), path)
    news = run_shards(Worker(make_config(tmp_path / "out"), Engine), cut([path], 1))
    assert news.failures == []
    (row,) = read_part(tmp_path / "out", 0)
    assert row["error_code"] == "ROW_TOO_LARGE"
    assert len(row["prompt"]) == 100 << 20


def test_doubled_and_null_ids_pass_through(tmp_path: Path) -> None:
    """Bad inputs 14 and 15: rows are told apart by their place, not by their ids."""
    rows = run(tmp_path, [b"a", b"b", b"c"], id=["same", "same", None])
    assert [(row["row_id"], row["id"], row["error_code"]) for row in rows] == [
        (0, "same", None),
        (1, "same", None),
        (2, None, None),
    ]


def test_other_columns_may_hold_anything(tmp_path: Path) -> None:
    nested = [{"a": [1, None], "b": {"c": b"\xff"}}, None]
    rows = run(tmp_path, [b"a", None], nested=nested, number=[math.inf, None], empty=pa.nulls(2))
    assert [row["nested"] for row in rows] == nested
    assert [row["number"] for row in rows] == [math.inf, None]
    assert [row["error_code"] for row in rows] == [None, "ROW_PROMPT_NULL"]
