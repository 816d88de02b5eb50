"""How a target is divided among the devices of one node, by the library's own plans: what may be, and what each takes.

Pure functions of a parsed ``config.json`` and of the headers of the weights; nothing here imports torch. Every rank
(a process with one device of the group) holds its share of every large matrix. In most families it also holds its own
attention heads, with their keys and values; in some the heads are gathered before a norm, so that every rank keeps all
keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.specdec.models.families import kv_bytes_per_token, num_heads, num_kv_heads
from specbatch.specdec.models.files import read_header
from specbatch.specdec.models.folders import ModelFolder
from specbatch.specdec.models.footprint import dtype_bytes_of, text_config, weight_bytes

Config = Mapping[str, Any]

# fmt: off
DIVISIONS: Mapping[str, Literal["heads", "matrices"]] = {
    **dict.fromkeys((
        "cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt_neox", "granite", "llama", "mistral",
        "mixtral", "olmo", "phi", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "starcoder2",
    ), "heads"),
    **dict.fromkeys(("olmo2", "olmo3", "olmoe", "phi3"), "matrices"),
}
# fmt: on
"""Families with a plan that the tests prove: ranks divide heads and matrices, or the matrices alone."""

_INNER_SIZES = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
_WHOLE_PARTS = ("shared_expert.", "shared_expert_gate.", ".gate.weight", "embed_in.")
"""Parts of the names of matrices that no plan divides: gates that choose experts, an expert that all tokens see."""


def check_division(name: str, config: Config, num_ranks: int) -> None:
    """Refuse a target that so many ranks cannot share.

    Raises:
        SpecbatchError: JOB_MODEL_UNSUPPORTED for a family without a plan; JOB_CONFIG for sizes that do not divide.
    """
    if num_ranks == 1:
        return
    config = text_config(config)
    kind = str(config.get("model_type"))
    if kind not in DIVISIONS:
        raise SpecbatchError(
            ErrorCode.JOB_MODEL_UNSUPPORTED,
            f"the model {name} ({kind}) cannot be divided among {num_ranks} devices: its family has no proved plan; "
            f"use --tensor-parallel-size 1, or one of {', '.join(sorted(DIVISIONS))}",
        )
    uneven = [f"{size} is {value}" for size, value in _sizes(kind, config) if value % num_ranks]
    if uneven:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"--tensor-parallel-size {num_ranks} does not divide the model {name} ({', '.join(uneven)} in its "
            "config.json); use a size that divides them",
        )


def rank_weight_bytes(folder: ModelFolder, dtype: str, num_ranks: int) -> int:
    """Bytes of the weights that one rank holds, rounded up."""
    if num_ranks == 1:
        return weight_bytes(folder, dtype)
    whole: int = sum(
        math.prod(tensor["shape"])
        for path in folder.path.glob("*.safetensors")
        for name, tensor in read_header(path).items()
        if name != "__metadata__" and (len(tensor["shape"]) < 2 or any(part in name for part in _WHOLE_PARTS))
    )
    return (whole + math.ceil((folder.parameters - whole) / num_ranks)) * dtype_bytes_of(dtype)


def rank_kv_bytes_per_token(config: Config, dtype_bytes: int, num_ranks: int) -> int:
    """Bytes of keys and values of one token that one rank holds."""
    has_heads = DIVISIONS.get(str(config.get("model_type"))) == "heads"
    return kv_bytes_per_token(config, dtype_bytes) // (num_ranks if has_heads else 1)


def _sizes(kind: str, config: Config) -> list[tuple[str, int]]:
    heads = []
    if DIVISIONS[kind] == "heads":
        heads = [("num_attention_heads", num_heads(config)), ("num_key_value_heads", num_kv_heads(config))]
    return heads + [(size, int(config[size])) for size in _INNER_SIZES if isinstance(config.get(size), int)]
