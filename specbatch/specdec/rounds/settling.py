"""The second half of a round: the target's logits become tokens, the tokens are judged, committed, and rows retired.

Everything that the host needs of a round crosses from the device in one copy.

Shape letters: B rows, K drafts, T = K + 1, N scored positions (row b has its K_b + 1, rows in order), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specbatch.specdec.accept import NO_CUT, BoolArray, Commit, IntArray, accept, commit
from specbatch.specdec.forward.feed import on_device
from specbatch.specdec.output import SequenceOutput
from specbatch.specdec.rows.batch import Batch
from specbatch.specdec.sampling.coupling import accept_block
from specbatch.specdec.sampling.draw import Positions, SamplingTensors, draw_target, logprobs_at, transformed_logits


@dataclass(frozen=True, slots=True)
class Proposals:
    """Drafts of a round.

    Attributes:
        draft_BK: int64 on the device; what stands at or beyond a row's draft length means nothing.
        draft_length_B, is_model_B: how many each row has, and whether the draft model proposed them; on the host.
        q_logits: with the ``distribution`` coupling, transformed logits [B, V] that each draft was drawn from: one for
            each step of the draft model, which may be fewer than K; drafts beyond them were looked up.
    """

    draft_BK: Tensor
    draft_length_B: IntArray
    is_model_B: BoolArray
    q_logits: list[Tensor] = field(default_factory=list)

    @staticmethod
    def none(num_rows: int, device: torch.device) -> Proposals:
        """Of rows that decode plainly."""
        empty = torch.empty((num_rows, 0), dtype=torch.int64, device=device)
        return Proposals(empty, np.zeros(num_rows, dtype=np.int64), np.zeros(num_rows, dtype=np.bool_))

    def of(self, is_chosen_B: BoolArray) -> Proposals:
        """Those of some rows, on the host only: without the drafts themselves."""
        none = Proposals.none(int(is_chosen_B.sum()), torch.device("cpu"))
        return Proposals(none.draft_BK, self.draft_length_B[is_chosen_B], self.is_model_B[is_chosen_B])

    def among(self, row_B: IntArray, all_B: IntArray) -> Proposals:
        """The same among more rows, which decode plainly; ``all_B`` holds ``row_B``, both ascend."""
        place_B = np.searchsorted(all_B, row_B)
        draft_length_B, is_model_B = np.zeros(len(all_B), dtype=np.int64), np.zeros(len(all_B), dtype=np.bool_)
        draft_length_B[place_B], is_model_B[place_B] = self.draft_length_B, self.is_model_B
        place = on_device(place_B, self.draft_BK.device)

        def spread(values: Tensor) -> Tensor:
            return values.new_zeros(len(all_B), values.shape[1]).index_copy_(0, place, values)

        q_logits = [spread(values) for values in self.q_logits]
        return Proposals(spread(self.draft_BK), draft_length_B, is_model_B, q_logits)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a round came to: rows that ended, and each row's verdict."""

    finished: list[SequenceOutput]
    verdict: Commit


@dataclass(frozen=True, slots=True)
class Draws:
    """The draws of a round on the host, padded.

    ``target_BT``, ``logprob_BT`` and ``is_open_BT`` change where near ties are decided again.
    """

    target_BT: IntArray
    draft_BK: IntArray
    margin_BT: NDArray[np.float64]
    is_open_BT: BoolArray
    is_finite_BT: BoolArray
    logprob_BT: NDArray[np.float32] | None
    num_matched_B: IntArray | None

    def of(self, is_chosen_B: BoolArray) -> Draws:
        """Those of some rows."""
        return Draws(
            target_BT=self.target_BT[is_chosen_B],
            draft_BK=self.draft_BK[is_chosen_B],
            margin_BT=self.margin_BT[is_chosen_B],
            is_open_BT=self.is_open_BT[is_chosen_B],
            is_finite_BT=self.is_finite_BT[is_chosen_B],
            logprob_BT=None if self.logprob_BT is None else self.logprob_BT[is_chosen_B],
            num_matched_B=None if self.num_matched_B is None else self.num_matched_B[is_chosen_B],
        )


def settle_and_commit(batch: Batch, row_B: IntArray, proposals: Proposals, logits_NV: Tensor) -> Settled:
    """Accept, decide near ties, cut at terminators, commit, keep the books, retire.

    Args:
        row_B: slots of the rows, ascending. logits_NV: the target's, behind each row's last token and its drafts.
    """
    with batch.clock.timed("accept"):
        draws = _draw(batch, row_B, proposals, logits_NV)
    return settle_draws(batch, row_B, proposals, draws)


