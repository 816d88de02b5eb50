"""The protocol with one safeguard taken out at a time: each must be caught, or the simulator proves nothing.

The product has no switch for any of this; a variant is made by wrapping its store or replacing a method.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from specbatch.jobs.coordinator.coordinator import Coordinator
from specbatch.jobs.coordinator.events import Assign, Command, Event, FinishJob
from specbatch.jobs.output import stored_parts
from specbatch.jobs.output.ledger import Ledger, StoredJob
from specbatch.jobs.output.manifest import MANIFEST_NAME
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import Manifest, Models
from specbatch.schemas.messages import PartReceipt
from specbatch.schemas.plan import part_name
from specbatch.storage import s3
from specbatch.storage.parts import part_stats
from specbatch.storage.s3_errors import Fault, FaultKind
from specbatch.storage.store import NotFound, Store
from specbatch.workers import part_writer
from specbatch.workers.part_writer import PartWriter

from . import processes
from .environment import part_token, read_part_meta_again
from .scenario import Layer, Outcome, scenario_of
from .world import Patch, World

_REAL_SETTLING: Any = s3._Write._until_settled
_Put = Callable[[], str]
_Look = Callable[[], tuple[bool, str | None]]


def _no_patches() -> tuple[Patch, ...]:
    return ()


def _as_it_is(store: Store) -> Store:
    return store


@dataclass(frozen=True)
class Weakened:
    """The protocol without one safeguard.

    Attributes:
        rules: as which of the checker's rules it may show.
        seeds: within so many it must be caught.
        scenario: what the scenarios have in particular.
    """

    name: str
    rules: frozenset[str]
    seeds: int
    layer: Layer = "store"
    patches: Callable[[], tuple[Patch, ...]] = _no_patches
    wrap: Callable[[Store], Store] = _as_it_is
    scenario: dict[str, Any] = field(default_factory=dict)

    def run(self, seed: int) -> Outcome:
        """One run without the safeguard."""
        scenario = replace(scenario_of(seed, self.layer), **{"poison": (), "reuse": False, **self.scenario})
        return World(scenario, wrap=self.wrap, patches=self.patches()).run()


class _Wrapped:
    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class _Overwrites(_Wrapped):
    """Create-once turned into overwriting."""

    def create(self, key: str, source: bytes | Path) -> bool:
        self._store.replace(key, source if isinstance(source, bytes) else source.read_bytes())
        return True


class _MineIfThere(_Wrapped):
    """An object that is there is taken for one's own."""

    def create(self, key: str, source: bytes | Path) -> bool:
        self._store.create(key, source)
        return True


class _SilenceIsSuccess(_Wrapped):
    """No answer is taken for success."""

    def create(self, key: str, source: bytes | Path) -> bool:
        try:
            return self._store.create(key, source)
        except SpecbatchError:
            return True


class _OverwritesManifest(_Wrapped):
    """The manifest is written over whatever manifest is there."""

    def create(self, key: str, source: bytes | Path) -> bool:
        if key == MANIFEST_NAME and isinstance(source, bytes):
            self._store.replace(key, source)
            return True
        return self._store.create(key, source)


def _attempt_names() -> tuple[Patch, ...]:
    """Every attempt has a part of its own; who looks for a shard's part takes the first that is there."""
    attempts = itertools.count()

    def name(shard: int, plan: str) -> str:
        return f"data/part-{shard:06d}-{plan}-{next(attempts):06d}.parquet"

    def find_parts(self: Ledger, stored: StoredJob, among: Collection[int] | None = None) -> dict[int, PartReceipt]:
        found: dict[int, PartReceipt] = {}
        for key in self.store.list("data"):
            with self.store.open(key) as file:
                data = file.read()
            meta = read_part_meta_again(io.BytesIO(data))
            if meta.shard not in found and (among is None or meta.shard in among):
                found[meta.shard] = PartReceipt(
                    meta.shard, key, meta.stats.num_rows, len(data), "", part_token(data), False, meta.stats
                )
        return found

    return ((part_writer, "part_name", name), (Ledger, "find_parts", find_parts))


def _plan_left_out() -> tuple[Patch, ...]:
    def name(shard: int, plan: str) -> str:
        return f"data/part-{shard:06d}.parquet"

    return ((stored_parts, "part_name", name), (part_writer, "part_name", name))


class _HastyCoordinator(Coordinator):
    """Thinks the job done when the last shard has been handed out."""

    def __init__(self, shards: Any, **options: Any) -> None:
        super().__init__(shards, **options)
        self._num_shards = len(shards)
        self._given: set[int] = set()

    def handle(self, event: Event) -> list[Command]:
        commands = super().handle(event)
        self._given |= {command.lease.shard.index for command in commands if isinstance(command, Assign)}
        is_done = len(self._given) == self._num_shards and self.num_done > 0
        return [*commands, FinishJob()] if is_done else commands


