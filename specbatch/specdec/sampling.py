"""The one sampling transform and the draw: temperature, top-k, top-p, then the target's own draw with keyed noise.

Scores are kept in logits, ``score[v] = logit[v] + temperature * gumbel[v]``, so that temperature 0 is the same code
without noise and a margin means the same at every temperature.

Near ties. Kernels round differently by shape, so two evaluations of the same position differ by some 1e-5 in float32.
A draw is *stable* when no perturbation of that size can change it: the winner leads by at least ``epsilon``, and no
token whose membership in the top-k or top-p set hangs on less than ``epsilon`` would change the winner. The test takes
the *loose* set, everything that a perturbation could keep: the draw is stable if the winner of the loose set leads it
by ``epsilon`` and is itself kept under every perturbation.

Shape letters: B rows, T positions, N = B*T, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec import noise

NUM_CANDIDATES = 8
"""Candidates that are scored exactly; more than this many within 1e-12 of the winner would be a near tie anyway."""

MIN_TEMPERATURE = 0.01
"""Smallest temperature above 0 that ``SamplingParams`` admits; the bound of divisions in rows that are greedy."""

_PREFIX_TOKENS = 512
"""Sorted prefix that is tried before the whole vocabulary is sorted for top-p."""


@dataclass(frozen=True, slots=True)
class SamplingTensors:
    """Sampling of a batch of rows as tensors on the model's device.

    Attributes:
        temperature_B: float64. seed_B: int64 row seeds. top_k_B: int64, 0 is off. top_p_B: float64, 1 is off.
    """

    temperature_B: Tensor
    seed_B: Tensor
    top_k_B: Tensor
    top_p_B: Tensor
    is_random: bool
    has_truncation: bool

    @staticmethod
    def from_params(params: Sequence[SamplingParams], device: torch.device) -> SamplingTensors:
        """Collect the parameters of some rows."""
        return SamplingTensors(
            temperature_B=torch.tensor([p.temperature for p in params], dtype=torch.float64, device=device),
            seed_B=torch.tensor([p.seed for p in params], dtype=torch.int64, device=device),
            top_k_B=torch.tensor([p.top_k for p in params], dtype=torch.int64, device=device),
            top_p_B=torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device),
            is_random=any(p.temperature > 0 for p in params),
            has_truncation=any(p.temperature > 0 and (p.top_k > 0 or p.top_p < 1) for p in params),
        )


@dataclass(frozen=True, slots=True)
class Draw:
    """The target's draws.

    Attributes:
        token_BT: int64 drawn ids.
        margin_BT: float64 lead over the runner-up among all tokens that may be kept, in logits.
        is_stable_BT: bool; False where a perturbation of ``epsilon`` could change the draw.
        is_finite_BT: bool; False where the logits hold NaN or infinity that reaches the winner.
    """

    token_BT: Tensor
    margin_BT: Tensor
    is_stable_BT: Tensor
    is_finite_BT: Tensor


def draw_target(logits_BTV: Tensor, index_BT: Tensor, sampling: SamplingTensors, epsilon: float) -> Draw:
    """The target's own draw at every position, with the test for near ties.

    Args:
        logits_BTV: raw logits of the target, cut to the real vocabulary.
        index_BT: int64 index in the completion of the token that is drawn at each position.
        epsilon: perturbation in logits that a stable draw withstands; 0 calls every draw stable that leads at all.
    """
    B, T, V = logits_BTV.shape
    logits_NV = logits_BTV.reshape(B * T, V).to(torch.float64)
    row_N = torch.arange(B, device=logits_NV.device).repeat_interleave(T)
    sets = _kept_sets(logits_NV, sampling, row_N, epsilon) if sampling.has_truncation else None
    coarse_NV = _coarse_scores(logits_NV, index_BT.reshape(-1), sampling, row_N)
    if sets is not None:
        coarse_NV = coarse_NV.masked_fill(~sets.loose_NV, -torch.inf)
    candidate_NC = _candidates(coarse_NV)
    score_NC = _exact_scores(logits_NV, candidate_NC, index_BT.reshape(-1), sampling, row_N)
    if sets is not None:
        score_NC = score_NC.masked_fill(~sets.loose_NV.gather(-1, candidate_NC), -torch.inf)
    best_N, winner_N = score_NC.max(dim=-1)
    others_NC = score_NC.scatter(-1, winner_N.unsqueeze(-1), -torch.inf)
    margin_N = best_N - others_NC.max(dim=-1).values
    stable_N = margin_N > 0 if epsilon == 0 else margin_N >= epsilon
    token_N = candidate_NC.gather(-1, winner_N.unsqueeze(-1)).squeeze(-1)
    finite_N = torch.isfinite(best_N)
    if sets is not None:
        finite_N &= torch.isfinite(logits_NV.amax(dim=-1))
        if epsilon > 0:
            stable_N &= _is_surely_kept(logits_NV, token_N, sampling, row_N, epsilon)
        nominal_NC = score_NC.masked_fill(~sets.nominal_NV.gather(-1, candidate_NC), -torch.inf)
        token_N = candidate_NC.gather(-1, nominal_NC.argmax(dim=-1, keepdim=True)).squeeze(-1)
    return Draw(
        token_BT=token_N.view(B, T),
        margin_BT=margin_N.view(B, T),
        is_stable_BT=stable_N.view(B, T),
        is_finite_BT=finite_N.view(B, T),
    )


def draw_draft(logits_BV: Tensor, index_B: Tensor, sampling: SamplingTensors) -> Tensor:
    """What the draft proposes: its own draw under the same transform and the same noise.

    Coarse scores suffice: a proposal only changes how much is accepted, never the text.

    Returns:
        int64 [B].
    """
    row_B = torch.arange(logits_BV.shape[0], device=logits_BV.device)
    logits_BV = logits_BV.to(torch.float64)
    coarse_BV = _coarse_scores(logits_BV, index_B, sampling, row_B)
    if sampling.has_truncation:
        coarse_BV = coarse_BV.masked_fill(~_kept_sets(logits_BV, sampling, row_B, 0.0).nominal_NV, -torch.inf)
    return coarse_BV.argmax(dim=-1)


def _candidates(coarse_NV: Tensor) -> Tensor:
    """Ids of the best coarse scores, ascending, so that the first maximum is the lowest id.

    Where more tokens tie for the best place than are taken, ``topk`` may leave out the lowest id: it takes the last
    place.
    """
    V = coarse_NV.shape[-1]
    best_NC, candidate_NC = coarse_NV.topk(min(NUM_CANDIDATES, V), dim=-1)
    token_V = torch.arange(V, device=coarse_NV.device)
    lowest_N = torch.where(coarse_NV == best_NC[:, :1], token_V, V - 1).amin(dim=-1)
    is_taken_N = (candidate_NC == lowest_N.unsqueeze(-1)).any(dim=-1)
    candidate_NC[:, -1] = torch.where(is_taken_N, candidate_NC[:, -1], lowest_N)
    return candidate_NC.sort(dim=-1).values


def _coarse_scores(logits_NV: Tensor, index_N: Tensor, sampling: SamplingTensors, row_N: Tensor) -> Tensor:
    if not sampling.is_random:
        return logits_NV
    token_V = torch.arange(logits_NV.shape[-1], device=logits_NV.device)
    bits_NV = noise.hash_tokens(noise.keys(sampling.seed_B[row_N], index_N), token_V)
    return torch.addcmul(logits_NV, noise.gumbel_fast(bits_NV), sampling.temperature_B[row_N].unsqueeze(-1))


def _exact_scores(
    logits_NV: Tensor, candidate_NC: Tensor, index_N: Tensor, sampling: SamplingTensors, row_N: Tensor
) -> Tensor:
    score_NC = logits_NV.gather(-1, candidate_NC)
    if not sampling.is_random:
        return score_NC
    bits_NC = noise.hash_tokens(noise.keys(sampling.seed_B[row_N], index_N), candidate_NC)
    scaled_NC = noise.gumbel(bits_NC) * sampling.temperature_B[row_N].unsqueeze(-1)
    return score_NC + scaled_NC


@dataclass(frozen=True, slots=True)
class _KeptSets:
    """What top-k and top-p keep: as computed (nominal), and everything that a perturbation could keep (loose)."""

    nominal_NV: Tensor
    loose_NV: Tensor


def _kept_sets(logits_NV: Tensor, sampling: SamplingTensors, row_N: Tensor, epsilon: float) -> _KeptSets:
    """A kept set is "all tokens at or above a border logit"; ties with the border are kept.

    When all logits move by less than epsilon the border moves by less than epsilon, and the probability above it by
    less than epsilon / temperature.
    """
    temperature_N, top_p_N = sampling.temperature_B[row_N], sampling.top_p_B[row_N]
    border_N = _top_k_border(logits_NV, sampling.top_k_B[row_N])
    loose_N = border_N - epsilon
    if bool((top_p_N < 1).any()):
        nominal_p_N, loose_p_N = _top_p_borders(logits_NV, temperature_N, border_N, top_p_N, epsilon)
        border_N = torch.maximum(border_N, nominal_p_N)
        loose_N = torch.maximum(loose_N, loose_p_N - epsilon)
    is_greedy_N1 = (temperature_N == 0).unsqueeze(-1)
    return _KeptSets(
        nominal_NV=(logits_NV >= border_N.unsqueeze(-1)) | is_greedy_N1,
        loose_NV=(logits_NV >= loose_N.unsqueeze(-1)) | is_greedy_N1,
    )


def _is_surely_kept(
    logits_NV: Tensor, token_N: Tensor, sampling: SamplingTensors, row_N: Tensor, epsilon: float
) -> Tensor:
    """True where a token stays in the kept set under every perturbation below epsilon.

    The worst case lets every token that is not clearly less likely come before it.
    """
    temperature_N = sampling.temperature_B[row_N]
    logit_N1 = logits_NV.gather(-1, token_N.unsqueeze(-1))
    may_precede_NV = (logits_NV >= logit_N1 - epsilon).scatter(-1, token_N.unsqueeze(-1), False)
    scaled_NV = logits_NV / temperature_N.clamp(min=MIN_TEMPERATURE).unsqueeze(-1)
    top_k_N, num_before_N = sampling.top_k_B[row_N], may_precede_NV.sum(dim=-1)
    kept_k_N = (top_k_N == 0) | (num_before_N < top_k_N)
    border_N1 = (_top_k_border(logits_NV, top_k_N) + epsilon).unsqueeze(-1)
    norm_N = scaled_NV.masked_fill(logits_NV < border_N1, -torch.inf).logsumexp(dim=-1)
    mass_N = scaled_NV.masked_fill(~may_precede_NV, -torch.inf).logsumexp(dim=-1)
    slack_N = epsilon / temperature_N.clamp(min=MIN_TEMPERATURE)
    top_p_N = sampling.top_p_B[row_N]
    kept_p_N = (top_p_N == 1) | ((mass_N - norm_N).exp() < top_p_N - slack_N) | (num_before_N == 0)
    return (kept_k_N & kept_p_N) | (temperature_N == 0)


def _top_k_border(logits_NV: Tensor, top_k_N: Tensor) -> Tensor:
    """Logit of the k-th most likely token; -inf where top-k is off."""
    largest = min(int(top_k_N.max()), logits_NV.shape[-1])
    off_N = torch.full_like(logits_NV[:, 0], -torch.inf)
    if largest == 0:
        return off_N
    values_NK = logits_NV.topk(largest, dim=-1).values
    kth_N = values_NK.gather(-1, (top_k_N.clamp(1, largest) - 1).unsqueeze(-1)).squeeze(-1)
    return torch.where((top_k_N > 0) & (top_k_N < logits_NV.shape[-1]), kth_N, off_N)


def _top_p_borders(
    logits_NV: Tensor, temperature_N: Tensor, border_N: Tensor, top_p_N: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Logits of the last token that top-p keeps, and of the last that it could keep; -inf where top-p is off.

    A token is kept while the probability of all more likely tokens is below top_p, so the most likely one always is.
    Probabilities are over what top-k left (``border_N``).
    """
    scaled_NV = logits_NV / temperature_N.clamp(min=MIN_TEMPERATURE).unsqueeze(-1)
    scaled_NV = scaled_NV.masked_fill(logits_NV < border_N.unsqueeze(-1), -torch.inf)
    norm_N1 = torch.logsumexp(scaled_NV, dim=-1, keepdim=True)
    loose_p_N = top_p_N + epsilon / temperature_N.clamp(min=MIN_TEMPERATURE)
    vocab = logits_NV.shape[-1]
    for width in (min(_PREFIX_TOKENS, vocab), vocab):
        sorted_NW, order_NW = scaled_NV.topk(width, dim=-1)
        cumulative_NW = (sorted_NW - norm_N1).exp().cumsum(dim=-1)
        if width == vocab or bool(((cumulative_NW[:, -1] > loose_p_N) | (top_p_N >= 1)).all()):
            break
    before_NW = torch.cat((torch.zeros_like(norm_N1), cumulative_NW[:, :-1]), dim=-1)
    kept_logits_NW = logits_NV.gather(-1, order_NW)
    off_N = torch.full_like(border_N, -torch.inf)

    def last_kept(limit_N: Tensor) -> Tensor:
        count_N = (before_NW < limit_N.unsqueeze(-1)).sum(dim=-1).clamp(min=1)
        last_N = kept_logits_NW.gather(-1, (count_N - 1).unsqueeze(-1)).squeeze(-1)
        return torch.where(top_p_N < 1, last_N, off_N)

    return last_kept(top_p_N), last_kept(loose_p_N)
