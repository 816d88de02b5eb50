"""Columns that a job names, checked against a schema; columns that pass through, and under which names."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.prompt import PassThrough
from specbatch.schemas.rows import reserved_columns
from specbatch.schemas.spec import GenerationSpec, InputSpec, JobSpec, ResultsSpec
from specbatch.workers.prompt_columns import check_columns

CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [("prompt", pa.string()), ("chat", CHAT), ("key", pa.string()), ("n", pa.int64()), ("x", pa.float64())]
)


def job(prefix: str = "", seed_by: Any = "row", **given: Any) -> JobSpec:
    return JobSpec(
        input=InputSpec(**given), results=ResultsSpec(prefix=prefix), generation=GenerationSpec(seed_by=seed_by)
    )


def refused(spec: JobSpec, schema: pa.Schema = SCHEMA) -> tuple[str, str]:
    with pytest.raises(SpecbatchError) as caught:
        check_columns(schema, spec)
    assert "\n" not in caught.value.message
    return caught.value.code.value, caught.value.message


def names(spec: JobSpec, schema: pa.Schema = SCHEMA) -> tuple[tuple[str, str], ...]:
    return check_columns(schema, spec).columns


def test_all_columns_pass_through_in_their_order() -> None:
    assert names(job()) == tuple((name, name) for name in SCHEMA.names)


def test_kept_and_renamed_columns() -> None:
    found = check_columns(SCHEMA, job(keep_columns=["n", "key"], rename=["key=id"]))
    assert (found.old, found.new) == (("n", "key"), ("n", "id"))
    assert names(job(rename=["n=x", "x=n"]))[3:] == (("n", "x"), ("x", "n"))
    assert names(job(rename=["n=a=b"]))[3] == ("n", "a=b")


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        ({"keep_columns": ["kye"]}, "JOB_COLUMN_MISSING", "did you mean 'key'?"),
        ({"rename": ["kye=id"]}, "JOB_COLUMN_MISSING", "did you mean 'key'?"),
        ({"keep_columns": ["n"], "rename": ["key=id"]}, "JOB_CONFIG", "--keep-columns key"),
        ({"keep_columns": ["n", "n"]}, "JOB_CONFIG", "twice"),
        ({"keep_columns": []}, "JOB_CONFIG", "at least one"),
        ({"rename": ["n=a", "n=b"]}, "JOB_CONFIG", "twice"),
        ({"rename": ["n=key"]}, "JOB_CONFIG", "'key'"),
        ({"rename": ["n=status"]}, "JOB_COLUMN_RESERVED", "'status'"),
        ({"rename": ["n=duplicate_of"]}, "JOB_COLUMN_RESERVED", "'duplicate_of'"),
        ({"rename": ["n=r_status"], "prefix": "r_"}, "JOB_COLUMN_RESERVED", "'r_status'"),
        ({"prompt_column": "promt"}, "JOB_COLUMN_MISSING", "did you mean --prompt-column prompt?"),
        ({"prompt_column": "question"}, "JOB_COLUMN_MISSING", "--messages-column chat"),
        ({"prompt_column": "n"}, "JOB_COLUMN_TYPE", "int64"),
        ({"prompt_column": "chat"}, "JOB_COLUMN_TYPE", "--messages-column chat"),
        ({"messages_column": "chatt"}, "JOB_COLUMN_MISSING", "did you mean --messages-column chat?"),
        ({"messages_column": "n"}, "JOB_COLUMN_TYPE", "role and content"),
        ({"id_column": "ky"}, "JOB_COLUMN_MISSING", "did you mean --id-column key?"),
        ({"seed_by": "id"}, "JOB_CONFIG", "--id-column"),
        ({"seed_by": "id", "id_column": "x"}, "JOB_COLUMN_TYPE", "double"),
        ({"row_params": True}, "JOB_COLUMN_MISSING", "max_new_tokens"),
    ],
)
def test_columns_that_are_refused(given: dict[str, Any], code: str, says: str) -> None:
    found, message = refused(job(**given))
    assert found == code
    assert says in message


def test_a_name_of_ours_can_be_given_away_left_out_or_avoided() -> None:
    schema = pa.schema([("prompt", pa.string()), ("status", pa.string())])
    code, message = refused(job(), schema)
    assert code == "JOB_COLUMN_RESERVED"
    assert "--rename status=input_status" in message
    assert names(job(rename=["status=mine"]), schema)[1] == ("status", "mine")
    assert names(job(keep_columns=["prompt"]), schema) == (("prompt", "prompt"),)
    assert names(job(prefix="r_"), schema)[1] == ("status", "status")


def test_columns_that_an_earlier_job_added_pass_only_by_name() -> None:
    given = ["prompt", "completion", "row_id"]

    def of(**settings: Any) -> tuple[tuple[str, str], ...]:
        return PassThrough.of(InputSpec(**settings), given, reserved_columns(), ["completion", "row_id"]).columns

    assert of() == (("prompt", "prompt"),)
    assert of(rename=["completion=answer"]) == (("prompt", "prompt"), ("completion", "answer"))
    with pytest.raises(SpecbatchError, match="'completion'"):
        of(keep_columns=["completion"])


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_texts_of_all_kinds(kind: pa.DataType) -> None:
    schema = pa.schema([("prompt", kind)])
    check_columns(schema, job())
    check_columns(schema, job(messages_column="prompt"))
    check_columns(schema, job(seed_by="id", id_column="prompt"))


@pytest.mark.parametrize("make", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)])
def test_chats_of_all_kinds(make: Any) -> None:
    message = pa.struct(
        [("content", pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))), ("role", pa.string())]
    )
    check_columns(pa.schema([("chat", make(message))]), job(messages_column="chat"))
    bare = pa.schema([("chat", make(pa.struct([("from", pa.string()), ("value", pa.string())])))])
    assert refused(job(messages_column="chat"), bare)[0] == "JOB_COLUMN_TYPE"


def test_a_template_needs_no_prompt_column() -> None:
    check_columns(pa.schema([("a", pa.int8())]), job(template="{{ a }}"))


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.float32(), pa.decimal128(5, 2), pa.null()])
def test_settings_of_rows_are_numbers(kind: pa.DataType) -> None:
    check_columns(pa.schema([("prompt", pa.string()), ("seed", kind)]), job(row_params=True))


@pytest.mark.parametrize("kind", [pa.string(), pa.bool_(), pa.list_(pa.int8())])
def test_settings_of_rows_are_not_texts(kind: pa.DataType) -> None:
    schema = pa.schema([("prompt", pa.string()), ("seed", pa.int8()), ("top_k", kind)])
    code, message = refused(job(row_params=True), schema)
    assert code == "JOB_COLUMN_TYPE"
    assert "'top_k'" in message
