from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from specbatch.schemas.prompt import PromptSpec
from specbatch.schemas.rows import RowResult
from specbatch.schemas.seeds import prompt_seed, row_seed, row_seeds
from specbatch.schemas.spec import GenerationSpec
from specbatch.workers.prompts import PreparedRow, prepare_rows, prompt_values
from specbatch.workers.rendering import make_renderer

CONTEXT_LENGTH = 8


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text if letter != "\0"]


def encode_with_bos(text: str) -> list[int]:
    return [1, *encode(text)]


def prepare_table(
    table: pa.Table,
    prompt: PromptSpec,
    first_row_id: int = 0,
    num_samples: int = 1,
    generation: GenerationSpec | None = None,
    with_bos: bool = False,
) -> list[PreparedRow | RowResult]:
    if generation is None:
        generation = GenerationSpec(seed=7, max_new_tokens=3, temperature=1.0, num_samples=num_samples)
    return prepare_rows(
        table,
        first_row_id,
        prompt=prompt,
        generation=generation,
        renderer=make_renderer(prompt, Path("no folder"), table.column_names),
        encode=encode_with_bos if with_bos else encode,
        context_length=CONTEXT_LENGTH,
        num_samples=num_samples,
    )


def prepare(
    column: pa.Array | pa.ChunkedArray, first_row_id: int = 0, num_samples: int = 1
) -> list[PreparedRow | RowResult]:
    table = pa.table({"other": [0] * len(column), "text": column})
    return prepare_table(table, PromptSpec(column="text"), first_row_id, num_samples)


def code_of(row: PreparedRow | RowResult) -> str | None:
    return row.error_code if isinstance(row, RowResult) else None


@pytest.mark.parametrize(("first", "count"), [(0, 12), (99_995, 10), (2**62, 3), (5, 0)])
@pytest.mark.parametrize("job_seed", [0, 7, 2**63 - 1])
def test_seeds_of_a_run_of_rows_are_those_of_its_rows(job_seed: int, first: int, count: int) -> None:
    assert row_seeds(job_seed, first, count) == [row_seed(job_seed, row, 0) for row in range(first, first + count)]


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


# ---- prompts that are too long ---------------------------------------------------------------------------------------


def ids_of(text: str, truncate: str, *, max_new_tokens: int = 3, with_bos: bool = False) -> str | None:
    generation = GenerationSpec(max_new_tokens=max_new_tokens)
    prompt = PromptSpec(truncate=truncate)  # type: ignore[arg-type]
    (row,) = prepare_table(pa.table({"prompt": [text]}), prompt, generation=generation, with_bos=with_bos)
    return "".join(map(chr, row.prompt_ids)) if isinstance(row, PreparedRow) else row.error_code


def test_a_long_prompt_is_cut_at_the_end_that_was_asked_for_and_leaves_room() -> None:
    text = "abcdefghij"
    assert ids_of(text, "error") == "ROW_TOO_LONG"
    assert ids_of(text, "left") == "fghij"  # 8 tokens of context, 3 of them for the completion
    assert ids_of(text, "right") == "abcde"
    assert ids_of("abcde", "left") == ids_of("abcde", "right") == "abcde"
    assert ids_of("abcdef", "error") == "abcdef"  # fits, with a shorter completion
    assert ids_of("abcdef", "left") == "bcdef"


def test_a_prompt_is_never_cut_to_less_than_half_of_the_context() -> None:
    assert ids_of("abcdefghij", "left", max_new_tokens=1000) == "ghij"
    assert ids_of("abcdefghij", "right", max_new_tokens=1000) == "abcd"
    assert ids_of("abcdefghij", "left", max_new_tokens=1) == "defghij"


def test_what_the_tokenizer_puts_before_a_prompt_stays_when_the_left_is_cut() -> None:
    assert ids_of("abcdefghij", "left", with_bos=True) == "\x01ghij"
    assert ids_of("abcdefghij", "right", with_bos=True) == "\x01abcd"


# ---- seeds from ids --------------------------------------------------------------------------------------------------

BY_ID = PromptSpec(seed_by="id", id_column="key")


def seeds_by_id(keys: pa.Array, num_samples: int = 1) -> list[int]:
    table = pa.table({"prompt": ["p"] * len(keys), "key": keys})
    rows = prepare_table(table, BY_ID, first_row_id=40, num_samples=num_samples)
    return [row.seed if isinstance(row, PreparedRow) else row.row_seed for row in rows]


def test_seeds_by_id_do_not_depend_on_the_place_of_the_row() -> None:
    assert seeds_by_id(pa.array(["a", "ü"])) == [row_seed(7, "a", 0), row_seed(7, "ü", 0)]
    assert seeds_by_id(pa.array(["ü", "a"]), 2) == [row_seed(7, key, sample) for key in ("ü", "a") for sample in (0, 1)]
    assert (
        seeds_by_id(pa.array([12, 5]))
        == seeds_by_id(pa.array(["12", "5"]))
        == [row_seed(7, "12", 0), row_seed(7, "5", 0)]
    )
    assert seeds_by_id(pa.array(["a", "b"]).dictionary_encode()) == [row_seed(7, "a", 0), row_seed(7, "b", 0)]


