"""What workers bring back of the shards that they were given: parts, probes, failures. Pure.

Truth is in the store: a receipt counts whoever it comes from.
"""

from __future__ import annotations

from specbatch.jobs.coordinator.events import Command, DropShard
from specbatch.jobs.coordinator.losses import Losses
from specbatch.jobs.coordinator.policy import Durations, ErrorBudget, LeaseDepth, WakingClock, error_code
from specbatch.jobs.coordinator.shards import ShardBoard
from specbatch.jobs.coordinator.staffing import Staffing
from specbatch.jobs.coordinator.workers import Fleet
from specbatch.schemas.messages import PartReceipt, ProbeDone, ShardFailed


class Outcomes:
    """Takes results in: books them, and gives shards back."""

    def __init__(
        self,
        board: ShardBoard,
        fleet: Fleet,
        staffing: Staffing,
        losses: Losses,
        errors: ErrorBudget,
        durations: Durations,
        depth: LeaseDepth,
        clock: WakingClock,
    ) -> None:
        self._board = board
        self._fleet = fleet
        self._staffing = staffing
        self._losses = losses
        self._errors = errors
        self._durations = durations
        self._depth = depth
        self._clock = clock

    def take_receipt(self, number: int, receipt: PartReceipt) -> list[Command]:
        """A part is there, whoever made it: others that hold its shard let it go."""
        shard = receipt.shard
        held = self._fleet.held(number, shard)
        holders = self._board.finish(shard)
        if holders is None:
            return []
        if held is not None and held.probe is None:
            self._durations.add(self._clock.awake_seconds - held.since_seconds, receipt.num_rows)
            self._depth.add()
        for holder in holders:
            self._fleet.release(holder, shard)
        self._staffing.note_progress()
        self._errors.add(receipt.stats.num_results, receipt.stats.num_errors)
        drops: list[Command] = [DropShard(holder, shard) for holder in holders if holder != number]
        return drops + self._errors.judge()

    def take_probe(self, number: int, probe: ProbeDone) -> list[Command]:
        """Some rows of a shard were decoded and killed nobody."""
        held = self._fleet.held(number, probe.shard)
        if held is None or held.probe != (probe.row_start, probe.row_stop):
            return []
        self._staffing.note_progress()
        commands = self._board.pass_probe(probe.shard)
        self._losses.absolve(probe.shard)
        self.release(number, probe.shard)
        return commands

    def take_failure(self, number: int, failure: ShardFailed) -> list[Command]:
        """An attempt ended with an error that the worker lives to tell."""
        worker = self._fleet.get(number)
        if worker is None or failure.shard not in worker.shards:
            return []
        commands = self._board.charge_failure(failure.shard, number, error_code(failure.code), failure.message)
        self.release(number, failure.shard)
        return commands

    def release(self, number: int, *shards: int) -> None:
        """A worker that lives gives shards back."""
        for shard in shards:
            self._fleet.release(number, shard)
            self._board.release(shard, number)
