"""How far logits move when only the batch shape changes.

Shape letters: B rows, N scored positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

from exactness.passes import Rows, load
from specbatch.specdec import Engine, SequenceOutput
from specbatch.specdec.accept import IntArray
from specbatch.specdec.rounds import decoding, prefill
from specbatch.specdec.rounds.settling import Proposals, Settled, settle_and_commit
from specbatch.specdec.rows.batch import Batch

QUANTILE = 0.999

Logits = dict[tuple[int, int], np.ndarray[Any, np.dtype[np.float32]]]
"""(row, index in the completion) -> float32 [V], raw logits that the token was drawn from."""


@contextmanager
def recorded(logits: Logits) -> Iterator[None]:
    """Keep the logits behind every token that is committed inside."""

    def record(batch: Batch, row_B: IntArray, proposals: Proposals, logits_NV: torch.Tensor) -> Settled:
        slots = batch.slots
        keys = [slots.request(int(slot)).key for slot in row_B]
        index_B = slots.length_S[row_B] - slots.prompt_length_S[row_B]
        count_B = proposals.draft_length_B + 1
        first_B = np.cumsum(count_B) - count_B
        settled = settle_and_commit(batch, row_B, proposals, logits_NV)
        for b, key in enumerate(keys):
            for j in range(int(settled.verdict.num_committed_B[b])):
                assert isinstance(key, int)
                logits[key, int(index_B[b]) + j] = logits_NV[int(first_B[b]) + j].float().numpy().copy()
        return settled

    with (
        mock.patch.object(decoding, "settle_and_commit", record),
        mock.patch.object(prefill, "settle_and_commit", record),
    ):
        yield


def logit_lines(rows: Rows, num_rows: int, num_drafts: int) -> Iterator[str]:
    """How far logits move when only the batch shape changes."""

    def run(make: Callable[[], Engine]) -> tuple[Logits, list[SequenceOutput]]:
        logits: Logits = {}
        with recorded(logits):
            return logits, rows.decode(make(), range(num_rows), 0.7).outputs

    for dtype in ("float32", "bfloat16"):
        reference, texts = run(lambda dtype=dtype: load(1, "off", dtype))  # type: ignore[misc]
        shapes: list[tuple[str, Callable[[], Engine]]] = [
            (f"1 row, K = {num_drafts}", lambda dtype=dtype: load(1, num_drafts, dtype)),  # type: ignore[misc]
            ("16 rows, plain", lambda dtype=dtype: load(16, "off", dtype)),  # type: ignore[misc]
            (f"16 rows, K = {num_drafts}", lambda dtype=dtype: load(16, num_drafts, dtype)),  # type: ignore[misc]
        ]
        if dtype == "float32":
            shapes.append(("1 row, plain, generic path", lambda: load(1, "off", "float32", "generic")))
        for name, make in shapes:
            other, other_texts = run(make)
            moved, gaps = [], []
            for row, (a, b) in enumerate(zip(texts, other_texts, strict=True)):
                for index in range(len(a.token_ids)):
                    if a.token_ids[:index] != b.token_ids[:index]:
                        break
                    one_V, other_V = reference[row, index], other[row, index]
                    moved.append(np.abs(one_V - other_V))
                    best = np.argsort(one_V)[-2:]
                    gaps.append(abs(float(np.diff(one_V[best])[0] - np.diff(other_V[best])[0])))
            flat = np.concatenate(moved)
            yield (
                f"| {dtype} | {name} | {len(gaps)} | {np.median(flat):.1e} | {np.quantile(flat, QUANTILE):.1e} "
                f"| {flat.max():.1e} | {max(gaps):.1e} |"
            )