def settle_draws(batch: Batch, row_B: IntArray, proposals: Proposals, draws: Draws) -> Settled:
    """The same behind draws that the host has already."""
    with batch.clock.timed("accept"):
        verdict = _settle(batch, row_B, proposals, draws)
    with batch.clock.timed("host"):
        return Settled(_commit(batch, row_B, proposals, draws, verdict), verdict)


def _draw(batch: Batch, row_B: IntArray, proposals: Proposals, logits_NV: Tensor) -> Draws:
    """The target's draws, or the ratio test's verdict, brought to the host in one copy."""
    slots, draft_length_B = batch.slots, proposals.draft_length_B
    B, K = proposals.draft_BK.shape
    count_B = draft_length_B + 1
    first_B = np.cumsum(count_B) - count_B
    row_N = np.repeat(np.arange(B), count_B)
    offset_N = np.arange(len(row_N)) - first_B[row_N]
    index_B = slots.length_S[row_B] - slots.prompt_length_S[row_B]
    sampling = batch.sampling(row_B)
    positions = batch.positions(
        sampling,
        row_N,
        index_B[row_N] + offset_N,
        slots.history(row_B) if sampling.needs_history else slots.token_SP[:0],
        np.stack((slots.length_S[row_B], slots.prompt_length_S[row_B]), axis=1),
        _windows(batch, proposals, row_N, offset_N) if sampling.needs_history else None,
    )
    pad_BT = first_B[:, None] + np.minimum(np.arange(K + 1), draft_length_B[:, None])
    if batch.has_ratio_test:
        parts = _ratio_test(batch, proposals, positions, sampling, logits_NV, index_B, pad_BT)
    else:
        draw = draw_target(logits_NV, positions, sampling, batch.epsilon, is_final=batch.target.is_invariant)
        parts = [draw.token_N, draw.margin_N, draw.certainty, draw.is_finite_N]
        parts += [] if draw.logprob_N is None else [draw.logprob_N]
    host = torch.cat([part.flatten().to(torch.float64) for part in (proposals.draft_BK, *parts)]).cpu().numpy()
    sizes = np.cumsum([part.numel() for part in (proposals.draft_BK, *parts)])
    draft, *rest = np.split(host, sizes[:-1])
    draft_BK = draft.astype(np.int64).reshape(B, K)
    if batch.has_ratio_test:
        target, matched, finite, *logprob = rest
        return Draws(
            target_BT=target.astype(np.int64).reshape(B, K + 1),
            draft_BK=draft_BK,
            margin_BT=np.full((B, K + 1), np.inf),
            is_open_BT=np.zeros((B, K + 1), dtype=np.bool_),
            is_finite_BT=np.repeat(finite.astype(np.bool_)[:, None], K + 1, axis=1),
            logprob_BT=logprob[0].astype(np.float32).reshape(B, K + 1) if logprob else None,
            num_matched_B=matched.astype(np.int64),
        )
    token, margin, certainty, finite, *logprob = rest
    return Draws(
        target_BT=token.astype(np.int64)[pad_BT],
        draft_BK=draft_BK,
        margin_BT=margin[pad_BT],
        is_open_BT=is_open(certainty[pad_BT], batch.epsilon),
        is_finite_BT=finite[pad_BT] != 0,
        logprob_BT=logprob[0].astype(np.float32)[pad_BT] if logprob else None,
        num_matched_B=None,
    )


def is_open(certainty_BT: NDArray[np.float64], epsilon: float) -> BoolArray:
    """Where canonical evaluation decides: near ties, where they are looked for, and draws that are not known."""
    is_open_BT: BoolArray = (certainty_BT < 0) | ((certainty_BT == 0) & (epsilon > 0))
    return is_open_BT


def _ratio_test(
    batch: Batch,
    proposals: Proposals,
    positions: Positions,
    sampling: SamplingTensors,
    logits_NV: Tensor,
    index_B: IntArray,
    pad_BT: IntArray,
) -> list[Tensor]:
    """Tokens [B, T], accepted drafts [B], whether the logits are finite [B], and logprobs [B, T] if asked for."""
    has_q_B = on_device(proposals.is_model_B, batch.device)
    verdict = accept_block(
        transformed_logits(logits_NV, positions, sampling),
        proposals.q_logits,
        proposals.draft_BK,
        batch.tensor(proposals.draft_length_B),
        sampling.seed_B,
        batch.tensor(index_B),
        has_q_B,
    )
    parts = [verdict.token_BT, verdict.num_accepted_B, verdict.is_finite_B]
    if sampling.wants_logprobs:
        parts.append(logprobs_at(logits_NV, batch.tensor(pad_BT), verdict.token_BT.clamp(min=0)))
    return parts


