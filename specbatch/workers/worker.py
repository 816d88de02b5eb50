"""One process with one device: turns leased shards into parts.

Three threads share the work, so that the device never waits for a file::

    reader   leases -> read, tokenize -> loaded shards      (the next shard is read while this one decodes)
    decode   loaded shards -> engine -> finished shards     (slots refill across shard borders)
    writer   finished shards -> parts -> receipts           (the next shard decodes while this one is written)

The engine belongs to the decode thread alone. Everything else that two threads touch is guarded by one condition.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.messages import (
    Lease,
    MemoryReport,
    PartReceipt,
    Progress,
    RoundBlock,
    ShardFailed,
    WorkerConfig,
    WorkerPoll,
    WorkerReady,
)
from specbatch.schemas.rows import RowResult
from specbatch.schemas.stats import PhaseSeconds
from specbatch.specdec.output import SequenceOutput
from specbatch.storage.store import open_store
from specbatch.workers.decoding import DecodingEngine, EngineFactory, describe_worker, load_engine
from specbatch.workers.part_writer import PartWriter, warm_up
from specbatch.workers.prompts import PreparedRow, error_row
from specbatch.workers.shards import FinishedShard, ShardInFlight, load_shard, row_result
from specbatch.workers.totals import RunningTotals

_MAX_UNWRITTEN = 2
"""Finished shards that may wait for the writer before decoding waits too: this bounds memory."""
_IDLE_TICK_SECONDS = 0.5
_MEMORY_TICK_SECONDS = 1.0
_JOIN_SECONDS = 30.0


class Worker:
    """Turns shards into parts. The methods may be called from any thread; ``ready`` comes first.

    Args:
        config: fixed for the worker's life.
        engine_factory: makes the engine, in the thread that will use it.
    """

    def __init__(self, config: WorkerConfig, engine_factory: EngineFactory = load_engine) -> None:
        self._config = config
        self._engine_factory = engine_factory
        self._writer = PartWriter(
            open_store(config.output),
            config.plan,
            num_samples=config.generation.num_samples,
            with_logprobs=config.generation.logprobs,
        )
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        # Guarded by _changed:
        self._leases: deque[Lease] = deque()
        self._loaded: deque[ShardInFlight] = deque()
        self._unwritten: deque[FinishedShard] = deque()
        self._receipts: list[PartReceipt] = []
        self._failures: list[ShardFailed] = []
        self._blocks: list[RoundBlock] = []
        self._progress = Progress()  # its seconds are the engine's; poll adds those of the other two threads
        self._memory = MemoryReport(0, 0, 0, 0, 0)
        self._ready: WorkerReady | None = None
        self._load_seconds = 0.0
        self._is_draining = False
        self._is_stopping = False
        self._death: BaseException | None = None
        self._num_rows_ahead = 1  # the engine's batch, which changes when it gains or loses memory
        # Of the decode thread:
        self._in_flight: dict[int, ShardInFlight] = {}
        self._accounted = PhaseSeconds()
        self._totals = RunningTotals()
        self._idle_seconds = 0.0
        self._memory_due_at = 0.0

    # ---- called from outside ---------------------------------------------------------------------------------------

    def ready(self) -> WorkerReady:
        """Load the pair and start the threads; returns when shards can be taken.

        Raises:
            SpecbatchError: the pair cannot be loaded.
        """
        self._start("decode", self._decode)
        with self._changed:
            self._changed.wait_for(lambda: self._ready is not None or self._death is not None)
            if self._ready is None:
                assert self._death is not None
                raise self._death
            return self._ready

    def assign(self, lease: Lease) -> None:
        """Take a shard; its receipt or its failure comes with a later poll. Ignored once draining."""
        with self._changed:
            if not self._is_draining:
                self._leases.append(lease)
                self._changed.notify_all()

    def poll(self, timeout_seconds: float) -> WorkerPoll:
        """What happened since the last poll; returns at once when a shard ended, else after the timeout.

        Raises:
            Exception: whatever killed one of the threads. The worker is lost then.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._receipts or self._failures or self._death, timeout_seconds)
            if self._death is not None and not self._receipts and not self._failures:
                raise self._death
            own = PhaseSeconds(load=self._load_seconds, write=self._writer.seconds)
            news = WorkerPoll(
                receipts=tuple(self._receipts),
                failures=tuple(self._failures),
                blocks=tuple(self._blocks),
                progress=replace(self._progress, seconds=self._progress.seconds + own),
                memory=self._memory,
            )
            self._receipts, self._failures, self._blocks = [], [], []
            return news

    def drain(self) -> None:
        """Take no new shard and forget those of which no row has begun; the others are finished."""
        with self._changed:
            self._is_draining = True
            self._leases.clear()
            self._loaded = deque(shard for shard in self._loaded if shard.has_begun)
            self._changed.notify_all()

    def stop(self) -> None:
        """End the threads now. Shards that were finished are still written; those that were not are lost."""
        with self._changed:
            self._is_draining = self._is_stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)

    # ---- reader ----------------------------------------------------------------------------------------------------

    def _read(self, encode: Callable[[str], list[int]], context_length: int) -> None:
        while (lease := self._next_lease()) is not None:
            try:
                shard = ShardInFlight(load_shard(lease, self._config, encode, context_length))
            except SpecbatchError as error:
                self._fail(lease, error)
                continue
            with self._changed:
                self._load_seconds += shard.loaded.load_seconds
                if not self._is_draining:
                    self._loaded.append(shard)
                    self._changed.notify_all()

    def _next_lease(self) -> Lease | None:
        """The next shard to read, once it will be needed soon; None to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping or (self._leases and self._needs_rows()))
            return None if self._is_stopping else self._leases.popleft()

    def _needs_rows(self) -> bool:
        """One whole shard is read ahead; more where shards are smaller than a batch."""
        return len(self._loaded) < 2 or sum(s.num_waiting for s in self._loaded) < self._num_rows_ahead

    # ---- decode ----------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        engine = self._load()
        self._start("reader", lambda: self._read(engine.tokenizer.encode, engine.context_length))
        self._start("writer", self._write)
        while self._wait_for_rows(engine):
            self._feed(engine)
            outputs = engine.step()
            if engine.num_active == 0 and engine.num_queued == 0:
                engine.step()  # an idle step closes the engine's current block of rounds
            for output in outputs:
                self._collect(output)
            self._publish(engine)  # before the parts, so that the receipt of the last one is behind all blocks
            self._hand_over(engine)
        engine.cancel_all()

    def _load(self) -> DecodingEngine:
        started = time.perf_counter()
        warm_up()
        engine = self._engine_factory(self._config)
        with self._changed:
            self._memory = engine.memory()
            self._num_rows_ahead = engine.max_batch_size
            self._ready = describe_worker(self._config, engine, self._memory, time.perf_counter() - started)
            self._changed.notify_all()
        return engine

    def _wait_for_rows(self, engine: DecodingEngine) -> bool:
        """Wait until there is something to decode; False to end. The wait is the worker's idle time."""
        while True:
            with self._changed:
                if self._is_stopping:
                    return False
                if self._loaded or engine.num_active or engine.num_queued:
                    return True
                started = time.perf_counter()
                self._changed.wait(_IDLE_TICK_SECONDS)
                self._idle_seconds += time.perf_counter() - started
            self._publish(engine)

    def _feed(self, engine: DecodingEngine) -> None:
        """Give the engine rows ahead of its free slots, whichever shards they belong to."""
        while engine.num_queued < engine.max_batch_size:
            with self._changed:
                if not self._loaded:
                    return
                shard = self._loaded[0]
                known = self._in_flight.setdefault(shard.index, shard)
                assert known is shard, f"shard {shard.index} was leased twice"
                taken = shard.next_row() if shard.num_waiting else None
                if not shard.num_waiting:
                    self._loaded.popleft()
                    self._changed.notify_all()
            if taken is not None:
                self._submit(engine, shard, *taken)

    def _submit(
        self, engine: DecodingEngine, shard: ShardInFlight, position: int, row: PreparedRow | RowResult
    ) -> None:
        if isinstance(row, RowResult):
            self._put(shard, position, row)
            return
        try:
            params = self._config.generation.sampling_params(row.seed)
            engine.submit((shard.index, position), row.prompt_ids, params)
        except SpecbatchError as error:
            if not error.code.startswith("ROW_"):
                raise
            failed = error_row(row.row_id, row.seed, error.code, error.message, sample_index=row.sample_index)
            self._put(shard, position, failed)

    def _collect(self, output: SequenceOutput) -> None:
        assert isinstance(output.key, tuple)
        index, position = output.key
        shard = self._in_flight[index]
        row = shard.loaded.rows[position]
        assert isinstance(row, PreparedRow)
        self._put(shard, position, row_result(row, output))

    def _put(self, shard: ShardInFlight, position: int, result: RowResult) -> None:
        self._totals.add(result, ends_row=shard.put(position, result))

    def _hand_over(self, engine: DecodingEngine) -> None:
        """Pass complete shards to the writer. Each gets the engine's time since the one before it."""
        for shard in [shard for shard in self._in_flight.values() if shard.is_complete]:
            del self._in_flight[shard.index]
            finished = shard.finish(engine.seconds - self._accounted)
            self._accounted = engine.seconds
            with self._changed:
                self._changed.wait_for(lambda: len(self._unwritten) < _MAX_UNWRITTEN or self._is_stopping)
                self._unwritten.append(finished)
                self._changed.notify_all()

    def _publish(self, engine: DecodingEngine) -> None:
        blocks = engine.take_blocks()
        if time.monotonic() >= self._memory_due_at:
            self._memory_due_at = time.monotonic() + _MEMORY_TICK_SECONDS
            memory = engine.memory()
        else:
            memory = self._memory
        with self._changed:
            self._blocks.extend(blocks)
            self._memory = memory
            if engine.max_batch_size != self._num_rows_ahead:
                self._num_rows_ahead = engine.max_batch_size
                self._changed.notify_all()  # the reader may have to read further ahead
            self._progress = self._totals.progress(engine.num_active, engine.seconds, self._idle_seconds)

    # ---- writer ----------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        while (finished := self._next_finished()) is not None:
            try:
                receipt = self._writer.write(finished)
            except SpecbatchError as error:
                self._fail(finished.lease, error)
                continue
            with self._changed:
                self._receipts.append(receipt)
                self._changed.notify_all()

    def _next_finished(self) -> FinishedShard | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping or self._unwritten)
            if not self._unwritten:
                return None
            finished = self._unwritten.popleft()
            self._changed.notify_all()
            return finished

    # ---- threads ---------------------------------------------------------------------------------------------------

    def _fail(self, lease: Lease, error: SpecbatchError) -> None:
        with self._changed:
            self._failures.append(ShardFailed(lease.shard.index, lease.attempt, error.code.value, error.message))
            self._changed.notify_all()

    def _start(self, name: str, body: Callable[[], None]) -> None:
        """Start a thread whose death ends the worker and is told by the next poll."""

        def guarded() -> None:
            try:
                body()
            except BaseException as error:
                with self._changed:
                    self._death = error
                    self._is_draining = self._is_stopping = True
                    self._changed.notify_all()

        thread = threading.Thread(target=guarded, name=f"specbatch-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()
