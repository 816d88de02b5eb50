"""Several finished jobs side by side: what changed, what of it is a regression, and what can be compared at all. Pure.

The first job is the base. A change is a regression if it is for the worse, larger than the threshold of its figure,
and larger than the noise that the jobs themselves measured.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from specbatch.jobs.reports.facts import cost_per_million, error_rate
from specbatch.schemas.manifest import Manifest

REGRESSION_BELOW = 0.9
"""Of the first job's tokens per second."""

Standing = Literal["worse", "better", "same", "noise", "unknown"]
"""``noise``: larger than the threshold, but not larger than what the jobs vary by themselves."""

_SETTINGS = {
    "workers": "the number of workers",
    "batch_size": "the batch size",
    "device": "the device",
    "num_threads": "the number of threads",
}
_SAME_KIND = ("model", "prompt", "generation")
"""Parts of the identity that must be equal for figures to be compared; other rows or columns may differ."""
_MIN_BUCKETS = 20
_NUM_BATCHES = 10
_T_9 = 2.262
"""97.5 % quantile of Student's t with 9 degrees of freedom: ten batches."""
_Z = 1.96


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure of one job and the half width of its 95 % interval; 0 where nothing tells its noise."""

    value: float
    noise: float = 0.0


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure that is compared.

    Attributes:
        more_is_better: the direction in which a change is welcome.
        is_relative: changes are shares of the base; else differences.
        threshold: the least change for the worse that is flagged. reason: why this much.
    """

    key: str
    label: str
    more_is_better: bool
    is_relative: bool
    threshold: float
    reason: str
    measure: Callable[[Manifest], Measured | None]


@dataclass(frozen=True, slots=True)
class Delta:
    """One figure of one job against the base.

    ``change`` is a share of the base or a difference, as the metric has it; ``noise`` is the half width of the 95 %
    interval of this change. Both None where one of the two has no such figure.
    """

    metric: Metric
    base: float | None
    value: float | None
    change: float | None
    noise: float | None
    standing: Standing


@dataclass(frozen=True, slots=True)
class Comparison:
    """The first job is the base of every ratio.

    Attributes:
        ratios: tokens per second over those of the first; None where the first decoded none.
        fastest: index of the job with the most tokens per second.
        regressions: indices of comparable jobs with some figure that is worse.
        same_text: all jobs have the same identity S, so their texts are the same by contract.
        differences: fields of the identity in which a job differs from the first; empty when ``same_text``.
        caveats: what makes the ratios less than a fair race, in words.
        deltas: for each job its figures against the first, in the order of ``METRICS``.
        is_comparable: for each job whether models, prompts and sampling are those of the first.
    """

    ratios: tuple[float | None, ...]
    fastest: int
    regressions: tuple[int, ...]
    same_text: bool
    differences: tuple[str, ...]
    caveats: tuple[str, ...]
    deltas: tuple[tuple[Delta, ...], ...]
    is_comparable: tuple[bool, ...]


def compare(manifests: Sequence[Manifest]) -> Comparison:
    """Compares what the jobs observed.

    Args:
        manifests: two or more; the first is the base.
    """
    base = manifests[0]
    speeds = [manifest.observed.throughput.output_tokens_per_second for manifest in manifests]
    differences = sorted(
        {key for manifest in manifests[1:] for key in _differing_keys(base.identity.fields, manifest.identity.fields)}
    )
    same_text = all(manifest.identity.S == base.identity.S for manifest in manifests)
    deltas = tuple(tuple(_delta(metric, base, manifest) for metric in METRICS) for manifest in manifests)
    is_comparable = tuple(_is_comparable(base, manifest) for manifest in manifests)
    return Comparison(
        ratios=tuple(speed / speeds[0] if speeds[0] > 0 else None for speed in speeds),
        fastest=max(range(len(speeds)), key=speeds.__getitem__),
        regressions=tuple(
            index
            for index, found in enumerate(deltas)
            if is_comparable[index] and any(delta.standing == "worse" for delta in found)
        ),
        same_text=same_text,
        differences=() if same_text else tuple(differences),
        caveats=tuple(_caveats(manifests, same_text)),
        deltas=deltas,
        is_comparable=is_comparable,
    )


