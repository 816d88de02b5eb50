"""The language of the command line: help with examples, "did you mean", explained codes, completion in shells."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from specbatch.jobs.cli import app as cli
from specbatch.jobs.cli.explain import explain
from specbatch.jobs.cli.help import COMMANDS, EXAMPLES
from specbatch.jobs.cli.options import GroupedCommand
from specbatch.jobs.spec.jobfile_schema import job_schema, render_job_file
from specbatch.jobs.spec.options import PATHS
from specbatch.jobs.spec.settings import file_layer, flag_layer, resolve
from specbatch.schemas.error_texts import EXIT_TEXTS, EXPLANATIONS
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError
from specbatch.schemas.suggest import closest, did_you_mean

HEAVY = ("torch", "transformers", "pyarrow", "ray", "numpy", "boto3", "botocore", "rich", "jinja2", "yaml")
"""What no help and no completion may wait for. pydantic is not among it: typer itself checks values with it."""


def leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its name below ``specbatch``."""
    if hasattr(command, "commands"):
        for child, each in command.commands.items():
            yield from leaves(each, f"{name} {child}".strip())
    else:
        yield name, command


LEAVES = dict(leaves(typer.main.get_command(cli.app)))


def line_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one error line of a command that fails with exit 2."""
    assert cli.run(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", LEAVES)
def test_the_help_of_every_command_ends_with_its_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(LEAVES[name], GroupedCommand)
    assert cli.run([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    examples = text.partition("\nExamples:\n")[2]
    assert examples.count(f"  specbatch {name}") == len(EXAMPLES[name]) >= 1
    assert "Example:" not in text, "its examples belong into cli/help.py"
    assert all(shows in examples for _, shows in EXAMPLES[name])


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in EXAMPLES.items() for line, _ in lines])
def test_examples_can_be_parsed(name: str, line: str) -> None:
    words = shlex.split(line.partition(">")[0])
    assert words[0] == "specbatch"
    command = name or words[1]
    assert words[1 : 1 + len(command.split())] == command.split()
    LEAVES[command].make_context("specbatch", words[1 + len(command.split()) :])


def test_every_command_stands_in_the_list_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.split() == [entry.name, *entry.summary.split()] for line in lines) for entry in COMMANDS)
    assert all(f"{entry.group}:" in lines for entry in COMMANDS)
    assert [entry.name for entry in COMMANDS] == list(dict.fromkeys(name.split()[0] for name in LEAVES))
    assert set(EXAMPLES) == {"", *LEAVES}


def test_modules_register_no_command_that_the_list_lacks() -> None:
    for module in {entry.module for entry in COMMANDS}:
        app = typer.Typer()
        import_module(f"specbatch.jobs.cli.{module}").register(app)
        registered = {command.name for command in app.registered_commands} | {
            group.name for group in app.registered_groups
        }
        assert registered == {entry.name for entry in COMMANDS if entry.module == module}


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["submit", "x.parquet", "--max-new-token", "3"], "did you mean --max-new-tokens"),
        (["sumbit", "x.parquet"], "Did you mean 'submit'?"),
        (["plan", "x.parquet", "--limit", "x"], "Invalid value for '--limit': it must be a whole number (see"),
        (["plan", "x.parquet", "--temperature", "hot"], "'--temperature': it must be a number (see"),
        (["plan", "x.parquet", "--dedupe", "drop"], "'--dedupe': 'drop' is not one of 'off', 'mark'. (see"),
        (["preview", "x.parquet", "-n", "0"], "it must be greater than or equal to 1 (see"),
        (["plan", "x.parquet", "--output-prefix", "a b"], "it must be at most 64 letters, digits, dots, dashes"),
        (["submit", "x.parquet", "--set", "generation.sead=1"], "did you mean generation.seed?"),
        (["explain", "ROW_TO_LONG"], "did you mean 'ROW_TOO_LONG'?"),
        (["explain", "nothing-like-it"], "specbatch explain lists all"),
        (["retry-failed", "out", "--codes", "ROW_MEMROY"], "did you mean 'ROW_MEMORY'?"),
        (["retry-failed", "out", "--codes", "JOB_MEMORY"], "it is no code of a row"),
    ],
)
def test_did_you_mean(arguments: list[str], suggestion: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert suggestion in line_of(capsys, *arguments)


def test_did_you_mean_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"Question": ["a"], "other": ["b"]}), path)
    line = line_of(capsys, "plan", str(path), "--prompt-column", "question")
    assert "did you mean --prompt-column Question?" in line
    assert "'other'" in line, "it lists the columns too"


def test_a_near_name_is_found_among_hostile_ones() -> None:
    assert closest("PROMPT", ["id", "prompt"]) == "prompt"
    assert closest("nothing", ["id", "prompt"]) is None
    assert closest("prompt", ["p" * 10_000, *(f"column{index}" for index in range(100_000))]) is None
    assert did_you_mean("x", [], "none") == "none"


def test_every_code_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(EXPLANATIONS) == list(ErrorCode)
    assert list(EXIT_TEXTS) == list(ExitCode)
    for code in ErrorCode:
        assert cli.run(["explain", code.value.lower()]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{code.value}\n")
        assert "what to do" in out
        for text in (EXPLANATIONS[code].meaning, EXPLANATIONS[code].remedy):
            assert text == text.strip()
            assert text
            assert "|" not in text, "it stands in a table"
            assert not text.endswith(".")
    for exit_code in ExitCode:
        assert explain(str(int(exit_code))).startswith(f"exit {int(exit_code)}\n")
    assert cli.run(["explain"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {code.value} " in listed for code in ErrorCode)


@pytest.mark.parametrize("name", ["", "  ", "1e9", "٣", "-1", "99", "ROW_\x1b[31m"])
def test_explain_refuses_what_is_no_code(name: str) -> None:
    with pytest.raises(SpecbatchError, match="there is no such code"):
        explain(name)


AWKWARD = {
    "prompt_column": "off",
    "id_column": "1e5",
    "template": 'line "one"\n\t{{ größe }} # not a comment: yes',
    "system": "null",
    "stop": ["\n\n", "- x", "a, b"],
    "logit_bias": [(3, 1.5), (4, -100.0)],
    "speculation": "off",
    "rename": ["a=b c"],
    "output": "s3://bucket/out: put",
}


@pytest.mark.parametrize("format", ["human", "json"])
def test_settings_written_as_a_job_file_give_the_same_settings(format: str) -> None:
    for given in ({}, AWKWARD):
        spec = resolve([flag_layer(given)]).spec
        text = render_job_file(spec, format)
        assert resolve([file_layer(text.encode(), "job.yaml")]).spec == spec


def test_config_show_prints_origins_or_a_job_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("generation: {seed: 3}\n")
    assert cli.run(["config", "show", "--config", str(job), "--origin"]) == 0
    with_origin = capsys.readouterr().out
    assert cli.run(["config", "show", "--config", str(job)]) == 0
    assert capsys.readouterr().out == with_origin
    (line,) = [line for line in with_origin.splitlines() if line.startswith("generation.seed ")]
    assert line.split() == ["generation.seed", "3", str(job)]
    assert cli.run(["config", "show", "--config", str(job), "--no-origin"]) == 0
    whole = tmp_path / "whole.yaml"
    whole.write_text(capsys.readouterr().out)
    assert str(job) not in whole.read_text()
    assert cli.run(["config", "show", "--config", str(whole), "--format", "json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["generation.seed"]["value"] == 3
    assert {each["origin"] for each in settings.values()} == {str(whole)}


def test_the_schema_of_job_files_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == job_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    sections = schema["properties"]
    for path in PATHS:
        section, _, key = path.partition(".")
        setting = sections[section]["properties"][key] if key else sections[section]
        assert setting["description"], path
        assert "default" in setting, path


def test_the_schema_accepts_what_the_reader_does_and_refuses_what_it_refuses() -> None:
    validator = jsonschema.Draft202012Validator(job_schema())
    for given in ({}, AWKWARD):
        document = json.loads(render_job_file(resolve([flag_layer(given)]).spec, "json"))
        assert list(validator.iter_errors(document)) == []
    good: list[dict[str, Any]] = [
        {"generation": None},
        {"generation": {"logit_bias": ["3:1.5", " 4 : -2 "]}},
        {"execution": {"deadline": "1h30m", "workers": "auto"}},
        {"input": {"rename": ["old=new"]}},
    ]
    bad: list[dict[str, Any]] = [
        {"generation": {"sead": 1}},
        {"generation": {"temperature": -1}},
        {"generation": {"logit_bias": ["three:1"]}},
        {"execution": {"deadline": "soon"}},
        {"execution": {"workers": "many"}},
        {"input": {"rename": ["old"]}},
        {"input": {"datasets": "one.parquet"}},
        {"surprise": 1},
    ]
    for document, is_good in [*((each, True) for each in good), *((each, False) for each in bad)]:
        assert (not list(validator.iter_errors(document))) is is_good, document
        try:
            resolve([file_layer(json.dumps(document).encode(), "job.yaml")])
        except SpecbatchError:
            assert not is_good, document
        else:
            assert is_good, document


def imported(tmp_path: Path, *arguments: str, **variables: str) -> set[str]:
    """Libraries that a command imports, typer aside."""
    script = (
        "import sys\nfrom specbatch.jobs.cli import app as cli\n"
        "try:\n    cli.run(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"print('\\nHEAVY', *(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, cwd=tmp_path, check=True, env=os.environ | variables,
    )  # fmt: skip
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("arguments", [["--help"], ["submit", "--help"], ["explain", "ROW_POISON"], ["sumbit"]])
def test_help_imports_typer_alone(tmp_path: Path, arguments: list[str]) -> None:
    assert imported(tmp_path, *arguments) == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_imports_typer_alone(tmp_path: Path, shell: str) -> None:
    variables = {"_SPECBATCH_COMPLETE": f"complete_{shell}", **asked("specbatch submit --tem")}
    assert imported(tmp_path, **variables) == set()


def asked(line: str) -> dict[str, str]:
    """How shells ask for what may follow a line."""
    words = line.split(" ")
    return {
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("specbatch re", {"resume", "retry-failed", "repair", "report"}),
        ("specbatch config ", {"show", "schema"}),
        ("specbatch submit --temp", {"--template", "--temperature"}),
        ("specbatch submit --device c", {"cpu", "cuda"}),
        ("specbatch explain ROW_TOO", {"ROW_TOO_LONG", "ROW_TOO_LARGE"}),
    ],
)
def test_completions(
    shell: str, line: str, expected: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_SPECBATCH_COMPLETE", f"complete_{shell}")
    for name, value in asked(line).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        cli.run([])
    assert end.value.code == 0
    out = capsys.readouterr().out
    if shell == "zsh":
        values = {piece.split('"')[1] for piece in out.splitlines() if piece.strip()[:1] == '"' or '(("' in piece}
    else:
        values = {each.split("\t")[0] for each in out.splitlines()}
    assert values == expected


BASH = """
source <(specbatch --show-completion)
COMP_WORDS=({words}); COMP_CWORD={index}
_specbatch_completion specbatch
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def shell_environment(tmp_path: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"HOME": str(tmp_path), "PATH": path}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_with_the_script_that_is_shown(shell_environment: dict[str, str]) -> None:
    for words, index, expected in (("specbatch ver", 1, ["verify"]), ("specbatch status out --fo", 3, ["--format"])):
        script = BASH.format(words=words, index=index)
        done = subprocess.run(
            ["bash", "--norc", "-c", script], capture_output=True, text=True, env=shell_environment, check=True
        )
        assert done.stdout.split() == expected, done.stderr


@pytest.mark.parametrize(
    ("shell", "ask", "expected"),
    [
        (
            "zsh",
            "autoload -Uz compinit; compinit -u; source <(specbatch --show-completion); print $_comps",
            "_specbatch",
        ),
        ("fish", "specbatch --show-completion | source; complete -C 'specbatch ver'", "verify"),
    ],
)
def test_other_shells_take_the_script(shell: str, ask: str, expected: str, shell_environment: dict[str, str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-c", ask], capture_output=True, text=True, env=shell_environment, check=True)
    assert expected in done.stdout


def test_completion_is_installed_where_the_shell_reads_it(shell_environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "--norc", "-c", "specbatch --install-completion; true"],
        capture_output=True, text=True, env=shell_environment, check=True,
    )  # fmt: skip
    assert "bash completion installed" in done.stdout
    assert ".bash_completions/specbatch.sh" in (tmp_path / ".bashrc").read_text()
