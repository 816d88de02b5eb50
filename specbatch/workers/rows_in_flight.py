"""The rows between the shards of a worker and its engine: given out ahead of free slots, taken back as they end.

All of it belongs to the decode thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.failpoints import failpoint, may_fail
from specbatch.schemas.messages import Progress
from specbatch.schemas.rows import RowResult
from specbatch.schemas.sampling import SamplingParams
from specbatch.schemas.stats import PhaseSeconds
from specbatch.specdec.output import SequenceOutput
from specbatch.workers.decoding import DecodingEngine
from specbatch.workers.pipeline import Pipeline
from specbatch.workers.prompts import PreparedRow, error_row
from specbatch.workers.shards import ShardInFlight, row_result
from specbatch.workers.totals import RunningTotals


class RowsInFlight:
    """Shards of which some rows have been given to the engine and some results are missing.

    Args:
        pipeline: where loaded shards wait.
        params: of every row, but for its seed and what the row itself asks for.
    """

    def __init__(self, pipeline: Pipeline, params: SamplingParams) -> None:
        self._pipeline = pipeline
        self._params = params
        self._shards: dict[int, ShardInFlight] = {}
        self._totals = RunningTotals()

    def discard_dropped(self, engine: DecodingEngine) -> None:
        """Forget shards that nobody wants any more, and let the engine forget their rows."""
        for shard in [shard for shard in self._shards.values() if shard.assignment.is_dropped]:
            del self._shards[shard.number]
            engine.cancel(shard.keys_in_flight())

    def feed(self, engine: DecodingEngine) -> None:
        """Give the engine rows ahead of its free slots, whichever shards they belong to."""
        while (room := engine.max_batch_size - engine.num_queued) > 0:
            given = self._pipeline.next_rows(room)
            if given is None:
                return
            shard, rows = given
            self._shards[shard.number] = shard
            has_failpoints = may_fail()
            for position, row in rows:
                if has_failpoints and isinstance(row, PreparedRow):
                    failpoint("row_submit:before", row.row_id)
                self._submit(engine, shard, position, row)

    def collect(self, outputs: Sequence[SequenceOutput]) -> None:
        """Take what the engine has ended."""
        for output in outputs:
            assert isinstance(output.key, tuple)
            number, position = output.key
            shard = self._shards[number]
            row = shard.loaded.rows[position]
            assert isinstance(row, PreparedRow)
            self._put(shard, position, row_result(row, output))

    def complete(self) -> list[ShardInFlight]:
        """Shards that have all their results, which stay here until ``release``."""
        return [shard for shard in self._shards.values() if shard.is_complete]

    def release(self, shard: ShardInFlight) -> None:
        """A complete shard goes its way."""
        del self._shards[shard.number]

    def progress(self, num_rows_active: int, seconds: PhaseSeconds, idle_seconds: float) -> Progress:
        """Sums over all rows that have ended; see ``RunningTotals.progress``."""
        return self._totals.progress(num_rows_active, seconds, idle_seconds)

    def _submit(
        self, engine: DecodingEngine, shard: ShardInFlight, position: int, row: PreparedRow | RowResult
    ) -> None:
        if isinstance(row, RowResult):
            self._put(shard, position, row)
            return
        params = self._params if row.params is None else row.params.apply(self._params)
        try:
            engine.submit((shard.number, position), row.prompt_ids, params.with_seed(row.seed))
        except SpecbatchError as error:
            if not error.code.startswith("ROW_"):
                raise
            failed = error_row(row.row_id, row.seed, error.code, error.message, sample_index=row.sample_index)
            self._put(shard, position, failed)

    def _put(self, shard: ShardInFlight, position: int, result: RowResult) -> None:
        ends_row = shard.put(position, result)
        if shard.is_counted:
            assignment = shard.assignment
            assignment.num_rows_done += ends_row
            if result.error_code is not None:
                assignment.errors_by_code[result.error_code] += 1
            self._totals.add(result, ends_row=ends_row)
