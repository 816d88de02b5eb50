"""What surrounds the models in a round, where the host's part may be hidden behind the device's.

A round that is launched before the last one is settled, and followed in the same way, costs little beyond its models:
the host settles and plans while the device runs. A round that lands first costs all of that. Drafts of the suffix index
make the next round land first, because the index must have seen the text: what that costs is the price of having any.
"""

from __future__ import annotations

from specbatch.specdec.policy.step_times import FloatArray, StepTimes
from specbatch.specdec.policy.types import RoundMeasure


class Surroundings:
    """Seconds around the models by tokens scored: of rounds that flew, and of rounds that landed first."""

    def __init__(self) -> None:
        self._flown, self._landed = StepTimes(), StepTimes()

    def add(self, measure: RoundMeasure, seconds: float) -> None:
        """Take in one measurement; rounds that were hidden in part are neither and say nothing."""
        if measure.hidden == "all":
            self._flown.add(measure.num_scored, seconds)
        elif measure.hidden == "none":
            self._landed.add(measure.num_scored, seconds)

    def at(self, size: int) -> float:
        """Seconds at one size, without what landing adds."""
        return float(self.between(size, size)[0])

    def between(self, first: int, last: int) -> FloatArray:
        """The same for all sizes from ``first`` to ``last``, both included; 0 before anything is known."""
        times = self._flown if self._flown.is_known else self._landed
        return times.between(first, last) * times.is_known

    def landing(self, size: int) -> float:
        """What it adds that the next round is not launched before this one is settled; 0 where rounds never fly."""
        if not self._flown.is_known or not self._landed.is_known:
            return 0.0
        return max(self._landed.at(size) - self._flown.at(size), 0.0)
