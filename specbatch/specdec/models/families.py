"""Which model families are decoded, what of their config matters here, and why the others are refused.

Pure functions of a parsed ``config.json``; nothing here imports torch. A family is listed when the tests hold its
greedy tokens equal to ``transformers`` ``generate`` as target and as draft. Everything else is refused by name: an
architecture that mixes rows, forgets tokens or reads other keys than we think gives wrong text without any error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.specdec.models import quantization

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """What the generic path must know of a family.

    Attributes:
        windows: sliding windows in no layer, in all layers where the config names one, or as ``layer_types`` says.
        attention: "own", or the one of the library's functions that the family's own attention code needs.
        context_length, kv_heads, head_width: the library's values where a config names none; kv_heads None means as
            many as attention heads, head_width None the hidden size divided among them.
    """

    windows: Literal["none", "all", "by_layer"] = "none"
    attention: Literal["own", "sdpa", "eager"] = "own"
    context_length: int | None = None
    kv_heads: int | None = None
    head_width: int | None = None


FAMILIES: dict[str, Family] = {
    "cohere": Family(),
    "cohere2": Family(windows="by_layer", head_width=128),
    "falcon": Family(attention="sdpa", context_length=2048),
    "gemma": Family(kv_heads=16, head_width=256),
    "gemma2": Family(windows="by_layer", kv_heads=4, head_width=256),
    "gemma3_text": Family(windows="by_layer", kv_heads=4, head_width=256),
    "glm": Family(kv_heads=2, head_width=128),
    "glm4": Family(kv_heads=2, head_width=128),
    "gpt2": Family(),
    "gpt_bigcode": Family(),
    "gpt_neox": Family(),
    "gptj": Family(attention="eager"),
    "granite": Family(),
    "granitemoe": Family(),
    "llama": Family(),
    "mistral": Family(windows="all", kv_heads=8),
    "mixtral": Family(windows="all", kv_heads=8),
    "olmo": Family(),
    "olmo2": Family(),
    "olmo3": Family(windows="by_layer"),
    "olmoe": Family(kv_heads=16),
    "opt": Family(),
    "phi": Family(),
    "phi3": Family(windows="all"),
    "qwen2": Family(windows="by_layer", kv_heads=32),
    "qwen2_moe": Family(windows="by_layer", kv_heads=16),
    "qwen3": Family(windows="by_layer", kv_heads=32, head_width=128),
    "qwen3_moe": Family(windows="all", kv_heads=4),
    "smollm3": Family(windows="by_layer", kv_heads=4),
    "stablelm": Family(kv_heads=32),
    "starcoder2": Family(windows="all", kv_heads=2),
}
SUPPORTED_MODEL_TYPES: tuple[str, ...] = tuple(FAMILIES)
"""Families whose greedy tokens the tests hold equal to ``transformers`` ``generate``; others are refused by name."""

# fmt: off
_RECURRENT = frozenset((
    "bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2",
    "lfm2_moe", "lfm3", "mamba", "mamba2", "minimax", "nemotron_h", "olmo_hybrid", "plamo2", "qwen3_5", "qwen3_5_moe",
    "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2",
))
_RECURRENT_LAYERS = ("linear", "mamba", "recurrent", "conv", "ssm", "rwkv", "delta", "hybrid")
_RECURRENT_KEYS = frozenset((
    "attn_layer_period", "block_types", "hybrid_override_pattern", "layers_block_type", "linear_num_key_heads",
    "mamba_d_state", "mamba_num_heads", "ssm_cfg", "ssm_state_size", "state_size",
))
_ENCODER_DECODER = frozenset((
    "bart", "bigbird_pegasus", "led", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5", "umt5", "whisper",
))
# fmt: on
_SHARED_KV = frozenset(("gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"))
_CHUNKED = frozenset(("llama4", "llama4_text"))
_MULTIMODAL_KEYS = frozenset(("vision_config", "audio_config", "text_config"))
_ROPE_TYPES = frozenset(("default", "linear", "llama3", "yarn", "dynamic", "longrope"))


LEAN_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Families that the lean path decodes: its logits and tokens are held against the unmodified modules."""

