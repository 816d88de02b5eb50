"""The further ranks of a worker whose target is divided: one actor each, in one placement group on one node.

The worker's own actor leads. It starts the others, so that Ray ends them with it, and gives them a place to meet; they
end by themselves too when it is gone (``specdec.ranks``). To the job they are one worker: the death of a rank is the
worker's, which tells it with its next answer.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from typing import Any

import torch

from specbatch.schemas.messages import WorkerConfig
from specbatch.specdec.ranks.group import Leader
from specbatch.specdec.ranks.meeting import Seat, device_index_among, in_words, take_device
from specbatch.workers.actor import Whereabouts, this_process
from specbatch.workers.decoding import DecodingEngine, load_engine


class RankActor:
    """A process that follows one leader, and ends with it."""

    def whereabouts(self) -> Whereabouts:
        """Which process this is; answered while it follows."""
        return this_process()

    def follow(self, seat: Seat, rank: int, num_threads: int) -> None:
        """Hold a share of the target and do what the leader says; returns when that lets it go.

        Raises:
            Exception: what ended the group here.
        """
        from specbatch.specdec.loading import free_bytes
        from specbatch.specdec.ranks.group import Follower
        from specbatch.specdec.ranks.parallel import follow

        torch.set_num_threads(num_threads)
        device = _own_device(seat)
        follow(Follower(seat, rank, free_bytes(device)), device, seat.num_ranks)


class Ranks:
    """The ranks beside a leader, from the leader's actor.

    Attributes:
        on_lost: called, from a thread of its own, when one is gone.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self.on_lost: Callable[[Exception], None] = lambda error: None
        self._config = config
        self._seat = Seat.make(config.num_ranks, config.device)
        self._leader: Leader | None = None
        self._actors: list[Any] = []
        try:
            self._start_actors()
        except BaseException:
            self._forget_seat()
            raise

    def _start_actors(self) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = ray.util.get_current_placement_group()
        actor = ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=2)(RankActor)
        for rank in range(1, self._config.num_ranks):
            bundle = group.bundle_specs[rank]
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
            options = {"num_cpus": bundle.get("CPU", 0), "num_gpus": bundle.get("GPU", 0)}
            self._actors.append(actor.options(scheduling_strategy=place, **options).remote())

    def whereabouts(self) -> tuple[Whereabouts, ...]:
        """Which processes they are; waits until all have begun."""
        import ray

        return tuple(ray.get([actor.whereabouts.remote() for actor in self._actors]))

    def load_engine(self, config: WorkerConfig) -> DecodingEngine:
        """As ``decoding.load_engine``, with a target that the ranks share."""
        return load_engine(config, self._lead)

    def close(self) -> None:
        """Let the ranks go, once nobody uses the engine any more."""
        if self._leader is not None:
            self._leader.close()
        self._forget_seat()

    def abandon(self) -> None:
        """Let the ranks go though the thread that decodes does not end; what it waits for is told to it as lost."""
        if self._leader is not None:
            self._leader.abandon("the worker was stopped and its decode thread did not end")
        self._forget_seat()

    def _forget_seat(self) -> None:
        """The leader removes the meeting place too; but there may have been none."""
        shutil.rmtree(self._seat.folder, ignore_errors=True)

    def _lead(self) -> Leader:
        _own_device(self._seat)  # of the thread that decodes
        self._leader = Leader(self._seat, self.on_lost)
        calls = [
            actor.follow.remote(self._seat, rank, self._config.num_threads)
            for rank, actor in enumerate(self._actors, start=1)
        ]
        threading.Thread(target=self._wait, args=(calls,), name="specbatch-rank-actors", daemon=True).start()
        self._leader.gather()
        return self._leader

    def _wait(self, calls: list[Any]) -> None:
        """See to it that nobody waits for a rank that has ended, however it did."""
        import ray

        ended, _ = ray.wait(calls, num_returns=1)
        try:
            ray.get(ended[0])
        except Exception as error:
            assert self._leader is not None
            self._leader.abandon(f"rank {calls.index(ended[0]) + 1} of {self._config.num_ranks}: {in_words(error)}")


def own_device_index() -> int:
    """Which of the devices that this process sees Ray gave it, also where it was told to hide none of the others."""
    import ray

    return device_index_among(ray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count())


def _own_device(seat: Seat) -> torch.device:
    return take_device(seat.device, own_device_index())
