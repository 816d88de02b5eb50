"""Shared models of the engine's tests."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tiny import CONTEXT, VOCAB, perturbed, tiny_model

from specbatch.schemas.sampling import SamplingParams


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def target() -> Any:
    return tiny_model(seed=3)


@pytest.fixture(scope="session")
def draft(target: Any) -> Any:
    return perturbed(target, 0.15)


@pytest.fixture(scope="session")
def rows() -> list[tuple[list[int], SamplingParams]]:
    """Ragged prompts and lengths, greedy and random rows side by side, one-token and full-context prompts."""
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
