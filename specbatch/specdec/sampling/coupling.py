"""The ``distribution`` coupling: drafts are judged by probability, so the text has the law of the target.

The default coupling (``seed``) commits the target's own keyed draws. Here a round commits drafts that were drawn from
the draft's law q, as many as keep the law p of the target, and one token more. More drafts are accepted; the price is
that the text depends on the draft and on K.

The rule is *block verification* (Sun et al., arXiv 2403.10444). It judges a whole window of drafts x_1 .. x_K and on
average accepts at least as many as the token-by-token ratio test (Leviathan et al., arXiv 2211.17192; Chen et al.,
arXiv 2302.01318); the two are equal at K = 1. With p_j and q_j the laws behind the first j drafts:

    weight    w_0 = 1,  w_j = min(1, w_(j-1) * p_(j-1)(x_j) / q_(j-1)(x_j))    what p can use of q's mass on x_1..x_j
    residual  r_j(v) = max(0, w_j * p_j(v) - q_j(v)),  s_j = sum over v of r_j(v)    what is left for other tokens
    coin j    falls well with probability h_j = s_j / (s_j + 1 - w_j);  q_K = 0, hence h_K = w_K
    accepted  the largest j whose coin fell well, or 0;  the next token is drawn from r_j / s_j

Why the law is p. Claim: P(accepted >= j | x_1..x_j) = w_j. It holds for j = K. If it holds for j + 1, then a longer
prefix is accepted with probability a = sum over v of q_j(v) * w_(j+1) = sum over v of min(w_j p_j(v), q_j(v)), so
w_j - a = s_j, and exactly j drafts with probability (1 - a) * h_j = (1 - w_j + s_j) * h_j = s_j: together w_j. Now let
the mass of q on x_1..x_j be Q. The mass that accepts these j and says v next is Q * (r_j(v) + min(w_j p_j(v), q_j(v)))
= Q * w_j * p_j(v): behind every accepted prefix the next token has the law p, whatever K.

Noise. The rule needs draws for proposals, coins and next token that are independent of one another; a shared stream
biases the text. They come from three streams of their own, apart from the Gumbel stream of the ``seed`` coupling.
Two rounds must not share noise either: how many drafts of a window are accepted depends on all of them, so after a
round its noise at indices beyond the accepted prefix is no longer independent of the committed text, although those
indices are proposed anew. Every key therefore holds the index at which the window starts. A round commits at least one
token, so no two rounds of a row start at the same index, no counter is needed, and a row that is preempted and resumed
meets the same noise. Whether one more draft is drawn may depend on everything seen so far, drafts of this window
included; but every draft that was drawn must be judged, for dropping one by its value would bias the text.

Shape letters: B rows, K drafts, T = K + 1 positions of a window, N scored positions of all rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specbatch.specdec import noise
from specbatch.specdec.sampling.winner import slices

_PROPOSAL_STREAM = 0x5350_4543_5052_4F50
_COIN_STREAM = 0x5350_4543_434F_494E
_NEXT_STREAM = 0x5350_4543_4E45_5854

_MANTISSA_BITS = 53
_NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a round gives each row, before it is cut at a terminator or a limit.

    Attributes:
        token_BT: int64; the accepted drafts, then the next token, then -1.
        num_accepted_B: int64, from 0 to the row's draft length. Not to be found by comparing tokens: the next token
            may equal the draft in whose place it stands.
        is_finite_B: bool; False where the target's logits of the row's window hold NaN or infinity, or keep no token.
            The tokens of such a row mean nothing.
    """

    token_BT: Tensor
    num_accepted_B: Tensor
    is_finite_B: Tensor


def propose_token(transformed_logits_BV: Tensor, seed_B: Tensor, start_B: Tensor, index_B: Tensor) -> Tensor:
    """The draft's own draw from its law q.

    Args:
        transformed_logits_BV: logits of the draft after the sampling transform, -inf for tokens that are not kept. The
            same values must reach ``accept_block``.
        seed_B: int64 row seeds.
        start_B: int64 index in the completion of the window's first draft; the tokens committed so far.
        index_B: int64 index in the completion of the draft that is drawn here.

    Returns:
        int64 [B].
    """
    key_B = _keys(_PROPOSAL_STREAM, seed_B, start_B, index_B)
    parts = slices(transformed_logits_BV)
    return torch.cat([_draw(transformed_logits_BV[part].to(torch.float64), key_B[part]) for part in parts])


