"""What ``from_pretrained`` is told so that quantized weights are multiplied in the dtype that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from specbatch.specdec.models.quantization import Quantization


def loading_arguments(path: Path, quantization: Quantization, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` beside the usual ones.

    A checkpoint's own settings are followed in all that says what its weights are; compute dtypes are ours to say, and
    where ``Method.keeps_bits`` is false, weights are made whole as they are read.
    """
    arguments: dict[str, Any] = {}
    if quantization.method == "bitsandbytes":
        # Its quantizer takes the first GPU otherwise, whatever device was asked for.
        arguments["device_map"] = {"": "cpu"}
    if quantization.on_load is not None:
        arguments["quantization_config"] = _on_load_config(quantization, dtype)
        return arguments
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    settings = dict(config.quantization_config)
    if quantization.method == "bitsandbytes":
        settings["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
    if not quantization.keeps_bits:
        settings["dequantize"] = True
    config.quantization_config = settings
    arguments["config"] = config
    return arguments


def settle(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring what is not quantized to the compute dtype: some quantizers leave it as it lies in the files.

    Buffers are left alone, since rotary frequencies are float32 in every model.
    """
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _on_load_config(quantization: Quantization, dtype: torch.dtype) -> Any:
    if quantization.method == "bitsandbytes":
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**quantization.config, bnb_4bit_compute_dtype=dtype)
    from torchao import quantization as torchao
    from transformers import TorchAoConfig

    return TorchAoConfig(getattr(torchao, str(quantization.config["quant_type"]))())
