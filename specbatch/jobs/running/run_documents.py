"""What a run writes about itself while it goes on: its record, its progress, and the events that people ask about.

None of it is authoritative, so a store that does not take it for a while costs no more than a stale ``status``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from specbatch.jobs.coordinator.coordinator import Coordinator
from specbatch.jobs.display.live_layout import LIVE_STATES
from specbatch.jobs.output.ledger import Ledger, StoredJob, now_text
from specbatch.jobs.planning.machine import count_cores, describe_hardware
from specbatch.jobs.planning.prepare import PreparedJob
from specbatch.jobs.running.run_log import Fact, RunLog
from specbatch.jobs.running.tally import RunTally
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.log_lines import read_log_settings, short_job
from specbatch.schemas.manifest import RUN_FORMAT
from specbatch.schemas.messages import PartReceipt
from specbatch.schemas.run import ProgressDocument, RunRecord
from specbatch.schemas.stats import PartStats
from specbatch.storage.retries import num_retries

PROGRESS_FORMAT = "specbatch/progress/1"
MAX_EVENTS = 1000
D = TypeVar("D")

_TRANSIENT = frozenset({ErrorCode.JOB_STORE_LOST, ErrorCode.JOB_OUTPUT_UNWRITABLE})


@dataclass(slots=True)
class RunDocuments:
    """The documents of one epoch.

    Attributes:
        now: seconds since the run began.
        log: what happens to workers and shards.
        found, found_stats: parts that existed when the run began.
        forecast: what is expected of the job, kept in the record.
        coordinator, receipts: of this run; empty until it has something to decode.
    """

    prepared: PreparedJob
    ledger: Ledger
    stored: StoredJob
    tally: RunTally
    now: Callable[[], float]
    found: dict[int, PartReceipt] = field(default_factory=dict)
    found_stats: PartStats = field(default_factory=PartStats)
    coordinator: Coordinator | None = None
    receipts: dict[int, PartReceipt] = field(default_factory=dict)
    record: RunRecord | None = None
    forecast: dict[str, Any] | None = None
    log: RunLog = field(default_factory=RunLog)
    _retries_before: int = field(default_factory=num_retries)
    _events: list[tuple[float, str]] = field(default_factory=list)
    _num_rows: int | None = None
    _num_counted: int = 0
    _received_rows: int = 0

    @property
    def epoch(self) -> int:
        return self.record.epoch if self.record is not None else 0

    @property
    def parts_done(self) -> int:
        return len(self.found) + len(self.receipts)  # a run decodes only what was not found

    def begin(self, num_missing: int) -> None:
        """Take the next free epoch."""
        settings = read_log_settings()
        self.record = self.ledger.begin_run(self._build_record("running", num_missing))
        self.log.begin(short_job(self.stored.document.identity.S), self.epoch, settings)
        self.log.add(Fact("info", "run_started", f"run {self.epoch} on {self.record.host}, process {self.record.pid}"))

    @property
    def state(self) -> str:
        """What the run is doing: ``starting`` until a worker is ready, then ``running``, ``draining`` before a stop."""
        if self.coordinator is not None and self.coordinator.is_stopping:
            return "draining"
        return "running" if self.tally.has_workers else "starting"

    def note(self, line: str) -> None:
        """Keep an event; of very many the first ones."""
        if len(self._events) < MAX_EVENTS:
            self._events.append((round(self.now(), 1), line))

    def write_record(self, outcome: str) -> None:
        """Overwrite the record of this run; a store that fails now is told so by the writes that matter."""
        assert self.record is not None
        self.record = self._build_record(outcome, len(self.stored.shards) - len(self.found))
        _leniently(self.ledger.write_run, self.record)

    def write_progress(self, state: str) -> None:
        """Overwrite what ``status`` shows."""
        _leniently(self.ledger.write_progress, self.progress(state))

    def write_log(self) -> None:
        """Write the log as far as it has changed."""
        _leniently(self.log.flush, lambda name, text: self.ledger.write_log(self.epoch, name, text))

    def keep_log(self, name: str, text: str) -> None:
        """Keep a text beside the log, such as the last words of a worker."""
        _leniently(lambda words: self.ledger.write_log(self.epoch, name, words), text)

    def progress(self, state: str) -> ProgressDocument:
        """The run as it stands."""
        if self._num_rows is None:
            self._num_rows = sum(shard.num_rows for shard in self.stored.shards)
        num_rows, rows_in_parts = self._num_rows, self.found_stats.num_rows + self._count_received_rows()
        has_ended = state not in LIVE_STATES
        return ProgressDocument(
            format=PROGRESS_FORMAT,
            epoch=self.epoch,
            host=socket.gethostname(),
            pid=os.getpid(),
            updated_at=now_text(),
            state=state,
            num_rows=num_rows,
            num_parts=len(self.stored.shards),
            parts_done=self.parts_done,
            rows_in_parts=rows_in_parts,
            output=self.prepared.output,
            started_at=self.record.started_at if self.record is not None else "",
            elapsed_seconds=round(self.now(), 1),
            notes=self.log.notes,
            **self.tally.progress_fields(
                num_rows,
                self.found_stats,
                rows_in_parts=rows_in_parts,
                now_seconds=None if has_ended else self.now(),
                views=self.coordinator.worker_views() if self.coordinator is not None and not has_ended else (),
            ),
        )

    def _count_received_rows(self) -> int:
        """Rows in parts of this run. Asked twice a second: only receipts that are new are looked at."""
        new = [receipt.num_rows for receipt in islice(self.receipts.values(), self._num_counted, None)]
        self._num_counted += len(new)
        self._received_rows += sum(new)
        return self._received_rows

    def _build_record(self, outcome: str, num_missing: int) -> RunRecord:
        execution = self.prepared.execution_document()
        if num_missing:
            execution["workers"] = min(execution["workers"], num_missing)
            execution["num_threads"] = max(count_cores() // execution["workers"], 1)
        coordinator = self.coordinator
        return RunRecord(
            format=RUN_FORMAT,
            epoch=self.epoch,
            started_at=self.record.started_at if self.record is not None else now_text(),
            host=socket.gethostname(),
            pid=os.getpid(),
            outcome=outcome,
            wall_seconds=self.tally.wall_seconds,
            total_seconds=self.now(),
            attempts=coordinator.num_attempts if coordinator is not None else 0,
            restarts=coordinator.num_restarts if coordinator is not None else 0,
            preemptions=coordinator.num_preemptions if coordinator is not None else 0,
            probes=coordinator.num_probes if coordinator is not None else 0,
            forecast=self.forecast,
            store_retries=self.tally.num_storage_retries + num_retries() - self._retries_before,
            crashes=coordinator.num_crashes if coordinator is not None else 0,
            quarantined=coordinator.quarantined_places if coordinator is not None else (),
            parts_found=len(self.found),
            events=tuple(self._events),
            execution=execution,
            hardware=describe_hardware(),
            workers=self.tally.worker_records(),
        )


def _leniently(write: Callable[[D], object], document: D) -> None:
    try:
        write(document)
    except SpecbatchError as error:
        if error.code not in _TRANSIENT:
            raise
