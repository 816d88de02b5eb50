"""Finding the rows of a shard that kill workers: by probes that run alone and store nothing.

Both halves of what is known to kill are tried, so several such rows are found and nothing is taken for granted: a row
is named only when it killed a worker by itself. One row among n costs at most 2 * ceil(log2(n)) probes.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from specbatch.schemas.plan import Shard

MAX_POISON_ROWS = 8


class Bisection:
    """The search in one shard that is known to kill workers.

    Rows are counted by their position in the shard: between the segments of an amendment's shard there are gaps.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._starts = list(accumulate((segment.num_rows for segment in shard.segments), initial=0))
        self._untried: list[tuple[int, int]] = []  # positions [start, stop); the next is the last
        self._poison: list[int] = []
        self._condemn(0, shard.num_rows)

    @property
    def poison(self) -> tuple[int, ...]:
        """Row ids found so far, ascending."""
        return tuple(self._poison)

    @property
    def is_hopeless(self) -> bool:
        """More rows kill than can be the rows' own fault."""
        return len(self._poison) > MAX_POISON_ROWS

    @property
    def condemns_all(self) -> bool:
        """Every row of several kills: then it is the machine, the model or the driver, and not the rows."""
        return not self._untried and len(self._poison) == self._shard.num_rows > 1

    @property
    def probe(self) -> tuple[int, int] | None:
        """Row ids [start, stop) to try next; None when the search is over."""
        if not self._untried:
            return None
        start, stop = self._untried[-1]
        return self._row_id(start), self._row_id(stop - 1) + 1

    def passed(self) -> None:
        """The probe was decoded and its worker lives."""
        self._untried.pop()

    def killed(self) -> None:
        """The worker of the probe died."""
        self._condemn(*self._untried.pop())

    def _condemn(self, start: int, stop: int) -> None:
        """Take in that these positions kill; the left half is tried first, so rows are found in their order."""
        if stop - start == 1:
            self._poison.append(self._row_id(start))
        elif stop > start:
            middle = (start + stop) // 2
            self._untried += [(middle, stop), (start, middle)]

    def _row_id(self, position: int) -> int:
        number = bisect_right(self._starts, position) - 1
        return self._shard.segments[number].first_row_id + position - self._starts[number]
