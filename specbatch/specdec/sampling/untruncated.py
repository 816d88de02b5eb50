"""The winner of the noisy scores among all tokens, for rows that truncate nothing.

Shape letters: N positions, V vocabulary, C candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specbatch.specdec import noise
from specbatch.specdec.kernels.draw import two_best
from specbatch.specdec.sampling import winner
from specbatch.specdec.sampling.tensors import Positions, SamplingTensors
from specbatch.specdec.sampling.winner import (
    NUM_CANDIDATES,
    RELATIVE_ROUNDING,
    Scene,
    Winner,
    exact_scores,
    first_of,
    lead,
    near_tie_epsilon,
    random_epsilon,
)

_NOISE_ROUNDING = 2 * noise.GUMBEL_FLOAT32_ERROR + 144 * 2.0**-24
"""Bound on what float32 noise adds to the difference of two scores, in temperatures: its own error, and that of its
product, which is below 23 temperatures."""

_CHUNK_ELEMENTS = 1 << 17
"""Scores that are made at a time on a CPU: the temporaries stay in its cache."""


def draw_among_all(scene: Scene) -> Winner:
    """The draw where nothing is truncated: every token gets its noise."""
    score_NV = _noisy_scores(scene)
    epsilon_N = scene.limits.epsilon_N if scene.is_tested else None
    if scene.is_exact:
        candidate_NC = _candidates(score_NV)
        score_NC = exact_scores(scene, candidate_NC, scene.logits_NV.gather(-1, candidate_NC))
        return first_of(score_NC, epsilon_N, 0.0, candidate_NC)[0]
    if epsilon_N is not None:
        epsilon_N = epsilon_N + scene.temperature_N * _NOISE_ROUNDING
    return first_of(score_NV, epsilon_N, RELATIVE_ROUNDING)[0]


def draw_by_kernel(changed_NV: Tensor, positions: Positions, sampling: SamplingTensors, epsilon: float) -> Winner:
    """The same on a GPU in two launches, and of rows without a temperature ``first_of``; no logits are copied.

    Args:
        changed_NV: what ``kernels.draw`` takes.
    """
    row_N, seed_B, temperature_B = positions.row_N, sampling.seed_B, sampling.temperature_B
    token_N, best_N, second_N = two_best(
        changed_NV, row_N, positions.index_N, seed_B, temperature_B, is_random=sampling.is_random
    )
    if epsilon == 0:
        return lead(token_N, best_N, second_N, None, 0.0)
    if not sampling.is_random:
        rounding = RELATIVE_ROUNDING if sampling.has_changes and changed_NV.dtype == torch.float32 else 0.0
        return lead(token_N, best_N, second_N, near_tie_epsilon(positions, sampling, epsilon), rounding)
    temperature_N = temperature_B[row_N]
    epsilon_N = random_epsilon(changed_NV, positions, sampling, epsilon, temperature_N)
    return lead(token_N, best_N, second_N, epsilon_N + temperature_N * _NOISE_ROUNDING, RELATIVE_ROUNDING)


def _noisy_scores(scene: Scene) -> Tensor:
    """Scores in the dtype of the logits, right to ``_NOISE_ROUNDING`` temperatures in float32."""
    logits_NV = scene.logits_NV
    N, V = logits_NV.shape
    token_V = torch.arange(V, dtype=torch.int32, device=logits_NV.device)
    temperature_N1 = scene.temperature_N.to(logits_NV.dtype).unsqueeze(-1)
    make = noise.gumbel_fast if scene.is_exact else noise.gumbel_float32
    score_NV = torch.empty_like(logits_NV)
    num_rows = max(_CHUNK_ELEMENTS // V, 1) if winner.is_on_host(logits_NV) else N
    for start in range(0, N, num_rows):
        part = slice(start, start + num_rows)
        noise_NV = make(noise.hash_tokens(scene.key_N[part], token_V))
        torch.addcmul(logits_NV[part], noise_NV, temperature_N1[part], out=score_NV[part])
    return score_NV


def _candidates(score_NV: Tensor) -> Tensor:
    """Ids of the best scores, ascending, so that the first maximum is the lowest id.

    Where more tokens tie for the best place than are taken, ``topk`` may leave out the lowest id: it takes the last
    place.
    """
    candidate_NC = score_NV.topk(min(NUM_CANDIDATES, score_NV.shape[-1]), dim=-1).indices
    lowest_N = score_NV.max(dim=-1).indices
    is_taken_N = (candidate_NC == lowest_N.unsqueeze(-1)).any(dim=-1)
    candidate_NC[:, -1] = torch.where(is_taken_N, candidate_NC[:, -1], lowest_N)
    return candidate_NC.sort(dim=-1).values
