"""Segments over paged memory for the tests of attention, and what comes out of them by the book."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specbatch.specdec.kernels.spans import SCRATCH_PAGE, Spans

PAGE = 16


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@dataclass(frozen=True)
class Case:
    """Rows with their own keys and values [P, H, D], the same in pages in random order, and queries for all of them."""

    query_MQD: Tensor
    key_NSHD: Tensor
    value_NSHD: Tensor
    spans: Spans
    keys: list[Tensor]
    values: list[Tensor]

    def segment(self, row: int) -> slice:
        first, count = int(self.spans.first_R[row]), int(self.spans.count_R[row])
        return slice(first, first + count)

    def part(self, row: int, skipped: int, count: int) -> Case:
        """The same memory with one segment: some of a row's tokens, alone."""
        first, start = int(self.spans.first_R[row]) + skipped, int(self.spans.start_R[row]) + skipped
        spans = Spans(
            int32([0]), int32([count]), int32([start]), self.spans.table_RW[row : row + 1], count, start + count
        )
        device = self.query_MQD.device.type
        return replace(self, query_MQD=self.query_MQD[first : first + count], spans=spans).to(device)

    def to(self, device: str) -> Case:
        spans = self.spans
        moved = (tensor.to(device) for tensor in (spans.first_R, spans.count_R, spans.start_R, spans.table_RW))
        tensors = {name: getattr(self, name).to(device) for name in ("query_MQD", "key_NSHD", "value_NSHD")}
        return replace(self, **tensors, spans=Spans(*moved, spans.max_count, spans.max_keys))


def case(
    counts: list[int],
    starts: list[int],
    *,
    heads: tuple[int, int] = (4, 2),
    widths: tuple[int, int] = (16, 16),
    dtype: torch.dtype = torch.float64,
    pool: torch.dtype | None = None,
    seed: int = 0,
) -> Case:
    """Ragged rows; whatever no query may read is not a number, the scratch page and the ends of last pages too."""
    generator = torch.Generator().manual_seed(seed)
    (Q, H), (D, V) = heads, widths
    pool = pool or dtype
    ends = [count + start for count, start in zip(counts, starts, strict=True)]
    num_pages = [-(-end // PAGE) for end in ends]
    N = 3 + sum(num_pages)
    free = [page for page in torch.randperm(N, generator=generator).tolist() if page != SCRATCH_PAGE]
    # Entries behind a row's last page mean nothing, so they may name any page.
    table = torch.randint(0, N, (len(counts), max(num_pages) + 2), generator=generator, dtype=torch.int32)
    key = torch.full((N, PAGE, H, D), torch.nan, dtype=dtype).to(pool)
    value = torch.full((N, PAGE, H, V), torch.nan, dtype=dtype).to(pool)
    keys, values = [], []
    for row, (end, pages) in enumerate(zip(ends, num_pages, strict=True)):
        own, free = free[:pages], free[pages:]
        table[row, :pages] = int32(own)
        states = torch.randn(2, pages * PAGE, H, max(D, V), generator=generator, dtype=torch.float64).to(dtype)
        for memory, all_states, width, kept in ((key, states[0], D, keys), (value, states[1], V, values)):
            flat = all_states[..., :width].to(pool)
            flat[end:] = torch.nan
            kept.append(flat[:end].to(dtype))
            memory[own] = flat.view(pages, PAGE, H, width)
    first, total = [], 1  # a token in no segment before every segment, and one behind the last
    for count in counts:
        first.append(total)
        total += count + 1
    query = torch.randn(total, Q, D, generator=generator, dtype=torch.float64).to(dtype)
    spans = Spans(int32(first), int32(counts), int32(starts), table, max(counts), max(ends))
    return Case(query, key, value, spans, keys, values)


def by_the_book(case: Case, *, scaling: float, window: int | None = None, softcap: float | None = None) -> Tensor:
    """One query and head after the other, in float64."""
    M, Q, _ = case.query_MQD.shape
    out = torch.zeros(M, Q, case.value_NSHD.shape[-1], dtype=torch.float64)
    for row in range(len(case.keys)):
        start = int(case.spans.start_R[row])
        for number, token in enumerate(range(M)[case.segment(row)]):
            last = start + number
            lowest = 0 if window is None else max(0, last - window + 1)
            for head in range(Q):
                kv_head = head // (Q // case.keys[row].shape[1])
                keys, values = (states[row][lowest : last + 1, kv_head].double() for states in (case.keys, case.values))
                scores = keys @ case.query_MQD[token, head].double() * scaling
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                out[token, head] = torch.softmax(scores, 0) @ values
    return out
