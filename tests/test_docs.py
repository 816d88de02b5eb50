"""The documents against the code: error codes, links, commands, options, variables and make targets are real ones."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from documents import blocks

from specbatch.jobs.cli import app as cli
from specbatch.schemas.errors import ErrorCode, SpecbatchError

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
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
    begin = re.compile(r"^\s*(?:[A-Z_]+=\S+ )*specbatch +(?=[a-z-])")
    for document in DOCUMENTS:
        examples = [block.text.replace("\\\n", " ") for block in blocks(document) if block.language != "text"]
        prose = "".join(re.split(r"^ *```.*$", document.read_text(), flags=re.MULTILINE)[::2])
        lines = [(True, line) for example in examples for line in example.splitlines()]
        lines += [(False, line) for line in re.findall(r"`([^`]+)`", prose)]
        for is_example, line in lines:
            if begin.match(line):
                command = begin.sub("", " ".join(line.split()), count=1)
                yield document.name, is_example, re.split(r" (?:&&|\|\||[|>;]) ", command)[0]


def parse(command: str) -> str | None:
    """What is wrong with the arguments of a command line, None where nothing is; runs nothing."""
    words = shlex.split(re.sub(r"[][]", "", command), comments=True)
    group: Any = typer.main.get_command(cli.app)
    if len(words) == 1 and words[0] in {"--help", *(name for each in group.params for name in each.opts)}:
        return None
    arguments = [word for word in words if word != "--help"]
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


def pages_of(entry: Any) -> Iterator[str]:
    """The pages that a piece of the site's navigation names."""
    if isinstance(entry, str):
        yield entry
    else:
        for each in entry.values() if isinstance(entry, dict) else entry:
            yield from pages_of(each)


def test_the_site_shows_every_page_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    shown = list(pages_of(yaml.safe_load(text)["nav"]))
    docs = ROOT / "docs"
    pages = {str(path.relative_to(docs)) for path in docs.rglob("*.md")}
    decisions = {page for page in pages if page.startswith("decisions/") and page != "decisions/index.md"}
    assert sorted(shown) == sorted(pages - decisions), "decisions are reached by their index"


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Where MkDocs Material is installed (``make docs`` installs it); it is no part of the locked environment."""
    pytest.importorskip("material", reason="MkDocs Material is not installed; make docs installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    loads = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=["']?(https?:[^"'\s>]+)""")
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = loads.findall(page.read_text())
        assert not loaded, f"{page.name} loads {loaded}"
