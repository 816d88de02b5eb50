"""Plain YAML for job files: no tags, no aliases, no duplicate keys, and scalars that mean what they look like.

YAML 1.1 reads ``off`` as false, ``1:30`` as ninety and ``2026-01-01`` as a date; here an unquoted scalar is null,
true, false, a number, or text.
"""

from __future__ import annotations

import re
from typing import Any

from specbatch.schemas.errors import ErrorCode, SpecbatchError

MAX_YAML_NODES = 20_000
MAX_YAML_DEPTH = 50

_CONSTANTS = {"null": None, "~": None, "": None, "true": True, "false": False}
_WHOLE_NUMBER = re.compile(r"[-+]?[0-9]{1,30}")
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,4})?")


def scalar(text: str) -> Any:
    """``null``, ``true``, ``false``, a number, or the text itself; there are no other spellings."""
    word = text.strip()
    if word.lower() in _CONSTANTS:
        return _CONSTANTS[word.lower()]
    if _WHOLE_NUMBER.fullmatch(word):
        return int(word)
    return float(word) if _NUMBER.fullmatch(word) else text


def parse_yaml(data: bytes, name: str) -> Any:
    """The mappings, lists and scalars of one YAML document; None where it is empty.

    Raises:
        SpecbatchError: JOB_CONFIG with the line of the first thing that is not plain YAML.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses aliases, tags and depth while the tree is composed, before anything can grow."""

        depth = 0
        num_nodes = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            if isinstance(event, yaml.AliasEvent):
                raise yaml.MarkedYAMLError(problem="aliases are not taken", problem_mark=_mark(event))
            if getattr(event, "tag", None) is not None:
                raise yaml.MarkedYAMLError(problem="tags are not taken", problem_mark=_mark(event))
            self.num_nodes += 1
            if self.num_nodes > MAX_YAML_NODES:
                problem = f"more than {MAX_YAML_NODES} values"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=_mark(event))
            if self.depth == MAX_YAML_DEPTH:
                raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=_mark(event))
            self.depth += 1
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

    try:
        loader = Loader(data)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        return None if node is None else _build(node)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "nested too deeply"
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"--config {name}{where}: {problem}") from None


def _build(node: Any) -> Any:
    """The value of a composed tree."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _build(key_node)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is not a name", problem_mark=_mark(key_node))
            if key in mapping:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} appears twice", problem_mark=_mark(key_node))
            mapping[key] = _build(value_node)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_build(item) for item in node.value]
    assert isinstance(node, yaml.ScalarNode)
    return scalar(node.value) if node.style is None else node.value


def _mark(node: Any) -> Any:
    return node.start_mark