def accept_block(
    p_logits_NV: Tensor,
    q_logits: Sequence[Tensor],
    draft_BK: Tensor,
    draft_length_B: Tensor,
    seed_B: Tensor,
    start_B: Tensor,
    has_q_B: Tensor | None = None,
) -> Verdict:
    """Judge the windows of a round. Nothing here waits for the device.

    Args:
        p_logits_NV: transformed logits of the target at all scored positions, ordered by row, then by position; row b
            has draft_length_B[b] + 1 of them. A row at temperature 0 has -inf everywhere but at its argmax.
        q_logits: tensors [B, V], the transformed logits that drafts were drawn from, one for each position at which any
            row drew; drafts at positions beyond them were looked up. Entries beyond a row's draft length are ignored,
            whatever they hold. Empty where no row drew any.
        draft_BK: int64 drafts; entries at or beyond a row's draft length are ignored.
        draft_length_B: int64 drafts of each row, 0 to K.
        seed_B: int64 row seeds.
        start_B: int64 index in the completion of the first draft.
        has_q_B: bool; False for rows whose drafts were not drawn but looked up, so that q is 1 at the draft. None: all
            rows have q if ``q_logits`` is given, none otherwise.

    A position whose q is not finite counts as one without a draft; this is exact, since it does not hang on the draw.
    """
    first_B = (draft_length_B + 1).cumsum(dim=0) - (draft_length_B + 1)
    verdicts = [
        _accept_rows(
            p_logits_NV,
            first_B[part],
            [q_BV[part] for q_BV in q_logits],
            draft_BK[part],
            draft_length_B[part],
            seed_B[part],
            start_B[part],
            None if has_q_B is None else has_q_B[part],
        )
        for part in slices(p_logits_NV[: len(draft_BK)])
    ]
    return Verdict(
        token_BT=torch.cat([verdict.token_BT for verdict in verdicts]),
        num_accepted_B=torch.cat([verdict.num_accepted_B for verdict in verdicts]),
        is_finite_B=torch.cat([verdict.is_finite_B for verdict in verdicts]),
    )


def _accept_rows(
    p_logits_NV: Tensor,
    first_B: Tensor,
    q_logits: Sequence[Tensor],
    draft_BK: Tensor,
    draft_length_B: Tensor,
    seed_B: Tensor,
    start_B: Tensor,
    has_q_B: Tensor | None,
) -> Verdict:
    """Some rows of a round; ``first_B`` says where each has its first position."""
    B, K = draft_BK.shape
    draft_BK = draft_BK.clamp(min=0)
    weight_B = torch.ones(B, dtype=torch.float64, device=draft_BK.device)
    num_accepted_B = torch.zeros_like(draft_length_B)
    is_finite_B = torch.ones_like(num_accepted_B, dtype=torch.bool)
    chosen_BV = torch.empty(0)
    for j in range(K + 1):
        # Behind its window a row repeats its last position; with weight 0 nothing of that is accepted.
        p_BV = _law(p_logits_NV[first_B + draft_length_B.clamp(max=j)])
        is_finite_B &= p_BV.sum(dim=-1).isfinite()
        is_drafted_B = draft_length_B > j
        if j < K:
            token_B = draft_BK[:, j]
            q_BV = _proposal_law(q_logits[j] if j < len(q_logits) else None, token_B, is_drafted_B, has_q_B, p_BV)
        else:
            q_BV = torch.zeros_like(p_BV)
        chance_B, residual_BV = judge_prefix(weight_B, p_BV, q_BV)
        if j == 0:
            chosen_BV = residual_BV
        else:
            is_accepted_B = _coins(seed_B, start_B, start_B + j - 1) < chance_B
            num_accepted_B = torch.where(is_accepted_B, j, num_accepted_B)
            chosen_BV = torch.where(is_accepted_B.unsqueeze(-1), residual_BV, chosen_BV)
        if j < K:
            weight_B = torch.where(is_drafted_B, extend_weight(weight_B, p_BV, q_BV, token_B), 0.0)
    next_B = _draw(chosen_BV.log(), _keys(_NEXT_STREAM, seed_B, start_B, start_B + num_accepted_B))
    position_T = torch.arange(K + 1, device=draft_BK.device)
    padded_BT = torch.nn.functional.pad(draft_BK, (0, 1))
    token_BT = torch.where(position_T < num_accepted_B.unsqueeze(-1), padded_BT, _NO_TOKEN)
    token_BT = token_BT.scatter(-1, num_accepted_B.unsqueeze(-1), next_B.unsqueeze(-1))
    return Verdict(token_BT=token_BT, num_accepted_B=num_accepted_B, is_finite_B=is_finite_B)


