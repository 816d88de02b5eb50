"""One resident model: forwards over slots, and the canonical evaluation of one prefix.

Shape letters: B rows, T tokens per row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.specdec import attention, packing
from specbatch.specdec.cache import SlotCache


class ModelRunner:
    """A model with its slot cache.

    Args:
        model: a causal language model of ``transformers``, in eval mode, loaded with our attention function.
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

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights, shared ones counted once."""
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
            attention_mask=attention.visibility_mask(position_BT, num_keys, self.dtype),
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
        with _single_threaded(self.device):
            output = self.model(
                input_ids=token_T.unsqueeze(0),
                position_ids=torch.arange(token_T.shape[0], device=token_T.device).unsqueeze(0),
                use_cache=False,
                logits_to_keep=1,
            )
        logits: Tensor = output.logits[0, -1, : self.vocab_size]
        return logits


def load_model(path: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Load safetensors weights from a folder that ``models.locate_model`` has passed, packed where that can be.

    Raises:
        SpecbatchError: JOB_MODEL_LOAD with the cause in one line.
    """
    attention.register()
    shows_progress = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=attention.ATTENTION_NAME,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
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
    model.to(device).eval().requires_grad_(False)
    if packing.can_pack(device, dtype):
        packing.pack_linears(model)
    return model


@contextmanager
def _single_threaded(device: torch.device) -> Iterator[None]:
    """Sums may be split differently over another number of threads; canonical evaluation must not depend on it."""
    if device.type != "cpu":
        yield
        return
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
