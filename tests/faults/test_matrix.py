"""The matrices of ``docs/reliability.md`` against the tests: every row is there, every test that a row names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
DOCUMENT = TESTS.parent / "docs" / "reliability.md"
MATRICES = {"The fault matrix": 52, "The bad-input matrix": 48}
MAX_UNTESTED = 5
UNTESTED = "not tested:"


def rows_of(title: str) -> dict[int, str]:
    """The last cell of each row of the table in a section, by the number in its first cell."""
    section = DOCUMENT.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    numbers = [int(row[0]) for row in cells if row[0].isdecimal()]
    assert len(numbers) == len(set(numbers)), f"{title}: a row is there twice"
    return {int(row[0]): row[-1] for row in cells if row[0].isdecimal()}


def named_tests(cell: str) -> list[str]:
    return re.findall(r"`([^`]+\.py::[^`]+)`", cell)


@cache
def names_in(path: Path) -> frozenset[str]:
    """Names of the test functions of a file, those of classes as ``Class::test``."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return frozenset(found)


@pytest.mark.parametrize("title", MATRICES)
def test_every_row_is_there(title: str) -> None:
    assert sorted(rows_of(title)) == list(range(1, MATRICES[title] + 1))


@pytest.mark.parametrize("title", MATRICES)
def test_every_row_has_a_test_or_a_reason(title: str) -> None:
    untested = {number for number, cell in rows_of(title).items() if not named_tests(cell)}
    assert all(UNTESTED in rows_of(title)[number] for number in untested), (
        f"rows without a test or a reason: {untested}"
    )
    assert len(untested) <= MAX_UNTESTED


@pytest.mark.parametrize("title", MATRICES)
def test_every_named_test_exists(title: str) -> None:
    missing = []
    for number, cell in rows_of(title).items():
        for name in named_tests(cell):
            file, _, test = name.partition("::")
            if not (TESTS / file).is_file() or test not in names_in(TESTS / file):
                missing.append(f"row {number}: {name}")
    assert missing == []
