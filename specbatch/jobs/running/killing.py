"""The end of worker processes that Ray could not end: stopped, or stuck in native code that holds the interpreter.

Ray tells a process to end and calls the worker dead, whether or not it listens. One that does not would keep its
device's memory, so a moment later its process is killed by the system: here, or by a task on its own node.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from specbatch.schemas.errors import ErrorCode, SpecbatchError

if TYPE_CHECKING:
    from specbatch.jobs.running.processes import WorkerProcess
    from specbatch.workers.actor import Whereabouts

PATIENCE_SECONDS = 2.0


class Killing:
    """Processes that shall be dead soon."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due: list[tuple[float, Whereabouts]] = []

    def add(self, whereabouts: Whereabouts | None) -> None:
        """Kill this one and its ranks unless they end by themselves; nothing where its process is not known."""
        for one in () if whereabouts is None else (whereabouts, *whereabouts.ranks):
            if all(known != one for _, known in self._due):
                self._due.append((self._clock() + PATIENCE_SECONDS, one))

    def advance(self) -> None:
        """Kill those whose time is over."""
        now = self._clock()
        due = [whereabouts for at, whereabouts in self._due if at <= now]
        self._due = [(at, whereabouts) for at, whereabouts in self._due if at > now]
        for whereabouts in due:
            if not _kill_here(whereabouts):
                _kill_there(whereabouts)

    @contextlib.contextmanager
    def of_all(self, processes: Mapping[int, WorkerProcess]) -> Iterator[None]:
        """None of these processes outlives the block, whatever ends it.

        They are killed before Ray is asked to clear up: asking one that has gone may end this process. One that is
        known to have gone is not asked.
        """
        is_ray_lost = False
        try:
            yield
        except SpecbatchError as error:
            is_ray_lost = error.code is ErrorCode.JOB_CLUSTER_LOST
            raise
        finally:
            for process in processes.values():
                self.add(process.whereabouts)
            self.finish()
            for process in () if is_ray_lost else processes.values():
                process.release()

    def finish(self) -> None:
        """Kill those of this host at once; Ray ends the others with the job, as far as it can."""
        for _, whereabouts in self._due:
            _kill_here(whereabouts)
        self._due = []


def _kill_here(whereabouts: Whereabouts) -> bool:
    """Whether its host is this one: then it is dead now."""
    from specbatch.workers.actor import kill_process

    kill_process(whereabouts)
    return whereabouts.host == socket.gethostname()


def _kill_there(whereabouts: Whereabouts) -> None:
    """Ask its node to do it; nothing waits for the answer, and a node that is gone has no process left to kill."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from specbatch.workers.actor import kill_process

    place = NodeAffinitySchedulingStrategy(whereabouts.node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(kill_process)
    task.options(scheduling_strategy=place).remote(whereabouts)
