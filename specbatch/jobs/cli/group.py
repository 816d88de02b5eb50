"""The root of the command line: a list of commands in groups, each built when it is asked for.

Building one takes typer some milliseconds an option, so that the list itself, a typing error and every other command do
without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import groupby
from typing import Any, cast

import typer
from typer.core import TyperGroup

from specbatch.jobs.cli.help import COMMANDS, EXAMPLES

COMPLETE_VARIABLE = "_SPECBATCH_COMPLETE"
"""Set by the scripts of shells that ask for what may come next."""


class LazyCommands(Mapping[str, Any]):
    """The commands by name; their modules are imported at the first look."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}
        self._modules = {entry.name: entry.module for entry in COMMANDS}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            app = typer.Typer(rich_markup_mode=None, add_completion=False)
            import_module(f"specbatch.jobs.cli.{self._modules[name]}").register(app)
            self._built |= typer.main.get_group(app).commands
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


class GroupedRoot(TyperGroup):
    """Lists the commands in groups, and examples below them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = cast(Any, LazyCommands())

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each group of commands."""
        width = max(len(entry.name) for entry in COMMANDS)
        for title, entries in groupby(COMMANDS, key=lambda entry: entry.group):
            with formatter.section(title):
                formatter.write_dl([(entry.name.ljust(width), entry.summary) for entry in entries])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, and where to read on."""
        write_examples(ctx, formatter)
        formatter.write_paragraph()
        formatter.write("specbatch COMMAND --help shows the options of a command, with examples.\n")


def write_examples(ctx: Any, formatter: Any) -> None:
    """Write the examples of a command, each below a comment that says what it shows."""
    examples = EXAMPLES.get(" ".join(ctx.command_path.split()[1:]), ())
    if not examples:
        return
    with formatter.section("Examples"):
        for line, shows in examples:
            indent = " " * formatter.current_indent
            formatter.write(f"{indent}# {shows}\n{indent}{line}\n")


def complete_quickly() -> None:
    """Keep typer from importing rich to strip its markup from the help that it completes with: ours has none."""
    from typer import _completion_classes

    _completion_classes._sanitize_help_text = lambda text: text