def judge_prefix(weight_B: Tensor, p_BV: Tensor, q_BV: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a prefix of drafts is accepted, and what may follow where no longer one is.

    Args:
        weight_B: float64 w_j of the prefix. p_BV, q_BV: float64 laws behind it; q is 0 where no draft follows.

    Returns:
        float64 [B] h_j, the chance of the coin, and float64 [B, V] r_j, not normalised. Where p = q the residual is
        empty: with w_j = 1 the next draft is accepted for sure (h_j = 1 stands for 0 / 0); should rounding refuse it
        all the same, p stands in for the residual.
    """
    residual_BV = torch.addcmul(-q_BV, weight_B.unsqueeze(-1), p_BV).clamp_(min=0.0)
    mass_B = residual_BV.sum(dim=-1)
    others_B = 1.0 - weight_B
    chance_B = torch.where(others_B > 0, mass_B / (mass_B + others_B), 1.0)
    return chance_B, torch.where(mass_B.unsqueeze(-1) > 0, residual_BV, p_BV)


def extend_weight(weight_B: Tensor, p_BV: Tensor, q_BV: Tensor, token_B: Tensor) -> Tensor:
    """float64 w_(j+1) from w_j and the next draft; 0 where q gives it no mass, which stands for no draft at all."""
    p_B = p_BV.gather(-1, token_B.unsqueeze(-1)).squeeze(-1)
    q_B = q_BV.gather(-1, token_B.unsqueeze(-1)).squeeze(-1)
    return torch.where(q_B > 0, (weight_B * p_B / q_B).clamp(max=1.0), 0.0)


def _law(logits_BV: Tensor) -> Tensor:
    return logits_BV.to(torch.float64).softmax(dim=-1)


def _proposal_law(
    q_logits_BV: Tensor | None, token_B: Tensor, is_drafted_B: Tensor, has_q_B: Tensor | None, p_BV: Tensor
) -> Tensor:
    """float64 [B, V] q of one position: drawn, looked up, or 0 where the row has no draft or its q is not finite."""
    if q_logits_BV is None:
        q_BV = torch.zeros_like(p_BV).scatter_(-1, token_B.unsqueeze(-1), 1.0)
    else:
        q_BV = _law(q_logits_BV)
        if has_q_B is not None:
            known_BV = torch.zeros_like(q_BV).scatter_(-1, token_B.unsqueeze(-1), 1.0)
            q_BV = torch.where(has_q_B.unsqueeze(-1), q_BV, known_BV)
    is_usable_B = is_drafted_B & q_BV.sum(dim=-1).isfinite()
    return torch.where(is_usable_B.unsqueeze(-1), q_BV, 0.0)


def _draw(log_mass_BV: Tensor, key_B: Tensor) -> Tensor:
    """A token with probability proportional to exp(log_mass), by the Gumbel-max trick on the stream of the key."""
    token_V = torch.arange(log_mass_BV.shape[-1], device=log_mass_BV.device)
    return (noise.gumbel_fast(noise.hash_tokens(key_B, token_V)) + log_mass_BV).argmax(dim=-1)


def _coins(seed_B: Tensor, start_B: Tensor, index_B: Tensor) -> Tensor:
    """float64 multiples of 2**-53 in [0, 1): never 1, so a chance of 1 always wins and one of 0 never does."""
    key_B = _keys(_COIN_STREAM, seed_B, start_B, index_B)
    mantissa_B = (key_B >> (64 - _MANTISSA_BITS)) & ((1 << _MANTISSA_BITS) - 1)
    return mantissa_B.to(torch.float64) * 2.0**-_MANTISSA_BITS


def _keys(stream: int, seed_B: Tensor, start_B: Tensor, index_B: Tensor) -> Tensor:
    """int64 keys of (row seed, start of the window, stream, index); a hash of a hash, so no field cancels another."""
    return noise.keys(noise.keys(seed_B, start_B) + stream, index_B)
