"""``docs/reference/python.md``: what Python programs may import, from signatures and docstrings; imports nothing."""

from __future__ import annotations

import ast
import re
from pathlib import Path

_BEGIN = """\
# Python

Jobs: `from specbatch import submit, report, load`. The engine alone, without Ray and storage:
`from specbatch.specdec import Engine, SamplingParams`. Nothing heavy is imported before it is used.
"""
_FACES = (
    ("Jobs", "specbatch/jobs/api.py", ("submit", "report", "load")),
    ("Jobs", "specbatch/jobs/running/job.py", ("JobOutcome",)),
    ("Engine", "specbatch/specdec/engine.py", ("Engine",)),
    ("Engine", "specbatch/schemas/sampling.py", ("SamplingParams",)),
    ("Engine", "specbatch/specdec/output.py", ("SequenceOutput",)),
    ("Errors", "specbatch/schemas/errors.py", ("SpecbatchError",)),
)
_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields):")
_ENTRY = re.compile(r"([\w*, ]+): (.*)")


def page(root: Path) -> str:
    """The whole page."""
    lines = [_BEGIN]
    for number, (title, path, names) in enumerate(_FACES):
        if number == 0 or title != _FACES[number - 1][0]:
            lines.append(f"\n## {title}\n")
        nodes = {
            node.name: node for node in ast.parse((root / path).read_text(encoding="utf-8")).body if _is_named(node)
        }
        for name in names:
            lines += _class(nodes[name]) if isinstance(nodes[name], ast.ClassDef) else _function(nodes[name], "###")
    return "".join(lines)


def _is_named(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.ClassDef)


def _class(node: ast.ClassDef) -> list[str]:
    fields = [ast.unparse(each) for each in node.body if isinstance(each, ast.AnnAssign) and _is_public(each.target)]
    lines = [f"\n### {node.name}\n\n"]
    if fields:
        lines.append("```py\n" + "\n".join(fields) + "\n```\n\n")
    lines += _docstring(node)
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and not each.name.startswith("_") and ast.get_docstring(each):
            lines += _function(each, "####", node.name)
    return lines


def _is_public(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and not target.id.startswith("_")


def _function(node: ast.FunctionDef, heading: str, owner: str = "") -> list[str]:
    name = f"{owner}.{node.name}" if owner else node.name
    decorators = {ast.unparse(each) for each in node.decorator_list}
    if "property" in decorators:
        signature = f"{name}: {ast.unparse(node.returns)}" if node.returns else name
    else:
        signature = f"{name}({_arguments(node.args)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")
    return [f"\n{heading} {name}\n\n", f"```py\n{signature}\n```\n\n", *_docstring(node)]


def _arguments(arguments: ast.arguments) -> str:
    kept = [each for each in (*arguments.posonlyargs, *arguments.args) if each.arg in ("self", "cls")]
    shown = ast.arguments(
        posonlyargs=[],
        args=[each for each in (*arguments.posonlyargs, *arguments.args) if each not in kept],
        vararg=arguments.vararg,
        kwonlyargs=arguments.kwonlyargs,
        kw_defaults=arguments.kw_defaults,
        kwarg=arguments.kwarg,
        defaults=arguments.defaults,
    )
    text = ast.unparse(shown)
    return text if len(text) < 80 else "\n    " + ",\n    ".join(_split(text)) + ",\n"


def _split(text: str) -> list[str]:
    """The arguments one by one: at commas outside of brackets."""
    parts, depth, begin = [], 0, 0
    for index, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append(text[begin:index].strip())
            begin = index + 1
    return [*parts, text[begin:].strip()]


def _docstring(node: ast.ClassDef | ast.FunctionDef) -> list[str]:
    """A docstring as Markdown: its sections become lists."""
    lines: list[str] = []
    is_list = False
    for line in (ast.get_docstring(node) or "").replace("``", "`").splitlines():
        if found := _SECTION.fullmatch(line):
            lines.append(f"**{found.group(1)}**\n\n")
            is_list = True
        elif is_list and line.startswith("    ") and not line.startswith("     "):
            entry = _ENTRY.fullmatch(line.strip())
            lines.append(f"- `{entry.group(1)}`: {entry.group(2)}\n" if entry else f"- {line.strip()}\n")
        elif is_list and line.startswith("     "):
            lines.append(f"  {line.strip()}\n")
        else:
            is_list = is_list and not line.strip()
            lines.append(f"{line}\n")
    return [*lines, "\n"] if lines else []
