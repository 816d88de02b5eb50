"""``specbatch logs``: what happened in a run, with the last words of workers that died, from the files of its output.

A run writes its log in numbered objects of which only the last still grows, so that following one costs two small
requests for each look. Runs of older versions left only the events in their record: those are shown in their place.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.display.live_layout import span
from specbatch.jobs.output.jobdocument import JOB_KEY, decode_job
from specbatch.jobs.output.submissions import describe_waiting
from specbatch.jobs.running.run_log import Fact, chunk_name, said
from specbatch.jobs.watching.status import ENDED, FRESH_SECONDS, is_gone, read_progress
from specbatch.jobs.watching.watch import GIVE_UP_SECONDS, Pulse
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.run import RunRecord
from specbatch.storage.store import NotFound, Store, open_store

FOLLOW_SECONDS = 2.0
LAST_WORDS_LINES = 60

_RUNS = "_specbatch/runs"
_WORDS = re.compile(r"worker-(\d+)\.txt")

Line = dict[str, Any]
"""A line of a log: time, level, event, worker, shard, attempt, message."""


@dataclass(slots=True)
class RunLogReader:
    """The log of one run; ``read`` gives what has come since the last time."""

    store: Store
    epoch: int
    _number: int = 1
    _num_read: int = 0
    _told: set[str] = field(default_factory=set)

    def read(self) -> list[Line]:
        """New lines, the last words of workers behind the line that tells of their death."""
        lines: list[Line] = []
        while (chunk := self._read_text(chunk_name(self._number))) is not None:
            found = chunk.splitlines()
            for text in found[self._num_read :]:
                lines += self._with_last_words(_decode(text))
            self._num_read = len(found)
            if self._read_text(chunk_name(self._number + 1)) is None:
                break
            self._number, self._num_read = self._number + 1, 0
        return lines

    def read_rest(self) -> list[Line]:
        """Last words that no line has told of: of runs that were killed, and of older versions."""
        folder = f"_specbatch/logs/{self.epoch}"
        names = [PurePosixPath(key).name for key in self.store.list(folder)]
        return [line for name in names for line in self._last_words(name)]

    @property
    def has_begun(self) -> bool:
        """Whether any line has been read."""
        return self._number > 1 or self._num_read > 0

    def _with_last_words(self, line: Line | None) -> Iterator[Line]:
        if line is None:
            return
        yield line
        if line["event"] == "worker_died" and line["worker"] is not None:
            yield from self._last_words(f"worker-{line['worker']}.txt")
        elif line["event"] == "crash":
            yield from self._last_words("crash.txt")

    def _last_words(self, name: str) -> Iterator[Line]:
        worker = _WORDS.fullmatch(name)
        if name in self._told or (worker is None and name != "crash.txt"):
            return
        text = self._read_text(name)
        if text is None:
            return
        self._told.add(name)
        event = "stderr" if worker else "traceback"
        yield _line("", Fact("info", event, text, int(worker[1]) if worker else None))

    def _read_text(self, name: str) -> str | None:
        try:
            return self.store.read(f"_specbatch/logs/{self.epoch}/{name}").decode("utf-8", "replace")
        except NotFound:
            return None


def read_log(
    output: str,
    *,
    epoch: int | None = None,
    worker: int | None = None,
    follow: bool = False,
    say: Callable[[str], None] = lambda line: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Line]:
    """The lines of a run's log, as they come.

    Args:
        epoch: which run; the last one if None.
        worker: only what is about this worker.
        follow: go on until the run ends.
        say: takes lines for the user that are not of the log.

    Raises:
        SpecbatchError: ``JOB_OUTPUT_MISSING``, there is no job; ``JOB_CONFIG``, no such run; ``JOB_FORMAT``.
    """
    store = open_store(output)
    try:
        decode_job(store.read(JOB_KEY), output)
    except NotFound:
        raise SpecbatchError(
            ErrorCode.JOB_OUTPUT_MISSING,
            f"{output} is no output of specbatch: it has no {JOB_KEY}; give the folder that `specbatch submit` named",
        ) from None
    if follow and epoch is None and (waiting := describe_waiting(store)) is not None:
        say(waiting)
        while describe_waiting(store) is not None:
            sleep(FOLLOW_SECONDS)
    epochs = _epochs(store)
    if epoch is None and not epochs:
        say(f"no run has begun on {output} yet")
        return
    chosen = epochs[-1] if epoch is None else epoch
    if chosen not in epochs:
        known = ", ".join(map(str, epochs)) if epochs else "none"
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"--epoch {chosen}: {output} has no such run; its runs are: {known}")
    is_known = worker is None
    for line in _read_run(store, chosen, follow=follow, say=say, sleep=sleep, clock=clock):
        if worker is None or line["worker"] == worker:
            is_known = True
            yield line
    if not is_known:
        say(f"nothing in the log of run {chosen} is about worker {worker}")


def _read_run(
    store: Store,
    epoch: int,
    *,
    follow: bool,
    say: Callable[[str], None],
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> Iterator[Line]:
    reader, pulse = RunLogReader(store, epoch), Pulse()
    told_after = FRESH_SECONDS
    while True:
        # Judged before the log is read: a run writes the end of its log before it says that it has ended.
        silence_seconds = _silence(store, epoch, pulse, clock) if follow else None
        lines = reader.read()
        yield from lines
        if silence_seconds is None or any(line["event"] == "run_ended" for line in lines):
            break
        if silence_seconds > told_after:
            say(f"no sign of life of run {epoch} for {span(silence_seconds)}")
            told_after = 2 * silence_seconds
        sleep(FOLLOW_SECONDS)
    if not reader.has_begun:
        yield from _events(store, epoch)
    yield from reader.read_rest()


def _silence(store: Store, epoch: int, pulse: Pulse, clock: Callable[[], float]) -> float | None:
    """For how long a run has been silent; None where it is known to have ended, or nobody waits for it any more."""
    try:
        doc = read_progress(store)
    except SpecbatchError as error:
        if error.code is not ErrorCode.JOB_STORE_LOST:
            raise
        return 0.0  # asked again soon
    if doc is None or doc.epoch < epoch:
        return 0.0  # it has only just begun
    if doc.epoch > epoch or doc.state in (*ENDED, "complete") or is_gone(doc):
        return None
    silence_seconds = pulse.silence_seconds(doc, datetime.now(UTC), clock())
    return None if silence_seconds > GIVE_UP_SECONDS else silence_seconds


def render_line(line: Line, format: str) -> str:
    """A line for people (``human``), or as one JSON object (``jsonl``); ends with a line break.

    Raises:
        SpecbatchError: ``JOB_CONFIG``, no such format.
    """
    if format == "jsonl":
        return json.dumps(line) + "\n"
    if format != "human":
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"format is {format!r}; it must be one of human, jsonl")
    if line["event"] in ("stderr", "traceback"):
        words = line["message"].splitlines()
        left_out = len(words) - LAST_WORDS_LINES
        head = [f"... {fmt.plural(left_out, 'line')} before"] if left_out > 0 else []
        return "".join(f"    | {fmt.clean(text)}\n" for text in (*head, *words[-LAST_WORDS_LINES:]))
    return f"{fmt.iso(line['time'])}  {line['level']:<7}  {fmt.clean(line['message'])}\n"


def _epochs(store: Store) -> list[int]:
    stems = (PurePosixPath(key).stem for key in store.list(_RUNS))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _events(store: Store, epoch: int) -> Iterable[Line]:
    """The events in the record of a run, as lines."""
    try:
        record = RunRecord.model_validate_json(store.read(f"{_RUNS}/{epoch}.json"))
        started = datetime.fromisoformat(record.started_at)
    except (NotFound, ValidationError, ValueError):
        return
    for seconds, text in record.events:
        at = started + timedelta(seconds=min(max(seconds, 0.0), 1e8))
        yield _line(at.isoformat(timespec="milliseconds"), said(text))
    yield _line("", Fact("info", "run_ended", f"run {epoch}: {record.outcome}"))


def _line(at: str, fact: Fact) -> Line:
    return {
        "time": at,
        "level": fact.level,
        "event": fact.event,
        "worker": fact.worker,
        "shard": fact.shard,
        "attempt": fact.attempt,
        "message": fact.message,
    }


def _decode(text: str) -> Line | None:
    """A line of a log; None for what a damaged object holds in its place."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    texts = {name: str(values.get(name, "")) for name in ("time", "level", "event", "message")}
    return texts | {name: values.get(name) for name in ("worker", "shard", "attempt")}
