"""The speed-up of speculation, measured inside the job itself.

In a job that speculates, a hash of the round number makes a few rounds plain. They are drawn without looking at
time or acceptance, so plain and speculative rounds meet the same rows, the same batch and the same machine, and the
quotient of their throughputs estimates what speculation brought. Rounds that also read prompts are left out.
Consecutive rounds resemble each other (the same rows, the same noise of the machine), so the interval resamples whole
blocks of rounds, never single rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from specbatch.schemas.manifest import Speedup
from specbatch.schemas.run import BlockRecord

BASELINE = "plain decoding at the same batch"

_NUM_RESAMPLES = 2_000
_SEED = 20_261
_MIN_PLAIN_BLOCKS = 5
_Z = 1.959963984540054
_MAX_RESAMPLE_CELLS = 4_000_000


def measure_speedup(blocks: Sequence[BlockRecord]) -> Speedup:
    """Throughput of the speculative rounds over that of the plain rounds, with a 95 % block-bootstrap interval.

    Args:
        blocks: sums over runs of consecutive rounds, of all workers that speculated at all.

    Returns:
        ``ratio`` is None, with the reason in ``note``, where there was nothing to compare; ``low`` and ``high`` are
        None where there were too few plain rounds to bound it.
    """
    num_spec_rounds = sum(block.num_spec_rounds for block in blocks)
    num_plain_rounds = sum(block.num_plain_rounds for block in blocks)
    spec_seconds = math.fsum(block.spec_seconds for block in blocks)
    plain_seconds = math.fsum(block.plain_seconds for block in blocks)
    num_spec_tokens = sum(block.num_spec_tokens for block in blocks)
    num_plain_tokens = sum(block.num_plain_tokens for block in blocks)

    ratio: float | None = None
    interval: tuple[float, float] | None = None
    note: str | None = None
    if num_spec_rounds == 0:
        note = "speculation was off" if num_plain_rounds else "no rounds were recorded"
    elif num_plain_rounds == 0:
        note = "no plain rounds were drawn: a fixed K has none, and a short job may meet none"
    elif min(spec_seconds, plain_seconds, num_spec_tokens, num_plain_tokens) <= 0:
        note = "the rounds recorded no time or no tokens"
    else:
        ratio = (num_spec_tokens / spec_seconds) / (num_plain_tokens / plain_seconds)
        num_plain_blocks = sum(block.num_plain_rounds > 0 for block in blocks)
        if num_plain_blocks < _MIN_PLAIN_BLOCKS:
            rounds = "1 plain round" if num_plain_rounds == 1 else f"{num_plain_rounds} plain rounds"
            note = f"only {rounds}: too few for an interval"
        else:
            interval = _bootstrap_interval(blocks, ratio, num_plain_blocks)
    low, high = interval or (None, None)
    return Speedup(
        baseline=BASELINE,
        ratio=ratio,
        low=low,
        high=high,
        num_plain_rounds=num_plain_rounds,
        num_spec_rounds=num_spec_rounds,
        note=note,
    )


def _bootstrap_interval(
    blocks: Sequence[BlockRecord], ratio: float, num_plain_blocks: int
) -> tuple[float, float] | None:
    """Expanded percentile interval of the log ratio.

    The plain percentile interval is too narrow when few blocks hold plain rounds: it uses the normal quantile and
    the variance with divisor n. Stretching it about the estimate by ``t / z * sqrt(n / (n - 1))`` repairs both
    (T. Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, section 5.3).
    """
    import numpy as np

    sums = np.array(
        [(block.num_spec_tokens, block.spec_seconds, block.num_plain_tokens, block.plain_seconds) for block in blocks],
        dtype=np.float64,
    )
    num_blocks = len(sums)
    generator = np.random.default_rng(_SEED)
    draws: list[np.ndarray] = []
    chunk = max(1, min(_NUM_RESAMPLES, _MAX_RESAMPLE_CELLS // num_blocks))
    for start in range(0, _NUM_RESAMPLES, chunk):
        size = (min(chunk, _NUM_RESAMPLES - start), num_blocks)
        draws.append(sums[generator.integers(0, num_blocks, size=size)].sum(axis=1))
    totals = np.concatenate(draws)
    usable = totals[(totals > 0).all(axis=1)]
    if len(usable) == 0:
        return None
    spec_tokens, spec_seconds, plain_tokens, plain_seconds = usable.T
    logs = np.log(spec_tokens / spec_seconds) - np.log(plain_tokens / plain_seconds)

    stretch = _t_quantile(num_plain_blocks - 1) / _Z * math.sqrt(num_plain_blocks / (num_plain_blocks - 1))
    centre = math.log(ratio)
    low, high = (float(value) for value in np.quantile(logs, (0.025, 0.975)))
    return (
        math.exp(centre - max(0.0, centre - low) * stretch),
        math.exp(centre + max(0.0, high - centre) * stretch),
    )


def _t_quantile(degrees_of_freedom: int) -> float:
    """97.5 % quantile of Student's t by the Cornish-Fisher expansion, for 4 degrees of freedom or more."""
    z, v = _Z, float(degrees_of_freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
