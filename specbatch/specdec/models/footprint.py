"""Bytes that one model takes, from its configuration and the headers of its files; nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from specbatch.specdec.models.arithmetic import DTYPE_BYTES, KV_BYTES
from specbatch.specdec.models.families import head_width, max_context, model_path, named_size
from specbatch.specdec.models.files import read_header
from specbatch.specdec.models.folders import ModelFolder
from specbatch.specdec.models.quantization import ON_LOAD, Quantization

if TYPE_CHECKING:
    from specbatch.schemas.spec import KvCacheDtype

LOGITS_PER_SLICE = 1 << 23
"""Logits that a device draws from at a time. A draw makes up to twenty temporaries of their shape, which for a whole
round would be the largest thing in memory."""
BYTES_PER_LOGIT: Mapping[str, int] = {"cpu": 32, "cuda": 16}
"""For one scored position and token, by device. On a CPU the logit, its transform, noise and score in float32, a sort
with indices. Elsewhere draws go by slices, so that only logits are held for a whole round: once more where rows are put
in order, and as laws of target and draft where drafts are judged by probability."""
BYTES_PER_SLICED_LOGIT = 80
"""Temporaries of a draw by slices; the widest is top-p over a vocabulary that is sorted whole."""
_DRAW_BYTES: Mapping[str, int] = {"cpu": 0, "cuda": LOGITS_PER_SLICE * BYTES_PER_SLICED_LOGIT}
_CAPTURED_BYTES: Mapping[str, int] = {"cpu": 0, "cuda": 1536 << 20}
"""What captured rounds keep for themselves: temporaries of their graphs, and attention's partial sums (1 GiB)."""
_COLLECTIVES_BYTES: Mapping[str, int] = {"cpu": 0, "cuda": 1 << 30}
"""What a rank's collectives keep for themselves: nccl takes buffers for every channel, outside of torch's pool."""
_HEAD_TENSORS = ("lm_head.weight", "embed_out.weight")
_NOT_QUANTIZED = ("embed", "lm_head", "wte", "wpe")
"""Parts of names of matrices that no method of ``quantization.ON_LOAD`` touches."""
_FLOATS = ("F64", "F32", "F16", "BF16")
_SCALE_BYTES = 5
"""Of a row or block: a float32 scale, and a zero point of 8 bits where there is one."""
_CODE_BYTES = 64
"""The 16 values of a 4-bit code, kept beside every matrix."""


def weight_bytes(folder: ModelFolder, dtype: str) -> int:
    """Bytes of a loaded model's weights.

    An output head that shares the embedding's weight (the files have no tensor of its own) is packed into a copy where
    weights are packed, in float32 on CPU; that copy is counted in every float32 ledger.

    Of quantized weights this is an upper bound: those that stay small count as they are stored, or as their method
    will make them, with their scales; those that are made whole count as dense ones, and their scales too.
    """
    config = text_config(folder.config)
    parameters = folder.parameters
    tensors = {
        name: entry
        for path in folder.path.glob("*.safetensors")
        for name, entry in read_header(path).items()
        if name != "__metadata__"
    }
    copied = 0
    if dtype == "float32" and not any(name.endswith(_HEAD_TENSORS) for name in tensors):
        copied = int(config["vocab_size"]) * named_size(config, "word_embed_proj_dim", "hidden_size", "n_embd")
    if folder.quantization is None:
        return (parameters + copied) * dtype_bytes_of(dtype)
    sizes = (_quantized_bytes(folder, name, entry, dtype_bytes_of(dtype)) for name, entry in tensors.items())
    return sum(sizes) + copied * dtype_bytes_of(dtype)


def _quantized_bytes(folder: ModelFolder, name: str, entry: Mapping[str, Any], dtype_bytes: int) -> int:
    """Most bytes that one stored tensor of a quantized model takes in memory."""
    quantization = folder.quantization
    assert quantization is not None, "dense models are counted without looking at their tensors"
    shape, (begin, end) = [int(size) for size in entry["shape"]], entry["data_offsets"]
    numbers, stored_bytes = math.prod(shape), int(end - begin)
    if quantization.on_load is not None:
        made = ON_LOAD[quantization.on_load]
        if len(shape) != 2 or any(part in name for part in _NOT_QUANTIZED):
            return numbers * dtype_bytes
        blocks = shape[0] if made.block_weights is None else math.ceil(numbers / made.block_weights)
        return math.ceil(numbers * made.bytes_per_weight) + blocks * _SCALE_BYTES + _CODE_BYTES
    if quantization.keeps_bits:
        return max(numbers * dtype_bytes, stored_bytes) if entry["dtype"] in _FLOATS else stored_bytes
    # Narrow integers are packed into words of 32 bits.
    packed = 32 // _compressed_bits(quantization) if entry["dtype"] == "I32" else 1
    return numbers * packed * dtype_bytes


def _compressed_bits(quantization: Quantization) -> int:
    """Bits of the narrowest weights of a ``compressed-tensors`` checkpoint."""
    groups = quantization.config.get("config_groups", {})
    return min((int(group["weights"]["num_bits"]) for group in groups.values()), default=8)


def dtype_bytes_of(dtype: str) -> int:
    """Bytes of one number of a type that ``folders.resolve_dtype`` has named."""
    return DTYPE_BYTES[dtype]


def kv_number_bytes(folder: ModelFolder, dtype: str, kv_cache_dtype: KvCacheDtype) -> int:
    """Bytes of one number of a key or value; off the lean path they are kept in the model's own type."""
    is_lean = model_path(folder.config, is_quantized=folder.quantization is not None) == "lean"
    return KV_BYTES.get(kv_cache_dtype, dtype_bytes_of(dtype)) if is_lean else dtype_bytes_of(dtype)


def rotary_bytes(folder: ModelFolder, dtype: str, device: str) -> int:
    """Bytes of cosine and sine of all positions, which the lean path keeps on a device (``forward/rotary.py``)."""
    if device == "cpu" or model_path(folder.config, is_quantized=folder.quantization is not None) != "lean":
        return 0
    widths = 2 * head_width(folder.config) * dtype_bytes_of(dtype)
    return widths * (max_context(folder.config) or 0)


def rows_per_slice(vocab_size: int) -> int:
    """Positions that a device draws at a time: a matter of the vocabulary alone."""
    return max(LOGITS_PER_SLICE // vocab_size, 1)


def held_by_rounds(device: str, num_ranks: int) -> dict[str, int]:
    """Bytes that rounds hold whatever the batch, by name. Ranks capture none: their rounds are told, not replayed."""
    collectives, captured = (_COLLECTIVES_BYTES, {}) if num_ranks > 1 else ({}, _CAPTURED_BYTES)
    held = {"collectives": collectives, "captured rounds": captured, "draws": _DRAW_BYTES}
    return {name: by_device[device] for name, by_device in held.items() if by_device.get(device)}


def activation_bytes(config: Mapping[str, Any], dtype_bytes: int) -> int:
    """Bytes of one token inside a layer: residual, norms, q, k, v and output, and three MLP products at most."""
    hidden = named_size(config, "hidden_size", "n_embd")
    inner = int(config.get("intermediate_size") or config.get("ffn_dim") or config.get("n_inner") or 4 * hidden)
    return (8 * hidden + 3 * inner) * dtype_bytes


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the decoder; models of several modalities nest it."""
    inner: Mapping[str, Any] = config.get("text_config") or config
    return inner
