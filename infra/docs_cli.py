"""``docs/reference/cli.md``: every command with its options and examples, from the command line itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import typer

from specbatch.jobs.cli import app as cli
from specbatch.jobs.cli.help import COMMANDS, EXAMPLES
from specbatch.jobs.spec.option_types import Option
from specbatch.jobs.spec.options import JOB_OPTIONS

_BEGIN = """\
# Command line

Data goes to stdout, talk to stderr. `specbatch COMMAND --help` shows what stands here. Exit codes are the same
everywhere ([list](../errors.md#exit-codes)).

Settings come from five places; the first that names one decides: options, then `--set path=value`, then the environment
(`SPECBATCH_MAX_NEW_TOKENS=64` for `--max-new-tokens 64`), then the file of `--config`, then defaults.
`specbatch config show` prints each value with its origin.

## Completion

```bash
specbatch --install-completion
```

adds completion of commands, options and their values to the shell it is run in: bash, zsh, fish or PowerShell. It takes
effect in the next shell. `specbatch --show-completion` prints the script instead.
"""
_JOB_OPTIONS = """
## Options of a job

What `submit`, `plan` and others take. The second column is the setting's name in job files and for `--set`. Options
marked with * may change when a job is resumed; the others decide what the job is.
"""
_MANY = 20


def page() -> str:
    """The whole page."""
    root: Any = typer.main.get_command(cli.app)
    lines = [_BEGIN]
    for title, entries in groupby(COMMANDS, key=lambda entry: entry.group):
        lines.append(f"\n## {title}\n")
        for entry in entries:
            for path, leaf in _leaves(entry.name, root.commands[entry.name]):
                lines += _command(path, leaf)
    lines.append(_JOB_OPTIONS)
    for group in dict.fromkeys(option.group for option in JOB_OPTIONS):
        lines += [f"\n### {group}\n\n", "| option | setting | what it does |\n|---|---|---|\n"]
        lines += [_job_option(option) for option in JOB_OPTIONS if option.group is group]
    return "".join(lines)


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for child, leaf in command.commands.items():
        yield from _leaves(f"{name} {child}", leaf)


def _command(path: str, command: Any) -> list[str]:
    # The first paragraph is the help; examples have a section of their own.
    text = re.split(r"\n\s*\n", (command.help or "").strip())[0]
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    usage = " ".join(["specbatch", path, *(_shape(each) for each in arguments), "[OPTIONS]" * bool(options)]).strip()
    lines = [f"\n### {path}\n\n", f"{_escape(' '.join(text.split()))}\n\n", f"```text\n{usage}\n```\n"]
    of_job = {option.name for option in JOB_OPTIONS}
    shared = [each for each in options if each.name in of_job]
    own = [each for each in options if each.name not in of_job] if len(shared) > _MANY else options
    rows = [(f"`{_shape(each)}`", each.help or "") for each in arguments]
    rows += [(f"`{_flag(each)}`", each.help or "") for each in own]
    if rows:
        lines.append("\n| | |\n|---|---|\n")
        lines += [f"| {_cell(name)} | {_cell(help)} |\n" for name, help in rows]
    if len(shared) > _MANY:
        lines.append("\nIt takes the [options of a job](#options-of-a-job) too.\n")
    if path in EXAMPLES:
        shown = "\n".join(f"# {shows}\n{line}" for line, shows in EXAMPLES[path])
        lines.append(f"\n<!-- not run: examples of every place and model; each is parsed -->\n```bash\n{shown}\n```\n")
    return lines


def _job_option(option: Option) -> str:
    flag = "--" + option.name.replace("_", "-")
    shape = option.shape or (" or ".join(option.choices) if option.choices else "")
    star = " \\*" if option.is_free else ""
    return f"| `{_cell(' '.join([flag, shape]).strip())}`{star} | `{option.path}` | {_cell(option.help)} |\n"


def _flag(option: Any) -> str:
    name = " / ".join([*option.opts, *option.secondary_opts])
    choices = [str(getattr(each, "value", each)) for each in (getattr(option.type_descriptor, "choices", None) or ())]
    shape = "" if option.is_flag else option.metavar or " or ".join(choices) or str(option.name).upper()
    return f"{name} {shape}".strip()


def _shape(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _cell(text: str) -> str:
    """Text for a table: no bar, which Markdown flavours escape in different ways."""
    return _escape(" ".join(text.split()).replace("|", " or "))


def _escape(text: str) -> str:
    return text.replace("<", "&lt;")
