"""Several finished jobs side by side: which was fastest, and whether they can be compared at all. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specbatch.schemas.manifest import Manifest

REGRESSION_BELOW = 0.9

_SETTINGS = {
    "workers": "the number of workers",
    "batch_size": "the batch size",
    "device": "the device",
    "num_threads": "the number of threads",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The first job is the base of every ratio.

    Attributes:
        ratios: tokens per second over those of the first; None where the first decoded none.
        fastest: index of the job with the most tokens per second.
        regressions: indices of jobs with less than 0.9 of the first one's tokens per second.
        same_text: all jobs have the same identity S, so their texts are the same by contract.
        differences: fields of the identity in which a job differs from the first; empty when ``same_text``.
        caveats: what makes the ratios less than a fair race, in words.
    """

    ratios: tuple[float | None, ...]
    fastest: int
    regressions: tuple[int, ...]
    same_text: bool
    differences: tuple[str, ...]
    caveats: tuple[str, ...]


def compare(manifests: Sequence[Manifest]) -> Comparison:
    """Compares the throughput that the jobs observed.

    Args:
        manifests: two or more; the first is the base.
    """
    base = manifests[0]
    speeds = [manifest.observed.throughput.output_tokens_per_second for manifest in manifests]
    ratios = tuple(speed / speeds[0] if speeds[0] > 0 else None for speed in speeds)
    differences = sorted(
        {key for manifest in manifests[1:] for key in _differing_keys(base.identity.fields, manifest.identity.fields)}
    )
    same_text = all(manifest.identity.S == base.identity.S for manifest in manifests)
    return Comparison(
        ratios=ratios,
        fastest=max(range(len(speeds)), key=speeds.__getitem__),
        regressions=tuple(i for i, ratio in enumerate(ratios) if ratio is not None and ratio < REGRESSION_BELOW),
        same_text=same_text,
        differences=() if same_text else tuple(differences),
        caveats=tuple(_caveats(manifests, same_text)),
    )


def _caveats(manifests: Sequence[Manifest], same_text: bool) -> list[str]:
    base = manifests[0]
    caveats = []
    if same_text and any(
        (m.commit.tokens.completion, m.commit.counts.ok) != (base.commit.tokens.completion, base.commit.counts.ok)
        for m in manifests
    ):
        caveats.append("the identities are equal but the numbers of output tokens are not: compare the texts")
    if any(m.observed.hardware != base.observed.hardware for m in manifests):
        caveats.append("the hardware was not the same")
    if any(m.observed.versions != base.observed.versions for m in manifests):
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
