"""The options that ``submit``, ``plan`` and ``config show`` share, and the help that shows them in groups."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand


class Format(StrEnum):
    AUTO = "auto"
    HUMAN = "human"
    JSON = "json"
    JSONL = "jsonl"
    QUIET = "quiet"


class DataTypeName(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT64 = "float64"


class DeviceName(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class CouplingName(StrEnum):
    SEED = "seed"
    DISTRIBUTION = "distribution"


_DATA, _MODELS, _GENERATION = "Data", "Models", "Generation"
_SPECULATION, _RESOURCES, _JOB, _COMMAND = "Speculation", "Resources", "Job", "Command"


class GroupedCommand(TyperCommand):
    """Shows the options of its help in groups; without rich, typer shows one long list."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each group, in the order in which the options are declared."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                group = getattr(parameter, "rich_help_panel", None) or ("Arguments" if is_argument else _COMMAND)
                groups.setdefault(group, []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)


def job_options(
    dataset: Annotated[
        list[str] | None, typer.Argument(metavar="DATASET...", help="Parquet files, folders or globs.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", metavar="DIR", help="Where results go. Default: beside the dataset.", rich_help_panel=_DATA
        ),
    ] = None,
    prompt_column: Annotated[
        str | None,
        typer.Option("--prompt-column", metavar="NAME", help="Column with the prompt. [prompt]", rich_help_panel=_DATA),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option("--id-column", metavar="NAME", help="Column with your row id; must exist.", rich_help_panel=_DATA),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Only the first N rows.", rich_help_panel=_DATA)
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="MODEL",
            help="Bundled name, folder or hub id. [code-pair/target]",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            "--draft",
            metavar="MODEL|none",
            help="Draft model. Default: the target's bundled one.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    dtype: Annotated[
        DataTypeName | None, typer.Option("--dtype", help="Arithmetic. [auto]", rich_help_panel=_MODELS)
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens", metavar="N", help="Most tokens of a completion. [128]", rich_help_panel=_GENERATION
        ),
    ] = None,
    min_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--min-new-tokens",
            metavar="N",
            help="Tokens before which nothing but the length ends a completion. [0]",
            rich_help_panel=_GENERATION,
        ),
    ] = None,
    ignore_eos: Annotated[
        bool | None,
        typer.Option(
            "--ignore-eos/--no-ignore-eos",
            help="Do not end at the model's end tokens.",
            rich_help_panel=_GENERATION,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", metavar="T", help="0 takes the likeliest token. [0]", rich_help_panel=_GENERATION
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", metavar="P", help="Nucleus; 1 keeps all. [1]", rich_help_panel=_GENERATION),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", metavar="N", help="Likeliest tokens; 0 keeps all. [0]", rich_help_panel=_GENERATION),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            "--min-p",
            metavar="P",
            help="Least share of the likeliest token's probability; 0 keeps all. [0]",
            rich_help_panel=_GENERATION,
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            "--repetition-penalty",
            metavar="X",
            help="Above 1 makes tokens of prompt and completion rarer. [1]",
            rich_help_panel=_GENERATION,
        ),
    ] = None,
    presence_penalty: Annotated[
        float | None,
        typer.Option(
            "--presence-penalty",
            metavar="X",
            help="Taken off the logits of tokens said before. [0]",
            rich_help_panel=_GENERATION,
        ),
    ] = None,
    frequency_penalty: Annotated[
        float | None,
        typer.Option(
            "--frequency-penalty",
            metavar="X",
            help="Taken off once for each time a token was said. [0]",
            rich_help_panel=_GENERATION,
        ),
    ] = None,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(
            "--logit-bias",
            metavar="ID:BIAS",
            help="Added to a token's logit: 13:-100,50:2 or repeated.",
            rich_help_panel=_GENERATION,
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop",
            metavar="TEXT",
            help="Text that ends a completion and is cut off; may repeat.",
            rich_help_panel=_GENERATION,
        ),
    ] = None,
    stop_token_ids: Annotated[
        list[str] | None,
        typer.Option(
            "--stop-token-ids",
            metavar="IDS",
            help="Ids that end a row: 1,2 or repeated.",
            rich_help_panel=_GENERATION,
        ),
    ] = None,
    logprobs: Annotated[
        bool | None,
        typer.Option(
            "--logprobs/--no-logprobs", help="Add a column with each token's logprob.", rich_help_panel=_GENERATION
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Seed of the job. [0]", rich_help_panel=_GENERATION)
    ] = None,
    num_samples: Annotated[
        int | None,
        typer.Option(
            "--num-samples",
            metavar="N",
            help="Completions of every row, each a result row. [1]",
            rich_help_panel=_GENERATION,
        ),
    ] = None,
    speculation: Annotated[
        str | None,
        typer.Option(
            "--speculation",
            metavar="auto|off|K",
            help="How many draft tokens per round. [auto]",
            rich_help_panel=_SPECULATION,
        ),
    ] = None,
    coupling: Annotated[
        CouplingName | None,
        typer.Option(
            "--coupling",
            help="seed: the same text with any draft; distribution: the same law, more accepted. [seed]",
            rich_help_panel=_SPECULATION,
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            "--workers", metavar="auto|N", help="Processes: one per GPU, or one. [auto]", rich_help_panel=_RESOURCES
        ),
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            "--batch-size",
            metavar="auto|N",
            help="Rows in flight per worker; auto: as many as fit, 32 on CPU and 256 on CUDA at most. [auto]",
            rich_help_panel=_RESOURCES,
        ),
    ] = None,
    device: Annotated[
        DeviceName | None, typer.Option("--device", help="Where to decode. [auto]", rich_help_panel=_RESOURCES)
    ] = None,
    memory_fraction: Annotated[
        float | None,
        typer.Option(
            "--memory-fraction",
            metavar="R",
            help="Share of the free memory that may be used. [0.9]",
            rich_help_panel=_RESOURCES,
        ),
    ] = None,
    shard_rows: Annotated[
        str | None,
        typer.Option("--shard-rows", metavar="auto|N", help="Most rows of one part. [auto]", rich_help_panel=_JOB),
    ] = None,
    max_error_rate: Annotated[
        float | None,
        typer.Option(
            "--max-error-rate",
            metavar="R",
            help="Give up above this share of error rows. [0.05]",
            rich_help_panel=_JOB,
        ),
    ] = None,
    row_errors_ok: Annotated[
        bool | None,
        typer.Option(
            "--row-errors-ok/--no-row-errors-ok", help="Exit 0, not 3, despite error rows.", rich_help_panel=_JOB
        ),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(
            "--deadline",
            metavar="DURATION",
            help="Stop taking new work after this long (90s, 30m, 1h30m); what is done is kept.",
            rich_help_panel=_JOB,
        ),
    ] = None,
    single_writer: Annotated[
        bool | None,
        typer.Option(
            "--single-writer/--no-single-writer",
            help="For a store that cannot create objects once only: promise that nobody else writes here.",
            rich_help_panel=_JOB,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="HOST:PORT",
            help="A running Ray cluster (or auto); by default one of its own is started here.",
            rich_help_panel=_RESOURCES,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="YAML with settings, such as generation: {seed: 1}.",
            rich_help_panel=_COMMAND,
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="One setting by its path; may repeat.", rich_help_panel=_COMMAND
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check and print the plan; start nothing.", rich_help_panel=_COMMAND),
    ] = False,
    format: Annotated[
        Format, typer.Option("--format", help="How to print results and progress.", rich_help_panel=_COMMAND)
    ] = Format.AUTO,
) -> None:
    """Declares the options; the commands take them as a dictionary."""
