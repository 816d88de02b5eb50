"""The measured speed-up: what it says, and how often its interval is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from specbatch.jobs.output.speedup import BASELINE, measure_speedup
from specbatch.schemas.run import BlockRecord

NOTHING = {
    "at_seconds": 0.0,
    "num_spec_rounds": 0,
    "num_plain_rounds": 0,
    "spec_seconds": 0.0,
    "plain_seconds": 0.0,
    "num_spec_tokens": 0,
    "num_plain_tokens": 0,
}


def block(**values: float) -> BlockRecord:
    return BlockRecord.model_validate({**NOTHING, **values})


def simulate(seed: int, *, ratio: float, num_blocks: int, rounds_per_block: int = 50) -> list[BlockRecord]:
    """Blocks of a job with a true throughput ratio; each block has its own speed of machine and its own batch."""
    rng = np.random.default_rng(seed)
    blocks = []
    for index in range(num_blocks):
        slowness = rng.lognormal(0, 0.1)
        plain = rng.random(rounds_per_block) < 0.02
        batch = rng.integers(10, 17)
        tokens_of_spec_round = batch * 2.5
        spec_round_seconds = 0.1 * 2.5 / ratio * slowness * rng.lognormal(0, 0.15, rounds_per_block)
        plain_round_seconds = 0.1 * slowness * rng.lognormal(0, 0.15, rounds_per_block)
        blocks.append(
            block(
                at_seconds=float(index),
                num_spec_rounds=int((~plain).sum()),
                num_plain_rounds=int(plain.sum()),
                spec_seconds=float(spec_round_seconds[~plain].sum()),
                plain_seconds=float(plain_round_seconds[plain].sum()),
                num_spec_tokens=int(rng.poisson(tokens_of_spec_round * max(1, (~plain).sum()))),
                num_plain_tokens=int(batch * plain.sum()),
            )
        )
    return blocks


def test_ratio_is_the_quotient_of_the_throughputs() -> None:
    blocks = [
        block(num_spec_rounds=10, spec_seconds=2.0, num_spec_tokens=300),
        block(
            num_spec_rounds=9,
            spec_seconds=2.0,
            num_spec_tokens=300,
            num_plain_rounds=1,
            plain_seconds=0.25,
            num_plain_tokens=25,
        ),
        block(num_plain_rounds=2, plain_seconds=0.25, num_plain_tokens=25),
    ]
    measured = measure_speedup(blocks)
    assert measured.ratio == pytest.approx((600 / 4.0) / (50 / 0.5))
    assert (measured.num_spec_rounds, measured.num_plain_rounds) == (19, 3)
    assert measured.baseline == BASELINE == "plain decoding at the same batch"


@pytest.mark.parametrize(
    ("blocks", "note"),
    [
        ([], "no rounds were recorded"),
        ([block(num_plain_rounds=40, plain_seconds=4.0, num_plain_tokens=400)], "speculation was off"),
        ([block(num_spec_rounds=40, spec_seconds=4.0, num_spec_tokens=400)], "no plain rounds were drawn"),
        ([block(num_spec_rounds=4, num_plain_rounds=4, num_spec_tokens=4, num_plain_tokens=4)], "no time or no tokens"),
    ],
)
def test_nothing_to_compare_says_why(blocks: list[BlockRecord], note: str) -> None:
    measured = measure_speedup(blocks)
    assert measured.ratio is None
    assert (measured.low, measured.high) == (None, None)
    assert measured.note is not None
    assert note in measured.note


@pytest.mark.parametrize(("num_plain", "words"), [(1, "only 1 plain round:"), (4, "only 4 plain rounds:")])
def test_too_few_plain_rounds_give_a_ratio_without_an_interval(num_plain: int, words: str) -> None:
    blocks = [block(num_spec_rounds=50, spec_seconds=5.0, num_spec_tokens=1000) for _ in range(10)]
    blocks += [block(num_plain_rounds=1, plain_seconds=0.1, num_plain_tokens=10) for _ in range(num_plain)]
    measured = measure_speedup(blocks)
    assert measured.ratio == pytest.approx(2.0)
    assert (measured.low, measured.high) == (None, None)
    assert words in str(measured.note)


def test_the_same_blocks_give_the_same_interval() -> None:
    blocks = simulate(1, ratio=1.6, num_blocks=40)
    assert measure_speedup(blocks) == measure_speedup(blocks)


def test_a_thousand_blocks_stay_within_memory_and_narrow_the_interval() -> None:
    few, many = (measure_speedup(simulate(3, ratio=1.6, num_blocks=n)) for n in (60, 3_000))
    assert few.low is not None
    assert few.high is not None
    assert many.low is not None
    assert many.high is not None
    assert many.high - many.low < (few.high - few.low) / 3
    assert many.low < 1.6 < many.high


@pytest.mark.parametrize(("ratio", "num_blocks"), [(1.62, 60), (0.7, 60), (1.0, 16)])
def test_interval_covers_the_truth(ratio: float, num_blocks: int) -> None:
    """A 95 % interval that held its promise would cover fewer than 180 of 200 with probability 0.003.

    The seeds are fixed, so the test cannot fail by chance; the number says how much worse than 95 % it lets pass.
    """
    covered = intervals = 0
    for seed in range(200):
        measured = measure_speedup(simulate(seed, ratio=ratio, num_blocks=num_blocks))
        if measured.low is not None and measured.high is not None:
            intervals += 1
            covered += measured.low <= ratio <= measured.high
    assert intervals >= 190
    assert covered / intervals >= 0.9


def test_interval_is_not_so_wide_that_it_says_nothing() -> None:
    widths = []
    for seed in range(50):
        measured = measure_speedup(simulate(seed, ratio=1.62, num_blocks=60))
        assert measured.low is not None
        assert measured.high is not None
        widths.append(measured.high / measured.low)
    assert float(np.median(widths)) < 1.25
