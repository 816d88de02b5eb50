"""The draw: which token a position takes, and whether rounding could have changed it.

Scores are kept in logits, ``score[v] = logit[v] + temperature * gumbel[v]`` over the tokens that truncation keeps, so
that temperature 0 is the same rule without noise and a margin means the same at every temperature.

Near ties. Kernels round differently by shape, so two evaluations of the same position differ by some 1e-5 in float32.
A draw is *stable* when no perturbation of that size can change it: the winner leads by at least ``epsilon``, and no
token whose membership in the kept set hangs on less than ``epsilon`` would change the winner. The test takes the
*loose* set, everything that a perturbation could keep: the draw is stable if the winner of the loose set leads it by
``epsilon`` and is itself kept under every perturbation. A repetition penalty r stretches logits, so the epsilon of its
row is multiplied by max(r, 1/r); all other steps shift them.

Two precisions. *Exact*, for float64 logits and for float32 logits at epsilon 0 (the canonical evaluation): scores in
float64, the best few again with noise from ``noise.log64``, hence the same on every device. *Fast*, for the rest:
scores in float32, whose error has a bound; a winner that leads by epsilon and that bound leads by epsilon in exact
arithmetic, anything else is not stable and is decided by the canonical evaluation. The fast way thus never gives a
stable draw that the exact way would not give.

Nothing here waits for a device. On a CPU, where there is nothing to wait for, truncation tries short sorted prefixes
first and gives only the positions that need it a longer one.

Shape letters: N scored positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from specbatch.specdec.kernels.draw import is_drawn_by_kernel
from specbatch.specdec.sampling.tensors import History, Positions, SamplingTensors
from specbatch.specdec.sampling.transform import MIN_TEMPERATURE, changed_logits, fraction_bits, whole_numbers
from specbatch.specdec.sampling.untruncated import draw_among_all, draw_by_kernel
from specbatch.specdec.sampling.winner import (
    RELATIVE_ROUNDING,
    Winner,
    borders,
    draw_among_kept,
    first_of,
    make_scene,
    near_tie_epsilon,
    slices,
)

__all__ = ["Draw", "History", "Positions", "SamplingTensors", "draw_draft", "draw_target", "transformed_logits"]


@dataclass(frozen=True, slots=True)
class Draw:
    """The target's draws.

    Attributes:
        token_N: int64 drawn ids; provisional where the draw is not stable.
        margin_N: float64 lead over the runner-up among all tokens that may be kept, in logits.
        is_stable_N: bool; False where a perturbation of ``epsilon`` could change the draw.
        is_known_N: bool; False where a device left the draw to a final one; None where it left none.
        is_finite_N: bool; False where the logits hold NaN or infinity that reaches the winner.
        logprob_N: float64 log-probability of the drawn token under the raw logits; None if no row asks for it.
    """

    token_N: Tensor
    margin_N: Tensor
    is_stable_N: Tensor
    is_finite_N: Tensor
    logprob_N: Tensor | None
    is_known_N: Tensor | None = None

    @property
    def certainty(self) -> Tensor:
        """float64: 1 where the draw is stable, 0 where it is not, -1 where it is not known."""
        stable_N = self.is_stable_N.to(torch.float64)
        return stable_N if self.is_known_N is None else torch.where(self.is_known_N, stable_N, -1.0)

    @staticmethod
    def joined(draws: Sequence[Draw]) -> Draw:
        """Those of slices of positions that were drawn alike."""
        if len(draws) == 1:
            return draws[0]
        columns = {field.name: [getattr(draw, field.name) for draw in draws] for field in fields(Draw)}
        values: dict[str, Any] = {
            name: None if parts[0] is None else torch.cat(parts) for name, parts in columns.items()
        }
        return Draw(**values)


def draw_target(
    logits_NV: Tensor, positions: Positions, sampling: SamplingTensors, epsilon: float, *, is_final: bool = False
) -> Draw:
    """The target's own draw at every position, with the test for near ties.

    Args:
        logits_NV: raw logits of the target, cut to the real vocabulary; any float dtype.
        epsilon: perturbation in logits that a stable draw withstands; 0 calls every draw stable that leads at all.
        is_final: leave no draw unknown, whatever it costs.
    """
    is_read_once = _is_read_once(logits_NV, sampling, is_exact=_is_exact(logits_NV, epsilon))
    is_small = is_read_once and not sampling.wants_logprobs
    parts = [(logits_NV[part], positions.part(part)) for part in slices(logits_NV, is_small=is_small)]
    return Draw.joined([_draw(*part, sampling, epsilon, is_final=is_final) for part in parts])


def _is_exact(logits_NV: Tensor, epsilon: float) -> bool:
    return logits_NV.dtype == torch.float64 or (epsilon == 0 and logits_NV.dtype == torch.float32)


def _is_read_once(logits_NV: Tensor, sampling: SamplingTensors, *, is_exact: bool = False) -> bool:
    """Whether a kernel draws from the logits as they are."""
    return is_drawn_by_kernel(logits_NV) and not (is_exact or sampling.has_changes or sampling.has_truncation)


def _draw(
    logits_NV: Tensor, positions: Positions, sampling: SamplingTensors, epsilon: float, *, is_final: bool
) -> Draw:
    raw_NV, is_exact = logits_NV, _is_exact(logits_NV, epsilon)
    if not _is_read_once(logits_NV, sampling, is_exact=is_exact):
        raw_NV = logits_NV.to(torch.float64 if is_exact else torch.float32)
    winner = _winner(raw_NV, positions, sampling, epsilon, is_final=is_final)
    return Draw(
        token_N=winner.token_N,
        margin_N=winner.margin_N,
        is_stable_N=winner.is_stable_N,
        is_finite_N=torch.isfinite(winner.best_N),
        logprob_N=_logprob(raw_NV, winner.token_N) if sampling.wants_logprobs else None,
        is_known_N=winner.is_known_N,
    )


def draw_draft(logits_NV: Tensor, positions: Positions, sampling: SamplingTensors) -> Tensor:
    """What the draft proposes: its own draw under the same transform and the same noise.

    A proposal only changes how much is accepted, never the text, so the fast way does for all but float64, and on a
    device a short prefix for truncation.

    Returns:
        int64 [N].
    """
    if _is_read_once(logits_NV, sampling):
        return _winner(logits_NV, positions, sampling, 0.0).token_N
    # There is one position for each row, so all are drawn at a time: for slices a step would spend longer on launches
    # than on the model. At its peak that holds 19 bytes for each logit, 27 where rows have biases of their own. The
    # ledger has 16 for each position of a row that a round scores, a row with a draft has at least two, and none is
    # scored yet. What is drawn in float64 takes more.
    is_small = logits_NV.dtype != torch.float64
    parts = [(logits_NV[part], positions.part(part)) for part in slices(logits_NV, is_small=is_small)]
    return _joined([_draft_tokens(*part, sampling) for part in parts])


def _draft_tokens(logits_NV: Tensor, positions: Positions, sampling: SamplingTensors) -> Tensor:
    raw_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.to(torch.float32)
    if not sampling.is_random:
        return changed_logits(raw_NV, positions, sampling).max(dim=-1).indices
    return _winner(raw_NV, positions, sampling, 0.0, is_draft=True).token_N


def transformed_logits(logits_NV: Tensor, positions: Positions, sampling: SamplingTensors) -> Tensor:
    """Logits whose softmax is the law of the token: divided by the temperature, -inf for what is not kept.

    Returns:
        [N, V], float64 for float64 logits, else float32. At temperature 0 only the most likely token is finite.
    """
    parts = [(logits_NV[part], positions.part(part)) for part in slices(logits_NV)]
    return _joined([_transformed(*part, sampling) for part in parts])


def _transformed(logits_NV: Tensor, positions: Positions, sampling: SamplingTensors) -> Tensor:
    raw_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.to(torch.float32)
    changed_NV = changed_logits(raw_NV, positions, sampling)
    scene = make_scene(changed_NV, positions, sampling, 0.0)
    temperature_N1 = scene.temperature_N.unsqueeze(-1)
    scaled_NV = changed_NV / temperature_N1.clamp(min=MIN_TEMPERATURE).to(changed_NV.dtype)
    if sampling.has_truncation:
        border_N1 = borders(scene, sampling).to(changed_NV.dtype).unsqueeze(-1)
        scaled_NV = scaled_NV.masked_fill(changed_NV < border_N1, -torch.inf)
    best_N1 = changed_NV.max(dim=-1, keepdim=True).indices
    is_best_NV = torch.zeros_like(changed_NV, dtype=torch.bool).scatter_(-1, best_N1, True)
    return scaled_NV.masked_fill((temperature_N1 == 0) & ~is_best_NV, -torch.inf)


def logprobs_at(logits_NV: Tensor, place_BT: Tensor, token_BT: Tensor) -> Tensor:
    """float64 [B, T] log-probabilities of tokens under the raw logits of some positions.

    Args:
        place_BT: int64 position of each token.
    """
    place_X, token_X = place_BT.flatten(), token_BT.flatten()
    found = [
        _logprob(logits_NV[place_X[part]].to(torch.float64), token_X[part])
        for part in slices(logits_NV[:1].expand(len(place_X), -1))
    ]
    return _joined(found).view_as(place_BT)


def _winner(
    raw_NV: Tensor,
    positions: Positions,
    sampling: SamplingTensors,
    epsilon: float,
    *,
    is_final: bool = False,
    is_draft: bool = False,
) -> Winner:
    changed_NV = changed_logits(raw_NV, positions, sampling)
    by_kernel = None
    if sampling.has_untruncated and is_drawn_by_kernel(changed_NV):
        by_kernel = draw_by_kernel(changed_NV, positions, sampling, epsilon)
        if not sampling.has_truncation:
            return by_kernel
    if not sampling.is_random:
        # A copy, where it is not one already: the winner is struck out to find the runner-up.
        score_NV = changed_NV if sampling.has_changes else changed_NV.clone()
        has_rounding = sampling.has_changes and raw_NV.dtype == torch.float32
        epsilon_N = near_tie_epsilon(positions, sampling, epsilon) if epsilon > 0 else None
        return first_of(score_NV, epsilon_N, RELATIVE_ROUNDING if has_rounding else 0.0)[0]
    scene = make_scene(changed_NV, positions, sampling, epsilon)
    untruncated = by_kernel
    if untruncated is None and sampling.has_untruncated:
        untruncated = draw_among_all(scene)
    if not sampling.has_truncation:
        assert untruncated is not None
        return untruncated
    return draw_among_kept(scene, sampling, untruncated, is_final=is_final, is_draft=is_draft)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _logprob(raw_NV: Tensor, token_N: Tensor) -> Tensor:
    """float64 log-softmax of one token each, over raw logits; the sum is one of whole numbers, see ``transform``."""
    raw_NV = raw_NV if raw_NV.dtype == torch.float64 else raw_NV.to(torch.float32)
    best_N1 = raw_NV.amax(dim=-1, keepdim=True)
    num_bits = fraction_bits(raw_NV.shape[1])
    norm_N = whole_numbers((raw_NV - best_N1).exp_(), num_bits).sum(dim=-1)
    log_norm_N = (norm_N.to(torch.float64) * 2.0**-num_bits).log_()
    token_N1 = token_N.unsqueeze(-1)
    return (raw_NV.gather(-1, token_N1).to(torch.float64) - best_N1.to(torch.float64)).squeeze(-1) - log_norm_N
