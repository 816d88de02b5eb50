"""From a row to the text of its prompt: the prompt column as it is, a chat, or a template over the columns.

A text column without ``system`` goes to the tokenizer as it is. Everything else is written by a template: the user's
own over the columns, the target's chat template over messages, or one after the other. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, nodes

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.prompt import ChatText, PromptSpec, listed, missing_column
from specbatch.schemas.suggest import did_you_mean
from specbatch.workers.chat import ChatTemplate
from specbatch.workers.row_values import MAX_PROMPT_BYTES, RowError, Unreadable, plain, read_messages, read_text
from specbatch.workers.sandbox import BadTemplateError, SandboxedTemplate, TemplateFailedError, refuse_null

__all__ = ["MAX_PROMPT_BYTES", "Renderer", "RowError", "Unreadable", "make_renderer", "read_messages", "read_text"]

_ROW = "row"
"""In a template, all columns by name: ``row["my column"]``."""
_MAPPING_METHODS = frozenset({"get", "items", "keys", "values"})


class Renderer:
    """Makes the prompts of a job; ``make_renderer`` makes it. An instance belongs to one thread.

    Attributes:
        columns: of a row that it reads.
        chat_sha256: digest of the target's chat template; None where prompts are no chats.
    """

    def __init__(
        self,
        prompt: PromptSpec,
        columns: tuple[str, ...],
        template: SandboxedTemplate | None,
        chat: ChatTemplate | None,
    ) -> None:
        self.columns = columns
        self.chat_sha256 = None if chat is None else chat.sha256
        self._prompt = prompt
        self._template = template
        self._chat = chat

    def render(self, row: Mapping[str, Any]) -> str:
        """The text for the tokenizer; a ``ChatText`` where a chat template wrote it.

        ``system`` is the first message of a chat, unless the chat has a system message already.

        Args:
            row: a value for each of ``columns``; texts may be bytes, which are decoded here.

        Raises:
            RowError: ROW_PROMPT_NULL, ROW_PROMPT_EMPTY, ROW_TOO_LARGE, ROW_ENCODING of the text; ROW_TEMPLATE, a
                template cannot be rendered with the row; ROW_MESSAGES, the chat is none.
        """
        prompt = self._prompt
        if prompt.messages_column is not None:
            messages = read_messages(row[prompt.messages_column])
            if prompt.system is not None and all(message["role"] != "system" for message in messages):
                messages.insert(0, {"role": "system", "content": prompt.system})
            return self._as_chat(messages)
        text = read_text(row[prompt.column]) if self._template is None else self._from_columns(self._template, row)
        if prompt.system is None:
            return text
        return self._as_chat([{"role": "system", "content": prompt.system}, {"role": "user", "content": text}])

    def _from_columns(self, template: SandboxedTemplate, row: Mapping[str, Any]) -> str:
        values = {name: plain(row[name], name) for name in self.columns}
        try:
            text = template.render({_ROW: values, **values})
        except TemplateFailedError as error:
            nulls = [name for name, value in values.items() if value is None]
            hint = f"; null here: {listed(nulls)}" if nulls else ""
            raise RowError(ErrorCode.ROW_TEMPLATE, f"the template fails: {error}{hint}") from None
        return read_text(text)

    def _as_chat(self, messages: Sequence[Mapping[str, Any]]) -> ChatText:
        assert self._chat is not None, "make_renderer refuses a chat without a chat template"
        try:
            text = self._chat.render(messages)
        except TemplateFailedError as error:
            raise RowError(ErrorCode.ROW_TEMPLATE, f"the chat template of the target fails: {error}") from None
        read_text(text)
        return text


def make_renderer(prompt: PromptSpec, model_folder: Path, schema_names: Sequence[str]) -> Renderer:
    """The renderer of a job.

    Args:
        model_folder: of the target; not looked at unless prompts are chats.
        schema_names: columns of the dataset.

    Raises:
        SpecbatchError: JOB_CONFIG, the template does not parse, or the target has no chat template where one is
            needed; JOB_COLUMN_MISSING, a column that does not exist; JOB_MODEL_UNSUPPORTED, JOB_MODEL_LOAD, the chat
            template of the target cannot be used.
    """
    template = None
    if prompt.messages_column is not None:
        columns: tuple[str, ...] = (prompt.messages_column,)
    elif prompt.template is not None:
        template, columns = _compile(prompt.template, schema_names)
    else:
        columns = (prompt.column,)
    for column in columns:
        if column not in schema_names:
            option = "--prompt-column" if prompt.messages_column is None else "--messages-column"
            raise missing_column(column, schema_names, option)
    chat = None
    if prompt.is_chat:
        chat = ChatTemplate.from_folder(model_folder)
        if chat is None:
            raise _no_chat_template(prompt, model_folder)
    return Renderer(prompt, columns, template, chat)


def _compile(source: str, names: Sequence[str]) -> tuple[SandboxedTemplate, tuple[str, ...]]:
    """The user's template and the columns that it reads. One that fails for every row is refused here, before any."""
    try:
        template = SandboxedTemplate(source, undefined=StrictUndefined, finalize=refuse_null)
    except BadTemplateError as error:
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"--template cannot be used: {error}; correct it") from None
    wanted = template.names - ({_ROW} if _ROW not in names else set())
    if not wanted and _ROW not in template.names:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            "--template names no column, so that all prompts would be equal; "
            f"write a column as {{{{ name }}}}; the dataset has {listed(names)}",
        )
    asked = set(wanted)
    if _ROW in template.names and _ROW not in names:
        keys = list(_row_keys(template.tree))
        asked |= {key for key in keys if key is not None}
        if None in keys or len(keys) < _num_row_uses(template.tree):
            wanted = frozenset(names)  # a name that is computed: any of them
    for name in sorted(asked):
        if name not in names:
            raise SpecbatchError(
                ErrorCode.JOB_COLUMN_MISSING,
                f"--template names {name!r}, and the dataset has no such column; its columns are {listed(names)}; "
                + did_you_mean(name, names, "write one of these"),
            )
    return template, tuple(name for name in names if name in asked or name in wanted)


def _row_keys(tree: nodes.Template) -> list[str | None]:
    """Columns that are named by ``row["name"]`` or ``row.name``; None for a name that is computed."""
    keys: list[str | None] = []
    for attribute in tree.find_all(nodes.Getattr):
        if isinstance(attribute.node, nodes.Name) and attribute.node.name == _ROW:
            keys.append(None if attribute.attr in _MAPPING_METHODS else attribute.attr)
    for item in tree.find_all(nodes.Getitem):
        if isinstance(item.node, nodes.Name) and item.node.name == _ROW:
            key = item.arg.value if isinstance(item.arg, nodes.Const) else None
            keys.append(key if isinstance(key, str) else None)
    return keys


def _num_row_uses(tree: nodes.Template) -> int:
    return sum(node.name == _ROW for node in tree.find_all(nodes.Name))


def _no_chat_template(prompt: PromptSpec, folder: Path) -> SpecbatchError:
    what = "--messages-column" if prompt.messages_column is not None else "--system"
    instead = (
        "write the chat as text with --template"
        if prompt.messages_column is not None
        else "write the system prompt into --template, before the columns"
    )
    return SpecbatchError(
        ErrorCode.JOB_CONFIG,
        f"{what} needs a chat template, and the target in {folder} has none (no chat_template.jinja, none in "
        f"tokenizer_config.json); use a target that has one, put one into its folder, or {instead}",
    )
