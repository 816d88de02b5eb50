"""What is captured and when, and what is done once while an engine is made; graphs are made of nothing here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import engine, perturbed, tiny_model
from twin import Rows, full_twin, tokens

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.kernels.launch import tile_rows
from specbatch.specdec.rounds import graphs
from specbatch.specdec.rounds.graphs import GraphBook
from specbatch.specdec.rounds.warming import shapes


@pytest.fixture(scope="module")
def target() -> Any:
    return tiny_model("llama", seed=3)


@pytest.fixture(scope="module")
def draft(target: Any) -> Any:
    return perturbed(target, 0.15)


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a book of a GPU does."""

    class Graph:
        def __init__(self, key: Any) -> None:
            self._key = key

        def replay(self) -> None:
            seen.append(("replayed", self._key))

    def capture(book: GraphBook, work: Callable[[], Any]) -> graphs._Captured:
        seen.append("captured")
        return graphs._Captured(Graph(work()), None)

    seen: list[Any] = []
    monkeypatch.setattr(GraphBook, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: seen.append("waited"))
    return seen


def test_of_many_shapes_the_ones_used_last_stay_captured(happened: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_MOST_GRAPHS", 3)
    book = GraphBook(torch.device("cuda"))
    for key in (1, 2, 3, 1, 4, 1, 3, 2):
        book.run(key, lambda key=key: happened.append(key) or key, at_once=True)  # type: ignore[misc, func-returns-value]
    made = [what for what in happened if not isinstance(what, tuple) and what != "captured"]
    assert made == [1, 2, 3, "waited", 4, "waited", 2], "2 is the one that was used longest ago when 4 comes"


def test_a_shape_that_is_met_once_is_not_captured(happened: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture takes as long as some rounds, and waits for the one under way."""
    book = GraphBook(torch.device("cuda"))

    def run(key: int) -> int:
        happened.clear()
        book.run(key, lambda: happened.append(key))
        return book.num_unusual

    assert (run(1), happened) == (1, [1])
    assert (run(2), happened) == (2, [2])
    assert (run(1), happened) == (3, ["captured", 1, ("replayed", None)])
    assert (run(1), happened) == (3, [("replayed", None)])
    monkeypatch.setattr(graphs, "_MOST_MET", 3)
    assert [run(key) for key in (3, 4, 5, 3)] == [4, 5, 6, 7]
    assert happened == [3], "what has been forgotten is met for the first time"


@pytest.mark.parametrize("path", ["ahead", "paged"])
@pytest.mark.parametrize("has_draft", [False, True])
def test_what_is_done_once_leaves_nothing_behind(target: Any, draft: Any, path: Any, has_draft: bool) -> None:
    rows: Rows = [([n, 7], SamplingParams(max_new_tokens=9, temperature=0.8, seed=n)) for n in range(3)]
    subject = engine(target, draft if has_draft else None, k=3 if has_draft else 0, batch=3, path=path)
    subject._stepper.warm_up()
    pages = subject._batch.pages
    assert pages is not None
    assert pages.table.held_S.tolist() == [0, 0, 0]
    for memory in pages.memories:
        assert all(not pool[1:].any() for pool in (*memory.keys, *memory.values)), "only the scratch page is written"
    outputs = subject.generate([ids for ids, _ in rows], [params for _, params in rows])
    assert tokens(outputs) == [(t.token_ids, t.finish_reason) for t in full_twin(target, rows, path="lean")]


def test_memory_that_does_not_suffice_for_it_is_left_to_the_job(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = engine(target, batch=3, path="ahead")
    errors = [RuntimeError("a kernel is broken"), torch.OutOfMemoryError("out of memory")]

    def fails(*arguments: Any, **options: Any) -> Any:
        raise errors.pop()

    monkeypatch.setattr(subject._stepper._ahead.captured, "seconds_of", fails)
    subject._stepper.warm_up()
    with pytest.raises(RuntimeError, match="a kernel is broken"):
        subject._stepper.warm_up()


@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("max_rows", [1, 5, 64, 256])
def test_every_tile_that_rounds_and_prompts_take_has_been_compiled_before(
    group: int, width: int, max_rows: int
) -> None:
    """All that a job may ask for: rounds of any K, prompts of any length, and both in one forward."""

    def tile(num_rows: int, count: int, num_tokens: int) -> int:
        return tile_rows(
            torch.bfloat16,
            width,
            num_rows=num_tokens * group,
            num_segments=num_rows,
            max_rows=count * group,
            is_invariant=False,
        )

    compiled = {tile(rows, count, rows * count) for rows, count in shapes(max_rows, 4096)}
    asked = {tile(rows, k + 1, rows * (k + 1)) for rows in range(1, max_rows + 1) for k in range(17)}
    asked |= {tile(rows + 1, chunk, rows * 3 + chunk) for rows in range(max_rows) for chunk in range(1, 2049, 13)}
    assert asked <= compiled


def test_a_book_that_is_cleared_gives_its_memory_back_behind_the_last_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: seen.append("waited"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append(f"{len(book._held)} held"))
    book = GraphBook(torch.device("cuda"))
    book.clear()
    assert not seen
    book._held[1] = graphs._Captured(None, None)
    book.clear()
    assert seen == ["waited", "0 held"]
