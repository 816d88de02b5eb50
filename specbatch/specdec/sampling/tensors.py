"""The sampling of a batch as tensors on the model's device, built once per change of the batch.

What decides which code runs (are there penalties, is any row truncated) is kept as host values, so that the decode loop
never reads a tensor to choose its way.

Shape letters: B rows, N scored positions, P committed tokens, J drafts of a window, V vocabulary, R distinct bias
profiles, S stop ids, F forced tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.forward.feed import on_device


@dataclass(frozen=True, slots=True)
class History:
    """The tokens before each position, which penalties count.

    Attributes:
        token_BP: int64 committed ids of each row, the prompt first; what lies beyond the length is stale and ignored.
        length_B: int64 committed tokens, at least 1. prompt_length_B: int64 tokens of the prompt.
        window_NJ: int64 drafts of the same window before this position, padded with -1.
    """

    token_BP: Tensor
    length_B: Tensor
    prompt_length_B: Tensor
    window_NJ: Tensor


@dataclass(frozen=True, slots=True)
class Positions:
    """Where the logits of a flat batch stand.

    Attributes:
        row_N: int64 index into the rows of ``SamplingTensors``.
        index_N: int64 index in the completion of the token that is drawn there.
        history: needed where ``SamplingTensors.needs_history``.
    """

    row_N: Tensor
    index_N: Tensor
    history: History | None = None

    def part(self, chosen: slice) -> Positions:
        """Those of some positions, with the histories of all rows."""
        history = self.history
        if history is not None:
            history = replace(history, window_NJ=history.window_NJ[chosen])
        return Positions(self.row_N[chosen], self.index_N[chosen], history)


@dataclass(frozen=True, slots=True)
class SamplingTensors:
    """Sampling of a batch of rows.

    Attributes:
        seed_B, top_k_B, min_new_tokens_B, num_forced_B, profile_B: int64; top_k 0 is off, also in rows that have no
            choice; profile_B picks the row of ``bias_RV``.
        temperature_B, top_p_B, log_min_p_B: float64; top_p 1 and log_min_p -inf are off.
        repetition_B, presence_B, frequency_B: float64 penalties.
        gain_B: float64, how much a penalty can enlarge a perturbation of the logits.
        bias_RV: float64 logit biases, -inf for tokens that are never drawn; None without any.
        stop_BS: int64 ids that ``min_new_tokens`` masks, padded with a repetition; None without any.
        forced_BF: int64 first tokens of completions, padded with 0; None without any.
        is_truncated_B: bool, rows with top-k, top-p or min-p at a temperature above 0.
        max_top_k: the largest top_k of a truncated row.
    """

    seed_B: Tensor
    top_k_B: Tensor
    min_new_tokens_B: Tensor
    num_forced_B: Tensor
    profile_B: Tensor
    temperature_B: Tensor
    top_p_B: Tensor
    log_min_p_B: Tensor
    repetition_B: Tensor
    presence_B: Tensor
    frequency_B: Tensor
    gain_B: Tensor
    bias_RV: Tensor | None
    stop_BS: Tensor | None
    forced_BF: Tensor | None
    is_truncated_B: Tensor
    is_random: bool
    has_truncation: bool
    has_untruncated: bool
    has_top_p: bool
    max_top_k: int
    has_penalties: bool
    has_counts: bool
    wants_logprobs: bool

    @property
    def needs_history(self) -> bool:
        """True where ``Positions.history`` must be given."""
        return self.has_penalties

    @property
    def has_changes(self) -> bool:
        """True where logits are changed before the temperature: by bias, bans, masks, forced tokens or penalties."""
        return self.has_penalties or not (self.bias_RV is None and self.stop_BS is None and self.forced_BF is None)

    @staticmethod
    def from_params(
        params: Sequence[SamplingParams], stop_ids: Sequence[tuple[int, ...]], device: torch.device, vocab_size: int
    ) -> SamplingTensors:
        """Collect the parameters of some rows, at least one, which ``check_vocabulary`` has let through.

        Args:
            stop_ids: for each row every id that ends it; ``min_new_tokens`` masks them.
            vocab_size: width of the logits that will be given.
        """

        masked = [
            tuple(token for token in stops if token < vocab_size) if row.min_new_tokens else ()
            for row, stops in zip(params, stop_ids, strict=True)
        ]
        profiles = {_profile(row): None for row in params}
        number = {profile: place for place, profile in enumerate(profiles)}
        has_bias = any(profile != ((), (), None) for profile in profiles)
        truncated = [is_truncated(row, vocab_size) for row in params]
        top_k = [row.top_k if cut and row.top_k < vocab_size else 0 for row, cut in zip(params, truncated, strict=True)]
        # What differs from row to row crosses in one copy for each type, and the host does not wait for it.
        whole_CB = on_device(
            np.array(
                [
                    [row.seed for row in params],
                    top_k,
                    [row.min_new_tokens if m else 0 for row, m in zip(params, masked, strict=True)],
                    [len(row.forced_token_ids) for row in params],
                    [number[_profile(row)] for row in params],
                ],
                dtype=np.int64,
            ),
            device,
        )
        real_CB = np.array(
            [
                [row.temperature for row in params],
                [row.top_p if cut else 1.0 for row, cut in zip(params, truncated, strict=True)],
                [row.min_p if cut else 0.0 for row, cut in zip(params, truncated, strict=True)],
                [row.repetition_penalty for row in params],
                [row.presence_penalty for row in params],
                [row.frequency_penalty for row in params],
                [max(row.repetition_penalty, 1 / row.repetition_penalty) for row in params],
            ],
            dtype=np.float64,
        )
        torch.from_numpy(real_CB[2]).log_()  # on the host: the same bits on every device
        seed_B, top_k_B, min_new_tokens_B, num_forced_B, profile_B = whole_CB.unbind()
        temperature_B, top_p_B, log_min_p_B, repetition_B, presence_B, frequency_B, gain_B = on_device(
            real_CB, device
        ).unbind()
        return SamplingTensors(
            seed_B=seed_B,
            top_k_B=top_k_B,
            min_new_tokens_B=min_new_tokens_B,
            num_forced_B=num_forced_B,
            profile_B=profile_B,
            temperature_B=temperature_B,
            top_p_B=top_p_B,
            log_min_p_B=log_min_p_B,
            repetition_B=repetition_B,
            presence_B=presence_B,
            frequency_B=frequency_B,
            gain_B=gain_B,
            bias_RV=_bias_table(list(profiles), vocab_size, device) if has_bias else None,
            stop_BS=_whole_table(masked, device) if any(masked) else None,
            forced_BF=_whole_table([row.forced_token_ids for row in params], device)
            if any(row.forced_token_ids for row in params)
            else None,
            is_truncated_B=on_device(np.array(truncated), device),
            is_random=any(row.temperature > 0 for row in params),
            has_truncation=any(truncated),
            has_untruncated=not all(truncated),
            has_top_p=any(row.top_p < 1 for row, cut in zip(params, truncated, strict=True) if cut),
            max_top_k=max(top_k),
            has_penalties=any(_has_penalty(row) for row in params),
            has_counts=any(row.presence_penalty != 0 or row.frequency_penalty != 0 for row in params),
            wants_logprobs=any(row.logprobs for row in params),
        )


def is_truncated(params: SamplingParams, vocab_size: int) -> bool:
    """True where top-k, top-p or min-p can leave tokens out of a draw that has a choice."""
    return params.temperature > 0 and (0 < params.top_k < vocab_size or params.top_p < 1 or params.min_p > 0)


_Profile = tuple[tuple[tuple[int, float], ...], tuple[int, ...], tuple[int, ...] | None]


def _profile(params: SamplingParams) -> _Profile:
    return params.logit_bias, params.banned_token_ids, params.allowed_token_ids


def _has_penalty(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


def _bias_table(profiles: Sequence[_Profile], vocab_size: int, device: torch.device) -> Tensor:
    bias_RV = torch.zeros((len(profiles), vocab_size), dtype=torch.float64)
    for place, (bias, banned, allowed) in enumerate(profiles):
        if allowed is not None:
            bias_RV[place] = -torch.inf
            bias_RV[place, list(allowed)] = 0.0
        if bias:
            bias_RV[place, [token for token, _ in bias]] += torch.tensor([b for _, b in bias], dtype=torch.float64)
        bias_RV[place, list(banned)] = -torch.inf
    return on_device(bias_RV.numpy(), device)


def _whole_table(rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    """int64 [B, widest] of ragged rows, padded with their own first entry (0 where they are empty)."""
    width = max(map(len, rows))
    padded = [(*row, *((row[0] if row else 0,) * (width - len(row)))) for row in rows]
    return on_device(np.array(padded, dtype=np.int64), device)
