"""Quantized weights: which methods are decoded, what of a checkpoint's settings matters, and why others are refused.

Pure functions of a parsed ``quantization_config``; nothing here imports torch. The rule is that activations stay in the
compute dtype. A method that rounds them onto a grid turns the last bit, in which batch shapes differ, into a whole step
of that grid: row by row 1,200 times epsilon was measured, so near ties could not be told from plain differences.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specbatch.schemas.errors import ErrorCode, SpecbatchError


@dataclass(frozen=True, slots=True)
class Method:
    """One method that is decoded.

    Attributes:
        packages: import names of what ``transformers`` needs for it, beside itself.
        devices: where the tests have run it.
        keeps_bits: whether weights stay small in memory; else they are made whole, in the compute dtype, on loading.
    """

    packages: tuple[str, ...]
    devices: tuple[str, ...]
    keeps_bits: bool


METHODS: dict[str, Method] = {
    "bitsandbytes": Method(("bitsandbytes", "accelerate"), ("cpu",), keeps_bits=True),
    "compressed-tensors": Method(("compressed_tensors",), ("cpu", "cuda"), keeps_bits=False),
    "fp8": Method(("accelerate",), ("cpu", "cuda"), keeps_bits=False),
    "torchao": Method(("torchao",), ("cpu",), keeps_bits=True),
}
"""By ``quant_method``. What is made whole on loading is a dense model like any other, and runs where those do."""


@dataclass(frozen=True, slots=True)
class OnLoad:
    """One way to quantize dense weights while they are loaded.

    Attributes:
        method: key of ``METHODS``. config: what defines it, in words of ``transformers``; part of a job's identity.
        bytes_per_weight: of a quantized matrix; block_weights: weights that share one scale, None for a row.
    """

    method: str
    config: Mapping[str, Any]
    bytes_per_weight: float
    block_weights: int | None


ON_LOAD: dict[str, OnLoad] = {
    "torchao-int8": OnLoad("torchao", {"quant_type": "Int8WeightOnlyConfig"}, 1, None),
    "torchao-float8": OnLoad("torchao", {"quant_type": "Float8WeightOnlyConfig"}, 1, None),
    "bitsandbytes-nf4": OnLoad("bitsandbytes", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 0.5, 64),
}
"""By the name that ``--quantization`` takes. All leave embeddings, norms and the output head as they are."""

QUANTIZED_FAMILIES = (
    "cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt_neox", "granite", "llama", "mistral",
    "olmo", "olmo2", "olmo3", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
"""Families whose quantized form the tests hold equal to its slow twin: those whose layers are plain linear ones."""

_PLAIN_TYPES = {"Int8WeightOnlyConfig", "Float8WeightOnlyConfig"}
_FORMATS = ("pack-quantized", "int-quantized", "float-quantized")
_ACTIVATIONS = (
    "rounds activations too, which makes a difference in the last bit, as batch shapes make it, a whole step: the text "
    "of a row would depend on its batch mates"
)
_REFUSED: dict[str, str] = {
    "awq": "needs gptqmodel, which brings CUDA and another torch",
    "bitnet": _ACTIVATIONS,
    "fbgemm_fp8": _ACTIVATIONS,
    "fp_quant": _ACTIVATIONS,
    "gptq": "needs gptqmodel, which brings CUDA and another torch",
    "hqq": "cannot be loaded by this transformers",
    "mxfp4": "needs kernels that no test here has run",
    "nvfp4": "needs kernels that no test here has run",
    "quanto": "cannot be stored by this transformers, so that no test here has run it",
}


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the weights of one model are quantized.

    Attributes:
        method: key of ``METHODS``. config: the checkpoint's own settings, or those of ``ON_LOAD``.
        on_load: the name of ``ON_LOAD`` that is applied; None where the files are quantized.
    """

    method: str
    config: Mapping[str, Any]
    on_load: str | None = None

    @property
    def keeps_bits(self) -> bool:
        """Whether weights stay small in memory."""
        return METHODS[self.method].keeps_bits

    def document(self) -> dict[str, Any]:
        """As identity and manifest show it."""
        return {
            "method": self.method,
            "config": dict(self.config),
            "applied": "in the files" if self.on_load is None else "on loading",
            "weights": "quantized" if self.keeps_bits else "dequantized",
        }

    def describe(self) -> str:
        """In a few words."""
        how = self.on_load or f"{self.method} in the files"
        return how if self.keeps_bits else f"{how}, made whole on loading"


def find_quantization(name: str, config: Mapping[str, Any], on_load: str | None) -> Quantization | None:
    """How a model is quantized: by its files, or by what is asked for.

    Args:
        name: of the model, for messages. config: its ``config.json``, which ``check_supported`` has passed.
        on_load: name of ``ON_LOAD``, None to take the files as they are.

    Raises:
        SpecbatchError: JOB_CONFIG, unknown name, or files that are quantized already; JOB_MODEL_UNSUPPORTED.
    """
    stored = config.get("quantization_config")
    if on_load is None:
        return Quantization(str(stored["quant_method"]), dict(stored)) if isinstance(stored, Mapping) else None
    if on_load not in ON_LOAD:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG, f"quantization {on_load!r} is not known; choose from {', '.join(sorted(ON_LOAD))}"
        )
    if isinstance(stored, Mapping):
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"{name} is quantized already ({stored.get('quant_method')}); leave --quantization {on_load} out",
        )
    if reason := family_reason(config):
        raise SpecbatchError(
            ErrorCode.JOB_MODEL_UNSUPPORTED, f"{name}: its family {config.get('model_type')!r} {reason}"
        )
    return Quantization(ON_LOAD[on_load].method, ON_LOAD[on_load].config, on_load)


