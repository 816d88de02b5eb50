"""What a worker process says on its standard error under ``SPECBATCH_LOG_FORMAT=json``: one line for each lease."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from specbatch.schemas.log_lines import encode_line, now_text
from specbatch.schemas.messages import Lease, WorkerConfig, WorkerPoll


@dataclass(slots=True)
class WorkerLog:
    """The lines of one worker; silent unless its configuration asks for lines."""

    config: WorkerConfig
    _attempts: dict[int, int] = field(default_factory=dict)

    def ready(self) -> None:
        """It has loaded its models."""
        self._write("info", "worker_ready", f"worker {self.config.worker} has loaded its models")

    def failed(self, error: Exception) -> None:
        """It cannot load its models. Only the code is told: words of libraries may quote anything."""
        code = getattr(error, "code", None)
        self._write("error", "worker_failed", f"it cannot begin: {type(error).__name__}", code=code and str(code))

    def assigned(self, lease: Lease) -> None:
        """It was given a shard."""
        self._attempts[lease.shard.index] = lease.attempt
        what = "shard_assigned" if lease.probe is None else "probe_assigned"
        self._write("info", what, f"{lease.shard.num_rows} rows", shard=lease.shard.index)

    def told(self, poll: WorkerPoll) -> None:
        """Shards have ended, with a part or without."""
        for receipt in poll.receipts:
            self._write("info", "part_written", f"{receipt.num_rows} rows", shard=receipt.shard)
        for failure in poll.failures:
            self._write("warning", "shard_failed", "it is given back", shard=failure.shard, code=failure.code)

    def _write(
        self, level: str, event: str, message: str, *, shard: int | None = None, code: str | None = None
    ) -> None:
        if not self.config.log.shows(level):
            return
        line = encode_line(
            now_text(),
            level,
            event,
            message,
            job=self.config.job,
            epoch=self.config.epoch,
            worker=self.config.worker,
            shard=shard,
            attempt=None if shard is None else self._attempts.get(shard),
            code=code,
        )
        sys.stderr.write(line)
        sys.stderr.flush()
