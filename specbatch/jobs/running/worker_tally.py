"""What a run knows about one of its workers, and its entry in the record of the run."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field

from specbatch.jobs.display.rates import Window
from specbatch.schemas.messages import MemoryReport, Progress, WorkerReady
from specbatch.schemas.run import BlockRecord, WorkerRecord


@dataclass(slots=True)
class WorkerTally:
    """One process.

    Attributes:
        block_tokens: committed in the rounds that it has told of; rows in flight count here, and nowhere else.
        settled_rows: rows that it had done of shards that have ended, with a part or without.
        written_errors: error rows in its parts.
        is_alive: nothing is known of its death.
    """

    ready: WorkerReady
    ready_seconds: float
    last_seconds: float
    memory: MemoryReport
    progress: Progress = field(default_factory=Progress)
    blocks: list[BlockRecord] = field(default_factory=list)
    block_tokens: int = 0
    settled_rows: int = 0
    written_errors: Counter[str] = field(default_factory=Counter)
    is_alive: bool = True
    window: Window = field(default_factory=Window)
    draft_given_up_seconds: float | None = None

    @property
    def produced_tokens(self) -> int:
        """Output tokens so far, those of rows in flight included where the engine tells of its rounds."""
        return max(self.block_tokens, self.progress.num_completion_tokens)

    @property
    def unwritten_rows(self) -> int:
        """Rows that are done and whose part is still to come."""
        return max(self.progress.num_rows_done - self.settled_rows, 0) if self.is_alive else 0


def worker_record(tally: WorkerTally) -> WorkerRecord:
    """Its entry in the record of the run."""
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
        draft_given_up_seconds=tally.draft_given_up_seconds,
    )
