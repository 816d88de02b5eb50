"""Write `examples/prompts.parquet`: 320 starts of Python code for the bundled demo pair to continue.

    python examples/make_prompts.py                     rewrites the file beside this script
    python examples/make_prompts.py --output other.parquet
    python examples/make_prompts.py --statistics TOKENIZER_JSON     prints the lengths instead

The prompts are composed of templates below by a seeded generator, so every run gives the same table:
columns `id`, `prompt` and `category`, in row groups of 64 so that a job can be cut into shards. Lengths
are ragged on purpose, from a handful of tokens to about 200: a batch in which all rows are alike hides
what a batch engine is for. No prompt ends in white space, because the tokenizer joins white space with
the word that follows it.

Lengths, by `python examples/make_prompts.py --statistics
specbatch/assets/code-pair/target/tokenizer.json`:

    320 prompts; tokens: min 5, p10 13, p25 23, median 37, p75 76, p90 128, max 218
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_GROUP = 64
_SEED = 20
_LONGEST = 800  # characters
_T = TypeVar("_T")

_NOUNS = (
    "record", "token", "node", "event", "message", "header", "packet", "section", "cell", "table", "queue",
    "cache", "buffer", "session", "thread", "option", "field", "archive", "timer", "symbol", "cursor",
    "widget", "frame", "handler", "filter", "request", "response", "account", "channel", "segment", "block",
    "counter", "template", "variable", "resource", "pattern", "stream", "server", "signal", "module",
)  # fmt: skip
_ADJECTIVES = (
    "first", "last", "pending", "empty", "default", "current", "invalid", "cached", "sorted", "open",
    "nested", "public", "missing", "active", "local", "remote", "binary", "shared",
)  # fmt: skip
_MODULES = (
    "os", "sys", "re", "io", "time", "struct", "socket", "threading", "functools", "itertools", "collections",
    "warnings", "contextlib", "operator", "tempfile", "shutil", "subprocess", "string", "types", "errno",
)  # fmt: skip
_FROM_IMPORTS = (
    "from collections import defaultdict, deque",
    "from contextlib import contextmanager, suppress",
    "from dataclasses import dataclass, field",
    "from enum import Enum, auto",
    "from functools import partial, wraps",
    "from itertools import chain, islice",
    "from pathlib import Path",
    "from types import MappingProxyType",
    "from typing import Any, Iterator, Optional",
    "from urllib.parse import urljoin, urlsplit",
)
# (function name, parameters, what the docstring says)
_FUNCTIONS = (
    ("parse_{n}", "text, strict=True", "Parse *text* as a {n} and return a tuple of its parts."),
    ("find_{n}s", "root, pattern=None", "Return a list of all {n}s below *root* that match *pattern*."),
    ("read_{n}", "fp, size=-1", "Read up to *size* bytes of the {a} {n} from the file *fp*."),
    ("write_{n}", "fp, {n}, encoding='utf-8'", "Write the {n} to the file object *fp*."),
    ("is_{a}_{n}", "value", "Return True if *value* is a {a} {n}, False otherwise."),
    ("count_{n}s", "iterable, start=0", "Count the {a} {n}s in *iterable*."),
    ("merge_{n}s", "left, right", "Merge two lists of {n}s, keeping the order of both."),
    ("format_{n}", "{n}, width=80, indent=4", "Format the {n} for display in *width* columns."),
    ("get_{a}_{n}", "name, default=None", "Return the {a} {n} called *name*, or *default* if there is none."),
    ("copy_{n}", "source, target, *, overwrite=False", "Copy a {n} from *source* to *target*."),
    ("remove_{n}", "{n}s, index", "Remove the {n} at position *index* from the list and return it."),
    ("normalize_{n}", "{n}", "Normalize the {n}: lower case, no surrounding white space."),
    ("iter_{n}s", "data, chunk_size=1024", "Yield the {n}s in *data*, *chunk_size* at a time."),
    ("wait_for_{n}", "timeout=None", "Wait until a {n} is available or *timeout* seconds have passed."),
    ("compare_{n}s", "a, b", "Return -1, 0 or 1, depending on which {n} comes first."),
    ("split_{n}", "line, sep=','", "Split a {n} into fields at each *sep* outside quotes."),
)
_BODIES = (
    """
    if not isinstance({n}, str):
        raise TypeError('{n} must be a string, not %r' % type({n}).__name__)
""",
    """
    result = []
    for {n} in {n}s:
        if {n} is not None:
            result.append({n})
    return result
""",
    """
    try:
        return _{n}_cache[name]
    except KeyError:
        pass
""",
    """
    with _lock:
        {n} = _registry.get(name)
        if {n} is None:
            {n} = _registry[name] = {N}(name)
    return {n}
""",
    """
    seen = set()
    while stack:
        {n} = stack.pop()
        if {n} in seen:
            continue
        seen.add({n})
    return seen
""",
    """
    start = time.monotonic()
    count = 0
    for line in fp:
        line = line.strip()
        if not line or line.startswith('#'):
            continue
        count += 1
    return count
