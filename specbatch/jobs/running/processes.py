"""A worker process as the runner sees it: which calls to it are under way, and which have to be made again."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from specbatch.jobs.running.deaths import is_pause
from specbatch.schemas.messages import Progress, WorkerPoll, WorkerReady

if TYPE_CHECKING:  # the driver loads the worker's module only when it starts one
    from specbatch.workers.actor import Delivery, News, Whereabouts

POLL_SECONDS = 1.0
AGAIN_SECONDS = 1.0
SLOW_WRITE_SECONDS = 120.0
_QUIET_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Said:
    """What came of a call: a value, or the error that ended the worker; neither where it has to be made again.

    ``is_placed``: it was the first answer, which says where the worker runs.
    """

    value: Any = None
    is_placed: bool = False
    error: Exception | None = None


@dataclass(slots=True)
class WorkerProcess:
    """One actor. Two calls at most are under way: a question (where are you, are you ready, what is new), a delivery.

    Attributes:
        node_id: where it runs, or will; None where that is Ray's choice and not known yet.
        kill_reason: set once it has been killed.
        num_settled_rows: rows that it had done of the shards whose receipt or failure has come.
        group: Ray's placement group of its ranks; None where it has none.
        slow_write: what is known of a part that has been under way for long, in words; None where none is.
    """

    number: int
    actor: Any
    node_id: str | None = None
    whereabouts: Whereabouts | None = None
    is_ready: bool = False
    kill_reason: str | None = None
    killed_at: float = 0.0
    num_settled_rows: int = 0
    slow_write: str | None = None
    group: Any = None
    question: Any = None
    delivery: Any = None
    _outbox: deque[tuple[int, Delivery, tuple[Any, ...]]] = field(default_factory=deque)
    _num_told: int = 0
    _seen: int = 0
    _ask_at: float = 0.0
    _deliver_at: float = 0.0
    _drain_taken: bool = False
    _asked_after_drain: bool = False
    _has_loose_rows: bool = False
    _idle_seconds: float = 0.0
    _still_since: float | None = None

    def tell(self, method: Delivery, *arguments: Any) -> None:
        """Have a method called, once, after all that were told before."""
        self._num_told += 1
        self._outbox.append((self._num_told, method, arguments))
        self._has_loose_rows |= method == "drop"

    def ask(self, now_seconds: float) -> list[Any]:
        """Make the calls that are due; the calls that are under way."""
        if self.question is None and now_seconds >= self._ask_at:
            self.question = self._next_question()
        if self.delivery is None and self._outbox and now_seconds >= self._deliver_at:
            number, method, arguments = self._outbox[0]
            self.delivery = self.actor.deliver.remote(number, method, *arguments)
        return [call for call in (self.question, self.delivery) if call is not None]

    def _next_question(self) -> Any:
        if self.whereabouts is None:
            return self.actor.whereabouts.remote()
        if not self.is_ready:
            return self.actor.ready.remote()
        self._asked_after_drain = self._drain_taken
        return self.actor.news.remote(self._seen, POLL_SECONDS)

    def take(self, call: Any, now_seconds: float) -> Said:
        """What came of a call that has ended. A worker that is only out of reach is asked again after a while."""
        import ray

        is_question = call == self.question
        try:
            value = ray.get(call)
        except Exception as error:
            if not is_pause(error):
                return Said(error=error)
            if is_question:
                self.question, self._ask_at = None, now_seconds + AGAIN_SECONDS
            else:
                self.delivery, self._deliver_at = None, now_seconds + AGAIN_SECONDS
            return Said()
        if not is_question:
            self.delivery = None
            _, method, _ = self._outbox.popleft()
            self._drain_taken |= method == "drain"
            return Said()
        self.question = None
        return self._take_answer(value)

    def _take_answer(self, value: Any) -> Said:
        if self.whereabouts is None:
            self.whereabouts = value
            self.node_id = value.node_id
            return Said(is_placed=True)
        if isinstance(value, WorkerReady):
            self.is_ready = True
            return Said(value)
        return Said(self.take_news(value))

    def take_news(self, news: News) -> WorkerPoll | None:
        """The poll of an answer; None where it was taken before."""
        if news.number <= self._seen:
            return None
        self._seen = news.number
        self._has_loose_rows |= bool(news.poll.probes)
        return news.poll

    def last_question(self) -> Any:
        """The question that is under way, or one that is answered at once."""
        return self.question if self.question is not None else self.actor.news.remote(self._seen, 0.0)

    def has_drained(self, poll: WorkerPoll, now_seconds: float) -> bool:
        """Whether a draining worker waits for rows that will not come, and every row it finished is in a part.

        Rows of probes and of dropped shards end in no part; with such rows, a while of silence stands for the count.
        """
        progress, before = poll.progress, self._idle_seconds
        self._idle_seconds = progress.idle_seconds
        waits = progress.num_rows_active == 0 and progress.idle_seconds > before
        if not (self._asked_after_drain and waits) or poll.receipts or progress.writing_shard is not None:
            self._still_since = None
            return False
        if progress.num_rows_done <= self.num_settled_rows:
            return True
        if not self._has_loose_rows:
            return False
        if self._still_since is None:
            self._still_since = now_seconds
        return now_seconds - self._still_since >= _QUIET_SECONDS

    def watch_writing(self, progress: Progress) -> str | None:
        """What to say of a part that takes long, once; should it never end, it is why the worker is killed."""
        if progress.writing_shard is None or progress.writing_seconds < SLOW_WRITE_SECONDS:
            self.slow_write = None
            return None
        is_news = self.slow_write is None
        seconds = f"{progress.writing_seconds:.0f} s"
        self.slow_write = f"it has been writing the part of shard {progress.writing_shard} for {seconds}"
        return f"worker {self.number} is slow: {self.slow_write}" if is_news else None

    def release(self) -> None:
        """Have Ray end what is left of its ranks and give their place back.

        It waits for the head. A head that does not answer is found by those who watch it; the group ends with the job.
        """
        if self.group is not None:
            from ray.util.placement_group import remove_placement_group

            with contextlib.suppress(Exception):
                remove_placement_group(self.group)
            self.group = None

    @property
    def local_pid(self) -> int | None:
        """Its process id where it runs, or ran, on this host."""
        if self.whereabouts is None or self.whereabouts.host != socket.gethostname():
            return None
        return self.whereabouts.pid
