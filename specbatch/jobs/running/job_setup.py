"""What a run begins with: what is expected of it, its coordinator, and what every worker is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from specbatch.jobs.coordinator.coordinator import Coordinator
from specbatch.jobs.output.ledger import StoredJob
from specbatch.jobs.planning.machine import count_cores
from specbatch.jobs.planning.prepare import PreparedJob
from specbatch.schemas.log_lines import read_log_settings, short_job
from specbatch.schemas.messages import WorkerConfig
from specbatch.schemas.plan import Shard
from specbatch.schemas.prompt import PromptSpec
from specbatch.schemas.rows import ResultForm
from specbatch.schemas.stats import PartStats
from specbatch.schemas.units import parse_duration
from specbatch.specdec.models.memory import AUTO_MAX_ROWS


def expect(prepared: PreparedJob) -> dict[str, Any] | None:
    """What is expected of a job that nothing has been done of yet; the report holds it against what came."""
    from specbatch.jobs.profiles.use import forecast_job

    forecast = forecast_job(prepared)
    return None if forecast is None else forecast.document()


def make_coordinator(prepared: PreparedJob, missing: Sequence[Shard], found: PartStats) -> Coordinator:
    """The coordinator of a run.

    Args:
        missing: shards without a part, ascending; at least one.
        found: sums of the parts that exist.
    """
    execution, spec = prepared.execution, prepared.spec.execution
    batch_size = AUTO_MAX_ROWS[execution.device] if execution.batch_size == "auto" else execution.batch_size
    most_results = max(shard.num_rows for shard in missing) * prepared.spec.generation.num_samples
    takes_all = spec.address is not None and spec.workers == "auto"
    return Coordinator(
        missing,
        num_workers=None if takes_all else execution.num_workers,
        # Enough shards to fill a batch, and one more to refill it from.
        leases_per_worker=max(math.ceil(batch_size / most_results) + 1, 2),
        max_error_rate=spec.max_error_rate,
        rows_done=found.num_results,
        errors_done=found.num_errors,
        deadline_seconds=None if spec.deadline is None else parse_duration(spec.deadline),
        has_twins=not spec.single_writer,
    )


def make_worker_config(prepared: PreparedJob, stored: StoredJob, epoch: int, *, num_workers: int) -> WorkerConfig:
    """What every worker is told; its number is filled in when it is started.

    Args:
        num_workers: that share this machine's cores, and on a CPU its memory.
    """
    execution, spec = prepared.execution, prepared.spec.execution
    if spec.cpus_per_worker is not None:
        num_threads = max(spec.cpus_per_worker // execution.num_ranks, 1)
    else:
        num_threads = max(count_cores() // (num_workers * execution.num_ranks), 1)
    # On a cluster the share of a node is divided where the node is known.
    num_sharing = num_workers if spec.address is None else 1
    num_sharing = num_sharing * execution.num_ranks if execution.device == "cpu" else 1
    return WorkerConfig(
        worker=0,
        output=prepared.output,
        plan=stored.plan,
        target_path=prepared.target.place,
        draft_path=execution.draft.place if execution.draft is not None else None,
        dtype=execution.dtype,
        device=execution.device,
        speculation=execution.speculation,
        batch_size=execution.batch_size,
        num_threads=num_threads,
        quantization=prepared.spec.models.quantization,
        kv_cache_dtype=prepared.spec.models.kv_cache_dtype,
        bitwise=prepared.spec.models.bitwise,
        prompt=PromptSpec.of(prepared.spec),
        generation=prepared.spec.generation,
        pass_through=prepared.pass_through,
        memory_fraction=execution.memory_fraction / num_sharing,
        device_share=spec.gpus_per_worker if execution.device == "cuda" else 1.0,
        single_writer=spec.single_writer,
        form=ResultForm.of(prepared.spec),
        duplicates=prepared.duplicates,
        num_ranks=execution.num_ranks,
        job=short_job(stored.document.identity.S),
        epoch=epoch,
        log=read_log_settings(),
    )
