"""Shared models of the engine's tests.

What they are made with is imported where it is asked for: the tests of kernels run on machines that lack most of it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from specbatch.schemas.sampling import SamplingParams


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def target() -> Any:
    from tiny import tiny_model

    return tiny_model(seed=3)


@pytest.fixture(scope="session")
def draft(target: Any) -> Any:
    from tiny import perturbed

    return perturbed(target, 0.15)


@pytest.fixture(scope="session")
def rows() -> list[tuple[list[int], SamplingParams]]:
    """Ragged prompts and lengths, greedy and random rows side by side, one-token and full-context prompts."""
    from tiny import CONTEXT, VOCAB

    from specbatch.schemas.sampling import SamplingParams

    generator = random.Random(5)
    rows = []
    for number in range(14):
        length = {0: 1, 1: CONTEXT - 1, 2: CONTEXT - 4}.get(number, generator.randint(2, 40))
        params = SamplingParams(
            max_new_tokens=generator.choice((1, 2, 7, 20, 33)),
            temperature=generator.choice((0.0, 0.7, 1.3)),
            top_k=generator.choice((0, 0, 5, 1)),
            top_p=generator.choice((1.0, 0.9, 0.4)),
            seed=generator.getrandbits(63),
            stop_token_ids=tuple(generator.sample(range(VOCAB), generator.choice((0, 1, 3)))),
        )
        rows.append(([generator.randrange(VOCAB) for _ in range(length)], params))
    return rows
