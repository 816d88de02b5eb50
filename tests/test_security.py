"""What the code must never do, by its text, and the security page against the tests that it names."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "security.md"
FLOORS = {"ray": (2, 55), "torch": (2, 10), "transformers": (5, 3), "pyarrow": (21, 0)}
"""Below these are published ways to run code."""


def calls() -> Iterator[tuple[str, ast.Call]]:
    """(file, call) of every call in the package."""
    for path in (ROOT / "specbatch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield str(path.relative_to(ROOT)), node


def test_code_from_model_folders_is_never_run() -> None:
    keywords = [keyword for _, call in calls() for keyword in call.keywords]
    asked = [keyword.value for keyword in keywords if keyword.arg == "trust_remote_code"]
    assert asked, "the loader says so explicitly"
    assert all(isinstance(value, ast.Constant) and value.value is False for value in asked)


def test_no_actor_outlives_its_job() -> None:
    lifetimes = [file for file, call in calls() for keyword in call.keywords if keyword.arg == "lifetime"]
    assert not lifetimes, "a detached actor would go on after the job, with its credentials"


def test_no_environment_is_carried_by_ray() -> None:
    """Ray keeps runtime environments, shows them and logs them; no secret may be in one."""
    for file, call in calls():
        for keyword in call.keywords:
            if keyword.arg == "runtime_env":
                text = ast.unparse(keyword.value)
                assert not re.search(r"TOKEN|SECRET|ACCESS_KEY|os\.environ", text), f"{file}: {text}"


def version(text: str) -> tuple[int, int]:
    major, minor = re.match(r"(\d+)\.(\d+)", text).groups()  # type: ignore[union-attr]
    return int(major), int(minor)


def test_floors_keep_out_versions_with_known_holes() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    floors = dict(re.match(r"([a-z0-9]+)(?:\[\w+\])?>=([\d.]+)", text).groups() for text in dependencies)  # type: ignore[union-attr]
    locked = dict(re.findall(r"(?m)^([a-z0-9-]+)==([\d.]+)", (ROOT / "requirements.lock").read_text()))
    for name, least in FLOORS.items():
        assert version(floors[name]) >= least, name
        assert version(locked.get(name, floors[name])) >= version(floors[name]), name


def named() -> list[str]:
    """Files, and tests behind ``::``, that the security page names."""
    return re.findall(r"`((?:tests|infra|specbatch|docs|\.ci)/[\w./-]+(?:::\w+)?)`", PAGE.read_text())


def test_the_page_names_enough_to_be_checked() -> None:
    assert len(named()) > 40


@pytest.mark.parametrize("name", sorted(set(named())))
def test_what_the_page_names_is_there(name: str) -> None:
    path, _, test = name.partition("::")
    assert (ROOT / path).exists(), name
    if test:
        assert re.search(rf"^\s*(?:def|class) {test}\b", (ROOT / path).read_text(), re.MULTILINE), name
