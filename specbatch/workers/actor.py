"""The Ray actor: a worker whose calls may be lost, or arrive twice, without harm.

Ray never restarts the actor and never repeats a call: the coordinator has its own attempt budget. The runner repeats
calls of which Ray cannot say whether they came through, so every call here has a number: a delivery that was taken
already is not taken again, and news whose reply was lost is told again.

Ray imports the class by name on the worker's node, where the user's current directory comes first on the path; every
import of ours begins with ``specbatch.``, so nothing there can shadow it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from specbatch.schemas.messages import WorkerConfig, WorkerPoll, WorkerReady
from specbatch.workers.heap import made_to_stay
from specbatch.workers.worker import Worker
from specbatch.workers.worker_log import WorkerLog

if TYPE_CHECKING:
    from specbatch.workers.ranks import Ranks

_MAX_CONCURRENCY = 8
"""Long polls, some of them repeated, may wait while deliveries and stop come through."""

_HIDES_NONE = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
"""Ray's variable for clusters whose processes all see every GPU."""

Delivery = Literal["assign", "drop", "drain"]


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Which process a worker is: enough to end this one for good, and no other.

    Attributes:
        node_id: Ray's name of its node.
        started: when it started, in the words of its host; empty where the system does not say.
        ranks: the further processes that share its target.
    """

    node_id: str
    host: str
    pid: int
    started: str
    ranks: tuple[Whereabouts, ...] = ()

    @property
    def is_here(self) -> bool:
        """Whether it runs on this host and is still the same process."""
        return self.host == socket.gethostname() and self.started != "" and process_start(self.pid) == self.started


@dataclass(frozen=True, slots=True)
class News:
    """An answer of a worker and its number, from 1."""

    number: int
    poll: WorkerPoll


def _given_device(device: str) -> str:
    """The device that Ray gave this process: the only one that it sees, unless Ray was told to hide none."""
    if device != "cuda" or not os.environ.get(_HIDES_NONE):
        return device
    from specbatch.workers.ranks import own_device_index

    return f"cuda:{own_device_index()}"


class WorkerActor:
    """A worker behind calls that may be lost or repeated.

    It holds the worker and is none: Ray wraps every method of an actor's class, those too that run for each row.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self._lock = threading.Lock()
        self._news_lock = threading.Lock()
        self._num_delivered = 0
        self._last_news: News | None = None
        self._loaded_as: WorkerReady | None = None
        self._log = WorkerLog(config)
        self._worker: Worker | None = None
        self._failure: Exception | None = None
        self._ranks: Ranks | None = None
        try:
            if config.num_ranks == 1:
                self._worker = Worker(replace(config, device=_given_device(config.device)))
            else:
                from specbatch.workers.ranks import Ranks

                self._ranks = Ranks(config)
                self._worker = Worker(config, self._ranks.load_engine)
                self._ranks.on_lost = self._worker.lose
        except Exception as error:  # told by ``ready``: what an actor's constructor raises, Ray turns into prose
            self._failure = error

    def whereabouts(self) -> Whereabouts:
        """Which process this is, and its ranks; answered while the models are still being loaded."""
        return replace(this_process(), ranks=() if self._ranks is None else self._ranks.whereabouts())

    def ready(self) -> WorkerReady:
        """As the worker's; asked again, it answers the same."""
        with self._lock:
            if self._loaded_as is None:
                self._loaded_as = self._load()
            return self._loaded_as

    def _load(self) -> WorkerReady:
        worker = self._made()
        try:
            with made_to_stay():
                loaded_as = worker.ready()
            self._log.ready()
        except Exception as error:
            self._failure = error
            self._log.failed(error)
            raise
        return loaded_as

    def news(self, seen: int, timeout_seconds: float) -> News:
        """What happened since the news with the number ``seen``; the same again where that was told, but lost."""
        with self._news_lock:
            if self._last_news is None or self._last_news.number <= seen:
                self._last_news = News(seen + 1, self._made().poll(timeout_seconds))
                self._log.told(self._last_news.poll)
            return self._last_news

    def deliver(self, number: int, method: Delivery, *arguments: Any) -> None:
        """Call a method once, however often the call arrives; numbers rise from 1."""
        with self._lock:
            if number > self._num_delivered:
                if method == "assign":
                    self._log.assigned(*arguments)
                getattr(self._made(), method)(*arguments)
                self._num_delivered = number

    def stop(self) -> None:
        """As the worker's."""
        is_engine_free = self._worker is None or self._worker.stop()
        if self._ranks is not None and is_engine_free:
            self._ranks.close()
        elif self._ranks is not None:
            self._ranks.abandon()

    def _made(self) -> Worker:
        if self._failure is not None:
            raise self._failure
        assert self._worker is not None
        return self._worker


def actor_class() -> Any:
    """The worker as a Ray remote class: ``actor_class().options(num_cpus=…).remote(config)``."""
    import ray

    return ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=_MAX_CONCURRENCY)(WorkerActor)


def this_process() -> Whereabouts:
    """Where the caller runs, on its Ray."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    return Whereabouts(node_id, socket.gethostname(), os.getpid(), process_start(os.getpid()))


def process_start(pid: int) -> str:
    """When a process of this host started, with the name of this boot; empty where it is gone or cannot be told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else f"{boot} {fields[19]}"


def kill_process(whereabouts: Whereabouts) -> bool:
    """Kill a process of this host that does not listen any more; False where it is gone, or another has its number."""
    if not whereabouts.is_here:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(whereabouts.pid, signal.SIGKILL)
    return True