def _speed(manifest: Manifest) -> Measured:
    """Noise by batch means over the time line, without models that load and the last rows, when batches run empty."""
    value = manifest.observed.throughput.output_tokens_per_second
    speeds = [float(bucket["tokens_per_second"]) for bucket in manifest.observed.timeline]
    begin = next((index for index, speed in enumerate(speeds) if speed > 0), 0)
    body = speeds[begin : len(speeds) * 95 // 100]
    if len(body) < _MIN_BUCKETS:
        return Measured(value)
    edges = [len(body) * index // _NUM_BATCHES for index in range(_NUM_BATCHES + 1)]
    means = [statistics.fmean(body[start:stop]) for start, stop in itertools.pairwise(edges)]
    mean = statistics.fmean(means)
    if mean <= 0:
        return Measured(value)
    return Measured(value, value * _T_9 * statistics.stdev(means) / math.sqrt(_NUM_BATCHES) / mean)


def _acceptance(manifest: Manifest) -> Measured | None:
    """Noise as if each result were one draw: the drafts of one row resemble each other."""
    rate, results = manifest.commit.acceptance.rate, manifest.commit.counts.ok
    return None if rate is None else Measured(rate, _Z * math.sqrt(rate * (1 - rate) / max(results, 1)))


def _errors(manifest: Manifest) -> Measured | None:
    """Noise of a share, with two errors and two others added, so that none among few is not taken for never."""
    counts = manifest.commit.counts
    if not counts.results:
        return None
    share = (counts.errors + 2) / (counts.results + 4)
    return Measured(error_rate(manifest), _Z * math.sqrt(share * (1 - share) / (counts.results + 4)))


def _cost(manifest: Manifest) -> Measured | None:
    """As noisy as the throughput: price and devices are known."""
    cost, speed = cost_per_million(manifest), _speed(manifest)
    if cost is None:
        return None
    return Measured(cost, cost * speed.noise / speed.value if speed.value > 0 else 0.0)


METRICS: tuple[Metric, ...] = (
    Metric(
        "output_tokens_per_second",
        "output tokens/s",
        more_is_better=True,
        is_relative=True,
        threshold=1 - REGRESSION_BELOW,
        reason="10 %: what shared machines vary by from night to night lies below it",
        measure=_speed,
    ),
    Metric(
        "acceptance_rate",
        "acceptance",
        more_is_better=True,
        is_relative=False,
        threshold=0.05,
        reason="5 points: about what costs a twentieth of the tokens per round at K = 4",
        measure=_acceptance,
    ),
    Metric(
        "error_rate",
        "error rate",
        more_is_better=False,
        is_relative=False,
        threshold=0.005,
        reason="half a point: a tenth of the error budget of 5 % that a job has by default",
        measure=_errors,
    ),
    Metric(
        "cost_per_million_tokens",
        "cost per million output tokens",
        more_is_better=False,
        is_relative=True,
        threshold=0.1,
        reason="10 %: as for the throughput that it follows",
        measure=_cost,
    ),
)


def _delta(metric: Metric, base: Manifest, manifest: Manifest) -> Delta:
    old, new = metric.measure(base), metric.measure(manifest)
    if old is None or new is None or (metric.is_relative and old.value <= 0):
        base_value, value = (None if item is None else item.value for item in (old, new))
        return Delta(metric, base_value, value, None, None, "unknown")
    change = new.value - old.value
    noise = math.hypot(old.noise, new.noise)
    if metric.is_relative:
        change, noise = change / old.value, noise / old.value
    return Delta(metric, old.value, new.value, change, noise, _standing(metric, change, noise))


def _standing(metric: Metric, change: float, noise: float) -> Standing:
    gain = change if metric.more_is_better else -change
    # A job at exactly the threshold is not worse: quotients such as 135 / 150 - 1 come out a last bit too low.
    if abs(gain) <= metric.threshold + 1e-9:
        return "same"
    if abs(gain) <= noise:
        return "noise"
    return "better" if gain > 0 else "worse"


def _is_comparable(base: Manifest, manifest: Manifest) -> bool:
    first, second = base.identity.fields, manifest.identity.fields
    return all(first.get(key) == second.get(key) for key in _SAME_KIND)


def _caveats(manifests: Sequence[Manifest], same_text: bool) -> list[str]:
    base = manifests[0]
    caveats = []
    if same_text and any(
        (m.commit.tokens.completion, m.commit.counts.ok) != (base.commit.tokens.completion, base.commit.counts.ok)
        for m in manifests
    ):
        caveats.append("the identities are equal but the numbers of output tokens are not: compare the texts")
    # An unfinished job may have had no worker that would tell.
    if any(m.observed.hardware != base.observed.hardware for m in manifests if m.observed.hardware):
        caveats.append("the hardware was not the same")
    if any(m.observed.versions != base.observed.versions for m in manifests if m.observed.versions):
        caveats.append("the library versions were not the same")
    for key, words in _SETTINGS.items():
        found = [m.observed.execution.get(key) for m in manifests]
        if any(value != found[0] for value in found):
            caveats.append(f"{words} was not the same ({', '.join(str(value) for value in found)})")
    return caveats


def _differing_keys(first: Any, second: Any, prefix: str = "") -> list[str]:
    """Dotted names of the leaves in which two identities differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        return [
            name
            for key in sorted(first.keys() | second.keys())
            for name in _differing_keys(first.get(key), second.get(key), f"{prefix}.{key}" if prefix else str(key))
        ]
    return [] if first == second else [prefix]
