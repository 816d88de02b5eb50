"""Cuts modules of the Python standard library into passages, a row each: documents to make questions and answers from.

python make_documents.py
"""

from __future__ import annotations

import inspect
import json
import textwrap
from pathlib import Path

MODULES = ("bisect", "colorsys", "fnmatch", "heapq", "json", "shlex", "statistics", "textwrap")
PASSAGES_PER_MODULE = 4
LONGEST = 600


def passages(module_name: str) -> list[dict[str, str]]:
    """The first functions of a module that have a docstring."""
    module = __import__(module_name)
    found = []
    for name, function in sorted(vars(module).items()):
        text = inspect.getdoc(function) or ""
        if inspect.isfunction(function) and len(text) > 40 and not name.startswith("_"):
            passage = textwrap.shorten(text, LONGEST, placeholder=" …")
            signature = f"{name}{inspect.signature(function)}"
            found.append({"module": module_name, "name": name, "signature": signature, "passage": passage})
    return found[:PASSAGES_PER_MODULE]


def main() -> None:
    """Write documents.jsonl."""
    rows = [row for module in MODULES for row in passages(module)]
    with Path("documents.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"documents.jsonl: {len(rows)} passages")


if __name__ == "__main__":
    main()
