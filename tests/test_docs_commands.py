"""Every command of the documents runs as it stands there: page by page, in order, in a folder of its own.

A folder holds the example prompts (``prompts.parquet``), the examples, and the bundled models as ``target`` and
``draft``; pages of examples are run in a copy of their folder. Two variables keep jobs small where a command does not
say otherwise. A block that cannot be run says why in an HTML comment above it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import Block, blocks

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "specbatch" / "assets" / "code-pair"
EXAMPLES = ROOT / "examples"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *EXAMPLES.rglob("*.md")])
RUN = {"bash", "python"}
DECODING = ("submit", "resume", "retry-failed", "repair", "preview", "calibrate", "schedule run")
MANY_COMMANDS = 40
MANY_DECODING = 2
"""From so many commands that decode a page is left to ``make test-all``.

Each starts a Ray and loads the models, some ten seconds, and ``make test`` is short of time. What such a page shows may
break unseen until then: the price of the time, no proof that other tests would notice.
"""

LONG_PAGES = ("nightly.md", "observability.md")
"""The same for pages whose few commands take long: ``jobs/schedules/test_night.py`` lives through a night as well, and
``jobs/test_metrics.py`` reads what a real Ray exports."""


def commands(page: Path) -> list[Block]:
    """The blocks of a page that are run, and the files that they need."""
    return [block for block in blocks(page) if block.file or (block.language in RUN and block.not_run is None)]


def num_decoding(page: Path) -> int:
    """How many of a page's commands decode rows, each with a Ray of its own."""
    text = "".join(block.text for block in commands(page))
    return sum(text.count(f"specbatch {name} ") for name in DECODING)


def marks_of(num_decoding: int, *, is_first: bool = False) -> list[pytest.MarkDecorator]:
    """The marks of a page with so many commands that decode; the first that a user follows is never left out."""
    marks = [pytest.mark.ray, pytest.mark.slow] if num_decoding else []
    return [*marks, pytest.mark.long] if num_decoding >= MANY_DECODING and not is_first else marks


def process_of(block: Block) -> list[str]:
    """The command line that runs a block.

    Bash would turn into a last command that is alone, as no user's shell does: ``--install-completion`` looks for the
    shell among its ancestors. So something comes after it, which keeps the exit code.
    """
    if block.language == "python":
        return [sys.executable, "-c", block.text]
    return ["bash", "-euo", "pipefail", "-c", f"{block.text}\nexit $?\n"]


def _cases() -> list[object]:
    cases = []
    for page in PAGES:
        if any(block.language in RUN for block in commands(page)):
            is_long = page.is_relative_to(EXAMPLES) or page.name in LONG_PAGES
            number = MANY_DECODING if is_long else num_decoding(page)
            marks = marks_of(number, is_first=page.name == "quickstart.md")
            cases.append(pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks))
    return cases


@pytest.fixture
def folder(tmp_path: Path, page: Path) -> Path:
    """Where the commands of one page are run: for a page of an example in its folder."""
    here = tmp_path / "here"
    shutil.copytree(ROOT / "examples", here / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "examples" / "prompts.parquet", here)
    (here / "target").symlink_to(ASSETS / "target")
    (here / "draft").symlink_to(ASSETS / "draft-taught")
    return here / page.parent.relative_to(ROOT) if page.is_relative_to(EXAMPLES) else here


@pytest.mark.parametrize("page", _cases())
@pytest.mark.timeout(900)
def test_commands_of(page: Path, folder: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SPECBATCH_", "AWS_"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "SPECBATCH_LIMIT": "6",
        "SPECBATCH_MAX_NEW_TOKENS": "8",
    }
    for block in commands(page):
        if block.file:
            (folder / block.file).write_text(block.text)
            continue
        done = subprocess.run(
            process_of(block), cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == block.exit_code, f"line {block.line}: {block.text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    ("text", "exit_code"),
    [
        ("sh -c 'test $PPID -eq $0' $$", 0),  # bash is there, and is its parent
        ("sh -c 'exit 3'", 3),
        ("false; true", 1),
        ("false && true", 1),
        ("false | true", 1),
        ("cat <<END\na\nEND", 0),
        ("true  # to the end", 0),
    ],
)
def test_a_shell_stays_above_the_last_command_and_gives_its_exit_code(text: str, exit_code: int) -> None:
    block = Block("bash", f"{text}\n", 1)
    assert subprocess.run(process_of(block), capture_output=True, timeout=20, check=False).returncode == exit_code


def test_commands_stand_where_they_are_run_or_say_why_not() -> None:
    """A command in a block of another language would be neither run nor missed; ``text`` is what a command printed."""
    for page in PAGES:
        for block in blocks(page):
            where = f"{page.name}, line {block.line}"
            if block.has_commands and block.language != "text":
                assert block.language in RUN or block.not_run or block.file, f"{where}: put it into a bash block"
            assert block.language, f"{where}: name the language; text for what a command prints"
            assert block.not_run is None or len(block.not_run) > 10, f"{where}: say why it is not run"


def test_most_commands_are_run() -> None:
    """The search above must see the documents."""
    num_run = sum(block.text.count("specbatch ") for page in PAGES for block in commands(page) if block.language in RUN)
    assert num_run >= MANY_COMMANDS


def test_a_page_with_many_commands_that_decode_is_a_long_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\nspecbatch submit a --output b\nspecbatch schedule run --once\nspecbatch plan a\n```\n")
    assert num_decoding(page) == 2
    assert [mark.name for mark in marks_of(3, is_first=True)] == ["ray", "slow"]
    assert [[mark.name for mark in marks_of(number)] for number in (0, 1, 2)] == [
        [],
        ["ray", "slow"],
        ["ray", "slow", "long"],
    ]


def test_a_block_is_read_with_what_is_said_above_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- file: job.yaml -->\n```yaml\na: 1\n```\n\n<!-- exit: 3 -->\n\n  ```bash\n  specbatch x\n    y\n  ```\n"
        "<!-- not run: needs a bucket -->\ntext between\n```bash\nspecbatch z\n```\n"
    )
    first, second, third = blocks(page)
    assert (first.file, first.text, first.language) == ("job.yaml", "a: 1\n", "yaml")
    assert (second.exit_code, second.text, second.line) == (3, "specbatch x\n  y\n", 8)
    assert third.not_run is None, "a comment belongs to the block right below it"
    assert [block.has_commands for block in (first, second, third)] == [False, True, True]
