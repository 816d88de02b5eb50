"""Every option of a job, once: its name, the setting that it stands for, and what ``--help`` says of it.

The command line, the environment (``SPECBATCH_<NAME>``), the Python face and the settings are all made from this table.
Nothing is imported here: ``--help`` must be quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from specbatch.jobs.spec.cluster_options import CLUSTER_OPTIONS
from specbatch.jobs.spec.data_options import DATA_OPTIONS
from specbatch.jobs.spec.option_types import Group, Kind, Option

_G, _S, _R, _J = Group.GENERATION, Group.SPECULATION, Group.RESOURCES, Group.JOB

JOB_OPTIONS: tuple[Option, ...] = (
    *DATA_OPTIONS,
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
    Option("stop_token_ids", "generation.stop_token_ids", _G, "scalars", "Ids that end a row: 1,2 or repeated.", "IDS"),
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
        "seed: the same text with any draft; distribution: the same probabilities, more drafts accepted. [seed]",
        choices=("seed", "distribution"),
    ),
    Option(
        "workers", "execution.workers", _R, "scalar", "Processes: one per GPU, or one. [auto]", "auto|N", is_free=True
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
        "gpus_per_worker",
        "execution.gpus_per_worker",
        _R,
        "float",
        "Share of a GPU that a worker takes: 0.5 puts two on each, with half of its memory. [1]",
        "R",
        is_free=True,
    ),
    Option(
        "tensor_parallel_size",
        "models.tensor_parallel_size",
        _R,
        "int",
        "Devices of one node that share the target, for one that is larger than a device. [1]",
        "N",
    ),
    *CLUSTER_OPTIONS,
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
    Option("row_errors_ok", "execution.row_errors_ok", _J, "flag", "Exit 0, not 3, despite error rows.", is_free=True),
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
        "logical_date",
        "execution.logical_date",
        _J,
        "text",
        "The night that this run is for; fills {date} and {hour} in dataset, output and partition.",
        "DATE|TIME|@SECONDS",
    ),
    Option(
        "timezone",
        "execution.timezone",
        _J,
        "text",
        "Zone that the logical date is read in, such as Europe/Berlin. [as it is written]",
        "ZONE",
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
