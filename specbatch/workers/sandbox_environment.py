"""The Jinja environment of the sandbox: what templates find in it, and the count of what they do.

Jinja sends calls and some operators through its environment; loops and ``~`` are sent there by a change of the parsed
template.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jinja2 import TemplateError, TemplateRuntimeError, Undefined, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_RENDERED_CHARACTERS = 8 << 20
"""Most characters that a template may write."""

_MAX_WORK = 1 << 28
_STEP_WORK = 64
_EXPRESSION_WORK = 16
_CALL_WORK = 1024
"""What a turn of a loop, an expression and a call cost, in characters: about the time that they take."""
_MAX_WIDTH = 1_000_000
_MAX_EXPONENT = 1_000
_SIZED_FILTERS = ("center", "indent", "wordwrap", "truncate", "batch", "slice", "tojson")
_LONG_NUMBER = re.compile(r"\d{7}|%[^a-zA-Z%]*\*")


class RuleError(TemplateRuntimeError):
    """A rule of ours was broken; the message is of our own making."""


class RefusalError(TemplateError):
    """``raise_exception`` of a chat template."""


class SandboxEnvironment(ImmutableSandboxedEnvironment):
    """Counts what a rendering does.

    Attributes:
        work: what it has done so far.
        macro_work: of a call of the largest macro, loops aside.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *, undefined: type[Undefined], finalize: Callable[[Any], Any] | None) -> None:
        self.work = 0
        self.macro_work = 0
        self._finalize = finalize
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=undefined,
            finalize=self._written,
            extensions=[loopcontrols, _GenerationTag],
            cache_size=0,
        )
        self.globals["range"] = self.bounded_range
        self.globals["raise_exception"] = _raise_exception
        # What they give is another thing every time.
        del self.globals["lipsum"], self.filters["random"]
        self.filters["tojson"] = _tojson
        self.filters = {name: self._counted(name, function) for name, function in self.filters.items()}

    def spend(self, amount: int) -> None:
        """Count work, in characters."""
        self.work += amount
        if self.work > _MAX_WORK:
            raise RuleError("the template does too much: too many turns of loops, or too much text put together")

    def spend_text(self, num_characters: int) -> None:
        """Count a text, or a list, that is put together."""
        if num_characters > MAX_RENDERED_CHARACTERS:
            raise RuleError(f"a text of more than {MAX_RENDERED_CHARACTERS} characters")
        self.spend(num_characters)

    def bounded_range(self, *bounds: int) -> range:
        """``range``, as long as the budget allows."""
        made = range(*bounds)
        self.spend(_STEP_WORK * len(made))
        return made

    def bounded_items(self, items: Any, turn_work: int) -> Any:
        """What a loop goes over, each turn counted with its work, loops in it aside."""
        if not hasattr(items, "__len__"):
            return self._counted_items(items, turn_work)
        self.spend(turn_work * len(items))
        return items

    def join_text(self, *parts: Any) -> str:
        """The operator ``~``."""
        texts = [str(part) for part in parts]
        self.spend_text(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Operators that can make much of little."""
        if operator == "**" and isinstance(left, int) and isinstance(right, int) and abs(right) > _MAX_EXPONENT:
            raise RuleError(f"an exponent over {_MAX_EXPONENT}")
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, str | list | tuple) and isinstance(other, int):
                    self.spend_text(len(one) * max(other, 0))
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            self.spend_text(len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and result.bit_length() > _MAX_WIDTH:
            raise RuleError("a number with too many digits")
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in Jinja
        """Any call: a method of a value, a macro, a function."""
        __self.spend(_CALL_WORK + (__self.macro_work if isinstance(__obj, Macro) else 0))
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, str):
            _check_widths((*args, *kwargs.values()))
            if getattr(__obj, "__name__", "") in ("format", "format_map"):
                _check_format(owner)
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, str):
            __self.spend_text(len(result))
        return result

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = Parser(self, source, name, filename).parse()
        self.macro_work = max(map(_work, tree.find_all((nodes.Macro, nodes.CallBlock))), default=0)
        counting: nodes.Template = _Counting().visit(tree)
        return counting

    def _counted_items(self, items: Iterable[Any], turn_work: int) -> Iterator[Any]:
        for item in items:
            self.spend(turn_work)
            yield item

    def _written(self, value: Any) -> Any:
        """A value that is written, be it into a variable."""
        if self._finalize is not None:
            value = self._finalize(value)
        if isinstance(value, str):
            self.spend(len(value))
        return value

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose text counts. ``wraps`` keeps the mark of those that are given the context."""
        first_option = 2 if hasattr(function, "jinja_pass_arg") else 1

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if name in _SIZED_FILTERS:
                _check_widths((*args[first_option:], *kwargs.values()))
            if name == "format":
                _check_format(str(args[0]))
                _check_widths(args[first_option:])
            result = function(*args, **kwargs)
            self.spend_text(_STEP_WORK + (len(result) if isinstance(result, str) else 0))
            return result

        return counted


class _Counting(NodeTransformer):
    """Sends loops and ``~`` through the environment, which cannot see them otherwise."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - as in Jinja
        self.generic_visit(node)
        return _call("join_text", node.nodes, node)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - as in Jinja
        turn_work = _work(node)
        self.generic_visit(node)
        node.iter = _call("bounded_items", [node.iter, nodes.Const(turn_work)], node)
        return node


class _GenerationTag(Extension):
    """``{% generation %}`` marks what an assistant says, for training; here it is only what it encloses."""

    tags = {"generation"}  # noqa: RUF012 - as in Jinja

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _call(name: str, arguments: Sequence[nodes.Node], at: nodes.Node) -> nodes.Call:
    call = nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)
    call.set_lineno(at.lineno)
    assert at.environment is not None, "nodes of a parsed template have it"
    call.set_environment(at.environment)
    return call


def _work(node: nodes.Node) -> int:
    """What going through this once costs: its plain text, and its expressions."""
    num_characters = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
    return _STEP_WORK + num_characters + _EXPRESSION_WORK * sum(1 for _ in node.find_all(nodes.Expr))


def _raise_exception(message: Any) -> None:
    raise RefusalError(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As ``transformers`` has it in chat templates: Jinja's own escapes what HTML would misread."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _check_widths(values: Iterable[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > _MAX_WIDTH for value in values):
        raise RuleError(f"a width over {_MAX_WIDTH}")


def _check_format(text: str) -> None:
    if _LONG_NUMBER.search(text):
        raise RuleError(f"a width over {_MAX_WIDTH}")
