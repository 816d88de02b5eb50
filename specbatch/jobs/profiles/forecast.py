"""How long a job will take and what it will cost, from a profile and a look at its prompts. Pure.

Rows of the lengths that were seen in calibration are put through a batch in thought: slots refill as rows end, and the
last rows run in an ever smaller batch, at the speeds of the profile's table. A trial of real rows says by how much jobs
are slower than the table. The interval covers what a sample cannot know (lengths, the scatter of the speed) and a share
for days on which the machine is not as it was.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from specbatch.jobs.profiles.table import cells, speed_at, speeds_of

if TYPE_CHECKING:
    from specbatch.jobs.profiles.store import Profile, TrialRecord

_START_SECONDS = 5.0
"""From Enter to the worker's first line: checks, and a Ray of our own."""
_MOST_SIMULATED = 4096
"""Rows that are put through in thought; those beyond add to the middle of the job, where the batch is full."""
_OTHER_DAYS = 0.10
"""Relative error that no measurement of today shows: other load, other heat."""
_Z = 1.96
_SEED = 0
_LENGTH_QUANTILES = 512


class Prompts(Protocol):
    """What a forecast needs to know of the dataset; ``plan_scan.Scan`` is one."""

    @property
    def num_results(self) -> int: ...
    @property
    def num_prompt_tokens(self) -> int: ...


class Execution(Protocol):
    """What a forecast needs to know of the run; ``prepare.Execution`` is one."""

    @property
    def device(self) -> str: ...
    @property
    def num_workers(self) -> int: ...
    @property
    def batch_size(self) -> Any: ...
    @property
    def speculation(self) -> Any: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def price_per_device_hour(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of a job whose parts are all still to be made.

    Attributes:
        wall_seconds: from the start of the command to its end. low, high: its interval of 95 %, seconds.
        device_hours: of GPUs, each of which has a worker; of the one machine on CPU.
        cost: in the currency of the price; None where none was given.
        tokens_per_second: output tokens of all workers together, once they are ready.
        completion_tokens: of the whole job.
        profile: key of the profile that it rests on. made_at: when that was measured.
    """

    wall_seconds: float
    low: float
    high: float
    device_hours: float
    cost: float | None
    tokens_per_second: float
    completion_tokens: int
    profile: str
    made_at: str

    def document(self) -> dict[str, Any]:
        """JSON values under the names of the fields."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def forecast(profile: Profile, scan: Prompts, execution: Execution) -> Forecast:
    """What a job is expected to take.

    Args:
        scan: how many results are to be decoded, from how many tokens of prompts.
        execution: workers and batch size; ``auto`` takes the profile's own. Workers are taken to be alike.
    """
    trial, cap = profile.trial, execution.max_new_tokens
    batch_size = trial.batch_size if execution.batch_size == "auto" else int(execution.batch_size)
    speeds = speeds_of(cells(profile.steps, profile.acceptance), execution.speculation)
    num_workers = max(execution.num_workers, 1)
    num_rows = -(-scan.num_results // num_workers)

    def decode_seconds(lengths: Sequence[int]) -> float:
        return trial.overhead * batch_seconds(lengths, num_rows, batch_size, speeds)

    lengths = expected_lengths(trial.lengths, cap)
    read_seconds = prefill_rate(trial) * scan.num_prompt_tokens / num_workers
    working = decode_seconds(lengths) + read_seconds
    # Rows that were cut short may go on to the cap, or may have been about to end.
    shortest = decode_seconds([min(length, cap) for length, _ in trial.lengths]) + read_seconds
    longest = decode_seconds([min(length, cap) if ended else cap for length, ended in trial.lengths]) + read_seconds
    spread = math.hypot(_Z * trial.speed_error, _Z * lengths_error(lengths, len(trial.lengths)), _OTHER_DAYS)
    start = _START_SECONDS + trial.load_seconds
    tokens = round(scan.num_results * sum(lengths) / len(lengths))
    # As reports count: a machine without GPUs for the whole run, each GPU for as long as its worker lives.
    device_seconds = start + working if execution.device == "cpu" else (trial.load_seconds + working) * num_workers
    device_hours = device_seconds / 3600
    price = execution.price_per_device_hour
    return Forecast(
        wall_seconds=start + working,
        low=(start + min(shortest, working)) / (1 + spread),
        high=(start + max(longest, working)) * (1 + spread),
        device_hours=device_hours,
        cost=None if price is None else device_hours * price,
        tokens_per_second=tokens / working if working > 0 else 0.0,
        completion_tokens=tokens,
        profile=profile.key,
        made_at=profile.made_at,
    )


def expected_lengths(seen: Sequence[tuple[int, bool]], cap: int) -> list[int]:
    """Lengths of completions at equal shares of their distribution, none above ``cap``.

    Args:
        seen: tokens of completions, at least one, and whether each ended by itself.

    A completion that was cut short says only that it is longer: it shares the fate of those that went on past that
    length (Kaplan and Meier), and those that nothing is known of go on to the cap.
    """
    at_risk, alive = len(seen), 1.0
    steps: list[tuple[int, float]] = []  # (length, share that is longer)
    # Where some end and others are cut at one length, those that end come first: the others were longer.
    for length, ended in sorted(seen, key=lambda each: (each[0], not each[1])):
        if length >= cap:
            break
        if ended:
            alive *= 1 - 1 / at_risk
            steps.append((length, alive))
        at_risk -= 1
    lengths = []
    place = 0
    for index in range(_LENGTH_QUANTILES):
        share_longer = 1 - (index + 0.5) / _LENGTH_QUANTILES
        while place < len(steps) and steps[place][1] > share_longer:
            place += 1
        lengths.append(steps[place][0] if place < len(steps) else cap)
    return lengths


def batch_seconds(lengths: Sequence[int], num_rows: int, batch_size: int, speeds: Sequence[tuple[int, float]]) -> float:
    """Seconds that rows take in a batch whose slots refill as rows end.

    Args:
        lengths: of completions, at least one, each as likely. num_rows: rows to decode.
        speeds: (rows in flight, tokens per second of all of them), ascending.
    """
    if num_rows <= 0:
        return 0.0
    generator = random.Random(_SEED)
    simulated = min(num_rows, max(_MOST_SIMULATED, 4 * batch_size))
    # Every length as often as every other one, in random order: few rows have the right mean too.
    waiting = [lengths[(2 * i + 1) * len(lengths) // (2 * simulated) % len(lengths)] for i in range(simulated)]
    generator.shuffle(waiting)
    in_flight: list[int] = []  # tokens that each row in flight will have when it ends, by the clock of one row
    said, seconds = 0, 0.0
    while waiting or in_flight:
        while waiting and len(in_flight) < batch_size:
            heapq.heappush(in_flight, said + waiting.pop())
        num_in_flight = len(in_flight)
        ends_at = heapq.heappop(in_flight)
        seconds += (ends_at - said) * num_in_flight / speed_at(speeds, num_in_flight)
        said = ends_at
    more = (num_rows - simulated) * sum(lengths) / len(lengths)
    return seconds + more / speed_at(speeds, batch_size)


def prefill_rate(trial: TrialRecord) -> float:
    """Seconds per token of prompts."""
    return trial.prefill_seconds / trial.num_prompt_tokens if trial.num_prompt_tokens else 0.0


def lengths_error(lengths: Sequence[int], num_seen: int) -> float:
    """Relative standard error of the mean length, known from so many completions."""
    mean = sum(lengths) / len(lengths)
    variance = sum((length - mean) ** 2 for length in lengths) / len(lengths)
    return math.sqrt(variance / max(num_seen, 1)) / mean
