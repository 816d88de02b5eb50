"""The coordinator's shards: which wait, who holds which, what each has been charged with. Pure.

A shard *waits*, is *held* (by one worker, near the end by two) or is *done*. What is asked of it per event costs the
same however many shards there are.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from specbatch.jobs.coordinator.bisection import MAX_POISON_ROWS, Bisection
from specbatch.jobs.coordinator.events import Command, FailJob, Say
from specbatch.jobs.coordinator.policy import MAX_ATTEMPTS, WORTH_RETRYING
from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.messages import Lease
from specbatch.schemas.plan import Shard


@dataclass(slots=True)
class ShardRecord:
    """What is known of a shard that was leased and has no part yet.

    Attributes:
        holders: workers that have it now.
        runs_alone: it was in a worker that died; nothing may be beside it until it is done.
        rank: how often its device failed under it: others go first, so that a bad device shows itself as one.
        avoids: the worker that gave it up last; another one is better.
        poison: rows that killed workers, once they are known.
    """

    num_leases: int = 0
    num_failures: int = 0
    num_deaths: int = 0
    holders: list[int] = field(default_factory=list)
    runs_alone: bool = False
    rank: int = 0
    avoids: int | None = None
    bisection: Bisection | None = None
    was_bisected: bool = False
    poison: tuple[int, ...] = ()


class WaitingShards:
    """A queue by rank, then in the plan's order: those never taken, of rank 0, and those that came back."""

    def __init__(self, fresh: Sequence[int] = ()) -> None:
        self._fresh = tuple(fresh)
        self._next = 0
        self._returned: list[tuple[int, int]] = []
        self._gone: set[int] = set()
        self._num = len(self._fresh)

    def __len__(self) -> int:
        return self._num

    def push(self, shard: int, rank: int) -> None:
        """A shard comes back."""
        heapq.heappush(self._returned, (rank, shard))
        self._num += 1

    def remove(self, shard: int) -> None:
        """A shard that waits here is wanted no more, and never comes back."""
        self._gone.add(shard)
        self._num -= 1

    def take(self, is_wanted: Callable[[int], bool]) -> int | None:
        """Take the first shard that is wanted."""
        passed_over: list[tuple[int, int]] = []
        found: int | None = None
        while found is None and (entry := self._pop()) is not None:
            if is_wanted(entry[1]):
                found = entry[1]
                self._num -= 1
            else:
                passed_over.append(entry)
        for entry in passed_over:
            heapq.heappush(self._returned, entry)
        return found

    def _pop(self) -> tuple[int, int] | None:
        while True:
            fresh = (0, self._fresh[self._next]) if self._next < len(self._fresh) else None
            if self._returned and (fresh is None or self._returned[0] < fresh):
                entry = heapq.heappop(self._returned)
            elif fresh is not None:
                self._next += 1
                entry = fresh
            else:
                return None
            if entry[1] not in self._gone:
                return entry
            self._gone.discard(entry[1])


