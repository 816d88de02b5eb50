"""Templates may come from strangers: what they cannot reach, and how much they may do."""

from __future__ import annotations

import time

import pytest
from jinja2 import StrictUndefined

from specbatch.workers.sandbox import BadTemplateError, SandboxedTemplate, TemplateFailedError


def render(source: str, **values: object) -> str:
    return SandboxedTemplate(source, undefined=StrictUndefined).render(values)


def failure(source: str, **values: object) -> str:
    with pytest.raises(TemplateFailedError) as caught:
        render(source, **values)
    return str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ x.__class__ }}",
        "{{ x['__class__']['__mro__'] }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ x.upper.__self__.__class__ }}",
        "{{ x.upper.__globals__ }}",
        "{{ '{0.__class__}'.format(x) }}",
        "{{ '{0.__class__}'|format(x) }}{{ x|attr('__class__') }}",
        "{{ range.__self__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ items.append(1) }}",
        "{% set n = namespace() %}{{ n.__class__ }}",
        "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    ],
)
def test_nothing_of_python_can_be_reached(source: str) -> None:
    failure(source, x="text", items=[])


@pytest.fixture(scope="module")
def ordinary_seconds() -> float:
    """CPU time of a rendering that takes a quarter of its budget."""
    started = time.process_time()
    render("{% for i in range(1000000) %}{% endfor %}")
    return time.process_time() - started


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10000000) %}{% endfor %}",
        "{% for i in range(3000) %}{% for j in range(3000) %}{% endfor %}{% endfor %}",
        "{{ range(10 ** 9)|list }}",
        "{% for a in x %}{% for b in x %}{% for c in x %}{% endfor %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ 10 ** 9 * 'a' }}",
        "{{ [0] * 10 ** 9 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set n = namespace(t='a') %}{% for i in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}",
        "{% set n = namespace(t='a') %}{% for i in range(99) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
        "{% set n = namespace(t='a') %}{% for i in range(99) %}{% set n.t = [n.t, n.t]|join %}{% endfor %}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ 'a'|center(10 ** 9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10 ** 9) }}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(100) }}",
        "{% for i in range(200000) %}{{ long }}{% endfor %}",
        "{% set s %}{% for i in range(2000000) %}{{ long }}{% endfor %}{% endset %}{{ s|length }}",
        "{% set s %}{% for i in range(300000) %}" + "plain text" * 100 + "{% endfor %}{% endset %}{{ s|length }}",
        "{% macro m() %}"
        + "plain text" * 100
        + "{% endmacro %}{% for i in range(300000) %}{% set s = m() %}{% endfor %}",
    ],
)
def test_the_work_of_a_template_is_bounded(source: str, ordinary_seconds: float) -> None:
    """The worst, calls of macros, take some twenty times the time of turns that count as much."""
    started = time.process_time()
    failure(source, x=list(range(1000)), long="abc" * 100)
    assert time.process_time() - started < 200 * ordinary_seconds


def test_long_texts_of_ordinary_templates_are_not_too_much() -> None:
    long = "word " * 400_000
    chat = [{"role": "user", "content": long}, {"role": "assistant", "content": "x"}]
    text = render("{% for m in chat %}{{ '<' + m.role + '>' + m.content|trim + '\n' }}{% endfor %}", chat=chat)
    assert text == f"<user>{long.strip()}\n<assistant>x\n"


def test_each_rendering_has_its_own_budget() -> None:
    template = SandboxedTemplate("{% for i in range(1000000) %}{% endfor %}.")
    assert [template.render({}) for _ in range(6)] == ["."] * 6


def test_messages_name_the_line_and_what_stands_in_the_template_but_nothing_of_the_row() -> None:
    assert failure("a\n{{ nmae }}") == "line 2: 'nmae' is undefined"
    assert failure("{{ row.nmae }}", row={}) == "line 1: 'nmae' is undefined"
    assert failure("{{ row[key] }}", row={}, key="secret") == "line 1: a value is undefined"
    assert failure("\n\n{{ text + 1 }}", text="secret") == "line 3: TypeError"
    assert failure("{{ raise_exception('roles must alternate') }}") == "line 1: roles must alternate"
    assert failure("{{ raise_exception('no ' + text) }}", text="secret") == "line 1: the template refuses this row"
    assert "secret" not in failure("{{ {}[text] }}{{ text.nothing }}", text="secret")


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("{{ a", "line 1"),
        ("\n{% if %}", "line 2"),
        ("{% nonsense %}", "nonsense"),
        ("{{ a|nonsense }}", "nonsense"),
        ("{{ a|random }}", "random"),
        ("{% include 'other' %}", "other templates"),
        ("{% extends 'other' %}", "other templates"),
        ("{% import 'other' as other %}", "other templates"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", ""),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_at_once(source: str, where: str) -> None:
    with pytest.raises(BadTemplateError) as caught:
        SandboxedTemplate(source)
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_are_those_that_come_from_outside() -> None:
    source = "{% set a = b %}{% for c in d %}{{ c ~ a ~ range(3) ~ loop.index }}{% endfor %}"
    source += "{% macro m(e) %}{{ e }}{% endmacro %}"
    assert SandboxedTemplate(source).names == {"b", "d"}


def test_loops_see_what_they_always_see() -> None:
    source = "{% for x in xs %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% else %}none{% endfor %}"
    assert render(source, xs=["a", "b"]) == "1/2,2/2"
    assert render(source, xs=[]) == "none"
    assert render(source, xs=(x for x in "abc")) == "1/3,2/3,3/3"
    assert render("{% for k, v in d.items() if v > 1 %}{{ k }}{% endfor %}", d={"a": 1, "b": 2, "c": 3}) == "bc"
    nested = [{"n": 1, "c": [{"n": 2, "c": []}]}]
    recursive = "{% for i in t recursive %}{{ i.n }}({{ loop(i.c) }}){% endfor %}"
    assert render(recursive, t=nested) == "1(2())"


def test_json_is_written_as_it_is() -> None:
    assert render("{{ d|tojson }}", d={"é": "<b>", "n": None}) == '{"é": "<b>", "n": null}'
    assert render("{{ d|tojson(indent=1) }}", d=[1]) == "[\n 1\n]"