_LEAN_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def check_supported(name: str, config: Config) -> None:
    """Refuse what this package cannot decode exactly, and say why.

    Raises:
        SpecbatchError: JOB_MODEL_UNSUPPORTED.
    """
    kind = str(config.get("model_type"))
    reason = _structural_reason(kind, config)
    if reason is None and kind not in FAMILIES:
        reason = f"is not among the proved ones: {', '.join(SUPPORTED_MODEL_TYPES)}"
    if reason is None:
        reason = _layer_reason(FAMILIES[kind], config) or _detail_reason(kind, config)
    if reason is not None:
        raise SpecbatchError(ErrorCode.JOB_MODEL_UNSUPPORTED, f"{name}: its family {kind!r} {reason}")


def model_path(config: Config, *, is_quantized: bool = False) -> Literal["lean", "generic"]:
    """Which code decodes a model: it decides how sums are rounded, so it is part of a job's identity.

    Args:
        is_quantized: by its files or on loading; such weights are multiplied by the modules that hold them.
    """
    is_lean = (
        not is_quantized
        and config.get("model_type") in LEAN_MODEL_TYPES
        and config.get("hidden_act", "silu") == "silu"
        and not config.get("mlp_bias")
        and all(_rope_type(config, section) in _LEAN_ROPE_TYPES for section in _rope_sections(config))
    )
    return "lean" if is_lean else "generic"


def layer_windows(config: Any) -> dict[str, int | None]:
    """Keys that a token sees in each kind of layer, itself included; None means all before it.

    Args:
        config: the library's config object of a loaded model, with its defaults filled in.

    Returns:
        one entry for each kind of layer that the model has, by the name that it has in ``layer_types``.
    """
    family = FAMILIES.get(config.model_type, Family())
    window = getattr(config, "sliding_window", None) or None
    if family.windows == "by_layer":
        return {kind: window if kind == "sliding_attention" else None for kind in sorted(set(config.layer_types))}
    return {"full_attention": window if family.windows == "all" else None}


def max_context(config: Config) -> int | None:
    """Most positions, prompt and completion together, at which a row's text is its own affair; None if unnamed.

    Rotary frequencies of the kind "longrope" change for a whole batch when its longest row passes the original
    length, those of the kind "dynamic" with every length past ``max_position_embeddings``. The context ends before.
    """
    lengths = [config.get(key) for key in ("max_position_embeddings", "n_positions", "seq_length")]
    length = next((value for value in lengths if isinstance(value, int) and value > 0), None)
    if length is None:
        length = FAMILIES.get(str(config.get("model_type")), Family()).context_length
    for section in _rope_sections(config):
        if _rope_type(config, section) == "longrope":
            original = section.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
            length = min(length or 4096, int(original or 4096))
    return length


def kv_bytes_per_token(config: Config, dtype_bytes: int) -> int:
    """Bytes of keys and values that one token of a row takes in the slot cache, all layers together.

    Layers with a sliding window count in full: the cache keeps whole rows, which makes a window a matter of the mask.

    Raises:
        SpecbatchError: JOB_MODEL_UNSUPPORTED if the config lacks what decides it.
    """
    layers = named_size(config, "num_hidden_layers", "n_layer")
    return 2 * layers * num_kv_heads(config) * head_width(config) * dtype_bytes


