"""Chats: our rendering against that of ``transformers``, on templates of the kinds that models have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.prompt import ChatText
from specbatch.specdec.models.folders import locate_model
from specbatch.specdec.tokenizer import Tokenizer
from specbatch.workers.chat import ChatTemplate
from specbatch.workers.sandbox import TemplateFailedError

MARKED = """
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|bos|>system\nYou help.<|eos|>\n' }}
    {%- endif %}
    {{- '<|bos|>' + message['role'] + '\n' + message['content'] + '<|eos|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|bos|>assistant\n' }}
{%- endif %}
"""
HEADERS = """{{ bos_token }}{% if strftime_now is defined %}{% set day = "a" %}{% else %}{% set day = "a" %}{% endif %}
{%- set offset = 0 -%}
{% if messages[0]['role'] == 'system' %}{% set offset = 1 %}[SYS {{ day }}]{{ messages[0]['content'] | trim }}[/SYS]
{% endif %}
{% for message in messages[offset:] %}
    {% if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must take turns') }}
    {% endif %}
    {% generation %}[{{ message.role | upper }}] {{ message.content }}{% endgeneration %}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}[ASSISTANT]{% endif %}"""
MACROS = """{% macro turn(role, text) %}<{{ role }}>{{ text }}</{{ role }}>
{% endmacro %}
{% set state = namespace(seen=0, last='') %}
{% for message in messages %}
{% if message.content is string %}{% set state.seen = state.seen + 1 %}{% set state.last = message.content %}
{{ turn(message.role, message.content ~ '#' ~ state.seen) }}
{%- endif %}
{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}
{% if message.reasoning_content %}({{ message.reasoning_content }}){% endif %}
{% if state.seen >= 3 %}{% break %}{% endif %}
{% endfor %}
{{ messages | map(attribute='role') | join(',') }} {{ messages | length }} {{ pad_token }}{{ unk_token }}{{ not tools }}
{{ messages | tojson(indent=2) }}"""
TEMPLATES = {"marked": MARKED, "headers": HEADERS, "macros": MACROS}

CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "def f(x):"}],
    "system": [{"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": "Hello, größe 你好 🙂"}],
    "turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b <b>&amp;</b>"},
        {"role": "user", "content": "c"},
    ],
    "empty": [{"role": "user", "content": ""}],
    "nulls": [{"role": "user", "content": "a", "name": None, "tool_calls": None}],
    "reasoning": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "thinking": "hm"}],
}


def folder_with(root: Path, template: str | None, **config: Any) -> Path:
    """The bundled target's tokenizer with a chat template."""
    target = locate_model("code-pair/target").path
    root.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(target / name, root / name)
    document = json.loads((target / "tokenizer_config.json").read_text())
    (root / "tokenizer_config.json").write_text(json.dumps({**document, **config}))
    if template is not None:
        (root / "chat_template.jinja").write_text(template)
    return root


