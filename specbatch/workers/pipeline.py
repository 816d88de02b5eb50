"""What stands between the threads of a worker: leases, loaded shards, finished shards, and the news for ``poll``.

Everything here is guarded by one condition; nothing in it takes longer than a look.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.messages import (
    Lease,
    MemoryReport,
    PartReceipt,
    ProbeDone,
    Progress,
    RoundBlock,
    ShardFailed,
    WorkerPoll,
)
from specbatch.schemas.rows import RowResult
from specbatch.schemas.stats import PhaseSeconds
from specbatch.workers.faults import shard_failed
from specbatch.workers.prompts import PreparedRow
from specbatch.workers.shards import Assignment, FinishedShard, ShardInFlight

_MAX_UNWRITTEN = 2
"""Finished shards that may wait for the writer before decoding waits too: this bounds memory."""

Given = tuple[ShardInFlight, list[tuple[int, PreparedRow | RowResult]]]
"""A shard with its next samples and their positions; none of a shard that has none at all."""


class Pipeline:
    """The queues of one worker. Methods that wait return None or False when the worker is stopping.

    Attributes:
        changed: what waiting threads wait for.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.is_stopping = False
        self.death: BaseException | None = None
        self._has_writer = False
        self._num_rows_ahead = 1
        self._load_seconds = 0.0
        self._is_draining = False
        self._num_assigned = 0
        self._assigned: dict[int, Assignment] = {}
        self._leases: deque[Assignment] = deque()
        self._loaded: deque[ShardInFlight] = deque()
        self._unwritten: deque[FinishedShard] = deque()
        self._receipts: list[PartReceipt] = []
        self._failures: list[ShardFailed] = []
        self._probes: list[ProbeDone] = []
        self._blocks: list[RoundBlock] = []
        self._dropped: list[Assignment] = []
        self._progress = Progress()
        self._has_first_row = False
        self._memory = MemoryReport(0, 0, 0, 0, 0)

    # ---- from outside ----------------------------------------------------------------------------------------------

    def assign(self, lease: Lease) -> None:
        """Take a lease, unless draining."""
        with self.changed:
            if not self._is_draining:
                assignment = Assignment(self._num_assigned, lease)
                self._num_assigned += 1
                self._assigned[assignment.number] = assignment
                self._leases.append(assignment)
                self.changed.notify_all()

    def drop(self, shard: int) -> None:
        """Mark every lease of a shard as unwanted and forget what of it no thread has in hand."""
        with self.changed:
            for assignment in self._assigned.values():
                if assignment.lease.shard.index == shard:
                    assignment.is_dropped = True
                    self._dropped.append(assignment)
            self._leases = deque(assignment for assignment in self._leases if not assignment.is_dropped)
            self._loaded = deque(loaded for loaded in self._loaded if not loaded.assignment.is_dropped)
            self._unwritten = deque(finished for finished in self._unwritten if not finished.assignment.is_dropped)
            self._assigned = {number: held for number, held in self._assigned.items() if not held.is_dropped}
            self.changed.notify_all()

    def drain(self) -> None:
        """Take no new lease and forget shards of which no row has begun."""
        with self.changed:
            self._is_draining = True
            self._leases.clear()
            self._loaded = deque(loaded for loaded in self._loaded if loaded.has_begun)
            self.changed.notify_all()

    def stop(self, death: BaseException | None = None) -> None:
        """End all waiting; ``death`` is what killed a thread."""
        with self.changed:
            self.death = self.death or death
            self._is_draining = self.is_stopping = True
            self.changed.notify_all()

    def wait_for_news(self, timeout_seconds: float) -> None:
        """Until a shard or a probe ended, the first row was done, or the worker died.

        Raises:
            Exception: what killed the worker, once everything else has been taken.
        """
        with self.changed:
            self.changed.wait_for(lambda: self._has_news or self._end is not None, timeout_seconds)
            if not self._has_news and (end := self._end) is not None:
                raise end

    def take_news(self) -> WorkerPoll:
        """All news since the last time, and the totals as they stand, without the rows of dropped shards."""
        with self.changed:
            progress = self._progress
            progress = replace(
                progress,
                num_rows_done=max(progress.num_rows_done - sum(held.num_rows_done for held in self._dropped), 0),
                **self._errors_without_dropped(progress),
                seconds=progress.seconds + PhaseSeconds(load=self._load_seconds),
            )
            news = WorkerPoll(
                receipts=tuple(self._receipts),
                failures=tuple(self._failures),
                blocks=tuple(self._blocks),
                progress=progress,
                memory=self._memory,
                probes=tuple(self._probes),
            )
            self._receipts, self._failures, self._probes, self._blocks = [], [], [], []
            self._has_first_row = False
            return news

    def _errors_without_dropped(self, progress: Progress) -> dict[str, Any]:
        errors = Counter(dict(progress.errors_by_code))
        for held in self._dropped:
            errors -= held.errors_by_code.copy()  # the decode thread may still count the last of them
        return {"num_errors": errors.total(), "errors_by_code": tuple(sorted(errors.items()))}

    @property
    def _end(self) -> BaseException | None:
        """What killed a thread, once there is no writer that may still tell of parts; None before."""
        return None if self._has_writer else self.death

    @property
    def _has_news(self) -> bool:
        return bool(self._receipts or self._failures or self._probes or self._has_first_row)

    # ---- reader ----------------------------------------------------------------------------------------------------

    def next_lease(self) -> Assignment | None:
        """The next shard to read, once it will be needed soon."""
        with self.changed:
            self.changed.wait_for(lambda: self.is_stopping or (self._leases and self._needs_rows()))
            return None if self.is_stopping else self._leases.popleft()

    def put_loaded(self, shard: ShardInFlight) -> None:
        """Offer a shard that was read, unless it is not wanted any more."""
        with self.changed:
            self._load_seconds += shard.loaded.load_seconds
            if not self._is_draining and not shard.assignment.is_dropped:
                self._loaded.append(shard)
                self.changed.notify_all()

    def _needs_rows(self) -> bool:
        """One whole shard is read ahead; more where shards are smaller than a batch."""
        return len(self._loaded) < 2 or sum(s.num_waiting for s in self._loaded) < self._num_rows_ahead

    # ---- decode ----------------------------------------------------------------------------------------------------

    @property
    def has_loaded(self) -> bool:
        """Whether a row can be had without waiting; asked with ``changed`` held."""
        return bool(self._loaded)

    def next_rows(self, most: int) -> Given | None:
        """The next samples of the oldest shard; None where no shard is loaded."""
        with self.changed:
            if not self._loaded:
                return None
            shard = self._loaded[0]
            rows = shard.next_rows(most)
            if not shard.num_waiting:
                self._loaded.popleft()
                self.changed.notify_all()
            return shard, rows

    def put_finished(self, finished: FinishedShard) -> None:
        """Pass a shard to the writer; waits while there is none yet, or it is behind."""
        with self.changed:
            self.changed.wait_for(
                lambda: (self._has_writer and len(self._unwritten) < _MAX_UNWRITTEN) or self.is_stopping
            )
            if not finished.assignment.is_dropped:
                self._unwritten.append(finished)
                self.changed.notify_all()

    def publish(
        self, progress: Progress, memory: MemoryReport, blocks: tuple[RoundBlock, ...], num_rows_ahead: int
    ) -> None:
        """Totals so far, sums over the last rounds, and the rows that the engine can take at once."""
        with self.changed:
            if progress.num_rows_done and not self._progress.num_rows_done:  # its user waits for it
                self._has_first_row = True
                self.changed.notify_all()
            self._progress, self._memory = progress, memory
            self._blocks.extend(blocks)
            if num_rows_ahead != self._num_rows_ahead:
                self._num_rows_ahead = num_rows_ahead
                self.changed.notify_all()  # the reader may have to read further ahead

    # ---- writer ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writer(self) -> Iterator[None]:
        """The calling thread is the writer for the length of this block; until its end a death is not told."""
        with self.changed:
            self._has_writer = True
            self.changed.notify_all()
        try:
            yield
        finally:
            with self.changed:
                self._has_writer = False
                self.changed.notify_all()

    def next_finished(self) -> FinishedShard | None:
        """The next shard to write; when stopping, those that are left still come."""
        with self.changed:
            self.changed.wait_for(lambda: self.is_stopping or self._unwritten)
            if not self._unwritten:
                return None
            self.changed.notify_all()
            return self._unwritten.popleft()

    # ---- how a lease ends ------------------------------------------------------------------------------------------

    def settle(self, assignment: Assignment, outcome: PartReceipt | ProbeDone | SpecbatchError | MemoryError) -> None:
        """Tell how a lease ended, unless nobody wants to know."""
        with self.changed:
            if self._assigned.pop(assignment.number, None) is None:
                return
            match outcome:
                case PartReceipt():
                    self._receipts.append(outcome)
                case ProbeDone():
                    self._probes.append(outcome)
                case _:
                    self._failures.append(shard_failed(assignment.lease, outcome, assignment.num_rows_done))
            self.changed.notify_all()
