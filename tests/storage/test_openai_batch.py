"""OpenAI batch files: what a request sets for itself becomes columns, and nothing that it asks for is passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from jsonl_files import PLAIN, found, table_of, write_lines

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.spec import GenerationSpec
from specbatch.storage.inputs import read_inputs
from specbatch.storage.jsonl import Wanted, copy_name, survey

CHAT = [{"role": "user", "content": "hello"}]


def request(custom_id: str = "r1", url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    prompt: dict[str, Any] = {"messages": CHAT} if "chat" in url else {"prompt": "hello"}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "m", **prompt, **body}}


def refused(code: ErrorCode, path: Path, wanted: Wanted = PLAIN) -> str:
    with pytest.raises(SpecbatchError) as caught:
        table_of(path, wanted)
    assert caught.value.code is code, str(caught.value)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_chat_requests_become_rows(tmp_path: Path) -> None:
    lines = [
        request("r1", max_tokens=5, temperature=1, top_p=0.5, seed=7, user="u", stream=False, n=1, tools=[], stop=None),
        request("r2", max_completion_tokens=9, max_tokens=9),
        request("r3", messages=[{"role": "system", "content": "s"}, {"role": "user", "content": "é"}]),
        request(
            "r4", messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
        ),
    ]
    table = table_of(write_lines(tmp_path / "a.jsonl", lines))
    assert table.schema.names == [
        "custom_id", "model", "messages", "max_new_tokens", "temperature", "top_p", "top_k", "seed"
    ]  # fmt: skip
    assert table.schema.field("messages").type.value_type == pa.struct(
        [("role", pa.string()), ("content", pa.string())]
    )
    rows = table.to_pylist()
    assert [row["custom_id"] for row in rows] == ["r1", "r2", "r3", "r4"]
    assert [row["messages"] for row in rows[:2]] == [CHAT, CHAT]
    assert rows[2]["messages"][1] == {"role": "user", "content": "é"}
    assert rows[3]["messages"] == [{"role": "user", "content": "ab"}]
    assert [row["max_new_tokens"] for row in rows] == [5, 9, None, None]
    assert (rows[0]["temperature"], rows[0]["top_p"], rows[0]["seed"], rows[1]["seed"]) == (1.0, 0.5, 7, None)
    assert {row["model"] for row in rows} == {"m"}


def test_completion_requests_become_rows(tmp_path: Path) -> None:
    lines = [request(str(number), "/v1/completions", max_tokens=number) for number in (1, 2)]
    rows = table_of(write_lines(tmp_path / "a.jsonl", lines)).to_pylist()
    assert [(row["custom_id"], row["prompt"], row["max_new_tokens"]) for row in rows] == [
        ("1", "hello", 1),
        ("2", "hello", 2),
    ]


@pytest.mark.parametrize(
    "messages",
    ["no list", [1], [{"role": 1, "content": "x"}], [{"content": "x"}], [{"role": "user", "content": 3}], [], [None]],
)
def test_malformed_messages_are_left_to_their_row(messages: Any, tmp_path: Path) -> None:
    """Row 13 of the bad-input matrix: one bad chat is an error row, not the end of the job."""
    from specbatch.workers.rendering import RowError, read_messages

    rows = table_of(write_lines(tmp_path / "a.jsonl", [request(), request(messages=messages)])).to_pylist()
    assert read_messages(rows[0]["messages"])
    with pytest.raises(RowError):
        read_messages(rows[1]["messages"])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"tools": [{"type": "function"}]}, "body.tools"),
        ({"response_format": {"type": "json_schema"}}, "body.response_format"),
        ({"stream": True}, "body.stream"),
        ({"top_logprobs": 3}, "body.top_logprobs"),
        ({"something_new": 1}, "body.something_new"),
        ({"modalities": ["audio"]}, "body.modalities"),
        ({"n": 2}, "--num-samples"),
        ({"stop": ["x"]}, "--stop"),
        ({"presence_penalty": 0.5}, "--presence-penalty"),
        ({"logit_bias": {"5": 1}}, "--logit-bias"),
        ({"logprobs": True}, "--logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "differ"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": "x", "name": "n"}]}, "messages[0].name"),
    ],
)
def test_what_is_not_done_for_single_rows_is_refused_by_name(body: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [request(), request("r2", **body)])
    message = refused(ErrorCode.JOB_INPUT_UNSUPPORTED, path)
    assert message.startswith(f"{path} line 2: ")
    assert says in message


@pytest.mark.parametrize(
    ("body", "job"),
    [
        ({"n": 3}, {"num_samples": 3, "temperature": 0.5}),
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"stop": ["x", "y"]}, {"stop": ("x", "y")}),
        ({"presence_penalty": 0.5, "frequency_penalty": 1}, {"presence_penalty": 0.5, "frequency_penalty": 1.0}),
        ({"logit_bias": {"5": 1}}, {"logit_bias": ((5, 1.0),)}),
        ({"logprobs": True}, {"logprobs": True}),
    ],
)
def test_what_a_whole_job_does_is_taken_where_the_job_does_it(
    body: dict[str, Any], job: dict[str, Any], tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [request(**body)])
    wanted = Wanted("messages", GenerationSpec(**job))
    assert table_of(path, wanted).num_rows == 1
    refused(ErrorCode.JOB_INPUT_UNSUPPORTED, path)
    neutral = {
        key: 0 if key.endswith("penalty") else {"n": 1, "logit_bias": {}, "logprobs": False, "stop": []}[key]
        for key in body
    }
    path = write_lines(tmp_path / "b.jsonl", [request(**neutral)])
    assert table_of(path).num_rows == 1
    assert "the job has --" in refused(ErrorCode.JOB_INPUT_UNSUPPORTED, path, wanted)
    source = survey(found(path))
    assert copy_name(source, [source], wanted) != copy_name(source, [source], PLAIN), (
        "no copy vouches for other settings"
    )


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"url": "/v1/embeddings"}, ErrorCode.JOB_INPUT_UNSUPPORTED, "url"),
        ({"url": "/v1/completions"}, ErrorCode.JOB_INPUT_UNSUPPORTED, "apart"),
        ({"method": "GET"}, ErrorCode.JOB_INPUT_UNSUPPORTED, "POST"),
        ({"body": 3}, ErrorCode.JOB_INPUT_CORRUPT, "body"),
        ({"custom_id": 3}, ErrorCode.JOB_INPUT_CORRUPT, "custom_id"),
        ({"extra": 3}, ErrorCode.JOB_INPUT_CORRUPT, "'extra'"),
    ],
)
def test_lines_that_are_no_requests(change: dict[str, Any], code: ErrorCode, says: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [request(), {**request(), **change}])
    message = refused(code, path)
    assert message.startswith(f"{path} line 2: ")
    assert says in message


@pytest.mark.parametrize("key", ["custom_id", "method", "url", "body"])
def test_a_line_that_lacks_a_key_is_no_request(key: str, tmp_path: Path) -> None:
    second = {name: value for name, value in request().items() if name != key}
    path = write_lines(tmp_path / "a.jsonl", [request(), second])
    assert f"line 2: it has no '{key}'" in refused(ErrorCode.JOB_INPUT_CORRUPT, path)
    # As the first line it makes the file one of plain rows.
    assert survey(found(write_lines(tmp_path / "b.jsonl", [second]))).kind == "rows"


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_tokens", 1.5), ("max_tokens", "5"), ("seed", 1 << 63), ("temperature", "x"), ("top_p", True)],
)
def test_parameters_that_are_no_numbers_are_named(key: str, value: Any, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [request(**{key: value})])
    assert f"line 1: body.{key} is not a" in refused(ErrorCode.JOB_INPUT_CORRUPT, path)


def test_batch_files_and_plain_rows_do_not_mix(tmp_path: Path) -> None:
    write_lines(tmp_path / "d" / "a.jsonl", [request()])
    write_lines(tmp_path / "d" / "b.jsonl", [{"prompt": "x"}])
    with pytest.raises(SpecbatchError) as caught:
        read_inputs([str(tmp_path / "d")])
    assert caught.value.code is ErrorCode.JOB_SCHEMA_MISMATCH
    assert "submit them apart" in caught.value.message
