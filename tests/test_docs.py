"""The documents against the code: error codes, links, commands, options, variables and make targets are real ones."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from specbatch.jobs import cli
from specbatch.schemas.errors import ErrorCode, SpecbatchError

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
UsageError: Any = typer.BadParameter.__mro__[1]


def test_every_error_code_is_documented_with_its_exit_code() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    documented = dict(re.findall(r"^\| `((?:JOB|SHARD|ROW|STORE)_[A-Z_]+)` \| (\d*)", text, re.MULTILINE))
    assert set(documented) == {code.value for code in ErrorCode}
    for code, exit_code in documented.items():
        if not code.startswith("ROW_"):
            assert int(exit_code) == SpecbatchError(ErrorCode(code), "").exit_code, code


def test_error_codes_in_documents_exist() -> None:
    for document in DOCUMENTS:
        for code in re.findall(r"`((?:JOB|SHARD|ROW|STORE)_[A-Z_]+)`", document.read_text()):
            assert code in ErrorCode.__members__, f"{document.name} names {code}"


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        for target in re.findall(r"(?:^|`)(?:[A-Z_]+=\S+ )*make ([a-z-]+)", document.read_text(), re.MULTILINE):
            assert target in targets, f"{document.name} names make {target}"


def test_environment_variables_in_documents_exist() -> None:
    sources = "".join(path.read_text() for name in ("specbatch", "tests") for path in (ROOT / name).rglob("*.py"))
    for document in DOCUMENTS:
        for variable in re.findall(r"\b((?:SPECBATCH|CHAOS)_[A-Z_]*[A-Z])\b(?!_)", document.read_text()):
            assert f'"{variable}"' in sources, f"{document.name} names {variable}"


def documented_commands() -> Iterator[tuple[str, bool, str]]:
    """(document, whether it is a line of an example, command line) of every ``specbatch …`` in the documents."""
    begin = re.compile(r"^(?:[A-Z_]+=\S+ )*specbatch +(?=[a-z-])")
    for document in DOCUMENTS:
        pieces = re.split(r"^```.*$", document.read_text(), flags=re.MULTILINE)
        for number, piece in enumerate(pieces):
            is_example = number % 2 == 1
            text = piece.replace("\\\n", " ") if is_example else piece
            lines = text.splitlines() if is_example else re.findall(r"`([^`]+)`", text)
            for line in lines:
                command = begin.sub("", " ".join(line.split()), count=1)
                if begin.match(line):
                    yield document.name, is_example, command


def parse(command: str) -> str | None:
    """What is wrong with the arguments of a command line, None where nothing is; runs nothing."""
    words = shlex.split(re.sub(r"[][]", "", command), comments=True)
    if words == ["--help"]:
        return None
    arguments = [word for word in words if word != "--help"]
    group: Any = typer.main.get_command(cli.app)
    try:
        while hasattr(group, "commands"):
            if not arguments or arguments[0] not in group.commands:
                return f"there is no command {arguments[:1]}"
            group = group.commands[arguments.pop(0)]
        group.make_context("specbatch", arguments)
    except UsageError as error:
        return f"{type(error).__name__}: {error.format_message()}"
    return None


def test_command_lines_in_documents_can_be_parsed() -> None:
    found = list(documented_commands())
    assert len(found) > 30, "the search for command lines finds too few"
    for document, is_example, command in found:
        problem = parse(command)
        if problem is not None and (is_example or not problem.startswith("MissingParameter")):
            pytest.fail(f"{document}: specbatch {command}: {problem}")


def test_every_command_has_an_example_in_the_documents() -> None:
    group: Any = typer.main.get_command(cli.app)
    shown = {command.split()[0] for _, _, command in documented_commands()}
    assert set(group.commands) - {"config"} <= shown


def test_the_search_for_commands_sees_what_is_wrong() -> None:
    assert parse("submit data.parquet --limit 8 # only some") is None
    assert parse("verify OUT [--deep]") is None
    for command in ("nothing", "status OUT --deep", "submit data.parquet --limit eight", "config", "config hide"):
        assert parse(command) is not None, command
    assert str(parse("verify")).startswith("MissingParameter")
