from __future__ import annotations

import pyarrow as pa
import pytest

from specbatch.schemas.rows import RowResult
from specbatch.schemas.seeds import row_seed
from specbatch.workers.prompts import PreparedRow, prepare_rows


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text if letter != "\0"]


def prepare(
    column: pa.Array | pa.ChunkedArray, first_row_id: int = 0, num_samples: int = 1
) -> list[PreparedRow | RowResult]:
    table = pa.table({"other": [0] * len(column), "text": column})
    return prepare_rows(
        table,
        first_row_id,
        prompt_column="text",
        job_seed=7,
        encode=encode,
        context_length=8,
        num_samples=num_samples,
    )


def code_of(row: PreparedRow | RowResult) -> str | None:
    return row.error_code if isinstance(row, RowResult) else None


def test_a_prompt_becomes_ids_and_its_own_seed() -> None:
    assert prepare(pa.array(["ab", "c"]), first_row_id=40) == [
        PreparedRow(40, (97, 98), row_seed(7, 40, 0)),
        PreparedRow(41, (99,), row_seed(7, 41, 0)),
    ]


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        (None, "ROW_PROMPT_NULL"),
        ("", "ROW_PROMPT_EMPTY"),
        (" \n\t\u00a0\u2028", "ROW_PROMPT_EMPTY"),
        ("\0", "ROW_PROMPT_EMPTY"),
        ("a" * 7, None),
        ("a" * 8, "ROW_TOO_LONG"),
        ("\ufeffa", None),
    ],
)
def test_which_prompts_become_error_rows(prompt: str | None, code: str | None) -> None:
    rows = prepare(pa.array(["before", prompt, "after"], pa.string()))
    assert [code_of(row) for row in rows] == [None, code, None]
    assert [row.row_id for row in rows] == [0, 1, 2]


def test_an_error_row_has_its_seed_and_no_result() -> None:
    (row,) = prepare(pa.array([None], pa.string()), first_row_id=3)
    assert isinstance(row, RowResult)
    assert (row.row_id, row.row_seed, row.status, row.finish_reason) == (3, row_seed(7, 3, 0), "error", "error")
    assert (row.completion, row.completion_token_ids, row.num_prompt_tokens) == (None, None, 0)


def test_too_long_says_both_lengths_and_not_the_prompt() -> None:
    (row,) = prepare(pa.array(["secret" * 5]))
    assert isinstance(row, RowResult)
    assert row.error_message is not None
    assert "30 tokens" in row.error_message
    assert "context of 8" in row.error_message
    assert "secret" not in row.error_message


@pytest.mark.parametrize("broken", [b"\xff\xfehush", b"hush\xc3", b"\xed\xa0\x80"])
@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary", "dictionary of large"])
def test_bytes_that_are_not_utf8_become_an_error_row(broken: bytes, kind: str) -> None:
    values = [b"ok", broken, None, b"ok"]
    if kind == "string_view":
        column = pa.array(values, pa.binary_view()).cast(pa.string_view(), safe=False)
    elif "large" in kind:
        column = pa.array(values, pa.large_binary()).view(pa.large_string())
    else:
        column = pa.array(values, pa.binary()).view(pa.string())
    if "dictionary" in kind:
        column = column.dictionary_encode()
    rows = prepare(column)
    assert [code_of(row) for row in rows] == [None, "ROW_ENCODING", "ROW_PROMPT_NULL", None]
    error = rows[1]
    assert isinstance(error, RowResult)
    assert "hush" not in (error.error_message or "")


def test_chunks_and_slices_keep_the_order() -> None:
    column = pa.chunked_array([pa.array(["x", "a", "b"]).slice(1), pa.array([], pa.string()), pa.array(["c", None])])
    rows = prepare(column)
    assert [row.row_id for row in rows] == [0, 1, 2, 3]
    assert [row.prompt_ids for row in rows if isinstance(row, PreparedRow)] == [(97,), (98,), (99,)]


def test_the_samples_of_a_row_share_its_prompt_and_have_their_own_seeds() -> None:
    rows = prepare(pa.array(["ab", None]), first_row_id=40, num_samples=3)
    assert rows[:3] == [PreparedRow(40, (97, 98), row_seed(7, 40, sample), sample) for sample in range(3)]
    for sample, row in enumerate(rows[3:]):
        assert isinstance(row, RowResult)
        assert (row.row_id, row.sample_index, row.row_seed) == (41, sample, row_seed(7, 41, sample))
        assert (row.status, row.error_code) == ("error", "ROW_PROMPT_NULL")
