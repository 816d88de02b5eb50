"""What a run knows about its workers, and the two documents that are made of it: run record and progress.

Pure: times come in as seconds since the start of the command.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from specbatch.schemas.messages import MemoryReport, Progress, WorkerPoll, WorkerReady
from specbatch.schemas.run import BlockRecord, WorkerRecord
from specbatch.schemas.stats import PartStats, SpecCounters

RATE_WINDOW_SECONDS = 20.0


@dataclass(slots=True)
class _WorkerTally:
    ready: WorkerReady
    ready_seconds: float
    last_seconds: float
    memory: MemoryReport
    progress: Progress = field(default_factory=Progress)
    blocks: list[BlockRecord] = field(default_factory=list)


class RunTally:
    """Sums of one run over all its workers, those that died included."""

    def __init__(self) -> None:
        self._workers: dict[int, _WorkerTally] = {}
        self._last_part_seconds = 0.0
        self._recent: list[tuple[float, int]] = []

    def add_ready(self, ready: WorkerReady, now_seconds: float) -> None:
        """A worker has loaded its models."""
        self._workers[ready.worker] = _WorkerTally(ready, now_seconds, now_seconds, ready.memory)

    def add_poll(self, worker: int, poll: WorkerPoll, now_seconds: float) -> None:
        """News from a worker; ``poll.progress`` holds running totals, ``poll.blocks`` is new each time."""
        tally = self._workers[worker]
        tally.progress, tally.memory, tally.last_seconds = poll.progress, poll.memory, now_seconds
        tally.blocks.extend(BlockRecord(at_seconds=round(now_seconds, 3), **asdict(block)) for block in poll.blocks)
        if poll.receipts:
            self._last_part_seconds = now_seconds
        self._recent.append((now_seconds, self.num_completion_tokens))
        while self._recent[0][0] < now_seconds - RATE_WINDOW_SECONDS and len(self._recent) > 2:
            del self._recent[0]

    @property
    def num_completion_tokens(self) -> int:
        return sum(tally.progress.num_completion_tokens for tally in self._workers.values())

    @property
    def num_rows_done(self) -> int:
        return sum(tally.progress.num_rows_done for tally in self._workers.values())

    @property
    def num_errors(self) -> int:
        return sum(tally.progress.num_errors for tally in self._workers.values())

    @property
    def counters(self) -> SpecCounters:
        return SpecCounters.total(tally.progress.counters for tally in self._workers.values())

    @property
    def tokens_per_second(self) -> float:
        """Over the last seconds, all workers together; 0 before there is anything to divide."""
        if len(self._recent) < 2 or self._recent[-1][0] <= self._recent[0][0]:
            return 0.0
        (first_seconds, first_tokens), (last_seconds, last_tokens) = self._recent[0], self._recent[-1]
        return (last_tokens - first_tokens) / (last_seconds - first_seconds)

    @property
    def wall_seconds(self) -> float:
        """From the first ready worker to the last part, or to the last news where no part is there yet."""
        if not self._workers:
            return 0.0
        first = min(tally.ready_seconds for tally in self._workers.values())
        last = self._last_part_seconds or max(tally.last_seconds for tally in self._workers.values())
        return max(last - first, 0.0)

    def worker_records(self) -> list[WorkerRecord]:
        """One record for each process, by its number."""
        return [_worker_record(tally) for _, tally in sorted(self._workers.items())]

    def progress_fields(self, num_rows: int, found: PartStats) -> dict[str, Any]:
        """The numbers of a ``ProgressDocument`` that come from workers.

        Args:
            num_rows: rows of the job.
            found: sums over the parts that existed when the run began.
        """
        counters = self.counters
        num_steps = counters.num_spec_steps + counters.num_plain_steps
        drafted = counters.num_draft_tokens
        return {
            "rows_done": self.num_rows_done,
            "num_errors": self.num_errors + found.num_errors,
            "completion_tokens": self.num_completion_tokens,
            "tokens_per_second": round(self.tokens_per_second, 3),
            "acceptance_rate": counters.num_accepted_draft_tokens / drafted if drafted else None,
            "mean_emitted": self.num_completion_tokens / num_steps if num_steps else None,
            "eta_seconds": self._eta_seconds(num_rows - found.num_rows),
            "workers": [
                {
                    "worker": number,
                    "pid": tally.ready.pid,
                    "host": tally.ready.host,
                    "rows_done": tally.progress.num_rows_done,
                    "rows_active": tally.progress.num_rows_active,
                    "completion_tokens": tally.progress.num_completion_tokens,
                }
                for number, tally in sorted(self._workers.items())
            ],
        }

    def _eta_seconds(self, num_rows_of_run: int) -> float | None:
        """Rows left at the pace of the rows done so far; None before the first row."""
        done = self.num_rows_done
        if done == 0:
            return None
        first = min(tally.ready_seconds for tally in self._workers.values())
        last = max(tally.last_seconds for tally in self._workers.values())
        return round(max(num_rows_of_run - done, 0) * (last - first) / done, 1)


def _worker_record(tally: _WorkerTally) -> WorkerRecord:
    ready, progress = tally.ready, tally.progress
    counters = progress.counters
    return WorkerRecord(
        worker=ready.worker,
        host=ready.host,
        pid=ready.pid,
        device=ready.device,
        dtype=ready.dtype,
        num_threads=ready.num_threads,
        load_seconds=ready.load_seconds,
        active_seconds=max(tally.last_seconds - tally.ready_seconds - progress.idle_seconds, 0.0),
        idle_seconds=progress.idle_seconds,
        rows=progress.num_rows_done,
        completion_tokens=progress.num_completion_tokens,
        num_draft_tokens=counters.num_draft_tokens,
        num_accepted_draft_tokens=counters.num_accepted_draft_tokens,
        draft_length_histogram=list(counters.draft_length_histogram),
        num_plain_steps=counters.num_plain_steps,
        seconds=asdict(progress.seconds),
        memory=asdict(tally.memory),
        versions=dict(ready.versions),
        blocks=tally.blocks,
    )


def sum_stats(stats: Mapping[int, PartStats]) -> PartStats:
    """Sum over parts."""
    total = PartStats()
    for part in stats.values():
        total = total + part
    return total
