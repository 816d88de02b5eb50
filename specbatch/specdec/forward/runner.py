"""One resident model: forwards over slots, and the canonical evaluation of one prefix.

Shape letters: B rows, T tokens per row, V vocabulary.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
from transformers.utils import logging as hf_logging

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.specdec.forward.cache import SlotCache
from specbatch.specdec.forward.threads import single_threaded
from specbatch.specdec.kernels import attention, packing
from specbatch.specdec.models import families
from specbatch.specdec.models.quantization import Quantization, check_packages
from specbatch.specdec.models.quantized_loading import loading_arguments, settle


class ModelRunner:
    """A model with its slot cache.

    Args:
        model: a causal language model of ``transformers``, in eval mode, loaded with ``attention_name``.
        num_slots: rows that may be in flight.
        max_positions: positions of a slot.
        context_length: positions that the model knows; scored positions beyond it belong to drafts that are ignored.
        vocab_size: real vocabulary; logits of padding rows behind it are cut off.
    """

    def __init__(self, model: Any, *, num_slots: int, max_positions: int, context_length: int, vocab_size: int) -> None:
        self.model = model
        self.context_length = context_length
        self.vocab_size = vocab_size
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.cache = SlotCache(int(model.config.num_hidden_layers), num_slots, max_positions)
        self._windows = families.layer_windows(model.config)
        # Classes with attention code of their own take None for "all keys", ours for "causal".
        self._may_omit_masks = attention_name(model.config.model_type) == attention.ATTENTION_NAME
        _fix_rotary_frequencies(model)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights on this device, shared ones counted once."""
        return packing.weight_bytes(self.model)

    @torch.inference_mode()
    def forward(
        self, token_BT: Tensor, position_BT: Tensor, first_slot: int, num_keys: int, logits_to_keep: int | Tensor
    ) -> Tensor:
        """Run tokens at explicit positions of consecutive slots.

        Args:
            token_BT, position_BT: int64 ids and where they stand in their rows.
            first_slot: slot of row 0; row b is in slot ``first_slot + b``.
            num_keys: keys to read, at least the largest position + 1.
            logits_to_keep: the last so many tokens, or indices into T.

        Returns:
            logits [B, kept, V] in the model's dtype.
        """
        self.cache.begin(first_slot, position_BT, num_keys)
        output = self.model(
            input_ids=token_BT,
            position_ids=position_BT.clamp(max=self.context_length - 1),
            attention_mask=attention.layer_masks(self._windows, position_BT, num_keys, self.dtype),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        logits: Tensor = output.logits[..., : self.vocab_size]
        return logits

    @torch.inference_mode()
    def canonical_logits(self, token_T: Tensor) -> Tensor:
        """Logits [V] behind one whole prefix, evaluated alone: batch 1, no cache, one thread on CPU.

        The shapes depend on the prefix only, so every run that asks for this prefix gets the same bits.
        """
        num_tokens = token_T.shape[0]
        position_1T = torch.arange(num_tokens, device=token_T.device).unsqueeze(0)
        with single_threaded(self.device):
            output = self.model(
                input_ids=token_T.unsqueeze(0),
                position_ids=position_1T,
                attention_mask=attention.layer_masks(
                    self._windows, position_1T, num_tokens, self.dtype, may_omit=self._may_omit_masks
                ),
                use_cache=False,
                logits_to_keep=1,
            )
        logits: Tensor = output.logits[0, -1, : self.vocab_size]
        return logits


def attention_name(model_type: str) -> str:
    """What to load a family with: our attention function, or the library's for classes that do not take one."""
    family = families.FAMILIES.get(model_type, families.Family())
    return attention.ATTENTION_NAME if family.attention == "own" else family.attention


def experts_name(dtype: torch.dtype) -> str | None:
    """How a mixture of experts is computed: the library's grouped product, but the loop where that lacks the dtype.

    Either way a token's experts and their sum are its own affair and no token is dropped; the loop asks the device
    which experts are wanted, once per layer.
    """
    return "eager" if dtype == torch.float64 else None


def load_model(
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization | None = None,
    *,
    num_ranks: int = 1,
) -> Any:
    """Load safetensors weights from a folder that ``folders.locate_model`` has passed.

    Args:
        dtype: of all arithmetic; weights that stay quantized are multiplied in it.
        quantization: of ``ModelFolder``.
        num_ranks: processes that divide the model by the library's plan; this one, whose process group stands, loads
            its share.

    Raises:
        SpecbatchError: JOB_MODEL_LOAD with the cause in one line; JOB_PACKAGE_MISSING.
    """
    check_packages(f"the model in {path}", quantization)
    attention.register()
    shows_progress = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=attention_name(json.loads((path / "config.json").read_bytes())["model_type"]),
            experts_implementation=experts_name(dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **({} if quantization is None else loading_arguments(path, quantization, dtype)),
            distributed_config=None if num_ranks == 1 else DistributedConfig(tp_size=num_ranks, tp_plan="auto"),
        )
    except Exception as error:  # the libraries raise many types here, all of which mean the same to the user
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpecbatchError(ErrorCode.JOB_MODEL_LOAD, f"the model in {path} cannot be loaded: {first_line}") from error
    finally:
        if shows_progress:
            hf_logging.enable_progress_bar()
    # The library fills what a file lacks with random numbers and goes on; a target like that would say nonsense.
    absent = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
    if absent:
        raise SpecbatchError(
            ErrorCode.JOB_MODEL_LOAD,
            f"the model in {path} lacks weights that its config.json calls for ({absent[0]}, {len(absent)} in all); "
            "fetch the model again",
        )
    if quantization is not None:
        settle(model, dtype)
    if num_ranks == 1:
        model.to(device)
    model.eval().requires_grad_(False)
    return model


def give_back_memory(device: torch.device) -> None:
    """Free what nobody uses any more: a model of which only its own cycles are left, and the pool of a GPU.

    A load that failed leaves both behind, and what is free then decides how many rows the next one plans for.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _fix_rotary_frequencies(model: Any) -> None:
    """Keep the frequencies that rotary embeddings start with.

    The kinds "dynamic" and "longrope" recompute them for the longest row of a batch: a row's text would depend on its
    batch mates, and the device would be asked for that length at every step. ``models.families.max_context`` ends where
    they would change, so that nothing is lost.
    """
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, str):
            module.rope_type = "default"
        elif isinstance(kind, dict):
            module.rope_type = dict.fromkeys(kind, "default")
