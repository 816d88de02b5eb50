"""The winner of the noisy scores at each position: what it is, and which it is among the tokens that truncation keeps.

``untruncated`` has the winner among all. ``draw`` says what a draw and a stable draw are, and why there is an exact
and a fast way.

Shape letters: N positions, M and L some of them, V vocabulary, W sorted prefix, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specbatch.specdec import noise
from specbatch.specdec.models.footprint import rows_per_slice
from specbatch.specdec.sampling.tensors import Positions, SamplingTensors
from specbatch.specdec.sampling.transform import MIN_TEMPERATURE, KeptSet, Limits, is_surely_kept, keep

NUM_CANDIDATES = 8
"""Candidates that are scored exactly; more than this many within 1e-12 of the winner would be a near tie anyway."""

_PREFIX_WIDTHS = (64, 512, 4096)
"""Sorted prefixes that are tried on a CPU before the whole vocabulary is sorted."""

RELATIVE_ROUNDING = 2.0**-22
"""Bound on what rounding to float32 adds to the difference of two scores, relative to the larger."""

DEVICE_PREFIX = 4096
"""The sorted prefix on a device. A position whose kept set may reach beyond it is said to be unknown."""

DRAFT_PREFIX = 128
"""The same for drafts, whose tokens decide no text. A kept set that reaches beyond it is cut, as are ties with its last
token, and a target that draws there refuses the draft: its prefix holds nearly all that sampling asks for."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Positions that are drawn together.

    Attributes:
        logits_NV: changed logits, float64 where the draw is exact, else float32.
        temperature_N, key_N: of the noise.
        limits: truncation; its epsilon is that of the near-tie test.
        is_truncated_N: bool, of the row.
        is_tested: near ties are looked for, that is, epsilon is above 0.
    """

    logits_NV: Tensor
    temperature_N: Tensor
    key_N: Tensor
    limits: Limits
    is_truncated_N: Tensor
    is_tested: bool

    @property
    def is_exact(self) -> bool:
        """Whether logits are float64, so that scores are computed exactly."""
        return self.logits_NV.dtype == torch.float64

    def select(self, chosen_M: Tensor) -> Scene:
        """Some of the positions: int64 [M], or bool [N]."""
        return replace(
            self,
            logits_NV=self.logits_NV[chosen_M],
            temperature_N=self.temperature_N[chosen_M],
            key_N=self.key_N[chosen_M],
            is_truncated_N=self.is_truncated_N[chosen_M],
            limits=self.limits.select(chosen_M),
        )


@dataclass(frozen=True, slots=True)
class Winner:
    """int64 token, float64 lead and score, and whether no perturbation can change the token.

    ``is_known_N`` is False where a longer prefix would have had to be looked at; None where nothing is left open.
    """

    token_N: Tensor
    margin_N: Tensor
    best_N: Tensor
    is_stable_N: Tensor
    is_known_N: Tensor | None = None

    def put_(self, place_M: Tensor, other: Winner) -> None:
        """Overwrite some positions."""
        self.token_N.index_copy_(0, place_M, other.token_N)
        self.margin_N.index_copy_(0, place_M, other.margin_N)
        self.best_N.index_copy_(0, place_M, other.best_N)
        self.is_stable_N.index_copy_(0, place_M, other.is_stable_N)

    def where(self, is_own_N: Tensor, other: Winner) -> Winner:
        """This one at some positions; at the rest the other, which knows all of its own."""
        return Winner(
            token_N=torch.where(is_own_N, self.token_N, other.token_N),
            margin_N=torch.where(is_own_N, self.margin_N, other.margin_N),
            best_N=torch.where(is_own_N, self.best_N, other.best_N),
            is_stable_N=torch.where(is_own_N, self.is_stable_N, other.is_stable_N),
            is_known_N=None if self.is_known_N is None else self.is_known_N | ~is_own_N,
        )


def is_on_host(values: Tensor) -> bool:
    """Whether to look at a tensor costs nothing; on a device nothing may wait, and no shape depend on what is seen."""
    return values.device.type == "cpu"


def slices(logits_NV: Tensor, *, is_small: bool = False) -> list[slice]:
    """Positions to draw at a time, in order, at least one slice: all on a host, few enough on a device.

    Args:
        is_small: what is done with them makes no temporaries of their shape.
    """
    N, V = logits_NV.shape
    num_rows = max(N, 1) if is_small or is_on_host(logits_NV) else rows_per_slice(V)
    return [slice(start, start + num_rows) for start in range(0, max(N, 1), num_rows)]


def near_tie_epsilon(positions: Positions, sampling: SamplingTensors, epsilon: float) -> Tensor:
    """float64 [N] logit gaps below which a token counts as a near tie; penalties may stretch what rounding has done."""
    if sampling.has_penalties:
        return sampling.gain_B[positions.row_N] * epsilon
    return torch.full(positions.row_N.shape, epsilon, dtype=torch.float64, device=positions.row_N.device)


def random_epsilon(
    changed_NV: Tensor, positions: Positions, sampling: SamplingTensors, epsilon: float, temperature_N: Tensor
) -> Tensor:
    """``near_tie_epsilon`` and what rounding has added where logits were changed."""
    epsilon_N = near_tie_epsilon(positions, sampling, epsilon)
    has_rounding = sampling.has_changes and changed_NV.dtype == torch.float32
    if has_rounding and epsilon > 0:
        # Tokens further below the best than the noise reaches (26 temperatures) decide nothing.
        epsilon_N = epsilon_N + RELATIVE_ROUNDING * (changed_NV.amax(dim=-1).abs() + 32 * temperature_N)
    return epsilon_N


def make_scene(changed_NV: Tensor, positions: Positions, sampling: SamplingTensors, epsilon: float) -> Scene:
    """The positions of a draw with what their rows ask for.

    Args:
        changed_NV: logits behind penalties and biases, float32 or float64 [N, V].
        epsilon: near-tie threshold in logits; 0 looks for none.
    """
    row_N = positions.row_N
    temperature_N = sampling.temperature_B[row_N]
    limits = Limits(
        temperature_N=temperature_N.clamp(min=MIN_TEMPERATURE),
        top_k_N=sampling.top_k_B[row_N],
        top_p_N=sampling.top_p_B[row_N],
        log_min_p_N=sampling.log_min_p_B[row_N],
        epsilon_N=random_epsilon(changed_NV, positions, sampling, epsilon, temperature_N),
    )
    key_N = noise.keys(sampling.seed_B[row_N], positions.index_N)
    return Scene(changed_NV, temperature_N, key_N, limits, sampling.is_truncated_B[row_N], epsilon > 0)


def exact_scores(scene: Scene, candidate_NC: Tensor, value_NC: Tensor) -> Tensor:
    """float64 [N, C]: logits ``value_NC`` of the tokens ``candidate_NC`` (int64) plus their noise, computed exactly."""
    noise_NC = noise.gumbel(noise.hash_tokens(scene.key_N, candidate_NC))
    scaled_NC = noise_NC * scene.temperature_N.unsqueeze(-1)
    return value_NC + scaled_NC


def first_of(
    score_NC: Tensor, epsilon_N: Tensor | None, rounding: float, token_NC: Tensor | None = None
) -> tuple[Winner, Tensor]:
    """The first of the best scores, its lead, and whether it leads by epsilon and what rounding may have added.

    Args:
        score_NC: overwritten. epsilon_N: None asks for any lead at all.
        rounding: error of two scores together, relative to the larger.
        token_NC: ids of the columns, ascending; None where they are the ids.

    Returns:
        the winner and its column.
    """
    best_N, place_N = score_NC.max(dim=-1)
    second_N = score_NC.scatter_(-1, place_N.unsqueeze(-1), -torch.inf).amax(dim=-1)
    token_N = place_N if token_NC is None else token_NC.gather(-1, place_N.unsqueeze(-1)).squeeze(-1)
    return lead(token_N, best_N, second_N, epsilon_N, rounding), place_N


def lead(token_N: Tensor, best_N: Tensor, second_N: Tensor, epsilon_N: Tensor | None, rounding: float) -> Winner:
    """See ``first_of``."""
    best_N, second_N = best_N.to(torch.float64), second_N.to(torch.float64)
    margin_N = best_N - second_N
    if epsilon_N is None:
        is_stable_N = margin_N > 0
    else:
        if rounding:
            epsilon_N = epsilon_N + rounding * torch.maximum(best_N.abs(), second_N.abs())
        is_stable_N = margin_N >= epsilon_N
    return Winner(token_N, margin_N, best_N, is_stable_N)


def _kept_sets(
    scene: Scene, sampling: SamplingTensors, *, is_final: bool, is_draft: bool = False
) -> Iterator[tuple[Tensor | None, Scene, KeptSet]]:
    """What truncation keeps: first for all positions (place None), then again for those that need a longer prefix.

    A CPU leaves out the rows that truncate nothing and tries short prefixes. A device takes one prefix, because to see
    whether it was long enough means to wait; the whole vocabulary where the answer must be final, few for a draft.
    """
    V, place_M = scene.logits_NV.shape[1], None
    widths = [V if is_final or sampling.max_top_k >= DEVICE_PREFIX else min(V, DEVICE_PREFIX)]
    if is_draft and not is_on_host(scene.logits_NV):
        widths = [min(V, DRAFT_PREFIX)]
        limits = replace(scene.limits, top_k_N=scene.limits.top_k_N.clamp(max=widths[0]))
        scene = replace(scene, limits=limits)
    if is_on_host(scene.logits_NV):
        widths = [*(width for width in _PREFIX_WIDTHS if sampling.max_top_k < width < V), V]
        if sampling.has_untruncated:
            place_M = scene.is_truncated_N.nonzero().squeeze(-1)
    for width in widths:
        part = scene if place_M is None else scene.select(place_M)
        kept = keep(part.logits_NV, part.limits, width=width, has_top_p=sampling.has_top_p)
        yield place_M, part, kept
        if width < V and is_on_host(scene.logits_NV):
            late_L = (~kept.is_covered_N).nonzero().squeeze(-1)
            place_M = late_L if place_M is None else place_M[late_L]
            if not len(place_M):
                return


def draw_among_kept(
    scene: Scene, sampling: SamplingTensors, untruncated: Winner | None, *, is_final: bool, is_draft: bool = False
) -> Winner:
    """The draw where truncation leaves few tokens: only they get noise.

    A row that truncates nothing is drawn as it is without truncated rows beside it: a token must not depend on them.

    Args:
        untruncated: the draw among all tokens, None where every row truncates.
        is_final: leave no position unknown. is_draft: the token is a proposal, which on a device need not be exact.
    """
    winner = untruncated
    for place_M, part, kept in _kept_sets(scene, sampling, is_final=is_final, is_draft=is_draft):
        found = _draw_of_prefix(part, kept)
        if place_M is not None and winner is not None:
            winner.put_(place_M, found)
        else:
            winner = found if untruncated is None else found.where(scene.is_truncated_N, untruncated)
    assert winner is not None
    return winner


def borders(scene: Scene, sampling: SamplingTensors) -> Tensor:
    """float64 [N] logits at or above which a token is kept."""
    border_N = torch.full_like(scene.temperature_N, -torch.inf)
    for place_M, _, kept in _kept_sets(scene, sampling, is_final=True):
        border_N = kept.border_N if place_M is None else border_N.index_copy(0, place_M, kept.border_N)
    return border_N


def _draw_of_prefix(scene: Scene, kept: KeptSet) -> Winner:
    """The draw among the tokens of a sorted prefix, in float64; exactly where the logits are."""
    loose_N1, limits = kept.loose_N.unsqueeze(-1), scene.limits
    noise_NW = noise.gumbel_fast(noise.hash_tokens(scene.key_N, kept.token_NW))
    score_NW = kept.value_NW + noise_NW * scene.temperature_N.unsqueeze(-1)
    score_NW = torch.where(kept.value_NW < loose_N1, -torch.inf, score_NW)
    best_NC, column_NC = score_NW.topk(min(NUM_CANDIDATES, score_NW.shape[1]), dim=-1)
    token_NC, order_NC = kept.token_NW.gather(-1, column_NC).sort(dim=-1)
    value_NC = kept.value_NW.gather(-1, column_NC).gather(-1, order_NC)
    score_NC = exact_scores(scene, token_NC, value_NC) if scene.is_exact else best_NC.gather(-1, order_NC)
    score_NC = torch.where(value_NC < loose_N1, -torch.inf, score_NC)
    winner, place_N = first_of(score_NC, limits.epsilon_N if scene.is_tested else None, 0.0, token_NC)
    if scene.is_tested:
        value_N = value_NC.gather(-1, place_N.unsqueeze(-1)).squeeze(-1)
        is_stable_N = winner.is_stable_N & is_surely_kept(kept, value_N, limits)
        nominal_NW = torch.where(kept.value_NW < kept.border_N.unsqueeze(-1), -torch.inf, score_NW)
        token_N = kept.token_NW.gather(-1, nominal_NW.max(dim=-1, keepdim=True).indices).squeeze(-1)
        winner = replace(winner, token_N=token_N, is_stable_N=is_stable_N)
    if not is_on_host(scene.logits_NV) and kept.value_NW.shape[1] < scene.logits_NV.shape[1]:
        winner = replace(winner, is_known_N=kept.is_covered_N)
    return replace(winner, best_N=torch.where(torch.isfinite(kept.value_NW[:, 0]), winner.best_N, torch.nan))