def family_reason(config: Mapping[str, Any]) -> str | None:
    """Why a family is not decoded in a quantized form."""
    if config.get("model_type") in QUANTIZED_FAMILIES:
        return None
    return "is not proved with quantized weights; use the dense weights, without --quantization"


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a checkpoint's quantization is not decoded; None where it is.

    Args:
        config: the ``config.json`` of a quantized checkpoint.
    """
    settings = config["quantization_config"]
    method = str(settings.get("quant_method"))
    reason = _method_reason(method, settings)
    if reason is not None:
        return f"is quantized here ({method}), and that method {reason}; use the weights it was made from"
    return family_reason(config)


def _method_reason(method: str, settings: Mapping[str, Any]) -> str | None:
    if method not in METHODS:
        return _REFUSED.get(method, "is not among the proved ones: " + ", ".join(sorted(METHODS)))
    if method == "bitsandbytes":
        return (
            None if settings.get("load_in_4bit") and not settings.get("load_in_8bit") else f"in 8 bits {_ACTIVATIONS}"
        )
    if method == "fp8":
        known = settings.get("activation_scheme", "dynamic") == "dynamic" and isinstance(
            settings.get("weight_block_size", [128, 128]), list
        )
        special = settings.get("scale_fmt") or settings.get("modules_to_convert")
        return None if known and not special else "is proved with block scales and no other settings only"
    if method == "torchao":
        return _torchao_reason(settings)
    return _compressed_reason(settings)


def _torchao_reason(settings: Mapping[str, Any]) -> str | None:
    kind = _torchao_type(settings)
    if "Dynamic" in kind or "Static" in kind:
        return f"as {kind} {_ACTIVATIONS}"
    if kind not in _PLAIN_TYPES:
        return f"as {kind or 'it is given here'} is not proved, only as {' and '.join(sorted(_PLAIN_TYPES))}"
    if settings.get("include_input_output_embeddings"):
        return "is not proved with quantized embeddings"
    return None


def _torchao_type(settings: Mapping[str, Any]) -> str:
    kind = settings.get("quant_type")
    default = kind.get("default") if isinstance(kind, Mapping) else None
    return str(default.get("_type", "")) if isinstance(default, Mapping) else ""


def _compressed_reason(settings: Mapping[str, Any]) -> str | None:
    groups = settings.get("config_groups")
    if settings.get("format") not in _FORMATS or not isinstance(groups, Mapping) or not groups:
        return f"is proved in the formats {', '.join(_FORMATS)} only"
    for extra in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if settings.get(extra):
            return f"with a {extra} is not proved"
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping) or weights.get("num_bits") not in (4, 8):
            return "is proved with 4 and 8 bits only"
        if not weights.get("symmetric", True) or weights.get("actorder"):
            return "is proved with symmetric weights in their own order only"
    return None


def check_dtype(name: str, config: Mapping[str, Any], quantization: Quantization | None, dtype: str) -> None:
    """Refuse a compute dtype that the weights cannot be multiplied in.

    Args:
        dtype: resolved, never ``auto``.

    Raises:
        SpecbatchError: JOB_CONFIG.
    """
    if quantization is None or not quantization.keeps_bits:
        return
    if dtype == "float64":
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"{name} is quantized ({quantization.method}), which is not for float64; use --dtype float32",
        )
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    is_float8 = quantization.on_load is None and _torchao_type(quantization.config) == "Float8WeightOnlyConfig"
    if is_float8 and dtype != stored:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG, f"the float8 weights of {name} are multiplied in {stored} only; give --dtype {stored}"
        )


def check_device(name: str, quantization: Quantization | None, device: str) -> None:
    """Refuse a device that a method was not proved on.

    Raises:
        SpecbatchError: JOB_MODEL_UNSUPPORTED.
    """
    if quantization is not None and device not in METHODS[quantization.method].devices:
        places = " and ".join(METHODS[quantization.method].devices)
        raise SpecbatchError(
            ErrorCode.JOB_MODEL_UNSUPPORTED,
            f"{name} is quantized ({quantization.describe()}), which is proved on {places} only, not on {device}; "
            f"use --device {METHODS[quantization.method].devices[0]}, or the dense weights",
        )


def check_ranks(name: str, quantization: Quantization | None, num_ranks: int) -> None:
    """Refuse a quantized target that several devices shall share: no plan divides what a quantizer has made.

    Raises:
        SpecbatchError: JOB_CONFIG.
    """
    if quantization is None or num_ranks == 1:
        return
    if quantization.on_load is not None:
        text = (
            "quantized weights are for one device; leave out --tensor-parallel-size or "
            f"--quantization {quantization.on_load}"
        )
    else:
        text = (
            f"{name} is quantized ({quantization.describe()}), and quantized weights are for one device; leave out "
            "--tensor-parallel-size, or use the weights it was made from"
        )
    raise SpecbatchError(ErrorCode.JOB_CONFIG, text)


def check_packages(name: str, quantization: Quantization | None) -> None:
    """Refuse a method whose packages are not installed here.

    Raises:
        SpecbatchError: JOB_PACKAGE_MISSING with what to install.
    """
    if quantization is None:
        return
    absent = [package for package in METHODS[quantization.method].packages if importlib.util.find_spec(package) is None]
    if absent:
        names = " ".join(package.replace("_", "-") for package in absent)
        raise SpecbatchError(
            ErrorCode.JOB_PACKAGE_MISSING,
            f"{name} is quantized ({quantization.describe()}) and needs what is not installed here: {names}; run "
            f"pip install {names}",
        )
