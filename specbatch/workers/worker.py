"""One process with one device: turns leased shards into parts.

Three threads share the work, so that the device never waits for a file::

    reader   leases -> read, tokenize -> loaded shards      (the next shard is read while this one decodes)
    decode   loaded shards -> engine -> finished shards     (slots refill across shard borders)
    writer   finished shards -> parts -> receipts           (the next shard decodes while this one is written)

The engine belongs to the decode thread alone. What two threads touch is in the pipeline, guarded by its condition.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.failpoints import failpoint
from specbatch.schemas.messages import (
    Lease,
    MemoryReport,
    ProbeDone,
    WorkerConfig,
    WorkerPoll,
    WorkerReady,
)
from specbatch.schemas.stats import PhaseSeconds
from specbatch.storage.retries import num_retries
from specbatch.storage.store import open_store
from specbatch.workers.decoding import DecodingEngine, EngineFactory, describe_worker, load_engine
from specbatch.workers.heartbeat import Heartbeat, Writing, write_limit_seconds, writer_silence_seconds
from specbatch.workers.part_writer import PartWriter, warm_up
from specbatch.workers.pipeline import Pipeline
from specbatch.workers.reading import ShardReader
from specbatch.workers.rows_in_flight import RowsInFlight
from specbatch.workers.shards import ShardInFlight
from specbatch.workers.trust import DeviceTrust

_IDLE_TICK_SECONDS = 0.5
_MEMORY_TICK_SECONDS = 1.0
_JOIN_SECONDS = 30.0
_DECODE_THREAD = "specbatch-decode"


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
            open_store(config.output, single_writer=config.single_writer),
            config.plan,
            num_samples=config.generation.num_samples,
            form=replace(config.form, with_logprobs=config.generation.logprobs),
        )
        self._pipeline = Pipeline()
        self._heartbeat = Heartbeat()
        self._writing = Writing()
        self._write_limit_seconds = write_limit_seconds(config.output)
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()  # held until a thread that began is among them: ``stop`` misses none
        self._ready: WorkerReady | None = None  # guarded by the pipeline's condition
        # Of the decode thread alone:
        self._rows = RowsInFlight(self._pipeline, config.generation.sampling_params(seed=0))
        self._trust = DeviceTrust()
        self._accounted = PhaseSeconds()
        self._idle_seconds = 0.0
        self._memory = MemoryReport(0, 0, 0, 0, 0)
        self._memory_due_at = 0.0

    # ---- called from outside ---------------------------------------------------------------------------------------

    def ready(self) -> WorkerReady:
        """Load the pair and start the threads; returns when shards can be taken.

        Raises:
            SpecbatchError: the pair cannot be loaded.
        """
        self._start(_DECODE_THREAD, self._decode)
        pipeline = self._pipeline
        with pipeline.changed:
            pipeline.changed.wait_for(lambda: self._ready is not None or pipeline.death is not None)
            if self._ready is None:
                assert pipeline.death is not None
                raise pipeline.death
            return self._ready

    def assign(self, lease: Lease) -> None:
        """Take a shard, or a probe of one; how it ended comes with a later poll. Ignored once draining."""
        self._pipeline.assign(lease)

    def drop(self, shard: int) -> None:
        """Forget a shard whose part exists already: of it nothing more is decoded, written or told.

        It may be assigned again. One that this worker does not hold is no mistake: it may just have ended.
        """
        self._pipeline.drop(shard)

    def poll(self, timeout_seconds: float) -> WorkerPoll:
        """What happened since the last poll; returns at once when a shard, a probe or the first row ended.

        It answers while the decode loop hangs, with a growing ``beat_age_seconds``, and says which part is being
        written; one that takes longer than any store may need counts as a hang too.

        Raises:
            Exception: whatever killed one of the threads. The worker is lost then.
        """
        self._pipeline.wait_for_news(timeout_seconds)
        news = self._pipeline.take_news()
        shard, writing_seconds = self._writing.now()
        progress = replace(
            news.progress,
            seconds=news.progress.seconds + PhaseSeconds(write=self._writer.seconds),
            beat_age_seconds=max(
                self._heartbeat.age_seconds, writer_silence_seconds(writing_seconds, self._write_limit_seconds)
            ),
            median_step_seconds=self._heartbeat.median_step_seconds,
            writing_shard=shard,
            writing_seconds=writing_seconds,
            num_storage_retries=num_retries(),
        )
        return replace(news, progress=progress)

    def drain(self) -> None:
        """Take no new shard and forget those of which no row has begun; the others are finished."""
        self._pipeline.drain()

    def stop(self) -> bool:
        """End the threads now. Shards that were finished are still written; those that were not are lost.

        Returns:
            whether nobody uses the engine any more; a decode thread that hangs cannot be ended.
        """
        self._pipeline.stop()
        with self._starting:
            threads = tuple(self._threads)
        for thread in threads:
            thread.join(_JOIN_SECONDS)
        return not any(thread.is_alive() for thread in threads if thread.name == _DECODE_THREAD)

    def lose(self, error: Exception) -> None:
        """End because of what the decode thread cannot tell: it may be stuck in what the error is about."""
        self._heartbeat.end()
        self._pipeline.stop(error)

    # ---- reader ----------------------------------------------------------------------------------------------------

    def _read(self, encode: Callable[[str], list[int]], context_length: int) -> None:
        reader = ShardReader(self._config, encode, context_length)
        while (assignment := self._pipeline.next_lease()) is not None:
            try:
                loaded = reader.load(assignment.lease)
            except (SpecbatchError, MemoryError) as error:
                self._pipeline.settle(assignment, error)
                continue
            self._pipeline.put_loaded(ShardInFlight(assignment, loaded))
            del loaded  # not to be kept while the next lease is waited for

    # ---- decode ----------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        engine = self._load()
        self._start("specbatch-reader", lambda: self._read(engine.tokenizer.encode, engine.context_length))
        self._start("specbatch-writer", self._write)
        while self._wait_for_rows(engine):
            self._heartbeat.beat()
            self._rows.discard_dropped(engine)
            self._rows.feed(engine)
            failpoint("decode_step:before")
            outputs = engine.step()
            failpoint("decode_step:after")
            self._rows.collect(outputs)
            self._publish(engine)  # before the parts, so that the receipt of the last one is behind all blocks
            self._hand_over(engine)
        engine.cancel_all()

    def _load(self) -> DecodingEngine:
        started = time.perf_counter()
        warm_up()
        engine = self._engine_factory(self._config)
        self._publish(engine)
        ready = describe_worker(self._config, engine, self._memory, time.perf_counter() - started)
        with self._pipeline.changed:
            self._ready = ready
            self._pipeline.changed.notify_all()
        return engine

    def _wait_for_rows(self, engine: DecodingEngine) -> bool:
        """Wait until there is something to decode; False to end. The wait is the worker's idle time."""
        changed = self._pipeline.changed
        while True:
            with changed:
                if self._pipeline.is_stopping:
                    return False
                if self._pipeline.has_loaded or engine.num_active or engine.num_queued:
                    return True
                self._heartbeat.rest()
                started = time.perf_counter()
                changed.wait(_IDLE_TICK_SECONDS)
                self._idle_seconds += time.perf_counter() - started
            self._rows.discard_dropped(engine)
            self._publish(engine)

    def _hand_over(self, engine: DecodingEngine) -> None:
        """Pass complete shards to the writer. Each gets the engine's time since the one before it."""
        for shard in self._rows.complete():
            self._trust.check(engine)
            self._rows.release(shard)
            seconds, self._accounted = engine.seconds - self._accounted, engine.seconds
            lease = shard.assignment.lease
            if lease.probe is not None:
                self._pipeline.settle(shard.assignment, ProbeDone(lease.shard.index, *lease.probe))
                continue
            self._heartbeat.rest()  # a store that is slow is not a loop that hangs
            self._pipeline.put_finished(shard.finish(seconds))

    def _publish(self, engine: DecodingEngine) -> None:
        if time.monotonic() >= self._memory_due_at:
            self._memory_due_at = time.monotonic() + _MEMORY_TICK_SECONDS
            self._memory = engine.memory()
        progress = self._rows.progress(engine.num_active, engine.seconds, self._idle_seconds)
        self._pipeline.publish(progress, self._memory, engine.take_blocks(), engine.max_batch_size)

    # ---- writer ----------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        with self._pipeline.writer():
            while self._write_next():
                pass

    def _write_next(self) -> bool:
        """Write one shard, whose rows go with this call's frame; False to end."""
        finished = self._pipeline.next_finished()
        if finished is None:
            return False
        self._writing.begin(finished.assignment.lease.shard.index)
        try:
            self._pipeline.settle(finished.assignment, self._writer.write(finished))
        except (SpecbatchError, MemoryError) as error:
            self._pipeline.settle(finished.assignment, error)
        finally:
            self._writing.end()
        return True

    # ---- threads ---------------------------------------------------------------------------------------------------

    def _start(self, name: str, body: Callable[[], None]) -> None:
        """Start a thread whose death ends the worker and is told by the next poll."""

        def guarded() -> None:
            try:
                body()
            except BaseException as error:
                self._heartbeat.end()
                self._pipeline.stop(error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        with self._starting:
            thread.start()
            self._threads.append(thread)  # one that did not start cannot be joined
