"""Templates in a sandbox: no way to Python's internals, to files, to the clock or to chance, and bounds on the work.

Jinja's own sandbox closes the way out. It does not keep a template from looping or from doubling a text until the
memory is full, and a template may come from a stranger's model: so loops, calls and the characters that are put
together are counted, and a rendering that takes more than its budget fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2 import TemplateSyntaxError, Undefined, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError

from specbatch.workers.sandbox_environment import (
    MAX_RENDERED_CHARACTERS,
    RefusalError,
    RuleError,
    SandboxEnvironment,
)

_MAX_MESSAGE_CHARACTERS = 200
_NAME_AT_END = re.compile(r"'([^']*)'(?: is undefined)?$")
_FILENAME = "<template>"


class BadTemplateError(Exception):
    """A template that no row could be rendered with; the message says where and why."""


class TemplateFailedError(Exception):
    """A rendering that failed; the message repeats nothing of the row."""


def refuse_null(value: Any) -> Any:
    """For ``finalize``: a null would be written as the word None; a template that means to must say so."""
    if value is None:
        raise RuleError("a null would be written; guard it with {% if %} or default('', true)")
    return value


class SandboxedTemplate:
    """One template. A rendering keeps its count in here, so that an instance belongs to one thread.

    Blocks are trimmed as ``transformers`` does it for chat templates (``trim_blocks``, ``lstrip_blocks``).

    Args:
        undefined: what a name without a value is.
        finalize: applied to every value that is written.

    Raises:
        BadTemplateError: it does not parse, or would read other files.
    """

    def __init__(
        self, source: str, *, undefined: type[Undefined] = Undefined, finalize: Callable[[Any], Any] | None = None
    ) -> None:
        self._environment = SandboxEnvironment(undefined=undefined, finalize=finalize)
        try:
            tree = self._environment.parse(source)
            self._template = self._environment.from_string(source)
        except TemplateSyntaxError as error:
            raise BadTemplateError(f"line {error.lineno}: {_one_line(error.message or 'not understood')}") from None
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise BadTemplateError(f"it is nested too deeply or too long ({type(error).__name__})") from None
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise BadTemplateError(f"line {node.lineno}: other templates cannot be read from here")
        self.tree = tree
        self._spellings = frozenset(_spellings(tree))

    @property
    def names(self) -> frozenset[str]:
        """Names whose values the template takes from outside."""
        return frozenset(meta.find_undeclared_variables(self.tree)) - self._environment.globals.keys()

    def render(self, values: Mapping[str, Any]) -> str:
        """The text.

        Raises:
            TemplateFailedError: with the line, and the name or the kind of error.
        """
        self._environment.work = 0
        pieces: list[str] = []
        num_characters = 0
        try:
            for piece in self._template.generate(values):
                num_characters += len(piece)
                if num_characters > MAX_RENDERED_CHARACTERS:
                    raise RuleError(f"more than {MAX_RENDERED_CHARACTERS} characters are written")
                pieces.append(piece)
        except Exception as error:
            raise TemplateFailedError(self._reason(error)) from None
        return "".join(pieces)

    def _reason(self, error: Exception) -> str:
        """What went wrong, without the message of an exception: that may quote the row."""
        line = _line(error)
        return ("" if line is None else f"line {line}: ") + self._kind(error)

    def _kind(self, error: Exception) -> str:
        if isinstance(error, RuleError):
            return str(error)
        if isinstance(error, RefusalError):
            text = str(error)
            return _one_line(text) if text in self._spellings else "the template refuses this row"
        if isinstance(error, UndefinedError):
            found = _NAME_AT_END.search(str(error))
            name = found.group(1) if found else None
            return f"{name!r} is undefined" if name in self._spellings else "a value is undefined"
        if isinstance(error, SecurityError):
            return "something that the sandbox does not allow"
        return type(error).__name__


def _spellings(tree: nodes.Template) -> Iterator[str]:
    """Names and texts that stand in the template itself: a message may repeat them."""
    for node in tree.find_all((nodes.Name, nodes.Getattr, nodes.Const)):
        value = node.name if isinstance(node, nodes.Name) else getattr(node, "attr", getattr(node, "value", None))
        if isinstance(value, str):
            yield value


def _line(error: Exception) -> int | None:
    """The line of the template at which it failed; Jinja puts it into the traceback."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _FILENAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_MESSAGE_CHARACTERS].rstrip(".")
