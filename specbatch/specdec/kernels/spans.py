"""Where the tokens of a forward stand in paged key-value memory.

Keys and values lie in pages of ``page_size`` positions. A row's page table says which pages hold it, in order: position
p of the row is entry ``p % page_size`` of page ``table_RW[row, p // page_size]``. Page 0 belongs to nobody: what may be
written but never read goes there.

Shape letters: M tokens of the forward, R segments (rows that are fed), W pages of the longest row, N pages in all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SCRATCH_PAGE = 0
"""The page that no row owns."""


@dataclass(frozen=True, slots=True)
class Spans:
    """Segments of consecutive tokens, one for each row that is fed.

    A segment of ``count_R[r]`` tokens stands at ``first_R[r]`` of the flat tokens and begins at position ``start_R[r]``
    of its row. Token i of it sees the row's positions 0 .. start + i (a window sees fewer). Tokens that belong to no
    segment may stand between segments; nothing is computed for them.

    Attributes:
        first_R, count_R, start_R: int32 on the device. table_RW: int32 on the device; entries behind a row's last page
            mean nothing.
        max_count: no segment has more tokens. max_keys: no segment ends behind this position; both are host integers
            that only shape the launch.
    """

    first_R: Tensor
    count_R: Tensor
    start_R: Tensor
    table_RW: Tensor
    max_count: int
    max_keys: int


def by_token(spans: Spans) -> Spans:
    """The same tokens as segments of one token each; asks the device how many there are."""
    count_R = spans.count_R.to(torch.int64)
    row_M = torch.repeat_interleave(torch.arange(len(count_R), device=count_R.device), count_R)
    place_M = torch.arange(len(row_M), device=count_R.device) - (count_R.cumsum(0) - count_R)[row_M]
    return Spans(
        first_R=spans.first_R[row_M] + place_M.to(torch.int32),
        count_R=torch.ones_like(spans.first_R[row_M]),
        start_R=spans.start_R[row_M] + place_M.to(torch.int32),
        table_RW=spans.table_RW[row_M],
        max_count=1,
        max_keys=spans.max_keys,
    )
