"""The chat template of a model: found in its folder, rendered as ``transformers`` does it, but in our sandbox.

What differs from ``transformers`` on purpose: the clock is not told (the text of a job must not depend on the day), and
texts of a row that look like special tokens are marked, so that they are encoded as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import nodes

from specbatch.schemas.canonical import canonical_json, sha256_hex
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.prompt import ChatText
from specbatch.specdec.models.files import read_file, read_json
from specbatch.workers.sandbox import BadTemplateError, SandboxedTemplate

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
# Noncharacters: no interchanged text has them, and where one does, it is dropped from what is marked.
_BEGIN, _END = "\ufdd0", "\ufdd1"


class ChatTemplate:
    """A model's chat template with the special tokens that it is given. An instance belongs to one thread.

    Args:
        source: Jinja.
        tokens: ``bos_token`` and the like: spelling.
        specials: spellings that the tokenizer takes for commands.

    Raises:
        SpecbatchError: JOB_MODEL_UNSUPPORTED, it does not parse, or writes the date of the day.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], specials: Sequence[str]) -> None:
        self._tokens = dict(tokens)
        self._specials = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or "(?!)")
        self.sha256 = sha256_hex(canonical_json({"template": source, "tokens": self._tokens}))
        try:
            self._template = SandboxedTemplate(source)
        except BadTemplateError as error:
            raise SpecbatchError(
                ErrorCode.JOB_MODEL_UNSUPPORTED, f"the chat template of the target cannot be used: {error}; correct it"
            ) from None
        if "strftime_now" in self._template.names and not _asks_for_clock(self._template.tree):
            raise SpecbatchError(
                ErrorCode.JOB_MODEL_UNSUPPORTED,
                "the chat template of the target writes today's date (strftime_now), so that the text of a job would "
                "depend on the day; put a fixed date into a copy of the template",
            )

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate | None:
        """The template of a model folder; None where it has none.

        ``chat_template.jinja`` comes before ``chat_template`` in ``tokenizer_config.json``; of several templates the
        one called ``default`` is taken.

        Raises:
            SpecbatchError: JOB_MODEL_UNSUPPORTED, it cannot be used; JOB_MODEL_LOAD, a file cannot be read.
        """
        config = _json_of(folder / "tokenizer_config.json")
        source = _source(folder, config)
        if source is None:
            return None
        if "added_tokens_decoder" not in config:
            config = {**config, **_json_of(folder / "special_tokens_map.json")}
        tokens = {name: spelling for name in _SPECIAL_NAMES if (spelling := _spelling(config.get(name))) is not None}
        added = _json_of(folder / "tokenizer.json").get("added_tokens") or ()
        return cls(source, tokens, [token["content"] for token in added if token.get("special") and token["content"]])

    def render(self, messages: Sequence[Mapping[str, Any]]) -> ChatText:
        """The chat up to where the assistant begins to speak.

        Raises:
            TemplateFailedError: the template cannot be rendered with it.
        """
        chat = [
            _with_reasoning({key: value for key, value in message.items() if value is not None}) for message in messages
        ]
        return _unmark(
            self._template.render(
                {
                    **self._tokens,
                    "messages": self._mark(chat),
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": True,
                }
            )
        )

    def _mark(self, value: Any) -> Any:
        """The texts of a chat with marks around what looks like a special token."""
        if isinstance(value, str):
            plain = value.replace(_BEGIN, "").replace(_END, "")
            return self._specials.sub(lambda found: f"{_BEGIN}{found.group()}{_END}", plain)
        if isinstance(value, Mapping):
            return {key: self._mark(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._mark(item) for item in value]
        return value


def _unmark(text: str) -> ChatText:
    """The text without its marks, and the ranges that were marked. A mark that lost its other half says nothing."""
    if _BEGIN not in text and _END not in text:
        return ChatText(text)
    pieces: list[str] = []
    literals: list[tuple[int, int]] = []
    length, begun = 0, None
    for piece in re.split(f"([{_BEGIN}{_END}])", text):
        if piece == _BEGIN:
            begun = length
        elif piece == _END:
            if begun is not None and begun < length:
                literals.append((begun, length))
            begun = None
        else:
            pieces.append(piece)
            length += len(piece)
    return ChatText("".join(pieces), literals)


def _source(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_file(path).decode("utf-8", "replace")
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {str(entry.get("name")): entry.get("template") for entry in found if isinstance(entry, Mapping)}
        found = named.get("default")
        if found is None and named:
            raise SpecbatchError(
                ErrorCode.JOB_MODEL_UNSUPPORTED,
                f"the target has the chat templates {', '.join(map(repr, sorted(named)))}, none is called 'default'; "
                "put the one that is meant into chat_template.jinja",
            )
    return found if isinstance(found, str) else None


def _asks_for_clock(tree: nodes.Template) -> bool:
    """Whether the template tests that there is a clock, and so knows what to do without."""
    return any(
        test.name in ("defined", "undefined") and isinstance(test.node, nodes.Name) and test.node.name == "strftime_now"
        for test in tree.find_all(nodes.Test)
    )


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose reasoning has the names under which templates look for it."""
    reasoning = next((message[name] for name in _REASONING_NAMES if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _spelling(token: Any) -> str | None:
    """A token of ``tokenizer_config.json``: its text, or an object that holds it."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def _json_of(path: Path) -> dict[str, Any]:
    """What a file says; nothing where the model has no such file."""
    return read_json(path) if path.is_file() else {}
