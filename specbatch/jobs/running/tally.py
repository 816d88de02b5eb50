"""What a run knows about its workers, and the two documents that are made of it: run record and progress.

Pure: times come in as seconds since the start of the command.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from specbatch.jobs.coordinator.workers import WorkerView
from specbatch.jobs.display.rates import Window, eta_seconds, k_shares, remaining_tokens
from specbatch.jobs.running.worker_tally import WorkerTally, worker_record
from specbatch.schemas.canonical import sum_histograms
from specbatch.schemas.messages import MemoryReport, PartReceipt, RoundBlock, WorkerPoll, WorkerReady
from specbatch.schemas.run import BlockRecord, WorkerRecord
from specbatch.schemas.stats import PartStats, SpecCounters


class RunTally:
    """Sums of one run over all its workers, those that died included."""

    def __init__(self) -> None:
        self._workers: dict[int, WorkerTally] = {}
        self._last_part_seconds = 0.0
        self._window = Window()
        self._turns: tuple[int, ...] = ()
        self._accepted = 0
        self._spec_pace = (0, 0.0)  # tokens, seconds
        self._plain_pace = (0, 0.0)

    def add_ready(self, ready: WorkerReady, now_seconds: float) -> None:
        """A worker has loaded its models."""
        self._workers[ready.worker] = WorkerTally(ready, now_seconds, now_seconds, ready.memory)

    def add_poll(self, worker: int, poll: WorkerPoll, now_seconds: float, failed_rows: int = 0) -> None:
        """News from a worker; ``poll.progress`` holds running totals, ``poll.blocks`` is new each time.

        Args:
            failed_rows: rows that it had done of the shards that it gave up since the last time.
        """
        tally = self._workers[worker]
        if tally.draft_given_up_seconds is None and poll.memory.draft_bytes < tally.memory.draft_bytes:
            tally.draft_given_up_seconds = round(now_seconds, 3)
        tally.progress, tally.memory, tally.last_seconds = poll.progress, poll.memory, now_seconds
        tally.settled_rows += sum(receipt.num_rows for receipt in poll.receipts) + failed_rows
        tally.blocks.extend(BlockRecord(at_seconds=round(now_seconds, 3), **asdict(block)) for block in poll.blocks)
        for block in poll.blocks:
            tally.block_tokens += _num_tokens(block)
            self._turns = sum_histograms((self._turns, block.draft_length_histogram))
            self._accepted += block.num_accepted_draft_tokens
            self._spec_pace = _add(self._spec_pace, block.num_spec_tokens, block.spec_seconds)
            self._plain_pace = _add(self._plain_pace, block.num_plain_tokens, block.plain_seconds)
        for receipt in poll.receipts:
            tally.written_errors.update(dict(receipt.stats.errors_by_code))
            self._last_part_seconds = now_seconds
        tally.window.add(now_seconds, (tally.produced_tokens,))
        self._window.add(now_seconds, (self._produced_tokens, self._accepted, *self._turns))

    def add_death(self, worker: int) -> None:
        """A worker is gone, and with it the rows that it had not written."""
        if worker in self._workers:
            self._workers[worker].is_alive = False

    def add_found(self, worker: int, receipts: Iterable[PartReceipt]) -> None:
        """Parts that a worker wrote and did not live to tell of."""
        if worker in self._workers:
            for receipt in receipts:
                self._workers[worker].written_errors.update(dict(receipt.stats.errors_by_code))

    @property
    def has_workers(self) -> bool:
        """Whether any worker has ever been ready."""
        return bool(self._workers)

    @property
    def num_completion_tokens(self) -> int:
        return sum(tally.progress.num_completion_tokens for tally in self._workers.values())

    @property
    def num_rows_done(self) -> int:
        return sum(tally.progress.num_rows_done for tally in self._workers.values())

    @property
    def num_errors(self) -> int:
        return self.errors_by_code.total()

    @property
    def counters(self) -> SpecCounters:
        return SpecCounters.total(tally.progress.counters for tally in self._workers.values())

    @property
    def _produced_tokens(self) -> int:
        return sum(tally.produced_tokens for tally in self._workers.values())

    @property
    def errors_by_code(self) -> Counter[str]:
        """Error rows of this run, by code; of the dead only those in parts."""
        errors: Counter[str] = Counter()
        for tally in self._workers.values():
            errors.update(dict(tally.progress.errors_by_code) if tally.is_alive else tally.written_errors)
        return errors

    @property
    def num_storage_retries(self) -> int:
        """Requests to a store that workers made again, the dead included."""
        return sum(tally.progress.num_storage_retries for tally in self._workers.values())

    @property
    def num_rows_active(self) -> int:
        """Sequences in flight."""
        return sum(tally.progress.num_rows_active for tally in self._workers.values() if tally.is_alive)

    @property
    def memory_reports(self) -> tuple[MemoryReport, ...]:
        """The last of each living worker."""
        return tuple(tally.memory for tally in self._workers.values() if tally.is_alive)

    @property
    def mean_k(self) -> float | None:
        """Drafts per turn of a row over the last seconds; None where no turn was seen."""
        turns = self._window.growth()[1][2:]
        return sum(k * count for k, count in enumerate(turns)) / sum(turns) if sum(turns) else None

    @property
    def speedup_so_far(self) -> float | None:
        """Speed of rounds with drafts over that of plain rounds; None until there have been both."""
        (spec_tokens, spec_seconds), (plain_tokens, plain_seconds) = self._spec_pace, self._plain_pace
        if min(spec_tokens, spec_seconds, plain_tokens, plain_seconds) <= 0:
            return None
        return (spec_tokens / spec_seconds) / (plain_tokens / plain_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Over the last seconds, all workers together; 0 before there is anything to divide."""
        return self._window.rate()

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
        return [worker_record(tally) for _, tally in sorted(self._workers.items())]

    def progress_fields(
        self,
        num_rows: int,
        found: PartStats,
        *,
        rows_in_parts: int = 0,
        now_seconds: float | None = None,
        views: Sequence[WorkerView] = (),
    ) -> dict[str, Any]:
        """The numbers of a ``ProgressDocument`` that come from workers.

        Args:
            num_rows: rows of the job.
            found: sums over the parts that existed when the run began.
            rows_in_parts: of all runs.
            now_seconds: the time; that of the last news if None.
            views: what the coordinator knows of each worker; those that have left no longer stand in it.
        """
        counters = self.counters
        num_steps = counters.num_spec_steps + counters.num_plain_steps
        job_rows_done = min(rows_in_parts + sum(tally.unwritten_rows for tally in self._workers.values()), num_rows)
        tokens_per_second = self._window.rate(now_seconds)
        remaining = self._remaining_tokens(num_rows - job_rows_done, found)
        seconds, risen = self._window.growth()
        errors = self.errors_by_code + Counter(dict(found.errors_by_code))
        return {
            "rows_done": self.num_rows_done,
            "num_errors": self.num_errors + found.num_errors,
            "completion_tokens": self.num_completion_tokens,
            "tokens_per_second": round(tokens_per_second, 3),
            "acceptance_rate": self._acceptance_rate(counters),
            "mean_emitted": self.num_completion_tokens / num_steps if num_steps else None,
            "eta_seconds": eta_seconds(remaining, tokens_per_second, seconds),
            "job_rows_done": job_rows_done,
            "tokens_per_second_overall": self._overall_rate(now_seconds),
            "mean_accepted": self._mean_accepted(counters),
            "k_shares": k_shares(risen[2:]),
            "errors_by_code": dict(sorted(errors.items())),
            "remaining_tokens": remaining,
            "workers": self._worker_lines(views, now_seconds),
        }

    def _remaining_tokens(self, rows_left: int, found: PartStats) -> int | None:
        in_flight = sum(
            max(tally.block_tokens - tally.progress.num_completion_tokens, 0)
            for tally in self._workers.values()
            if tally.is_alive
        )
        active = sum(tally.progress.num_rows_active for tally in self._workers.values() if tally.is_alive)
        return remaining_tokens(
            rows_left=rows_left,
            rows_done=found.num_rows + self.num_rows_done,
            tokens_done=found.num_completion_tokens + self.num_completion_tokens,
            tokens_in_flight=in_flight,
            rows_in_flight=active,
        )

    def _overall_rate(self, now_seconds: float | None) -> float | None:
        if not self._workers:
            return None
        first = min(tally.ready_seconds for tally in self._workers.values())
        last = max(tally.last_seconds for tally in self._workers.values()) if now_seconds is None else now_seconds
        return round(self._produced_tokens / (last - first), 3) if last > first else None

    def _acceptance_rate(self, counters: SpecCounters) -> float | None:
        """Of the rows that are done; while none is, of the rounds so far."""
        if counters.num_draft_tokens:
            return counters.num_accepted_draft_tokens / counters.num_draft_tokens
        drafted = sum(k * count for k, count in enumerate(self._turns))
        return self._accepted / drafted if drafted else None

    def _mean_accepted(self, counters: SpecCounters) -> float | None:
        if counters.num_spec_steps:
            return counters.num_accepted_draft_tokens / counters.num_spec_steps
        num_turns = sum(self._turns[1:])
        return self._accepted / num_turns if num_turns else None

    def _worker_lines(self, views: Sequence[WorkerView], now_seconds: float | None) -> list[dict[str, Any]]:
        by_number = {view.worker: view for view in views}
        numbers = by_number or [number for number, tally in self._workers.items() if tally.is_alive]
        return [_worker_line(n, self._workers.get(n), by_number.get(n), now_seconds) for n in sorted(numbers)]


