"""Random sampling settings, logits and histories, and both sides' draws of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.sampling import SamplingParams, check_vocabulary
from specbatch.specdec import reference
from specbatch.specdec.sampling.draw import Draw, History, Positions, SamplingTensors, draw_target

VOCAB = 40
STOPS = (3, 17)


@dataclass(frozen=True)
class Case:
    """One position: its row's settings, raw logits, and the tokens before it; the last of them are drafts."""

    params: SamplingParams
    logits: NDArray[np.float64]
    prompt: list[int]
    completion: list[int]
    num_drafts: int

    def twin(self, logits: NDArray[np.float64] | None = None) -> int:
        return reference.draw(
            self.logits if logits is None else logits,
            self.params,
            len(self.completion),
            prompt_ids=self.prompt,
            completion_ids=self.completion,
            stop_ids=STOPS,
        )


def positions_of(cases: list[Case]) -> Positions:
    """One row each, its history padded with stale tokens."""
    committed = [(*case.prompt, *case.completion[: len(case.completion) - case.num_drafts]) for case in cases]
    width, window = max(map(len, committed)) + 3, max(case.num_drafts for case in cases) + 1
    stale = itertools.cycle((5, 0, VOCAB - 1, 9))
    history = History(
        token_BP=torch.tensor([[*row, *itertools.islice(stale, width - len(row))] for row in committed]),
        length_B=torch.tensor([len(row) for row in committed]),
        prompt_length_B=torch.tensor([len(case.prompt) for case in cases]),
        window_NJ=torch.tensor(
            [
                [*case.completion[len(case.completion) - case.num_drafts :], *[-1] * (window - case.num_drafts)]
                for case in cases
            ]
        ),
    )
    return Positions(torch.arange(len(cases)), torch.tensor([len(case.completion) for case in cases]), history)


def draw_all(cases: list[Case], epsilon: float = 0.0, dtype: torch.dtype = torch.float64) -> Draw:
    logits_NV = torch.tensor(np.stack([case.logits for case in cases])).to(dtype)
    return draw_target(logits_NV, positions_of(cases), tensors([case.params for case in cases]), epsilon)


def tensors(params: list[SamplingParams], vocab: int = VOCAB) -> SamplingTensors:
    return SamplingTensors.from_params(params, [STOPS] * len(params), torch.device("cpu"), vocab)


def random_params(generator: np.random.Generator, **fixed: Any) -> SamplingParams:
    """Settings with some features on; settings that contradict each other are drawn again."""

    def some(values: tuple[Any, ...], off: Any, rate: float = 0.4) -> Any:
        return values[generator.integers(len(values))] if generator.random() < rate else off

    def ids(most: int) -> tuple[int, ...]:
        return tuple(map(int, generator.choice(VOCAB, generator.integers(1, most), replace=False)))

    while True:
        fields: dict[str, Any] = {
            "temperature": some((0.01, 0.5, 1.0, 2.5), 0.0, 0.75),
            "top_k": some((1, 3, 39, 40, 500), 0),
            "top_p": some((0.95, 0.5, 0.001), 1.0),
            "min_p": some((0.001, 0.1, 0.7, 1.0), 0.0),
            "repetition_penalty": some((0.5, 1.1, 3.0), 1.0),
            "presence_penalty": some((-1.0, 0.3, 2.0), 0.0),
            "frequency_penalty": some((-0.7, 0.2, 1.5), 0.0),
            "logit_bias": tuple((token, float(generator.normal(0, 5))) for token in some((ids(6),), ())),
            "banned_token_ids": some((ids(10),), ()),
            "allowed_token_ids": some((ids(30),), None, 0.2),
            "forced_token_ids": some((ids(5),), (), 0.2),
            "min_new_tokens": some((1, 4, 100), 0),
            "seed": int(generator.integers(1 << 63)),
        }
        try:
            params = SamplingParams(**fields | fixed)
            check_vocabulary(params, STOPS, VOCAB)
        except SpecbatchError:
            continue
        return params


def random_case(generator: np.random.Generator, spread: float = 4.0, **fixed: Any) -> Case:
    completion = generator.integers(0, VOCAB, generator.integers(0, 12)).tolist()
    # A few distinct values make ties and near ties frequent.
    logits = generator.normal(0, spread, VOCAB)
    if generator.random() < 0.2:
        logits = np.round(logits)
    return Case(
        params=random_params(generator, **fixed),
        logits=logits,
        prompt=generator.integers(0, VOCAB, generator.integers(1, 9)).tolist(),
        completion=completion,
        num_drafts=int(generator.integers(0, len(completion) + 1)),
    )


CASES = st.integers(0, 1 << 32).map(lambda seed: random_case(np.random.default_rng(seed)))
