"""How fast a run goes now, and how long it will take: from running totals and when they were seen. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from specbatch.schemas.canonical import sum_histograms

WINDOW_SECONDS = 30.0
SAMPLE_SECONDS = 1.0
MIN_SPAN_SECONDS = 2.0
"""A rate over less is an accident."""


class Window:
    """Running totals as they were seen over the last seconds, thinned to about one sample a second.

    Args:
        seconds: how far back it reaches.
    """

    def __init__(self, seconds: float = WINDOW_SECONDS) -> None:
        self._seconds = seconds
        self._samples: deque[tuple[float, tuple[int, ...]]] = deque()

    def add(self, now_seconds: float, totals: Sequence[int]) -> None:
        """Take in the totals of this moment; none of them ever falls."""
        samples = self._samples
        if len(samples) > 1 and now_seconds - samples[-2][0] < SAMPLE_SECONDS:
            samples.pop()  # the last one is always of the last moment
        samples.append((now_seconds, tuple(totals)))
        # One sample from before the window stays: the span reaches over the whole of it.
        while len(samples) > 2 and samples[1][0] <= now_seconds - self._seconds:
            samples.popleft()

    def growth(self) -> tuple[float, tuple[int, ...]]:
        """Seconds between the first and the last sample, and by how much each total rose in them."""
        if not self._samples:
            return 0.0, ()
        (first_seconds, first), (last_seconds, last) = self._samples[0], self._samples[-1]
        risen = sum_histograms((last, tuple(-value for value in first)))
        return last_seconds - first_seconds, tuple(max(value, 0) for value in risen)

    def rate(self, now_seconds: float | None = None) -> float:
        """Growth of the first total per second; 0 before there is anything to divide, or where nothing came of late.

        Args:
            now_seconds: the time now; that of the last sample if None.
        """
        seconds, risen = self.growth()
        if seconds <= 0 or not risen:
            return 0.0
        silent_seconds = 0.0 if now_seconds is None else now_seconds - self._samples[-1][0]
        return 0.0 if silent_seconds > self._seconds else risen[0] / seconds

    @property
    def span_seconds(self) -> float:
        """Between the first and the last sample."""
        return self.growth()[0]


def remaining_tokens(
    *, rows_left: int, rows_done: int, tokens_done: int, tokens_in_flight: int, rows_in_flight: int
) -> int | None:
    """Output tokens that are still to be decoded, if the rows to come are like those that are done.

    Args:
        rows_left: rows of the job that are not done, those in flight included.
        rows_done, tokens_done: rows that are done, whatever run they are of, and their output tokens.
        tokens_in_flight: decoded already of rows that are not done.

    Returns:
        None where no row is done yet; at least one token for each row that is left.
    """
    if rows_left <= 0:
        return 0
    if rows_done <= 0:
        return None
    mean = tokens_done / rows_done
    # Rows in flight have more of their tokens behind them than before them only where they are longer than usual.
    begun = min(tokens_in_flight, round(min(rows_in_flight, rows_left) * mean))
    return max(round(rows_left * mean) - begun, rows_left)


def eta_seconds(tokens: int | None, tokens_per_second: float, span_seconds: float) -> float | None:
    """Seconds until so many tokens are decoded at this rate; None without evidence for either."""
    if tokens == 0:
        return 0.0
    if tokens is None or tokens_per_second <= 0 or span_seconds < MIN_SPAN_SECONDS:
        return None
    return round(tokens / tokens_per_second, 1)


def k_shares(histogram: Sequence[int]) -> dict[str, float]:
    """The share of each K in a histogram of turns, K = 0 first; empty where there is none."""
    total = sum(histogram)
    return {str(k): round(count / total, 4) for k, count in enumerate(histogram) if count} if total else {}