def head_width(config: Config) -> int:
    """Numbers of one head's key or value."""
    family = FAMILIES.get(str(config.get("model_type")), Family())
    width = config.get("head_dim") or family.head_width
    return int(width or named_size(config, "hidden_size", "n_embd") // num_heads(config))


def num_heads(config: Config) -> int:
    """Attention heads of a layer."""
    return named_size(config, "num_attention_heads", "n_head")


def num_kv_heads(config: Config) -> int:
    """Heads whose keys and values the slot cache holds, in each layer."""
    kind, heads = config.get("model_type"), num_heads(config)
    if kind == "falcon":  # its newer architecture repeats the keys for all heads before the cache sees them
        is_single = config.get("multi_query", True) and not config.get("new_decoder_architecture", False)
        return 1 if is_single else heads
    if kind == "gpt_bigcode":
        return 1 if config.get("multi_query", True) else heads
    if kind in ("gpt2", "gpt_neox", "gptj", "opt"):
        return heads
    if "num_key_value_heads" in config:
        return int(config["num_key_value_heads"] or heads)
    return FAMILIES.get(str(kind), Family()).kv_heads or heads


def named_size(config: Config, *keys: str) -> int:
    """The first of some sizes that a config has; families name the same thing differently.

    Raises:
        SpecbatchError: JOB_MODEL_UNSUPPORTED if it has none of them.
    """
    for key in keys:
        if isinstance(config.get(key), int) and config[key] > 0:
            return int(config[key])
    raise SpecbatchError(ErrorCode.JOB_MODEL_UNSUPPORTED, f"config.json names no {keys[0]}; fetch the model again")


def _structural_reason(kind: str, config: Config) -> str | None:
    """Why a whole class of architectures cannot work."""
    text = config.get("text_config")
    parts = [config, text] if isinstance(text, Mapping) else [config]
    layer_kinds = {str(layer) for part in parts for layer in part.get("layer_types") or ()}
    recurrent = sorted(layer for layer in layer_kinds if any(word in layer for word in _RECURRENT_LAYERS))
    if kind in _RECURRENT or recurrent or any(_RECURRENT_KEYS & part.keys() for part in parts):
        named = f" ({', '.join(recurrent)})" if recurrent else ""
        return f"has recurrent layers{named}, whose state cannot take back a refused draft; use attention layers only"
    if config.get("is_encoder_decoder") or kind in _ENCODER_DECODER:
        return "is an encoder with a decoder; only decoders of text are run here"
    if kind in _SHARED_KV or any(part.get("num_kv_shared_layers") for part in parts):
        return "shares keys and values between layers, which the slot cache does not"
    if kind in _CHUNKED or "chunked_attention" in layer_kinds or any(p.get("attention_chunk_size") for p in parts):
        return "attends in chunks, which no test here proves"
    if _MULTIMODAL_KEYS & config.keys():
        return "reads more than text; use the text model alone"
    return None


def _layer_reason(family: Family, config: Config) -> str | None:
    """Why the kinds of layers that the config names do not go with its family."""
    layer_kinds = {str(layer) for layer in config.get("layer_types") or ()}
    unknown = sorted(layer_kinds - {"full_attention", "sliding_attention"})
    if unknown:
        return f"names layers of the type {unknown[0]!r}, which are not decoded"
    if "sliding_attention" in layer_kinds:
        if family.windows != "by_layer":
            return "names sliding_attention in layer_types, which its code in transformers does not read"
        if config.get("sliding_window", 1) is None or not config.get("use_sliding_window", True):
            return "names sliding_attention in layer_types and no sliding_window"
    return None


def _detail_reason(kind: str, config: Config) -> str | None:
    """Why a variant of a supported family is not decoded."""
    if kind == "falcon" and config.get("alibi"):
        return "with alibi adds position biases that know one length for all rows"
    if config.get("use_bidirectional_attention"):
        return "attends to later tokens here (use_bidirectional_attention)"
    if config.get("add_cross_attention"):
        return "attends to an encoder here (add_cross_attention)"
    if isinstance(config.get("quantization_config"), Mapping) and (reason := quantization.refusal(config)):
        return reason
    for section in _rope_sections(config):
        if _rope_type(config, section) not in _ROPE_TYPES:
            return f"has rotary positions of the type {_rope_type(config, section)!r}, which are not decoded"
    return None


def _rope_sections(config: Config) -> Iterator[Mapping[str, Any]]:
    """The rotary settings, one section for each kind of layer where they differ."""
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key)
        if isinstance(value, Mapping):
            nested = [section for section in value.values() if isinstance(section, Mapping)]
            yield from nested or [value]


def _rope_type(config: Config, section: Mapping[str, Any]) -> str:
    kind = str(section.get("rope_type") or section.get("type") or "default")
    if kind == "su" or (kind == "yarn" and config.get("model_type") == "phi3"):  # older names of the same
        return "longrope"
    return kind