""",
)
_BASES = (
    "object", "dict", "Exception", "ValueError", "threading.Thread", "io.RawIOBase",
    "unittest.TestCase", "Base{N}",
)  # fmt: skip
_COMMENTS = (
    "# Check that the {n} is not {a} before it is used",
    "# Sort the {n}s by name so that the output does not depend on the order of the input",
    "# This must be done after the {a} {n} has been closed",
    "# The {a} {n} is kept for backward compatibility",
    "# Find the {a} {n} and remove it from the list",
    "# Make a copy, because the {n} may change while we iterate over it",
    "# If there is no {a} {n}, create a new one",
    "# XXX what should happen if the {n} is {a}?",
)
_AFTER_COMMENTS = (
    "if {n} is None:", "{n}s = list(", "for {n} in {n}s:", "try:", "with open({n}.filename", "self._{n} =",
    "while {n}s:", "def _check_{n}(", "return {n}",
)  # fmt: skip
_ASSERTIONS = (
    "self.assertEqual({n}.name,", "self.assertRaises(ValueError,", "self.assertTrue({n}.is_{a}())",
    "self.assertIsNone({n}.", "self.assertIn('{a}',", "with self.assertRaises(TypeError):",
)  # fmt: skip
_SEQUENCES = (
    ("monday", "tuesday", "wednesday", "thursday"),
    ("red", "green", "blue", "yellow"),
    ("zero", "one", "two", "three", "four"),
    ("jpeg", "png", "gif", "bmp"),
    ("debug", "info", "warning", "error"),
    ("north", "east", "south", "west"),
    ("get", "head", "post", "put"),
)


class _Composer:
    """Draws from the tables with `random()` alone, the one method whose sequence Python promises to keep."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random
        self.turn()

    def turn(self) -> None:
        """Take a new subject: the noun and the adjective that one prompt talks about."""
        self._noun, self._adjective = self.pick(_NOUNS), self.pick(_ADJECTIVES)

    def pick(self, options: Sequence[_T]) -> _T:
        """One of the options."""
        return options[int(self._random() * len(options))]

    def number(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both included."""
        return low + int(self._random() * (high - low + 1))

    def fill(self, template: str) -> str:
        """Put the subject into a template: `{n}` noun, `{N}` its class name, `{a}` adjective."""
        filled = template.replace("{n}", self._noun).replace("{N}", self._noun.capitalize())
        return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", filled.replace("{a}", self._adjective))

    def several(self, options: Sequence[_T], low: int, high: int) -> list[_T]:
        """Between `low` and `high` options, no one twice, in the order of the table."""
        wanted = self.number(low, high)
        order = sorted(range(len(options)), key=lambda _: self._random())
        return [options[index] for index in sorted(order[:wanted])]

    def head(self) -> tuple[str, str]:
        """A function's `def` line and what its docstring says."""
        name, parameters, says = self.pick(_FUNCTIONS)
        return self.fill(f"def {name}({parameters}):"), self.fill(says)

    def function(self) -> str:
        """A whole function, for prompts that start with finished code."""
        head, says = self.head()
        return f'{head}\n    """{says}"""' + self.fill(self.pick(_BODIES))

    def imports(self) -> str:
        """An import block."""
        lines = [f"import {module}" for module in sorted(self.several(_MODULES, 1, 6))]
        return "\n".join(lines + self.several(_FROM_IMPORTS, 0, 3))


def _signature(c: _Composer) -> str:
    head, says = c.head()
    words = says.split()
    opening = " ".join(words[: c.number(1, len(words))])
    return c.pick((head, f'{head}\n    """{opening}', f'{head}\n    """{says}"""', f"{c.function()}\n\n{head}"))


def _class(c: _Composer) -> str:
    title = c.fill(f"class {{N}}({c.pick(_BASES)}):").replace("(object)", "")
    doc = c.fill(
        c.pick(("The {a} {n}.", "Base class for all {n}s.", "Keeps track of {a} {n}s.", "Raised for a {a} {n}."))
    )
    start = c.pick((title, f'{title}\n    """{doc}', f'{title}\n\n    """{doc}"""\n\n    def __init__(self, name'))
    if c.number(0, 1):
        slots = c.several(("name", "value", "parent", "children", "flags", "size", "lock", "owner"), 2, 6)
        lines = "".join(f"        self._{slot} = {slot}\n" for slot in slots)
        method = c.fill(c.pick(("__repr__(self)", "close(self)", "add_{n}(self, {n})", "__eq__(self, other)")))
        init = f"    def __init__(self, {', '.join(slots)}):\n{lines}"
        start = f'{title}\n    """{doc}"""\n\n{init}\n    def {method}:'
    return start


def _import(c: _Composer) -> str:
    block = c.imports()
    follow = c.fill(
        c.pick(("", "\n\n__all__ = ['{N}', '", "\n\n_{n}_re = re.compile(", "\n\n\nclass {N}", "\n\n\ndef "))
    )
    return (block + follow).rstrip()


def _comment(c: _Composer) -> str:
    indent = "    " * c.number(0, 2)
    lines = [c.fill(c.pick(_COMMENTS)) for _ in range(c.number(1, 2))]
    code = [c.fill(c.pick(_AFTER_COMMENTS))] if c.number(0, 3) else []
    return "\n".join(indent + line for line in dict.fromkeys(lines + code))


def _test(c: _Composer) -> str:
    lines = ["import unittest", "", ""] if c.number(0, 1) else []
    lines += ["class {N}Test(unittest.TestCase):", ""]
    if c.number(0, 1):
        lines += ["    def setUp(self):", "        self.{n} = {N}('{a}')", ""]
    for name in c.several(("init", "repr", "len", "close", "pickle", "copy", "compare"), 0, 4):
        check = c.pick(("len({n}s), 0", "{n}.name, '{a}'", "str({n}), repr({n})", "{n}.count, 1"))
        lines += [
            f"    def test_{name}(self):",
            "        {n} = {N}()",
            f"        self.assertEqual({check})",
            "",
        ]
    lines += [f"    def test_{c.pick(_ADJECTIVES)}_{{n}}(self):", "        {n} = {N}('{a}', size=10)"]
    lines += [f"        {c.pick(_ASSERTIONS)}"] if c.number(0, 2) else []
    return c.fill("\n".join(lines))


def _data(c: _Composer) -> str:
    keys = list(c.pick(_SEQUENCES))
    first = c.number(0, 20)
    if c.number(0, 1):
        entries = [f"    '{key}': {first + index}," for index, key in enumerate(keys[: c.number(1, len(keys))])]
        return c.fill("_{n}_{a} = {\n") + "\n".join(entries)
    entries = [f"    ('{key}', {first * (index + 1)}, '{c.pick(_ADJECTIVES)}')," for index, key in enumerate(keys)]
    return c.fill("_{n}_list = [\n") + "\n".join([*entries[: c.number(1, len(entries))], "    ('"])


def _script(c: _Composer) -> str:
    lines = [
        "    parser = argparse.ArgumentParser(description='Print the {a} {n}s of a file')",
        "    parser.add_argument('filename', help='the file to read')",
        "    parser.add_argument('-v', '--verbose', action='store_true', help='say more')",
        "    parser.add_argument('--{n}', type=int, default=" + str(c.number(1, 99)) + ")",
        "    args = parser.parse_args()",
        "    for {n} in load_{n}s(args.filename):",
    ]
    shown = lines[: c.number(1, len(lines))]
    return c.fill("\n".join([c.pick(("def main():", "if __name__ == '__main__':", "def main(argv=None):")), *shown]))


def _module(c: _Composer) -> str:
    lines = c.fill(
        c.pick(("Support for {a} {n}s.", "{N} objects and tools for them.", "Tools to read and write {n}s."))
    )
    parts = [f'"""{lines}"""\n\n{c.imports()}\n\n']
    parts += [c.function() + "\n" for _ in range(c.number(0, 3))]
    head, says = c.head()
    parts.append(c.pick((head, f'{head}\n    """{says}', f'{head}\n    """{says}"""')))
    return "\n".join(parts)


_CATEGORIES: dict[str, Callable[[_Composer], str]] = {
    "signature": _signature,
    "class": _class,
    "imports": _import,
    "comment": _comment,
    "test": _test,
    "data": _data,
    "script": _script,
    "module": _module,
}


def make_table(rows: int = 320, seed: int = _SEED) -> pa.Table:
    """Compose the table: the categories in turn, so that every row group holds all; no prompt twice."""
    composer = _Composer(seed)
    names = list(_CATEGORIES)
    prompts: dict[str, str] = {}
    while len(prompts) < rows:
        category = names[len(prompts) % len(names)]
        composer.turn()
        prompt = _CATEGORIES[category](composer)
        if len(prompt) <= _LONGEST:
            prompts.setdefault(prompt, category)
    return pa.table(
        {
            "id": pa.array([f"prompt-{index:04d}" for index in range(rows)], pa.string()),
            "prompt": pa.array(list(prompts), pa.string()),
            "category": pa.array(list(prompts.values()), pa.string()),
        }
    )


def _statistics(table: pa.Table, tokenizer_file: Path) -> str:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    lengths = sorted(len(tokenizer.encode(prompt).ids) for prompt in table.column("prompt").to_pylist())
    shares = {"min": 0.0, "p10": 0.1, "p25": 0.25, "median": 0.5, "p75": 0.75, "p90": 0.9, "max": 1.0}
    figures = [f"{name} {lengths[round(share * (len(lengths) - 1))]}" for name, share in shares.items()]
    return f"{len(lengths)} prompts; tokens: " + ", ".join(figures)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the example prompts.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("prompts.parquet"))
    parser.add_argument("--statistics", type=Path, metavar="TOKENIZER_JSON", help="print lengths, write nothing")
    options = parser.parse_args()
    table = make_table()
    if options.statistics:
        print(_statistics(table, options.statistics))
        return
    pq.write_table(table, options.output, row_group_size=ROWS_PER_GROUP, compression="zstd")
    print(f"{options.output}: {table.num_rows} prompts")


if __name__ == "__main__":
    main()
