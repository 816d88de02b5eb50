"""Texts of prompts: what the tokenizer is given for a row, and which rows have none."""

from __future__ import annotations

import datetime
import json
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from test_prompts_chat import MARKED, folder_with

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.prompt import ChatText, PromptSpec
from specbatch.workers.rendering import RowError, Unreadable, make_renderer

NOWHERE = Path("no folder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory.mktemp("model"), MARKED)


def render(prompt: PromptSpec, row: dict[str, Any], folder: Path = NOWHERE) -> str:
    return make_renderer(prompt, folder, list(row)).render(row)


def row_error(prompt: PromptSpec, row: dict[str, Any], folder: Path = NOWHERE) -> tuple[str, str]:
    with pytest.raises(RowError) as caught:
        render(prompt, row, folder)
    return caught.value.code.value, caught.value.message


def job_error(prompt: PromptSpec, names: list[str], folder: Path = NOWHERE) -> tuple[str, str]:
    with pytest.raises(SpecbatchError) as caught:
        make_renderer(prompt, folder, names)
    assert "\n" not in caught.value.message
    return caught.value.code.value, caught.value.message


# ---- the prompt column -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a {{ b }}", " a\n", "\ufeffü", "<|eos|>"])
def test_a_prompt_column_goes_to_the_tokenizer_as_it_is(text: str) -> None:
    assert render(PromptSpec(), {"prompt": text}) == text
    assert render(PromptSpec(), {"prompt": text.encode()}) == text
    assert not isinstance(render(PromptSpec(), {"prompt": text}), ChatText)


def test_a_system_prompt_makes_a_chat_of_it(folder: Path) -> None:
    text = render(PromptSpec(system="Be brief."), {"prompt": b"def f:"}, folder)
    assert text == "<|bos|>system\nBe brief.<|eos|>\n<|bos|>user\ndef f:<|eos|>\n<|bos|>assistant\n"
    assert isinstance(text, ChatText)
    assert row_error(PromptSpec(system="Be brief."), {"prompt": None}, folder)[0] == "ROW_PROMPT_NULL"
    assert row_error(PromptSpec(system="Be brief."), {"prompt": b" \n"}, folder)[0] == "ROW_PROMPT_EMPTY"
    assert row_error(PromptSpec(system="Be brief."), {"prompt": b"\xff"}, folder)[0] == "ROW_ENCODING"


def test_a_target_without_chat_template_cannot_have_chats(tmp_path: Path) -> None:
    bare = folder_with(tmp_path / "bare", None)
    code, message = job_error(PromptSpec(system="s"), ["prompt"], bare)
    assert code == "JOB_CONFIG"
    assert "--system needs a chat template" in message
    assert "--template" in message
    assert "--messages-column" in job_error(PromptSpec(messages_column="chat"), ["chat"], bare)[1]


# ---- chats -----------------------------------------------------------------------------------------------------------

CHAT = PromptSpec(messages_column="chat")
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
TURNS_TEXT = (
    "<|bos|>system\nYou help.<|eos|>\n<|bos|>user\na<|eos|>\n<|bos|>assistant\nb<|eos|>\n<|bos|>user\nc<|eos|>\n"
    "<|bos|>assistant\n"
)


def test_a_chat_is_a_list_or_its_json(folder: Path) -> None:
    assert render(CHAT, {"chat": TURNS}, folder) == TURNS_TEXT
    assert render(CHAT, {"chat": json.dumps(TURNS)}, folder) == TURNS_TEXT
    assert render(CHAT, {"chat": json.dumps(TURNS).encode()}, folder) == TURNS_TEXT
    # A column of structs has the keys of all rows, null where a row lacks them.
    with_nulls = [{**message, "name": None, "tool_calls": None} for message in TURNS]
    assert render(CHAT, {"chat": with_nulls}, folder) == TURNS_TEXT


def test_parts_of_text_are_joined(folder: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    one = [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]
    assert "user\na\nb<|eos|>" in render(CHAT, {"chat": one}, folder)


def test_a_system_prompt_stands_before_a_chat_that_has_none(folder: Path) -> None:
    prompt = PromptSpec(messages_column="chat", system="mine")
    assert render(prompt, {"chat": TURNS}, folder) == TURNS_TEXT.replace("You help.", "mine")
    own = [{"role": "system", "content": "own"}, *TURNS]
    assert render(prompt, {"chat": own}, folder) == TURNS_TEXT.replace("You help.", "own")


@pytest.mark.parametrize(
    ("chat", "code", "says"),
    [
        (None, "ROW_PROMPT_NULL", "null"),
        (Unreadable(), "ROW_ENCODING", "UTF-8"),
        (b"\xff", "ROW_ENCODING", "byte 0"),
        ([], "ROW_MESSAGES", "at least one"),
        ("secret", "ROW_MESSAGES", "JSON"),
        ('{"role": "user", "content": "secret"}', "ROW_MESSAGES", "list"),
        ("[" * 100_000, "ROW_MESSAGES", "JSON"),
        ([None], "ROW_MESSAGES", "message 1"),
        (["secret"], "ROW_MESSAGES", "message 1"),
        ([TURNS[0], {"content": "secret"}], "ROW_MESSAGES", "message 2 has no role"),
        ([{"role": "", "content": "secret"}], "ROW_MESSAGES", "no role"),
        ([{"role": "secret" * 100, "content": "x"}], "ROW_MESSAGES", "no role"),
        ([{"role": 1, "content": "secret"}], "ROW_MESSAGES", "no role"),
        ([{"role": "user"}], "ROW_MESSAGES", "no content"),
        ([{"role": "user", "content": None}], "ROW_MESSAGES", "no content"),
        ([{"role": "user", "content": 5}], "ROW_MESSAGES", "no content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "secret"}]}], "ROW_MESSAGES", "a part"),
        ([{"role": "user", "content": "x"}] * 10_001, "ROW_MESSAGES", "10001"),
        ('[{"role": "user", "content": "secret \\ud800"}]', "ROW_ENCODING", "half a character"),
        ([{"role": "user", "content": "x" * (9 << 20)}], "ROW_TEMPLATE", "characters"),
        ("x" * (9 << 20), "ROW_MESSAGES", "JSON"),
        (b"x" * (9 << 20), "ROW_TOO_LARGE", "bytes"),
    ],
)
def test_chats_that_are_none_become_error_rows(chat: Any, code: str, says: str, folder: Path) -> None:
    found, message = row_error(CHAT, {"chat": chat}, folder)
    assert found == code
    assert says in message
    assert "secret" not in message


def test_a_chat_template_that_fails_is_the_error_of_the_row(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "{{ messages[1].content + 'x' }}")
    code, message = row_error(CHAT, {"chat": TURNS[:1]}, folder)
    assert code == "ROW_TEMPLATE"
    assert "chat template of the target" in message


# ---- templates over columns ------------------------------------------------------------------------------------------


def templated(source: str) -> PromptSpec:
    return PromptSpec(template=source)


def test_a_template_writes_columns_of_all_kinds() -> None:
    row = {
        "text": "größe".encode(),
        "n": 3,
        "x": 0.5,
        "flag": True,
        "price": Decimal("1.50"),
        "day": datetime.date(2026, 1, 2),
        "tags": ["a", b"b"],
        "nested": {"inner": {"deep": "d"}},
        "my column": "spaced",
        "unused": Unreadable(),
    }
    source = (
        "{{ text|upper }} {{ n + 1 }} {{ x }} {{ flag }} {{ price }} {{ day }} {{ tags|join('+') }} "
        "{{ nested.inner.deep }} {{ row['my column'] }} {{ row.n }} {{ nested|tojson }}"
    )
    expected = 'GRÖSSE 4 0.5 True 1.50 2026-01-02 a+b d spaced 3 {"inner": {"deep": "d"}}'
    renderer = make_renderer(templated(source), NOWHERE, list(row))
    assert renderer.render(row) == expected
    assert renderer.columns == ("text", "n", "x", "flag", "price", "day", "tags", "nested", "my column")
    assert not isinstance(renderer.render(row), ChatText)
    assert renderer.chat_sha256 is None


def test_control_flow_and_the_last_line_end() -> None:
    source = "{% for s in steps %}\n- {{ s }}\n{% endfor %}\n{% if note %}\nNote: {{ note }}\n{% endif %}\n"
    assert render(templated(source), {"steps": ["a", "b"], "note": None}) == "- a\n- b\n"
    assert render(templated(source), {"steps": [], "note": "x"}) == "Note: x\n"


def test_all_columns_can_be_gone_through() -> None:
    source = "{% for name, value in row.items() %}{{ name }}={{ value }};{% endfor %}"
    assert render(templated(source), {"a": 1, "b": "x"}) == "a=1;b=x;"
    assert render(templated("{{ row[name] }}"), {"name": "b", "b": "x"}) == "x"
    assert render(templated("{{ row.id }}"), {"row": {"id": "of a column called row"}}) == "of a column called row"


def test_a_template_with_a_system_prompt_is_a_chat(folder: Path) -> None:
    text = render(PromptSpec(template="Q: {{ q }}", system="s"), {"q": "why"}, folder)
    assert text == "<|bos|>system\ns<|eos|>\n<|bos|>user\nQ: why<|eos|>\n<|bos|>assistant\n"


@pytest.mark.parametrize(
    ("source", "row", "code", "says"),
    [
        ("{{ a.b }}", {"a": {"c": "secret"}}, "ROW_TEMPLATE", "'b' is undefined"),
        ("{{ a.b.c }}", {"a": {}}, "ROW_TEMPLATE", "undefined"),
        ("x\n{{ a + 1 }}", {"a": "secret"}, "ROW_TEMPLATE", "line 2: TypeError"),
        ("{{ a }}", {"a": None}, "ROW_TEMPLATE", "null here: 'a'"),
        ("{{ a[0] }}", {"a": []}, "ROW_TEMPLATE", "undefined"),
        ("{{ a }}", {"a": " "}, "ROW_PROMPT_EMPTY", "empty"),
        ("{{ a }}", {"a": b"\xff"}, "ROW_ENCODING", "'a'"),
        ("{{ a }}", {"a": Unreadable()}, "ROW_ENCODING", "'a'"),
        ("{{ a }}\ud800", {"a": "x"}, "ROW_ENCODING", "half a character"),
        ("{{ a }}", {"a": b"x" * (9 << 20)}, "ROW_TOO_LARGE", "'a'"),
        ("{{ a * 10 ** 9 }}", {"a": "x"}, "ROW_TEMPLATE", "characters"),
    ],
)
def test_rows_that_a_template_cannot_be_rendered_with(source: str, row: dict[str, Any], code: str, says: str) -> None:
    found, message = row_error(templated(source), row)
    assert found == code
    assert says in message
    assert "secret" not in message


def test_a_null_can_be_guarded() -> None:
    assert render(templated("{{ a or 'nothing' }}{{ b|default('-', true) }}"), {"a": None, "b": None}) == "nothing-"


def test_templates_that_no_row_can_be_rendered_with_are_refused_before_any() -> None:
    names = ["question", "answer"]
    code, message = job_error(templated("{{ questoin }}"), names)
    assert code == "JOB_COLUMN_MISSING"
    assert "did you mean 'question'?" in message
    assert "did you mean 'answer'?" in job_error(templated("{{ row['anwser'] }}"), names)[1]
    assert "did you mean 'answer'?" in job_error(templated("{{ row.anwser }}"), names)[1]
    code, message = job_error(templated("a\n{{ question "), names)
    assert code == "JOB_CONFIG"
    assert "line 2" in message
    code, message = job_error(templated("always the same"), names)
    assert code == "JOB_CONFIG"
    assert "names no column" in message
    assert "range" not in job_error(templated("{{ range(3) ~ x }}"), names)[1]


def test_the_named_column_must_exist() -> None:
    assert job_error(PromptSpec(column="promt"), ["prompt"])[0] == "JOB_COLUMN_MISSING"
    assert job_error(PromptSpec(messages_column="chat"), ["chats"])[0] == "JOB_COLUMN_MISSING"


def test_specs_and_texts_travel() -> None:
    for value in (PromptSpec(template="{{ a }}", system="s"), ErrorCode.ROW_TEMPLATE):
        assert pickle.loads(pickle.dumps(value)) == value
    text = pickle.loads(pickle.dumps(ChatText("abc", [(0, 1)])))
    assert (text, text.literals) == ("abc", ((0, 1),))