def _windows(batch: Batch, proposals: Proposals, row_N: IntArray, offset_N: IntArray) -> Tensor:
    """Drafts before each scored position [N, K], padded with -1."""
    K = proposals.draft_BK.shape[1]
    is_before_NK = on_device(np.arange(K) < offset_N[:, None], batch.device)
    return torch.where(is_before_NK, proposals.draft_BK[batch.tensor(row_N)], -1)


def _settle(batch: Batch, row_B: IntArray, proposals: Proposals, draws: Draws) -> Commit:
    """Judge; where a token that would be committed is a near tie, canonical evaluation decides it first.

    Positions are settled in order, because what follows a changed token was drawn behind another prefix.
    """
    target_BT, is_open_BT = draws.target_BT, draws.is_open_BT
    while True:
        verdict = _judge(batch, row_B, proposals, draws)
        is_due_BT = is_open_BT & _is_committed(target_BT, verdict)
        if not is_due_BT.any():
            return verdict
        for row in np.flatnonzero(is_due_BT.any(axis=1)):
            j = int(is_due_BT[row].argmax())
            token, logprob = batch.canonical_token(int(row_B[row]), target_BT[row, :j])
            target_BT[row, j], is_open_BT[row, j] = token, False
            if draws.logprob_BT is not None:
                draws.logprob_BT[row, j] = logprob


def _judge(batch: Batch, row_B: IntArray, proposals: Proposals, draws: Draws) -> Commit:
    """What would be committed of the draws as they stand: up to the earliest terminator."""
    slots, target_BT, draft_length_B = batch.slots, draws.target_BT, proposals.draft_length_B
    matched_B = draws.num_matched_B
    if matched_B is None:
        matched_B = accept(draws.draft_BK, draft_length_B, target_BT)
    remaining_B = slots.end_S[row_B] - slots.length_S[row_B]
    stop_BX = slots.stop_SX[row_B]
    verdict = commit(target_BT, matched_B, draft_length_B, remaining_B, stop_BX)
    cut_B = np.full(len(row_B), NO_CUT, dtype=np.int64)
    for row, slot in enumerate(row_B):
        matcher = slots.request(int(slot)).matcher
        if matcher is not None:
            said = slots.token_SP[slot, slots.prompt_length_S[slot] : slots.length_S[slot]]
            new = target_BT[row, : verdict.num_committed_B[row]]
            stop = matcher.first_stop(np.concatenate((said, new)), len(said))
            cut_B[row] = NO_CUT if stop is None else stop - len(said)
    if (cut_B < NO_CUT).any():
        verdict = commit(target_BT, matched_B, draft_length_B, remaining_B, stop_BX, cut_B)
    return verdict


def _commit(batch: Batch, row_B: IntArray, proposals: Proposals, draws: Draws, verdict: Commit) -> list[SequenceOutput]:
    slots, draft_length_B = batch.slots, proposals.draft_length_B
    is_committed_BT = _is_committed(draws.target_BT, verdict)
    margin_BT = np.where(is_committed_BT, draws.margin_BT, np.inf)
    slots.margin_S[row_B] = np.minimum(slots.margin_S[row_B], margin_BT.min(axis=1))
    is_broken_B: BoolArray = np.any(is_committed_BT & ~draws.is_finite_BT, axis=1)
    # The draft has seen its own proposals but the last; those that were accepted stay in its cache.
    is_model_B = proposals.is_model_B & (draft_length_B > 0)
    draft_kv_B = slots.length_S[row_B] + np.minimum(draft_length_B - 1, verdict.num_accepted_B)
    slots.draft_kv_S[row_B] = np.where(is_model_B, draft_kv_B, slots.draft_kv_S[row_B])
    slots.append(row_B, draws.target_BT, draws.logprob_BT, verdict)
    slots.target_kv_S[row_B] = slots.length_S[row_B] - 1
    slots.count(row_B, draft_length_B, verdict)
    slots.judge_model(row_B[is_model_B], verdict.num_proposed_B[is_model_B], verdict.num_accepted_B[is_model_B])
    if batch.suffix is not None:
        batch.suffix.append(row_B, draws.target_BT, verdict.num_committed_B)
    is_stopped_B = verdict.is_stopped_B | verdict.is_cut_B
    ended = np.flatnonzero(verdict.has_ended_B | is_broken_B).tolist()
    return [
        batch.retire(int(row_B[row]), is_stopped=bool(is_stopped_B[row]), is_broken=bool(is_broken_B[row]))
        for row in ended
    ]


def _is_committed(target_BT: IntArray, verdict: Commit) -> BoolArray:
    is_committed_BT: BoolArray = np.arange(target_BT.shape[1]) < verdict.num_committed_B[:, None]
    return is_committed_BT