def _manifest_first() -> tuple[Patch, ...]:
    real = Ledger.commit

    def commit(self: Ledger, stored: StoredJob, models: Models, receipts: Collection[PartReceipt]) -> Manifest:
        there = {receipt.shard for receipt in receipts}
        shards = tuple(shard for shard in stored.shards if shard.index in there)
        return real(self, replace(stored, shards=shards), models, list(receipts))

    return ((Ledger, "commit", commit), (processes, "Coordinator", _HastyCoordinator))


class _PromisingWriter(PartWriter):
    """Gives the receipt of a part whose writing failed: the rows are decoded, are they not."""

    def write(self, finished: Any) -> PartReceipt:
        try:
            return super().write(finished)
        except SpecbatchError as error:
            if error.code is not ErrorCode.JOB_STORE_LOST:
                raise
            return PartReceipt(
                shard=finished.assignment.lease.shard.index,
                path=part_name(finished.assignment.lease.shard.index, self._plan),
                num_rows=finished.assignment.lease.shard.num_rows,
                num_bytes=0,
                sha256="",
                token="",
                created=False,
                stats=part_stats(finished.results, finished.seconds),
            )


def _receipts_without_part() -> tuple[Patch, ...]:
    return ((processes, "PartWriter", _PromisingWriter),)


def _s3_settled_by(settle: Callable[[Any, _Put, _Look], str | None]) -> Callable[[], tuple[Patch, ...]]:
    return lambda: ((s3._Write, "_until_settled", settle),)


def _mine_by_412(write: Any, put: _Put, look: _Look) -> str | None:
    def put_or_believe() -> str:
        try:
            return put()
        except Fault as fault:
            if fault.kind is FaultKind.CHANGED:
                return "mine"
            raise

    answer: str | None = _REAL_SETTLING(write, put_or_believe, look)
    return answer


def _done_without_look(write: Any, put: _Put, look: _Look) -> str | None:
    try:
        return put()
    except Fault:
        return "done"


def _mine_by_existence(write: Any, put: _Put, look: _Look) -> str | None:
    def look_at_key() -> tuple[bool, str | None]:
        try:
            return True, write._bucket.stamp(write._key).etag
        except NotFound:
            return False, None

    answer: str | None = _REAL_SETTLING(write, put, look_at_key)
    return answer


WEAKENED = (
    Weakened("create-once overwrites", frozenset({"changed"}), 100, wrap=lambda store: _Overwrites(store)),
    Weakened("what is there is mine", frozenset({"receipt"}), 100, wrap=lambda store: _MineIfThere(store)),
    Weakened(
        "silence is success",
        frozenset({"receipt", "AssertionError", "manifest", "success", "failed"}),
        100,
        wrap=lambda store: _SilenceIsSuccess(store),
        scenario={"fault_rate": 0.4, "num_faults": 8},
    ),
    Weakened(
        "parts named by attempt",
        frozenset({"twice"}),
        100,
        patches=_attempt_names,
    ),
    Weakened(
        "no plan digest in the key",
        frozenset({"failed", "receipt", "part"}),
        100,
        patches=_plan_left_out,
        scenario={"reuse": True, "cuts": (2,)},
    ),
    Weakened(
        "manifest before all parts",
        frozenset({"manifest"}),
        20,
        patches=_manifest_first,
        scenario={"num_rows": 8, "cuts": (2,)},
    ),
    Weakened(
        "manifest overwritten",
        frozenset({"changed"}),
        400,
        wrap=lambda store: _OverwritesManifest(store),
        scenario={"num_slots": 2, "uses_lease": False},
    ),
    Weakened(
        "receipts without a part",
        frozenset({"receipt"}),
        100,
        patches=_receipts_without_part,
        scenario={"fault_rate": 0.4, "num_faults": 8},
    ),
    Weakened("S3: 412 is mine", frozenset({"receipt"}), 100, "s3", patches=_s3_settled_by(_mine_by_412)),
    Weakened(
        "S3: done without looking",
        frozenset({"receipt", "AssertionError", "manifest", "success", "failed"}),
        100,
        "s3",
        patches=_s3_settled_by(_done_without_look),
        scenario={"fault_rate": 0.4, "num_faults": 8},
    ),
    Weakened(
        "S3: mine because it exists", frozenset({"receipt"}), 100, "s3", patches=_s3_settled_by(_mine_by_existence)
    ),
)
