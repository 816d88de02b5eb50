"""The twin of paged attention against attention by the book, and the writing of pages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from paged_cases import PAGE, by_the_book, case

from specbatch.specdec.kernels import attend
from specbatch.specdec.kernels.twin import paged_attention_twin, pages_and_offsets, write_pages

SCALING = 0.3


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (7, 1)], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"window": 1}, {"window": 20}, {"softcap": 1.5}, {"window": 9, "softcap": 0.5}], ids=str
)
def test_the_twin_is_attention_by_the_book(heads: tuple[int, int], options: dict[str, Any]) -> None:
    paged = case([1, 0, 5, 1, 19], [40, 3, 14, 0, 30], heads=heads, widths=(16, 24))
    out = paged_attention_twin(
        paged.query_MQD, paged.key_NSHD, paged.value_NSHD, paged.spans, scaling=SCALING, **options
    )
    torch.testing.assert_close(out, by_the_book(paged, scaling=SCALING, **options), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pools_of_8_bits_are_read_in_the_queries_type(dtype: torch.dtype) -> None:
    paged = case([1, 3], [20, 9], dtype=dtype, pool=torch.float8_e4m3fn)
    out = attend(paged.query_MQD, paged.key_NSHD, paged.value_NSHD, paged.spans, scaling=SCALING)
    assert out.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), by_the_book(paged, scaling=SCALING), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("pool", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_tokens_are_written_where_they_stand(pool: torch.dtype) -> None:
    memory = torch.zeros(4, PAGE, 2, 8, dtype=pool)
    states = torch.randn(3, 2, 8, dtype=torch.float64)
    places = torch.tensor([3 * PAGE + 15, PAGE, 2 * PAGE + 7])
    write_pages(memory, states, pages_and_offsets(places, PAGE))
    for number, (page, slot) in enumerate([(3, 15), (1, 0), (2, 7)]):
        assert torch.equal(memory[page, slot].double(), states[number].to(pool).double())
    assert int((memory.double() != 0).any(-1).any(-1).sum()) == 3


def test_pages_in_a_row_give_the_bits_of_pages_in_disorder() -> None:
    """They are read where they lie, not gathered."""
    paged = case([2], [50])
    num_pages = 4
    table = paged.spans.table_RW[0, :num_pages].long()
    in_order = torch.arange(1, num_pages + 1)
    key, value = torch.zeros_like(paged.key_NSHD), torch.zeros_like(paged.value_NSHD)
    key[in_order], value[in_order] = paged.key_NSHD[table], paged.value_NSHD[table]
    expected = attend(paged.query_MQD, paged.key_NSHD, paged.value_NSHD, paged.spans, scaling=SCALING)
    paged.spans.table_RW[0, :num_pages] = in_order
    assert torch.equal(attend(paged.query_MQD, key, value, paged.spans, scaling=SCALING), expected)
