"""What happens to logits before a token is drawn: the one sampling transform, for target and draft, at every position.

The order:

1. logit bias; banned and not allowed tokens, stop ids below ``min_new_tokens`` and everything but a forced token fall
   to -inf;
2. repetition penalty over prompt and completion, then frequency and presence penalty over the completion, counted in
   the position's own history: the committed tokens and the drafts before it in the window;
3. temperature; 4. top-k; 5. top-p over what top-k left; 6. min-p.

Steps 1 and 2 are computed in float64 and rounded once, so that float32 logits differ from the exact result by half a
unit in the last place. Steps 4 to 6 are thresholds on logits ("keep everything at or above"), so ties with a border are
kept and the transform of a row is described by one number.

Probabilities are added as whole numbers. In what order a library adds depends on how many rows there are, and rounding
on the order; whole numbers give the same sum in any.

Penalties are derived from the tokens each time. Nothing is stored that an accepted or refused draft could leave stale.

Shape letters: B rows, N scored positions, V vocabulary, P committed tokens, J drafts of a window, W sorted prefix,
S stop ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specbatch.specdec.sampling.tensors import History, Positions, SamplingTensors

MIN_TEMPERATURE = 0.01
"""Smallest temperature above 0 that ``SamplingParams`` admits; the bound of divisions in rows that are greedy."""

FLOAT32_SLACK = 1e-5
"""Bound on the error of a probability whose normaliser was summed over float32 terms."""


def changed_logits(logits_NV: Tensor, positions: Positions, sampling: SamplingTensors) -> Tensor:
    """Steps 1 and 2.

    Args:
        logits_NV: raw logits, float32 or float64; not written to.

    Returns:
        [N, V] in the dtype of the logits; the logits themselves where nothing is asked for.
    """
    if not sampling.has_changes:
        return logits_NV
    row_N = positions.row_N
    bias_NV = None
    if sampling.bias_RV is None:
        out_NV = logits_NV.clone()
    else:
        # One profile for all rows is the common case; it needs no copy per position.
        is_shared = sampling.bias_RV.shape[0] == 1
        bias_NV = sampling.bias_RV.expand(len(row_N), -1) if is_shared else sampling.bias_RV[sampling.profile_B[row_N]]
        out_NV = (logits_NV + bias_NV).to(logits_NV.dtype)
    if sampling.has_penalties:
        if positions.history is None:
            raise ValueError("rows with penalties need a history")
        _penalise_(out_NV, logits_NV, bias_NV, positions.row_N, positions.history, sampling)
    if sampling.stop_BS is not None:
        stop_NS = sampling.stop_BS[row_N]
        is_early_N1 = (positions.index_N < sampling.min_new_tokens_B[row_N]).unsqueeze(-1)
        out_NV.scatter_(-1, stop_NS, out_NV.gather(-1, stop_NS).masked_fill(is_early_N1, -torch.inf))
    if sampling.forced_BF is not None:
        index_N = positions.index_N.clamp(max=sampling.forced_BF.shape[1] - 1)
        token_N1 = sampling.forced_BF[row_N, index_N].unsqueeze(-1)
        is_forced_N1 = (positions.index_N < sampling.num_forced_B[row_N]).unsqueeze(-1)
        value_N1 = torch.where(is_forced_N1, logits_NV.gather(-1, token_N1), out_NV.gather(-1, token_N1))
        out_NV = out_NV.masked_fill(is_forced_N1, -torch.inf).scatter_(-1, token_N1, value_N1)
    return out_NV


def _penalise_(
    out_NV: Tensor,
    logits_NV: Tensor,
    bias_NV: Tensor | None,
    row_N: Tensor,
    history: History,
    sampling: SamplingTensors,
) -> None:
    """Write the penalised logits of all tokens in the history; only they can change.

    Entries that are not there point to a token that is, and write the same value to it once more.
    """
    place_P = torch.arange(history.token_BP.shape[1], device=row_N.device)
    is_there_BP = place_P < history.length_B.unsqueeze(-1)
    token_BP = torch.where(is_there_BP, history.token_BP, history.token_BP[:, :1])
    is_completion_BP = is_there_BP & (place_P >= history.prompt_length_B.unsqueeze(-1))
    token_NP, window_NJ = token_BP[row_N], history.window_NJ
    is_draft_NJ = window_NJ >= 0
    window_NJ = torch.where(is_draft_NJ, window_NJ, token_NP[:, :1])
    count_NP = count_NJ = None
    if sampling.has_counts:
        count_BV = torch.zeros((len(token_BP), logits_NV.shape[1]), dtype=torch.float64, device=row_N.device)
        count_BV.scatter_add_(-1, token_BP, is_completion_BP.to(torch.float64))
        count_NP = count_BV.gather(-1, token_BP)[row_N]
        is_same_NJJ = (window_NJ.unsqueeze(-1) == window_NJ.unsqueeze(-2)) & is_draft_NJ.unsqueeze(-2)
        count_NJ = count_BV[row_N.unsqueeze(-1), window_NJ] + is_same_NJJ.sum(dim=-1)

    def write(token_NX: Tensor, count_NX: Tensor | None) -> None:
        value_NX = logits_NV.gather(-1, token_NX).to(torch.float64)
        if bias_NV is not None:
            value_NX = value_NX + bias_NV.gather(-1, token_NX)
        repetition_N1 = sampling.repetition_B[row_N].unsqueeze(-1)
        value_NX = torch.where(value_NX > 0, value_NX / repetition_N1, value_NX * repetition_N1)
        if count_NX is not None:
            value_NX = value_NX - sampling.frequency_B[row_N].unsqueeze(-1) * count_NX
            value_NX = value_NX - sampling.presence_B[row_N].unsqueeze(-1) * (count_NX > 0)
        out_NV.scatter_(-1, token_NX, value_NX.to(out_NV.dtype))

    write(token_NP, count_NP)
    write(window_NJ, count_NJ)  # later, because only here drafts are counted


@dataclass(frozen=True, slots=True)
class Limits:
    """Truncation of each position.

    Attributes:
        temperature_N: float64, at least ``MIN_TEMPERATURE``. top_k_N: int64, 0 is off.
        top_p_N, log_min_p_N: float64, 1 and -inf are off.
        epsilon_N: float64, how far two changed logits can move against each other; 0 asks for no test of near ties.
    """

    temperature_N: Tensor
    top_k_N: Tensor
    top_p_N: Tensor
    log_min_p_N: Tensor
    epsilon_N: Tensor

    def select(self, chosen_M: Tensor) -> Limits:
        """Those of some positions."""
        return Limits(
            self.temperature_N[chosen_M],
            self.top_k_N[chosen_M],
            self.top_p_N[chosen_M],
            self.log_min_p_N[chosen_M],
            self.epsilon_N[chosen_M],
        )


@dataclass(frozen=True, slots=True)
class KeptSet:
    """The most likely tokens of each position and which of them truncation keeps.

    Attributes:
        value_NW: float64 changed logits in descending order. token_NW: their ids.
        border_N: what is at or above is kept.
        loose_N: what is at or above could be kept after a perturbation of ``epsilon_N``.
        is_covered_N: bool; the prefix holds every token that could matter. False calls for a wider one.
        weight_NW, tight_norm_N: int64 and float64 weights and their sum, in units of 2 ** -``num_bits``.
    """

    value_NW: Tensor
    token_NW: Tensor
    border_N: Tensor
    loose_N: Tensor
    is_covered_N: Tensor
    weight_NW: Tensor
    tight_norm_N: Tensor
    slack_N: Tensor
    num_bits: int


def keep(logits_NV: Tensor, limits: Limits, *, width: int, has_top_p: bool) -> KeptSet:
    """Find the borders from the ``width`` most likely tokens.

    Args:
        logits_NV: changed logits, float32 or float64. width: above every top_k, at most V.
        has_top_p: some position has top_p below 1.

    When two logits move against each other by at most epsilon, so do the k-th largest and a token beside it, and the
    odds of any set of tokens change by a factor within exp(epsilon / T), its probability by less than epsilon / T.
    """
    V = logits_NV.shape[1]
    is_whole, num_bits = width == V, fraction_bits(V)
    value_NW, token_NW = logits_NV.sort(dim=-1, descending=True) if is_whole else logits_NV.topk(width, dim=-1)
    value_NW = value_NW.to(torch.float64)
    best_N1 = value_NW[:, :1]
    temperature_N1, epsilon_N = limits.temperature_N.unsqueeze(-1), limits.epsilon_N
    is_top_k_N = limits.top_k_N > 0
    kth_N = value_NW.gather(-1, (limits.top_k_N.unsqueeze(-1) - 1).clamp(min=0)).squeeze(-1)
    kth_N = torch.where(is_top_k_N, kth_N, -torch.inf)
    min_p_border_N = best_N1.squeeze(-1) + limits.temperature_N * limits.log_min_p_N
    border_N = torch.maximum(kth_N, min_p_border_N)
    loose_N = border_N - epsilon_N
    weight_NW = slack_N = tight_norm_N = torch.empty(0, device=value_NW.device)
    last_N = torch.full_like(kth_N, -torch.inf) if is_whole else value_NW[:, -1]
    is_covered_N = loose_N - epsilon_N > last_N
    if has_top_p:
        weight_NW = whole_numbers(((value_NW - best_N1) / temperature_N1).exp_(), num_bits)
        before_NW = weight_NW.cumsum(dim=-1).sub_(weight_NW)
        norm_N = _norm(logits_NV, best_N1, temperature_N1, num_bits)
        is_top_p_N = limits.top_p_N < 1
        rounding = FLOAT32_SLACK if logits_NV.dtype == torch.float32 else V * 2.0**-num_bits
        slack_N = epsilon_N / limits.temperature_N + rounding * (epsilon_N > 0)

        def norm_above(floor_N: Tensor) -> Tensor:
            kept_NW = weight_NW * (value_NW >= floor_N.unsqueeze(-1))
            return torch.where(is_top_k_N, kept_NW.sum(dim=-1), norm_N).to(torch.float64)

        def last_kept(limit_N: Tensor) -> Tensor:
            count_N1 = (before_NW < limit_N.unsqueeze(-1)).sum(dim=-1, keepdim=True).clamp(min=1)
            return torch.where(is_top_p_N, value_NW.gather(-1, count_N1 - 1).squeeze(-1), -torch.inf)

        tight_norm_N = norm_above(kth_N + epsilon_N)
        top_p_border_N = last_kept(limits.top_p_N * norm_above(kth_N))
        loose_p_N = last_kept((limits.top_p_N + slack_N) * norm_above(kth_N - epsilon_N)) - epsilon_N
        # Ties with the k-th belong to the norm: they too must be within the prefix.
        is_covered_N = ~is_top_k_N | (kth_N - epsilon_N > last_N)
        border_N, loose_N = torch.maximum(border_N, top_p_border_N), torch.maximum(loose_N, loose_p_N)
        is_covered_N = is_covered_N & (loose_N - epsilon_N > last_N)
    # Behind the last token that can be drawn at all there is nothing to miss.
    is_covered_N = is_covered_N | (last_N == -torch.inf)
    return KeptSet(value_NW, token_NW, border_N, loose_N, is_covered_N, weight_NW, tight_norm_N, slack_N, num_bits)


def is_surely_kept(kept: KeptSet, value_N: Tensor, limits: Limits) -> Tensor:
    """True where a token of this logit, of the prefix, stays kept under every perturbation below epsilon.

    The worst case lets every token that is not clearly less likely come before it.
    """
    value_N1, epsilon_N1 = value_N.unsqueeze(-1), limits.epsilon_N.unsqueeze(-1)
    may_precede_NW = kept.value_NW >= value_N1 - epsilon_N1
    num_before_N = may_precede_NW.sum(dim=-1) - 1
    is_kept_N = (limits.top_k_N == 0) | (num_before_N < limits.top_k_N)
    best_N = kept.value_NW[:, 0]
    is_kept_N &= value_N - limits.epsilon_N >= best_N + limits.temperature_N * limits.log_min_p_N
    if kept.weight_NW.numel():
        own_N = whole_numbers(((value_N - best_N) / limits.temperature_N).exp_(), kept.num_bits)
        mass_N = (kept.weight_NW * may_precede_NW).sum(dim=-1) - own_N
        is_kept_N &= (limits.top_p_N == 1) | (mass_N < (limits.top_p_N - kept.slack_N) * kept.tight_norm_N)
    return is_kept_N | (num_before_N == 0)


def fraction_bits(num_terms: int) -> int:
    """Binary places with which so many numbers of at most 1 can be added in int64."""
    return 62 - num_terms.bit_length()


def whole_numbers(part_NX: Tensor, num_bits: int) -> Tensor:
    """int64 multiples of 2 ** -``num_bits``, cut off, of numbers between 0 and 1; these are overwritten."""
    return part_NX.mul_(2.0**num_bits).to(torch.int64)


def _norm(logits_NV: Tensor, best_N1: Tensor, temperature_N1: Tensor, num_bits: int) -> Tensor:
    """int64 sum of exp((logit - best) / T); the difference comes first, since it keeps its accuracy in float32."""
    shifted_NV = logits_NV - best_N1.to(logits_NV.dtype)
    return whole_numbers(shifted_NV.mul_((1.0 / temperature_N1).to(logits_NV.dtype)).exp_(), num_bits).sum(dim=-1)
