"""Values of rows as prompts are made of them: texts, messages, and what a template may see; and why a row has none."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from specbatch.schemas.errors import ErrorCode

MAX_PROMPT_BYTES = 8 << 20
"""Most bytes of a prompt that is tokenized: more than the longest context holds, and a few seconds' work."""

_MAX_MESSAGES = 10_000
_MAX_ROLE_CHARACTERS = 64


class RowError(Exception):
    """A row that has no prompt. The message repeats nothing of the row.

    Attributes:
        code: of the error row.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


class Unreadable:
    """Stands in a row for a value that could not be made a Python value."""


def read_text(value: Any) -> str:
    """A text that is fit to be a prompt, from a text or its bytes.

    Raises:
        RowError: ROW_PROMPT_NULL, ROW_PROMPT_EMPTY, ROW_TOO_LARGE, ROW_ENCODING.
    """
    if value is None:
        raise RowError(ErrorCode.ROW_PROMPT_NULL, "the prompt is null")
    if isinstance(value, bytes):
        text = _decode(value, "the prompt")
    else:
        text = value
        try:
            num_bytes = len(text.encode())
        except UnicodeEncodeError as error:
            message = f"the prompt has half a character (a lone surrogate) at place {error.start}"
            raise RowError(ErrorCode.ROW_ENCODING, message) from None
        _check_size(num_bytes, "the prompt")
    if not text.strip():
        raise RowError(ErrorCode.ROW_PROMPT_EMPTY, "the prompt is empty or only white space")
    return str(text)


def read_messages(value: Any) -> list[dict[str, Any]]:
    """The messages of a chat, from a list of them or from its JSON.

    A content that is a list of text parts becomes their texts, one line after another.

    Raises:
        RowError: ROW_PROMPT_NULL, ROW_TOO_LARGE, ROW_ENCODING, ROW_MESSAGES.
    """
    if value is None:
        raise RowError(ErrorCode.ROW_PROMPT_NULL, "the chat is null")
    if isinstance(value, Unreadable):
        raise RowError(ErrorCode.ROW_ENCODING, "the chat holds a text that is not valid UTF-8")
    if isinstance(value, bytes):
        value = _decode(value, "the chat")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowError(ErrorCode.ROW_MESSAGES, "the chat is not valid JSON") from None
    if not isinstance(value, list) or not value:
        raise RowError(ErrorCode.ROW_MESSAGES, "the chat is not a list of at least one message")
    if len(value) > _MAX_MESSAGES:
        raise RowError(ErrorCode.ROW_MESSAGES, f"the chat has {len(value)} messages; at most {_MAX_MESSAGES} are taken")
    return [_read_message(message, f"message {number}") for number, message in enumerate(value, start=1)]


def _read_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RowError(ErrorCode.ROW_MESSAGES, f"{where} is no object with role and content")
    found = {str(key): plain(value, where) for key, value in message.items()}
    role, content = found.get("role"), found.get("content")
    if not isinstance(role, str) or not role.strip() or len(role) > _MAX_ROLE_CHARACTERS:
        raise RowError(ErrorCode.ROW_MESSAGES, f"{where} has no role")
    if isinstance(content, list):
        content = found["content"] = _joined(content, where)
    if not isinstance(content, str) and not (content is None and found.get("tool_calls")):
        raise RowError(ErrorCode.ROW_MESSAGES, f"{where} has no content that is text")
    return found


def _joined(parts: list[Any], where: str) -> str:
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
        if not isinstance(text, str):
            raise RowError(ErrorCode.ROW_MESSAGES, f"{where} has a part that is not text")
        texts.append(text)
    return "\n".join(texts)


def plain(value: Any, where: str) -> Any:
    """A value of a row as a template may see it: texts, numbers, lists, mappings, nothing with methods that act."""
    if value is None or isinstance(value, str | int | float | Decimal):
        return value
    if isinstance(value, bytes):
        return _decode(value, f"{where!r}")
    if isinstance(value, Mapping):
        return {str(key): plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, where) for item in value]
    if isinstance(value, Unreadable):
        raise RowError(ErrorCode.ROW_ENCODING, f"{where!r} holds a value that cannot be read")
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return str(value)


def _decode(data: bytes, what: str) -> str:
    _check_size(len(data), what)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{what} is not valid UTF-8 at byte {error.start} of {len(data)}"
        raise RowError(ErrorCode.ROW_ENCODING, message) from None


def _check_size(num_bytes: int, what: str) -> None:
    if num_bytes > MAX_PROMPT_BYTES:
        message = f"{what} has {num_bytes} bytes; at most {MAX_PROMPT_BYTES} are tokenized"
        raise RowError(ErrorCode.ROW_TOO_LARGE, message)