class ShardBoard:
    """All shards of a run.

    Args:
        shards: those without a part, in the order in which they shall be handed out (ascending).
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = {shard.index: shard for shard in shards}
        self._done: set[int] = set()
        self._records: dict[int, ShardRecord] = {}
        self._shared = WaitingShards(tuple(self._shards))
        self._alone = WaitingShards()
        self.num_attempts = 0
        self.num_probes = 0

    @property
    def num_done(self) -> int:
        """Shards whose part came into being during this run."""
        return len(self._done)

    @property
    def num_left(self) -> int:
        """Shards without a part."""
        return len(self._shards) - len(self._done)

    @property
    def num_waiting(self) -> int:
        """Shards that nobody holds."""
        return len(self._shared) + len(self._alone)

    @property
    def num_waiting_alone(self) -> int:
        """Those among them that must have a worker to themselves."""
        return len(self._alone)

    def num_rows(self, shard: int) -> int:
        """Rows of a shard of this run."""
        return self._shards[shard].num_rows

    def may_have_twin(self, shard: int) -> bool:
        """Whether a shard that is held may be given out a second time."""
        record = self._records[shard]
        return len(record.holders) == 1 and not record.runs_alone

    def take(self, worker: int, has_alternative: Callable[[int], bool], *, alone: bool) -> int | None:
        """Take a waiting shard for a worker; one that it gave up before only where it has no alternative."""
        queue = self._alone if alone else self._shared
        return queue.take(lambda shard: not self._is_avoided(shard, worker) or not has_alternative(worker))

    def lease(self, shard: int, worker: int) -> Lease:
        """Hand out a shard that was taken, or the twin of one that is held."""
        record = self._records.setdefault(shard, ShardRecord())
        record.num_leases += 1
        record.holders.append(worker)
        probe = record.bisection.probe if record.bisection is not None else None
        if probe is None:
            self.num_attempts += 1
        else:
            self.num_probes += 1
        return Lease(self._shards[shard], record.num_leases, probe, record.poison)

    def release(self, shard: int, worker: int) -> None:
        """A worker has the shard no more; it waits again if nobody else has it."""
        record = self._records[shard]
        record.holders.remove(worker)
        if not record.holders:
            (self._alone if record.runs_alone else self._shared).push(shard, record.rank)

    def finish(self, shard: int) -> tuple[int, ...] | None:
        """The shard's part exists. Returns the workers that still hold it, or None if this is no news."""
        if shard in self._done or shard not in self._shards:
            return None
        self._done.add(shard)
        record = self._records.pop(shard, None)
        if record is not None and record.holders:
            return tuple(record.holders)
        (self._alone if record is not None and record.runs_alone else self._shared).remove(shard)
        return ()

    def isolate(self, shard: int) -> None:
        """A worker died while it held this shard; from now on nothing may be beside it, and it gets no twin.

        Call before ``release``.
        """
        self._records[shard].runs_alone = True

    def charge_failure(self, shard: int, worker: int, code: ErrorCode, reason: str) -> list[Command]:
        """A worker gave the shard up; ends the job where another attempt would end so too. Call before ``release``."""
        record = self._records[shard]
        record.num_failures += 1
        record.avoids = worker
        if code not in WORTH_RETRYING:
            return [FailJob(code, f"shard {shard}: {reason}")]
        if record.num_failures >= MAX_ATTEMPTS:
            return [FailJob(code, f"shard {shard} failed {MAX_ATTEMPTS} times, the last time with: {reason}")]
        return []

    def charge_death(self, shard: int, code: ErrorCode | None, reason: str) -> list[Command]:
        """A worker died that had nothing but this shard, or a probe of it. Call before ``release``."""
        record = self._records[shard]
        record.rank += code is ErrorCode.JOB_DEVICE
        if record.bisection is not None:
            record.bisection.killed()
            return self._judge_bisection(shard, record)
        record.num_deaths += 1
        if record.num_deaths < MAX_ATTEMPTS:
            return []
        if code is not None and code is not ErrorCode.JOB_DEVICE:
            return [FailJob(code, f"shard {shard} failed {MAX_ATTEMPTS} times, the last time with: {reason}")]
        if record.was_bisected:
            without = (
                f"even without its rows {_listed(record.poison)}" if record.poison else "but no row of it does alone"
            )
            return [
                FailJob(ErrorCode.SHARD_FAILED, f"shard {shard} kills workers, {without}; the last one with: {reason}")
            ]
        record.bisection = Bisection(self._shards[shard])
        record.was_bisected = True
        looking = Say(f"shard {shard} has killed {MAX_ATTEMPTS} workers; looking for the row that does it")
        return [looking, *self._judge_bisection(shard, record)]

    def pass_probe(self, shard: int) -> list[Command]:
        """The probe of this shard that a worker holds was decoded. Call before ``release``."""
        record = self._records[shard]
        assert record.bisection is not None
        record.bisection.passed()
        return self._judge_bisection(shard, record)

    def has_poison(self, shard: int) -> bool:
        """Whether a row of this shard, which is not done, is known to kill workers."""
        return bool(self._records[shard].poison)

    def _judge_bisection(self, shard: int, record: ShardRecord) -> list[Command]:
        assert record.bisection is not None
        if record.bisection.is_hopeless:
            return [
                FailJob(
                    ErrorCode.SHARD_FAILED,
                    f"shard {shard}: more than {MAX_POISON_ROWS} rows kill the workers that decode them",
                )
            ]
        if record.bisection.condemns_all:
            return [
                FailJob(
                    ErrorCode.SHARD_FAILED,
                    f"shard {shard}: every row of it kills the worker that decodes it, each alone: the rows are not to "
                    "blame; look at the workers' logs under _specbatch/logs/",
                )
            ]
        if record.bisection.probe is not None:
            return []
        record.poison = record.bisection.poison
        record.bisection = None
        record.num_deaths = 0
        if not record.poison:
            return [Say(f"shard {shard}: no row of it kills a worker by itself; trying it once more")]
        return [
            Say(f"shard {shard}: rows that kill workers become {ErrorCode.ROW_POISON} rows: {_listed(record.poison)}")
        ]

    def _is_avoided(self, shard: int, worker: int) -> bool:
        record = self._records.get(shard)
        return record is not None and record.avoids == worker


def _listed(rows: tuple[int, ...]) -> str:
    return ", ".join(str(row) for row in rows)