def chat_of(folder: Path) -> ChatTemplate:
    found = ChatTemplate.from_folder(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", TEMPLATES)
def test_chats_are_rendered_and_encoded_as_transformers_does_it(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = folder_with(tmp_path, TEMPLATES[kind])
    reference, ours, tokenizer = AutoTokenizer.from_pretrained(folder), chat_of(folder), Tokenizer.from_folder(folder)
    for name, chat in CHATS.items():
        expected = reference.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        text = ours.render(chat)
        assert text == expected, name
        ids = reference.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert tokenizer.encode(text) == ids, name


def test_a_template_that_refuses_a_chat_says_so_as_its_author_wrote_it(tmp_path: Path) -> None:
    chat = chat_of(folder_with(tmp_path, HEADERS))
    with pytest.raises(TemplateFailedError, match=r"^line 7: roles must take turns$"):
        chat.render([{"role": "assistant", "content": "secret"}])


def test_special_tokens_of_the_template_are_commands_and_those_of_a_row_are_text(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, MARKED)
    tokenizer = Tokenizer.from_folder(folder)
    bos, eos = 1, 2
    text = chat_of(folder).render([{"role": "system", "content": "s"}, {"role": "user", "content": "a<|eos|>b<|bos|>"}])
    assert text == "<|bos|>system\ns<|eos|>\n<|bos|>user\na<|eos|>b<|bos|><|eos|>\n<|bos|>assistant\n"
    assert [text[start:stop] for start, stop in text.literals] == ["<|eos|>", "<|bos|>"]
    ids = tokenizer.encode(text)
    assert [token for token in ids if token in (bos, eos)] == [bos, eos, bos, eos, bos]
    assert ids[0] == bos
    plain = tokenizer.encode("a<|eos|>b<|bos|>")
    assert eos not in plain
    assert tokenizer.decode(ids) == "system\ns\nuser\na<|eos|>b<|bos|>\nassistant\n"


def test_nothing_is_put_around_a_chat_not_even_where_the_tokenizer_would(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing

    folder = folder_with(tmp_path, "{{ bos_token }}{{ messages[0].content }}")
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(folder)
    inner = Tokenizer.from_folder(locate_model("code-pair/target").path).encode("def")
    assert tokenizer.encode("def") == [1, *inner]
    assert tokenizer.encode(chat_of(folder).render([{"role": "user", "content": "def"}])) == [1, *inner]
    assert tokenizer.encode("<|bos|>def")[0:1] == [1]
    assert tokenizer.encode("<|bos|>def").count(1) == 1


def test_a_template_that_cuts_a_marked_text_leaves_no_marks(tmp_path: Path) -> None:
    source = "{{ messages[0].content.split('<|eos|>')[-1] }}|{{ messages[0].content.split('<|eos|>')[0] }}"
    text = chat_of(folder_with(tmp_path, source)).render([{"role": "user", "content": "a<|eos|>b"}])
    assert text == "b|a"
    assert text.literals == ()


def test_a_row_cannot_forge_marks(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, MARKED)
    text = chat_of(folder).render([{"role": "system", "content": "\ufdd1<|e\ufdd0os|>\ufdd0x"}])
    assert "\ufdd0" not in text
    assert "\ufdd1" not in text
    ((start, stop),) = text.literals
    assert text[start:stop] == "<|eos|>"


def test_pieces_of_a_chat_text() -> None:
    text = ChatText("abcde", [(0, 1), (3, 4)])
    assert text.pieces() == [("a", False), ("bc", True), ("d", False), ("e", True)]
    assert ChatText("").pieces() == []


# ---- where the template is found -------------------------------------------------------------------------------------


def rendered(folder: Path) -> str:
    return str(chat_of(folder).render([{"role": "user", "content": "x"}]))


def test_the_file_comes_before_the_configuration(tmp_path: Path) -> None:
    assert ChatTemplate.from_folder(folder_with(tmp_path / "none", None)) is None
    assert rendered(folder_with(tmp_path / "config", None, chat_template="config")) == "config"
    assert rendered(folder_with(tmp_path / "both", "file", chat_template="config")) == "file"
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "chat"}]
    assert rendered(folder_with(tmp_path / "several", None, chat_template=several)) == "chat"
    with pytest.raises(SpecbatchError, match="'tool_use'") as caught:
        rendered(folder_with(tmp_path / "other", None, chat_template=several[:1]))
    assert caught.value.code is ErrorCode.JOB_MODEL_UNSUPPORTED


def test_special_tokens_may_be_objects_or_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    source = "{{ bos_token }}{{ eos_token }}"
    assert rendered(folder_with(tmp_path / "object", source, bos_token={"content": "<s>"})) == "<s><|eos|>"
    folder = folder_with(tmp_path / "map", source, bos_token=None)
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<b>"}}))
    assert rendered(folder) == "<b><|eos|>"


@pytest.mark.parametrize("content", ["[1, 2]", "null", "{", "[" * 100_000], ids=["list", "null", "cut", "deep"])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"])
def test_a_file_of_the_model_that_is_no_object_is_refused(tmp_path: Path, name: str, content: str) -> None:
    folder = folder_with(tmp_path / "model", "{{ bos_token }}", bos_token=None)
    (folder / name).write_text(content)
    with pytest.raises(SpecbatchError, match=name) as caught:
        rendered(folder)
    assert caught.value.code is ErrorCode.JOB_MODEL_LOAD


def test_the_digest_is_of_the_template_and_its_tokens(tmp_path: Path) -> None:
    one = chat_of(folder_with(tmp_path / "a", MARKED)).sha256
    assert chat_of(folder_with(tmp_path / "b", None, chat_template=MARKED)).sha256 == one
    assert chat_of(folder_with(tmp_path / "c", MARKED + " ")).sha256 != one
    assert chat_of(folder_with(tmp_path / "d", MARKED, bos_token="<b>")).sha256 != one


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for %}", "line 1"),
        ("{{ strftime_now('%Y') }}", "today's date"),
        ("{{ x|random }}", "random"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(template: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(SpecbatchError, match=says) as caught:
        rendered(folder_with(tmp_path, template))
    assert caught.value.code is ErrorCode.JOB_MODEL_UNSUPPORTED
    assert "\n" not in caught.value.message


def test_a_template_that_can_do_without_the_date_does_without(tmp_path: Path) -> None:
    source = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}26 Jul 2024{% endif %}"
    assert rendered(folder_with(tmp_path, source)) == "26 Jul 2024"
