"""Every option of a job, once: its name, the setting that it stands for, and what ``--help`` says of it.

The command line, the environment (``SPECBATCH_<NAME>``), the Python face and the settings are all made from this table.
Nothing is imported here: ``--help`` must be quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

Kind = Literal["text", "choice", "flag", "int", "float", "scalar", "scalars", "texts"]
"""``scalar``: a number or a word such as auto. ``scalars``: several, apart by commas or repeated. ``texts``: repeated,
for items that may hold commas."""


class Group(StrEnum):
    """Headings of ``--help``, in its order."""

    DATA = "Data"
    RESULTS = "Results"
    MODELS = "Models"
    GENERATION = "Generation"
    SPECULATION = "Speculation"
    RESOURCES = "Resources"
    JOB = "Job"
    COMMAND = "Command"


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        name: as in Python; ``--name`` with dashes on the command line.
        path: of the setting in ``JobSpec``.
        shape: what ``--help`` shows for its value.
        choices: of a ``choice``.
        is_free: may be changed when a job is resumed.
    """

    name: str
    path: str
    group: Group
    kind: Kind
    help: str
    shape: str | None = None
    choices: tuple[str, ...] = ()
    is_free: bool = False


_D, _O, _M, _G = Group.DATA, Group.RESULTS, Group.MODELS, Group.GENERATION
_S, _R, _J = Group.SPECULATION, Group.RESOURCES, Group.JOB