def test_a_row_without_an_id_is_an_error_row_only_where_seeds_are_made_of_ids() -> None:
    table = pa.table({"prompt": ["p", "p"], "key": ["a", None]})
    rows = prepare_table(table, BY_ID)
    assert [code_of(row) for row in rows] == [None, "ROW_ID_NULL"]
    assert isinstance(rows[1], RowResult)
    assert rows[1].row_seed == row_seed(7, 1, 0)
    assert [code_of(row) for row in prepare_table(table, PromptSpec(id_column="key"))] == [None, None]


# ---- settings of rows ------------------------------------------------------------------------------------------------

PARAMS = PromptSpec(row_params=True)


def prepare_params(num_samples: int = 1, generation: GenerationSpec | None = None, **columns: object) -> list[object]:
    num_rows = len(next(iter(columns.values())))  # type: ignore[arg-type]
    table = pa.table({"prompt": ["p"] * num_rows, **columns})
    return list(prepare_table(table, PARAMS, num_samples=num_samples, generation=generation))


def test_columns_override_the_settings_where_they_are_not_null() -> None:
    base = GenerationSpec(max_new_tokens=3, temperature=0.5, top_k=7).sampling_params(seed=0)
    rows = prepare_params(
        max_new_tokens=[9, None, 2.0], temperature=[0, None, None], top_p=[None, None, 0.5], top_k=[None, None, 4]
    )
    found = [row.params.apply(base) if row.params else base for row in rows]  # type: ignore[attr-defined]
    assert [(one.max_new_tokens, one.temperature, one.top_p, one.top_k) for one in found] == [
        (9, 0.0, 1.0, 7),
        (3, 0.5, 1.0, 7),
        (2, 0.5, 0.5, 4),
    ]
    assert rows[1].params is None  # type: ignore[attr-defined]
    assert type(found[2].max_new_tokens) is int


def test_a_seed_of_a_row_is_that_of_its_first_sample() -> None:
    rows = prepare_params(2, seed=[11, None, 2**63 - 1])
    seeds = [row.seed for row in rows]  # type: ignore[attr-defined]
    largest = 2**63 - 1
    assert seeds == [11, prompt_seed(11, 1), row_seed(7, 1, 0), row_seed(7, 1, 1), largest, prompt_seed(largest, 1)]
    assert [row.seed for row in prepare_params(seed=pa.array([2**63 - 1], pa.uint64()))] == [largest]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("max_new_tokens", [0, -1, 10**7, 1.5]),
        ("temperature", [-0.1, 0.001, 1000.0, float("nan"), float("inf")]),
        ("top_p", [0.0, 1.1]),
        ("top_k", [-1]),
        ("seed", [-1]),
    ],
)
def test_a_bad_setting_is_an_error_row_that_names_it(column: str, values: list[float]) -> None:
    rows = prepare_params(**{column: values})
    for row in rows:
        assert isinstance(row, RowResult)
        assert row.error_code == "ROW_PARAMS"
        assert column in (row.error_message or "")


def test_a_seed_of_64_bits_is_too_large() -> None:
    (row,) = prepare_params(seed=pa.array([2**63], pa.uint64()))
    assert isinstance(row, RowResult)
    assert row.error_code == "ROW_PARAMS"


def test_settings_of_a_row_must_go_with_those_of_the_job() -> None:
    (row,) = prepare_params(2, temperature=[0.0])[:1]
    assert isinstance(row, RowResult)
    assert "samples" in (row.error_message or "")
    generation = GenerationSpec(max_new_tokens=5, min_new_tokens=4)
    (row,) = prepare_params(generation=generation, max_new_tokens=[3])
    assert isinstance(row, RowResult)
    assert "max_new_tokens" in (row.error_message or "")


def test_columns_named_like_settings_are_data_where_they_were_not_asked_for() -> None:
    (row,) = prepare_table(pa.table({"prompt": ["p"], "temperature": ["hot"], "seed": [3]}), PromptSpec())
    assert isinstance(row, PreparedRow)
    assert (row.params, row.seed) == (None, row_seed(7, 0, 0))


def test_the_room_that_a_cut_leaves_is_what_the_row_asks_for() -> None:
    prompt = PromptSpec(row_params=True, truncate="right")
    table = pa.table({"prompt": ["abcdefghij"] * 2, "max_new_tokens": [1, None]})
    rows = prepare_table(table, prompt, generation=GenerationSpec(max_new_tokens=3))
    assert [len(row.prompt_ids) for row in rows if isinstance(row, PreparedRow)] == [7, 5]


# ---- values of rows --------------------------------------------------------------------------------------------------


def test_values_that_python_cannot_hold_do_not_stop_the_others() -> None:
    broken = (
        pa.array([[b"ok"], [b"\xff"]], pa.list_(pa.binary())).cast(pa.list_(pa.binary())).view(pa.list_(pa.string()))
    )
    table = pa.table({"names": broken, "when": pa.array([0, 1], pa.timestamp("ns"))})
    prompt = PromptSpec(template="{{ names[0] }} {{ when }}")
    renderer = make_renderer(prompt, Path("no folder"), table.column_names)
    first, second = prompt_values(table, renderer)
    assert renderer.render(first) == "ok 1970-01-01T00:00:00"
    with pytest.raises(Exception, match="'names' holds a value that cannot be read"):
        renderer.render(second)
