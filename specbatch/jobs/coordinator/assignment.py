"""Who gets which shard: shares, shards that must run alone, twins of stragglers. Pure."""

from __future__ import annotations

import heapq

from specbatch.jobs.coordinator.events import Assign, Command
from specbatch.jobs.coordinator.policy import TWIN_RATIO, Durations
from specbatch.jobs.coordinator.shards import ShardBoard
from specbatch.jobs.coordinator.workers import WORKING, Fleet, Held, Phase


class Assignment:
    """Hands out what waits, always to the worker that holds fewest.

    Near the end a worker gets no more than its even share of what is left: a shard that waits here can go to whoever is
    free first, one that waits in a busy worker cannot.

    Args:
        has_twins: whether a late shard may be given out twice; only where the store lets one part win.
    """

    def __init__(self, board: ShardBoard, fleet: Fleet, durations: Durations, *, has_twins: bool) -> None:
        self._board = board
        self._fleet = fleet
        self._durations = durations
        self._has_twins = has_twins

    def assign(self, awake_seconds: float) -> list[Command]:
        """Fill the workers that have room."""
        board, fleet = self._board, self._fleet
        if not fleet.open:
            return []
        commands: list[Command] = []
        if board.num_waiting:
            share = max(board.num_left // max(fleet.count(*WORKING), 1), 1)
            # Shards that must run alone need an empty worker. Is none on the way, then one is let run empty.
            let_run_empty = board.num_waiting_alone and not fleet.num_exclusive and not fleet.count(Phase.STARTING)
            queue = [(fleet.load(number), number) for number in fleet.open]
            heapq.heapify(queue)
            while queue and board.num_waiting:
                load, number = heapq.heappop(queue)
                shard = board.take(number, fleet.has_alternative, alone=True) if load == 0 else None
                if shard is not None:
                    commands.append(self._lease(shard, number, awake_seconds, exclusive=True))
                    continue
                if load and let_run_empty:
                    let_run_empty = False
                    continue
                shard = board.take(number, fleet.has_alternative, alone=False) if load < share else None
                if shard is not None:
                    commands.append(self._lease(shard, number, awake_seconds, exclusive=False))
                    if number in fleet.open:
                        heapq.heappush(queue, (load + 1, number))
        return commands

    def assign_twins(self, awake_seconds: float) -> list[Command]:
        """Idle workers get the shards that take far longer than is usual a second time; one part will win."""
        if not self._has_twins:
            return []
        idle = sorted(number for number in self._fleet.open if not self._fleet.load(number))
        if not idle:
            return []
        late: list[tuple[float, int]] = []
        for _, worker in self._fleet:
            for shard, held in worker.shards.items():
                usual = self._durations.expect(self._board.num_rows(shard))
                seconds = awake_seconds - held.since_seconds
                if usual and seconds > TWIN_RATIO * usual and self._board.may_have_twin(shard):
                    late.append((-seconds / usual, shard))
        pairs = zip(idle, sorted(late), strict=False)
        return [self._lease(shard, number, awake_seconds, exclusive=False) for number, (_, shard) in pairs]

    def _lease(self, shard: int, number: int, awake_seconds: float, *, exclusive: bool) -> Assign:
        lease = self._board.lease(shard, number)
        self._fleet.hold(number, shard, Held(awake_seconds, lease.probe), exclusive=exclusive)
        return Assign(number, lease)
