"""Bytes that one model takes, from its configuration and the headers of its files; nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.specdec.models import ModelFolder
from specbatch.specdec.weights_header import read_header

_DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_HEAD_TENSORS = ("lm_head.weight", "embed_out.weight")


def weight_bytes(folder: ModelFolder, dtype: str) -> int:
    """Bytes of a loaded model's weights.

    An output head that shares the embedding's weight (the files have no tensor of its own) is packed into a copy where
    weights are packed, in float32 on CPU; that copy is counted in every float32 ledger.
    """
    config = text_config(folder.config)
    parameters = folder.parameters
    names = [name for path in folder.path.glob("*.safetensors") for name in read_header(path)]
    if dtype == "float32" and not any(name.endswith(_HEAD_TENSORS) for name in names):
        parameters += int(config["vocab_size"]) * int(_first(config, "word_embed_proj_dim", "hidden_size", "n_embd"))
    return parameters * dtype_bytes_of(dtype)


def dtype_bytes_of(dtype: str) -> int:
    """Bytes of one number."""
    return _DTYPE_BYTES.get(dtype, 4)


def activation_bytes(config: Mapping[str, Any], dtype_bytes: int) -> int:
    """Bytes of one token inside a layer: residual, norms, q, k, v and output, and three MLP products at most."""
    hidden = int(_first(config, "hidden_size", "n_embd"))
    inner = int(config.get("intermediate_size") or config.get("ffn_dim") or config.get("n_inner") or 4 * hidden)
    return (8 * hidden + 3 * inner) * dtype_bytes


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the decoder; models of several modalities nest it."""
    inner: Mapping[str, Any] = config.get("text_config") or config
    return inner


def _first(config: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if config.get(name):
            return config[name]
    raise SpecbatchError(ErrorCode.JOB_MODEL_UNSUPPORTED, f"config.json names no {names[0]}; fetch the model again")
