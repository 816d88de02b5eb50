"""Batch files of the OpenAI API: from a line with ``custom_id``, ``method``, ``url`` and ``body`` to a row. Pure.

What a request may set row by row becomes a column. What a job sets for all of its rows must be set so: a request that
says something else is refused by name, nothing that it asks for is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import pyarrow as pa

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.spec import GenerationSpec
from specbatch.storage.jsonl_lines import KIND_NAMES, bad_line, shown

BatchKind = Literal["chat", "completions"]

LINE_KEYS = ("custom_id", "method", "url", "body")
ID_COLUMN = "custom_id"
MESSAGES_COLUMN = "messages"
PROMPT_COLUMN = "prompt"

_URLS: dict[str, BatchKind] = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_PARAMS: tuple[tuple[str, pa.DataType], ...] = (
    ("max_new_tokens", pa.int64()),
    ("temperature", pa.float64()),
    ("top_p", pa.float64()),
    ("top_k", pa.int64()),
    ("seed", pa.int64()),
)
_BODY_PARAMS = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
}
_INT64 = 1 << 63

# What a request asks for that holds for a whole job: how the job has it, and the option that sets it.
_JOB_WIDE: dict[str, tuple[Callable[[GenerationSpec], Any], str]] = {
    "n": (lambda job: job.num_samples, "--num-samples"),
    "stop": (lambda job: list(job.stop), "--stop"),
    "presence_penalty": (lambda job: job.presence_penalty, "--presence-penalty"),
    "frequency_penalty": (lambda job: job.frequency_penalty, "--frequency-penalty"),
    "repetition_penalty": (lambda job: job.repetition_penalty, "--repetition-penalty"),
    "logit_bias": (lambda job: {str(token): bias for token, bias in job.logit_bias}, "--logit-bias"),
    "logprobs": (lambda job: job.logprobs, "--logprobs"),
    "min_p": (lambda job: job.min_p, "--min-p"),
    "min_tokens": (lambda job: job.min_new_tokens, "--min-new-tokens"),
    "ignore_eos": (lambda job: job.ignore_eos, "--ignore-eos"),
    "stop_token_ids": (lambda job: list(job.stop_token_ids), "--stop-token-ids"),
}
# Only these values are taken: they ask for nothing that is not done anyway.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "stream_options": (),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "top_logprobs": (0,),
}
# Book-keeping of the service that the file was made for: it has no bearing on any text.
_NO_BEARING = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
_DEFAULTS = GenerationSpec()


def batch_kind(line: Mapping[str, Any]) -> BatchKind | None:
    """What requests a file holds, told by its first line; None where it is no batch file."""
    if not all(key in line for key in LINE_KEYS) or type(line["body"]) is not dict:
        return None
    return _URLS.get(line["url"] if isinstance(line["url"], str) else "", "chat")


def batch_schema(kind: BatchKind) -> pa.Schema:
    """The columns of a batch file."""
    prompt = (MESSAGES_COLUMN, _MESSAGES) if kind == "chat" else (PROMPT_COLUMN, pa.string())
    return pa.schema([(ID_COLUMN, pa.string()), ("model", pa.string()), prompt, *_PARAMS])


def job_wide_settings(job: GenerationSpec) -> dict[str, Any]:
    """The settings that requests are compared with, as JSON values."""
    return {key: of(job) for key, (of, _) in _JOB_WIDE.items()}


def batch_row(
    path: str, number: int, line: dict[str, Any], kind: BatchKind, job: GenerationSpec | None
) -> dict[str, Any]:
    """The row that a request becomes, by column of ``batch_schema``.

    Malformed messages are left as nulls: such a row ends as an error row, not the job.

    Args:
        path, number: of the line, for messages.
        job: what the job does for all rows; None leaves it uncompared.

    Raises:
        SpecbatchError: ``JOB_INPUT_CORRUPT``, no request; ``JOB_INPUT_UNSUPPORTED``, a request for something that is
            not done, or not for single rows.
    """
    body = _checked(path, number, line, kind)
    row: dict[str, Any] = {ID_COLUMN: _text(path, number, ID_COLUMN, line[ID_COLUMN])}
    row["model"] = _text(path, number, "body.model", body.get("model"))
    for key, value in body.items():
        if value is None or key == "model" or key in _NO_BEARING:
            continue
        if key in _BODY_PARAMS:
            name = _BODY_PARAMS[key]
            parameter = _number(path, number, key, value, is_whole=name in ("max_new_tokens", "top_k", "seed"))
            if row.get(name, parameter) != parameter:
                raise _unsupported(
                    path, number, "max_tokens and body.max_completion_tokens", "they differ; leave one of them out"
                )
            row[name] = parameter
        elif key == "messages" and kind == "chat":
            row[MESSAGES_COLUMN] = _messages(path, number, value)
        elif key == "prompt" and kind == "completions":
            if not isinstance(value, str):
                raise _unsupported(path, number, key, f"it is {KIND_NAMES[type(value)]}, and only a text is taken")
            row[PROMPT_COLUMN] = value
        elif key in _JOB_WIDE:
            _compare(path, number, key, value, job)
        elif key not in _NEUTRAL or not any(_equals(value, neutral) for neutral in _NEUTRAL[key]):
            raise _unsupported(path, number, shown(key)[1:-1], "specbatch does not do this; take it out of the file")
    return row


def _checked(path: str, number: int, line: dict[str, Any], kind: BatchKind) -> dict[str, Any]:
    """The body of a line that is a request like those before it."""
    for key in LINE_KEYS:
        if key not in line:
            raise bad_line(path, number, f"it has no {key!r}, which the first line of this batch file has")
    for key in line:
        if key not in LINE_KEYS:
            raise bad_line(path, number, f"it has the key {shown(key)}, which no request has")
    if line["method"] != "POST":
        raise _unsupported(path, number, None, "its method is not POST")
    url = line["url"]
    if not isinstance(url, str) or url not in _URLS:
        raise _unsupported(path, number, None, f"its url is none of {', '.join(_URLS)}")
    if _URLS[url] != kind:
        raise _unsupported(path, number, None, "its url is another than before; submit chats and completions apart")
    if type(line["body"]) is not dict:
        raise bad_line(path, number, "its body is not an object")
    body: dict[str, Any] = line["body"]
    return body


def _messages(path: str, number: int, value: Any) -> list[dict[str, Any] | None] | None:
    if type(value) is not list:
        return None
    return [_message(path, number, index, item) for index, item in enumerate(value)]


def _message(path: str, number: int, index: int, item: Any) -> dict[str, Any] | None:
    if type(item) is not dict:
        return None
    for key, value in item.items():
        if key not in ("role", "content") and value is not None and value != []:
            raise _unsupported(path, number, f"messages[{index}].{shown(key)[1:-1]}", "only role and content are taken")
    role, content = item.get("role"), item.get("content")
    if type(content) is list:
        content = _joined(path, number, index, content)
    return {
        "role": role if isinstance(role, str) else None,
        "content": content if isinstance(content, str) else None,
    }


def _joined(path: str, number: int, index: int, parts: list[Any]) -> str | None:
    """The text of a content that comes in parts."""
    texts: list[str] = []
    for part in parts:
        if type(part) is not dict:
            return None
        if part.get("type") != "text":
            raise _unsupported(path, number, f"messages[{index}].content", "only parts of the type text are taken")
        if not isinstance(part.get("text"), str):
            return None
        texts.append(part["text"])
    return "".join(texts)


def _compare(path: str, number: int, key: str, value: Any, job: GenerationSpec | None) -> None:
    """What holds for a whole job must be the job's own."""
    if job is None:
        return
    of, option = _JOB_WIDE[key]
    if key == "stop" and isinstance(value, str):
        value = [value]
    if key == "logprobs" and type(value) is int:  # the older endpoint asks for a number of alternatives
        raise _unsupported(path, number, key, "alternatives are not given; take it out and use --logprobs")
    if _equals(value, of(job)):
        return
    if _equals(value, of(_DEFAULTS)):
        remedy = f"the job has {option}; leave that out, or write the same into every line"
    else:
        remedy = f"it is set for a whole job: where all lines have the same, give it with {option} too"
    raise _unsupported(path, number, key, remedy)


def _equals(one: Any, other: Any) -> bool:
    """Equality of JSON values that keeps true and 1 apart."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def _number(path: str, number: int, key: str, value: Any, *, is_whole: bool) -> int | float:
    if type(value) is int and (not is_whole or -_INT64 <= value < _INT64) and abs(value) < 1 << 1000:
        return value if is_whole else float(value)
    if type(value) is float and not is_whole and abs(value) != float("inf"):
        return value
    wanted = "a whole number of 64 bits" if is_whole else "a number"
    raise bad_line(path, number, f"body.{key} is not {wanted}")


def _text(path: str, number: int, key: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise bad_line(path, number, f"{key} is {KIND_NAMES[type(value)]}, not text")


def _unsupported(path: str, number: int, key: str | None, reason: str) -> SpecbatchError:
    what = "" if key is None else f"body.{key}: "
    return SpecbatchError(ErrorCode.JOB_INPUT_UNSUPPORTED, f"{path} line {number}: {what}{reason}")
