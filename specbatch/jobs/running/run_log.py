"""The log of one run: what happened to workers and shards, one JSON object a line, in numbered objects of bounded size.

Stores cannot append. So a run writes ``_specbatch/logs/<epoch>/run-0001.jsonl``, overwrites it while it grows, and goes
over to the next number once it is full. What is in a full one never changes: a reader that follows reads only the last.
Of a run with very much to tell, plain news are left out first, in the end everything but the last line, which says how
much is missing. No prompt and no completion is ever in it: events and commands carry none.
"""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from specbatch.jobs.coordinator.events import (
    Assign,
    AttemptFailed,
    Cancelled,
    CapacityChanged,
    Command,
    DrainWorker,
    Event,
    Interrupted,
    KillWorker,
    PreemptionNotice,
    ProbePassed,
    StartWorker,
    WorkerDied,
    WorkerJoined,
)
from specbatch.jobs.display.formatting import plural
from specbatch.schemas.log_lines import LogSettings, encode_line, now_text
from specbatch.schemas.run import NoteRecord

CHUNK_BYTES = 64_000
MAX_INFO_BYTES = 4_000_000
MAX_BYTES = 8_000_000
MAX_MESSAGE = 2_000
NUM_NOTES = 8

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that happened; the fields of a line of the log, ``time`` excepted."""

    level: Level
    event: str
    message: str
    worker: int | None = None
    shard: int | None = None
    attempt: int | None = None
    code: str | None = None


def fact_of(item: Event | Command) -> Fact | None:
    """What an event or a command of the coordinator means to people; None for what goes on all the time."""
    match item:
        case StartWorker(worker):
            return Fact("info", "worker_starting", f"worker {worker} is started", worker)
        case WorkerJoined(worker, place):
            return Fact("info", "worker_ready", f"worker {worker} is ready at {place}", worker)
        case DrainWorker(worker):
            return Fact("info", "worker_draining", f"worker {worker} finishes what it has", worker)
        case KillWorker(worker, reason):
            return Fact("warning", "worker_killed", f"worker {worker} is ended: {reason}", worker)
        case WorkerDied(worker, reason):
            return Fact("warning", "worker_died", f"worker {worker} died: {reason}", worker)
        case PreemptionNotice(worker, grace_seconds):
            message = f"the machine of worker {worker} goes in {grace_seconds:.0f} s"
            return Fact("warning", "worker_preempted", message, worker)
        case AttemptFailed(worker, failure):
            message = f"worker {worker} gave up shard {failure.shard}: {failure.code}: {failure.message}"
            return Fact("warning", "shard_failed", message, worker, failure.shard, failure.attempt, failure.code)
        case ProbePassed(worker, probe):
            rows = f"rows {probe.row_start} to {probe.row_stop - 1} of shard {probe.shard}"
            return Fact("info", "probe_passed", f"{rows} do not kill a worker", worker, probe.shard)
        case Assign(worker, lease) if lease.probe is not None:
            rows = f"rows {lease.probe[0]} to {lease.probe[1] - 1} of shard {lease.shard.index}"
            return Fact("info", "probe", f"worker {worker} tries {rows}", worker, lease.shard.index, lease.attempt)
        case Assign(worker, lease) if lease.attempt > 1:
            message = f"worker {worker} gets shard {lease.shard.index} again (attempt {lease.attempt})"
            return Fact("info", "shard_again", message, worker, lease.shard.index, lease.attempt)
        case CapacityChanged(num_slots):
            return Fact("info", "capacity", f"the cluster has room for {plural(num_slots, 'worker')}")
        case Interrupted():
            return Fact("warning", "interrupted", "a signal asks the run to stop")
        case Cancelled():
            return Fact("warning", "cancelled", "the run was asked to stop")
        case _:
            return None


_WORKER = re.compile(r"\bworker (\d+)\b")
_SHARD = re.compile(r"\bshard (\d+)\b")


def said(line: str) -> Fact:
    """A line for the user; whom it is about is read from its words."""
    worker, shard = _WORKER.search(line), _SHARD.search(line)
    return Fact("warning", "note", line, int(worker[1]) if worker else None, int(shard[1]) if shard else None)


def chunk_name(number: int) -> str:
    """The name of a chunk below the logs of its run; numbers begin with 1."""
    return f"run-{number:04d}.jsonl"


class RunLog:
    """Collects the facts of a run and hands out the objects that are to be written.

    Args:
        clock: the time in UTC, ISO 8601.
    """

    def __init__(self, clock: Callable[[], str] = now_text) -> None:
        self._clock = clock
        self._job, self._epoch = "", 0
        self._settings = LogSettings()
        self._number = 1
        self._open = ""
        self._unwritten: dict[int, str] = {}
        self._num_bytes = 0
        self._num_left_out = 0
        self._notes: deque[NoteRecord] = deque(maxlen=NUM_NOTES)

    @property
    def notes(self) -> tuple[NoteRecord, ...]:
        """The last of what is worth telling at once."""
        return tuple(self._notes)

    def begin(self, job: str, epoch: int, settings: LogSettings) -> None:
        """What every line says from now on, and whether it is for standard error too."""
        self._job, self._epoch, self._settings = job, epoch, settings

    def add(self, fact: Fact) -> None:
        """Take in a fact, or count it where there have been too many."""
        at = self._clock()
        if self._settings.shows(fact.level):
            sys.stderr.write(self._encode(at, fact, fact.message[:MAX_MESSAGE]))
            sys.stderr.flush()
        if fact.level != "info":
            self._notes.append(NoteRecord(at=at, level=fact.level, message=fact.message[:MAX_MESSAGE]))
        is_last = fact.event == "run_ended"
        if not is_last and self._num_bytes >= (MAX_INFO_BYTES if fact.level == "info" else MAX_BYTES):
            self._num_left_out += 1
            return
        message = fact.message[:MAX_MESSAGE]
        if is_last and self._num_left_out:
            message += f" ({plural(self._num_left_out, 'line')} left out)"
        self._write_line(self._encode(at, fact, message))

    def _encode(self, at: str, fact: Fact, message: str) -> str:
        return encode_line(
            at,
            fact.level,
            fact.event,
            message,
            job=self._job,
            epoch=self._epoch,
            worker=fact.worker,
            shard=fact.shard,
            attempt=fact.attempt,
            code=fact.code,
        )

    def _write_line(self, line: str) -> None:
        if self._open and len(self._open) + len(line) > CHUNK_BYTES:
            self._number += 1
            self._open = ""
        self._open += line
        self._num_bytes += len(line)
        self._unwritten[self._number] = self._open

    def flush(self, write: Callable[[str, str], object]) -> None:
        """Write what has changed; what ``write`` raises for is written the next time."""
        for number, text in sorted(self._unwritten.items()):
            write(chunk_name(number), text)
            del self._unwritten[number]