def _worker_line(
    number: int, tally: WorkerTally | None, view: WorkerView | None, now_seconds: float | None
) -> dict[str, Any]:
    line: dict[str, Any] = {"worker": number, "state": view.state if view is not None else "ready"}
    if view is not None:
        line["shards"] = list(view.shards)
    if tally is None:
        return line
    progress = tally.progress
    line |= {
        "pid": tally.ready.pid,
        "host": tally.ready.host,
        "place": tally.ready.place,
        "rows_done": progress.num_rows_done,
        "rows_active": progress.num_rows_active,
        "completion_tokens": progress.num_completion_tokens,
        "tokens_per_second": round(tally.window.rate(now_seconds), 3),
        "memory_bytes": tally.memory.process_bytes,
    }
    if progress.writing_shard is not None:
        line |= {"writing_shard": progress.writing_shard, "writing_seconds": round(progress.writing_seconds, 1)}
    return line


def _num_tokens(block: RoundBlock) -> int:
    return block.num_spec_tokens + block.num_plain_tokens + block.num_mixed_tokens


def _add(pace: tuple[int, float], num_tokens: int, seconds: float) -> tuple[int, float]:
    return pace[0] + num_tokens, pace[1] + seconds


def sum_stats(stats: Mapping[int, PartStats]) -> PartStats:
    """Sum over parts."""
    total = PartStats()
    for part in stats.values():
        total = total + part
    return total
