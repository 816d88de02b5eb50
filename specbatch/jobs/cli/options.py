"""Options of the command line: those of a job, made from the table in ``options``, and the help that groups them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand

from specbatch.jobs.cli.group import write_examples
from specbatch.jobs.spec.option_types import Group, Option
from specbatch.jobs.spec.options import JOB_OPTIONS


class Format(StrEnum):
    AUTO = "auto"
    HUMAN = "human"
    JSON = "json"
    JSONL = "jsonl"
    QUIET = "quiet"


class GroupedCommand(TyperCommand):
    """Shows the options of its help in groups, and examples; without rich, typer shows one long list."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each group, in the order in which the options are declared."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                group = getattr(parameter, "rich_help_panel", None) or ("Arguments" if is_argument else Group.COMMAND)
                groups.setdefault(str(group), []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples of this command."""
        write_examples(ctx, formatter)


DATASET = inspect.Parameter(
    "dataset",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATASET...", help="Parquet or JSONL files, folders, globs, s3:// or hf:// places, or an output."
        ),
    ],
)
CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="YAML with settings, such as generation: {seed: 1}."),
    ],
)
ASSIGNMENTS = inspect.Parameter(
    "assignments",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="One setting by its path; may repeat.")
    ],
)
DRY_RUN = inspect.Parameter(
    "dry_run",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--dry-run", help="Check and print the plan; start nothing.")],
)
NOTIFY = inspect.Parameter(
    "notify",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Option(
            "--notify",
            metavar="URL",
            help="Post a summary here when the run has ended; SPECBATCH_NOTIFY_URL keeps it off the command line.",
        ),
    ],
)
ORIGIN = inspect.Parameter(
    "origin",
    inspect.Parameter.KEYWORD_ONLY,
    default=True,
    annotation=Annotated[
        bool,
        typer.Option("--origin/--no-origin", help="With where each value comes from, or as a job file. [--origin]"),
    ],
)
SCAN = inspect.Parameter(
    "scan",
    inspect.Parameter.KEYWORD_ONLY,
    default="10000",
    annotation=Annotated[
        str, typer.Option("--scan", metavar="all|N|none", help="Rows whose prompts are looked at; N draws a sample.")
    ],
)
FORMAT = inspect.Parameter(
    "format",
    inspect.Parameter.KEYWORD_ONLY,
    default=Format.AUTO,
    annotation=Annotated[Format, typer.Option("--format", help="How to print results and progress.")],
)


def job_parameters(names: Iterable[str] | None = None) -> list[inspect.Parameter]:
    """Typer's parameters for the options of a job; None for all of them."""
    wanted = None if names is None else frozenset(names)
    return [_parameter(option) for option in JOB_OPTIONS if wanted is None or option.name in wanted]


def command(function: Callable[[dict[str, Any]], None], parameters: Iterable[inspect.Parameter]) -> Callable[..., None]:
    """A function for typer that has these parameters and hands their values on by name."""

    def run(**options: Any) -> None:
        function(options)

    kept = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = inspect.Signature(kept, return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in kept}
    return run


def given_options(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """What was given of some job options, as ``settings.flag_layer`` takes it."""
    given: dict[str, Any] = {}
    for name in names:
        value = options.get(name)
        if value is None or value == []:
            continue
        if isinstance(value, list) and _KINDS[name] == "scalars":
            value = ",".join(value)
        given[name] = str(value) if isinstance(value, StrEnum) else value
    return given


_KINDS = {option.name: option.kind for option in JOB_OPTIONS}


def _parameter(option: Option) -> inspect.Parameter:
    flag = "--" + option.name.replace("_", "-")
    declared = f"{flag}/--no-{flag.removeprefix('--')}" if option.kind == "flag" else flag
    wrapped = typer.Option(declared, metavar=option.shape, help=option.help, rich_help_panel=option.group)
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[_type(option), wrapped],
    )


def _type(option: Option) -> Any:
    match option.kind:
        case "choice":
            name = "".join(word.capitalize() for word in option.name.split("_"))
            return cast(Any, StrEnum(name, {choice.upper(): choice for choice in option.choices})) | None
        case "flag":
            return bool | None
        case "int":
            return int | None
        case "float":
            return float | None
        case "text" | "scalar":
            return str | None
        case "scalars" | "texts":
            return list[str] | None
