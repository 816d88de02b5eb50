"""The second opinion on amendments: whole outputs that may only decode failed results of the job above them again.

Part of ``verify``, which shares no code with the writers.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from specbatch.jobs.verify.files import Source, canonical
from specbatch.jobs.verify.verification import Verification

_FOLDER = "amendments"
_AMENDS = "amends"


def check_amendments(source: Source, parent: Verification) -> list[Verification]:
    """Verify the amendments of an output in their order, each against what is above and before it.

    Returns:
        One verification each; findings about their numbering are in the parent's ``missing`` or the child's problems.
    """
    names = source.list(_FOLDER)
    found: list[Verification] = []
    failed = dict(parent.failed)
    digests: list[str] = []
    for number, name in enumerate(sorted(names, key=lambda text: (len(text), text)), start=1):
        child = _Amendment(source.below(f"{_FOLDER}/{name}"), f"{_FOLDER}/{name}/")
        child.run()
        found.append(child)
        pairs = child.pairs()
        if name != str(number):
            child.add(f"it should be number {number}: amendments are numbered from 1 without a gap")
        if child.job:
            child.check_claim(parent, digests, failed, pairs)
        for pair in pairs:
            failed.pop(pair, None)
        failed |= child.failed
        if child.manifest_sha256 is not None:
            digests.append(child.manifest_sha256)
    return found


class _Amendment(Verification):
    """An amendment, which must say what it builds on and touch nothing that had not failed."""

    def add(self, problem: str) -> None:
        self._problems.append(problem)

    def pairs(self) -> set[tuple[int, int]]:
        """(row, sample) of its results, failed ones included; none where it is unsound: its sizes may be lies."""
        if self._problems or self.checked.get("parts") != self.checked.get("parts_planned"):
            return set()
        fields: dict[str, Any] = self.job["identity"]["fields"] if self.job else {}
        generation = fields.get("generation")
        num_samples = generation.get("num_samples", 1) if isinstance(generation, dict) else 1
        if not isinstance(num_samples, int):
            return set()
        found: set[tuple[int, int]] = set()
        for shard in self.shards:
            rows, samples = shard.expected(num_samples, 0, shard.num_results(num_samples))
            found |= set(zip(rows.tolist(), samples.tolist(), strict=True))
        return found

    def check_claim(
        self,
        parent: Verification,
        digests: list[str],
        failed: dict[tuple[int, int], str],
        pairs: set[tuple[int, int]],
    ) -> None:
        """Its identity must be the parent's with what it amends, and that must be what is there.

        Args:
            digests: of the manifests of the amendments before it. failed: what had failed when it began.
            pairs: its results.
        """
        fields: dict[str, Any] = self.job["identity"]["fields"]
        above = parent.job["identity"]["fields"] if parent.job else {}
        if canonical({key: value for key, value in fields.items() if key != _AMENDS}) != canonical(above):
            self.add("its identity is not that of the job that it amends")
        claim = fields.get(_AMENDS)
        if not isinstance(claim, dict):
            self.add("it does not say what it amends")
            return
        if claim.get("manifest") != parent.manifest_sha256 or claim.get("amendments") != digests:
            self.add("it amends another manifest than the one that is there")
        if sound := [pair for pair in pairs if pair not in failed]:
            row, sample = min(sound)
            self.add(f"it decodes results that had not failed: {len(sound):,}, the first is row {row} sample {sample}")
        elif pairs and claim.get("codes") != dict(Counter(failed[pair] for pair in pairs)):
            self.add("the codes that it says it amends are not those of its rows")