JOB_OPTIONS: tuple[Option, ...] = (
    Option("prompt_column", "input.prompt_column", _D, "text", "Column with the prompt. [prompt]", "NAME"),
    Option(
        "messages_column", "input.messages_column", _D, "text", "Column with chats, for the model's template.", "NAME"
    ),
    Option("template", "input.template", _D, "text", "Jinja over the columns, or @FILE with it.", "TEXT|@FILE"),
    Option("system", "input.system", _D, "text", "System prompt before every prompt, or @FILE.", "TEXT|@FILE"),
    Option(
        "row_params",
        "input.row_params",
        _D,
        "flag",
        "Columns max_new_tokens, temperature, top_p, top_k and seed override the settings row by row.",
    ),
    Option(
        "truncate_prompt",
        "input.truncate_prompt",
        _D,
        "choice",
        "Prompts over the context: error rows, or cut at this end, with room for max_new_tokens. [error]",
        choices=("error", "left", "right"),
    ),
    Option("id_column", "input.id_column", _D, "text", "Column with your row id; must exist.", "NAME"),
    Option("limit", "input.limit", _D, "int", "Only the first N rows.", "N"),
    Option(
        "keep_columns",
        "input.keep_columns",
        _D,
        "texts",
        "Pass only this input column through; may repeat. [all]",
        "NAME",
    ),
    Option("rename", "input.rename", _D, "texts", "Give an input column another name; may repeat.", "OLD=NEW"),
    Option(
        "dedupe",
        "input.dedupe",
        _D,
        "choice",
        "mark adds duplicate_of, the first row with the same prompt; no row is skipped. [off]",
        choices=("off", "mark"),
    ),
    Option("allow_empty", "input.allow_empty", _D, "flag", "A dataset without rows is a job that is complete."),
    Option(
        "on_bad_file",
        "input.on_bad_file",
        _D,
        "choice",
        "quarantine leaves files out that cannot be read, and says so. [fail]",
        choices=("fail", "quarantine"),
    ),
    Option("output", "output", _O, "text", "Where results go. Default: beside the dataset.", "DIR"),
    Option("output_prefix", "results.prefix", _O, "text", "Begin of the names of all added columns. []", "TEXT"),
    Option(
        "compression",
        "results.compression",
        _O,
        "choice",
        "Of the parts. [zstd]",
        choices=("zstd", "snappy", "gzip", "lz4", "none"),
    ),
    Option(
        "row_group_rows",
        "results.row_group_rows",
        _O,
        "int",
        "Most rows of a row group of the parts. [the writer's choice]",
        "N",
    ),
    Option(
        "partition",
        "results.partitions",
        _O,
        "texts",
        "Folder KEY=VALUE below the output, as tables by night have them; may repeat.",
        "KEY=VALUE",
    ),
    Option("target", "models.target", _M, "text", "Bundled name, folder or hub id. [code-pair/target]", "MODEL"),
    Option(
        "draft",
        "models.draft",
        _M,
        "text",
        "Draft model. Default: the target's bundled one.",
        "MODEL|none",
        is_free=True,
    ),
    Option(
        "dtype",
        "models.dtype",
        _M,
        "choice",
        "Arithmetic. [auto]",
        choices=("auto", "float32", "bfloat16", "float16", "float64"),
    ),
    Option("max_new_tokens", "generation.max_new_tokens", _G, "int", "Most tokens of a completion. [128]", "N"),
    Option(
        "min_new_tokens",
        "generation.min_new_tokens",
        _G,
        "int",
        "Tokens before which nothing but the length ends a completion. [0]",
        "N",
    ),
    Option("ignore_eos", "generation.ignore_eos", _G, "flag", "Do not end at the model's end tokens."),
    Option("temperature", "generation.temperature", _G, "float", "0 takes the likeliest token. [0]", "T"),
    Option("top_p", "generation.top_p", _G, "float", "Nucleus; 1 keeps all. [1]", "P"),
    Option("top_k", "generation.top_k", _G, "int", "Likeliest tokens; 0 keeps all. [0]", "N"),
    Option(
        "min_p",
        "generation.min_p",
        _G,
        "float",
        "Least share of the likeliest token's probability; 0 keeps all. [0]",
        "P",
    ),
    Option(
        "repetition_penalty",
        "generation.repetition_penalty",
        _G,
        "float",
        "Above 1 makes tokens of prompt and completion rarer. [1]",
        "X",
    ),
    Option(
        "presence_penalty",
        "generation.presence_penalty",
        _G,
        "float",
        "Taken off the logits of tokens said before. [0]",
        "X",
    ),
    Option(
        "frequency_penalty",
        "generation.frequency_penalty",
        _G,
        "float",
        "Taken off once for each time a token was said. [0]",
        "X",
    ),
    Option(
        "logit_bias",
        "generation.logit_bias",
        _G,
        "scalars",
        "Added to a token's logit: 13:-100,50:2 or repeated.",
        "ID:BIAS",
    ),
    Option("stop", "generation.stop", _G, "texts", "Text that ends a completion and is cut off; may repeat.", "TEXT"),
    Option(
        "stop_token_ids",
        "generation.stop_token_ids",
        _G,
        "scalars",
        "Ids that end a row: 1,2 or repeated.",
        "IDS",
    ),
    Option("logprobs", "generation.logprobs", _G, "flag", "Add a column with each token's logprob."),
    Option("seed", "generation.seed", _G, "int", "Seed of the job. [0]", "N"),
    Option("num_samples", "generation.num_samples", _G, "int", "Completions of every row, each a result row. [1]", "N"),
    Option(
        "seed_by",
        "generation.seed_by",
        _G,
        "choice",
        "Seeds of rows from their position or from --id-column. [row]",
        choices=("row", "id"),
    ),
    Option(
        "speculation",
        "execution.speculation",
        _S,
        "scalar",
        "How many draft tokens per round. [auto]",
        "auto|off|K",
        is_free=True,
    ),
    Option(
        "coupling",
        "generation.coupling",
        _S,
        "choice",
        "seed: the same text with any draft; distribution: the same law, more accepted. [seed]",
        choices=("seed", "distribution"),
    ),
    Option(
        "workers",
        "execution.workers",
        _R,
        "scalar",
        "Processes: one per GPU, or one. [auto]",
        "auto|N",
        is_free=True,
    ),
    Option(
        "batch_size",
        "execution.batch_size",
        _R,
        "scalar",
        "Rows in flight per worker; auto: as many as fit, 32 on CPU and 256 on CUDA at most. [auto]",
        "auto|N",
        is_free=True,
    ),
    Option(
        "device",
        "execution.device",
        _R,
        "choice",
        "Where to decode. [auto]",
        choices=("auto", "cpu", "cuda"),
        is_free=True,
    ),
    Option(
        "memory_fraction",
        "execution.memory_fraction",
        _R,
        "float",
        "Share of the free memory that may be used. [0.9]",
        "R",
        is_free=True,
    ),
    Option(
        "address",
        "execution.address",
        _R,
        "text",
        "A running Ray cluster (or auto); by default one of its own is started here.",
        "HOST:PORT",
        is_free=True,
    ),
    Option(
        "price_per_device_hour",
        "execution.price_per_device_hour",
        _R,
        "float",
        "For the cost in forecast and report, in your currency.",
        "X",
        is_free=True,
    ),
    Option(
        "profile",
        "execution.profile",
        _R,
        "text",
        "What calibrate measured: auto takes that of this pair on this machine. [auto]",
        "auto|none|FILE",
        is_free=True,
    ),
    Option("shard_rows", "execution.shard_rows", _J, "scalar", "Most rows of one part. [auto]", "auto|N"),
    Option(
        "max_error_rate",
        "execution.max_error_rate",
        _J,
        "float",
        "Give up above this share of error rows. [0.05]",
        "R",
        is_free=True,
    ),
    Option(
        "row_errors_ok",
        "execution.row_errors_ok",
        _J,
        "flag",
        "Exit 0, not 3, despite error rows.",
        is_free=True,
    ),
    Option(
        "deadline",
        "execution.deadline",
        _J,
        "text",
        "Stop taking new work after this long (90s, 30m, 1h30m); what is done is kept.",
        "DURATION",
        is_free=True,
    ),
    Option(
        "single_writer",
        "execution.single_writer",
        _J,
        "flag",
        "For a store that cannot create objects once only: promise that nobody else writes here.",
        is_free=True,
    ),
)

BY_NAME: Mapping[str, Option] = MappingProxyType({option.name: option for option in JOB_OPTIONS})

OPTIONS: Mapping[str, str] = MappingProxyType({option.name: option.path for option in JOB_OPTIONS})
"""Option name -> path in ``JobSpec``. ``input.datasets`` is the one path without an option: it is the argument."""

PATHS: tuple[str, ...] = ("input.datasets", *OPTIONS.values())

FREE_OPTIONS: tuple[str, ...] = ("target", *(option.name for option in JOB_OPTIONS if option.is_free))
"""Options that a resume takes. ``target`` says where the same weights lie now: S knows no names."""


def paths_of(*kinds: Kind) -> frozenset[str]:
    """Settings whose options are of these kinds."""
    return frozenset(option.path for option in JOB_OPTIONS if option.kind in kinds)
